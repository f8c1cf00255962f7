//! What the tensors of a checkpoint should be.

use std::fmt;

use segpack_formats::numeric::Dtype;

use crate::names::Classification;

/// Whether a tensor has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Presence {
    /// Its absence is an error.
    Required,
    /// It may be left out, as a tied output head is.
    Optional,
}

/// The dtype that a tensor has to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExpectedDtype {
    /// The configuration does not say.
    Any,
    /// The configuration does not say; F32, whatever it says of the others.
    AnyOrF32,
    /// This one.
    One(Dtype),
    /// One of two, as publishers differ.
    Either(Dtype, Dtype),
    /// F32, BF16 or F16.
    Float,
    /// Integers of 32 or 64 bits.
    Integer,
}

impl ExpectedDtype {
    /// Whether a tensor may be of this dtype.
    #[must_use]
    pub fn allows(self, dtype: Dtype) -> bool {
        match self {
            Self::Any | Self::AnyOrF32 => true,
            Self::One(one) => dtype == one,
            Self::Either(one, other) => dtype == one || dtype == other,
            Self::Float => matches!(dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16),
            Self::Integer => matches!(dtype, Dtype::I32 | Dtype::I64),
        }
    }
}

impl ExpectedDtype {
    /// The same, now that the configuration says what its weights are.
    #[must_use]
    pub fn stated(self, dtype: Dtype) -> Self {
        match self {
            Self::AnyOrF32 => Self::Either(dtype, Dtype::F32),
            Self::Any | Self::One(_) | Self::Either(..) | Self::Float | Self::Integer => {
                Self::One(dtype)
            }
        }
    }
}

impl fmt::Display for ExpectedDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any | Self::AnyOrF32 => f.write_str("any dtype"),
            Self::One(one) => one.fmt(f),
            Self::Either(one, other) => write!(f, "{one} or {other}"),
            Self::Float => f.write_str("F32, BF16 or F16"),
            Self::Integer => f.write_str("I32 or I64"),
        }
    }
}

/// A tensor that the configuration calls for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its name on disk.
    pub name: String,
    /// Its shape; a Linear is `[out, in]`.
    pub shape: Vec<u64>,
    /// Another shape that some publishers give it, 0 standing for any size.
    pub or_shape: Option<Vec<u64>>,
    /// Its dtype.
    pub dtype: ExpectedDtype,
    /// Whether it may be left out.
    pub presence: Presence,
    /// What it is.
    pub classification: Classification,
}

impl Expected {
    /// Whether it may have this shape.
    #[must_use]
    pub fn allows_shape(&self, shape: &[u64]) -> bool {
        let is_other = |other: &Vec<u64>| {
            let mut sides = other.iter().zip(shape);
            other.len() == shape.len() && sides.all(|(wanted, side)| *wanted == 0 || wanted == side)
        };
        self.shape == shape || self.or_shape.as_ref().is_some_and(is_other)
    }
}

/// Takes the tensors that a configuration calls for, one by one: all of a large model at once are
/// megabytes.
pub(crate) struct ExpectedSink<'a> {
    count: usize,
    take: &'a mut dyn FnMut(Expected),
}

impl<'a> ExpectedSink<'a> {
    /// Gives them to `take`.
    pub(crate) fn new(take: &'a mut dyn FnMut(Expected)) -> Self {
        Self { count: 0, take }
    }

    /// How many it has taken.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Takes the next one.
    pub(crate) fn push(&mut self, tensor: Expected) {
        self.count += 1;
        (self.take)(tensor);
    }
}

/// One expert's matrix inside a tensor that stacks all experts of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The name it has where experts are stored one by one.
    pub name: String,
    /// Its shape, `[out, in]`.
    pub shape: Vec<u64>,
    /// What it is.
    pub classification: Classification,
    /// Its first byte within the stacked tensor.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// A stacked tensor that cannot be taken apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stacked tensor {name} of shape {shape:?} with {dtype_bits} bits each: wanted {wanted}")]
pub struct UnstackError {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Size of one element in bits.
    pub dtype_bits: u64,
    /// What would have been possible.
    pub wanted: String,
}

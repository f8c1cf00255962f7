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
    /// This one.
    One(Dtype),
    /// One of two, as publishers differ.
    Either(Dtype, Dtype),
}

impl ExpectedDtype {
    /// Whether a tensor may be of this dtype.
    #[must_use]
    pub fn allows(self, dtype: Dtype) -> bool {
        match self {
            Self::Any => true,
            Self::One(one) => dtype == one,
            Self::Either(one, other) => dtype == one || dtype == other,
        }
    }
}

impl fmt::Display for ExpectedDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any dtype"),
            Self::One(one) => one.fmt(f),
            Self::Either(one, other) => write!(f, "{one} or {other}"),
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
    /// Its dtype.
    pub dtype: ExpectedDtype,
    /// Whether it may be left out.
    pub presence: Presence,
    /// What it is.
    pub classification: Classification,
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

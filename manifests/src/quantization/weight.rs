//! A weight that is quantised, and the tensors in its place.

use segpack_formats::numeric::Dtype;

use super::StoredParts;
use crate::families::expected::{Expected, ExpectedDtype, Presence};
use crate::names::{Classification, Part};

const WEIGHT: &str = ".weight";

/// A weight as it would be unquantised.
pub(super) struct Weight<'a> {
    plain: &'a Expected,
    stored: &'a StoredParts,
}

impl<'a> Weight<'a> {
    pub(super) fn of(plain: &'a Expected, stored: &'a StoredParts) -> Self {
        Self { plain, stored }
    }

    /// The module, by its name without `.weight`.
    pub(super) fn module(&self) -> &'a str {
        let name = self.plain.name.as_str();
        name.strip_suffix(WEIGHT).unwrap_or(name)
    }

    /// The name of a part of it.
    pub(super) fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.module())
    }

    /// Whether the values of a scheme with this mark are still called `*.weight`.
    pub(super) fn keeps_name(&self, mark: &str) -> bool {
        mark.starts_with(".weight_scale") || mark.starts_with(".weight.") || mark == ".SCB"
    }

    /// Outputs and inputs of a Linear; `None` for anything else.
    pub(super) fn linear(&self) -> Option<[u64; 2]> {
        let is_linear = self.plain.name.ends_with(WEIGHT);
        let sides = <[u64; 2]>::try_from(self.plain.shape.as_slice()).ok();
        sides.filter(|_| is_linear)
    }

    /// Its shape unquantised.
    pub(super) fn shape(&self) -> &'a [u64] {
        &self.plain.shape
    }

    /// Whether any weight of the checkpoint has this part.
    pub(super) fn others_have(&self, suffix: &str) -> bool {
        self.stored.has(suffix)
    }

    /// The values under the weight's own name.
    pub(super) fn values(&self, dtype: Dtype, shape: Vec<u64>) -> Expected {
        Expected {
            dtype: ExpectedDtype::One(dtype),
            shape,
            or_shape: None,
            ..self.plain.clone()
        }
    }

    /// A tensor beside it.
    pub(super) fn part(
        &self,
        (suffix, part): (&str, Part),
        dtype: ExpectedDtype,
        shape: Vec<u64>,
    ) -> Expected {
        // a scalar is stored as such, or as a vector of one
        let or_shape = shape.is_empty().then(|| vec![1]);
        let or_shape = or_shape.or_else(|| (shape == [1]).then(Vec::new));
        Expected {
            name: self.name(suffix),
            shape,
            or_shape,
            dtype,
            presence: self.plain.presence,
            classification: Classification {
                part,
                ..self.plain.classification
            },
        }
    }

    /// A scalar that all weights have or none, as far as no configuration says which.
    pub(super) fn scalar_if_any(&self, suffix: (&str, Part)) -> Option<Expected> {
        let scalar = || self.part(suffix, ExpectedDtype::One(Dtype::F32), Vec::new());
        self.others_have(suffix.0).then(scalar)
    }

    /// Any size, of a tensor that need not be there.
    pub(super) fn optional(mut tensor: Expected) -> Expected {
        tensor.presence = Presence::Optional;
        tensor
    }
}

//! The tensors of an encoder, found by name and compared with the configuration.

use std::collections::BTreeMap;

use segpack_formats::io::to_usize;
use segpack_manifests::PackReader;
use segpack_manifests::documents::TensorEntry;
use segpack_manifests::names::Component;

use super::layers::{Affine, Dense};
use crate::error::{RunError, Unsuitable};
use crate::models::decoder::bind::check_words;
use crate::weights::{PlacedTensor, SegmentGroup};

/// The tensors of one component, by what follows its prefix in their names.
pub(crate) struct EncoderTensors<'a> {
    source: &'a PackReader<'a>,
    component: Component,
    by_name: BTreeMap<&'a str, &'a TensorEntry>,
}

impl<'a> EncoderTensors<'a> {
    /// Of a component whose tensors' names have this in front, or have it after another prefix.
    ///
    /// # Errors
    /// `Unsuitable` where the pack has none, or one that is not understood.
    pub(crate) fn find(
        source: &'a PackReader<'a>,
        component: Component,
        prefix: &str,
    ) -> Result<Self, RunError> {
        let mut by_name = BTreeMap::new();
        for tensor in &source.pack().manifest().tensors {
            if tensor.component != component {
                continue;
            }
            check_words(tensor)?;
            let name = match tensor.name.find(prefix) {
                Some(at) => &tensor.name[at + prefix.len()..],
                None => &tensor.name[..],
            };
            if by_name.insert(name, tensor).is_some() {
                return Err(surplus(tensor, &component));
            }
        }
        if by_name.is_empty() {
            let component = component.to_string();
            return Err(Unsuitable::NoComponent { component }.into());
        }
        Ok(Self {
            source,
            component,
            by_name,
        })
    }

    /// The tensor of this name and shape, in a group. One of more than two dimensions becomes a
    /// matrix `[first, all others]`. Each name can be taken once.
    ///
    /// # Errors
    /// `Unsuitable` where it is missing, has another shape or a dtype that is not computed with.
    pub(crate) fn take(
        &mut self,
        name: &str,
        shape: &[usize],
        group: &mut SegmentGroup<'a>,
    ) -> Result<PlacedTensor, RunError> {
        let Some(tensor) = self.by_name.remove(name) else {
            return Err(Unsuitable::MissingTensor {
                component: self.component.to_string(),
                tensor: name.to_owned(),
            }
            .into());
        };
        let mut placed = PlacedTensor::new(tensor, 0)?;
        let columns = shape
            .iter()
            .skip(1)
            .try_fold(1, |n: usize, side| n.checked_mul(*side));
        let values = columns.and_then(|n| n.checked_mul(*shape.first()?));
        let bytes = values.and_then(|n| n.checked_mul(placed.dtype.byte_width()));
        let sides = tensor.shape.iter().map(|side| to_usize(*side));
        let is_shape = sides.eq(shape.iter().copied());
        let (Some(columns), true) = (columns, is_shape && bytes == Some(placed.length)) else {
            return Err(Unsuitable::TensorShape {
                tensor: tensor.name.clone(),
                seen: tensor.shape.clone(),
                wanted: shape.iter().map(|side| *side as u64).collect(),
            }
            .into());
        };
        placed.offset += group.place(self.source.segment_of(tensor)?);
        placed.columns = columns;
        Ok(placed)
    }

    /// A linear layer with a bias.
    pub(crate) fn dense(
        &mut self,
        name: &str,
        [rows, columns]: [usize; 2],
        group: &mut SegmentGroup<'a>,
    ) -> Result<Dense, RunError> {
        Ok(Dense {
            weight: self.take(&format!("{name}.weight"), &[rows, columns], group)?,
            bias: self.take(&format!("{name}.bias"), &[rows], group)?,
        })
    }

    /// A layer norm.
    pub(crate) fn affine(
        &mut self,
        name: &str,
        width: usize,
        group: &mut SegmentGroup<'a>,
    ) -> Result<Affine, RunError> {
        Ok(Affine {
            weight: self.take(&format!("{name}.weight"), &[width], group)?,
            bias: self.take(&format!("{name}.bias"), &[width], group)?,
        })
    }

    /// Leaving a tensor out may change what is computed, so none may be left.
    ///
    /// # Errors
    /// `Unsuitable` names the first.
    pub(crate) fn finish(self) -> Result<(), RunError> {
        match self.by_name.values().next() {
            None => Ok(()),
            Some(tensor) => Err(surplus(tensor, &self.component)),
        }
    }
}

fn surplus(tensor: &TensorEntry, component: &Component) -> RunError {
    Unsuitable::Surplus {
        tensor: tensor.name.clone(),
        role: tensor.role.to_string(),
        owner: component.to_string(),
    }
    .into()
}

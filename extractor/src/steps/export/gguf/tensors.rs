//! The tensors of a text decoder in a pack, each found by its place in the model.

use std::cell::Cell;
use std::collections::HashMap;

use segpack_formats::io::to_usize;
use segpack_formats::numeric::mxfp4;
use segpack_manifests::Pack;
use segpack_manifests::documents::TensorEntry;
use segpack_manifests::folder::TextDecoder;
use segpack_manifests::names::{Component, Part, Role};

use super::architecture::Architecture;
use super::layers::Row;
use crate::steps::export::GgufExportError;
use crate::steps::export::arrangement::{Arrangement, Every};

/// What a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place<'a> {
    pub(super) role: Role,
    pub(super) part: Part,
    pub(super) layer: Option<u32>,
    pub(super) expert: Option<u32>,
    /// What tells the tensors apart that only a layer beyond the model's has: the end of their name.
    pub(super) mtp: Option<&'a str>,
}

impl Place<'_> {
    /// A weight outside the layers.
    pub(super) const fn outside(role: Role) -> Self {
        Self {
            role,
            part: Part::Weight,
            layer: None,
            expert: None,
            mtp: None,
        }
    }

    /// A tensor of a layer, of an expert's where one is named.
    pub(super) fn of_layer(row: &Row, layer: u32, expert: Option<u32>) -> Self {
        Self {
            role: row.role,
            part: row.part,
            layer: Some(layer),
            expert,
            mtp: None,
        }
    }
}

/// A tensor of the model as the pack stores it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) source: &'a TensorEntry,
    /// The scales of its blocks.
    pub(super) scales: Option<&'a TensorEntry>,
    pub(super) arrangement: Arrangement,
}

/// The tensors of a text decoder.
pub(super) struct Tensors<'a, 'd> {
    by_place: HashMap<Place<'a>, (&'a TensorEntry, Cell<bool>)>,
    architecture: Architecture,
    decoder: &'d TextDecoder,
}

impl<'a, 'd> Tensors<'a, 'd> {
    /// Those of a component. `has_mxfp4`: whether the configuration says that experts are blocks of
    /// MXFP4.
    ///
    /// # Errors
    /// `Twice` where two are the same; `Part` for one of a quantised weight that is not read.
    pub(super) fn of(
        (pack, component): (&'a Pack, Component),
        architecture: Architecture,
        decoder: &'d TextDecoder,
        has_mxfp4: bool,
    ) -> Result<Self, GgufExportError> {
        let mut by_place = HashMap::new();
        let tensors = pack.manifest().tensors.iter();
        for tensor in tensors.filter(|t| t.component == component) {
            let is_known = match tensor.part {
                Part::Weight | Part::Bias => true,
                Part::Blocks | Part::Scale => has_mxfp4,
                _ => false,
            };
            if !is_known {
                return Err(GgufExportError::Part {
                    tensor: tensor.name.clone(),
                    part: tensor.part.to_string(),
                    architecture: architecture.as_str(),
                });
            }
            let place = place_of(tensor);
            if let Some((other, _)) = by_place.insert(place, (tensor, Cell::new(false))) {
                return Err(GgufExportError::Twice {
                    first: other.name.clone(),
                    second: tensor.name.clone(),
                    role: tensor.role.to_string(),
                });
            }
        }
        Ok(Self {
            by_place,
            architecture,
            decoder,
        })
    }

    /// Whether the pack has it.
    pub(super) fn has(&self, place: &Place<'a>) -> bool {
        self.by_place.contains_key(place)
    }

    /// Layers with tensors, beyond the model's own too.
    pub(super) fn layers(&self) -> u32 {
        let numbers = self.by_place.keys().filter_map(|place| place.layer);
        numbers.max().map_or(0, |last| last + 1)
    }

    /// Whether any expert is stored as MXFP4.
    pub(super) fn has_mxfp4(&self) -> bool {
        self.by_place.keys().any(|place| place.part == Part::Blocks)
    }

    /// A tensor that was not taken.
    pub(super) fn left_over(&self) -> Option<&'a TensorEntry> {
        let left = self.by_place.values().filter(|(_, taken)| !taken.get());
        left.map(|(tensor, _)| *tensor).min_by_key(|t| &t.name)
    }

    fn take(&self, place: &Place<'a>) -> Option<&'a TensorEntry> {
        let (tensor, taken) = self.by_place.get(place)?;
        taken.set(true);
        Some(*tensor)
    }

    /// The tensor of this place and shape.
    ///
    /// # Errors
    /// `Missing`; `Shape` where it has another one.
    pub(super) fn stored(
        &self,
        place: Place<'a>,
        shape: &[u64],
    ) -> Result<Stored<'a>, GgufExportError> {
        if let Some(source) = self.take(&place) {
            return self.plain(source, shape);
        }
        if let Some(of_expert) = self.of_expert(place, shape)? {
            return Ok(of_expert);
        }
        Err(GgufExportError::Missing {
            role: place.role.to_string(),
            layer: place.layer,
            expert: place.expert,
        })
    }

    fn plain(&self, source: &'a TensorEntry, shape: &[u64]) -> Result<Stored<'a>, GgufExportError> {
        let arrangement = match (self.architecture, source.role) {
            (Architecture::Llama, Role::AttentionQ | Role::AttentionK) => {
                check_shape(source, shape)?;
                self.heads(source)
            }
            (_, Role::ExpertDown) if source.part == Part::Weight && self.is_transposed(source) => {
                let turned = [shape[1], shape[0]];
                check_shape(source, &turned)?;
                transposed(source, Every::ONE)
            }
            _ => {
                check_shape(source, shape)?;
                Arrangement::Kept
            }
        };
        Ok(Stored {
            source,
            scales: None,
            arrangement,
        })
    }

    /// Rows that positions turn together are neighbours in llama.cpp's `llama`.
    fn heads(&self, source: &TensorEntry) -> Arrangement {
        let row = source.length / source.shape.first().copied().unwrap_or(1).max(1);
        Arrangement::Heads {
            rows: to_usize(self.decoder.facts.head_dim),
            row_bytes: to_usize(row),
        }
    }

    /// An expert's matrix or bias that is stored as blocks, or together with another one.
    fn of_expert(
        &self,
        place: Place<'a>,
        shape: &[u64],
    ) -> Result<Option<Stored<'a>>, GgufExportError> {
        let (role, taken) = match place.role {
            Role::ExpertGate => (Role::ExpertGateUp, Every { first: 0, step: 2 }),
            Role::ExpertUp => (Role::ExpertGateUp, Every { first: 1, step: 2 }),
            Role::ExpertDown => (Role::ExpertDown, Every::ONE),
            _ => return Ok(None),
        };
        let together = Place { role, ..place };
        let blocks = Place {
            part: Part::Blocks,
            ..together
        };
        let mut outputs = shape.to_vec();
        if let Some(first) = outputs.first_mut() {
            *first *= taken.step as u64;
        }
        if place.part == Part::Weight
            && let Some(source) = self.take(&blocks)
        {
            return self.mxfp4(source, together, &outputs, taken).map(Some);
        }
        let Some(source) = self.take(&together) else {
            return Ok(None);
        };
        let arrangement = match &outputs[..] {
            [rows, columns] if self.is_transposed(source) => {
                check_shape(source, &[*columns, *rows])?;
                transposed(source, taken)
            }
            _ => {
                check_shape(source, &outputs)?;
                let row = source.length / outputs.first().copied().unwrap_or(1).max(1);
                let row_bytes = to_usize(row);
                Arrangement::Rows { taken, row_bytes }
            }
        };
        Ok(Some(Stored {
            source,
            scales: None,
            arrangement,
        }))
    }

    /// Blocks of MXFP4 with their scales: `[out, in / 32, 16]` and `[out, in / 32]`, bytes.
    fn mxfp4(
        &self,
        source: &'a TensorEntry,
        place: Place<'a>,
        shape: &[u64],
        taken: Every,
    ) -> Result<Stored<'a>, GgufExportError> {
        let &[rows, columns] = shape else {
            return Err(wrong_shape(source, shape));
        };
        let scales = Place {
            part: Part::Scale,
            ..place
        };
        let Some(scales) = self.take(&scales) else {
            return Err(GgufExportError::NoScale {
                tensor: source.name.clone(),
            });
        };
        let (values, bytes) = (mxfp4::BLOCK_VALUES as u64, mxfp4::BLOCK_BYTES as u64);
        let blocks = columns.div_ceil(values);
        check_shape(source, &[rows, blocks, bytes])?;
        check_shape(scales, &[rows, blocks])?;
        let arrangement = Arrangement::Mxfp4 {
            blocks: to_usize(blocks),
            taken,
        };
        Ok(Stored {
            source,
            scales: Some(scales),
            arrangement,
        })
    }

    /// Whether an expert's matrix is `[in, out]`. Versions of a class differ in that, so that the
    /// shape decides, and where it is square the family's layout.
    fn is_transposed(&self, source: &TensorEntry) -> bool {
        let facts = &self.decoder.facts;
        let (hidden, inner) = (facts.hidden_size, facts.moe_intermediate);
        let wanted = match source.role {
            Role::ExpertGateUp => [2 * inner, hidden],
            _ => [hidden, inner],
        };
        let stack = &source.source.tensor;
        let layout = self.decoder.family.stack_layout(stack);
        match (wanted[0] == wanted[1], layout) {
            (_, None) => false,
            (true, Some(layout)) => self
                .gate_up_is_transposed(source.layer)
                .unwrap_or(layout.is_transposed),
            (false, Some(_)) => source.shape == [wanted[1], wanted[0]],
        }
    }

    /// Whether gate and up of a layer's first expert are, where that can be told.
    fn gate_up_is_transposed(&self, layer: Option<u32>) -> Option<bool> {
        let facts = &self.decoder.facts;
        let turned = [facts.hidden_size, 2 * facts.moe_intermediate];
        let place = Place {
            role: Role::ExpertGateUp,
            layer,
            expert: Some(0),
            ..Place::outside(Role::ExpertGateUp)
        };
        let (tensor, _) = self.by_place.get(&place)?;
        (turned[0] != turned[1]).then(|| tensor.shape == turned)
    }
}

fn place_of(tensor: &TensorEntry) -> Place<'_> {
    let TensorEntry {
        role,
        part,
        layer,
        expert,
        ..
    } = *tensor;
    Place {
        role,
        part,
        layer,
        expert,
        mtp: (role == Role::Mtp).then(|| in_layer(&tensor.name)),
    }
}

/// A name without its layer and what stands before that.
fn in_layer(name: &str) -> &str {
    let behind = name.split_once("layers.").map_or(name, |(_, rest)| rest);
    behind.split_once('.').map_or(behind, |(_, rest)| rest)
}

/// Columns as rows, of a matrix of whole bytes.
fn transposed(source: &TensorEntry, taken: Every) -> Arrangement {
    let size = [0, 1].map(|axis| to_usize(source.shape.get(axis).copied().unwrap_or(1)));
    let values = source.shape.iter().product::<u64>().max(1);
    Arrangement::Transposed {
        size,
        value_bytes: to_usize(source.length / values),
        taken,
    }
}

fn check_shape(tensor: &TensorEntry, wanted: &[u64]) -> Result<(), GgufExportError> {
    match tensor.shape == wanted {
        true => Ok(()),
        false => Err(wrong_shape(tensor, wanted)),
    }
}

fn wrong_shape(tensor: &TensorEntry, wanted: &[u64]) -> GgufExportError {
    GgufExportError::Shape {
        tensor: tensor.name.clone(),
        seen: tensor.shape.clone(),
        wanted: wanted.to_vec(),
    }
}

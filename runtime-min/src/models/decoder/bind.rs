//! The text model's tensors: found by what they are, and given a place in memory.

use std::collections::{BTreeMap, HashMap};

use segpack_formats::codec::Codec;
use segpack_formats::numeric::FloatDtype;
use segpack_manifests::documents::{SegmentEntry, TensorEntry};
use segpack_manifests::families::TextFacts;
use segpack_manifests::names::{Component, Part, Role};

use super::index;
use crate::error::{RunError, Unsuitable};
use crate::tensor::Matrix;
use crate::weights::{Budget, Residency};
use crate::weights::{begins_at, room_for};
use segpack_manifests::PackReader;

/// A tensor within the memory of its group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weight {
    pub(crate) dtype: FloatDtype,
    pub(crate) at: usize,
    pub(crate) length: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Weight {
    /// A tensor in memory where its segment begins at this byte.
    ///
    /// # Errors
    /// A dtype that cannot be computed with.
    pub(crate) fn new(tensor: &TensorEntry, segment_at: usize) -> Result<Self, RunError> {
        let side = |i: usize| tensor.shape.get(i).copied().map_or(1, index);
        Ok(Self {
            dtype: float_dtype(tensor)?,
            at: segment_at + index(tensor.offset),
            length: index(tensor.length),
            rows: side(0),
            columns: side(1),
        })
    }

    /// As a matrix, in the memory of its group.
    pub(crate) fn matrix<'m>(&self, memory: &'m [u8]) -> Matrix<'m> {
        let bytes = &memory[self.at..self.at + self.length];
        Matrix {
            dtype: self.dtype,
            bytes,
            rows: self.rows,
            columns: self.columns,
        }
    }

    /// As a vector in f32.
    pub(crate) fn vector(&self, memory: &[u8]) -> Vec<f32> {
        let matrix = self.matrix(memory);
        let mut values = vec![0.0; self.rows * self.columns];
        matrix.dtype.widen(matrix.bytes, &mut values);
        values
    }
}

/// A dense product.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Weight>,
}

/// One expert: its segment, and where its matrices are in the memory that the segment is loaded to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expert<'a> {
    pub(crate) segment: &'a SegmentEntry,
    pub(crate) gate: Weight,
    pub(crate) up: Weight,
    pub(crate) down: Weight,
}

/// What follows attention in a layer.
#[derive(Debug)]
pub(crate) enum Mlp<'a> {
    Dense {
        gate: Linear,
        up: Linear,
        down: Linear,
    },
    Experts {
        router: Linear,
        experts: Vec<Expert<'a>>,
    },
}

/// One layer. Its dense weights are one group.
#[derive(Debug)]
pub(crate) struct Layer<'a> {
    pub(crate) input_norm: Weight,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) o: Linear,
    pub(crate) q_norm: Weight,
    pub(crate) k_norm: Weight,
    pub(crate) post_attention_norm: Weight,
    pub(crate) mlp: Mlp<'a>,
}

/// Segments that are loaded together, one behind the other.
#[derive(Debug, Default)]
pub struct Group<'a> {
    pub(crate) segments: Vec<&'a SegmentEntry>,
    /// Bytes that they take in memory.
    pub(crate) room: usize,
}

impl<'a> Group<'a> {
    /// Where the raw bytes of a segment begin, which is added if it is new.
    fn place(&mut self, segment: &'a SegmentEntry) -> usize {
        let mut at = 0;
        for known in &self.segments {
            if known.id == segment.id {
                return at + begins_at(segment);
            }
            at += index(room_for(known));
        }
        self.segments.push(segment);
        self.room += index(room_for(segment));
        at + begins_at(segment)
    }

    /// Bytes of its weights.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.raw_length).sum()
    }
}

/// The whole text model.
#[derive(Debug)]
pub struct TextModel<'a> {
    pub(crate) embedding: &'a TensorEntry,
    /// The embedding's dtype and sizes, as if it lay in memory alone.
    pub(crate) embedding_weight: Weight,
    pub(crate) head: &'a TensorEntry,
    pub(crate) head_weight: Weight,
    pub(crate) final_norm: Weight,
    pub(crate) layers: Vec<Layer<'a>>,
    /// One for each layer, then the final norm's, then the head's.
    pub(crate) groups: Vec<Group<'a>>,
}

impl<'a> TextModel<'a> {
    /// Finds every tensor that a run needs.
    ///
    /// # Errors
    /// `Unsuitable` names what the pack lacks, or what cannot be run.
    pub(crate) fn find(source: &'a PackReader<'a>, facts: &TextFacts) -> Result<Self, RunError> {
        let found = Found::collect(source, facts)?;
        let embedding = found.outside(Role::Embedding)?;
        let head = match found.outside(Role::LmHead) {
            Err(_) if facts.tie_word_embeddings => embedding,
            head => head?,
        };
        let mut groups = Vec::new();
        let mut layers = Vec::new();
        for number in 0..found.layers.len() {
            let mut group = Group::default();
            layers.push(found.layer(source, facts, number, &mut group)?);
            groups.push(group);
        }
        let mut alone = |tensor: &'a TensorEntry| -> Result<Weight, RunError> {
            let mut group = Group::default();
            let at = group.place(source.segment_of(tensor)?);
            groups.push(group);
            Weight::new(tensor, at)
        };
        let final_norm = alone(found.outside(Role::FinalNorm)?)?;
        let head_weight = alone(head)?;
        Ok(Self {
            embedding,
            embedding_weight: Weight::new(embedding, 0)?,
            head,
            head_weight,
            final_norm,
            layers,
            groups,
        })
    }

    pub(crate) fn final_norm_group(&self) -> usize {
        self.layers.len()
    }

    pub(crate) fn head_group(&self) -> usize {
        self.layers.len() + 1
    }

    /// All experts of all layers, with layer and number.
    pub(crate) fn all_experts(&self) -> impl Iterator<Item = (u32, u32, &Expert<'a>)> {
        (0..).zip(&self.layers).flat_map(|(layer, l)| {
            let experts = match &l.mlp {
                Mlp::Dense { .. } => &[][..],
                Mlp::Experts { experts, .. } => experts,
            };
            (0..)
                .zip(experts)
                .map(move |(expert, e)| (layer, expert, e))
        })
    }

    /// Bytes of the weights that a budget keeps in memory.
    pub(crate) fn bytes_within(&self, budget: &Budget) -> u64 {
        let dense: u64 = match budget.residency {
            Residency::Resident => self.groups.iter().map(Group::bytes).sum(),
            Residency::Streamed => 0,
        };
        dense
            + self
                .experts()
                .take(index(budget.slots))
                .map(|e| e.segment.raw_length)
                .sum::<u64>()
    }

    /// Whether any segment has to be decoded.
    pub(crate) fn any_coded(&self) -> bool {
        self.groups
            .iter()
            .flat_map(|g| &g.segments)
            .any(|s| s.codec != Codec::Raw)
            || self.experts().any(|e| e.segment.codec != Codec::Raw)
    }

    /// All experts of all layers.
    pub(crate) fn experts(&self) -> impl Iterator<Item = &Expert<'a>> {
        self.layers.iter().flat_map(|layer| match &layer.mlp {
            Mlp::Dense { .. } => &[][..],
            Mlp::Experts { experts, .. } => experts,
        })
    }
}

/// A tensor that is not understood may change what the model computes, so none is left out.
fn check_words(tensor: &TensorEntry) -> Result<(), RunError> {
    let (name, part, role) = (
        tensor.name.clone(),
        tensor.part.to_string(),
        tensor.role.to_string(),
    );
    if !tensor.role.is_known() || !tensor.part.is_known() {
        return Err(Unsuitable::UnknownWord {
            tensor: name,
            part,
            role,
        }
        .into());
    }
    match tensor.part {
        Part::Weight | Part::Bias => Ok(()),
        _ => Err(Unsuitable::Part {
            tensor: name,
            part,
            role,
        }
        .into()),
    }
}

/// The dtype that kernels know a tensor's values by.
fn float_dtype(tensor: &TensorEntry) -> Result<FloatDtype, RunError> {
    FloatDtype::try_from(tensor.dtype).map_err(|_| {
        let (tensor, dtype) = (tensor.name.clone(), tensor.dtype.to_string());
        Unsuitable::Dtype { tensor, dtype }.into()
    })
}

/// The tensors of one layer by role; `true` for biases.
type ByRole<'a> = HashMap<(Role, bool), &'a TensorEntry>;

struct Found<'a> {
    layers: Vec<ByRole<'a>>,
    experts: Vec<BTreeMap<u32, HashMap<Role, &'a TensorEntry>>>,
    outside: HashMap<Role, &'a TensorEntry>,
}

impl<'a> Found<'a> {
    fn collect(source: &'a PackReader<'a>, facts: &TextFacts) -> Result<Self, RunError> {
        let count = facts.layers as usize;
        let mut found = Self {
            layers: vec![HashMap::new(); count],
            experts: vec![BTreeMap::new(); count],
            outside: HashMap::new(),
        };
        let text =
            |t: &&TensorEntry| matches!(t.component, Component::ThinkerText | Component::Text);
        for tensor in source.pack().manifest().tensors.iter().filter(text) {
            check_words(tensor)?;
            float_dtype(tensor)?;
            found.add(tensor);
        }
        Ok(found)
    }

    fn add(&mut self, tensor: &'a TensorEntry) {
        let Some(layer) = tensor.layer else {
            self.outside.insert(tensor.role, tensor);
            return;
        };
        // layers beyond the config's are not this model's
        let layer = layer as usize;
        match tensor.expert {
            Some(expert) => {
                if let Some(experts) = self.experts.get_mut(layer) {
                    experts
                        .entry(expert)
                        .or_default()
                        .insert(tensor.role, tensor);
                }
            }
            None => {
                let bias = tensor.part == Part::Bias;
                if let Some(tensors) = self.layers.get_mut(layer) {
                    tensors.insert((tensor.role, bias), tensor);
                }
            }
        }
    }

    fn outside(&self, role: Role) -> Result<&'a TensorEntry, RunError> {
        self.outside
            .get(&role)
            .copied()
            .ok_or_else(|| missing("the model".to_owned(), role))
    }

    fn layer(
        &self,
        source: &'a PackReader<'a>,
        facts: &TextFacts,
        number: usize,
        group: &mut Group<'a>,
    ) -> Result<Layer<'a>, RunError> {
        let tensors = &self.layers[number];
        let mut weight = |role: Role, bias: bool| -> Result<Option<Weight>, RunError> {
            let Some(tensor) = tensors.get(&(role, bias)) else {
                return Ok(None);
            };
            let at = group.place(source.segment_of(tensor)?);
            Weight::new(tensor, at).map(Some)
        };
        let lacks = |role: Role| missing(format!("layer {number}"), role);
        let mut vector = |role: Role| weight(role, false)?.ok_or_else(|| lacks(role));
        let input_norm = vector(Role::InputNorm)?;
        let (q_norm, k_norm) = (vector(Role::QNorm)?, vector(Role::KNorm)?);
        let post_attention_norm = vector(Role::PostAttentionNorm)?;
        let mut linear = |role: Role| -> Result<Linear, RunError> {
            let bias = weight(role, true)?;
            Ok(Linear {
                weight: weight(role, false)?.ok_or_else(|| lacks(role))?,
                bias,
            })
        };
        let (q, k) = (linear(Role::AttentionQ)?, linear(Role::AttentionK)?);
        let (v, o) = (linear(Role::AttentionV)?, linear(Role::AttentionO)?);
        let mlp = if tensors.contains_key(&(Role::Router, false)) {
            Mlp::Experts {
                router: linear(Role::Router)?,
                experts: self.layer_experts(source, facts, number)?,
            }
        } else if !self.experts[number].is_empty() {
            return Err(lacks(Role::Router));
        } else {
            let (gate, up) = (linear(Role::MlpGate)?, linear(Role::MlpUp)?);
            Mlp::Dense {
                gate,
                up,
                down: linear(Role::MlpDown)?,
            }
        };
        Ok(Layer {
            input_norm,
            q,
            k,
            v,
            o,
            q_norm,
            k_norm,
            post_attention_norm,
            mlp,
        })
    }

    fn layer_experts(
        &self,
        source: &'a PackReader<'a>,
        facts: &TextFacts,
        number: usize,
    ) -> Result<Vec<Expert<'a>>, RunError> {
        let mut experts = Vec::new();
        for (expert, tensors) in &self.experts[number] {
            let get = |role: Role| {
                let lacks = || missing(format!("expert {expert} of layer {number}"), role);
                tensors.get(&role).copied().ok_or_else(lacks)
            };
            let (gate, up, down) = (
                get(Role::ExpertGate)?,
                get(Role::ExpertUp)?,
                get(Role::ExpertDown)?,
            );
            let segment = source.segment_of(gate)?;
            let at = begins_at(segment);
            let weight = |tensor| Weight::new(tensor, at);
            experts.push(Expert {
                segment,
                gate: weight(gate)?,
                up: weight(up)?,
                down: weight(down)?,
            });
        }
        let wanted = facts.experts as usize;
        if experts.len() != wanted {
            let seen = experts.len();
            return Err(Unsuitable::ExpertCount {
                layer: number,
                seen,
                wanted,
            }
            .into());
        }
        Ok(experts)
    }
}

/// A weight that the pack does not have; `owner` is what should have it.
fn missing(owner: String, role: Role) -> RunError {
    let role = role.to_string();
    Unsuitable::Missing { owner, role }.into()
}

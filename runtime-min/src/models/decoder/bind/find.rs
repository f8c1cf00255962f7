//! Finds a decoder's tensors in a pack, and gives each a place in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use segpack_formats::numeric::Dtype;
use segpack_manifests::PackReader;
use segpack_manifests::documents::TensorEntry;
use segpack_manifests::families::QkNorm;
use segpack_manifests::names::{Component, Part, Role};

use super::refused::{missing, not_run, surplus};
use super::stored::{Decoded, Parts, Placed, Storage};
use super::{
    DecoderWeights, EndWeights, ExpertWeights, LayerWeights, LinearWeights, MlpWeights,
    SharedExpert,
};
use crate::error::{RunError, Unsuitable};
use crate::models::decoder::spec::{DecoderSpec, Ends};
use crate::weights::{PlacedTensor, SegmentGroup, SegmentLoad, data_offset};

/// The experts of one layer by number.
type Experts<'a> = BTreeMap<u32, Parts<'a>>;

impl<'a> DecoderWeights<'a> {
    /// Finds every tensor that a decoder needs among those of some components.
    ///
    /// # Errors
    /// `Unsuitable` names what the pack lacks, or a tensor that cannot be computed with.
    pub(crate) fn find(
        source: &'a PackReader<'a>,
        spec: &DecoderSpec,
        has_component: impl Fn(&Component) -> bool,
    ) -> Result<Self, RunError> {
        let storage = Storage::of(source.pack(), spec)?;
        let found = Found::collect(source, spec, storage, has_component)?;
        let [embedding, head] = spec.ends.roles();
        let embeddings = found.ends(embedding, spec)?;
        let heads = match found.ends(head, spec) {
            Err(_) if spec.has_tied_head => embeddings.clone(),
            heads => heads?,
        };
        // a group for each layer, then one for the final norm and one for the head
        let mut groups = Vec::new();
        let mut layers = Vec::new();
        for number in 0..spec.layers {
            let mut layer = LayerBinder::new(&found, number);
            layers.push(layer.bind(spec)?);
            groups.push(layer.group);
        }
        let final_norm = found.alone(found.outside(Role::FinalNorm, 0)?, &mut groups)?;
        let heads = found.together(&heads, &mut groups)?;
        Ok(Self {
            embeddings: found.apart(&embeddings)?,
            heads,
            final_norm,
            layers,
            groups,
        })
    }
}

/// A tensor that is not understood may change what the model computes, so none is left out.
pub(crate) fn check_words(tensor: &TensorEntry) -> Result<(), RunError> {
    let (part, role) = (tensor.part.to_string(), tensor.role.to_string());
    let name = tensor.name.clone();
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
        _ => Err(not_run(tensor)),
    }
}

/// A tensor whose values are computed with, or decoded first.
fn check_values(tensor: &TensorEntry) -> Result<(), RunError> {
    let is_of_layer = tensor.layer.is_some() && tensor.role.is_known();
    let is_part = matches!(tensor.part, Part::Scale | Part::Blocks);
    let is_fp8 = tensor.part == Part::Weight && tensor.dtype == Dtype::F8_E4M3;
    if is_of_layer && (is_part || is_fp8) {
        return Ok(());
    }
    check_words(tensor)?;
    PlacedTensor::new(tensor, 0).map(drop)
}

/// Roles of a layer's tensors.
const OF_LAYER: [Role; 18] = [
    Role::RouterBias,
    Role::InputNorm,
    Role::PostAttentionNorm,
    Role::AttentionQ,
    Role::AttentionK,
    Role::AttentionV,
    Role::AttentionO,
    Role::QNorm,
    Role::KNorm,
    Role::AttentionSink,
    Role::Router,
    Role::MlpGate,
    Role::MlpUp,
    Role::MlpDown,
    Role::SharedExpertGate,
    Role::SharedExpertUp,
    Role::SharedExpertDown,
    Role::SharedExpertRouter,
];
/// Roles of an expert's tensors.
const OF_EXPERT: [Role; 4] = [
    Role::ExpertGate,
    Role::ExpertUp,
    Role::ExpertGateUp,
    Role::ExpertDown,
];

/// The number of a tensor that is in no layer, among those of its role; `None` where a decoder has
/// none of this role. The names of several end in their number.
fn number_of(tensor: &TensorEntry, ends: Ends) -> Option<usize> {
    let is_end = ends.roles().contains(&tensor.role);
    match ends {
        _ if tensor.role == Role::FinalNorm => Some(0),
        Ends::Tokens | Ends::Codes => is_end.then_some(0),
        Ends::Groups(groups) => {
            let name = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
            let number = name.rsplit('.').next()?.parse().ok()?;
            (is_end && number < groups).then_some(number)
        }
    }
}

/// The tensors of a decoder by what they are.
struct Found<'a> {
    source: &'a PackReader<'a>,
    storage: Storage,
    layers: Vec<Parts<'a>>,
    experts: Vec<Experts<'a>>,
    /// By role, and by number where there are several.
    outside: HashMap<(Role, usize), &'a TensorEntry>,
}

impl<'a> Found<'a> {
    fn collect(
        source: &'a PackReader<'a>,
        spec: &DecoderSpec,
        storage: Storage,
        has_component: impl Fn(&Component) -> bool,
    ) -> Result<Self, RunError> {
        let mut found = Self {
            source,
            storage,
            layers: vec![HashMap::new(); spec.layers],
            experts: vec![BTreeMap::new(); spec.layers],
            outside: HashMap::new(),
        };
        let extra = spec.extra_layers();
        for tensor in &source.pack().manifest().tensors {
            let is_extra = tensor.layer.is_some_and(|layer| extra.contains(&layer));
            if has_component(&tensor.component) && !is_extra {
                // also of tensors that are not needed
                check_values(tensor)?;
                found.add(tensor, spec.ends)?;
            }
        }
        Ok(found)
    }

    /// Each tensor has one place; one without any, or with that of another, is not left out.
    fn add(&mut self, tensor: &'a TensorEntry, ends: Ends) -> Result<(), RunError> {
        let (role, part) = (tensor.role, tensor.part);
        let layer = tensor.layer.map(|layer| layer as usize);
        let taken = match (layer, tensor.expert) {
            // ways into the talker, which its prompt is made with, are bound there
            (None, None) if role == Role::Projection && ends == Ends::Codes => None,
            (None, None) if part == Part::Weight => match number_of(tensor, ends) {
                Some(number) => self.outside.insert((role, number), tensor),
                None => Some(tensor),
            },
            (Some(layer), None) if layer < self.layers.len() && OF_LAYER.contains(&role) => {
                self.layers[layer].insert((role, part), tensor)
            }
            (Some(layer), Some(expert))
                if layer < self.experts.len() && OF_EXPERT.contains(&role) =>
            {
                let tensors = self.experts[layer].entry(expert).or_default();
                tensors.insert((role, part), tensor)
            }
            _ => Some(tensor),
        };
        match taken {
            None => Ok(()),
            Some(_) => Err(surplus(tensor)),
        }
    }

    /// The tensor of this role that is in no layer.
    fn outside(&self, role: Role, number: usize) -> Result<&'a TensorEntry, RunError> {
        let owner = match number {
            0 => "the model".to_owned(),
            _ => format!("group {number}"),
        };
        let found = self.outside.get(&(role, number)).copied();
        found.ok_or_else(|| missing(owner, role))
    }

    /// All embeddings, or all heads.
    fn ends(&self, role: Role, spec: &DecoderSpec) -> Result<Vec<&'a TensorEntry>, RunError> {
        let numbers = 0..spec.ends.count();
        numbers.map(|number| self.outside(role, number)).collect()
    }

    /// Each in the memory of its own segment.
    fn apart(&self, tensors: &[&'a TensorEntry]) -> Result<Vec<EndWeights<'a>>, RunError> {
        let mut ends = Vec::new();
        for entry in tensors.iter().copied() {
            let matrix = self.alone(entry, &mut Vec::new())?;
            ends.push(EndWeights { entry, matrix });
        }
        Ok(ends)
    }

    /// All in one group.
    fn together(
        &self,
        tensors: &[&'a TensorEntry],
        groups: &mut Vec<SegmentGroup<'a>>,
    ) -> Result<Vec<EndWeights<'a>>, RunError> {
        let (mut ends, mut group) = (Vec::new(), SegmentGroup::default());
        for entry in tensors.iter().copied() {
            let offset = group.place(self.source.segment_of(entry)?);
            let matrix = PlacedTensor::new(entry, offset)?;
            ends.push(EndWeights { entry, matrix });
        }
        groups.push(group);
        Ok(ends)
    }

    /// Places a tensor in a group of its own.
    fn alone(
        &self,
        tensor: &'a TensorEntry,
        groups: &mut Vec<SegmentGroup<'a>>,
    ) -> Result<PlacedTensor, RunError> {
        let mut group = SegmentGroup::default();
        let offset = group.place(self.source.segment_of(tensor)?);
        groups.push(group);
        PlacedTensor::new(tensor, offset)
    }
}

/// Binds the tensors of one layer.
struct LayerBinder<'f, 'a> {
    found: &'f Found<'a>,
    number: usize,
    /// The layer's dense segments so far.
    group: SegmentGroup<'a>,
    /// Of these segments, by id: what they become, unless they are used as they are.
    decoded: HashMap<&'a str, Option<Decoded>>,
}

impl<'f, 'a> LayerBinder<'f, 'a> {
    fn new(found: &'f Found<'a>, number: usize) -> Self {
        Self {
            found,
            number,
            group: SegmentGroup::default(),
            decoded: HashMap::new(),
        }
    }

    /// The whole layer.
    fn bind(&mut self, spec: &DecoderSpec) -> Result<LayerWeights<'a>, RunError> {
        Ok(LayerWeights {
            input_norm: self.tensor(Role::InputNorm)?,
            qk_norms: self.qk_norms(spec)?,
            sinks: self.sinks(spec)?,
            post_attention_norm: self.tensor(Role::PostAttentionNorm)?,
            q: self.linear(Role::AttentionQ)?,
            k: self.linear(Role::AttentionK)?,
            v: self.linear(Role::AttentionV)?,
            o: self.linear(Role::AttentionO)?,
            mlp: self.mlp(spec)?,
        })
    }

    /// The norms of queries and keys, where the model has such.
    fn qk_norms(&mut self, spec: &DecoderSpec) -> Result<Option<[PlacedTensor; 2]>, RunError> {
        if spec.options.qk_norm == QkNorm::Absent {
            self.has_none(Role::QNorm)?;
            self.has_none(Role::KNorm)?;
            return Ok(None);
        }
        let norms = [self.tensor(Role::QNorm)?, self.tensor(Role::KNorm)?];
        Ok(Some(norms))
    }

    /// The sinks of attention, where the model has such.
    fn sinks(&mut self, spec: &DecoderSpec) -> Result<Option<PlacedTensor>, RunError> {
        if !spec.options.has_sinks {
            return self.has_none(Role::AttentionSink).map(|()| None);
        }
        self.tensor(Role::AttentionSink).map(Some)
    }

    /// A tensor that nothing is computed with may not be there.
    fn has_none(&self, role: Role) -> Result<(), RunError> {
        match self.found.layers[self.number].get(&(role, Part::Weight)) {
            Some(tensor) => Err(surplus(tensor)),
            None => Ok(()),
        }
    }

    fn mlp(&mut self, spec: &DecoderSpec) -> Result<MlpWeights<'a>, RunError> {
        let tensors = &self.found.layers[self.number];
        if tensors.contains_key(&(Role::Router, Part::Weight)) {
            let dense =
                [Role::MlpGate, Role::MlpUp, Role::MlpDown].map(|role| (role, Part::Weight));
            if let Some(tensor) = dense.iter().find_map(|key| tensors.get(key)) {
                return Err(surplus(tensor));
            }
            return Ok(MlpWeights::Experts {
                router: self.linear(Role::Router)?,
                choice_bias: self.choice_bias(spec)?,
                experts: self.experts(spec.experts)?,
                shared: self.shared(spec)?.map(Box::new),
            });
        }
        if !self.found.experts[self.number].is_empty() {
            return Err(self.lacks(Role::Router));
        }
        Ok(MlpWeights::Dense {
            gate: self.linear(Role::MlpGate)?,
            up: self.linear(Role::MlpUp)?,
            down: self.linear(Role::MlpDown)?,
        })
    }

    /// What is added to scores for the choice of experts, where the model has such; stored as
    /// `[experts]` or `[1, experts]`.
    fn choice_bias(&mut self, spec: &DecoderSpec) -> Result<Option<PlacedTensor>, RunError> {
        if !spec.options.router.has_choice_bias {
            return self.has_none(Role::RouterBias).map(|()| None);
        }
        let bias = self.tensor(Role::RouterBias)?;
        Ok(Some(match bias.rows {
            1 => bias.as_vector(),
            _ => bias,
        }))
    }

    /// The shared expert, where the model has such.
    fn shared(&mut self, spec: &DecoderSpec) -> Result<Option<SharedExpert>, RunError> {
        let Some(options) = spec.options.shared_expert else {
            return self.has_none(Role::SharedExpertGate).map(|()| None);
        };
        let router = match options.is_gated {
            true => Some(self.linear(Role::SharedExpertRouter)?),
            false => None,
        };
        Ok(Some(SharedExpert {
            gate: self.linear(Role::SharedExpertGate)?,
            up: self.linear(Role::SharedExpertUp)?,
            down: self.linear(Role::SharedExpertDown)?,
            router,
        }))
    }

    fn lacks(&self, role: Role) -> RunError {
        missing(format!("layer {}", self.number), role)
    }

    /// The weight or the bias of this role, if there is one.
    fn find(&mut self, role: Role, part: Part) -> Result<Option<PlacedTensor>, RunError> {
        let tensors = &self.found.layers[self.number];
        let stored = tensors.get(&(role, part));
        let blocks = || tensors.get(&(role, Part::Blocks));
        let stored = stored.or_else(|| (part == Part::Weight).then(blocks)?);
        let Some(tensor) = stored else {
            return Ok(None);
        };
        let segment = self.found.source.segment_of(tensor)?;
        if !self.decoded.contains_key(segment.id.as_str()) {
            let parts = tensors.iter().filter(|(_, t)| t.segment == segment.id);
            let parts: Parts<'a> = parts.map(|(what, tensor)| (*what, *tensor)).collect();
            let decoded = self.found.storage.decode(&parts)?;
            self.decoded.insert(&segment.id, decoded);
        }
        let Some(Some(decoded)) = self.decoded.get(segment.id.as_str()) else {
            let offset = self.group.place(segment);
            return PlacedTensor::new(tensor, offset).map(Some);
        };
        let begin = self.group.place_as(SegmentLoad {
            segment,
            decoding: Some(Arc::clone(&decoded.decoding)),
        });
        let placed = decoded.placed.get(&(role, part)).copied();
        Ok(placed.map(|placed| placed.moved(begin)))
    }

    fn tensor(&mut self, role: Role) -> Result<PlacedTensor, RunError> {
        let found = self.find(role, Part::Weight)?;
        found.ok_or_else(|| self.lacks(role))
    }

    fn linear(&mut self, role: Role) -> Result<LinearWeights, RunError> {
        let bias = self.find(role, Part::Bias)?;
        let weight = self.tensor(role)?;
        Ok(LinearWeights { weight, bias })
    }

    fn experts(&self, wanted: usize) -> Result<Vec<ExpertWeights<'a>>, RunError> {
        let found = &self.found.experts[self.number];
        if found.len() != wanted {
            return Err(Unsuitable::ExpertCount {
                layer: self.number,
                seen: found.len(),
                wanted,
            }
            .into());
        }
        let mut experts: Vec<ExpertWeights<'a>> = Vec::with_capacity(wanted);
        for (expert, parts) in found {
            let mut weights = self.expert(*expert, parts)?;
            // most are decoded in the same way
            let before = experts.last().and_then(|e| e.load.decoding.as_ref());
            if let Some(same) = before.filter(|same| weights.load.decoding.as_ref() == Some(same)) {
                weights.load.decoding = Some(Arc::clone(same));
            }
            experts.push(weights);
        }
        Ok(experts)
    }

    /// One expert, all of whose matrices are in one segment.
    fn expert(&self, expert: u32, parts: &Parts<'a>) -> Result<ExpertWeights<'a>, RunError> {
        let mut tensors: Vec<&TensorEntry> = parts.values().copied().collect();
        tensors.sort_by_key(|tensor| tensor.role);
        let first = tensors
            .first()
            .ok_or_else(|| self.expert_lacks(expert, Role::ExpertGate))?;
        if let Some(apart) = tensors.iter().find(|t| t.segment != first.segment) {
            return Err(Unsuitable::ExpertApart {
                tensor: apart.name.clone(),
                segment: apart.segment.clone(),
                wanted: first.segment.clone(),
            }
            .into());
        }
        let segment = self.found.source.segment_of(first)?;
        let decoded = self.found.storage.decode(parts)?;
        let (decoding, placed) = match decoded {
            Some(Decoded { decoding, placed }) => (Some(decoding), placed),
            None => (None, as_stored(parts, data_offset(segment))?),
        };
        let [gate, up, down] = [Role::ExpertGate, Role::ExpertUp, Role::ExpertDown]
            .map(|role| projection(&placed, role).ok_or_else(|| self.expert_lacks(expert, role)));
        Ok(ExpertWeights {
            load: SegmentLoad { segment, decoding },
            gate: gate?,
            up: up?,
            down: down?,
        })
    }

    fn expert_lacks(&self, expert: u32, role: Role) -> RunError {
        missing(format!("expert {expert} of layer {}", self.number), role)
    }
}

/// A projection of an expert, if its weight is there.
fn projection(placed: &Placed, role: Role) -> Option<LinearWeights> {
    let weight = placed.get(&(role, Part::Weight)).copied()?;
    let bias = placed.get(&(role, Part::Bias)).copied();
    Some(LinearWeights { weight, bias })
}

/// Tensors of a segment that are used as they are stored.
fn as_stored(parts: &Parts<'_>, begin: usize) -> Result<Placed, RunError> {
    let mut placed = Placed::new();
    for (what, tensor) in parts {
        placed.insert(*what, PlacedTensor::new(tensor, begin)?);
    }
    Ok(placed)
}

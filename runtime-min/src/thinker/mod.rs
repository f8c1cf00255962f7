//! The forward pass of the text thinker, and of plain Qwen3-MoE models, straight from a pack.
//!
//! The equations are those of transformers 5.23, `modeling_qwen3_omni_moe.py`
//! (`Qwen3OmniMoeThinkerTextModel`); for text its interleaved multimodal rope is plain rope.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use segpack_formats::io::Stop;
use segpack_formats::safetensors::Dtype;
use segpack_manifests::documents::{SegmentEntry, TensorEntry};
use segpack_manifests::families::TextFacts;
use segpack_manifests::names::{Component, Role};

use crate::error::RunError;
use crate::memory::{Budget, CacheStats, Demand, ExpertCache, Residency};
use crate::observer::{Observer, Routing};
use crate::ops::{Heads, Matrix, Ops, softmax, widen};
use crate::weights::{WeightReader, WeightSource};

/// Rows of the head that are computed at a time where it is streamed, in bytes.
const HEAD_BLOCK_BYTES: u64 = 8 << 20;
/// Memory of the program itself, its buffers and threads, in bytes; the manifest's share comes on top.
const PROGRAM_BYTES: u64 = 64 << 20;
/// Memory that one tensor of the manifest takes once it is parsed, in bytes (measured: about 1,000).
const MANIFEST_ENTRY_BYTES: u64 = 1500;

/// When the digest of a segment is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Check {
    /// At every load.
    #[default]
    Always,
    /// Never.
    Never,
}

/// How to run a model.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunSettings {
    /// Bytes for the whole process; all that is needed where it is none.
    pub memory: Option<u64>,
    /// Most slots for experts.
    pub expert_slots: Option<u64>,
    /// Positions to reserve: prompt and generated tokens.
    pub positions: usize,
    /// Tokens of the longest forward pass: the prompt.
    pub longest_pass: usize,
    /// When digests are compared.
    pub check: Check,
}

/// Which positions' logits a forward pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// The last one's.
    Last,
    /// Every one's.
    All,
}

/// What a run read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Bytes of segments and rows loaded.
    pub bytes_read: u64,
    /// The expert cache.
    pub cache: CacheStats,
    /// How often each (layer, expert) was used, per forward pass that used it.
    pub expert_uses: BTreeMap<(u32, u32), u64>,
}

/// The dense tensors of one layer.
#[derive(Debug, Default)]
struct Layer<'a> {
    tensors: HashMap<(Role, bool), &'a TensorEntry>,
    experts: Vec<Expert<'a>>,
}

/// One expert: its segment, and where its matrices are in it.
#[derive(Debug, Clone, Copy)]
struct Expert<'a> {
    segment: &'a SegmentEntry,
    gate: &'a TensorEntry,
    up: &'a TensorEntry,
    down: &'a TensorEntry,
}

/// A model that runs from a pack.
pub struct Thinker<'a, O> {
    facts: TextFacts,
    heads: Heads,
    source: &'a WeightSource<'a>,
    reader: WeightReader<'a>,
    ops: O,
    settings: RunSettings,
    budget: Budget,
    embedding: &'a TensorEntry,
    head: &'a TensorEntry,
    final_norm: &'a TensorEntry,
    layers: Vec<Layer<'a>>,
    resident: HashMap<String, Arc<Vec<u8>>>,
    cache: ExpertCache,
    kv: Vec<KeysValues>,
    stats: RunStats,
    stop: &'a Stop,
}

/// The cached keys (normed and rotated) and values of one layer, `[positions, kv_heads × head_dim]` each.
#[derive(Debug, Default)]
struct KeysValues {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl<'a, O: Ops> Thinker<'a, O> {
    /// Prepares to run the text model of a pack. No weight is read; a missing one is found here.
    ///
    /// # Errors
    /// `Unsuitable` names what the pack lacks; `Memory` says how much would do.
    pub fn new(
        source: &'a WeightSource<'a>,
        ops: O,
        settings: RunSettings,
        stop: &'a Stop,
    ) -> Result<Self, RunError> {
        let manifest = source.pack().manifest();
        let facts =
            manifest.model.text.clone().ok_or_else(|| unsuitable("its model is of no known family"))?;
        if facts.rope_type != "default" {
            return Err(unsuitable(&format!(
                "rope_type {:?} is not implemented, only \"default\"",
                facts.rope_type
            )));
        }
        let mut found = Found::collect(source, &facts)?;
        let layers = std::mem::take(&mut found.layers);
        let embedding = found.outside(Role::Embedding)?;
        let head = match found.outside(Role::LmHead) {
            Err(_) if facts.tie_word_embeddings => embedding,
            head => head?,
        };
        let final_norm = found.outside(Role::FinalNorm)?;
        let heads = Heads {
            query: index(facts.heads),
            key_value: index(facts.kv_heads),
            width: index(facts.head_dim),
        };
        let mut thinker = Self {
            heads,
            source,
            reader: source.reader()?,
            ops,
            settings,
            budget: Budget { residency: Residency::Resident, slots: 0 },
            embedding,
            head,
            final_norm,
            layers,
            resident: HashMap::new(),
            cache: ExpertCache::new(1),
            kv: Vec::new(),
            stats: RunStats::default(),
            stop,
            facts,
        };
        let demand = thinker.demand()?;
        let refuse = |least| RunError::Memory { memory: settings.memory.unwrap_or(0), least };
        thinker.budget = demand.share(settings.memory, settings.expert_slots).map_err(refuse)?;
        thinker.cache = ExpertCache::new(index(thinker.budget.slots));
        thinker.reset();
        Ok(thinker)
    }

    /// The model's numbers.
    pub fn facts(&self) -> &TextFacts {
        &self.facts
    }

    /// How memory is shared out.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// What was read so far.
    pub fn stats(&self) -> RunStats {
        RunStats { cache: self.cache.stats(), ..self.stats.clone() }
    }

    /// Positions in the cache of keys and values.
    pub fn positions(&self) -> usize {
        self.kv.first().map_or(0, |kv| kv.keys.len() / (self.heads.key_value * self.heads.width))
    }

    /// Forgets all tokens, keeps all weights.
    pub fn reset(&mut self) {
        self.kv = self.layers.iter().map(|_| KeysValues::default()).collect();
        let room = self.settings.positions * self.heads.key_value * self.heads.width;
        for kv in &mut self.kv {
            kv.keys.reserve_exact(room);
            kv.values.reserve_exact(room);
        }
    }

    /// What this model and its settings need of memory.
    ///
    /// # Errors
    /// `Format` where a segment is not listed.
    pub fn demand(&self) -> Result<Demand, RunError> {
        let f = &self.facts;
        let tensors = self.source.pack().manifest().tensors.len() as u64;
        let mut per_layer = Vec::new();
        for layer in &self.layers {
            let mut segments: HashMap<&str, u64> = HashMap::new();
            for tensor in layer.tensors.values() {
                segments.insert(&tensor.segment, self.source.segment_of(tensor)?.raw_length);
            }
            per_layer.push(segments.values().sum::<u64>());
        }
        let row = self.head.length / f.vocab.max(1);
        let kv_width = f.kv_heads * f.head_dim;
        let widest = f.heads * f.head_dim
            + 2 * kv_width
            + 4 * f.hidden_size
            + f.intermediate.max(f.moe_intermediate) * 3;
        let tokens = self.settings.longest_pass.max(1) as u64;
        let experts = self.layers.iter().flat_map(|l| &l.experts);
        Ok(Demand {
            overhead: PROGRAM_BYTES + tensors * MANIFEST_ENTRY_BYTES,
            kv: self.layers.len() as u64 * self.settings.positions as u64 * 2 * kv_width * 4,
            // every activation, and the transposed result of the widest product
            scratch: tokens * (2 * widest + u64::from(f.experts) * 4) * 4 + f.vocab * 8,
            dense: per_layer.iter().sum::<u64>() + self.head.length,
            dense_streamed: per_layer.iter().max().copied().unwrap_or(0)
                + HEAD_BLOCK_BYTES.min(self.head.length).max(row),
            expert: experts.clone().map(|e| e.segment.raw_length).max().unwrap_or(0),
            experts: experts.count() as u64,
            experts_per_token: u64::from(f.experts_per_token),
        })
    }

    /// Runs these tokens after those before; returns logits, `[vocab]` or `[tokens, vocab]`.
    ///
    /// # Errors
    /// `TokenId`, `TooLong`; damage of the pack.
    pub fn forward(
        &mut self,
        ids: &[u32],
        want: Logits,
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>, RunError> {
        let wanted = self.positions() + ids.len();
        if wanted > self.settings.positions {
            return Err(RunError::TooLong { wanted, reserved: self.settings.positions });
        }
        let (cos, sin) = self.rotations(ids.len());
        let mut x = self.embed(ids)?;
        observer.embed(&x);
        for layer in 0..self.layers.len() {
            self.stop.check()?;
            let attention = self.attention(layer, &x, &cos, &sin)?;
            observer.attention(layer, &attention);
            self.ops.add(&mut x, &attention);
            drop(attention);
            let mlp = self.mlp(layer, &x, observer)?;
            observer.mlp(layer, &mlp);
            self.ops.add(&mut x, &mlp);
            observer.hidden(layer, &x);
        }
        let hidden = index(self.facts.hidden_size);
        let norm = self.vector(self.final_norm)?;
        self.ops.rms_norm(&mut x, &norm, self.eps());
        observer.norm(&x);
        let from = if want == Logits::Last { x.len() - hidden } else { 0 };
        self.logits(&x[from..])
    }

    #[expect(clippy::cast_possible_truncation, reason = "applied in f32, as torch does")]
    fn eps(&self) -> f32 {
        self.facts.rms_norm_eps as f32
    }

    /// Cosines and sines of the next positions, `[tokens, head_dim / 2]`: `angle = position · theta^(-2j / d)` in f32, then
    /// in the precision of the activations.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "f32, as torch does")]
    fn rotations(&self, tokens: usize) -> (Vec<f32>, Vec<f32>) {
        let (width, first) = (self.heads.width, self.positions());
        let frequency = |j: usize| {
            let exponent = (2 * j) as f32 / width as f32;
            1.0 / (self.facts.rope_theta.powf(f64::from(exponent)) as f32)
        };
        let frequencies: Vec<f32> = (0..width / 2).map(frequency).collect();
        let angles = (first..first + tokens).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let round = |x: f64| self.ops.compute().round(x as f32);
        angles.map(|a| (round(f64::from(a).cos()), round(f64::from(a).sin()))).unzip()
    }

    fn embed(&mut self, ids: &[u32]) -> Result<Vec<f32>, RunError> {
        let hidden = index(self.facts.hidden_size);
        let row = self.embedding.length / self.facts.vocab.max(1);
        let mut x = vec![0.0; ids.len() * hidden];
        let mut bytes = Vec::with_capacity(index(row));
        for (id, to) in ids.iter().zip(x.chunks_exact_mut(hidden)) {
            if u64::from(*id) >= self.facts.vocab {
                return Err(RunError::TokenId { id: *id, rows: self.facts.vocab });
            }
            bytes.clear();
            let start = u64::from(*id) * row;
            self.reader.read_tensor(self.embedding, start..start + row, self.stop, |piece| {
                bytes.extend_from_slice(piece);
                Ok::<_, RunError>(())
            })?;
            self.stats.bytes_read += row;
            widen(self.embedding.dtype, &bytes, to);
        }
        Ok(x)
    }

    /// The raw bytes of a dense segment: kept, or read again.
    fn segment(&mut self, tensor: &TensorEntry) -> Result<Arc<Vec<u8>>, RunError> {
        if let Some(bytes) = self.resident.get(&tensor.segment) {
            return Ok(Arc::clone(bytes));
        }
        let segment = self.source.segment_of(tensor)?;
        let mut bytes = Vec::new();
        self.reader.load_segment(segment, self.settings.check == Check::Always, &mut bytes, self.stop)?;
        self.stats.bytes_read += segment.stored_length;
        let bytes = Arc::new(bytes);
        if self.budget.residency == Residency::Resident {
            self.resident.insert(tensor.segment.clone(), Arc::clone(&bytes));
        }
        Ok(bytes)
    }

    fn vector(&mut self, tensor: &TensorEntry) -> Result<Vec<f32>, RunError> {
        let segment = self.segment(tensor)?;
        let mut values = vec![0.0; index(tensor.shape.iter().product())];
        widen(tensor.dtype, bytes_of(tensor, &segment), &mut values);
        Ok(values)
    }

    fn layer_tensor(&self, layer: usize, role: Role) -> Result<&'a TensorEntry, RunError> {
        let tensor = self.layers[layer].tensors.get(&(role, false)).copied();
        tensor.ok_or_else(|| unsuitable(&format!("layer {layer} has no {role}")))
    }

    /// `x · Wᵀ + b` with a dense weight of a layer.
    fn linear(&mut self, layer: usize, role: Role, x: &[f32]) -> Result<Vec<f32>, RunError> {
        let weight = self.layer_tensor(layer, role)?;
        let bias = match self.layers[layer].tensors.get(&(role, true)).copied() {
            Some(bias) => Some(self.vector(bias)?),
            None => None,
        };
        let segment = self.segment(weight)?;
        let matrix = matrix(weight, bytes_of(weight, &segment));
        let mut out = vec![0.0; x.len() / matrix.columns * matrix.rows];
        self.ops.linear(x, matrix, bias.as_deref(), &mut out);
        Ok(out)
    }

    fn normed(&mut self, layer: usize, role: Role, x: &[f32]) -> Result<Vec<f32>, RunError> {
        let weight = self.vector(self.layer_tensor(layer, role)?)?;
        let mut normed = x.to_vec();
        self.ops.rms_norm(&mut normed, &weight, self.eps());
        Ok(normed)
    }

    /// q and k are normed per head, then rotated; v is neither.
    fn attention(&mut self, layer: usize, x: &[f32], cos: &[f32], sin: &[f32]) -> Result<Vec<f32>, RunError> {
        let x = self.normed(layer, Role::InputNorm, x)?;
        let mut q = self.linear(layer, Role::AttentionQ, &x)?;
        let mut k = self.linear(layer, Role::AttentionK, &x)?;
        let v = self.linear(layer, Role::AttentionV, &x)?;
        for (values, role) in [(&mut q, Role::QNorm), (&mut k, Role::KNorm)] {
            let weight = self.vector(self.layer_tensor(layer, role)?)?;
            self.ops.rms_norm(values, &weight, self.eps());
            self.ops.rope(values, cos, sin, self.heads.width);
        }
        let kv = &mut self.kv[layer];
        kv.keys.extend_from_slice(&k);
        kv.values.extend_from_slice(&v);
        let mut out = vec![0.0; q.len()];
        self.ops.attention(&q, &kv.keys, &kv.values, self.heads, &mut out);
        self.linear(layer, Role::AttentionO, &out)
    }

    fn mlp(&mut self, layer: usize, x: &[f32], observer: &mut dyn Observer) -> Result<Vec<f32>, RunError> {
        let x = self.normed(layer, Role::PostAttentionNorm, x)?;
        if self.layers[layer].experts.is_empty() {
            let mut gate = self.linear(layer, Role::MlpGate, &x)?;
            let up = self.linear(layer, Role::MlpUp, &x)?;
            self.ops.silu_mul(&mut gate, &up);
            return self.linear(layer, Role::MlpDown, &gate);
        }
        let routing = self.route(layer, &x)?;
        observer.router(layer, &routing);
        self.experts(layer, &x, &routing)
    }

    /// Softmax over all experts in f32, then the best; their weights are rounded after they are normalised.
    fn route(&mut self, layer: usize, x: &[f32]) -> Result<Routing, RunError> {
        let (experts, best) =
            (index(u64::from(self.facts.experts)), index(u64::from(self.facts.experts_per_token)));
        let logits = self.linear(layer, Role::Router, x)?;
        let mut routing = Routing { probabilities: logits.clone(), logits, ..Routing::default() };
        for row in routing.probabilities.chunks_exact_mut(experts) {
            softmax(row);
            let mut order: Vec<u32> = (0..self.facts.experts).collect();
            order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize])); // stable: the lower id on ties
            order.truncate(best);
            let sum: f32 = order.iter().map(|e| row[*e as usize]).sum();
            let divisor = if self.facts.norm_topk_prob { sum } else { 1.0 };
            let weight = |e: &u32| self.ops.compute().round(row[*e as usize] / divisor);
            routing.weights.extend(order.iter().map(weight));
            routing.ids.extend(order);
        }
        Ok(routing)
    }

    /// Expert by expert, in ascending order, so that each is loaded once for all tokens: the order in which the
    /// eager code adds.
    fn experts(&mut self, layer: usize, x: &[f32], routing: &Routing) -> Result<Vec<f32>, RunError> {
        let (hidden, best) = (index(self.facts.hidden_size), index(u64::from(self.facts.experts_per_token)));
        let mut visits: BTreeMap<u32, Vec<(usize, f32)>> = BTreeMap::new();
        for (i, (expert, weight)) in routing.ids.iter().zip(&routing.weights).enumerate() {
            visits.entry(*expert).or_default().push((i / best, *weight));
        }
        let mut out = vec![0.0; x.len()];
        for (number, tokens) in visits {
            self.stop.check()?;
            let gathered: Vec<f32> =
                tokens.iter().flat_map(|(t, _)| &x[t * hidden..(t + 1) * hidden]).copied().collect();
            let y = self.expert(layer, number, &gathered)?;
            for ((t, weight), y) in tokens.iter().zip(y.chunks_exact(hidden)) {
                self.ops.add_scaled(&mut out[t * hidden..(t + 1) * hidden], y, *weight);
            }
        }
        Ok(out)
    }

    /// `down(silu(gate(x)) · up(x))` of one expert, loaded if it is not there.
    fn expert(&mut self, layer: usize, number: u32, x: &[f32]) -> Result<Vec<f32>, RunError> {
        let expert = self.layers[layer].experts[number as usize];
        let (reader, stop, check) = (&mut self.reader, self.stop, self.settings.check == Check::Always);
        let bytes_read = &mut self.stats.bytes_read;
        let layer = u32::try_from(layer).unwrap_or(u32::MAX);
        *self.stats.expert_uses.entry((layer, number)).or_default() += 1;
        let slot = self.cache.get(layer, number, |slot| {
            *bytes_read += expert.segment.stored_length;
            reader.load_segment(expert.segment, check, slot, stop)
        })?;
        let linear = |tensor: &TensorEntry, x: &[f32]| {
            let matrix = matrix(tensor, bytes_of(tensor, slot));
            let mut out = vec![0.0; x.len() / matrix.columns * matrix.rows];
            self.ops.linear(x, matrix, None, &mut out);
            out
        };
        let mut gate = linear(expert.gate, x);
        let up = linear(expert.up, x);
        self.ops.silu_mul(&mut gate, &up);
        Ok(linear(expert.down, &gate))
    }

    fn logits(&mut self, x: &[f32]) -> Result<Vec<f32>, RunError> {
        let (vocab, hidden) = (index(self.facts.vocab), index(self.facts.hidden_size));
        let mut out = vec![0.0; x.len() / hidden * vocab];
        if self.budget.residency == Residency::Resident {
            let segment = self.segment(self.head)?;
            self.ops.linear(x, matrix(self.head, bytes_of(self.head, &segment)), None, &mut out);
            return Ok(out);
        }
        let row = self.head.length / self.facts.vocab.max(1);
        let rows = (HEAD_BLOCK_BYTES / row.max(1)).max(1);
        let mut first = 0;
        while first < self.facts.vocab {
            let last = (first + rows).min(self.facts.vocab);
            self.head_block(x, first, last, &mut out)?;
            first = last;
        }
        Ok(out)
    }

    /// The logits of some rows of a streamed head.
    fn head_block(&mut self, x: &[f32], first: u64, last: u64, out: &mut [f32]) -> Result<(), RunError> {
        let row = self.head.length / self.facts.vocab.max(1);
        let mut bytes = Vec::with_capacity(index((last - first) * row));
        self.reader.read_tensor(self.head, first * row..last * row, self.stop, |piece| {
            bytes.extend_from_slice(piece);
            Ok::<_, RunError>(())
        })?;
        self.stats.bytes_read += (last - first) * row;
        let (rows, vocab) = (index(last - first), index(self.facts.vocab));
        let block = Matrix { bytes: &bytes, rows, ..matrix(self.head, &bytes) };
        let mut part = vec![0.0; x.len() / block.columns * rows];
        self.ops.linear(x, block, None, &mut part);
        for (out, part) in out.chunks_exact_mut(vocab).zip(part.chunks_exact(rows)) {
            out[index(first)..index(last)].copy_from_slice(part);
        }
        Ok(())
    }
}

/// The text model's tensors, found by what they are.
struct Found<'a> {
    layers: Vec<Layer<'a>>,
    outside: HashMap<Role, &'a TensorEntry>,
}

impl<'a> Found<'a> {
    fn collect(source: &'a WeightSource<'a>, facts: &TextFacts) -> Result<Self, RunError> {
        let mut found = Self { layers: Vec::new(), outside: HashMap::new() };
        found.layers.resize_with(facts.layers as usize, Layer::default);
        let mut experts: BTreeMap<(u32, u32), HashMap<Role, &'a TensorEntry>> = BTreeMap::new();
        let text = |t: &&TensorEntry| matches!(t.component, Component::ThinkerText | Component::Text);
        for tensor in source.pack().manifest().tensors.iter().filter(text) {
            if !matches!(tensor.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32) {
                return Err(unsuitable(&format!(
                    "tensor {:?} is {}; BF16, F16 and F32 can be run",
                    tensor.name, tensor.dtype
                )));
            }
            match (tensor.layer, tensor.expert) {
                (Some(layer), Some(expert)) => {
                    experts.entry((layer, expert)).or_default().insert(tensor.role, tensor);
                }
                (Some(layer), None) => {
                    let bias = tensor.name.ends_with(".bias");
                    if let Some(layer) = found.layers.get_mut(layer as usize) {
                        layer.tensors.insert((tensor.role, bias), tensor);
                    }
                }
                _ => {
                    found.outside.insert(tensor.role, tensor);
                }
            }
        }
        found.add_experts(source, &experts)?;
        found.check(facts)?;
        Ok(found)
    }

    fn add_experts(
        &mut self,
        source: &'a WeightSource<'a>,
        experts: &BTreeMap<(u32, u32), HashMap<Role, &'a TensorEntry>>,
    ) -> Result<(), RunError> {
        for ((layer, expert), tensors) in experts {
            let get = |role: Role| {
                tensors
                    .get(&role)
                    .copied()
                    .ok_or_else(|| unsuitable(&format!("expert {expert} of layer {layer} has no {role}")))
            };
            let (gate, up, down) = (get(Role::ExpertGate)?, get(Role::ExpertUp)?, get(Role::ExpertDown)?);
            let expert = Expert { segment: source.segment_of(gate)?, gate, up, down };
            if let Some(layer) = self.layers.get_mut(*layer as usize) {
                layer.experts.push(expert);
            }
        }
        Ok(())
    }

    /// A layer has a router and all its experts, or neither.
    fn check(&self, facts: &TextFacts) -> Result<(), RunError> {
        for (number, layer) in self.layers.iter().enumerate() {
            let wanted =
                if layer.tensors.contains_key(&(Role::Router, false)) { facts.experts as usize } else { 0 };
            if layer.experts.len() != wanted {
                return Err(unsuitable(&format!(
                    "layer {number} has {} experts, wanted {wanted}",
                    layer.experts.len()
                )));
            }
            let dense = if wanted == 0 {
                &[Role::MlpGate, Role::MlpUp, Role::MlpDown][..]
            } else {
                &[Role::Router][..]
            };
            let always = [
                Role::AttentionQ,
                Role::AttentionK,
                Role::AttentionV,
                Role::AttentionO,
                Role::QNorm,
                Role::KNorm,
                Role::InputNorm,
                Role::PostAttentionNorm,
            ];
            if let Some(role) =
                always.iter().chain(dense).find(|role| !layer.tensors.contains_key(&(**role, false)))
            {
                return Err(unsuitable(&format!("layer {number} has no {role}")));
            }
        }
        Ok(())
    }

    fn outside(&self, role: Role) -> Result<&'a TensorEntry, RunError> {
        self.outside.get(&role).copied().ok_or_else(|| unsuitable(&format!("it has no {role}")))
    }
}

fn unsuitable(what: &str) -> RunError {
    RunError::Unsuitable(what.to_owned())
}

/// Sizes of tensors that are in memory, or about to be.
fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn bytes_of<'s>(tensor: &TensorEntry, segment: &'s [u8]) -> &'s [u8] {
    &segment[index(tensor.offset)..index(tensor.offset + tensor.length)]
}

fn matrix<'m>(tensor: &TensorEntry, bytes: &'m [u8]) -> Matrix<'m> {
    let side = |i: usize| tensor.shape.get(i).copied().map_or(1, index);
    Matrix { dtype: tensor.dtype, bytes, rows: side(0), columns: side(1) }
}

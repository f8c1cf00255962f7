//! The forward pass of the text thinker, and of plain Qwen3-MoE models, straight from a pack.
//!
//! The equations are those of transformers 5.23, `modeling_qwen3_omni_moe.py`
//! (`Qwen3OmniMoeThinkerTextModel`); for text its interleaved multimodal rope is plain rope.

mod dense;
mod experts;
mod scratch;
mod tensors;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use segpack_formats::codec::Codec;
use segpack_formats::digest::Blake3Hasher;
use segpack_formats::io::Stop;
use segpack_manifests::families::TextFacts;

use self::dense::Dense;
use self::experts::ExpertPass;
use self::scratch::Scratch;
use self::tensors::{Linear, Mlp, TextModel, Weight};
use crate::error::RunError;
use crate::memory::{Arena, Block, Budget, CacheStats, Demand, Eviction, ExpertCache, Residency};
use crate::observer::{Observer, Routing};
use crate::ops::{Heads, Matrix, Ops, Product, widen};
use crate::weights::{Load, LoadStats, Loader, WeightReader, WeightSource, damaged, room_for, scratch_bytes};

pub use crate::weights::Check;

/// Rows of the head that are computed at a time where it is streamed, in bytes.
const HEAD_BLOCK_BYTES: u64 = 8 << 20;
/// Memory of the program itself, its buffers and threads, in bytes; the manifest's share comes on top.
const PROGRAM_BYTES: u64 = 64 << 20;
/// Memory that one tensor of the manifest takes once it is parsed, in bytes (measured: about 1,000).
const MANIFEST_ENTRY_BYTES: u64 = 1500;

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

/// What a run did so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunStats {
    /// Stored bytes of segments and rows read.
    pub bytes_read: u64,
    /// How segments came, and what that took.
    pub load: LoadStats,
    /// The expert cache.
    pub cache: CacheStats,
    /// Uses of experts of each layer that were in memory, and that were not.
    pub layers: Vec<LayerUses>,
    /// How often each (layer, expert) was used, per forward pass that used it.
    pub expert_uses: BTreeMap<(u32, u32), u64>,
    /// Time in forward passes.
    pub forward: Duration,
    /// Of it, time in which nothing could be computed, because weights were not there yet.
    pub waited: Duration,
}

/// Uses of the experts of a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerUses {
    /// Those that were in memory.
    pub hits: u64,
    /// Those that had to be loaded.
    pub misses: u64,
}

/// A model that runs from a pack.
pub struct Thinker<'a, O> {
    facts: TextFacts,
    heads: Heads,
    reader: WeightReader<'a>,
    loader: Loader<'a>,
    ops: O,
    settings: RunSettings,
    demand: Demand,
    budget: Budget,
    model: TextModel<'a>,
    dense: Dense,
    cache: ExpertCache<Block>,
    scratch: Scratch,
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
        let model = TextModel::find(source, &facts)?;
        let demand = demand(&model, &facts, manifest.tensors.len() as u64, &settings);
        let refuse = |least| RunError::Memory { memory: settings.memory.unwrap_or(0), least };
        let budget = demand.share(settings.memory, settings.expert_slots).map_err(refuse)?;
        let heads = Heads {
            query: index(facts.heads),
            key_value: index(facts.kv_heads),
            width: index(facts.head_dim),
        };
        let mut thinker = Self {
            heads,
            reader: source.reader()?,
            loader: Loader::new(source, settings.check)?,
            dense: Dense::new(&model.groups, budget.residency)?,
            cache: ExpertCache::new(expert_slots(&demand, &budget)?, Eviction::default()),
            scratch: Scratch::default(),
            kv: Vec::new(),
            stats: RunStats { layers: vec![LayerUses::default(); model.layers.len()], ..RunStats::default() },
            ops,
            settings,
            demand,
            budget,
            model,
            stop,
            facts,
        };
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

    /// What this model and its settings need of memory.
    pub fn demand(&self) -> Demand {
        self.demand
    }

    /// Layers that have experts.
    pub fn expert_layers(&self) -> u64 {
        self.model.layers.iter().filter(|l| matches!(l.mlp, Mlp::Experts { .. })).count() as u64
    }

    /// Bytes of the head.
    pub fn head_bytes(&self) -> u64 {
        self.model.head.length
    }

    /// Bytes of one weight.
    pub fn bytes_per_weight(&self) -> u64 {
        self.model.head.length / self.model.head.shape.iter().product::<u64>().max(1)
    }

    /// The weights that are in memory now, as stored bytes in no order: what its speed can be measured on.
    pub fn resident_memory(&self) -> Vec<&[u8]> {
        self.dense.held().chain(self.cache.held()).map(|block| &block[..]).collect()
    }

    /// What was done so far.
    pub fn stats(&self) -> RunStats {
        let load = self.loader.stats();
        let bytes_read = self.stats.bytes_read + load.bytes();
        RunStats { cache: self.cache.stats(), load, bytes_read, ..self.stats.clone() }
    }

    /// Positions in the cache of keys and values.
    pub fn positions(&self) -> usize {
        self.kv.first().map_or(0, |kv| kv.keys.len() / (self.heads.key_value * self.heads.width))
    }

    /// Loads the dense weights and as many experts as there is room for, which is otherwise done when they are needed.
    ///
    /// # Errors
    /// Damage of the pack.
    pub fn preload(&mut self) -> Result<(), RunError> {
        if self.budget.residency == Residency::Resident {
            for group in 0..self.model.groups.len() {
                self.load_group(group)?;
            }
        }
        for (number, layer) in self.model.layers.iter().enumerate() {
            let Mlp::Experts { experts, .. } = &layer.mlp else { continue };
            let layer = u32::try_from(number).unwrap_or(u32::MAX);
            for (expert, e) in (0..).zip(experts) {
                if self.cache.get((layer, expert)).is_some() {
                    continue;
                }
                let Some(mut slot) = self.cache.take(|_| true) else { return Ok(()) };
                let loaded =
                    self.loader.load(&mut [Load { segment: e.segment, to: &mut slot[..] }], self.stop);
                match loaded {
                    Ok(()) => self.cache.put((layer, expert), slot),
                    Err(_) => self.cache.put_empty(slot),
                }
                loaded?;
            }
        }
        Ok(())
    }

    /// Forgets all tokens, keeps all weights.
    pub fn reset(&mut self) {
        self.kv.resize_with(self.model.layers.len(), KeysValues::default);
        let room = self.settings.positions * self.heads.key_value * self.heads.width;
        for kv in &mut self.kv {
            kv.keys.clear();
            kv.values.clear();
            kv.keys.reserve_exact(room);
            kv.values.reserve_exact(room);
        }
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
        let began = Instant::now();
        let logits = self.pass(ids, want, observer);
        self.stats.forward += began.elapsed();
        logits
    }

    fn pass(&mut self, ids: &[u32], want: Logits, observer: &mut dyn Observer) -> Result<Vec<f32>, RunError> {
        let wanted = self.positions() + ids.len();
        if wanted > self.settings.positions {
            return Err(RunError::TooLong { wanted, reserved: self.settings.positions });
        }
        let (cos, sin) = self.rotations(ids.len());
        let mut x = self.embed(ids)?;
        observer.embed(&x);
        for layer in 0..self.model.layers.len() {
            self.stop.check()?;
            self.load_group(layer)?;
            self.attention(layer, &x, &cos, &sin);
            let added = self.scratch.added.of(x.len());
            observer.attention(layer, added);
            self.ops.add(&mut x, added);
            self.mlp(layer, &x, observer)?;
            let added = self.scratch.added.of(x.len());
            observer.mlp(layer, added);
            self.ops.add(&mut x, added);
            observer.hidden(layer, &x);
        }
        let hidden = index(self.facts.hidden_size);
        self.load_group(self.model.final_norm_group())?;
        let norm = self.model.final_norm.vector(self.dense.memory(self.model.final_norm_group()));
        self.ops.rms_norm(&mut x, &norm, self.eps());
        observer.norm(&x);
        let from = if want == Logits::Last { x.len() - hidden } else { 0 };
        self.logits(&x[from..])
    }

    fn load_group(&mut self, number: usize) -> Result<(), RunError> {
        let began = Instant::now();
        self.dense.load(number, &self.model.groups, &self.loader, self.stop)?;
        self.stats.waited += began.elapsed();
        Ok(())
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
        let row = self.model.embedding.length / self.facts.vocab.max(1);
        let mut x = vec![0.0; ids.len() * hidden];
        let mut bytes = Vec::with_capacity(index(row));
        for (id, to) in ids.iter().zip(x.chunks_exact_mut(hidden)) {
            if u64::from(*id) >= self.facts.vocab {
                return Err(RunError::TokenId { id: *id, rows: self.facts.vocab });
            }
            bytes.clear();
            let start = u64::from(*id) * row;
            self.reader.read_tensor(self.model.embedding, start..start + row, self.stop, |piece| {
                bytes.extend_from_slice(piece);
                Ok::<_, RunError>(())
            })?;
            self.stats.bytes_read += row;
            widen(self.model.embedding.dtype, &bytes, to);
        }
        Ok(x)
    }

    /// `scratch.added` = what attention adds to `x`. q and k are normed per head, then rotated; v is neither.
    fn attention(&mut self, number: usize, x: &[f32], cos: &[f32], sin: &[f32]) {
        let (layer, memory) = (&self.model.layers[number], self.dense.memory(number));
        let (eps, width) = (self.eps(), self.heads.width);
        let (hidden, query, kv_width) =
            (index(self.facts.hidden_size), self.heads.query * width, self.heads.key_value * width);
        let (ops, s) = (&self.ops, &mut self.scratch);
        let normed = s.normed.copy(x);
        ops.rms_norm(normed, &layer.input_norm.vector(memory), eps);
        let added = s.added.of(x.len());
        let [q_norm, k_norm] = [layer.q_norm, layer.k_norm].map(|w| w.vector(memory));
        let rows = index(self.budget.batch).max(1);
        let rotations = cos.chunks(rows * width / 2).zip(sin.chunks(rows * width / 2));
        let batches = normed.chunks(rows * hidden).zip(added.chunks_mut(rows * hidden));
        for ((x, out), (cos, sin)) in batches.zip(rotations) {
            let n = x.len() / hidden;
            let (q, k, v) = (s.q.of(n * query), s.k.of(n * kv_width), s.v.of(n * kv_width));
            products(ops, memory, x, [(&layer.q, &mut *q), (&layer.k, &mut *k), (&layer.v, &mut *v)]);
            for (values, norm) in [(&mut *q, &q_norm), (&mut *k, &k_norm)] {
                ops.rms_norm(values, norm, eps);
                ops.rope(values, cos, sin, width);
            }
            let kv = &mut self.kv[number];
            kv.keys.extend_from_slice(k);
            kv.values.extend_from_slice(v);
            let attended = s.attended.of(n * query);
            ops.attention(q, &kv.keys, &kv.values, self.heads, attended);
            products(ops, memory, attended, [(&layer.o, out)]);
        }
    }

    /// `scratch.added` = what the MLP or the experts add to `x`.
    fn mlp(&mut self, number: usize, x: &[f32], observer: &mut dyn Observer) -> Result<(), RunError> {
        let eps = self.eps();
        let normed = self.scratch.normed.copy(x);
        let norm = self.model.layers[number].post_attention_norm.vector(self.dense.memory(number));
        self.ops.rms_norm(normed, &norm, eps);
        match &self.model.layers[number].mlp {
            Mlp::Dense { .. } => self.dense_mlp(number, x.len()),
            Mlp::Experts { .. } => {
                let routing = self.route(number, x.len());
                observer.router(number, &routing);
                self.experts(number, x.len(), &routing)?;
            }
        }
        Ok(())
    }

    fn dense_mlp(&mut self, number: usize, length: usize) {
        let Mlp::Dense { gate, up, down } = &self.model.layers[number].mlp else { return };
        let (memory, hidden) = (self.dense.memory(number), index(self.facts.hidden_size));
        let (ops, s) = (&self.ops, &mut self.scratch);
        let rows = index(self.budget.batch).max(1) * hidden;
        let (x, out) = (s.normed.of(length), s.added.of(length));
        for (x, out) in x.chunks(rows).zip(out.chunks_mut(rows)) {
            let inner = x.len() / hidden * gate.weight.rows;
            let (g, u) = (s.mlp.gate.of(inner), s.mlp.up.of(inner));
            products(ops, memory, x, [(gate, &mut *g), (up, &mut *u)]);
            ops.silu_mul(g, u);
            products(ops, memory, g, [(down, out)]);
        }
    }

    /// Softmax over all experts in f32, then the best; their weights are rounded after they are normalised.
    fn route(&mut self, number: usize, length: usize) -> Routing {
        let Mlp::Experts { router, .. } = &self.model.layers[number].mlp else { return Routing::default() };
        let (experts, best) =
            (index(u64::from(self.facts.experts)), index(u64::from(self.facts.experts_per_token)));
        let tokens = length / index(self.facts.hidden_size);
        let memory = self.dense.memory(number);
        let x = self.scratch.normed.of(length);
        let logits = self.scratch.router.of(tokens * experts);
        products(&self.ops, memory, x, [(router, &mut *logits)]);
        let mut routing =
            Routing { logits: logits.to_vec(), probabilities: logits.to_vec(), ..Routing::default() };
        self.ops.softmax(&mut routing.probabilities, experts);
        for row in routing.probabilities.chunks_exact(experts) {
            let chosen = top_k(row, best);
            let sum: f32 = chosen.iter().map(|e| row[*e as usize]).sum();
            let divisor = if self.facts.norm_topk_prob { sum } else { 1.0 };
            let weight = |e: &u32| self.ops.compute().round(row[*e as usize] / divisor);
            routing.weights.extend(chosen.iter().map(weight));
            routing.ids.extend(chosen);
        }
        routing
    }

    fn experts(&mut self, number: usize, length: usize, routing: &Routing) -> Result<(), RunError> {
        let Mlp::Experts { experts, .. } = &self.model.layers[number].mlp else { return Ok(()) };
        let (hidden, best) = (index(self.facts.hidden_size), index(u64::from(self.facts.experts_per_token)));
        let s = &mut self.scratch;
        let layer = u32::try_from(number).unwrap_or(u32::MAX);
        let pass = ExpertPass {
            ops: &self.ops,
            layer,
            experts,
            cache: &mut self.cache,
            loader: &self.loader,
            stop: self.stop,
            x: s.normed.of(length),
            hidden,
            intermediate: index(self.facts.moe_intermediate),
            batch: index(self.budget.batch).max(1),
            scratch: &mut s.mlp,
            waited: &mut self.stats.waited,
            out: s.added.zeros(length),
        };
        for (expert, hit) in pass.run(routing, best)? {
            let uses = &mut self.stats.layers[number];
            *(if hit { &mut uses.hits } else { &mut uses.misses }) += 1;
            *self.stats.expert_uses.entry((layer, expert)).or_default() += 1;
        }
        Ok(())
    }

    fn logits(&mut self, x: &[f32]) -> Result<Vec<f32>, RunError> {
        let (vocab, hidden) = (index(self.facts.vocab), index(self.facts.hidden_size));
        let mut out = vec![0.0; x.len() / hidden * vocab];
        let group = self.model.head_group();
        if self.budget.residency == Residency::Streamed {
            self.streamed_head(x, &mut out)?;
            return Ok(out);
        }
        self.load_group(group)?;
        self.ops.linear(x, self.model.head_weight.matrix(self.dense.memory(group)), None, &mut out);
        Ok(out)
    }

    /// A block of rows at a time. Of a raw segment the digest is known only after the last block: nothing is returned
    /// before that. Chunks of a coded one have checks of their own.
    fn streamed_head(&mut self, x: &[f32], out: &mut [f32]) -> Result<(), RunError> {
        let head = self.model.head;
        let segment = self.reader.source().segment_of(head)?;
        let checked = self.settings.check != Check::Never
            && segment.codec == Codec::Raw
            && segment.raw_length == head.length;
        let row = head.length / self.facts.vocab.max(1);
        let rows = (HEAD_BLOCK_BYTES / row.max(1)).max(1);
        let (mut blake3, mut first) = (Blake3Hasher::default(), 0);
        let mut bytes = Vec::with_capacity(index(rows * row));
        while first < self.facts.vocab {
            let last = (first + rows).min(self.facts.vocab);
            let began = Instant::now();
            bytes.clear();
            self.reader.read_tensor(head, first * row..last * row, self.stop, |piece| {
                bytes.extend_from_slice(piece);
                Ok::<_, RunError>(())
            })?;
            if checked {
                blake3.update(&bytes);
            }
            self.stats.waited += began.elapsed();
            self.stats.bytes_read += (last - first) * row;
            self.head_block(x, &bytes, index(first)..index(last), out);
            first = last;
        }
        let seen = blake3.finish();
        if checked && seen != segment.blake3 {
            let file = self.reader.source().open(&segment.pack)?;
            return Err(damaged(&file, segment, &seen.to_string()).into());
        }
        Ok(())
    }

    /// The logits of some rows of the head.
    fn head_block(&self, x: &[f32], bytes: &[u8], rows: std::ops::Range<usize>, out: &mut [f32]) {
        let vocab = index(self.facts.vocab);
        let weight = Matrix {
            dtype: self.model.head.dtype,
            bytes,
            rows: rows.len(),
            columns: self.model.head_weight.columns,
        };
        let mut part = vec![0.0; x.len() / weight.columns * weight.rows];
        self.ops.linear(x, weight, None, &mut part);
        for (out, part) in out.chunks_exact_mut(vocab).zip(part.chunks_exact(weight.rows)) {
            out[rows.clone()].copy_from_slice(part);
        }
    }
}

/// Dense products of one input.
fn products<O: Ops, const N: usize>(ops: &O, memory: &[u8], x: &[f32], products: [(&Linear, &mut [f32]); N]) {
    let vector = |w: Weight| w.vector(memory);
    let biases: Vec<Option<Vec<f32>>> = products.iter().map(|(l, _)| l.bias.map(vector)).collect();
    let product = |((linear, out), bias)| {
        let linear: &Linear = linear;
        let bias: &Option<Vec<f32>> = bias;
        Product { x, weight: linear.weight.matrix(memory), bias: bias.as_deref(), out }
    };
    let mut all: Vec<Product<'_>> = products.into_iter().zip(&biases).map(product).collect();
    ops.products(&mut all);
}

/// The `best` largest values, largest first, the lower id on ties.
fn top_k(row: &[f32], best: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..row.len()).map(|i| u32::try_from(i).unwrap_or(u32::MAX)).collect();
    let order = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
    if best < ids.len() && best > 0 {
        ids.select_nth_unstable_by(best - 1, order);
    }
    ids.truncate(best);
    ids.sort_unstable_by(order);
    ids
}

fn expert_slots(demand: &Demand, budget: &Budget) -> Result<Vec<Block>, RunError> {
    let room = index(demand.expert);
    let mut arena = Arena::new(room.saturating_mul(index(budget.slots)))?;
    (0..budget.slots).map(|_| arena.take(room)).collect()
}

fn demand(model: &TextModel<'_>, f: &TextFacts, tensors: u64, settings: &RunSettings) -> Demand {
    let row = model.head.length / f.vocab.max(1);
    let (query, kv_width) = (f.heads * f.head_dim, f.kv_heads * f.head_dim);
    let tokens = settings.longest_pass.max(1) as u64;
    let any_coded = model.groups.iter().flat_map(|g| &g.segments).any(|s| s.codec != Codec::Raw)
        || model.experts().any(|e| e.segment.codec != Codec::Raw);
    let inner = f.intermediate.max(f.moe_intermediate);
    Demand {
        overhead: PROGRAM_BYTES + scratch_bytes(any_coded),
        manifest: tensors * MANIFEST_ENTRY_BYTES,
        kv: model.layers.len() as u64 * settings.positions as u64 * 2 * kv_width * 4,
        tokens,
        // x, normed, added; router logits, probabilities and a copy
        pass: tokens * (3 * f.hidden_size + 3 * u64::from(f.experts)) * 4 + f.vocab * 8,
        // q, attended, k, v; x, gate, up, y of the MLP
        per_token: (2 * query + 2 * kv_width + 2 * f.hidden_size + 2 * inner) * 4,
        dense: model.groups.iter().map(|g| g.room as u64).sum(),
        dense_streamed: dense::streamed_room(&model.groups) as u64
            + HEAD_BLOCK_BYTES.min(model.head.length).max(row),
        expert: model.experts().map(|e| room_for(e.segment)).max().unwrap_or(0),
        experts: model.experts().count() as u64,
        experts_per_token: u64::from(f.experts_per_token),
    }
}

fn unsuitable(what: &str) -> RunError {
    RunError::Unsuitable(what.to_owned())
}

/// Sizes of tensors that are in memory, or about to be.
fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_the_lower_id_on_ties() {
        assert_eq!(top_k(&[0.1, 0.5, 0.2, 0.5, 0.3], 3), [1, 3, 4]);
        assert_eq!(top_k(&[1.0, 1.0, 1.0], 2), [0, 1]);
        assert_eq!(top_k(&[1.0, 2.0], 5), [1, 0]);
        assert!(top_k(&[1.0], 0).is_empty());
    }
}

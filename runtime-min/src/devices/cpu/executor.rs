//! The model on the CPU: weights and activations in ordinary memory, operations of [`Ops`].

use std::borrow::Cow;
use std::mem::take;
use std::ops::Range;
use std::time::{Duration, Instant};

use segpack_formats::codec::Codec;
use segpack_formats::digest::Blake3Hasher;
use segpack_formats::io::CancelToken;
use segpack_manifests::families::TextFacts;

use super::dense::{self, Dense};
use super::experts::{ExpertPass, MOST_IN_GROUP};
use super::scratch::{Buffer, MlpScratch};
use crate::error::RunError;
use crate::models::decoder::bind::{Expert, Group, Linear, TextModel};
use crate::models::decoder::executor::{
    At, Backend, Device, DeviceStats, ExpertLayer, Setup, Turns, Values,
};
use crate::models::decoder::{Logits, RunSettings, Thinker, index, top_k};
use crate::observer::Routing;
use crate::ops::Ops;
use crate::tensor::{self, Compute, Heads, Matrix};
use crate::weights::{Arena, Block, Budget, Demand, Eviction, ExpertCache, Residency};
use crate::weights::{Load, Loader, damaged, room_for, scratch_bytes};
use segpack_manifests::PackCursor;

/// Rows of the head that are computed at a time where it is streamed, in bytes.
const HEAD_BLOCK_BYTES: u64 = 8 << 20;
/// Memory of the program itself, its buffers and threads, in bytes; the manifest's share comes on
/// top.
pub(crate) const PROGRAM_BYTES: u64 = 64 << 20;
/// Memory that one tensor of the manifest takes once it is parsed, in bytes (measured: about
/// 1,000).
pub(crate) const MANIFEST_ENTRY_BYTES: u64 = 1500;

/// The CPU's memory, and how it computes.
pub struct Cpu<'a, O> {
    ops: O,
    facts: TextFacts,
    heads: Heads,
    settings: RunSettings,
    demand: Demand,
    budget: Budget,
    reader: PackCursor<'a>,
    loader: Loader<'a>,
    dense: Dense,
    cache: ExpertCache<Block>,
    values: [Buffer; Values::COUNT],
    mlp: MlpScratch,
    tokens: usize,
    turns: Turns,
    kv: Vec<KeysValues>,
    routing: Routing,
    head_bytes_read: u64,
    waited: Duration,
    stop: &'a CancelToken,
}

/// The cached keys (normed and rotated) and values of one layer, `[positions, kv_heads × head_dim]`
/// each.
#[derive(Debug, Default)]
struct KeysValues {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl<O: Ops> Backend for O {
    type Device<'a> = Cpu<'a, O>;

    fn compute(&self) -> Compute {
        Ops::compute(self)
    }

    fn open<'a>(self, setup: &Setup<'a, '_>) -> Result<Cpu<'a, O>, RunError> {
        let Setup {
            source,
            model,
            facts,
            settings,
            stop,
        } = *setup;
        let tensors = source.pack().manifest().tensors.len() as u64;
        let demand = demand(model, facts, tensors, &settings);
        let refuse = |minimum| RunError::Memory {
            memory: settings.memory.unwrap_or(0),
            minimum,
        };
        let budget = demand
            .share(settings.memory, settings.expert_slots)
            .map_err(refuse)?;
        let mut cpu = Cpu {
            ops: self,
            facts: facts.clone(),
            heads: heads(facts),
            settings,
            demand,
            budget,
            reader: source.cursor()?,
            loader: Loader::new(source, settings.check)?,
            dense: Dense::new(&model.groups, budget.residency)?,
            cache: ExpertCache::new(expert_slots(&demand, &budget)?, Eviction::default()),
            values: Default::default(),
            mlp: MlpScratch::default(),
            tokens: 0,
            turns: Turns::default(),
            kv: model.layers.iter().map(|_| KeysValues::default()).collect(),
            routing: Routing::default(),
            head_bytes_read: 0,
            waited: Duration::ZERO,
            stop,
        };
        cpu.truncate(0);
        Ok(cpu)
    }
}

/// The attention heads of a model.
pub(crate) fn heads(facts: &TextFacts) -> Heads {
    Heads {
        query: index(facts.heads),
        key_value: index(facts.kv_heads),
        width: index(facts.head_dim),
    }
}

impl<O: Ops> Thinker<'_, O> {
    /// The weights that are in memory now, as stored bytes in no order: what its speed can be
    /// measured on.
    pub fn resident_memory(&self) -> Vec<&[u8]> {
        self.device
            .dense
            .held()
            .chain(self.device.cache.held())
            .map(|block| &block[..])
            .collect()
    }
}

impl<O: Ops> Cpu<'_, O> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "applied in f32, as torch does"
    )]
    fn eps(&self) -> f32 {
        self.facts.rms_norm_eps as f32
    }

    fn hidden(&self) -> usize {
        index(self.facts.hidden_size)
    }

    /// Takes values out while others are borrowed; they are put back after it.
    fn take(&mut self, values: Values) -> Buffer {
        take(&mut self.values[values as usize])
    }

    fn give(&mut self, values: Values, buffer: Buffer) {
        self.values[values as usize] = buffer;
    }

    /// A block of rows at a time. Of a raw segment the digest is known only after the last block:
    /// nothing is returned before that. Chunks of a coded one have checks of their own.
    fn streamed_head(
        &mut self,
        model: &TextModel<'_>,
        x: &[f32],
        out: &mut [f32],
    ) -> Result<(), RunError> {
        let head = model.head;
        let segment = self.reader.source().segment_of(head)?;
        let checked = self.settings.check != crate::weights::Check::Never
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
            self.reader
                .read_tensor(head, first * row..last * row, self.stop, |piece| {
                    bytes.extend_from_slice(piece);
                    Ok::<_, RunError>(())
                })?;
            if checked {
                blake3.update(&bytes);
            }
            self.waited += began.elapsed();
            self.head_bytes_read += (last - first) * row;
            self.head_block(model, x, &bytes, index(first)..index(last), out);
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
    fn head_block(
        &self,
        model: &TextModel<'_>,
        x: &[f32],
        bytes: &[u8],
        rows: Range<usize>,
        out: &mut [f32],
    ) {
        let vocab = index(self.facts.vocab);
        let weight = Matrix {
            dtype: model.head_weight.dtype,
            bytes,
            rows: rows.len(),
            columns: model.head_weight.columns,
        };
        let mut part = vec![0.0; x.len() / weight.columns * weight.rows];
        self.ops.linear(x, weight, None, &mut part);
        for (out, part) in out
            .chunks_exact_mut(vocab)
            .zip(part.chunks_exact(weight.rows))
        {
            out[rows.clone()].copy_from_slice(part);
        }
    }
}

impl<'a, O: Ops> Device<'a> for Cpu<'a, O> {
    fn budget(&self) -> Budget {
        self.budget
    }

    fn demand(&self) -> Demand {
        self.demand
    }

    fn stats(&self) -> DeviceStats {
        DeviceStats {
            load: self.loader.stats(),
            cache: self.cache.stats(),
            bytes_read: self.head_bytes_read,
            bytes_copied: 0,
            waited: self.waited,
            resident_uses: Vec::new(),
        }
    }

    fn preload(
        &mut self,
        model: &TextModel<'a>,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(), RunError> {
        if self.budget.residency == Residency::Resident {
            for (number, group) in model.groups.iter().enumerate() {
                self.dense
                    .load(number, &model.groups, &self.loader, self.stop)?;
                tell(group.bytes());
            }
        }
        let absent =
            |(layer, expert, _): &(u32, u32, _)| self.cache.get((*layer, *expert)).is_none();
        let absent: Vec<(u32, u32, &Expert<'a>)> = model.all_experts().filter(absent).collect();
        for some in absent.chunks(MOST_IN_GROUP) {
            let mut slots: Vec<Block> = some
                .iter()
                .map_while(|_| self.cache.take(|_| true))
                .collect();
            let loads = some.iter().zip(&mut slots);
            let loads = loads.map(|((_, _, e), slot)| Load {
                segment: e.segment,
                to: &mut slot[..],
            });
            let loaded = self.loader.load(&mut loads.collect::<Vec<_>>(), self.stop);
            for ((layer, expert, e), slot) in some.iter().zip(slots) {
                match loaded {
                    Ok(()) => self.cache.put((*layer, *expert), slot),
                    Err(_) => self.cache.put_empty(slot),
                }
                tell(e.segment.raw_length);
            }
            loaded?;
        }
        Ok(())
    }

    fn load(&mut self, group: usize, groups: &[Group<'a>]) -> Result<(), RunError> {
        let began = Instant::now();
        self.dense.load(group, groups, &self.loader, self.stop)?;
        self.waited += began.elapsed();
        Ok(())
    }

    fn positions(&self) -> usize {
        self.kv.first().map_or(0, |kv| {
            kv.keys.len() / (self.heads.key_value * self.heads.width)
        })
    }

    fn truncate(&mut self, positions: usize) {
        let width = self.heads.key_value * self.heads.width;
        let room = self.settings.positions * width;
        for values in self
            .kv
            .iter_mut()
            .flat_map(|kv| [&mut kv.keys, &mut kv.values])
        {
            values.truncate(positions * width);
            values.reserve_exact(room - values.len());
        }
    }

    fn begin(
        &mut self,
        tokens: usize,
        turns: &dyn Fn(Range<usize>) -> Turns,
    ) -> Result<(), RunError> {
        self.tokens = tokens;
        self.turns = turns(self.positions()..self.positions() + tokens);
        Ok(())
    }

    fn embed(&mut self, _: &[u32]) -> Result<bool, RunError> {
        Ok(false) // rows are read one at a time
    }

    fn put(&mut self, x: Vec<f32>) -> Result<(), RunError> {
        self.values[Values::X as usize] = Buffer::from(x);
        Ok(())
    }

    fn read(&mut self, values: Values) -> Result<Cow<'_, [f32]>, RunError> {
        let width = if values == Values::Router {
            self.facts.experts as usize
        } else {
            self.hidden()
        };
        let n = self.tokens * width;
        Ok(Cow::Borrowed(self.values[values as usize].of(n)))
    }

    fn is_far(&self) -> bool {
        false
    }

    fn batch(&self) -> usize {
        index(self.budget.batch).max(1)
    }

    fn norm(&mut self, from: Values, to: Values, weight: At) -> Result<(), RunError> {
        let (n, eps) = (self.tokens * self.hidden(), self.eps());
        let weight = weight.weight.vector(self.dense.memory(weight.group));
        let mut out = self.take(to);
        let values = if from == to {
            out.of(n)
        } else {
            out.copy(self.values[from as usize].of(n))
        };
        self.ops.rms_norm(values, &weight, eps);
        self.give(to, out);
        Ok(())
    }

    fn products(
        &mut self,
        from: Values,
        tokens: Range<usize>,
        group: usize,
        products: &[(&Linear, Values)],
    ) -> Result<(), RunError> {
        let mut outs: Vec<Buffer> = products.iter().map(|(_, to)| self.take(*to)).collect();
        let mut input = self.take(from);
        let memory = self.dense.memory(group);
        let biases: Vec<Option<Vec<f32>>> = products
            .iter()
            .map(|(l, _)| l.bias.map(|b| b.vector(memory)))
            .collect();
        let columns = products.first().map_or(0, |(l, _)| l.weight.columns);
        let x = rows_of(&mut input, from, self.tokens, &tokens, columns);
        let mut all = Vec::new();
        for (((linear, to), out), bias) in products.iter().zip(&mut outs).zip(&biases) {
            let weight = linear.weight.matrix(memory);
            let out = rows_of(out, *to, self.tokens, &tokens, weight.rows);
            all.push(tensor::Linear {
                x,
                weight,
                bias: bias.as_deref(),
                out,
            });
        }
        self.ops.linears(&mut all);
        drop(all);
        self.give(from, input);
        for ((_, to), out) in products.iter().zip(outs) {
            self.give(*to, out);
        }
        Ok(())
    }

    fn attend(
        &mut self,
        layer: usize,
        tokens: Range<usize>,
        norms: [At; 2],
    ) -> Result<(), RunError> {
        let (
            eps,
            n,
            Heads {
                query,
                key_value,
                width,
            },
        ) = (self.eps(), tokens.len(), self.heads);
        let norms = norms.map(|at| at.weight.vector(self.dense.memory(at.group)));
        let turns = tokens.start * width / 2..tokens.end * width / 2;
        let (cos, sin) = (&self.turns.0[turns.clone()], &self.turns.1[turns]);
        let [q, k, v, attended] = self
            .values
            .get_disjoint_mut(
                [Values::Q, Values::K, Values::V, Values::Attended].map(|v| v as usize),
            )
            .map_err(|_| RunError::Internal("activations overlap"))?;
        let (q, k) = (q.of(n * query * width), k.of(n * key_value * width));
        for (values, norm) in [(&mut *q, &norms[0]), (&mut *k, &norms[1])] {
            self.ops.rms_norm(values, norm, eps);
            self.ops.rope(values, cos, sin, width);
        }
        let kv = &mut self.kv[layer];
        kv.keys.extend_from_slice(k);
        kv.values.extend_from_slice(v.of(n * key_value * width));
        self.ops.attention(
            q,
            &kv.keys,
            &kv.values,
            self.heads,
            attended.of(n * query * width),
        );
        Ok(())
    }

    fn silu_mul(&mut self) -> Result<(), RunError> {
        let mut gate = self.take(Values::Gate);
        let up = self.values[Values::Up as usize].last();
        self.ops.silu_mul(gate.of(up.len()), up);
        self.give(Values::Gate, gate);
        Ok(())
    }

    fn add(&mut self) -> Result<(), RunError> {
        let n = self.tokens * self.hidden();
        let mut x = self.take(Values::X);
        self.ops
            .add(x.of(n), self.values[Values::Added as usize].of(n));
        self.give(Values::X, x);
        Ok(())
    }

    /// Softmax over all experts in f32, then the best; their weights are rounded after they are
    /// normalised.
    fn route(&mut self, _: ExpertLayer<'a, '_>) -> Result<(), RunError> {
        let (experts, best) = (
            index(u64::from(self.facts.experts)),
            index(u64::from(self.facts.experts_per_token)),
        );
        let logits = self.values[Values::Router as usize].of(self.tokens * experts);
        let mut routing = Routing {
            logits: logits.to_vec(),
            probabilities: logits.to_vec(),
            ..Routing::default()
        };
        self.ops.softmax(&mut routing.probabilities, experts);
        for row in routing.probabilities.chunks_exact(experts) {
            let chosen = top_k(row, best);
            let sum: f32 = chosen.iter().map(|e| row[*e as usize]).sum();
            let divisor = if self.facts.norm_topk_prob { sum } else { 1.0 };
            let weight = |e: &u32| Ops::compute(&self.ops).round(row[*e as usize] / divisor);
            routing.weights.extend(chosen.iter().map(weight));
            routing.ids.extend(chosen);
        }
        self.routing = routing;
        Ok(())
    }

    fn routing(&mut self) -> Result<Cow<'_, Routing>, RunError> {
        Ok(Cow::Borrowed(&self.routing))
    }

    fn experts(&mut self, layer: ExpertLayer<'a, '_>) -> Result<Vec<(u32, bool)>, RunError> {
        let (hidden, best) = (
            self.hidden(),
            index(u64::from(self.facts.experts_per_token)),
        );
        let (length, batch) = (self.tokens * hidden, self.batch());
        let (mut normed, mut added) = (self.take(Values::Normed), self.take(Values::Added));
        let pass = ExpertPass {
            ops: &self.ops,
            layer: u32::try_from(layer.number).unwrap_or(u32::MAX),
            experts: layer.experts,
            cache: &mut self.cache,
            loader: &self.loader,
            stop: self.stop,
            x: normed.of(length),
            hidden,
            intermediate: index(self.facts.moe_intermediate),
            batch,
            scratch: &mut self.mlp,
            waited: &mut self.waited,
            out: added.zeros(length),
        };
        let uses = pass.run(&self.routing, best);
        self.give(Values::Normed, normed);
        self.give(Values::Added, added);
        uses
    }

    fn logits(&mut self, model: &TextModel<'a>, want: Logits) -> Result<Vec<f32>, RunError> {
        let (vocab, hidden) = (index(self.facts.vocab), self.hidden());
        let mut values = self.take(Values::X);
        let all = values.of(self.tokens * hidden);
        let x = if want == Logits::Last {
            &all[all.len() - hidden..]
        } else {
            all
        };
        let mut out = vec![0.0; x.len() / hidden * vocab];
        if self.budget.residency == Residency::Streamed {
            self.streamed_head(model, x, &mut out)?;
            return Ok(out);
        }
        let group = model.head_group();
        self.load(group, &model.groups)?;
        self.ops.linear(
            x,
            model.head_weight.matrix(self.dense.memory(group)),
            None,
            &mut out,
        );
        Ok(out)
    }
}

/// The rows of some tokens: of a pass at their place, of a batch from its start.
fn rows_of<'b>(
    buffer: &'b mut Buffer,
    values: Values,
    all: usize,
    tokens: &Range<usize>,
    width: usize,
) -> &'b mut [f32] {
    if values.of_pass() {
        &mut buffer.of(all * width)[tokens.start * width..tokens.end * width]
    } else {
        buffer.of(tokens.len() * width)
    }
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
    let inner = f.intermediate.max(f.moe_intermediate);
    Demand {
        overhead: PROGRAM_BYTES + scratch_bytes(model.any_coded()),
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
        expert: model
            .experts()
            .map(|e| room_for(e.segment))
            .max()
            .unwrap_or(0),
        experts: model.experts().count() as u64,
        experts_per_token: u64::from(f.experts_per_token),
    }
}

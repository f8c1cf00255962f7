//! A decoder on the CPU: weights and activations in ordinary memory, operations of [`Ops`].

use std::borrow::Cow;
use std::mem::take;
use std::ops::Range;
use std::time::{Duration, Instant};

use segpack_formats::io::{CancelToken, to_usize};
use segpack_manifests::families::{NormRounding, QkNorm};

use super::demand::demand;
use super::experts::ExpertForward;
use super::head::HeadStream;
use super::router::route;
use super::scratch::{Buffer, MlpScratch};
use super::sequences::Sequences;
use crate::error::RunError;
use crate::models::decoder::bind::{DecoderWeights, EndWeights, LinearWeights, SharedExpert};
use crate::models::decoder::executor::{
    Activation, AttentionTensors, Backend, DecoderExecutor, DecoderSetup, ExecutorStats,
    ExpertLayer, GroupTensor,
};
use crate::models::decoder::{
    Decoder, DecoderSpec, LinearInput, Logits, Observer, Rotary, Routing, RunSettings, SequenceId,
    Span,
};
use crate::models::talker::SpeechBackend;
use crate::ops::Ops;
use crate::tensor::{Compute, Heads, Linear};
use crate::weights::{Budget, Demand, Residency, SegmentGroup, WeightStore};

/// The CPU's memory for one decoder, and how it computes.
pub struct CpuExecutor<'a, O> {
    ops: O,
    spec: DecoderSpec,
    demand: Demand,
    budget: Budget,
    store: WeightStore<'a>,
    head: HeadStream<'a>,
    activations: [Buffer; Activation::ALL.len()],
    mlp: MlpScratch,
    stop: &'a CancelToken,
    /// Tokens of this forward pass, whose they are, and the rotary embedding of their positions.
    tokens: usize,
    spans: Vec<Span>,
    rotary: Rotary,
    sequences: Sequences,
    routing: Routing,
    /// Time in which nothing could be computed, because weights were still loading.
    waited: Duration,
}

/// The family's RMS norm of every row.
fn rms_norm(ops: &impl Ops, spec: &DecoderSpec, x: &mut [f32], weight: &[f32]) {
    match spec.options.norm_rounding {
        NormRounding::Once => ops.rms_norm_once(x, weight, spec.rms_norm_eps),
        NormRounding::Twice => ops.rms_norm(x, weight, spec.rms_norm_eps),
    }
}

impl<O: Ops> SpeechBackend for O {}

impl<O: Ops> Backend for O {
    type Executor<'a> = CpuExecutor<'a, O>;

    fn compute(&self) -> Compute {
        Ops::compute(self)
    }

    fn beside(self, settings: RunSettings, taken: u64) -> Result<(Self, RunSettings), RunError> {
        let settings = RunSettings {
            memory: settings.memory.map(|memory| memory.saturating_sub(taken)),
            ..settings
        };
        Ok((self, settings))
    }

    fn is_too_little(error: &RunError) -> bool {
        matches!(error, RunError::Memory { .. })
    }

    fn open<'a>(self, setup: &DecoderSetup<'a, '_>) -> Result<CpuExecutor<'a, O>, RunError> {
        let settings = setup.settings;
        let demand = demand(setup);
        let budget = demand
            .share(settings.memory, settings.expert_slots)
            .map_err(|minimum| RunError::Memory {
                memory: settings.memory.unwrap_or(0),
                minimum,
            })?;
        let store = WeightStore::new(
            setup.source,
            &setup.weights.groups,
            &budget,
            demand.network.expert,
            settings.check,
            setup.stop,
        )?;
        let (layers, width) = (setup.spec.layers, setup.spec.key_width());
        let mut sequences = Sequences::new(layers, width, settings.positions);
        if settings.sequences == 0 {
            sequences.open(settings.positions)?;
        }
        Ok(CpuExecutor {
            ops: self,
            spec: setup.spec.clone(),
            demand,
            budget,
            store,
            head: HeadStream::new(setup.source.cursor()?, settings.check, setup.stop),
            activations: Default::default(),
            mlp: MlpScratch::default(),
            stop: setup.stop,
            tokens: 0,
            spans: Vec::new(),
            rotary: Rotary::default(),
            sequences,
            routing: Routing::default(),
            waited: Duration::ZERO,
        })
    }
}

impl<O: Ops> Decoder<'_, O> {
    /// The weights that are in memory now, as stored bytes in no order: what its speed can be
    /// measured on.
    pub fn resident_memory(&self) -> Vec<&[u8]> {
        self.executor
            .store
            .blocks()
            .map(|block| &block[..])
            .collect()
    }
}

impl<O: Ops> CpuExecutor<'_, O> {
    /// Takes values out while others are borrowed; they are put back after it.
    fn take(&mut self, activation: Activation) -> Buffer {
        take(&mut self.activations[activation as usize])
    }

    fn put_back(&mut self, activation: Activation, buffer: Buffer) {
        self.activations[activation as usize] = buffer;
    }

    /// The values of a dense tensor.
    fn values(&self, of: GroupTensor) -> Vec<f32> {
        of.tensor.values(self.store.group(of.group))
    }
}

impl<'a, O: Ops> DecoderExecutor<'a> for CpuExecutor<'a, O> {
    fn budget(&self) -> Budget {
        self.budget
    }

    fn demand(&self) -> Demand {
        self.demand
    }

    fn stats(&self) -> ExecutorStats {
        ExecutorStats {
            load: self.store.load_stats(),
            cache: self.store.cache_stats(),
            bytes_read: self.head.bytes_read,
            bytes_copied: 0,
            waited: self.waited + self.head.waited,
            resident_uses: Vec::new(),
        }
    }

    fn preload(
        &mut self,
        weights: &DecoderWeights<'a>,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), RunError> {
        self.store
            .preload(&weights.groups, weights.expert_segments(), report)
    }

    fn load_group(&mut self, group: usize, groups: &[SegmentGroup<'a>]) -> Result<(), RunError> {
        let began = Instant::now();
        self.store.load_group(group, groups)?;
        self.waited += began.elapsed();
        Ok(())
    }

    fn positions(&self) -> usize {
        let positions = self.sequences.positions(SequenceId::WHOLE);
        positions.map_or(0, |[positions, _]| positions)
    }

    fn truncate(&mut self, positions: usize) {
        self.sequences.truncate(SequenceId::WHOLE, positions);
    }

    fn open_sequence(&mut self, positions: usize) -> Result<SequenceId, RunError> {
        self.sequences.open(positions)
    }

    fn close_sequence(&mut self, sequence: SequenceId) {
        self.sequences.close(sequence);
    }

    fn sequence_positions(&self, sequence: SequenceId) -> Option<[usize; 2]> {
        self.sequences.positions(sequence)
    }

    fn begin_batch(&mut self, spans: Vec<Span>, rotary: Rotary) -> Result<(), RunError> {
        self.tokens = spans.last().map_or(0, |span| span.tokens.end);
        self.spans = spans;
        self.rotary = rotary;
        Ok(())
    }

    fn begin(
        &mut self,
        tokens: usize,
        rotary: &dyn Fn(Range<usize>) -> Rotary,
    ) -> Result<(), RunError> {
        let first = self.positions();
        let whole = Span {
            sequence: SequenceId::WHOLE,
            tokens: 0..tokens,
        };
        self.begin_batch(vec![whole], rotary(first..first + tokens))
    }

    fn embed(&mut self, _: &[u32]) -> Result<bool, RunError> {
        Ok(false) // rows are read one at a time
    }

    fn set_residual(&mut self, values: Vec<f32>) -> Result<(), RunError> {
        self.put_back(Activation::Residual, Buffer::from(values));
        Ok(())
    }

    fn read(&mut self, activation: Activation) -> Result<Cow<'_, [f32]>, RunError> {
        let n = self.tokens * activation.width(&self.spec);
        Ok(Cow::Borrowed(self.activations[activation as usize].of(n)))
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn max_batch(&self) -> usize {
        to_usize(self.budget.batch).max(1)
    }

    fn norm(
        &mut self,
        from: Activation,
        to: Activation,
        weight: GroupTensor,
    ) -> Result<(), RunError> {
        let n = self.tokens * self.spec.hidden;
        let weight = self.values(weight);
        let mut out = self.take(to);
        let values = if from == to {
            out.of(n)
        } else {
            out.copy(self.activations[from as usize].of(n))
        };
        rms_norm(&self.ops, &self.spec, values, &weight);
        self.put_back(to, out);
        Ok(())
    }

    fn linears(
        &mut self,
        from: Activation,
        tokens: Range<usize>,
        group: usize,
        linears: &[(&LinearWeights, Activation)],
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let mut outs: Vec<Buffer> = linears.iter().map(|(_, to)| self.take(*to)).collect();
        let mut input = self.take(from);
        let memory = self.store.group(group);
        let biases: Vec<Option<Vec<f32>>> = linears
            .iter()
            .map(|(l, _)| l.bias.map(|b| b.values(memory)))
            .collect();
        let columns = linears.first().map_or(0, |(l, _)| l.weight.columns);
        let x = rows_of(&mut input, from, self.tokens, &tokens, columns);
        if let Some(of) = from.linear_input(linears.first().map(|(_, to)| *to)) {
            observer.linear_input(group, of, columns, x);
        }
        let mut all = Vec::new();
        for (((linear, to), out), bias) in linears.iter().zip(&mut outs).zip(&biases) {
            let weight = linear.weight.matrix(memory);
            let out = rows_of(out, *to, self.tokens, &tokens, weight.rows);
            all.push(Linear {
                x,
                weight,
                bias: bias.as_deref(),
                out,
            });
        }
        let is_router = linears.iter().any(|(_, to)| *to == Activation::Router);
        if is_router && self.spec.options.router.is_in_f32 {
            self.ops.linears_in_f32(&mut all);
        } else {
            self.ops.linears_until(&mut all, self.stop)?;
        }
        drop(all);
        self.put_back(from, input);
        for ((_, to), out) in linears.iter().zip(outs) {
            self.put_back(*to, out);
        }
        Ok(())
    }

    fn attention(
        &mut self,
        layer: usize,
        tokens: Range<usize>,
        of: AttentionTensors,
    ) -> Result<(), RunError> {
        let Heads {
            query,
            key_value,
            width,
        } = self.spec.heads;
        let n = tokens.len();
        let norms = of.qk_norms.map(|norms| norms.map(|norm| self.values(norm)));
        let sinks = of.sinks.map(|sinks| self.values(sinks));
        let layout = self.spec.rotary_layout();
        let angles = tokens.start * layout.turned / 2..tokens.end * layout.turned / 2;
        let (cos, sin) = (&self.rotary.cos[angles.clone()], &self.rotary.sin[angles]);
        let [q, k, v, attended] = self
            .activations
            .get_disjoint_mut(
                [
                    Activation::Q,
                    Activation::K,
                    Activation::V,
                    Activation::Attended,
                ]
                .map(|a| a as usize),
            )
            .map_err(|_| RunError::Internal("activations overlap"))?;
        // queries and keys: normed and rotated, in the family's order
        let (q, k) = (q.of(n * query * width), k.of(n * key_value * width));
        let is_normed_last = self.spec.options.qk_norm == QkNorm::PerHeadAfterRotary;
        for (number, values) in [&mut *q, &mut *k].into_iter().enumerate() {
            let norm = norms.as_ref().map(|norms| &norms[number]);
            if let Some(norm) = norm.filter(|_| !is_normed_last) {
                rms_norm(&self.ops, &self.spec, values, norm);
            }
            self.ops.rotate(values, cos, sin, layout);
            if let Some(norm) = norm.filter(|_| is_normed_last) {
                rms_norm(&self.ops, &self.spec, values, norm);
            }
        }
        // keys and values join the cache of their sequence, which its queries attend to
        let v = &*v.of(n * key_value * width);
        let out = attended.of(n * query * width);
        let heads = self.spec.heads;
        let how = self.spec.attending(layer, sinks.as_deref());
        for (sequence, rows) in parts_of(&self.spans, &tokens) {
            let kv = self.sequences.layer(sequence, layer)?;
            let new = rows.start * key_value * width..rows.end * key_value * width;
            kv.keys.extend_from_slice(&k[new.clone()]);
            kv.values.extend_from_slice(&v[new]);
            let own = rows.start * query * width..rows.end * query * width;
            let qkv = [&q[own.clone()], &kv.keys, &kv.values];
            self.ops
                .attend_until(qkv, heads, how, &mut out[own], self.stop)?;
        }
        Ok(())
    }

    fn silu_mul(&mut self) -> Result<(), RunError> {
        let mut gate = self.take(Activation::Gate);
        let up = self.activations[Activation::Up as usize].last();
        self.ops.silu_mul(gate.of(up.len()), up);
        self.put_back(Activation::Gate, gate);
        Ok(())
    }

    fn add_residual(&mut self) -> Result<(), RunError> {
        let n = self.tokens * self.spec.hidden;
        let mut residual = self.take(Activation::Residual);
        let added = self.activations[Activation::Added as usize].of(n);
        match self.spec.multipliers.residual {
            1.0 => self.ops.add(residual.of(n), added),
            factor => self.ops.add_scaled(residual.of(n), added, factor),
        }
        self.put_back(Activation::Residual, residual);
        Ok(())
    }

    fn route(&mut self, layer: ExpertLayer<'a, '_>) -> Result<(), RunError> {
        let n = self.tokens * self.spec.experts;
        let bias = layer.choice_bias.map(|bias| GroupTensor {
            group: layer.number,
            tensor: bias,
        });
        let bias = bias.map_or_else(Vec::new, |bias| self.values(bias));
        let logits = self.activations[Activation::Router as usize].of(n);
        self.routing = route(&self.ops, &self.spec, layer.number, logits, &bias);
        Ok(())
    }

    fn routing(&mut self) -> Result<Cow<'_, Routing>, RunError> {
        Ok(Cow::Borrowed(&self.routing))
    }

    fn experts(
        &mut self,
        layer: ExpertLayer<'a, '_>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<(u32, bool)>, RunError> {
        let n = self.tokens * self.spec.hidden;
        let batch = self.max_batch();
        let (mut normed, mut added) = (self.take(Activation::Normed), self.take(Activation::Added));
        let forward = ExpertForward {
            ops: &self.ops,
            layer: u32::try_from(layer.number).unwrap_or(u32::MAX),
            experts: layer.experts,
            store: self.store.experts(),
            x: normed.of(n),
            hidden: self.spec.hidden,
            intermediate: self.spec.moe_intermediate,
            activation: self.spec.options.experts.activation,
            max_batch: batch,
            scratch: &mut self.mlp,
            waited: &mut self.waited,
            out: added.zeros(n),
            observer,
        };
        let uses = forward.run(&self.routing, self.spec.experts_per_token);
        self.put_back(Activation::Normed, normed);
        self.put_back(Activation::Added, added);
        uses
    }

    fn shared_expert(
        &mut self,
        group: usize,
        shared: &SharedExpert,
        observer: &mut dyn Observer,
    ) -> Result<[Vec<f32>; 2], RunError> {
        let (tokens, hidden) = (self.tokens, self.spec.hidden);
        let inner = shared.gate.weight.rows;
        let mut normed = self.take(Activation::Normed);
        let mut added = self.take(Activation::Added);
        let x = &*normed.of(tokens * hidden);
        let mut router = shared.router.map_or_else(Vec::new, |_| vec![0.0; tokens]);
        let mut out = vec![0.0; tokens * hidden];
        let (mut gate, mut up) = (vec![0.0; tokens * inner], vec![0.0; tokens * inner]);
        let memory = self.store.group(group);
        let mut into = vec![(&shared.gate, &mut gate), (&shared.up, &mut up)];
        into.extend(shared.router.as_ref().map(|linear| (linear, &mut router)));
        let linears = into.into_iter().map(|(linear, out)| Linear {
            x,
            weight: linear.weight.matrix(memory),
            bias: None,
            out,
        });
        let mut linears: Vec<Linear<'_>> = linears.collect();
        self.ops.linears_until(&mut linears, self.stop)?;
        drop(linears);
        self.ops.silu_mul(&mut gate, &up);
        observer.linear_input(group, LinearInput::SharedExpertDown, inner, &gate);
        let mut down = [Linear {
            x: &gate,
            weight: shared.down.weight.matrix(memory),
            bias: None,
            out: &mut out,
        }];
        self.ops.linears_until(&mut down, self.stop)?;
        let to = added.of(tokens * hidden);
        match &router[..] {
            [] => self.ops.add(to, &out),
            gates => {
                let compute = Ops::compute(&self.ops);
                let rows = to.chunks_exact_mut(hidden).zip(out.chunks_exact(hidden));
                for ((to, row), gate) in rows.zip(gates) {
                    let factor = compute.round(1.0 / (1.0 + (-gate).exp()));
                    self.ops.add_scaled(to, row, factor);
                }
            }
        }
        self.put_back(Activation::Normed, normed);
        self.put_back(Activation::Added, added);
        Ok([router, out])
    }

    fn logits(&mut self, weights: &DecoderWeights<'a>, want: Logits) -> Result<Vec<f32>, RunError> {
        self.logits_by(weights, weights.head(), want)
    }

    fn logits_of_rows(
        &mut self,
        weights: &DecoderWeights<'a>,
        rows: &[usize],
    ) -> Result<Vec<f32>, RunError> {
        let hidden = self.spec.hidden;
        let residual = self.read(Activation::Residual)?;
        let of_row = |row: &usize| residual[row * hidden..(row + 1) * hidden].to_vec();
        let x: Vec<f32> = rows.iter().flat_map(of_row).collect();
        self.logits_from(weights, weights.head(), &x)
    }

    fn logits_of(
        &mut self,
        weights: &DecoderWeights<'a>,
        head: usize,
    ) -> Result<Vec<f32>, RunError> {
        let head = weights.heads.get(head);
        let head = head.ok_or(RunError::Internal("no such head"))?;
        self.logits_by(weights, *head, Logits::Last)
    }
}

impl<'a, O: Ops> CpuExecutor<'a, O> {
    fn logits_by(
        &mut self,
        weights: &DecoderWeights<'a>,
        head: EndWeights<'a>,
        want: Logits,
    ) -> Result<Vec<f32>, RunError> {
        let hidden = self.spec.hidden;
        let rows = want.of(self.tokens);
        // other rows may be wanted after these
        let mut residual = self.take(Activation::Residual);
        let all = residual.of(self.tokens * hidden);
        let x = &all[rows.start * hidden..rows.end * hidden];
        let logits = self.logits_from(weights, head, x);
        self.put_back(Activation::Residual, residual);
        logits
    }

    /// Logits of these states, `[tokens, hidden]`, after the final norm.
    fn logits_from(
        &mut self,
        weights: &DecoderWeights<'a>,
        head: EndWeights<'a>,
        x: &[f32],
    ) -> Result<Vec<f32>, RunError> {
        let mut logits = self.undivided_logits(weights, head, x)?;
        let divisor = self.spec.multipliers.logits_divisor;
        if divisor != 1.0 {
            let compute = Ops::compute(&self.ops);
            let divided = |x: &mut f32| *x = compute.round(*x / divisor);
            logits.iter_mut().for_each(divided);
        }
        Ok(logits)
    }

    fn undivided_logits(
        &mut self,
        weights: &DecoderWeights<'a>,
        head: EndWeights<'a>,
        x: &[f32],
    ) -> Result<Vec<f32>, RunError> {
        let (vocab, hidden) = (self.spec.vocab, self.spec.hidden);
        let mut out = vec![0.0; x.len() / hidden * vocab];
        if self.budget.residency == Residency::Streamed {
            self.head.logits(&self.ops, &self.spec, head, x, &mut out)?;
            return Ok(out);
        }
        let group = weights.head_group();
        self.load_group(group, &weights.groups)?;
        let head = head.matrix.matrix(self.store.group(group));
        let mut all = [Linear {
            x,
            weight: head,
            bias: None,
            out: &mut out,
        }];
        self.ops.linears_until(&mut all, self.stop)?;
        Ok(out)
    }
}

/// Whose some tokens of a forward pass are: each sequence with its rows, counted from the first of
/// these tokens.
fn parts_of(
    spans: &[Span],
    tokens: &Range<usize>,
) -> impl Iterator<Item = (SequenceId, Range<usize>)> {
    spans.iter().filter_map(move |span| {
        let first = span.tokens.start.max(tokens.start);
        let end = span.tokens.end.min(tokens.end);
        (first < end).then(|| (span.sequence, first - tokens.start..end - tokens.start))
    })
}

/// The rows of some tokens: among those of all tokens, or of a batch from its start.
fn rows_of<'b>(
    buffer: &'b mut Buffer,
    activation: Activation,
    all: usize,
    tokens: &Range<usize>,
    width: usize,
) -> &'b mut [f32] {
    if activation.is_of_all_tokens() {
        &mut buffer.of(all * width)[tokens.start * width..tokens.end * width]
    } else {
        buffer.of(tokens.len() * width)
    }
}

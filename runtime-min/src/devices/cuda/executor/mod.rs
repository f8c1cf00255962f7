//! The model on a GPU: weights, activations, keys and values in its memory; experts in slots there
//! where not all fit.
//!
//! Where everything fits, the host only queues kernels: routers and experts meet on the device, and
//! after two steps of one token the next ones are one graph each. Otherwise the host reads which
//! experts a layer wants, and those that are not there come from pinned host memory or from the
//! pack while the others are computed.

mod experts;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use segpack_formats::io::CancelToken;
use segpack_formats::numeric::{FloatDtype, bf16};
use segpack_manifests::families::TextFacts;

use super::dense::Dense;
use super::driver::{CudaError, DeviceInfo, Gpu, Graph, HostMemory, Memory, Place, Stream};
use super::launch::{
    Cache, Choice, Launch, Layer, Linear as Operands, Norm, Turns as HeadTurns, Values as View,
    Weights, activation_bytes,
};
use super::layout::{Buffers, LEAST_HOST_SLOTS, LOGIT_ROWS, Sizes, demand, host_slots};
use super::shapes::{check, check_shapes};
use super::slots::{HostSlot, Slots, entry};
use crate::error::RunError;
use crate::generate::ArgMax;
use crate::models::decoder::Logits;
use crate::models::decoder::bind::{Expert, Group, Linear, Mlp, TextModel, Weight};
use crate::models::decoder::executor::{
    At, Backend, Device, DeviceStats, ExpertLayer, Setup, Turns, Values,
};
use crate::models::decoder::index;
use crate::observer::Routing;
use crate::tensor::Compute;
use crate::weights::{Budget, Demand, Residency};
use crate::weights::{Load, Loader, begins_at, room_for};

/// What a step that chooses leaves of the next token: its id, and its logit.
const CHOSEN_BYTES: usize = 8;
/// Of the memory that is free, the share that is left to the driver where no budget is given.
const LEFT_SHARE: u64 = 16;

/// A GPU to run on.
#[derive(Debug, Clone)]
pub struct Cuda {
    gpu: Arc<Gpu>,
    compute: Compute,
    memory: Option<u64>,
}

impl Cuda {
    /// Opens a GPU by its number. `memory` is the most bytes of it to use; all that is free where
    /// it is none.
    ///
    /// # Errors
    /// `NoDriver`, `NoDevice`, `TooOld`, or what the driver says.
    pub fn open(number: u32, compute: Compute, memory: Option<u64>) -> Result<Self, CudaError> {
        Ok(Self {
            gpu: Gpu::open(number)?,
            compute,
            memory,
        })
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        self.gpu.info()
    }
}

impl Backend for Cuda {
    type Device<'a> = CudaModel<'a>;

    fn compute(&self) -> Compute {
        self.compute
    }

    fn open<'a>(self, setup: &Setup<'a, '_>) -> Result<CudaModel<'a>, RunError> {
        CudaModel::new(self, setup)
    }
}

/// A model's place on a GPU.
pub struct CudaModel<'a> {
    gpu: Arc<Gpu>,
    compute: Compute,
    facts: TextFacts,
    sizes: Sizes,
    demand: Demand,
    budget: Budget,
    loader: Loader<'a>,
    stop: &'a CancelToken,
    dense: Dense,
    /// Where segments of groups pass through.
    staging: Option<HostMemory>,
    embedding: Option<Embedding<'a>>,
    experts: Slots,
    /// Keys, then values, of one layer after the other.
    cache: Memory,
    layers: Vec<LayerState>,
    buffers: Buffers,
    /// Cached positions.
    positions: usize,
    /// Tokens of this pass, and of its batch.
    tokens: usize,
    batch_tokens: usize,
    /// This pass is one token, of which nobody sees more than the logits.
    is_plain: bool,
    /// `Added` is still to be added to `X`.
    pending: bool,
    /// X is in its second place.
    is_other_x: bool,
    /// A norm of X to Normed, and the router's product of that, which wait for a launch that takes
    /// them along.
    norm: Option<At>,
    router: Option<(Linear, usize)>,
    graph: Step,
    /// Where tokens that the device chose come to.
    chosen: Option<HostMemory>,
    bytes_copied: u64,
    waited: Duration,
}

/// The embedding, where there is room for it.
struct Embedding<'a> {
    segment: &'a segpack_manifests::documents::SegmentEntry,
    /// Within the memory of the segment.
    table: Weight,
    memory: Option<Memory>,
}

/// What decides whether a step of one token is a graph.
enum Step {
    /// Not all weights are on the device.
    Never,
    /// So many steps were queued one by one.
    Warm(u32),
    /// This one is recorded.
    Recording,
    Ready(Graph),
}

/// One layer's part of the device.
struct LayerState {
    /// Its table lists all its experts, which are all there.
    is_complete: bool,
    has_experts: bool,
    /// Of the experts.
    dtype: FloatDtype,
}

impl<'a> CudaModel<'a> {
    fn new(cuda: Cuda, setup: &Setup<'a, '_>) -> Result<Self, RunError> {
        let Cuda {
            gpu,
            compute,
            memory,
        } = cuda;
        let (model, facts) = (setup.model, setup.facts);
        check(model, facts)?;
        let sizes = Sizes::of(facts, setup, compute);
        check_shapes(model, &sizes)?;
        let demand = demand(model, &sizes, facts);
        let free = gpu.free_memory()?;
        let memory = memory.unwrap_or(free - free / LEFT_SHARE);
        let refuse = |minimum| RunError::DeviceMemory { memory, minimum };
        let budget = demand
            .share(Some(memory), setup.settings.expert_slots)
            .map_err(refuse)?;
        let host = host_slots(setup, &demand)?;
        let batch = index(budget.batch).max(1);
        let mut left =
            memory.saturating_sub(demand.overhead + demand.kv + budget.batch * demand.per_token);
        let all = budget.residency == Residency::Resident && budget.slots == demand.experts;
        left = left.saturating_sub(demand.dense + budget.slots * demand.expert);
        let segment = setup.source.segment_of(model.embedding)?;
        let table = Weight::new(model.embedding, begins_at(segment))?;
        let embedding = (all && left >= room_for(segment)).then_some(Embedding {
            segment,
            table,
            memory: None,
        });
        let buffers = Buffers::new(&gpu, &sizes, batch)?;
        let layer = |l: &crate::models::decoder::bind::Layer<'_>| {
            let dtype = match &l.mlp {
                Mlp::Experts { experts, .. } => {
                    experts.first().map_or(FloatDtype::BF16, |e| e.gate.dtype)
                }
                Mlp::Dense { .. } => FloatDtype::BF16,
            };
            LayerState {
                is_complete: false,
                has_experts: matches!(l.mlp, Mlp::Experts { .. }),
                dtype,
            }
        };
        Ok(Self {
            sizes,
            layers: model.layers.iter().map(layer).collect(),
            cache: gpu.alloc(sizes.cache_bytes() * sizes.layers, "keys and values")?,
            dense: Dense::new(&gpu, &model.groups, budget.residency)?,
            experts: Slots::new(&gpu, &demand, &budget, host, all)?,
            loader: Loader::new(setup.source, setup.settings.check)?,
            stop: setup.stop,
            staging: None,
            graph: if embedding.is_some() {
                Step::Warm(0)
            } else {
                Step::Never
            },
            chosen: None,
            embedding,
            buffers,
            positions: 0,
            tokens: 0,
            batch_tokens: 0,
            is_plain: false,
            pending: false,
            is_other_x: false,
            norm: None,
            router: None,
            bytes_copied: 0,
            waited: Duration::ZERO,
            facts: facts.clone(),
            gpu,
            compute,
            demand,
            budget,
        })
    }

    fn launch(&self) -> Launch<'_> {
        Launch {
            gpu: &self.gpu,
            compute: self.compute,
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "applied in f32, as torch does"
    )]
    fn eps(&self) -> f32 {
        self.facts.rms_norm_eps as f32
    }

    /// X, in its first or its other place.
    fn place_of_x(&self, is_other: bool) -> View {
        if is_other {
            self.buffers.other_x
        } else {
            self.buffers.values[Values::X as usize]
        }
    }

    /// The rows of some tokens: of a pass at their place, of a batch from its start.
    fn rows(&self, values: Values, tokens: &Range<usize>) -> View {
        let width = self.sizes.width(values);
        let all = match values {
            Values::X => self.place_of_x(self.is_other_x),
            _ => self.buffers.values[values as usize],
        };
        if values.of_pass() {
            all.part(tokens.start * width..tokens.end * width)
        } else {
            all.part(0..tokens.len() * width)
        }
    }

    fn all_rows(&self, values: Values) -> View {
        self.rows(values, &(0..self.tokens))
    }

    /// A weight of a group that is loaded.
    fn weights(&self, group: usize, weight: Weight) -> Result<Weights, RunError> {
        let Some((place, bytes)) = self.dense.find(group) else {
            return Err(RunError::Internal("a group of weights is not on the GPU"));
        };
        assert!(
            weight.at + weight.length <= bytes,
            "{weight:?} of {bytes} bytes"
        );
        Ok(weight_at(place, weight))
    }

    /// Loads a segment to some place of the device, through host memory.
    fn load_segment(
        &mut self,
        segment: &'a segpack_manifests::documents::SegmentEntry,
        to: Place,
    ) -> Result<(), RunError> {
        let room = index(room_for(segment));
        if self.staging.as_ref().is_none_or(|s| s.len() < room) {
            self.staging = None; // the old one first
            self.staging = Some(self.gpu.alloc_host(room)?);
        }
        let Some(staging) = &mut self.staging else {
            return Ok(());
        };
        self.loader.load(
            &mut [Load {
                segment,
                to: &mut staging[..],
            }],
            self.stop,
        )?;
        self.gpu.upload_now(to, &staging[..room])?;
        self.bytes_copied += segment.raw_length;
        Ok(())
    }

    fn load_embedding(&mut self) -> Result<(), RunError> {
        let Some(Embedding {
            segment,
            memory: None,
            ..
        }) = self.embedding
        else {
            return Ok(());
        };
        let memory = self.gpu.alloc(index(room_for(segment)), "the embedding")?;
        self.load_segment(segment, memory.place())?;
        if let Some(embedding) = &mut self.embedding {
            embedding.memory = Some(memory);
        }
        Ok(())
    }

    fn load_group(&mut self, number: usize, groups: &[Group<'a>]) -> Result<(), RunError> {
        if self.dense.find(number).is_some() {
            return Ok(());
        }
        if self.budget.residency == Residency::Streamed {
            self.gpu.wait(Stream::Work)?; // what still reads the last one
        }
        let mut to = self.dense.begin(number);
        for segment in &groups[number].segments {
            self.load_segment(segment, to)?;
            to = to.byte(index(room_for(segment)));
        }
        self.dense.end(number);
        if self.dense.is_complete() {
            self.staging = None; // it has done its work
        }
        Ok(())
    }

    /// Adds what `add` left to the next norm.
    fn settle(&mut self) -> Result<(), RunError> {
        if std::mem::take(&mut self.pending) {
            self.launch()
                .add(self.all_rows(Values::X), self.all_rows(Values::Added))?;
        }
        Ok(())
    }

    /// A norm as the kernels know it; with a `sum`, what is still to be added goes there.
    fn norm_of(&self, weight: At, normed: View, sum: Option<View>) -> Result<Norm, RunError> {
        let added = sum.map(|sum| (self.all_rows(Values::Added), sum));
        let weight = self.weights(weight.group, weight.weight)?;
        Ok(Norm {
            weight,
            eps: self.eps(),
            added,
            normed,
        })
    }

    /// The norm that waits, for a launch that reads X. After that launch X is where
    /// [`normed`](Self::normed) says.
    fn waiting_norm(&self) -> Result<Option<Norm>, RunError> {
        let Some(weight) = self.norm else {
            return Ok(None);
        };
        let values = self.tokens * self.sizes.hidden;
        let sum = self
            .pending
            .then(|| self.place_of_x(!self.is_other_x).part(0..values));
        self.norm_of(weight, self.all_rows(Values::Normed), sum)
            .map(Some)
    }

    /// The norm that waited is queued, with what was to be added.
    fn normed(&mut self) {
        if self.norm.take().is_some() {
            self.is_other_x ^= std::mem::take(&mut self.pending);
        }
    }

    /// Queues what waits on its own.
    fn queue_waiting(&mut self) -> Result<(), RunError> {
        if let Some(weight) = self.norm.take() {
            self.queue_norm(Values::X, Values::Normed, weight)?;
        }
        if let Some((linear, group)) = self.router.take() {
            let all = 0..self.tokens;
            self.queue_products(
                Values::Normed,
                None,
                &all,
                group,
                &[(&linear, Values::Router)],
            )?;
        }
        Ok(())
    }

    fn queue_norm(&mut self, from: Values, to: Values, weight: At) -> Result<(), RunError> {
        let x = self.all_rows(from);
        let adds = from == Values::X && self.pending;
        let norm = self.norm_of(weight, self.all_rows(to), adds.then_some(x))?;
        self.launch().norm(x, norm)?;
        self.pending &= !adds;
        Ok(())
    }

    fn queue_products(
        &self,
        from: Values,
        norm: Option<&Norm>,
        tokens: &Range<usize>,
        group: usize,
        products: &[(&Linear, Values)],
    ) -> Result<(), RunError> {
        let x = self.rows(from, tokens);
        let operands = products
            .iter()
            .map(|(linear, to)| self.operands(linear, group, self.rows(*to, tokens)));
        let operands = operands.collect::<Result<Vec<Operands>, RunError>>()?;
        for same in operands.chunk_by(|a, b| a.0.dtype == b.0.dtype) {
            self.launch().products(x, norm, same)?;
        }
        Ok(())
    }

    fn operands(&self, linear: &Linear, group: usize, to: View) -> Result<Operands, RunError> {
        let bias = linear.bias.map(|b| self.weights(group, b)).transpose()?;
        Ok((self.weights(group, linear.weight)?, bias, to))
    }

    fn is_few(&self) -> bool {
        Launch::is_few(self.tokens, self.sizes.hidden)
    }

    /// Values, widened where they are bf16.
    fn download(&self, from: View) -> Result<Vec<f32>, RunError> {
        let mut values = vec![0.0; from.len];
        if from.width == size_of::<f32>() {
            self.gpu
                .download(super::bytes_mut(&mut values), from.place)?;
        } else {
            let mut narrow = vec![0; from.len * from.width];
            self.gpu.download(&mut narrow, from.place)?;
            FloatDtype::BF16.widen(&narrow, &mut values);
        }
        Ok(values)
    }

    fn download_ids(&self, tokens: usize) -> Result<Vec<u32>, RunError> {
        let bits = self.download(View::f32(self.buffers.choice.ids, tokens * self.sizes.best))?;
        Ok(bits.into_iter().map(f32::to_bits).collect())
    }

    /// The logits of some tokens, on the device.
    fn queue_logits(&self, model: &TextModel<'a>, tokens: Range<usize>) -> Result<View, RunError> {
        let head = self.weights(model.head_group(), model.head_weight)?;
        let logits = self.buffers.logits.part(0..tokens.len() * head.rows);
        let x = self.rows(Values::X, &tokens);
        let operands: [Operands; 1] = [(head, None, logits)];
        self.launch().products(x, None, &operands)?;
        Ok(logits)
    }

    /// Waits for logits, and brings the counts of uses along.
    fn fetch(&mut self, logits: View) -> Result<Vec<f32>, RunError> {
        let uses = self.buffers.uses;
        self.gpu.download(&mut self.buffers.host_uses[..], uses)?;
        self.download(logits)
    }

    /// Whether this pass can be a graph: one token, and nothing that the host has to decide or
    /// load.
    fn is_step(&self) -> bool {
        self.is_plain
            && self.embedding.as_ref().is_some_and(|e| e.memory.is_some())
            && self.dense.is_complete()
            && self.layers.iter().all(|l| l.is_complete || !l.has_experts)
    }

    /// Copies this pass' ids and the positions of its batches.
    fn send_positions(&mut self) -> Result<(), RunError> {
        let (batch, first) = (self.batch(), self.positions);
        let starts = (0..self.tokens)
            .step_by(batch)
            .map(|t| u32::try_from(first + t).unwrap_or(u32::MAX));
        let host = &mut self.buffers.host_positions;
        let mut length = 0;
        for (to, start) in host.as_chunks_mut::<4>().0.iter_mut().zip(starts) {
            *to = start.to_le_bytes();
            length += 4;
        }
        // SAFETY: written again only in the next pass; every pass ends with a wait
        unsafe {
            self.gpu
                .upload(self.buffers.positions, &host[..length], Stream::Work)?;
        };
        self.positions += self.tokens;
        Ok(())
    }

    fn send_ids(&mut self, ids: &[u32]) -> Result<(), RunError> {
        let host = &mut self.buffers.host_ids;
        for (to, id) in host.as_chunks_mut::<4>().0.iter_mut().zip(ids) {
            *to = id.to_le_bytes();
        }
        // SAFETY: as in `send_positions`
        unsafe {
            self.gpu
                .upload(self.buffers.ids, &host[..ids.len() * 4], Stream::Work)?;
        };
        Ok(())
    }

    /// After a first step that was queued the usual way, records the next one.
    fn record_step(&mut self) -> Result<(), RunError> {
        self.graph = match std::mem::replace(&mut self.graph, Step::Never) {
            Step::Warm(steps) if self.is_step() && steps > 0 => {
                self.gpu.begin_recording()?;
                Step::Recording
            }
            Step::Warm(steps) if self.is_step() => Step::Warm(steps + 1),
            other => other,
        };
        Ok(())
    }
}

impl Drop for CudaModel<'_> {
    fn drop(&mut self) {
        if let Step::Recording = self.graph {
            drop(self.gpu.end_recording());
        }
        for stream in [Stream::Work, Stream::Copies] {
            // what failed was told when it happened
            let _ = self.gpu.wait(stream);
        }
    }
}

/// As bf16, rounded to the nearest, ties to even.
fn narrow(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| bf16::encode(*x)).collect()
}

fn weight_at(start: Place, weight: Weight) -> Weights {
    Weights {
        place: start.byte(weight.at),
        dtype: weight.dtype,
        rows: weight.rows,
        columns: weight.columns,
    }
}

impl<'a> Device<'a> for CudaModel<'a> {
    fn budget(&self) -> Budget {
        self.budget
    }

    fn demand(&self) -> Demand {
        self.demand
    }

    fn stats(&self) -> DeviceStats {
        let counts = self
            .buffers
            .host_uses
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| u32::from_le_bytes(*b));
        let counts: Vec<u32> = counts.collect();
        let per_layer = self.sizes.experts.max(1);
        let mut cache = self.experts.cache.stats();
        cache.hits += counts.iter().map(|n| u64::from(*n)).sum::<u64>();
        DeviceStats {
            load: self.loader.stats(),
            cache,
            bytes_read: 0,
            bytes_copied: self.bytes_copied,
            waited: self.waited,
            resident_uses: counts.chunks(per_layer).map(<[u32]>::to_vec).collect(),
        }
    }

    fn preload_bytes(&self, model: &TextModel<'a>) -> u64 {
        model.bytes_within(&self.budget)
            + self.embedding.as_ref().map_or(0, |e| e.segment.raw_length)
    }

    fn preload(
        &mut self,
        model: &TextModel<'a>,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(), RunError> {
        let waited = self.waited;
        self.load_embedding()?;
        tell(self.embedding.as_ref().map_or(0, |e| e.segment.raw_length));
        if self.budget.residency == Residency::Resident {
            for (number, group) in model.groups.iter().enumerate() {
                self.load_group(number, &model.groups)?;
                tell(group.bytes());
            }
        }
        for (number, layer) in model.layers.iter().enumerate() {
            let Mlp::Experts { experts, .. } = &layer.mlp else {
                continue;
            };
            let layer = u32::try_from(number).unwrap_or(u32::MAX);
            let absent = |e: &u32| self.experts.cache.get((layer, *e)).is_none();
            let absent: Vec<u32> = (0..u32::try_from(experts.len()).unwrap_or(0))
                .filter(absent)
                .collect();
            let most = self
                .experts
                .host
                .slots()
                .min(index(LEAST_HOST_SLOTS))
                .max(1);
            for some in absent.chunks(most) {
                let some = &some[..some.len().min(self.experts.cache.free())];
                self.load_experts(layer, experts, some, some)?;
                tell(
                    some.iter()
                        .map(|e| experts[*e as usize].segment.raw_length)
                        .sum(),
                );
            }
            self.complete_table(ExpertLayer { number, experts })?;
        }
        self.waited = waited; // no pass had to wait for this
        Ok(self.gpu.wait(Stream::Copies)?)
    }

    fn load(&mut self, group: usize, groups: &[Group<'a>]) -> Result<(), RunError> {
        let began = Instant::now();
        self.load_group(group, groups)?;
        self.waited += began.elapsed();
        Ok(())
    }

    fn positions(&self) -> usize {
        self.positions
    }

    fn truncate(&mut self, positions: usize) {
        self.positions = positions; // every pass sends its own
    }

    fn step(
        &mut self,
        ids: &[u32],
        want: Logits,
        is_seen: bool,
    ) -> Result<Option<Vec<f32>>, RunError> {
        self.is_plain = ids.len() == 1 && want == Logits::Last && !is_seen;
        if let Step::Recording = self.graph {
            // a pass failed while it was recorded
            self.graph = Step::Never;
            drop(self.gpu.end_recording());
        }
        if !self.is_plain || !matches!(self.graph, Step::Ready(_)) {
            return Ok(None);
        }
        self.tokens = 1;
        self.send_positions()?;
        self.send_ids(ids)?;
        if let Step::Ready(graph) = &self.graph {
            graph.launch()?;
        }
        let logits = self.buffers.logits.part(0..self.sizes.vocab);
        self.fetch(logits).map(Some)
    }

    fn greedy(&mut self, first: u32, next: &mut [ArgMax]) -> Result<bool, RunError> {
        if next.is_empty() || !matches!(self.graph, Step::Ready(_)) {
            return Ok(false);
        }
        let room = next.len() * CHOSEN_BYTES;
        if self.chosen.as_ref().is_none_or(|c| c.len() < room) {
            self.chosen = Some(self.gpu.alloc_host(room)?);
        }
        self.tokens = 1;
        self.send_positions()?;
        self.send_ids(&[first])?;
        let (Step::Ready(graph), Some(chosen)) = (&self.graph, &mut self.chosen) else {
            return Ok(false);
        };
        for to in chosen.chunks_exact_mut(CHOSEN_BYTES).take(next.len()) {
            graph.launch()?;
            // SAFETY: waited for in the next download; where that is not reached, `chosen` waits
            // before it is freed
            unsafe { self.gpu.download_later(to, self.buffers.ids)? };
        }
        self.gpu
            .download(&mut self.buffers.host_uses[..], self.buffers.uses)?;
        self.positions += next.len() - 1; // and the one that was sent
        for (to, from) in next.iter_mut().zip(chosen.as_chunks::<CHOSEN_BYTES>().0) {
            let [a, b, c, d, logit @ ..] = *from;
            *to = ArgMax {
                id: u32::from_le_bytes([a, b, c, d]),
                logit: f32::from_le_bytes(logit),
            };
        }
        Ok(true)
    }

    fn begin(
        &mut self,
        tokens: usize,
        turns: &dyn Fn(Range<usize>) -> Turns,
    ) -> Result<(), RunError> {
        self.tokens = tokens;
        self.pending = false;
        self.is_other_x = false;
        (self.norm, self.router) = (None, None);
        if !self.buffers.turns_there {
            let all = turns(0..self.buffers.turns[0].len / self.sizes.half.max(1));
            for (view, values) in self.buffers.turns.iter().zip([all.0, all.1]) {
                self.gpu.upload_now(view.place, super::bytes(&values))?;
            }
            self.buffers.turns_there = true;
        }
        self.send_positions()
    }

    fn embed(&mut self, ids: &[u32]) -> Result<bool, RunError> {
        let Some(embedding) = &self.embedding else {
            return Ok(false);
        };
        if embedding.memory.is_none() {
            let began = Instant::now();
            self.load_embedding()?;
            self.waited += began.elapsed();
        }
        self.send_ids(ids)?;
        self.record_step()?;
        let Some(Embedding {
            table,
            memory: Some(memory),
            ..
        }) = &self.embedding
        else {
            return Ok(false);
        };
        self.launch().embed(
            weight_at(memory.place(), *table),
            self.buffers.ids,
            self.all_rows(Values::X),
        )?;
        Ok(true)
    }

    fn put(&mut self, x: Vec<f32>) -> Result<(), RunError> {
        let to = self.all_rows(Values::X).place;
        let bytes = match self.compute {
            Compute::F32 => Cow::Borrowed(super::bytes(&x)),
            Compute::Bf16 => Cow::Owned(narrow(&x)),
        };
        Ok(self.gpu.upload_now(to, &bytes)?)
    }

    fn read(&mut self, values: Values) -> Result<Cow<'_, [f32]>, RunError> {
        match values {
            Values::X => self.settle()?,
            Values::Normed | Values::Router => self.queue_waiting()?,
            _ => {}
        }
        Ok(Cow::Owned(self.download(self.all_rows(values))?))
    }

    fn is_far(&self) -> bool {
        true
    }

    fn batch(&self) -> usize {
        index(self.budget.batch).max(1)
    }

    fn norm(&mut self, from: Values, to: Values, weight: At) -> Result<(), RunError> {
        self.queue_waiting()?;
        if (from, to) == (Values::X, Values::Normed) && self.is_few() {
            self.norm = Some(weight);
            return Ok(());
        }
        self.queue_norm(from, to, weight)
    }

    fn products(
        &mut self,
        from: Values,
        tokens: Range<usize>,
        group: usize,
        products: &[(&Linear, Values)],
    ) -> Result<(), RunError> {
        self.batch_tokens = tokens.len();
        if let [(linear, Values::Router)] = products
            && from == Values::Normed
            && self.is_few()
        {
            self.router = Some((**linear, group));
            return Ok(());
        }
        let dtype = |p: &(&Linear, Values)| p.0.weight.dtype;
        let is_one =
            tokens.len() == self.tokens && products.iter().all(|p| dtype(p) == dtype(&products[0]));
        if from != Values::Normed || self.norm.is_none() || !is_one {
            self.queue_waiting()?;
            return self.queue_products(from, None, &tokens, group, products);
        }
        let norm = self.waiting_norm()?;
        self.queue_products(Values::X, norm.as_ref(), &tokens, group, products)?;
        self.normed();
        Ok(())
    }

    fn attend(
        &mut self,
        layer: usize,
        tokens: Range<usize>,
        norms: [At; 2],
    ) -> Result<(), RunError> {
        let [q_norm, k_norm] = norms;
        let [cos, sin] = self.buffers.turns;
        let turns = HeadTurns {
            q_norm: self.weights(q_norm.group, q_norm.weight)?,
            k_norm: self.weights(k_norm.group, k_norm.weight)?,
            cos,
            sin,
            eps: self.eps(),
        };
        let bytes = self.cache.len() / self.layers.len();
        let half = bytes / 2; // of keys
        let view = |at| {
            let place = self.cache.place().byte(layer * bytes + at);
            View::activations(self.compute, place, half / activation_bytes(self.compute))
        };
        let cache = Cache {
            keys: view(0),
            values: view(half),
            position: self.buffers.positions.byte(tokens.start / self.batch() * 4),
        };
        let [q, k, v, out] = [Values::Q, Values::K, Values::V, Values::Attended]
            .map(|values| self.rows(values, &tokens));
        let parts = (self.buffers.parts, self.buffers.partial);
        Ok(self
            .launch()
            .attend([q, k, v], self.sizes.heads, turns, cache, parts, out)?)
    }

    fn silu_mul(&mut self) -> Result<(), RunError> {
        let rows = 0..self.batch_tokens;
        Ok(self
            .launch()
            .silu_mul(self.rows(Values::Gate, &rows), self.rows(Values::Up, &rows))?)
    }

    fn add(&mut self) -> Result<(), RunError> {
        self.settle()?;
        self.pending = true;
        Ok(())
    }

    fn route(&mut self, layer: ExpertLayer<'a, '_>) -> Result<(), RunError> {
        let of = self.layer(layer.number, Place::NULL);
        let choice = Choice {
            uses: self.uses(layer.number),
            ..self.buffers.choice
        };
        let (logits, normalise) = (self.all_rows(Values::Router), self.facts.norm_topk_prob);
        if let Some((linear, group)) = self.router {
            let norm = self.waiting_norm()?;
            let x = self.all_rows(if norm.is_some() {
                Values::X
            } else {
                Values::Normed
            });
            let operands = self.operands(&linear, group, logits)?;
            let choice = (choice, self.buffers.arrived);
            self.launch()
                .router(x, norm.as_ref(), operands, of, normalise, choice)?;
            self.normed();
            self.router = None;
        } else {
            self.launch().route(logits, of, normalise, choice)?;
        }
        Ok(self.launch().sort(self.tokens, of, choice)?)
    }

    fn routing(&mut self) -> Result<Cow<'_, Routing>, RunError> {
        let choice = self.buffers.choice;
        let view = |place, width: usize| View::f32(place, self.tokens * width);
        Ok(Cow::Owned(Routing {
            logits: self.download(self.all_rows(Values::Router))?,
            probabilities: self.download(view(choice.probabilities, self.sizes.experts))?,
            ids: self.download_ids(self.tokens)?,
            weights: self.download(view(choice.weights, self.sizes.best))?,
        }))
    }

    fn experts(&mut self, layer: ExpertLayer<'a, '_>) -> Result<Vec<(u32, bool)>, RunError> {
        if !self.layers[layer.number].is_complete {
            return self.experts_on_demand(layer);
        }
        let table = self.table_of(layer.number);
        let (b, of) = (&self.buffers, self.layer(layer.number, table));
        let [x, added] = [Values::Normed, Values::Added].map(|values| self.all_rows(values));
        let between = b.inner.part(0..self.tokens * of.best * of.inner);
        if !self.launch().all_experts(x, of, b.choice, between, added)? {
            self.queue_experts(layer.number, table)?;
            self.combine(layer.number)?;
        }
        Ok(Vec::new())
    }

    fn logits(&mut self, model: &TextModel<'a>, want: Logits) -> Result<Vec<f32>, RunError> {
        self.load(model.head_group(), &model.groups)?;
        let first = if want == Logits::Last {
            self.tokens - 1
        } else {
            0
        };
        let mut all = Vec::new();
        for from in (first..self.tokens).step_by(LOGIT_ROWS) {
            let logits = self.queue_logits(model, from..(from + LOGIT_ROWS).min(self.tokens))?;
            if self.is_step() {
                // also in the step before the recording: no kernel may be loaded during it
                let b = &self.buffers;
                // a step has one id: what follows it is free for its logit
                self.launch()
                    .argmax(logits, b.greatest, [b.ids, b.positions, b.ids.byte(4)])?;
            }
            if let Step::Recording = self.graph {
                self.graph = Step::Never; // unless what follows succeeds
                let graph = self.gpu.end_recording()?;
                graph.launch()?;
                self.graph = Step::Ready(graph);
            }
            all.extend(self.fetch(logits)?);
        }
        Ok(all)
    }
}

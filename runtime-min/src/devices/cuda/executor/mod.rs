//! A decoder on a GPU: weights, activations, keys and values in its memory; experts in slots there
//! where not all fit.
//!
//! Where everything fits, the host only queues kernels: routers and experts meet on the device, and
//! after two steps of one token the next ones are one graph each. Otherwise the host reads which
//! experts a layer wants, and those that are not on the device come from pinned host memory or from
//! the pack while the others are computed.
//!
//! * `loading`: dense weights and the embedding.
//! * `deferred`: sums, norms and routers that wait for a launch that takes them along.
//! * `steps`: what is copied for a forward pass, and steps that are recorded.
//! * `row_steps`: recorded steps whose inputs are rows, not tokens.
//! * `frames`: frames of a talker and its predictor as one step.
//! * `experts`: the experts of a layer.
//! * `operations`: the decoder's operations.

mod deferred;
mod experts;
mod frames;
mod loading;
mod operations;
mod row_steps;
mod steps;

use segpack_formats::io::to_usize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use segpack_formats::io::CancelToken;
use segpack_formats::numeric::FloatDtype;

use self::frames::{CodeEmbedding, Frames, code_embeddings};
use self::loading::Embedding;
use self::row_steps::RowSteps;
use self::steps::GraphState;
use super::dense::DeviceGroups;
use super::driver::{CudaError, DeviceInfo, DeviceMemory, DevicePtr, Gpu, HostMemory, Stream};
use super::launch::{Launch, MatrixView, View};
use super::layout::{Buffers, Sizes, demand, host_slots};
use super::shapes::check;
use super::slots::Slots;
use crate::error::RunError;
use crate::models::decoder::bind::{LayerWeights, LinearWeights, MlpWeights};
use crate::models::decoder::executor::{Activation, Backend, DecoderSetup, GroupTensor};
use crate::models::decoder::{DecoderSpec, Ends, RunSettings};
use crate::tensor::Compute;
use crate::weights::{Budget, Demand, Loader, PlacedTensor, Residency, buffer_len};

/// Of the memory that is free, the share that is left to the driver where no budget is given.
const DRIVER_SHARE: u64 = 16;

/// A GPU to run on.
#[derive(Debug, Clone)]
pub struct Cuda {
    gpu: Arc<Gpu>,
    compute: Compute,
    memory: Option<u64>,
}

impl Cuda {
    /// Opens a GPU by its number. `memory` is the maximum number of bytes of it to use; `None`: all
    /// that is free.
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

    /// Bytes of its memory to use.
    fn budget(&self) -> Result<u64, CudaError> {
        let free = self.gpu.free_memory()?;
        Ok(self.memory.unwrap_or(free - free / DRIVER_SHARE))
    }
}

impl Backend for Cuda {
    type Executor<'a> = CudaExecutor<'a>;

    fn compute(&self) -> Compute {
        self.compute
    }

    fn beside(self, settings: RunSettings, taken: u64) -> Result<(Self, RunSettings), RunError> {
        let cuda = Self {
            memory: Some(self.budget()?.saturating_sub(taken)),
            ..self
        };
        Ok((cuda, settings))
    }

    fn is_too_little(error: &RunError) -> bool {
        matches!(error, RunError::DeviceMemory { .. })
    }

    fn open<'a>(self, setup: &DecoderSetup<'a, '_>) -> Result<CudaExecutor<'a>, RunError> {
        CudaExecutor::new(self, setup)
    }
}

/// A decoder's memory on a GPU, and the work that is queued there.
pub struct CudaExecutor<'a> {
    gpu: Arc<Gpu>,
    compute: Compute,
    spec: DecoderSpec,
    sizes: Sizes,
    demand: Demand,
    budget: Budget,
    loader: Loader<'a>,
    stop: &'a CancelToken,
    dense: DeviceGroups,
    /// Where segments of groups pass through.
    staging: Option<HostMemory>,
    embedding: Option<Embedding<'a>>,
    code_embeddings: Vec<CodeEmbedding<'a>>,
    /// Bytes of its memory that nothing is reserved for.
    left: u64,
    experts: Slots,
    /// Keys, then values, of one layer after the other.
    kv_cache: DeviceMemory,
    layers: Vec<LayerState>,
    buffers: Buffers,
    /// Cached positions.
    positions: usize,
    /// Tokens of this forward pass, and of its batch.
    tokens: usize,
    batch_tokens: usize,
    /// This forward pass is one token, of which only the logits are wanted.
    is_plain: bool,
    /// `Added` is still to be added to `Residual`.
    is_sum_deferred: bool,
    /// `Residual` is in its second buffer.
    is_residual_swapped: bool,
    /// A norm of Residual to Normed, and the router's linear layer of that, which wait for a launch
    /// that takes them along.
    deferred_norm: Option<GroupTensor>,
    deferred_router: Option<(LinearWeights, usize)>,
    graph: GraphState,
    row_steps: RowSteps,
    /// Of a talker, once they can be made as a whole.
    frames: Option<Frames>,
    /// What tokens that the device chose are copied to.
    chosen: Option<HostMemory>,
    bytes_copied: u64,
    waited: Duration,
}

/// One layer's part of the device.
struct LayerState {
    /// Its table lists all its experts, which are all on the device.
    is_complete: bool,
    has_experts: bool,
    /// Of the experts.
    dtype: FloatDtype,
}

impl LayerState {
    /// Of a layer of which nothing is loaded.
    fn of(layer: &LayerWeights<'_>) -> Self {
        let first = layer.mlp.experts().first();
        Self {
            is_complete: false,
            has_experts: matches!(layer.mlp, MlpWeights::Experts { .. }),
            dtype: first.map_or(FloatDtype::BF16, |expert| expert.gate.weight.dtype),
        }
    }
}

impl<'a> CudaExecutor<'a> {
    fn new(cuda: Cuda, setup: &DecoderSetup<'a, '_>) -> Result<Self, RunError> {
        let memory = cuda.budget()?;
        let Cuda { gpu, compute, .. } = cuda;
        let (weights, spec) = (setup.weights, setup.spec);
        check(weights, spec)?;
        let sizes = Sizes::of(spec, &setup.settings, compute);
        // what there is of memory, and how it is shared out
        let demand = demand(weights, &sizes, spec);
        let budget = demand
            .share(Some(memory), setup.settings.expert_slots)
            .map_err(|minimum| RunError::DeviceMemory { memory, minimum })?;
        let host = host_slots(setup, &demand)?;
        let has_all =
            budget.residency == Residency::Resident && budget.slots == demand.network.experts;
        // the embedding of text, where all weights leave enough memory
        let left = left(memory, &demand, &budget);
        let segment = setup.source.segment_of(weights.embedding().entry)?;
        let embedding = (spec.ends == Ends::Tokens && has_all && left >= buffer_len(segment))
            .then(|| Embedding::new(segment, weights.embedding().matrix));
        let buffers = Buffers::new(&gpu, &sizes, to_usize(budget.batch).max(1))?;
        Ok(Self {
            sizes,
            layers: weights.layers.iter().map(LayerState::of).collect(),
            kv_cache: gpu.alloc(sizes.cache_bytes() * sizes.layers, "keys and values")?,
            dense: DeviceGroups::new(&gpu, &weights.groups, budget.residency)?,
            experts: Slots::new(&gpu, &demand.network, &budget, host, has_all)?,
            loader: Loader::new(setup.source, setup.settings.check)?,
            stop: setup.stop,
            staging: None,
            graph: GraphState::new(embedding.is_some()),
            row_steps: RowSteps::default(),
            frames: None,
            code_embeddings: code_embeddings(setup)?,
            left,
            chosen: None,
            embedding,
            buffers,
            positions: 0,
            tokens: 0,
            batch_tokens: 0,
            is_plain: false,
            is_sum_deferred: false,
            is_residual_swapped: false,
            deferred_norm: None,
            deferred_router: None,
            bytes_copied: 0,
            waited: Duration::ZERO,
            spec: spec.clone(),
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

    /// One of the two buffers of Residual.
    fn residual_in(&self, is_swapped: bool) -> View {
        if is_swapped {
            self.buffers.other_residual
        } else {
            self.buffers.activations[Activation::Residual as usize]
        }
    }

    /// The rows of some tokens: among those of all tokens, or of a batch from its start.
    fn rows(&self, activation: Activation, tokens: &Range<usize>) -> View {
        let width = activation.width(&self.spec);
        let all = if activation == Activation::Residual {
            self.residual_in(self.is_residual_swapped)
        } else {
            self.buffers.activations[activation as usize]
        };
        if activation.is_of_all_tokens() {
            all.part(tokens.start * width..tokens.end * width)
        } else {
            all.part(0..tokens.len() * width)
        }
    }

    fn all_rows(&self, activation: Activation) -> View {
        self.rows(activation, &(0..self.tokens))
    }

    /// A tensor of a group that is loaded.
    fn matrix(&self, group: usize, tensor: PlacedTensor) -> Result<MatrixView, RunError> {
        let Some((start, bytes)) = self.dense.find(group) else {
            return Err(RunError::Internal("a group of weights is not on the GPU"));
        };
        assert!(
            tensor.offset + tensor.length <= bytes,
            "{tensor:?} of {bytes} bytes"
        );
        Ok(matrix_at(start, tensor))
    }

    /// Whether the tokens of this forward pass are so few that kernels go row by row.
    fn is_few(&self) -> bool {
        Launch::is_few(self.tokens, self.sizes.hidden)
    }
}

impl Drop for CudaExecutor<'_> {
    fn drop(&mut self) {
        if matches!(self.graph, GraphState::Recording) {
            drop(self.gpu.end_recording());
        }
        self.drop_recording();
        for stream in [Stream::Work, Stream::Copies] {
            // what failed was reported when it happened
            let _ = self.gpu.wait(stream);
        }
    }
}

/// Bytes that a budget leaves of the device's memory.
fn left(memory: u64, demand: &Demand, budget: &Budget) -> u64 {
    let network = &demand.network;
    let fixed = demand.overhead + network.state + budget.batch * network.per_token;
    memory
        .saturating_sub(fixed)
        .saturating_sub(network.dense + budget.slots * network.expert)
}

/// A tensor of what begins here.
fn matrix_at(start: DevicePtr, tensor: PlacedTensor) -> MatrixView {
    MatrixView {
        ptr: start.offset(tensor.offset),
        dtype: tensor.dtype,
        rows: tensor.rows,
        columns: tensor.columns,
    }
}

//! What a decoder needs of the device that it runs on. The forward pass is written once, in these
//! operations; devices implement them.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

use segpack_formats::io::CancelToken;
use segpack_manifests::PackReader;

use super::batch::{SequenceId, Span};
use super::bind::{DecoderWeights, ExpertWeights, LinearWeights, SharedExpert};
use super::observer::{LinearInput, Observer, Routing};
use super::spec::{DecoderSpec, Rotary};
use super::{Logits, RunSettings};
use crate::error::RunError;
use crate::generate::ArgMax;
use crate::tensor::Compute;
use crate::weights::{Budget, CacheStats, Demand, LoadStats, PlacedTensor, SegmentGroup};

/// Somewhere a decoder can run: the operations of a CPU, or a GPU.
pub trait Backend: Sized {
    /// What runs one decoder.
    type Executor<'a>: DecoderExecutor<'a>;

    /// The precision of activations.
    fn compute(&self) -> Compute;

    /// This backend and the settings of a decoder beside others, which hold so many bytes of the
    /// memory that its weights are in. Where no budget is given, what is free now becomes it.
    ///
    /// # Errors
    /// What the driver says.
    fn beside(self, settings: RunSettings, taken: u64) -> Result<(Self, RunSettings), RunError>;

    /// Whether an error says that the memory is too small which [`beside`](Self::beside) is about.
    fn is_too_little(error: &RunError) -> bool;

    /// Reserves memory for a decoder. Loads nothing yet.
    ///
    /// # Errors
    /// `Memory` and `DeviceMemory` say how much would do.
    fn open<'a>(self, setup: &DecoderSetup<'a, '_>) -> Result<Self::Executor<'a>, RunError>;
}

/// What is to run.
#[derive(Debug, Clone, Copy)]
pub struct DecoderSetup<'a, 's> {
    pub(crate) source: &'a PackReader<'a>,
    pub(crate) weights: &'s DecoderWeights<'a>,
    pub(crate) spec: &'s DecoderSpec,
    pub(crate) settings: RunSettings,
    pub(crate) stop: &'a CancelToken,
}

/// Activations of a forward pass. Some have a row for each of its tokens, the others one for each
/// token of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `[tokens, hidden]`, the residual stream.
    Residual,
    /// `[tokens, hidden]`, after a norm.
    Normed,
    /// `[tokens, hidden]`, what attention or the MLP adds to the residual stream.
    Added,
    /// `[tokens, experts]`, the router's logits.
    Router,
    /// `[batch, heads × width]`.
    Q,
    /// `[batch, kv_heads × width]`.
    K,
    /// `[batch, kv_heads × width]`.
    V,
    /// `[batch, heads × width]`.
    Attended,
    /// `[batch, intermediate]`.
    Gate,
    /// `[batch, intermediate]`.
    Up,
}

impl Activation {
    /// All of them, in order.
    pub(crate) const ALL: [Self; 10] = [
        Self::Residual,
        Self::Normed,
        Self::Added,
        Self::Router,
        Self::Q,
        Self::K,
        Self::V,
        Self::Attended,
        Self::Gate,
        Self::Up,
    ];

    /// Whether there is a row for each token of the forward pass.
    pub(crate) fn is_of_all_tokens(self) -> bool {
        match self {
            Self::Residual | Self::Normed | Self::Added | Self::Router => true,
            Self::Q | Self::K | Self::V | Self::Attended | Self::Gate | Self::Up => false,
        }
    }

    /// Which linear layers these values are the input of, where the first of them writes to `to`.
    pub(crate) fn linear_input(self, to: Option<Self>) -> Option<LinearInput> {
        match (self, to) {
            (Self::Normed, Some(Self::Q)) => Some(LinearInput::Attention),
            (Self::Normed, Some(Self::Gate | Self::Router)) => Some(LinearInput::Mlp),
            (Self::Attended, _) => Some(LinearInput::AttentionOutput),
            (Self::Gate, _) => Some(LinearInput::MlpDown),
            _ => None,
        }
    }

    /// Values of a row.
    pub(crate) fn width(self, spec: &DecoderSpec) -> usize {
        match self {
            Self::Residual | Self::Normed | Self::Added => spec.hidden,
            Self::Router => spec.experts,
            Self::Q | Self::Attended => spec.query_width(),
            Self::K | Self::V => spec.key_width(),
            Self::Gate | Self::Up => spec.intermediate,
        }
    }
}

/// A dense tensor, and the number of the group that it is loaded with.
#[derive(Debug, Clone, Copy)]
pub struct GroupTensor {
    pub(crate) group: usize,
    pub(crate) tensor: PlacedTensor,
}

/// What attention needs beside its projections, as the family has it.
#[derive(Debug, Clone, Copy)]
pub struct AttentionTensors {
    /// Norms of queries and of keys.
    pub(crate) qk_norms: Option<[GroupTensor; 2]>,
    /// A score of each head that no value belongs to.
    pub(crate) sinks: Option<GroupTensor>,
}

/// The experts of a layer.
#[derive(Debug, Clone, Copy)]
pub struct ExpertLayer<'a, 'p> {
    pub(crate) number: usize,
    pub(crate) experts: &'p [ExpertWeights<'a>],
    /// `[experts]`, added to the scores for the choice alone; in the layer's group.
    pub(crate) choice_bias: Option<PlacedTensor>,
}

/// What an executor did so far.
#[derive(Debug, Clone, Default)]
pub struct ExecutorStats {
    /// Segments that were loaded.
    pub(crate) load: LoadStats,
    /// The expert cache.
    pub(crate) cache: CacheStats,
    /// Bytes read besides.
    pub(crate) bytes_read: u64,
    /// Bytes copied to the device.
    pub(crate) bytes_copied: u64,
    /// Time in which nothing could be computed, because weights were still loading.
    pub(crate) waited: Duration,
    /// Of every layer how many forward passes used each expert, where the device counts them
    /// because all are in its memory.
    pub(crate) resident_uses: Vec<Vec<u32>>,
}

/// The state of the last token after the final norm, `[hidden]`, and its logits, `[vocab]`.
pub(crate) type StateAndLogits = (Vec<f32>, Vec<f32>);

/// Runs one decoder: its memory, and the operations on it. One forward pass at a time.
pub trait DecoderExecutor<'a> {
    /// How memory is shared out.
    fn budget(&self) -> Budget;

    /// What this decoder and its settings need of memory.
    fn demand(&self) -> Demand;

    /// Bytes of the budget that decoders beside it leave to it.
    fn held(&self) -> u64 {
        self.demand().network.held(self.budget().residency)
    }

    /// What was done so far.
    fn stats(&self) -> ExecutorStats;

    /// Bytes that [`preload`](Self::preload) loads.
    fn preload_bytes(&self, weights: &DecoderWeights<'a>) -> u64 {
        weights.bytes_within(&self.budget())
    }

    /// Loads the dense weights and as many experts as fit; reports the bytes that came since the
    /// last report.
    fn preload(
        &mut self,
        weights: &DecoderWeights<'a>,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), RunError>;

    /// Loads a group of dense weights if it is not in memory.
    fn load_group(&mut self, group: usize, groups: &[SegmentGroup<'a>]) -> Result<(), RunError>;

    /// Positions in the cache of keys and values.
    fn positions(&self) -> usize;

    /// Forgets the positions from this one on.
    fn truncate(&mut self, positions: usize);

    /// Opens a sequence with room for so many positions, of a decoder that runs several.
    ///
    /// # Errors
    /// `TooLong` where fewer are free; `Internal` on a device that runs one sequence alone.
    fn open_sequence(&mut self, _positions: usize) -> Result<SequenceId, RunError> {
        Err(RunError::Internal("several sequences on this device"))
    }

    /// Forgets a sequence; its positions are free again.
    fn close_sequence(&mut self, _: SequenceId) {}

    /// Positions of a sequence, and those that it has room for; `None` where it is not open.
    fn sequence_positions(&self, _: SequenceId) -> Option<[usize; 2]> {
        None
    }

    /// Begins a forward pass of tokens of several sequences, with the rotary embedding of their
    /// positions.
    ///
    /// # Errors
    /// `Internal` on a device that runs one sequence alone.
    fn begin_batch(&mut self, _: Vec<Span>, _: Rotary) -> Result<(), RunError> {
        Err(RunError::Internal("several sequences on this device"))
    }

    /// Logits of some tokens by the first head, `[rows, vocab]`, from Residual after the final norm.
    ///
    /// # Errors
    /// Damage of the pack; `Internal` on a device that runs one sequence alone.
    fn logits_of_rows(
        &mut self,
        _: &DecoderWeights<'a>,
        _rows: &[usize],
    ) -> Result<Vec<f32>, RunError> {
        Err(RunError::Internal("several sequences on this device"))
    }

    /// The whole forward pass as one recorded step, if it can be that; its logits. `is_observed`
    /// where intermediate results are wanted.
    fn forward_recorded(
        &mut self,
        _ids: &[u32],
        _want: Logits,
        _is_observed: bool,
    ) -> Result<Option<Vec<f32>>, RunError> {
        Ok(None)
    }

    /// A whole forward pass of rows that take the place of embeddings as one recorded step, if it can
    /// be that: the state of the last one after the final norm, and its logits by this head.
    /// `is_observed` where intermediate results are wanted, or positions do not follow each other.
    fn rows_recorded(
        &mut self,
        _rows: &[f32],
        _head: usize,
        _is_observed: bool,
    ) -> Result<Option<StateAndLogits>, RunError> {
        Ok(None)
    }

    /// Runs `first`, then each token that follows but the last, and fills `next` with those that
    /// follow, all chosen by the device alone. False, and nothing is run, where it cannot do that
    /// now.
    fn greedy(&mut self, _first: u32, _next: &mut [ArgMax]) -> Result<bool, RunError> {
        Ok(false)
    }

    /// Positions are others than those that a rotary embedding was calculated for.
    fn forget_rotary(&mut self) {}

    /// Begins a forward pass of so many tokens; `rotary` calculates the rotary embedding of
    /// positions.
    fn begin(
        &mut self,
        tokens: usize,
        rotary: &dyn Fn(Range<usize>) -> Rotary,
    ) -> Result<(), RunError>;

    /// Residual = rows of the embedding, if the device has them; the ids are below its rows.
    fn embed(&mut self, ids: &[u32]) -> Result<bool, RunError>;

    /// Residual = these values.
    fn set_residual(&mut self, values: Vec<f32>) -> Result<(), RunError>;

    /// Residual += rows of some tokens, `[tokens, hidden]`; rounded.
    fn add_rows(
        &mut self,
        tokens: &[usize],
        rows: &[f32],
        compute: Compute,
    ) -> Result<(), RunError> {
        let mut residual = self.read(Activation::Residual)?.into_owned();
        let hidden = rows.len() / tokens.len().max(1);
        for (token, row) in tokens.iter().zip(rows.chunks_exact(hidden.max(1))) {
            let to = &mut residual[token * hidden..(token + 1) * hidden];
            to.iter_mut()
                .zip(row)
                .for_each(|(to, x)| *to = compute.round(*to + x));
        }
        self.set_residual(residual)
    }

    /// Some values of the forward pass.
    fn read(&mut self, activation: Activation) -> Result<Cow<'_, [f32]>, RunError>;

    /// Whether [`read`](Self::read) copies from a device, so that it is better left out where
    /// nothing observes.
    fn is_remote(&self) -> bool;

    /// Maximum number of tokens of a batch.
    fn max_batch(&self) -> usize;

    /// `to` = RMS norm of `from`, both of all tokens.
    fn norm(
        &mut self,
        from: Activation,
        to: Activation,
        weight: GroupTensor,
    ) -> Result<(), RunError>;

    /// Linear layers of the same input, for some tokens of the forward pass. The CPU shows the
    /// observer the input.
    fn linears(
        &mut self,
        from: Activation,
        tokens: Range<usize>,
        group: usize,
        linears: &[(&LinearWeights, Activation)],
        observer: &mut dyn Observer,
    ) -> Result<(), RunError>;

    /// Norms Q and K and applies the rotary embedding to them, puts K and V into the layer's cache,
    /// and attends: Attended.
    fn attention(
        &mut self,
        layer: usize,
        tokens: Range<usize>,
        of: AttentionTensors,
    ) -> Result<(), RunError>;

    /// Gate = silu(Gate) · Up.
    fn silu_mul(&mut self) -> Result<(), RunError>;

    /// Residual += Added, times the family's multiplier.
    fn add_residual(&mut self) -> Result<(), RunError>;

    /// Chooses every token's experts by the logits in Router.
    fn route(&mut self, layer: ExpertLayer<'a, '_>) -> Result<(), RunError>;

    /// The choice.
    fn routing(&mut self) -> Result<Cow<'_, Routing>, RunError>;

    /// Added = what the chosen experts make of Normed. Returns the experts that were visited, and
    /// whether each was in memory. The CPU shows the observer what their down projections get.
    fn experts(
        &mut self,
        layer: ExpertLayer<'a, '_>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<(u32, bool)>, RunError>;

    /// Added += sigmoid(router · Normed) · what the shared expert makes of Normed, for all tokens; 1
    /// in the place of the sigmoid where there is no router. Returns what the sigmoid is of,
    /// `[tokens]` or nothing, and what the expert makes, `[tokens, hidden]`. The CPU shows the
    /// observer what its down projection gets.
    fn shared_expert(
        &mut self,
        _: usize,
        _: &SharedExpert,
        _: &mut dyn Observer,
    ) -> Result<[Vec<f32>; 2], RunError> {
        Err(RunError::Internal("a shared expert on this device"))
    }

    /// Logits of the last token or of all by the first head, from Residual after the final norm.
    fn logits(&mut self, weights: &DecoderWeights<'a>, want: Logits) -> Result<Vec<f32>, RunError>;

    /// Logits of the last token by one of several heads, from Residual after the final norm.
    fn logits_of(&mut self, _: &DecoderWeights<'a>, _head: usize) -> Result<Vec<f32>, RunError> {
        Err(RunError::Internal("several heads on this device"))
    }
}

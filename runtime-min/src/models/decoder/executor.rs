//! What a model needs of the place where it runs. The model is written once, in these operations.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

use segpack_formats::io::CancelToken;
use segpack_manifests::families::TextFacts;

use super::bind::{Expert, Group, Linear, TextModel, Weight};
use super::{Logits, RunSettings};
use crate::error::RunError;
use crate::generate::ArgMax;
use crate::observer::Routing;
use crate::tensor::Compute;
use crate::weights::LoadStats;
use crate::weights::{Budget, CacheStats, Demand};
use segpack_manifests::PackReader;

/// Somewhere a model can run: operations on the CPU, or a GPU.
pub trait Backend: Sized {
    /// Where it runs.
    type Device<'a>: Device<'a>;

    /// The precision of activations.
    fn compute(&self) -> Compute;

    /// Makes room for a model. Loads nothing yet.
    ///
    /// # Errors
    /// `Memory` says how much would do.
    fn open<'a>(self, setup: &Setup<'a, '_>) -> Result<Self::Device<'a>, RunError>;
}

/// What is to run.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a, 's> {
    pub(crate) source: &'a PackReader<'a>,
    pub(crate) model: &'s TextModel<'a>,
    pub(crate) facts: &'s TextFacts,
    pub(crate) settings: RunSettings,
    pub(crate) stop: &'a CancelToken,
}

/// Activations of a pass. Those of the whole pass have a row for each of its tokens, the others for
/// each of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// `[tokens, hidden]`, the residual stream.
    X,
    /// `[tokens, hidden]`, after a norm.
    Normed,
    /// `[tokens, hidden]`, what a layer adds.
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

impl Values {
    /// How many there are.
    pub(crate) const COUNT: usize = 10;

    /// Whether there is a row for each token of the pass.
    pub(crate) fn of_pass(self) -> bool {
        matches!(self, Self::X | Self::Normed | Self::Added | Self::Router)
    }
}

/// A weight, and the group that it is loaded with.
#[derive(Debug, Clone, Copy)]
pub struct At {
    pub(crate) group: usize,
    pub(crate) weight: Weight,
}

/// A layer with experts.
#[derive(Debug, Clone, Copy)]
pub struct ExpertLayer<'a, 'p> {
    pub(crate) number: usize,
    pub(crate) experts: &'p [Expert<'a>],
}

/// Cosines and sines of some positions, `[positions, head_dim / 2]` each.
pub(crate) type Turns = (Vec<f32>, Vec<f32>);

/// What a device did so far.
#[derive(Debug, Clone, Default)]
pub struct DeviceStats {
    /// Segments that were loaded.
    pub(crate) load: LoadStats,
    /// The expert cache.
    pub(crate) cache: CacheStats,
    /// Bytes read besides.
    pub(crate) bytes_read: u64,
    /// Bytes copied to the device.
    pub(crate) bytes_copied: u64,
    /// Time in which nothing could be computed, because weights were not there yet.
    pub(crate) waited: Duration,
    /// Of every layer how many passes used each expert, where the device counts them because all
    /// are there.
    pub(crate) resident_uses: Vec<Vec<u32>>,
}

/// Where a model runs: its memory, and the operations on it. One pass at a time.
pub trait Device<'a> {
    /// How memory is shared out.
    fn budget(&self) -> Budget;

    /// What this model and its settings need of memory.
    fn demand(&self) -> Demand;

    /// What was done so far.
    fn stats(&self) -> DeviceStats;

    /// Bytes that [`preload`](Self::preload) loads.
    fn preload_bytes(&self, model: &TextModel<'a>) -> u64 {
        model.bytes_within(&self.budget())
    }

    /// Loads the dense weights and as many experts as there is room for; tells how many bytes more
    /// are there.
    fn preload(&mut self, model: &TextModel<'a>, tell: &mut dyn FnMut(u64))
    -> Result<(), RunError>;

    /// Loads a group of dense weights if it is not there.
    fn load(&mut self, group: usize, groups: &[Group<'a>]) -> Result<(), RunError>;

    /// Positions in the cache of keys and values.
    fn positions(&self) -> usize;

    /// Forgets the positions from this one on.
    fn truncate(&mut self, positions: usize);

    /// The whole pass as one step that was recorded, if it can be that; its logits. `is_seen` where
    /// somebody looks.
    fn step(
        &mut self,
        _ids: &[u32],
        _want: Logits,
        _is_seen: bool,
    ) -> Result<Option<Vec<f32>>, RunError> {
        Ok(None)
    }

    /// Runs `first`, then each token that follows but the last, and fills `next` with those that
    /// follow, all chosen by the device alone. False, and nothing is run, where it cannot do that
    /// now.
    fn greedy(&mut self, _first: u32, _next: &mut [ArgMax]) -> Result<bool, RunError> {
        Ok(false)
    }

    /// Begins a pass of so many tokens; `turns` calculates the rotations of positions.
    fn begin(
        &mut self,
        tokens: usize,
        turns: &dyn Fn(Range<usize>) -> Turns,
    ) -> Result<(), RunError>;

    /// X = rows of the embedding, if the device has them; the ids are below its rows.
    fn embed(&mut self, ids: &[u32]) -> Result<bool, RunError>;

    /// X = these values.
    fn put(&mut self, x: Vec<f32>) -> Result<(), RunError>;

    /// Some values of the pass, for those who look.
    fn read(&mut self, values: Values) -> Result<Cow<'_, [f32]>, RunError>;

    /// Whether reading costs something, so that it is better left out where nobody looks.
    fn is_far(&self) -> bool;

    /// Most tokens of a batch.
    fn batch(&self) -> usize;

    /// `to` = RMS norm of `from`, both of the whole pass.
    fn norm(&mut self, from: Values, to: Values, weight: At) -> Result<(), RunError>;

    /// Products of the same input for some tokens of the pass.
    fn products(
        &mut self,
        from: Values,
        tokens: Range<usize>,
        group: usize,
        products: &[(&Linear, Values)],
    ) -> Result<(), RunError>;

    /// Norms and turns Q and K, puts K and V into the layer's cache, and attends: Attended.
    fn attend(
        &mut self,
        layer: usize,
        tokens: Range<usize>,
        norms: [At; 2],
    ) -> Result<(), RunError>;

    /// Gate = silu(Gate) · Up.
    fn silu_mul(&mut self) -> Result<(), RunError>;

    /// X += Added.
    fn add(&mut self) -> Result<(), RunError>;

    /// Chooses every token's experts by the logits in Router.
    fn route(&mut self, layer: ExpertLayer<'a, '_>) -> Result<(), RunError>;

    /// The choice.
    fn routing(&mut self) -> Result<Cow<'_, Routing>, RunError>;

    /// Added = what the chosen experts make of Normed. Returns the experts that were visited, and
    /// whether each was in memory.
    fn experts(&mut self, layer: ExpertLayer<'a, '_>) -> Result<Vec<(u32, bool)>, RunError>;

    /// Logits of the last token or of all, from X after the final norm.
    fn logits(&mut self, model: &TextModel<'a>, want: Logits) -> Result<Vec<f32>, RunError>;
}

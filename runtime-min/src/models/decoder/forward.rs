//! The forward pass.
//!
//! The equations are those of transformers 5.23, `modeling_qwen3_omni_moe.py`
//! (`Qwen3OmniMoeThinkerTextModel`); for text its interleaved multimodal rope is plain rope.

mod several;

use std::borrow::Cow;
use std::ops::Range;
use std::time::{Duration, Instant};

use segpack_formats::io::{CancelToken, to_usize};
use segpack_manifests::families::TextFacts;
use segpack_manifests::names::Component;
use segpack_manifests::{PackCursor, PackModel, PackReader};

use super::bind::{DecoderWeights, MlpWeights};
use super::executor::{
    Activation, AttentionTensors, Backend, DecoderExecutor, DecoderSetup, ExpertLayer, GroupTensor,
};
use super::media::{MediaInputs, Places};
use super::observer::{Observer, Unobserved};
use super::restricted::ExpertChoice;
use super::spec::{DecoderSpec, text_decoder};
use super::stats::{LayerUses, Logits, RunSettings, RunStats};
use crate::error::MediaError;
use crate::error::RunError;
use crate::generate::ArgMax;
use crate::tensor::Compute;
use crate::weights::{Budget, Demand, PlacedTensor, Residency, read_rows, row_bytes};

/// Takes the logits of a token, `[vocab]`, given its number from 0.
pub type LogitsVisitor<'v, E> = dyn FnMut(usize, &[f32]) -> Result<(), E> + 'v;

/// A decoder that runs from a pack.
pub struct Decoder<'a, B: Backend> {
    facts: TextFacts,
    spec: DecoderSpec,
    compute: Compute,
    cursor: PackCursor<'a>,
    settings: RunSettings,
    pub(crate) weights: DecoderWeights<'a>,
    pub(crate) executor: B::Executor<'a>,
    places: Places,
    stats: RunStats,
    stop: &'a CancelToken,
}

/// The numbers of a decoder.
pub(crate) struct DecoderModel {
    pub(crate) facts: TextFacts,
    pub(crate) spec: DecoderSpec,
    /// Of each layer whether it has experts.
    pub(crate) has_experts: Vec<bool>,
}

/// The frequencies that go by time, height and width, of a model that takes media. A model whose
/// encoders cannot be run takes text alone, and that is said when it is given media.
fn mrope_section(source: &PackReader<'_>) -> Result<Option<[usize; 3]>, RunError> {
    let media = PackModel::read(source.pack())?.media().ok().flatten();
    Ok(media.map(|media| media.mrope_section.map(to_usize)))
}

/// Whether a tensor belongs to the text model.
fn is_text(component: &Component) -> bool {
    matches!(component, Component::ThinkerText | Component::Text)
}

impl<'a, B: Backend> Decoder<'a, B> {
    /// Prepares to run the text model of a pack. No weight is read; a missing one is found here.
    ///
    /// # Errors
    /// `Unsuitable` names what the pack lacks, or what cannot be computed with; `Memory` says how
    /// much would do.
    pub fn new(
        source: &'a PackReader<'a>,
        backend: B,
        settings: RunSettings,
        stop: &'a CancelToken,
    ) -> Result<Self, RunError> {
        Self::restricted(source, backend, None, settings, stop)
    }

    /// As [`new`](Self::new), with routers that may choose among some of their experts only, their
    /// probabilities taken over those. That is not the model any more.
    ///
    /// # Errors
    /// As [`new`](Self::new); `ExpertChoice` where experts cannot be restricted so.
    pub fn restricted(
        source: &'a PackReader<'a>,
        backend: B,
        experts: Option<&ExpertChoice>,
        settings: RunSettings,
        stop: &'a CancelToken,
    ) -> Result<Self, RunError> {
        let decoder = text_decoder(source.pack())?;
        let mut spec = DecoderSpec::from_decoder(&decoder);
        spec.mrope_section = mrope_section(source)?;
        if let Some(experts) = experts {
            spec.allowed = experts.of_model(&spec, &decoder.settings.has_experts)?;
        }
        let model = DecoderModel {
            facts: decoder.facts,
            spec,
            has_experts: decoder.settings.has_experts,
        };
        Self::of(source, backend, model, is_text, (settings, stop))
    }

    /// Prepares to run a decoder whose tensors are those of some components.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn of(
        source: &'a PackReader<'a>,
        backend: B,
        model: DecoderModel,
        has_component: impl Fn(&Component) -> bool,
        (settings, stop): (RunSettings, &'a CancelToken),
    ) -> Result<Self, RunError> {
        let DecoderModel {
            facts,
            spec,
            has_experts,
        } = model;
        let weights = DecoderWeights::find(source, &spec, has_component)?;
        weights.check_layers(&has_experts)?;
        weights.check_shapes(&spec)?;
        weights.check_files(source)?;
        let compute = backend.compute();
        let executor = backend.open(&DecoderSetup {
            source,
            weights: &weights,
            spec: &spec,
            settings,
            stop,
        })?;
        let stats = RunStats {
            layers: vec![LayerUses::default(); spec.layers],
            ..RunStats::default()
        };
        Ok(Self {
            facts,
            spec,
            compute,
            cursor: source.cursor()?,
            settings,
            weights,
            executor,
            places: Places::default(),
            stats,
            stop,
        })
    }

    /// What the manifest says about the model.
    pub fn facts(&self) -> &TextFacts {
        &self.facts
    }

    /// The model's numbers.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// How memory is shared out.
    pub fn budget(&self) -> Budget {
        self.executor.budget()
    }

    /// What this model and its settings need of memory.
    pub fn demand(&self) -> Demand {
        self.executor.demand()
    }

    /// Whether its dense weights stay in memory.
    pub(crate) fn is_resident(&self) -> bool {
        self.budget().residency == Residency::Resident
    }

    /// Bytes of the budget that decoders beside it leave to it.
    pub(crate) fn held(&self) -> u64 {
        self.executor.held()
    }

    /// Layers that have experts.
    pub fn expert_layers(&self) -> u64 {
        self.weights.expert_layers() as u64
    }

    /// Bytes of the head.
    pub fn head_bytes(&self) -> u64 {
        self.weights.head().entry.length
    }

    /// Bytes of one weight.
    pub fn bytes_per_weight(&self) -> u64 {
        self.weights.head().matrix.dtype.byte_width() as u64
    }

    /// What was done so far.
    pub fn stats(&self) -> RunStats {
        let executor = self.executor.stats();
        let mut stats = self.stats.clone();
        stats.add_resident_uses(&executor.resident_uses);
        RunStats {
            cache: executor.cache,
            load: executor.load,
            bytes_read: self.stats.bytes_read + executor.bytes_read + executor.load.bytes(),
            bytes_copied: executor.bytes_copied,
            waited: executor.waited,
            ..stats
        }
    }

    /// Positions in the cache of keys and values.
    pub fn positions(&self) -> usize {
        self.executor.positions()
    }

    /// Bytes that [`preload`](Self::preload) loads where nothing is in memory yet.
    pub fn preload_bytes(&self) -> u64 {
        self.executor.preload_bytes(&self.weights)
    }

    /// Loads the dense weights and as many experts as fit, which is otherwise done when they are
    /// needed. Calls `report` with the bytes that came since the last call.
    ///
    /// # Errors
    /// Damage of the pack; `Interrupted`.
    pub fn preload(&mut self, report: &mut dyn FnMut(u64)) -> Result<(), RunError> {
        self.executor.preload(&self.weights, report)
    }

    /// Forgets all tokens, keeps all weights.
    pub fn reset(&mut self) {
        self.truncate(0);
    }

    /// Forgets the tokens from this position on; the next ones take their positions.
    pub fn truncate(&mut self, positions: usize) {
        if positions < self.positions() {
            self.executor.truncate(positions);
        }
        if self.places.truncate(positions) {
            self.executor.forget_rotary();
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
        let logits = self.run(ids, None, want, observer);
        self.stats.forward += began.elapsed();
        logits
    }

    /// Runs these tokens after those before, and hands the logits of each, `[vocab]`, to `visit`
    /// with its number from 0. At most `block` tokens' logits are in memory at a time.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and what `visit` returns.
    pub fn forward_each<E: From<RunError>>(
        &mut self,
        ids: &[u32],
        block: usize,
        visit: &mut LogitsVisitor<'_, E>,
    ) -> Result<(), E> {
        let began = Instant::now();
        self.check(ids, ids.len())?;
        // a device is told what is wanted; steps that it records have the logits of one token alone
        if self
            .executor
            .forward_recorded(ids, Logits::All, false)?
            .is_some()
        {
            return Err(RunError::Internal("a recorded step of all logits").into());
        }
        self.begin(ids, None)?;
        self.layers(ids.len(), None, &mut Unobserved)?;
        let count = block.max(1);
        for first in (0..ids.len()).step_by(count) {
            self.stop.check().map_err(RunError::from)?;
            let rows = Logits::Some { first, count };
            let logits = self.executor.logits(&self.weights, rows)?;
            let mut each = (first..).zip(logits.chunks_exact(self.spec.vocab));
            each.try_for_each(|(number, logits)| visit(number, logits))?;
        }
        self.stats.forward += began.elapsed();
        Ok(())
    }

    /// As [`forward`](Self::forward), of a prompt with media, which has to be the first of its text.
    /// The positions of what follows go on behind its own.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); `Media` where it is not the first.
    pub fn forward_media(
        &mut self,
        ids: &[u32],
        media: &MediaInputs,
        want: Logits,
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>, RunError> {
        let began = Instant::now();
        if self.positions() > 0 {
            let seen = self.positions();
            return Err(MediaError::NotFirst { seen }.into());
        }
        if !media.fits(ids.len(), self.spec.hidden) || media.deepstack.len() > self.spec.layers {
            return Err(RunError::Internal("media inputs are not of this prompt"));
        }
        self.places = Places::of(media.positions.clone());
        self.executor.forget_rotary();
        let logits = self.run(ids, Some(media), want, observer);
        self.stats.forward += began.elapsed();
        logits
    }

    /// Runs `first`, then each token that follows but the last: the highest logit of every step
    /// fills `next`, without the host inspecting it in between; see [`ArgMax::token`]. False, and
    /// nothing is run, where that cannot be: it takes a GPU that holds all weights, and two steps of
    /// one token before.
    ///
    /// # Errors
    /// `TokenId`, `TooLong`; what the driver says.
    pub fn greedy(&mut self, first: u32, next: &mut [ArgMax]) -> Result<bool, RunError> {
        self.check(&[first], next.len())?;
        let began = Instant::now();
        let done = self.executor.greedy(first, next);
        self.stats.forward += began.elapsed();
        done
    }

    /// Whether the model can go on with these ids, so many positions in all.
    pub(crate) fn check(&self, ids: &[u32], positions: usize) -> Result<(), RunError> {
        self.stop.check()?; // a step that was recorded checks it nowhere else
        let wanted = self.positions() + positions;
        if wanted > self.settings.positions {
            return Err(RunError::TooLong {
                wanted,
                reserved: self.settings.positions,
            });
        }
        self.check_ids(ids)
    }

    fn check_ids(&self, ids: &[u32]) -> Result<(), RunError> {
        match ids.iter().find(|id| **id as usize >= self.spec.vocab) {
            Some(id) => Err(RunError::TokenId {
                id: *id,
                rows: self.spec.vocab as u64,
            }),
            None => Ok(()),
        }
    }

    fn run(
        &mut self,
        ids: &[u32],
        media: Option<&MediaInputs>,
        want: Logits,
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>, RunError> {
        self.check(ids, ids.len())?;
        // rows in the place of embeddings keep a step from being a recorded one
        let is_observed = observer.observes() || media.is_some();
        let recorded = self.executor.forward_recorded(ids, want, is_observed)?;
        if let Some(logits) = recorded {
            return Ok(logits);
        }
        self.begin(ids, media)?;
        self.layers(ids.len(), media, observer)?;
        self.executor.logits(&self.weights, want)
    }

    /// Runs rows that take the place of embeddings after the tokens before, `[tokens, hidden]`.
    /// `places`: time, height and width of each, where they are the first of a sequence and not one
    /// behind the other. Returns the last one's state after the final norm, `[hidden]`, and its
    /// logits by one of the heads, `[vocab]`.
    ///
    /// # Errors
    /// `TooLong`; damage of the pack.
    pub(crate) fn forward_rows(
        &mut self,
        rows: Vec<f32>,
        places: Option<Vec<[f32; 3]>>,
        head: usize,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<f32>, Vec<f32>), RunError> {
        let began = Instant::now();
        let hidden = self.spec.hidden;
        let tokens = rows.len() / hidden;
        self.check(&[], tokens)?;
        let is_observed = observer.observes() || places.is_some();
        if let Some(places) = places {
            self.places = Places::of(places);
            self.executor.forget_rotary();
        }
        let recorded = self.executor.rows_recorded(&rows, head, is_observed)?;
        if let Some(results) = recorded {
            self.stats.forward += began.elapsed();
            return Ok(results);
        }
        self.begin_rows(tokens)?;
        self.executor.set_residual(rows)?;
        self.layers(tokens, None, observer)?;
        // the logits end a step that is recorded
        let logits = self.executor.logits_of(&self.weights, head)?;
        let states = self.executor.read(Activation::Residual)?;
        let last = states[states.len() - hidden..].to_vec();
        self.stats.forward += began.elapsed();
        Ok((last, logits))
    }

    /// Begins a forward pass of so many rows after the tokens before.
    pub(crate) fn begin_rows(&mut self, tokens: usize) -> Result<(), RunError> {
        let (spec, compute, places) = (&self.spec, self.compute, &self.places);
        self.executor.begin(tokens, &|tokens| {
            spec.rotary(compute, places.of_tokens(tokens))
        })
    }

    /// All layers and the final norm, of rows that the device has already: for a device that makes
    /// them itself.
    #[cfg(feature = "cuda")]
    pub(crate) fn layers_of_rows(&mut self, tokens: usize) -> Result<(), RunError> {
        self.layers(tokens, None, &mut Unobserved)
    }

    /// Counts time in which a device computed for it outside of its own forward passes.
    pub(crate) fn count_time(&mut self, time: Duration) {
        self.stats.forward += time;
    }

    /// All layers and the final norm, in place in the residual stream.
    fn layers(
        &mut self,
        tokens: usize,
        media: Option<&MediaInputs>,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        observer.embed(&self.inspect(observer, Activation::Residual)?);
        for layer in 0..self.weights.layers.len() {
            self.stop.check()?;
            self.executor.load_group(layer, &self.weights.groups)?;
            self.attention(layer, tokens, observer)?;
            observer.attention(layer, &self.inspect(observer, Activation::Added)?);
            self.executor.add_residual()?;
            self.mlp(layer, tokens, observer)?;
            observer.mlp(layer, &self.inspect(observer, Activation::Added)?);
            self.executor.add_residual()?;
            observer.hidden(layer, &self.inspect(observer, Activation::Residual)?);
            if let Some((media, rows)) = media.and_then(|m| Some((m, m.deepstack.get(layer)?))) {
                self.executor.add_rows(&media.visual, rows, self.compute)?;
            }
        }
        let final_norm = GroupTensor {
            group: self.weights.final_norm_group(),
            tensor: self.weights.final_norm,
        };
        self.executor
            .load_group(final_norm.group, &self.weights.groups)?;
        self.executor
            .norm(Activation::Residual, Activation::Residual, final_norm)?;
        observer.norm(&self.inspect(observer, Activation::Residual)?);
        Ok(())
    }

    /// Values for the observer; none where they would have to be copied from a device and it does
    /// not observe.
    fn inspect(
        &mut self,
        observer: &dyn Observer,
        activation: Activation,
    ) -> Result<Cow<'_, [f32]>, RunError> {
        if self.executor.is_remote() && !observer.observes() {
            return Ok(Cow::Borrowed(&[]));
        }
        self.executor.read(activation)
    }

    /// The embeddings of these tokens, and the rotary embedding of their positions.
    fn begin(&mut self, ids: &[u32], media: Option<&MediaInputs>) -> Result<(), RunError> {
        self.begin_rows(ids.len())?;
        if let Some(media) = media {
            let mut embedded = self.embed(ids)?;
            media.replace(&mut embedded, self.spec.hidden);
            self.compute.round_all(&mut embedded);
            self.executor.set_residual(embedded)?;
        } else if !self.executor.embed(ids)? {
            let embedded = self.embed(ids)?;
            self.executor.set_residual(embedded)?;
        }
        Ok(())
    }

    /// Reads rows of the embedding, one at a time, and multiplies them as the family does.
    fn embed(&mut self, ids: &[u32]) -> Result<Vec<f32>, RunError> {
        let mut embedded = self.embed_by(0, ids)?;
        let factor = self.spec.multipliers.embedding;
        if factor != 1.0 {
            let compute = self.compute;
            embedded
                .iter_mut()
                .for_each(|x| *x = compute.round(*x * factor));
        }
        Ok(embedded)
    }

    /// Reads rows of one of the embeddings, one at a time: `[ids, hidden]`.
    ///
    /// # Errors
    /// `TokenId`; damage of the pack.
    pub(crate) fn embed_by(&mut self, embedding: usize, ids: &[u32]) -> Result<Vec<f32>, RunError> {
        let embedding = self.weights.embeddings.get(embedding).copied();
        let embedding = embedding.ok_or(RunError::Internal("no such embedding"))?;
        let table = (embedding.entry, embedding.matrix);
        let mut embedded = read_rows(&mut self.cursor, table, ids, self.stop)?;
        self.stats.bytes_read += ids.len() as u64 * row_bytes(embedding.matrix);
        self.compute.round_all(&mut embedded);
        Ok(embedded)
    }

    /// Batches of the tokens of a forward pass.
    fn batches(&self, tokens: usize) -> impl Iterator<Item = Range<usize>> + use<B> {
        let max = self.executor.max_batch();
        (0..tokens)
            .step_by(max)
            .map(move |first| first..(first + max).min(tokens))
    }

    /// Added = what attention adds to the residual stream. q and k are normed and rotated, as the family
    /// has it; v is neither.
    fn attention(
        &mut self,
        number: usize,
        tokens: usize,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let layer = &self.weights.layers[number];
        let of_layer = |tensor: PlacedTensor| GroupTensor {
            group: number,
            tensor,
        };
        let tensors = AttentionTensors {
            qk_norms: layer.qk_norms.map(|norms| norms.map(of_layer)),
            sinks: layer.sinks.map(of_layer),
        };
        self.executor.norm(
            Activation::Residual,
            Activation::Normed,
            of_layer(layer.input_norm),
        )?;
        for batch in self.batches(tokens) {
            self.stop.check()?;
            let qkv = [
                (&layer.q, Activation::Q),
                (&layer.k, Activation::K),
                (&layer.v, Activation::V),
            ];
            self.executor
                .linears(Activation::Normed, batch.clone(), number, &qkv, observer)?;
            self.executor.attention(number, batch.clone(), tensors)?;
            let o = [(&layer.o, Activation::Added)];
            self.executor
                .linears(Activation::Attended, batch, number, &o, observer)?;
        }
        Ok(())
    }

    /// Added = what the MLP or the experts add to the residual stream.
    fn mlp(
        &mut self,
        number: usize,
        tokens: usize,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let layer = &self.weights.layers[number];
        let norm = GroupTensor {
            group: number,
            tensor: layer.post_attention_norm,
        };
        self.executor
            .norm(Activation::Residual, Activation::Normed, norm)?;
        match &layer.mlp {
            MlpWeights::Dense { gate, up, down } => {
                for batch in self.batches(tokens) {
                    self.stop.check()?;
                    let gate_up = [(gate, Activation::Gate), (up, Activation::Up)];
                    self.executor.linears(
                        Activation::Normed,
                        batch.clone(),
                        number,
                        &gate_up,
                        observer,
                    )?;
                    self.executor.silu_mul()?;
                    let down = [(down, Activation::Added)];
                    self.executor
                        .linears(Activation::Gate, batch, number, &down, observer)?;
                }
            }
            MlpWeights::Experts {
                router,
                choice_bias,
                experts,
                shared,
            } => {
                let router = [(router, Activation::Router)];
                self.executor
                    .linears(Activation::Normed, 0..tokens, number, &router, observer)?;
                let layer = ExpertLayer {
                    number,
                    experts,
                    choice_bias: *choice_bias,
                };
                self.executor.route(layer)?;
                if observer.observes() || !self.executor.is_remote() {
                    observer.router(number, &*self.executor.routing()?);
                }
                let uses = self.executor.experts(layer, observer)?;
                self.stats.count(number, &uses);
                if let Some(shared) = shared {
                    let [gate, out] = self.executor.shared_expert(number, shared, observer)?;
                    observer.shared_expert(number, &gate, &out);
                }
            }
        }
        Ok(())
    }
}

//! The forward pass of the text thinker, and of plain Qwen3-MoE models, straight from a pack.
//!
//! The equations are those of transformers 5.23, `modeling_qwen3_omni_moe.py`
//! (`Qwen3OmniMoeThinkerTextModel`); for text its interleaved multimodal rope is plain rope. They
//! are written once, here, in the operations of a device (`executor`): the CPU (`devices::cpu`), or a GPU
//! ([`crate::devices::cuda`]).

pub(crate) mod bind;
pub(crate) mod executor;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use segpack_formats::io::CancelToken;
use segpack_manifests::documents::Manifest;
use segpack_manifests::families::TextFacts;

use self::bind::{Mlp, TextModel, Weight};
use self::executor::{At, Device, ExpertLayer, Setup, Turns, Values};
use crate::error::{RunError, Unsuitable};
use crate::generate::ArgMax;
use crate::observer::Observer;
use crate::tensor::Compute;
use crate::weights::LoadStats;
use crate::weights::{Budget, CacheStats, Demand};
use segpack_manifests::{PackCursor, PackReader};

pub use self::executor::Backend;
pub use crate::weights::Check;

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
    /// Bytes copied to a GPU.
    pub bytes_copied: u64,
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
pub struct Thinker<'a, B: Backend> {
    facts: TextFacts,
    compute: Compute,
    reader: PackCursor<'a>,
    settings: RunSettings,
    model: TextModel<'a>,
    pub(crate) device: B::Device<'a>,
    stats: RunStats,
    stop: &'a CancelToken,
}

impl<'a, B: Backend> Thinker<'a, B> {
    /// Prepares to run the text model of a pack. No weight is read; a missing one is found here.
    ///
    /// # Errors
    /// `Unsuitable` names what the pack lacks; `Memory` says how much would do.
    pub fn new(
        source: &'a PackReader<'a>,
        backend: B,
        settings: RunSettings,
        stop: &'a CancelToken,
    ) -> Result<Self, RunError> {
        let manifest = source.pack().manifest();
        let facts = text_facts(manifest)?.clone();
        if facts.rope_type != "default" {
            return Err(Unsuitable::RopeType {
                seen: facts.rope_type,
            }
            .into());
        }
        let model = TextModel::find(source, &facts)?;
        let compute = backend.compute();
        let device = backend.open(&Setup {
            source,
            model: &model,
            facts: &facts,
            settings,
            stop,
        })?;
        Ok(Self {
            compute,
            reader: source.cursor()?,
            stats: RunStats {
                layers: vec![LayerUses::default(); model.layers.len()],
                ..RunStats::default()
            },
            settings,
            device,
            model,
            stop,
            facts,
        })
    }

    /// The model's numbers.
    pub fn facts(&self) -> &TextFacts {
        &self.facts
    }

    /// How memory is shared out.
    pub fn budget(&self) -> Budget {
        self.device.budget()
    }

    /// What this model and its settings need of memory.
    pub fn demand(&self) -> Demand {
        self.device.demand()
    }

    /// Layers that have experts.
    pub fn expert_layers(&self) -> u64 {
        self.model
            .layers
            .iter()
            .filter(|l| matches!(l.mlp, Mlp::Experts { .. }))
            .count() as u64
    }

    /// Bytes of the head.
    pub fn head_bytes(&self) -> u64 {
        self.model.head.length
    }

    /// Bytes of one weight.
    pub fn bytes_per_weight(&self) -> u64 {
        self.model.head.length / self.model.head.shape.iter().product::<u64>().max(1)
    }

    /// What was done so far.
    pub fn stats(&self) -> RunStats {
        let device = self.device.stats();
        let mut counted = self.stats.clone();
        for (layer, uses) in (0..).zip(&device.resident_uses) {
            for (expert, n) in (0..).zip(uses).filter(|(_, n)| **n > 0) {
                *counted.expert_uses.entry((layer, expert)).or_default() += u64::from(*n);
                counted.layers[layer as usize].hits += u64::from(*n);
            }
        }
        RunStats {
            cache: device.cache,
            load: device.load,
            bytes_read: self.stats.bytes_read + device.bytes_read + device.load.bytes(),
            bytes_copied: device.bytes_copied,
            waited: device.waited,
            ..counted
        }
    }

    /// Positions in the cache of keys and values.
    pub fn positions(&self) -> usize {
        self.device.positions()
    }

    /// Bytes that [`preload`](Self::preload) loads where nothing is there yet.
    pub fn preload_bytes(&self) -> u64 {
        self.device.preload_bytes(&self.model)
    }

    /// Loads the dense weights and as many experts as there is room for, which is otherwise done
    /// when they are needed. Calls `tell` with the bytes that came since the last call.
    ///
    /// # Errors
    /// Damage of the pack; `Interrupted`.
    pub fn preload(&mut self, tell: &mut dyn FnMut(u64)) -> Result<(), RunError> {
        self.device.preload(&self.model, tell)
    }

    /// Forgets all tokens, keeps all weights.
    pub fn reset(&mut self) {
        self.truncate(0);
    }

    /// Forgets the tokens from this position on; the next ones take their places.
    pub fn truncate(&mut self, positions: usize) {
        if positions < self.positions() {
            self.device.truncate(positions);
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

    /// Runs `first`, then each token that follows but the last: the greatest logit of every step
    /// fills `next`, without a look by the host in between. Nobody has looked at them: see
    /// [`ArgMax::token`]. False, and nothing is run, where that cannot be: it takes a GPU that
    /// holds all weights, and two steps of one token before.
    ///
    /// # Errors
    /// `TokenId`, `TooLong`; what the driver says.
    pub fn greedy(&mut self, first: u32, next: &mut [ArgMax]) -> Result<bool, RunError> {
        self.check(&[first], next.len())?;
        let began = Instant::now();
        let done = self.device.greedy(first, next);
        self.stats.forward += began.elapsed();
        done
    }

    /// Whether the model can go on with these ids, so many positions in all.
    fn check(&self, ids: &[u32], positions: usize) -> Result<(), RunError> {
        self.stop.check()?; // a step that was recorded has no other place for it
        let wanted = self.positions() + positions;
        if wanted > self.settings.positions {
            return Err(RunError::TooLong {
                wanted,
                reserved: self.settings.positions,
            });
        }
        match ids.iter().find(|id| u64::from(**id) >= self.facts.vocab) {
            Some(id) => Err(RunError::TokenId {
                id: *id,
                rows: self.facts.vocab,
            }),
            None => Ok(()),
        }
    }

    fn pass(
        &mut self,
        ids: &[u32],
        want: Logits,
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>, RunError> {
        self.check(ids, ids.len())?;
        if let Some(logits) = self.device.step(ids, want, observer.observes())? {
            return Ok(logits);
        }
        self.begin(ids)?;
        observer.embed(&self.inspect(observer, Values::X)?);
        for layer in 0..self.model.layers.len() {
            self.stop.check()?;
            self.device.load(layer, &self.model.groups)?;
            self.attention(layer, ids.len())?;
            observer.attention(layer, &self.inspect(observer, Values::Added)?);
            self.device.add()?;
            self.mlp(layer, ids.len(), observer)?;
            observer.mlp(layer, &self.inspect(observer, Values::Added)?);
            self.device.add()?;
            observer.hidden(layer, &self.inspect(observer, Values::X)?);
        }
        let group = self.model.final_norm_group();
        self.device.load(group, &self.model.groups)?;
        self.device.norm(
            Values::X,
            Values::X,
            At {
                group,
                weight: self.model.final_norm,
            },
        )?;
        observer.norm(&self.inspect(observer, Values::X)?);
        self.device.logits(&self.model, want)
    }

    /// Values for the observer; none where they are far away and it does not look.
    fn inspect(
        &mut self,
        observer: &dyn Observer,
        values: Values,
    ) -> Result<Cow<'_, [f32]>, RunError> {
        if self.device.is_far() && !observer.observes() {
            return Ok(Cow::Borrowed(&[]));
        }
        self.device.read(values)
    }

    /// The embeddings of these tokens, and the rotations of their positions.
    fn begin(&mut self, ids: &[u32]) -> Result<(), RunError> {
        let (facts, compute) = (&self.facts, self.compute);
        self.device
            .begin(ids.len(), &|positions| rotations(facts, compute, positions))?;
        if !self.device.embed(ids)? {
            let x = self.embed(ids)?;
            self.device.put(x)?;
        }
        Ok(())
    }

    /// Reads rows of the embedding, one at a time.
    fn embed(&mut self, ids: &[u32]) -> Result<Vec<f32>, RunError> {
        let hidden = index(self.facts.hidden_size);
        let row = self.model.embedding.length / self.facts.vocab.max(1);
        let mut x = vec![0.0; ids.len() * hidden];
        let mut bytes = Vec::with_capacity(index(row));
        for (id, to) in ids.iter().zip(x.chunks_exact_mut(hidden)) {
            bytes.clear();
            let start = u64::from(*id) * row;
            self.reader.read_tensor(
                self.model.embedding,
                start..start + row,
                self.stop,
                |piece| {
                    bytes.extend_from_slice(piece);
                    Ok::<_, RunError>(())
                },
            )?;
            self.stats.bytes_read += row;
            self.model.embedding_weight.dtype.widen(&bytes, to);
        }
        self.compute.round_all(&mut x);
        Ok(x)
    }

    /// Batches of the tokens of a pass.
    fn batches(&self, tokens: usize) -> impl Iterator<Item = Range<usize>> + use<B> {
        let most = self.device.batch();
        (0..tokens)
            .step_by(most)
            .map(move |first| first..(first + most).min(tokens))
    }

    /// Added = what attention adds to X. q and k are normed per head, then rotated; v is neither.
    fn attention(&mut self, number: usize, tokens: usize) -> Result<(), RunError> {
        let layer = &self.model.layers[number];
        let at = |weight: Weight| At {
            group: number,
            weight,
        };
        self.device
            .norm(Values::X, Values::Normed, at(layer.input_norm))?;
        for batch in self.batches(tokens) {
            let products = [
                (&layer.q, Values::Q),
                (&layer.k, Values::K),
                (&layer.v, Values::V),
            ];
            self.device
                .products(Values::Normed, batch.clone(), number, &products)?;
            self.device
                .attend(number, batch.clone(), [at(layer.q_norm), at(layer.k_norm)])?;
            self.device.products(
                Values::Attended,
                batch,
                number,
                &[(&layer.o, Values::Added)],
            )?;
        }
        Ok(())
    }

    /// Added = what the MLP or the experts add to X.
    fn mlp(
        &mut self,
        number: usize,
        tokens: usize,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let layer = &self.model.layers[number];
        self.device.norm(
            Values::X,
            Values::Normed,
            At {
                group: number,
                weight: layer.post_attention_norm,
            },
        )?;
        match &layer.mlp {
            Mlp::Dense { gate, up, down } => {
                for batch in self.batches(tokens) {
                    let products = [(gate, Values::Gate), (up, Values::Up)];
                    self.device
                        .products(Values::Normed, batch.clone(), number, &products)?;
                    self.device.silu_mul()?;
                    self.device
                        .products(Values::Gate, batch, number, &[(down, Values::Added)])?;
                }
            }
            Mlp::Experts { router, experts } => {
                self.device.products(
                    Values::Normed,
                    0..tokens,
                    number,
                    &[(router, Values::Router)],
                )?;
                let layer = ExpertLayer { number, experts };
                self.device.route(layer)?;
                if observer.observes() || !self.device.is_far() {
                    let routing = self.device.routing()?;
                    observer.router(number, &routing);
                }
                let uses = self.device.experts(layer)?;
                self.count(number, &uses);
            }
        }
        Ok(())
    }

    fn count(&mut self, number: usize, uses: &[(u32, bool)]) {
        let layer = u32::try_from(number).unwrap_or(u32::MAX);
        for (expert, hit) in uses {
            let uses = &mut self.stats.layers[number];
            *(if *hit {
                &mut uses.hits
            } else {
                &mut uses.misses
            }) += 1;
            *self.stats.expert_uses.entry((layer, *expert)).or_default() += 1;
        }
    }
}

/// Cosines and sines of positions, `[positions, head_dim / 2]`: `angle = position · theta^(-2j /
/// d)` in f32, then in the precision of the activations.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "f32, as torch does"
)]
fn rotations(facts: &TextFacts, compute: Compute, positions: Range<usize>) -> Turns {
    let width = index(facts.head_dim);
    let frequency = |j: usize| {
        let exponent = (2 * j) as f32 / width as f32;
        1.0 / (facts.rope_theta.powf(f64::from(exponent)) as f32)
    };
    let frequencies: Vec<f32> = (0..width / 2).map(frequency).collect();
    let angles = positions.flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
    let round = |x: f64| compute.round(x as f32);
    angles
        .map(|a| (round(f64::from(a).cos()), round(f64::from(a).sin())))
        .unzip()
}

/// The `best` largest values, largest first, the lower id on ties.
pub(crate) fn top_k(row: &[f32], best: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..row.len())
        .map(|i| u32::try_from(i).unwrap_or(u32::MAX))
        .collect();
    let order = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
    if best < ids.len() && best > 0 {
        ids.select_nth_unstable_by(best - 1, order);
    }
    ids.truncate(best);
    ids.sort_unstable_by(order);
    ids
}

/// The sizes of a pack's text decoder.
///
/// # Errors
/// `Unsuitable` where its family is not known, or it has none.
pub fn text_facts(manifest: &Manifest) -> Result<&TextFacts, RunError> {
    let facts = manifest.model.text_decoder().map_err(Unsuitable::Family)?;
    Ok(facts.ok_or(Unsuitable::NoTextDecoder)?)
}

/// Sizes of tensors that are in memory, or about to be.
pub(crate) fn index(n: u64) -> usize {
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

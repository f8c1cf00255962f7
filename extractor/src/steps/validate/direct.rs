//! The model calculated straight from the shards of a checkpoint: no pack, no cache, every position
//! at once, the scalar operations. Slow, and put together on its own from the tensors' names, so
//! that it shares no mistake with the packs.

mod media;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use segpack_formats::digest::Sha256;
use segpack_formats::io::{CancelToken, to_usize};
use segpack_formats::numeric::{Dtype, FloatDtype};
use segpack_manifests::Pack;
use segpack_manifests::documents::{Finding, FindingKind, Inventory, InventoryTensor, Quantity};
use segpack_manifests::families::{Family, FamilyName, TextFacts, text_facts};
use segpack_runtime_min::ops::{Heads, Matrix, Ops, ScalarOps, softmax};
use segpack_runtime_min::tensor::Linear;

pub(super) use self::media::Calculation;
use super::compare::{Reference, ReferenceStep, argmax};
use super::error::ValidateError;
use crate::source::Checkpoint;
use crate::steps::StepError;
use crate::steps::scan::{ScanOptions, scan};
use crate::work::{Job, lock};

/// Where the text model may be mounted: in an omni checkpoint, in a thinker or a plain model saved
/// on its own.
const MOUNTS: [&str; 3] = ["thinker.model.", "model.", "thinker.model.language_model."];

/// A tensor of the checkpoint.
struct Place {
    dtype: Dtype,
    shape: Vec<u64>,
    shard: usize,
    range: Range<u64>,
}

impl Place {
    /// A matrix of this shape in these bytes of a stored tensor.
    fn within(stored: &InventoryTensor, shape: Vec<u64>, bytes: Range<u64>) -> Self {
        Self {
            dtype: stored.dtype,
            shape,
            shard: stored.shard,
            range: stored.offset + bytes.start..stored.offset + bytes.end,
        }
    }
}

/// A checkpoint that can be calculated with.
pub(super) struct Direct<'a> {
    checkpoint: Checkpoint,
    places: HashMap<String, Place>,
    mount: &'static str,
    facts: TextFacts,
    pack: &'a Pack,
    stop: &'a CancelToken,
    compared: Mutex<HashSet<String>>,
    findings: Mutex<Vec<Finding>>,
}

/// A matrix with its bytes.
struct Weights {
    dtype: FloatDtype,
    bytes: Vec<u8>,
    rows: usize,
    columns: usize,
}

impl Weights {
    fn matrix(&self) -> Matrix<'_> {
        Matrix {
            dtype: self.dtype,
            bytes: &self.bytes,
            rows: self.rows,
            columns: self.columns,
        }
    }

    fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.columns];
        self.dtype.widen(&self.bytes, &mut values);
        values
    }
}

/// Everything that was calculated for one sequence of tokens.
#[derive(Debug, Default)]
pub(super) struct Calculated {
    /// Rows of all positions, by quantity and layer.
    values: HashMap<(Quantity, usize), Vec<f32>>,
    experts: HashMap<usize, Vec<Vec<u32>>>,
    vocab: usize,
    /// Tokens of the prompt; what follows is compared as generation.
    prompt: usize,
}

/// The text model of a checkpoint, as its `config.json` describes it.
fn facts_of(checkpoint: &Checkpoint) -> Result<TextFacts, ValidateError> {
    let root = || checkpoint.root.clone();
    let Some(config) = &checkpoint.config else {
        return Err(ValidateError::NoConfig { checkpoint: root() });
    };
    if let Some(family) = Family::of_config(config).filter(|family| !family.is_qwen3_moe()) {
        let (checkpoint, family) = (root(), family.name());
        return Err(ValidateError::OtherFamily { checkpoint, family });
    }
    match text_facts(config) {
        Some(facts) => facts.map_err(|source| ValidateError::Config {
            checkpoint: root(),
            source,
        }),
        None => Err(ValidateError::UnknownFamily { checkpoint: root() }),
    }
}

/// Where every tensor of a checkpoint is, and every matrix of a tensor that stacks experts.
fn places(
    checkpoint: &Checkpoint,
    inventory: &Inventory,
) -> Result<HashMap<String, Place>, ValidateError> {
    let family = inventory.family.and_then(FamilyName::family);
    let mut places = HashMap::new();
    for t in &inventory.tensors {
        places.insert(
            t.name.clone(),
            Place::within(t, t.shape.clone(), 0..t.length),
        );
        let bits = t.dtype.bitsize() as u64;
        let experts = || inventory.routed_experts(t);
        let slices = family.and_then(|f| f.unstack(&t.name, &t.shape, bits, &experts));
        let slices = slices
            .transpose()
            .map_err(|source| ValidateError::Unstack {
                checkpoint: checkpoint.root.clone(),
                source,
            })?;
        for s in slices.unwrap_or_default() {
            let range = s.offset..s.offset + s.length;
            places.insert(s.name, Place::within(t, s.shape, range));
        }
    }
    Ok(places)
}

impl<'a> Direct<'a> {
    /// Opens a checkpoint. Its tensors are compared with the pack's digests when they are used.
    pub(super) fn open(argument: &Path, pack: &'a Pack, job: Job<'a>) -> Result<Self, StepError> {
        let stop = job.stop;
        let (checkpoint, inventory) = scan(argument, ScanOptions::default(), job)?;
        let facts = facts_of(&checkpoint)?;
        let places = places(&checkpoint, &inventory)?;
        let mount = MOUNTS
            .into_iter()
            .find(|mount| places.contains_key(&format!("{mount}embed_tokens.weight")));
        let mount = mount.ok_or_else(|| ValidateError::NoTextModel {
            checkpoint: checkpoint.root.clone(),
        })?;
        let (compared, findings) = (Mutex::default(), Mutex::default());
        Ok(Self {
            places,
            mount,
            facts,
            pack,
            stop,
            compared,
            findings,
            checkpoint,
        })
    }

    /// The checkpoint that is calculated with.
    pub(super) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The model's numbers, from the checkpoint's own `config.json`.
    pub(super) fn facts(&self) -> &TextFacts {
        &self.facts
    }

    /// Tensors that the pack has with other bytes, of those used so far.
    pub(super) fn findings(&self) -> Vec<Finding> {
        lock(&self.findings).clone()
    }

    fn place(&self, name: &str) -> Result<&Place, StepError> {
        let place = self.places.get(name);
        Ok(place.ok_or_else(|| ValidateError::NoSuchTensor {
            checkpoint: self.checkpoint.root.clone(),
            name: name.to_owned(),
        })?)
    }

    fn float_dtype(&self, name: &str, place: &Place) -> Result<FloatDtype, StepError> {
        let dtype = FloatDtype::try_from(place.dtype);
        Ok(dtype.map_err(|source| ValidateError::Dtype {
            checkpoint: self.checkpoint.root.clone(),
            name: name.to_owned(),
            source,
        })?)
    }

    fn name(&self, layer: usize, rest: &str) -> String {
        format!("{}layers.{layer}.{rest}", self.mount)
    }

    fn read(&self, name: &str) -> Result<Weights, StepError> {
        let place = self.place(name)?;
        let bytes = self.checkpoint.shards[place.shard]
            .shard
            .input
            .read_range(place.range.clone())?;
        self.compare(name, &bytes, &self.checkpoint.shards[place.shard].path);
        let side = |axis| place.shape.get(axis).map_or(1, |side| to_usize(*side));
        Ok(Weights {
            dtype: self.float_dtype(name, place)?,
            bytes,
            rows: side(0),
            columns: side(1),
        })
    }

    /// Compares the bytes with what the pack's manifest says of them, once.
    fn compare(&self, name: &str, bytes: &[u8], file: &str) {
        if !lock(&self.compared).insert(name.to_owned()) {
            return;
        }
        let Some(tensor) = self.pack.tensor(name) else {
            return;
        };
        let seen = Sha256::of(bytes);
        if seen != tensor.sha256 {
            let finding = Finding::new(FindingKind::DiffersFromCheckpoint)
                .tensor(name)
                .file(file);
            let finding = finding.seen(format!("SHA-256 {seen} in the checkpoint"));
            lock(&self.findings).push(finding.wanted(format!("{}, as packed", tensor.sha256)));
        }
    }

    fn linear(&self, name: &str, x: &[f32]) -> Result<Vec<f32>, StepError> {
        let weights = self.read(&format!("{name}.weight"))?;
        let bias = format!("{name}.bias");
        let bias = self
            .places
            .contains_key(&bias)
            .then(|| self.read(&bias))
            .transpose()?;
        let mut out = vec![0.0; x.len() / weights.columns * weights.rows];
        let bias = bias.map(|b| b.values());
        let mut linear = [Linear {
            x,
            weight: weights.matrix(),
            bias: bias.as_deref(),
            out: &mut out,
        }];
        ScalarOps::default().linears_until(&mut linear, self.stop)?;
        Ok(out)
    }

    fn norm(&self, name: &str, x: &[f32]) -> Result<Vec<f32>, StepError> {
        let weight = self.read(&format!("{name}.weight"))?.values();
        let mut out = x.to_vec();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "applied in f32, as torch does"
        )]
        ScalarOps::default().rms_norm(&mut out, &weight, self.facts.rms_norm_eps as f32);
        Ok(out)
    }

    /// Calculates all positions of `ids` at once; the first `prompt` of them are the prompt.
    pub(super) fn calculate(
        &self,
        ids: &[u32],
        prompt: usize,
        stop: &CancelToken,
    ) -> Result<Calculated, StepError> {
        let mut found = Calculated {
            vocab: to_usize(self.facts.vocab),
            prompt,
            ..Calculated::default()
        };
        let mut x = self.embed(ids)?;
        found.put(Quantity::Embedding, 0, &x);
        let add = |x: &mut [f32], y: &[f32]| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        for layer in 0..self.facts.layers as usize {
            stop.check()?;
            let attention = self.attention(layer, &x, ids.len())?;
            add(&mut x, &attention);
            found.put(Quantity::AttentionOutput, layer, &attention);
            let mlp = self.mlp(layer, &x, &mut found, stop)?;
            add(&mut x, &mlp);
            found.put(Quantity::MlpOutput, layer, &mlp);
            found.put(Quantity::HiddenState, layer, &x);
        }
        let x = self.norm(&format!("{}norm", self.mount), &x)?;
        found.put(Quantity::FinalNorm, self.facts.layers as usize, &x);
        let logits = self.linear(&self.head(), &x)?;
        found.put(Quantity::Logits, self.facts.layers as usize + 1, &logits);
        Ok(found)
    }

    /// The head is beside the model, or is the embedding.
    fn head(&self) -> String {
        let beside = ["thinker.lm_head", "lm_head"].into_iter();
        let mut beside = beside.filter(|name| self.places.contains_key(&format!("{name}.weight")));
        match beside.next() {
            Some(head) => head.to_owned(),
            None => format!("{}embed_tokens", self.mount),
        }
    }

    fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, StepError> {
        let name = format!("{}embed_tokens.weight", self.mount);
        let place = self.place(&name)?;
        let dtype = self.float_dtype(&name, place)?;
        let (hidden, row) = (
            to_usize(self.facts.hidden_size),
            (place.range.end - place.range.start) / self.facts.vocab,
        );
        let mut x = vec![0.0; ids.len() * hidden];
        for (id, x) in ids.iter().zip(x.chunks_exact_mut(hidden)) {
            let start = place.range.start + u64::from(*id) * row;
            let bytes = self.checkpoint.shards[place.shard]
                .shard
                .input
                .read_range(start..start + row)?;
            dtype.widen(&bytes, x);
        }
        Ok(x)
    }

    fn attention(&self, layer: usize, x: &[f32], tokens: usize) -> Result<Vec<f32>, StepError> {
        let at = |rest: &str| self.name(layer, rest);
        let x = self.norm(&at("input_layernorm"), x)?;
        let q = self.linear(&at("self_attn.q_proj"), &x)?;
        let k = self.linear(&at("self_attn.k_proj"), &x)?;
        let v = self.linear(&at("self_attn.v_proj"), &x)?;
        let q = self.rotate(self.norm(&at("self_attn.q_norm"), &q)?, tokens);
        let k = self.rotate(self.norm(&at("self_attn.k_norm"), &k)?, tokens);
        let f = &self.facts;
        let heads = Heads {
            query: to_usize(f.heads),
            key_value: to_usize(f.kv_heads),
            width: to_usize(f.head_dim),
        };
        let mut out = vec![0.0; q.len()];
        ScalarOps::default().attention(&q, &k, &v, heads, &mut out);
        self.linear(&at("self_attn.o_proj"), &out)
    }

    /// Every head of every position by `position · theta^(-2j / d)`, halves paired.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "angles are f32, as torch has them"
    )]
    fn rotate(&self, mut x: Vec<f32>, tokens: usize) -> Vec<f32> {
        let (width, half) = (
            to_usize(self.facts.head_dim),
            to_usize(self.facts.head_dim) / 2,
        );
        let per_token = x.len() / tokens.max(1);
        for (position, row) in x.chunks_exact_mut(per_token).enumerate() {
            for head in row.chunks_exact_mut(width) {
                for j in 0..half {
                    let exponent = (2 * j) as f32 / width as f32;
                    let frequency = 1.0 / self.facts.rope_theta.powf(f64::from(exponent)) as f32;
                    let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                    let (a, b) = (f64::from(head[j]), f64::from(head[j + half]));
                    head[j] = (a * cos - b * sin) as f32;
                    head[j + half] = (b * cos + a * sin) as f32;
                }
            }
        }
        x
    }

    fn mlp(
        &self,
        layer: usize,
        x: &[f32],
        found: &mut Calculated,
        stop: &CancelToken,
    ) -> Result<Vec<f32>, StepError> {
        let x = self.norm(&self.name(layer, "post_attention_layernorm"), x)?;
        let router = self.name(layer, "mlp.gate");
        if !self.places.contains_key(&format!("{router}.weight")) {
            return self.swiglu(&self.name(layer, "mlp"), &x);
        }
        let logits = self.linear(&router, &x)?;
        let chosen = self.route(layer, &logits, found);
        let hidden = to_usize(self.facts.hidden_size);
        let mut out = vec![0.0; x.len()];
        for (expert, tokens) in chosen {
            stop.check()?;
            let rows: Vec<f32> = tokens
                .iter()
                .flat_map(|(t, _)| &x[t * hidden..(t + 1) * hidden])
                .copied()
                .collect();
            let y = self.swiglu(&self.name(layer, &format!("mlp.experts.{expert}")), &rows)?;
            for ((t, weight), y) in tokens.iter().zip(y.chunks_exact(hidden)) {
                out[t * hidden..(t + 1) * hidden]
                    .iter_mut()
                    .zip(y)
                    .for_each(|(o, y)| *o += weight * y);
            }
        }
        Ok(out)
    }

    /// `down(silu(gate(x)) · up(x))`.
    fn swiglu(&self, name: &str, x: &[f32]) -> Result<Vec<f32>, StepError> {
        let mut inner = self.linear(&format!("{name}.gate_proj"), x)?;
        let up = self.linear(&format!("{name}.up_proj"), x)?;
        inner
            .iter_mut()
            .zip(&up)
            .for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u);
        self.linear(&format!("{name}.down_proj"), &inner)
    }

    /// For every chosen expert the tokens that go to it, and their weights.
    fn route(
        &self,
        layer: usize,
        logits: &[f32],
        found: &mut Calculated,
    ) -> BTreeMap<u32, Vec<(usize, f32)>> {
        let (experts, best) = (
            self.facts.experts as usize,
            self.facts.experts_per_token as usize,
        );
        let mut probabilities = logits.to_vec();
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        let mut chosen: BTreeMap<u32, Vec<(usize, f32)>> = BTreeMap::new();
        for (token, row) in probabilities.chunks_exact_mut(experts).enumerate() {
            softmax(row);
            let mut order: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
            order.sort_by(|a, b| b.1.total_cmp(&a.1)); // stable: the lower id on ties
            order.truncate(best);
            ids.push(order.iter().map(|(expert, _)| *expert).collect());
            let sum: f32 = order.iter().map(|(_, p)| p).sum();
            for (expert, probability) in order {
                let weight = if self.facts.norm_topk_prob {
                    probability / sum
                } else {
                    probability
                };
                chosen.entry(expert).or_default().push((token, weight));
                weights.push(weight);
            }
        }
        found.put(Quantity::RouterLogits, layer, logits);
        found.put(Quantity::RouterProbabilities, layer, &probabilities);
        found.put(Quantity::ExpertWeights, layer, &weights);
        found.experts.insert(layer, ids);
        chosen
    }
}

impl Calculated {
    fn put(&mut self, quantity: Quantity, layer: usize, values: &[f32]) {
        self.values.insert((quantity, layer), values.to_vec());
    }
}

impl Reference for Calculated {
    fn floats(
        &self,
        quantity: Quantity,
        layer: usize,
        rows: Range<usize>,
        columns: usize,
    ) -> Result<Option<Vec<f32>>, StepError> {
        let values = self.values.get(&(quantity, layer));
        Ok(values
            .and_then(|v| v.get(rows.start * columns..rows.end * columns))
            .map(<[f32]>::to_vec))
    }

    fn experts(
        &self,
        layer: usize,
        rows: Range<usize>,
    ) -> Result<Option<Vec<Vec<u32>>>, StepError> {
        let ids = self.experts.get(&layer);
        Ok(ids.and_then(|ids| ids.get(rows)).map(<[Vec<u32>]>::to_vec))
    }

    fn step(&self, position: usize) -> Result<Option<ReferenceStep>, StepError> {
        let logits = self
            .values
            .iter()
            .find(|((quantity, _), _)| *quantity == Quantity::Logits);
        let row = position * self.vocab..(position + 1) * self.vocab;
        let row = logits
            .and_then(|(_, values)| values.get(row))
            .filter(|_| position + 1 >= self.prompt);
        Ok(row.map(|row| ReferenceStep {
            token: argmax(row),
            top: Vec::new(),
        }))
    }

    fn router_margin(&self) -> Option<f64> {
        None
    }
}

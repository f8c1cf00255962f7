//! A trace that is recorded while a model runs, and written.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use segpack_formats::Result;
use segpack_formats::io::PendingFile;
use segpack_formats::numeric::Dtype;
use segpack_manifests::documents::GENERATOR;
use segpack_manifests::families::TextFacts;
use segpack_manifests::json::write_document;
use serde_json::{Map, Value, json};

use super::encoders::{EncoderRecorder, put_features};
use super::tensor::{Tensor, float_bytes};
use super::{MEDIA_FORMAT, RecordedFile, TRACE_FORMAT, tensor_name};
use crate::models::decoder::{Observer, Routing};
use crate::models::encoder::EncoderObserver;
use crate::processing::MediaFeatures;
use crate::tensor::Compute;

/// Tokens of every step whose logits a trace keeps.
const TOP: usize = 10;

/// The files of a trace, reserved before anything is computed: whoever cannot write them is told at
/// once. Dropped, they leave nothing.
#[derive(Debug)]
pub struct TraceFiles {
    tensors: PendingFile,
    document: PendingFile,
}

impl TraceFiles {
    /// Of the trace at `path`, which ends in `.safetensors`; the `.json` file is beside it.
    ///
    /// # Errors
    /// `Io` where one of them cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self {
            tensors: PendingFile::create(path)?,
            document: PendingFile::create(&path.with_extension("json"))?,
        })
    }
}

/// Records a trace while a model runs: prompt by prompt, each in one forward pass with all logits,
/// then token by token. A prompt with audio, images or videos is the only one of its trace, which
/// [`MediaTrace`](super::MediaTrace) reads.
///
/// Hand it to every forward pass as its observer.
#[derive(Debug)]
pub struct TraceRecorder {
    compute: Compute,
    facts: TextFacts,
    tensors: BTreeMap<String, Tensor>,
    prompts: Vec<Value>,
    ids: Vec<u32>,
    generated: Vec<u32>,
    gaps: Vec<f32>,
    margin: f32,
    is_decoding: bool,
    encoders: [EncoderRecorder; 3],
    /// What is said of a prompt with media; `None`: text alone.
    conversation: Option<Map<String, Value>>,
}

impl TraceRecorder {
    /// Records what this model computes in this precision.
    pub fn new(compute: Compute, facts: &TextFacts) -> Self {
        Self {
            compute,
            facts: facts.clone(),
            tensors: BTreeMap::new(),
            prompts: Vec::new(),
            ids: Vec::new(),
            generated: Vec::new(),
            gaps: Vec::new(),
            margin: f32::INFINITY,
            is_decoding: false,
            encoders: EncoderRecorder::all(compute, facts.hidden_size),
            conversation: None,
        }
    }

    /// The prompt has media: what encoders get of them.
    pub fn media(&mut self, media: &MediaFeatures) {
        put_features(&mut self.encoders, media);
        self.describe("level", json!("full"));
        self.describe("use_audio_in_video", json!(media.use_audio_in_video));
    }

    /// Says something of a prompt with media in the `.json` file: readers look there for `recipe`.
    pub fn describe(&mut self, key: &str, value: Value) {
        let conversation = self.conversation.get_or_insert_default();
        conversation.insert(key.to_owned(), value);
    }

    /// Record what the encoders of audio, of images and of videos compute.
    pub fn encoders(&mut self) -> [&mut dyn EncoderObserver; 3] {
        self.encoders.each_mut().map(|encoder| encoder as _)
    }

    /// A prompt begins; its forward pass comes next.
    pub fn begin(&mut self, ids: &[u32]) {
        ids.clone_into(&mut self.ids);
        self.generated.clear();
        self.gaps.clear();
        self.margin = f32::INFINITY;
        self.is_decoding = false;
        self.put_ids("input_ids", &[ids.len()], ids);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "as many as there are token ids in memory"
        )]
        let positions: Vec<u32> = (0..3).flat_map(|_| 0..ids.len() as u32).collect();
        self.put_ids("position_ids", &[3, ids.len()], &positions);
    }

    /// As [`begin`](Self::begin), of a prompt with media: where its tokens are.
    pub fn begin_media(&mut self, ids: &[u32], places: &[[f32; 3]]) {
        self.begin(ids);
        let axes = (0..3).flat_map(|axis| places.iter().map(move |place| place[axis]));
        let positions: Vec<f32> = axes.collect();
        let last = positions.iter().copied().fold(0.0, f32::max);
        #[expect(clippy::cast_precision_loss, reason = "positions are f32, as in torch")]
        let delta = last + 1.0 - ids.len() as f32;
        let shape = [3, ids.len()];
        self.put(
            "position_ids",
            Dtype::F32,
            &shape,
            float_bytes(Compute::F32, &positions),
        );
        self.put(
            "rope_delta",
            Dtype::F32,
            &[1],
            float_bytes(Compute::F32, &[delta]),
        );
    }

    /// The logits of every position of the prompt, `[tokens, vocabulary]`. What follows is
    /// generation.
    pub fn logits(&mut self, logits: &[f32]) {
        self.put_rows("logits", self.ids.len(), logits);
        self.is_decoding = true;
    }

    /// A generated token and the logits, `[vocabulary]`, that it was chosen from.
    pub fn token(&mut self, id: u32, logits: &[f32]) {
        let mut order: Vec<u32> = (0_u32..).take(logits.len()).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize])); // stable: the lower id on ties
        order.truncate(TOP);
        let best: Vec<f32> = order.iter().map(|id| logits[*id as usize]).collect();
        self.generated.push(id);
        self.gaps
            .push(best.first().unwrap_or(&0.0) - best.get(1).unwrap_or(&0.0));
        self.add_rows("gen.ids", Dtype::I64, &[], id_bytes(&[id]));
        if self.conversation.is_some() {
            return;
        }
        self.add_rows("gen.top_ids", Dtype::I64, &[order.len()], id_bytes(&order));
        self.add_rows(
            "gen.top_logits",
            Dtype::F32,
            &[best.len()],
            float_bytes(Compute::F32, &best),
        );
    }

    /// The prompt is over. `notes` go into its entry of the `.json` file.
    pub fn end(&mut self, notes: Map<String, Value>) {
        let mut entry = Map::new();
        entry.insert("prompt".to_owned(), json!(self.prompts.len()));
        entry.extend(notes);
        entry.insert("input_ids".to_owned(), json!(self.ids));
        entry.insert("router_source".to_owned(), json!("segpack"));
        if !self.generated.is_empty() {
            entry.insert("generated".to_owned(), json!(self.generated));
            entry.insert("gap".to_owned(), json!(self.gaps));
            entry.insert(
                "min_gap".to_owned(),
                json!(self.gaps.iter().copied().fold(f32::INFINITY, f32::min)),
            );
        }
        if self.margin.is_finite() {
            entry.insert("min_router_margin".to_owned(), json!(self.margin));
        }
        self.prompts.push(Value::Object(entry));
    }

    fn name(&self, name: &str) -> String {
        match self.conversation {
            Some(_) => media_name(name),
            None => tensor_name(self.prompts.len(), name),
        }
    }

    fn put(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) {
        let shape = shape.iter().map(|&side| side as u64).collect();
        let tensor = Tensor {
            dtype,
            shape,
            bytes,
        };
        self.tensors.insert(self.name(name), tensor);
    }

    fn put_ids(&mut self, name: &str, shape: &[usize], ids: &[u32]) {
        self.put(name, Dtype::I64, shape, id_bytes(ids));
    }

    /// Activations, one row per token.
    fn put_rows(&mut self, name: &str, tokens: usize, values: &[f32]) {
        let tensor = Tensor::activations(self.compute, tokens, values);
        self.tensors.insert(self.name(name), tensor);
    }

    /// One more row of a tensor that grows; `row` is the shape of a row.
    fn add_rows(&mut self, name: &str, dtype: Dtype, row: &[usize], bytes: Vec<u8>) {
        let whole = self.name(name);
        if let Some(tensor) = self.tensors.get_mut(&whole) {
            tensor.shape[0] += 1;
            tensor.bytes.extend(bytes);
        } else {
            self.put(name, dtype, &[&[1], row].concat(), bytes);
        }
    }

    fn observe(&mut self, name: &str, values: &[f32]) {
        if !self.is_decoding {
            self.put_rows(name, self.ids.len(), values);
        }
    }

    fn note_margin(&mut self, logits: &[f32]) {
        let best = self.facts.experts_per_token as usize;
        for row in logits.chunks_exact((self.facts.experts as usize).max(1)) {
            let mut row = row.to_vec();
            row.sort_by(|a, b| b.total_cmp(a));
            if let [.., last, first] = row[..row.len().min(best + 1)] {
                // with as many chosen as there are, none is rejected
                self.margin = if best < row.len() {
                    self.margin.min(last - first)
                } else {
                    self.margin
                };
            }
        }
    }

    /// Writes both files: the tensors to `path`, which ends in `.safetensors`, and the `.json` file
    /// beside it. `settings` are added to those of the format; `checkpoint` are the files of the
    /// model.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(
        &self,
        path: &Path,
        settings: Map<String, Value>,
        checkpoint: &BTreeMap<String, RecordedFile>,
    ) -> Result<()> {
        self.write_to(TraceFiles::create(path)?, settings, checkpoint)
    }

    /// As [`write`](Self::write), into files that were reserved before.
    ///
    /// # Errors
    /// `Io`.
    pub fn write_to(
        &self,
        files: TraceFiles,
        settings: Map<String, Value>,
        checkpoint: &BTreeMap<String, RecordedFile>,
    ) -> Result<()> {
        let f = &self.facts;
        let mut all = Map::new();
        let dtype = if self.compute == Compute::F32 {
            "float32"
        } else {
            "bfloat16"
        };
        all.insert("dtype".to_owned(), json!(dtype));
        all.insert("device".to_owned(), json!("cpu"));
        all.insert("level".to_owned(), json!("full"));
        all.insert("top".to_owned(), json!(TOP));
        all.extend(settings);
        let model = json!({
                "vocab_size": f.vocab, "hidden_size": f.hidden_size, "num_hidden_layers": f.layers,
                "num_attention_heads": f.heads, "num_key_value_heads": f.kv_heads, "head_dim": f.head_dim,
                "num_experts": f.experts, "num_experts_per_tok": f.experts_per_token,
                "moe_intermediate_size": f.moe_intermediate, "intermediate_size": f.intermediate,
                "norm_topk_prob": f.norm_topk_prob, "attention_bias": f.attention_bias,
                "rms_norm_eps": f.rms_norm_eps, "rope_theta": f.rope_theta,
        });
        let mut document = Map::new();
        let mut say = |key: &str, value: Value| document.insert(key.to_owned(), value);
        say("format", json!(self.format()));
        let trace = files.tensors.path().file_name().unwrap_or_default();
        say("trace", json!(trace.to_string_lossy()));
        say("settings", Value::Object(all));
        say("versions", json!({"segpack": GENERATOR}));
        say("model", model);
        if let Some(conversation) = &self.conversation {
            say("conversation", json!(conversation));
            // traces of media have digests alone
            let digests = checkpoint
                .iter()
                .filter_map(|(name, file)| Some((name, file.sha256?)));
            say("checkpoint", json!(digests.collect::<BTreeMap<_, _>>()));
            if let Some(Value::Object(prompt)) = self.prompts.first() {
                document.extend(prompt.clone());
            }
        } else {
            say("checkpoint", json!(checkpoint));
            say("prompts", json!(self.prompts));
        }
        files.tensors.publish(|out| self.write_tensors(out))?;
        files.document.publish(|out| write_document(out, &document))
    }

    fn format(&self) -> &'static str {
        match self.conversation {
            Some(_) => MEDIA_FORMAT,
            None => TRACE_FORMAT,
        }
    }

    /// What the tensors' file says of itself: of media also the dtype, which readers want without
    /// the `.json` file.
    fn metadata(&self) -> String {
        let format = self.format();
        match (&self.conversation, self.compute) {
            (None, _) => format.to_owned(),
            (Some(_), Compute::F32) => format!("{format} {}", json!({"dtype": "float32"})),
            (Some(_), Compute::Bf16) => format!("{format} {}", json!({"dtype": "bfloat16"})),
        }
    }

    /// Wide dtypes first, as the stock writer orders them, so that every tensor is aligned.
    fn write_tensors(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let encoders = self.encoders.iter().flat_map(|encoder| &encoder.tensors);
        let encoders: BTreeMap<String, &Tensor> = encoders
            .map(|(name, tensor)| (media_name(name), tensor))
            .collect();
        let mut tensors: Vec<(&String, &Tensor)> = self.tensors.iter().collect();
        tensors.extend(encoders.iter().map(|(name, tensor)| (name, *tensor)));
        tensors.sort_by_key(|(_, t)| std::cmp::Reverse(t.dtype.bitsize())); // stable: then by name
        let mut header = Map::new();
        header.insert(
            "__metadata__".to_owned(),
            json!({"format": self.metadata()}),
        );
        let mut at = 0;
        for (name, t) in &tensors {
            let end = at + t.bytes.len() as u64;
            let entry =
                json!({"dtype": t.dtype.to_string(), "shape": t.shape, "data_offsets": [at, end]});
            header.insert((*name).clone(), entry);
            at = end;
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        tensors
            .iter()
            .try_for_each(|(_, t)| out.write_all(&t.bytes))
    }
}

impl Observer for TraceRecorder {
    fn embed(&mut self, x: &[f32]) {
        match self.conversation {
            Some(_) => self.observe("embeds", x),
            None => self.observe("embed", x),
        }
    }

    fn attention(&mut self, layer: usize, x: &[f32]) {
        if self.conversation.is_none() {
            self.observe(&format!("layer.{layer}.attn_out"), x);
        }
    }

    fn mlp(&mut self, layer: usize, x: &[f32]) {
        if self.conversation.is_none() {
            self.observe(&format!("layer.{layer}.mlp_out"), x);
        }
    }

    fn hidden(&mut self, layer: usize, x: &[f32]) {
        self.observe(&format!("layer.{layer}.hidden"), x);
    }

    fn router(&mut self, layer: usize, routing: &Routing) {
        self.note_margin(&routing.logits);
        let best = self.facts.experts_per_token as usize;
        if self.is_decoding {
            if self.conversation.is_none() {
                let name = format!("gen.layer.{layer}.topk_ids");
                self.add_rows(&name, Dtype::I64, &[best], id_bytes(&routing.ids));
            }
            return;
        }
        let tokens = self.ids.len();
        self.put_rows(
            &format!("layer.{layer}.router_logits"),
            tokens,
            &routing.logits,
        );
        self.put_ids(
            &format!("layer.{layer}.topk_ids"),
            &[tokens, best],
            &routing.ids,
        );
        if self.conversation.is_some() {
            return;
        }
        let shape = [tokens, self.facts.experts as usize];
        let probabilities = float_bytes(Compute::F32, &routing.probabilities);
        self.put(
            &format!("layer.{layer}.router_probs"),
            Dtype::F32,
            &shape,
            probabilities,
        );
        self.put_rows(
            &format!("layer.{layer}.topk_weights"),
            tokens,
            &routing.weights,
        );
    }

    fn norm(&mut self, x: &[f32]) {
        self.observe("norm", x);
    }
}

fn media_name(name: &str) -> String {
    format!("mm.{name}")
}

fn id_bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter()
        .flat_map(|id| i64::from(*id).to_le_bytes())
        .collect()
}

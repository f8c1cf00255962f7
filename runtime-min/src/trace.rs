//! Traces: what a model computed for some prompts, in the format of the reference script
//! (`make_reference.py record`).
//!
//! One `.safetensors` file and one `.json` file beside it. `pNN.` is the prompt number; T = prompt
//! length, H = hidden, V = vocabulary, E = experts, K = experts per token, N = generated tokens;
//! `act` is the dtype of the activations.
//!
//! ```text
//! pNN.input_ids              [T]     I64    pNN.layer.L.router_logits  [T,E]   act
//! pNN.embed                  [T,H]   act    pNN.layer.L.router_probs   [T,E]   F32
//! pNN.layer.L.attn_out       [T,H]   act    pNN.layer.L.topk_ids       [T,K]   I64
//! pNN.layer.L.mlp_out        [T,H]   act    pNN.layer.L.topk_weights   [T,K]   act
//! pNN.layer.L.hidden         [T,H]   act    pNN.gen.ids                [N]     I64
//! pNN.norm                   [T,H]   act    pNN.gen.top_ids            [N,10]  I64
//! pNN.logits                 [T,V]   act    pNN.gen.top_logits         [N,10]  F32
//! pNN.position_ids           [3,T]   I64    pNN.gen.layer.L.topk_ids   [N-1,K] I64
//! ```
//!
//! A server tells less: its tokens, and the log-probabilities of the best few. A trace recorded
//! from one has `"values": "log_probabilities"` under `settings`, and in place of all the rest
//!
//! ```text
//! pNN.input_ids              [T]     I64    pNN.gen.ids                [N]     I64
//! pNN.gen.top_ids            [N,R]   I64    pNN.gen.top_logprobs       [N,R]   F32
//! pNN.prompt.top_ids         [T-1,R] I64    pNN.prompt.top_logprobs    [T-1,R] F32
//! ```
//!
//! R is as many as the server lists (`gen.` and `prompt.` each their own); rows are natural
//! logarithms, best first. Row i of `prompt.` is what follows token i of the prompt, row i of
//! `gen.` is what `gen.ids[i]` was chosen from. An id of -1 beside a number is a token that the
//! server did not identify; NaN ends a row that is shorter than R. Both pairs may be absent.
//! `settings.dtype` is then what the server computed in, in its own words (`float32`, `bfloat16`,
//! `q8_0`).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use segpack_formats::digest::Sha256;
use segpack_formats::safetensors::{Dtype, Shard, TensorEntry};
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::GENERATOR;
use segpack_manifests::families::TextFacts;
use segpack_manifests::json::write_document;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::observer::{Observer, Routing};
use crate::ops::{Compute, widen};

/// What the reference script calls this format.
pub const TRACE_FORMAT: &str = "qwen3-omni-thinker-trace-1";
/// Tokens of every step whose logits a trace keeps.
const TOP: usize = 10;

/// A file of the checkpoint that a trace was recorded from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFile {
    /// Bytes.
    pub size: u64,
    /// Its digest; none for files that the script found too large.
    pub sha256: Option<Sha256>,
}

/// A token that a server lists among the best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Which; none where the server's words did not identify it.
    pub id: Option<u32>,
    /// Natural logarithm of its probability.
    pub log_probability: f32,
}

/// Where a distribution belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// After this token of the prompt, which is not its last.
    Prompt(usize),
    /// This step of the generation.
    Step(usize),
}

/// What the `.json` file says of a prompt.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct TracePrompt {
    /// The prompt.
    pub input_ids: Vec<u32>,
    /// The greedy continuation.
    #[serde(default)]
    pub generated: Vec<u32>,
    /// Whether the official bf16 code agrees with itself on this prompt.
    #[serde(default)]
    pub bf16_stable: bool,
    /// Smallest router-logit distance between a chosen and a rejected expert, over all layers and
    /// tokens.
    #[serde(default)]
    pub min_router_margin: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Document {
    format: String,
    #[serde(default)]
    trace: Option<String>,
    settings: Settings,
    #[serde(default)]
    checkpoint: BTreeMap<String, RecordedFile>,
    prompts: Vec<TracePrompt>,
}

#[derive(Debug, Deserialize)]
struct Settings {
    dtype: String,
    #[serde(default)]
    level: Option<String>,
    #[serde(default)]
    values: Values,
}

/// What a trace holds of the distributions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Values {
    #[default]
    Logits,
    LogProbabilities,
}

/// An open trace. Tensors are read when they are asked for.
#[derive(Debug)]
pub struct Trace {
    shard: Shard,
    places: HashMap<String, usize>,
    compute: Compute,
    settings: Settings,
    checkpoint: BTreeMap<String, RecordedFile>,
    prompts: Vec<TracePrompt>,
}

impl Trace {
    /// Opens a trace by either of its two files.
    ///
    /// # Errors
    /// `Io`; `Malformed` where it breaks the format or is a multimodal trace.
    pub fn open(path: &Path) -> Result<Self> {
        let (tensors, document) = match path.extension().and_then(|e| e.to_str()) {
            Some("json") => {
                let document = read_document(path)?;
                (tensors_beside(path, &document), Some(document))
            }
            Some("safetensors") => (path.to_owned(), None),
            _ => {
                return Err(FormatError::malformed(
                    path,
                    "is no trace: wanted a .safetensors or .json file",
                ));
            }
        };
        let shard = Shard::open(&tensors)?;
        if shard
            .header
            .tensors
            .iter()
            .any(|t| t.name.starts_with("mm.") || t.name.starts_with("talk."))
        {
            let what = "is a multimodal trace; multimodal traces are not supported yet, only text";
            return Err(FormatError::malformed(&tensors, what));
        }
        let document = match document {
            Some(document) => document,
            None => read_document(&path.with_extension("json"))?,
        };
        Self::new(shard, document)
    }

    fn new(shard: Shard, document: Document) -> Result<Self> {
        let compute = match (document.settings.dtype.as_str(), document.settings.values) {
            ("float32", _) | (_, Values::LogProbabilities) => Compute::F32,
            ("bfloat16", _) => Compute::Bf16,
            (other, _) => {
                let what =
                    format!("settings.dtype is {other:?}; wanted \"float32\" or \"bfloat16\"");
                return Err(FormatError::malformed(
                    &shard.input.path().with_extension("json"),
                    what,
                ));
            }
        };
        let names = shard
            .header
            .tensors
            .iter()
            .enumerate()
            .map(|(i, t)| (t.name.clone(), i));
        let trace = Self {
            places: names.collect(),
            shard,
            compute,
            settings: document.settings,
            checkpoint: document.checkpoint,
            prompts: document.prompts,
        };
        if trace.prompts.is_empty() {
            return Err(trace.malformed("lists no prompt"));
        }
        for prompt in 0..trace.prompts.len() {
            trace.check_prompt(prompt)?;
        }
        Ok(trace)
    }

    /// The two files agree, and the positions are those of text.
    fn check_prompt(&self, prompt: usize) -> Result<()> {
        let recorded = &self.prompts[prompt];
        let tokens = recorded.input_ids.len();
        if tokens == 0 {
            return Err(self.malformed(format!("prompt {prompt} has no tokens")));
        }
        for (name, wanted) in [
            ("input_ids", &recorded.input_ids),
            ("gen.ids", &recorded.generated),
        ] {
            let seen = self.ids(prompt, name, &[wanted.len()], 0..wanted.len())?;
            let optional = name == "gen.ids" && wanted.is_empty();
            if seen.as_ref() != Some(wanted) && !(optional && seen.is_none()) {
                let name = tensor_name(prompt, name);
                return Err(self.malformed(format!(
                    "{name} is missing, or not what the .json file says"
                )));
            }
        }
        if let Some(positions) = self.ids(prompt, "position_ids", &[3, tokens], 0..3)? {
            let is_text = positions.chunks_exact(tokens).all(|row| {
                row.iter()
                    .zip(0_u32..)
                    .all(|(seen, wanted)| *seen == wanted)
            });
            if !is_text {
                return Err(self.malformed(format!(
                    "prompt {prompt} has positions that are not those of text"
                )));
            }
        }
        if self.has_log_probabilities() {
            let told = !recorded.generated.is_empty()
                || self.shape(prompt, "prompt.top_logprobs").is_some();
            let nothing =
                || self.malformed(format!("tells nothing of what follows prompt {prompt}"));
            return told.then_some(()).ok_or_else(nothing);
        }
        match self.shape(prompt, "logits") {
            Some(_) => Ok(()),
            None => {
                Err(self.malformed(format!("has no tensor {:?}", tensor_name(prompt, "logits"))))
            }
        }
    }

    /// The file that holds the tensors.
    pub fn path(&self) -> &Path {
        self.shard.input.path()
    }

    /// The precision to compute in for a comparison: that of the activations, and f32 for a trace
    /// of log-probabilities, which rounds differently from us whatever it rounds to.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// What the reference computed in, in its own words.
    pub fn dtype(&self) -> &str {
        &self.settings.dtype
    }

    /// Whether tokens and log-probabilities are all that it holds.
    pub fn has_log_probabilities(&self) -> bool {
        self.settings.values == Values::LogProbabilities
    }

    /// How much was recorded, as the script calls it: `full`, `router`, `logits`.
    pub fn level(&self) -> Option<&str> {
        self.settings.level.as_deref()
    }

    /// The files of the checkpoint that it was recorded from; empty where that was none on disk.
    pub fn checkpoint(&self) -> &BTreeMap<String, RecordedFile> {
        &self.checkpoint
    }

    /// All prompts.
    pub fn prompts(&self) -> &[TracePrompt] {
        &self.prompts
    }

    fn malformed(&self, what: impl Into<String>) -> FormatError {
        FormatError::malformed(self.path(), what)
    }

    fn entry(&self, prompt: usize, name: &str) -> Option<&TensorEntry> {
        self.places
            .get(&tensor_name(prompt, name))
            .map(|&i| &self.shard.header.tensors[i])
    }

    /// The shape of a tensor, if it was recorded.
    pub fn shape(&self, prompt: usize, name: &str) -> Option<&[u64]> {
        self.entry(prompt, name).map(|t| &t.shape[..])
    }

    /// Some rows of a tensor of floats, widened; none where it was not recorded.
    ///
    /// # Errors
    /// `Malformed` where its shape or dtype is not the wanted one; `Io`.
    pub fn floats(
        &self,
        prompt: usize,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<Option<Vec<f32>>> {
        let Some(entry) = self.entry(prompt, name) else {
            return Ok(None);
        };
        if !matches!(entry.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Err(self.malformed(format!(
                "tensor {:?} is {}; wanted floats",
                entry.name, entry.dtype
            )));
        }
        let (bytes, count) = self.rows(entry, shape, rows)?;
        let mut values = vec![0.0; count];
        widen(entry.dtype, &bytes, &mut values);
        Ok(Some(values))
    }

    /// Some rows of a tensor of ids; none where it was not recorded.
    ///
    /// # Errors
    /// As [`floats`](Self::floats), and where a number is no id.
    pub fn ids(
        &self,
        prompt: usize,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<Option<Vec<u32>>> {
        let Some(numbers) = self.integers(prompt, name, shape, rows)? else {
            return Ok(None);
        };
        match numbers.into_iter().map(u32::try_from).collect() {
            Ok(ids) => Ok(Some(ids)),
            Err(_) => Err(self.no_id(prompt, name)),
        }
    }

    fn no_id(&self, prompt: usize, name: &str) -> FormatError {
        self.malformed(format!(
            "tensor {:?} holds a number that is no id",
            tensor_name(prompt, name)
        ))
    }

    fn integers(
        &self,
        prompt: usize,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<Option<Vec<i64>>> {
        let Some(entry) = self.entry(prompt, name) else {
            return Ok(None);
        };
        if entry.dtype != Dtype::I64 {
            return Err(self.malformed(format!(
                "tensor {:?} is {}; wanted I64",
                entry.name, entry.dtype
            )));
        }
        let (bytes, _) = self.rows(entry, shape, rows)?;
        Ok(Some(
            bytes
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| i64::from_le_bytes(*b))
                .collect(),
        ))
    }

    /// The best tokens there, best first, of a trace of log-probabilities; empty where none were
    /// recorded.
    ///
    /// # Errors
    /// `Malformed` where the tensors are not what the format says; `Io`.
    pub fn ranked(&self, prompt: usize, place: Place) -> Result<Vec<Ranked>> {
        let recorded = &self.prompts[prompt];
        let (kind, rows, row) = match place {
            Place::Prompt(row) => ("prompt", recorded.input_ids.len() - 1, row),
            Place::Step(row) => ("gen", recorded.generated.len(), row),
        };
        let name = format!("{kind}.top_logprobs");
        let Some(columns) = self
            .shape(prompt, &name)
            .and_then(|shape| shape.get(1).copied())
        else {
            return Ok(Vec::new());
        };
        let shape = [rows, usize::try_from(columns).unwrap_or(usize::MAX)];
        let numbers = self
            .floats(prompt, &name, &shape, row..row + 1)?
            .unwrap_or_default();
        let ids_name = format!("{kind}.top_ids");
        let Some(ids) = self.integers(prompt, &ids_name, &shape, row..row + 1)? else {
            return Err(self.malformed(format!(
                "has no tensor {:?}",
                tensor_name(prompt, &ids_name)
            )));
        };
        let (listed, rest) = numbers.split_at(numbers.iter().take_while(|x| !x.is_nan()).count());
        // a logarithm of 1 may have been rounded upwards
        let are_ranked =
            listed.is_sorted_by(|a, b| a >= b) && listed.first().is_none_or(|x| *x < 1e-3);
        if !are_ranked || rest.iter().any(|x| !x.is_nan()) {
            let what = format!(
                "row {row} of tensor {:?} is not logarithms",
                tensor_name(prompt, &name)
            );
            return Err(self.malformed(format!("{what} of probabilities, best first")));
        }
        let pairs = ids.into_iter().zip(listed);
        let ranked = pairs.map(|(id, log_probability)| match id {
            -1 => Ok(Ranked {
                id: None,
                log_probability: *log_probability,
            }),
            id => u32::try_from(id).map(|id| Ranked {
                id: Some(id),
                log_probability: *log_probability,
            }),
        });
        ranked
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| self.no_id(prompt, &ids_name))
    }

    /// The bytes of some rows, and how many values they are.
    fn rows(
        &self,
        entry: &TensorEntry,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<(Vec<u8>, usize)> {
        let equal = entry
            .shape
            .iter()
            .copied()
            .eq(shape.iter().map(|&side| side as u64));
        let outermost = shape.first().copied().unwrap_or(1);
        if !equal || rows.end > outermost {
            let what = format!(
                "tensor {:?} has shape {:?}; wanted {shape:?}",
                entry.name, entry.shape
            );
            return Err(self.malformed(what));
        }
        let row = entry.length / (outermost as u64).max(1);
        let count = shape.iter().skip(1).product::<usize>() * rows.len();
        let start = entry.offset + rows.start as u64 * row;
        Ok((
            self.shard
                .input
                .read_range(start..start + rows.len() as u64 * row)?,
            count,
        ))
    }
}

fn tensor_name(prompt: usize, name: &str) -> String {
    format!("p{prompt:02}.{name}")
}

fn read_document(path: &Path) -> Result<Document> {
    let bytes = fs::read(path).map_err(FormatError::io("read", path))?;
    let document: Document = serde_json::from_slice(&bytes)
        .map_err(|e| FormatError::malformed(path, format!("is no description of a trace: {e}")))?;
    if document.format != TRACE_FORMAT {
        let what = format!(
            "its format is {:?}; wanted {TRACE_FORMAT:?}",
            document.format
        );
        return Err(FormatError::malformed(path, what));
    }
    Ok(document)
}

/// The tensors lie under the same name; where they do not, the `.json` file says under which.
fn tensors_beside(path: &Path, document: &Document) -> PathBuf {
    let beside = path.with_extension("safetensors");
    let named = document
        .trace
        .as_deref()
        .filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
    match named.map(|name| path.with_file_name(name)) {
        Some(named) if !beside.exists() => named,
        _ => beside,
    }
}

/// A tensor to be written.
#[derive(Debug)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

/// Records a trace while a model runs: prompt by prompt, each in one forward pass with all logits,
/// then token by token.
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
        }
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
        self.add_rows("gen.top_ids", Dtype::I64, &[order.len()], id_bytes(&order));
        self.add_rows(
            "gen.top_logits",
            Dtype::F32,
            &[best.len()],
            float_bytes(Dtype::F32, &best),
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

    fn act(&self) -> Dtype {
        match self.compute {
            Compute::F32 => Dtype::F32,
            Compute::Bf16 => Dtype::BF16,
        }
    }

    fn put(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) {
        let shape = shape.iter().map(|&side| side as u64).collect();
        self.tensors.insert(
            tensor_name(self.prompts.len(), name),
            Tensor {
                dtype,
                shape,
                bytes,
            },
        );
    }

    fn put_ids(&mut self, name: &str, shape: &[usize], ids: &[u32]) {
        self.put(name, Dtype::I64, shape, id_bytes(ids));
    }

    /// Activations, one row per token.
    fn put_rows(&mut self, name: &str, tokens: usize, values: &[f32]) {
        let shape = [tokens, values.len() / tokens.max(1)];
        self.put(name, self.act(), &shape, float_bytes(self.act(), values));
    }

    /// One more row of a tensor that grows; `row` is the shape of a row.
    fn add_rows(&mut self, name: &str, dtype: Dtype, row: &[usize], bytes: Vec<u8>) {
        if let Some(tensor) = self.tensors.get_mut(&tensor_name(self.prompts.len(), name)) {
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
        let document = json!({
            "format": TRACE_FORMAT,
            "trace": path.file_name().unwrap_or_default().to_string_lossy(),
            "settings": all,
            "versions": {"segpack": GENERATOR},
            "model": {
                "vocab_size": f.vocab, "hidden_size": f.hidden_size, "num_hidden_layers": f.layers,
                "num_attention_heads": f.heads, "num_key_value_heads": f.kv_heads, "head_dim": f.head_dim,
                "num_experts": f.experts, "num_experts_per_tok": f.experts_per_token,
                "moe_intermediate_size": f.moe_intermediate, "intermediate_size": f.intermediate,
                "norm_topk_prob": f.norm_topk_prob, "attention_bias": f.attention_bias,
                "rms_norm_eps": f.rms_norm_eps, "rope_theta": f.rope_theta,
            },
            "checkpoint": checkpoint,
            "prompts": self.prompts,
        });
        write_whole(path, |out| self.write_tensors(out))?;
        write_whole(&path.with_extension("json"), |out| {
            write_document(out, &document)
        })
    }

    /// Wide dtypes first, as the stock writer orders them, so that every tensor is aligned.
    fn write_tensors(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let mut tensors: Vec<(&String, &Tensor)> = self.tensors.iter().collect();
        tensors.sort_by_key(|(_, t)| std::cmp::Reverse(t.dtype.bitsize())); // stable: then by name
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({"format": TRACE_FORMAT}));
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
        self.observe("embed", x);
    }

    fn attention(&mut self, layer: usize, x: &[f32]) {
        self.observe(&format!("layer.{layer}.attn_out"), x);
    }

    fn mlp(&mut self, layer: usize, x: &[f32]) {
        self.observe(&format!("layer.{layer}.mlp_out"), x);
    }

    fn hidden(&mut self, layer: usize, x: &[f32]) {
        self.observe(&format!("layer.{layer}.hidden"), x);
    }

    fn router(&mut self, layer: usize, routing: &Routing) {
        self.note_margin(&routing.logits);
        let best = self.facts.experts_per_token as usize;
        if self.is_decoding {
            let name = format!("gen.layer.{layer}.topk_ids");
            self.add_rows(&name, Dtype::I64, &[best], id_bytes(&routing.ids));
            return;
        }
        let tokens = self.ids.len();
        self.put_rows(
            &format!("layer.{layer}.router_logits"),
            tokens,
            &routing.logits,
        );
        let shape = [tokens, self.facts.experts as usize];
        let probabilities = float_bytes(Dtype::F32, &routing.probabilities);
        self.put(
            &format!("layer.{layer}.router_probs"),
            Dtype::F32,
            &shape,
            probabilities,
        );
        self.put_ids(
            &format!("layer.{layer}.topk_ids"),
            &[tokens, best],
            &routing.ids,
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

fn id_bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter()
        .flat_map(|id| i64::from(*id).to_le_bytes())
        .collect()
}

/// Exact: under bf16 every activation is a bf16 value.
fn float_bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => values
            .iter()
            .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes())
            .collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// The file appears whole or not at all.
fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let file = fs::File::create(&partial).map_err(FormatError::io("create", &partial))?;
    let mut out = BufWriter::new(file);
    let written = write(&mut out)
        .and_then(|()| out.flush())
        .and_then(|()| fs::rename(&partial, path));
    written.map_err(|e| {
        let _ = fs::remove_file(&partial);
        FormatError::io("write", path)(e)
    })
}

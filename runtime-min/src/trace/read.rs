//! A trace that was recorded: opened, checked, read tensor by tensor.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use segpack_formats::digest::Sha256;
use segpack_formats::io::read_limited;
use segpack_formats::numeric::{Dtype, FloatDtype};
use segpack_formats::safetensors::{Shard, TensorInfo};
use segpack_formats::{FormatError, Result};
use serde::Deserialize;

use super::{NOT_THE_MODEL, RecordedFile, TRACE_FORMAT, tensor_name};
use crate::tensor::Compute;

/// Bytes that are read of the `.json` file: token ids of all prompts, some of each step.
const MAX_DOCUMENT_BYTES: u64 = 256 << 20;

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
    #[serde(default)]
    exported_from: Option<Sha256>,
    prompts: Vec<TracePrompt>,
}

#[derive(Debug, Deserialize)]
struct Settings {
    dtype: String,
    #[serde(default)]
    level: Option<String>,
    #[serde(default)]
    values: TraceValues,
    /// Whether routers could choose among some experts only.
    #[serde(default)]
    restricted_experts: bool,
}

/// What a trace holds of the distributions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TraceValues {
    #[default]
    Logits,
    LogProbabilities,
}

/// An open trace. Tensors are read on demand.
#[derive(Debug)]
pub struct Trace {
    shard: Shard,
    places: HashMap<String, usize>,
    compute: Compute,
    settings: Settings,
    checkpoint: BTreeMap<String, RecordedFile>,
    exported_from: Option<Sha256>,
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
            let what = "is a trace of media or speech; a trace of text is wanted here";
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
            ("float32", _) | (_, TraceValues::LogProbabilities) => Compute::F32,
            ("bfloat16", _) => Compute::Bf16,
            (other, _) => {
                let what =
                    format!("settings.dtype is {other:?}; wanted \"float32\" or \"bfloat16\"");
                return Err(FormatError::malformed(
                    &shard.input.name().with_extension("json"),
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
            exported_from: document.exported_from,
            prompts: document.prompts,
        };
        if trace.settings.restricted_experts {
            return Err(trace.malformed(NOT_THE_MODEL));
        }
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
            let ranks_prompt = self.shape(prompt, "prompt.top_logprobs").is_some();
            if recorded.generated.is_empty() && !ranks_prompt {
                let what = format!("has nothing that follows prompt {prompt}");
                return Err(self.malformed(what));
            }
            return Ok(());
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
        self.shard.input.name()
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
        self.settings.values == TraceValues::LogProbabilities
    }

    /// How much was recorded, as the script calls it: `full`, `router`, `logits`.
    pub fn level(&self) -> Option<&str> {
        self.settings.level.as_deref()
    }

    /// The files of the checkpoint that it was recorded from; empty where that was none on disk.
    pub fn checkpoint(&self) -> &BTreeMap<String, RecordedFile> {
        &self.checkpoint
    }

    /// SHA-256 of the manifest of the pack that the checkpoint was exported from; `None` where it was
    /// no export.
    pub fn exported_from(&self) -> Option<Sha256> {
        self.exported_from
    }

    /// All prompts.
    pub fn prompts(&self) -> &[TracePrompt] {
        &self.prompts
    }

    pub(super) fn malformed(&self, what: impl Into<String>) -> FormatError {
        FormatError::malformed(self.path(), what)
    }

    fn entry(&self, prompt: usize, name: &str) -> Option<&TensorInfo> {
        self.places
            .get(&tensor_name(prompt, name))
            .map(|&i| &self.shard.header.tensors[i])
    }

    /// The shape of a tensor, if it was recorded.
    pub fn shape(&self, prompt: usize, name: &str) -> Option<&[u64]> {
        self.entry(prompt, name).map(|t| &t.shape[..])
    }

    /// Some rows of a tensor of floats, widened. `None`: it was not recorded.
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
        let dtype = FloatDtype::try_from(entry.dtype)
            .map_err(|e| self.malformed(format!("tensor {:?}: {e}", entry.name)))?;
        let (bytes, count) = self.rows(entry, shape, rows)?;
        let mut values = vec![0.0; count];
        dtype.widen(&bytes, &mut values);
        Ok(Some(values))
    }

    /// Some rows of a tensor of ids. `None`: it was not recorded.
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

    pub(super) fn no_id(&self, prompt: usize, name: &str) -> FormatError {
        self.malformed(format!(
            "tensor {:?} holds a number that is no id",
            tensor_name(prompt, name)
        ))
    }

    pub(super) fn integers(
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

    /// The bytes of some rows, and how many values they are.
    fn rows(
        &self,
        entry: &TensorInfo,
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

fn read_document(path: &Path) -> Result<Document> {
    let bytes = read_limited(path, MAX_DOCUMENT_BYTES)?;
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

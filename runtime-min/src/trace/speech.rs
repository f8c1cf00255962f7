//! A trace of spoken answers: opened, checked, read case by case.

use std::collections::BTreeMap;
use std::path::Path;

use segpack_formats::digest::Sha256;
use segpack_formats::io::read_limited;
use segpack_formats::safetensors::Shard;
use segpack_formats::{FormatError, Result};
use serde::Deserialize;

use super::media::{Document as Features, MediaTrace};
use crate::tensor::Compute;

/// What the reference script calls a trace of spoken answers.
pub const SPEECH_FORMAT: &str = "qwen3-omni-speech-trace-1";
/// Bytes that are read of the `.json` file.
const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

#[derive(Debug, Deserialize)]
struct Document {
    settings: Settings,
    #[serde(default)]
    checkpoint: BTreeMap<String, Sha256>,
    #[serde(default)]
    cases: Vec<Case>,
}

#[derive(Debug, Clone, Deserialize)]
struct Settings {
    #[serde(default)]
    text_tokens: Option<usize>,
    #[serde(default)]
    talker_tokens: Option<usize>,
    #[serde(default)]
    repetition_penalty: Option<f32>,
}

#[derive(Debug, Clone, Deserialize)]
struct Case {
    case: usize,
    #[serde(default)]
    speaker: Option<String>,
}

/// A spoken answer that was recorded. Its tensors are read by the names of
/// `make_speech_reference.py`, without `sNN.` in front.
#[derive(Debug)]
pub struct SpeechCase {
    /// Its number.
    pub number: usize,
    /// Who spoke.
    pub speaker: String,
    /// The tensors, and the features of its prompt.
    pub tensors: MediaTrace,
    /// The answer, with the token that ended it.
    pub answer: Vec<u32>,
}

/// An open trace of spoken answers. Tensors are read on demand.
#[derive(Debug)]
pub struct SpeechTrace {
    document: Document,
    cases: Vec<SpeechCase>,
}

impl SpeechTrace {
    /// Opens a trace by either of its two files. `None`: it is another kind of trace, or holds sound
    /// of given codes alone.
    ///
    /// # Errors
    /// `Io`; `Malformed` where it breaks the format.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let beside = path.with_extension("json");
        let tensors = path.with_extension("safetensors");
        let is_known = matches!(
            path.extension().and_then(|e| e.to_str()),
            Some("json" | "safetensors")
        );
        if !is_known || !beside.exists() {
            return Ok(None);
        }
        let bytes = read_limited(&beside, MAX_DOCUMENT_BYTES)?;
        let wrong =
            |e| FormatError::malformed(&beside, format!("is no description of a trace: {e}"));
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(wrong)?;
        let format = value.get("format").and_then(serde_json::Value::as_str);
        if format != Some(SPEECH_FORMAT) {
            return Ok(None);
        }
        let features: Features = serde_json::from_value(value.clone()).map_err(wrong)?;
        let document: Document = serde_json::from_value(value).map_err(wrong)?;
        let mut cases = Vec::new();
        for case in &document.cases {
            if let Some(speaker) = &case.speaker {
                let prefix = format!("s{:02}", case.case);
                let trace = MediaTrace::new(Shard::open(&tensors)?, features.clone(), &prefix)?;
                let answer = trace.token_ids("text_ids")?.unwrap_or_default();
                cases.push(SpeechCase {
                    number: case.case,
                    speaker: speaker.clone(),
                    tensors: trace,
                    answer,
                });
            }
        }
        if cases.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { document, cases }))
    }

    /// The spoken answers.
    pub fn cases(&self) -> &[SpeechCase] {
        &self.cases
    }

    /// The file that holds the tensors.
    pub fn path(&self) -> &Path {
        self.cases[0].tensors.path()
    }

    /// The precision that the reference computed in.
    pub fn compute(&self) -> Compute {
        self.cases[0].tensors.compute()
    }

    /// Digests of the files of the checkpoint that it was recorded from.
    pub fn checkpoint(&self) -> &BTreeMap<String, Sha256> {
        &self.document.checkpoint
    }

    /// Tokens that the thinker generated at most.
    pub fn text_tokens(&self) -> usize {
        self.document.settings.text_tokens.unwrap_or(128)
    }

    /// First codes that the talker chose at most.
    pub fn talker_tokens(&self) -> usize {
        self.document.settings.talker_tokens.unwrap_or(4096)
    }

    /// How much less likely a first code was that had been chosen before.
    pub fn repetition_penalty(&self) -> f32 {
        self.document.settings.repetition_penalty.unwrap_or(1.05)
    }
}

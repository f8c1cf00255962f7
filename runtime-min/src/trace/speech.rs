//! A trace of spoken answers, or of sound of given codes: opened, checked, read case by case.

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
/// What it calls a trace of sound of given codes.
pub const WAVE_FORMAT: &str = "qwen3-omni-wav-trace-1";
/// Bytes that are read of the `.json` file.
const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

#[derive(Debug, Deserialize)]
struct Document {
    settings: Settings,
    #[serde(default)]
    checkpoint: BTreeMap<String, Sha256>,
    #[serde(default)]
    exported_from: Option<Sha256>,
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
    #[serde(default)]
    given_text: bool,
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

/// Sound of given codes that was recorded.
#[derive(Debug)]
pub struct WaveCase {
    /// Its number.
    pub number: usize,
    /// The tensors, by their names without `wNN.` in front.
    pub tensors: MediaTrace,
}

/// An open trace of spoken answers, or of sound of given codes. Tensors are read on demand.
#[derive(Debug)]
pub struct SpeechTrace {
    document: Document,
    cases: Vec<SpeechCase>,
    waves: Vec<WaveCase>,
}

impl SpeechTrace {
    /// Opens a trace by either of its two files. `None`: it is another kind of trace.
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
        if !matches!(format, Some(SPEECH_FORMAT | WAVE_FORMAT)) {
            return Ok(None);
        }
        let is_spoken = format == Some(SPEECH_FORMAT);
        let features: Features = serde_json::from_value(value.clone()).map_err(wrong)?;
        let document: Document = serde_json::from_value(value).map_err(wrong)?;
        let (mut cases, mut waves) = (Vec::new(), Vec::new());
        for case in &document.cases {
            let letter = if is_spoken { 's' } else { 'w' };
            let prefix = format!("{letter}{:02}", case.case);
            let trace = MediaTrace::new(Shard::open(&tensors)?, features.clone(), &prefix)?;
            match (&case.speaker, is_spoken) {
                (Some(speaker), true) => cases.push(spoken(case.case, speaker, trace)?),
                (None, true) => {
                    let what = format!("case {} has no speaker", case.case);
                    return Err(FormatError::malformed(&beside, what));
                }
                (_, false) => waves.push(WaveCase {
                    number: case.case,
                    tensors: trace,
                }),
            }
        }
        if cases.is_empty() && waves.is_empty() {
            return Err(FormatError::malformed(&beside, "has no cases"));
        }
        Ok(Some(Self {
            document,
            cases,
            waves,
        }))
    }

    /// The spoken answers.
    pub fn cases(&self) -> &[SpeechCase] {
        &self.cases
    }

    /// Sound of given codes.
    pub fn waves(&self) -> &[WaveCase] {
        &self.waves
    }

    /// The first case; there is one.
    fn first(&self) -> &MediaTrace {
        let spoken = self.cases.first().map(|case| &case.tensors);
        spoken.unwrap_or_else(|| &self.waves[0].tensors)
    }

    /// The file that holds the tensors.
    pub fn path(&self) -> &Path {
        self.first().path()
    }

    /// The precision that the reference computed in.
    pub fn compute(&self) -> Compute {
        self.first().compute()
    }

    /// Digests of the files of the checkpoint that it was recorded from.
    pub fn checkpoint(&self) -> &BTreeMap<String, Sha256> {
        &self.document.checkpoint
    }

    /// SHA-256 of the manifest of the pack that the checkpoint was exported from; `None` where it was
    /// no export.
    pub fn exported_from(&self) -> Option<Sha256> {
        self.document.exported_from
    }

    /// Tokens that the thinker generated at most.
    pub fn text_tokens(&self) -> usize {
        self.document.settings.text_tokens.unwrap_or(128)
    }

    /// First codes that the talker chose at most.
    pub fn talker_tokens(&self) -> usize {
        self.document.settings.talker_tokens.unwrap_or(4096)
    }

    /// Whether the texts were given, and not what the thinker generates.
    pub fn is_text_given(&self) -> bool {
        self.document.settings.given_text
    }

    /// How much less likely a first code was that had been chosen before.
    pub fn repetition_penalty(&self) -> f32 {
        self.document.settings.repetition_penalty.unwrap_or(1.05)
    }
}

fn spoken(number: usize, speaker: &str, trace: MediaTrace) -> Result<SpeechCase> {
    let tensors = trace.with_prompt()?;
    Ok(SpeechCase {
        number,
        speaker: speaker.to_owned(),
        answer: tensors.token_ids("text_ids")?.unwrap_or_default(),
        tensors,
    })
}

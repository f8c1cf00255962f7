//! Speech of a prompt and its answer: codes, then sound, into files or a stream.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use segpack_formats::io::PendingFile;
use segpack_formats::npy;
use segpack_manifests::documents::{GENERATOR, SpeakSummary};
use segpack_runtime_min::models::code2wav::Chunks;
use segpack_runtime_min::session::{Codes, Session, SpeechEnd, SpeechScript, SpeechSettings};

use crate::steps::StepError;
use crate::steps::vocode::{Sound, SoundFormat, VocodeSettings, publish, send};

/// How to speak, and where the sound goes.
#[derive(Debug, Clone)]
pub(crate) struct VoiceOptions {
    /// The sound; `-` is standard output.
    pub(crate) sound: PathBuf,
    /// The codes, as a `.npy` file.
    pub(crate) codes: Option<PathBuf>,
    /// How to speak.
    pub(crate) speech: SpeechSettings,
    /// How samples are written.
    pub(crate) format: SoundFormat,
    /// How codes are cut to be decoded.
    pub(crate) chunks: Chunks,
}

impl VoiceOptions {
    /// As the official class speaks, into a WAV file of 16-bit integers.
    pub(crate) fn new(sound: PathBuf) -> Self {
        Self {
            sound,
            codes: None,
            speech: SpeechSettings::default(),
            format: SoundFormat::default(),
            chunks: Chunks::default(),
        }
    }

    /// Whether sound goes to standard output.
    pub(crate) fn is_stdout(&self) -> bool {
        self.sound == Path::new("-")
    }
}

/// Files that are to be written, and how.
pub(crate) struct Voice<'o> {
    options: &'o VoiceOptions,
    sound: Option<PendingFile>,
    codes: Option<PendingFile>,
}

impl<'o> Voice<'o> {
    /// Finds what would fail only after the work: a model that does not speak, a speaker that there
    /// is not, files that cannot be written.
    pub(crate) fn create(
        session: &Session<'_>,
        options: &'o VoiceOptions,
    ) -> Result<Self, StepError> {
        let facts = session.speech_facts()?;
        session.speaker(&facts, &options.speech.speaker)?;
        session.vocoder_facts()?;
        let sound = (!options.is_stdout()).then_some(&options.sound);
        Ok(Self {
            options,
            sound: sound.map(|path| PendingFile::create(path)).transpose()?,
            codes: options
                .codes
                .as_deref()
                .map(PendingFile::create)
                .transpose()?,
        })
    }

    /// Codes first, then their sound.
    pub(crate) fn speak(
        self,
        session: &Session<'_>,
        script: SpeechScript<'_>,
    ) -> Result<SpeakSummary, StepError> {
        let began = Instant::now();
        let mut ignore = |_: &[u32]| ControlFlow::Continue(());
        let speech = session.speak(script, &self.options.speech, &mut ignore)?;
        let took = began.elapsed();
        if let Some(file) = self.codes {
            file.publish(|out| out.write_all(&npy_of(&speech.codes)))?;
        }
        let settings = VocodeSettings {
            chunks: self.options.chunks,
            format: self.options.format,
            ..VocodeSettings::default()
        };
        // talker and predictor gave their memory back
        let codes = speech.codes.by_frame();
        let held = script.bytes().saturating_add(size_of_val(codes) as u64);
        let vocoder = session.vocoder(held)?;
        let sound = Sound {
            session,
            vocoder: &vocoder,
            codes,
            settings: &settings,
        };
        let samples = match self.sound {
            Some(file) => publish(&sound, file)?.samples,
            None => send(&sound, &mut io::stdout().lock())?.samples,
        };
        let [talker, predictor] = &speech.stats;
        Ok(SpeakSummary {
            format_version: SpeakSummary::VERSION,
            generator: GENERATOR.to_owned(),
            manifest_sha256: session.pack().manifest_sha256(),
            speaker: self.options.speech.speaker.to_lowercase(),
            frames: speech.codes.frames() as u64,
            groups: speech.codes.groups() as u64,
            is_complete: speech.end == SpeechEnd::EndMarker,
            samples,
            sample_rate: vocoder.sample_rate(),
            talker_seconds: took.as_secs_f64(),
            embedding_bytes_read: speech.embedding_bytes,
            talker_bytes_read: talker.bytes_read,
            predictor_bytes_read: predictor.bytes_read,
        })
    }
}

/// `[groups, frames]` of 64-bit integers, as the official class has them.
fn npy_of(codes: &Codes) -> Vec<u8> {
    let shape = [codes.groups() as u64, codes.frames() as u64];
    let mut bytes = npy::header("<i8", &shape);
    for code in codes.to_rows() {
        bytes.extend(i64::from(code).to_le_bytes());
    }
    bytes
}

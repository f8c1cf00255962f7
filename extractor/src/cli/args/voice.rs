//! How speech is made, and how it is written.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use segpack_runtime_min::models::code2wav::Chunks;
use segpack_runtime_min::session::{SpeechSampling, SpeechSettings};

use super::{OUTPUT, SAMPLING};
use crate::cli::error::CliError;
use crate::steps::speak::VoiceOptions;
use crate::steps::vocode::SoundFormat;

/// How sound is made of codes, and written.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct SoundArgs {
    /// How samples of sound are written
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        requires = "sound",
        default_value = "pcm16",
        help_heading = OUTPUT
    )]
    wav_format: FormatName,
    /// Keep the samples that the official class loses at the end of every chunk of 300 frames
    #[arg(long, requires = "sound", help_heading = OUTPUT)]
    gapless: bool,
}

impl SoundArgs {
    pub(in crate::cli) fn format(&self) -> SoundFormat {
        self.wav_format.into()
    }

    pub(in crate::cli) fn chunks(&self) -> Chunks {
        Chunks {
            gapless: self.gapless,
            ..Chunks::default()
        }
    }
}

/// How samples are written.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatName {
    /// WAV of 16-bit integers
    Pcm16,
    /// WAV of 32-bit floats
    Float32,
    /// 16-bit little-endian integers without a header
    S16le,
}

impl From<FormatName> for SoundFormat {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Pcm16 => Self::Pcm16,
            FormatName::Float32 => Self::Float32,
            FormatName::S16le => Self::S16le,
        }
    }
}

/// Flags of commands that speak.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct VoiceArgs {
    /// Who speaks [default: Ethan]
    #[arg(long, value_name = "NAME", requires = "sound", help_heading = SAMPLING)]
    speaker: Option<String>,
    /// Always take the most likely code instead of sampling as the official class does
    #[arg(long, requires = "sound", help_heading = SAMPLING)]
    speak_greedy: bool,
    /// Seed of the codes that are sampled [default: 0]
    #[arg(long, value_name = "N", requires = "sound", conflicts_with = "speak_greedy", help_heading = SAMPLING)]
    speak_seed: Option<u64>,
    /// Maximum number of frames; the published model speaks 12.5 of them in a second
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4095,
        requires = "sound",
        help_heading = SAMPLING
    )]
    speak_max_frames: usize,
    /// Write the codes, [groups, frames], as a .npy file
    #[arg(long, value_name = "FILE.npy", requires = "sound", help_heading = OUTPUT)]
    codes: Option<PathBuf>,
    #[command(flatten)]
    sound: SoundArgs,
}

impl VoiceArgs {
    /// With the sound going there.
    pub(in crate::cli) fn options(&self, sound: PathBuf) -> VoiceOptions {
        let mut speech = SpeechSettings::default();
        if let Some(speaker) = &self.speaker {
            speech.speaker.clone_from(speaker);
        }
        let mut sampling = SpeechSampling::default();
        sampling.seed = self.speak_seed.unwrap_or(0);
        speech.sampling = (!self.speak_greedy).then_some(sampling);
        // the last code becomes no frame
        speech.max_codes = self.speak_max_frames.saturating_add(1);
        VoiceOptions {
            sound,
            codes: self.codes.clone(),
            speech,
            format: self.sound.format(),
            chunks: self.sound.chunks(),
        }
    }
}

/// Whether sound goes to standard output: not beside a summary, and not to a terminal.
pub(in crate::cli) fn is_to_stdout(sound: &Path, json: bool) -> Result<bool, CliError> {
    let is_to_stdout = sound == Path::new("-");
    if is_to_stdout && json {
        return Err(CliError::TwoOutputs);
    }
    if is_to_stdout && io::stdout().is_terminal() {
        return Err(CliError::BinaryToTerminal);
    }
    Ok(is_to_stdout)
}

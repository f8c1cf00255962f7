//! How speech is made, and how it is written.

use std::path::PathBuf;

use segpack_runtime_min::session::{SpeechSampling, SpeechSettings};

use super::{OUTPUT, SAMPLING};
use crate::cli::vocode::FormatName;
use crate::steps::speak::VoiceOptions;

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
            format: self.wav_format.into(),
            gapless: self.gapless,
        }
    }
}

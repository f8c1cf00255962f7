use std::io::{self, IsTerminal};
use std::path::PathBuf;

use segpack_runtime_min::session::{DeviceChoice, MemoryLimit, SessionOptions};

use super::Context;
use super::args::values::{size, threads, token_id};
use super::args::{CheckName, DEVICE, INPUT, OUTPUT, PackArg, VoiceArgs};
use super::error::CliError;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::speak::{SpokenText, speak};
use crate::work::default_jobs;

/// Speak a given text with the model's talker, without its thinker
///
/// Of the thinker only the embedding rows of the text's tokens are read. The talker speaks an answer,
/// so the text is put behind a turn of the user.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack speak omni.segpack --text 'Good morning.' -o morning.wav
  segpack speak omni.segpack --text 'Good morning.' -o - --speaker chelsie | aplay
  segpack speak omni.segpack --text 'Good morning.' -o morning.wav --codes morning.npy")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    /// Text to speak
    #[arg(long, value_name = "TEXT", required_unless_present = "text_ids", help_heading = INPUT)]
    text: Option<String>,
    /// What the user said before
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "Read this text aloud.",
        help_heading = INPUT
    )]
    prompt: String,
    /// Token ids to speak, separated by commas; the last one ends the text and is not spoken
    #[arg(
        long,
        value_name = "IDS",
        value_delimiter = ',',
        value_parser = token_id,
        requires = "prompt_ids",
        conflicts_with = "text",
        help_heading = INPUT
    )]
    text_ids: Option<Vec<u32>>,
    /// Token ids of the conversation before, up to the beginning of the model's own turn
    #[arg(
        long,
        value_name = "IDS",
        value_delimiter = ',',
        value_parser = token_id,
        requires = "text_ids",
        help_heading = INPUT
    )]
    prompt_ids: Option<Vec<u32>>,
    /// WAV file to write; - is standard output
    #[arg(id = "sound", long = "output", short = 'o', value_name = "FILE", help_heading = OUTPUT)]
    output: PathBuf,
    #[command(flatten)]
    voice: VoiceArgs,
    /// Memory budget of the whole process, such as 1GiB or 500MB [default: what is needed, at most
    /// 7/8 of the available memory]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = DEVICE)]
    memory: Option<u64>,
    /// When to compare the digests of segments
    #[arg(long, value_name = "WHEN", default_value = "always", help_heading = DEVICE)]
    check: CheckName,
    /// Number of threads [default: one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = threads, help_heading = DEVICE)]
    threads: Option<usize>,
    /// Print the summary as JSON (schemas/speak-summary.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

impl Args {
    fn session(&self) -> SessionOptions {
        let mut session = SessionOptions::default();
        session.device = DeviceChoice::Cpu;
        session.memory = self
            .memory
            .map_or(MemoryLimit::Available, MemoryLimit::Bytes);
        session.check = self.check.into();
        session.threads = Some(self.threads.unwrap_or_else(default_jobs));
        session
    }

    fn spoken(&self) -> SpokenText {
        match (&self.text_ids, &self.prompt_ids) {
            (Some(answer), Some(prompt)) => SpokenText::Ids {
                prompt: prompt.clone(),
                answer: answer.clone(),
            },
            _ => SpokenText::Text {
                text: self.text.clone().unwrap_or_default(),
                prompt: self.prompt.clone(),
            },
        }
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let voice = args.voice.options(args.output.clone());
    if voice.is_stdout() && args.json {
        return Err(CliError::TwoOutputs);
    }
    if voice.is_stdout() && io::stdout().is_terminal() {
        return Err(CliError::BinaryToTerminal);
    }
    let pack = args.pack.open()?;
    let (spoken, session) = (args.spoken(), args.session());
    let summary = speak(&pack, &spoken, &session, &voice, context.stop)?;
    if !voice.is_stdout() {
        let place = args.output.display().to_string();
        context
            .terminal
            .document(&summary, args.json, |s| text::speak(s, &place))?;
    }
    Ok(Exit::Ok)
}

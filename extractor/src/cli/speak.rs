use std::path::PathBuf;

use super::Context;
use super::args::values::token_id;
use super::args::{
    DEVICE, INPUT, ModelArgs, OUTPUT, PackArg, ReadingArgs, VoiceArgs, is_to_stdout,
};
use super::error::CliError;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::speak::{SpokenText, speak};

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
    #[command(flatten)]
    reading: ReadingArgs,
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
    #[command(flatten)]
    model: ModelArgs,
    /// Load all weights that fit before the first frame, instead of on first use
    #[arg(long, help_heading = DEVICE)]
    preload: bool,
    /// Print the summary as JSON (schemas/speak-summary.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

impl Args {
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
    args.reading
        .refuse_unchecked(args.model.leaves_unchecked(), "check")?;
    let mut voice = args.voice.options(args.output.clone());
    voice.speech.preload = args.preload;
    let is_to_stdout = is_to_stdout(&args.output, args.json)?;
    let pack = args.reading.open(&args.pack, context)?;
    let (spoken, session) = (args.spoken(), args.model.session());
    let summary = speak(&pack, &spoken, &session, &voice, context.stop)?;
    if !is_to_stdout {
        let place = args.output.display().to_string();
        context
            .terminal
            .document(&summary, args.json, |s| text::speak(s, &place))?;
    }
    Ok(Exit::Ok)
}

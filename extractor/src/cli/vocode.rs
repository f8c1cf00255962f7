use std::io;
use std::path::PathBuf;

use super::Context;
use super::args::{CpuResources, INPUT, OUTPUT, PackArg, ReadingArgs, SoundArgs, is_to_stdout};
use super::error::CliError;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::vocode::{VocodeSettings, stream, vocode};

/// Turn recorded audio codes into a WAV file with the model's vocoder
///
/// The codes are a .npy array of whole numbers, [groups, frames] or [frames, groups]; a square array
/// is [groups, frames]. Only the vocoder's pack is read. As in the official class, speech is decoded
/// in chunks of 300 frames with 25 frames of context, and the end of every chunk is lost: 23 ms of
/// the published model. The sound of a chunk is written while the next is decoded.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack vocode omni.segpack codes.npy -o answer.wav
  segpack vocode omni.segpack codes.npy -o answer.wav --gapless --wav-format float32
  segpack vocode omni.segpack codes.npy -o - | aplay
  segpack vocode omni.segpack codes.npy -o - --wav-format s16le | ffplay -f s16le -ar 24000 -")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Codes: a .npy file
    #[arg(value_name = "CODES", help_heading = INPUT)]
    codes: PathBuf,
    /// WAV file to write; - is standard output
    #[arg(
        id = "sound",
        long = "output",
        short = 'o',
        value_name = "FILE",
        help_heading = OUTPUT
    )]
    output: PathBuf,
    #[command(flatten)]
    sound: SoundArgs,
    #[command(flatten)]
    resources: CpuResources,
    /// Print the summary as JSON (schemas/vocode-summary.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

impl Args {
    fn settings(&self) -> VocodeSettings {
        VocodeSettings {
            session: self.resources.session(),
            chunks: self.sound.chunks(),
            format: self.sound.format(),
        }
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    args.reading
        .refuse_unchecked(args.resources.leaves_unchecked(), "check")?;
    let settings = args.settings();
    let is_to_stdout = is_to_stdout(&args.output, args.json)?;
    let pack = args.reading.open(&args.pack, context)?;
    if is_to_stdout {
        let mut out = io::stdout().lock();
        stream(&pack, &args.codes, &mut out, &settings, context.stop)?;
        return Ok(Exit::Ok);
    }
    let summary = vocode(&pack, &args.codes, &args.output, &settings, context.stop)?;
    let place = args.output.display().to_string();
    context
        .terminal
        .document(&summary, args.json, |s| text::vocode(s, &place))?;
    Ok(Exit::Ok)
}

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::ValueEnum;
use segpack_runtime_min::models::code2wav::Chunks;
use segpack_runtime_min::session::{DeviceChoice, MemoryLimit, SessionOptions};

use super::Context;
use super::args::values::{size, threads};
use super::args::{CheckName, DEVICE, INPUT, OUTPUT, PackArg};
use super::error::CliError;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::vocode::{SoundFormat, VocodeSettings, stream, vocode};
use crate::work::default_jobs;

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
    /// Codes: a .npy file
    #[arg(value_name = "CODES", help_heading = INPUT)]
    codes: PathBuf,
    /// WAV file to write; - is standard output
    #[arg(long, short, value_name = "FILE", help_heading = OUTPUT)]
    output: PathBuf,
    /// How samples are written
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        default_value = "pcm16",
        help_heading = OUTPUT
    )]
    wav_format: FormatName,
    /// Keep the samples that the official class loses at the end of every chunk but the last
    #[arg(long, help_heading = OUTPUT)]
    gapless: bool,
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
    /// Print the summary as JSON (schemas/vocode-summary.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

/// How sound is written.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum FormatName {
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

impl Args {
    fn settings(&self) -> VocodeSettings {
        let mut session = SessionOptions::default();
        session.device = DeviceChoice::Cpu;
        session.memory = self
            .memory
            .map_or(MemoryLimit::Available, MemoryLimit::Bytes);
        session.check = self.check.into();
        session.threads = Some(self.threads.unwrap_or_else(default_jobs));
        let chunks = Chunks {
            gapless: self.gapless,
            ..Chunks::default()
        };
        VocodeSettings {
            session,
            chunks,
            format: self.wav_format.into(),
        }
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let settings = args.settings();
    if args.output.as_os_str() == "-" {
        return to_stdout(args, &settings, context);
    }
    let pack = args.pack.open()?;
    let summary = vocode(&pack, &args.codes, &args.output, &settings, context.stop)?;
    let place = args.output.display().to_string();
    context
        .terminal
        .document(&summary, args.json, |s| text::vocode(s, &place))?;
    Ok(Exit::Ok)
}

fn to_stdout(args: &Args, settings: &VocodeSettings, context: &Context) -> Result<Exit, CliError> {
    if args.json {
        return Err(CliError::TwoOutputs);
    }
    if io::stdout().is_terminal() {
        return Err(CliError::BinaryToTerminal);
    }
    let pack = args.pack.open()?;
    let mut out = io::stdout().lock();
    stream(&pack, &args.codes, &mut out, settings, context.stop)?;
    Ok(Exit::Ok)
}

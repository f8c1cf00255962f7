use std::path::PathBuf;

use super::args::Jobs;
use super::{Context, resume_advice};
use crate::render::text;
use crate::steps::Exit;
use crate::steps::unpack::{UnpackSettings, unpack};

/// Restore the original files of the checkpoint, byte for byte
///
/// Every file is compared with its recorded SHA-256 while it is written, and appears under its name
/// only when it is whole and right.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack unpack omni.segpack -o restored
  segpack unpack omni.segpack -o restored --resume
  segpack unpack omni.segpack -o tokenizer --include '*.json' --include merges.txt")]
pub struct Args {
    /// The pack folder
    #[arg(value_name = "PACK")]
    pack: PathBuf,
    /// The folder to write
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Only files that match; may be repeated
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Go on where an interrupted run stopped: files that are there and right are kept
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    jobs: Jobs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let settings = UnpackSettings {
        include: args.include,
        resume: args.resume,
        jobs: args.jobs.count(),
    };
    let (stop, progress) = (context.stop, &context.progress);
    let unpacked = unpack(&args.pack, &args.output, &settings, stop, progress);
    let summary = unpacked.map_err(|e| resume_advice(e, &args.output))?;
    let place = args.output.display().to_string();
    context
        .terminal
        .document(&summary, args.json, |s| text::unpack(s, &place))?;
    Ok(Exit::Ok)
}

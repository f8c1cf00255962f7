use std::path::PathBuf;

use super::pack::jobs;
use super::terminal::{bytes, counted};
use super::{Context, resume_advice};
use crate::steps::unpack::{UnpackSettings, unpack};
use crate::steps::{Exit, default_jobs};

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
    /// Threads [default: one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = jobs)]
    jobs: Option<usize>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let jobs = args.jobs.unwrap_or_else(default_jobs);
    let settings = UnpackSettings {
        include: args.include,
        resume: args.resume,
        jobs,
    };
    let unpacked = unpack(
        &args.pack,
        &args.output,
        &settings,
        context.stop,
        &context.progress,
    );
    let summary = unpacked.map_err(|e| resume_advice(e, &args.output))?;
    if args.json {
        context.terminal.document(&summary)?;
        return Ok(Exit::Ok);
    }
    for left in &summary.not_restored {
        context.terminal.line(format_args!(
            "not asked for and not in the pack: {}: {}",
            left.path, left.why
        ))?;
    }
    context.terminal.line(format_args!(
        "{}: {}, {}, each equal to the original",
        args.output.display(),
        counted(summary.files, "file"),
        bytes(summary.bytes)
    ))?;
    Ok(Exit::Ok)
}

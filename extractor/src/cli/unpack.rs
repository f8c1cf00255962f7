use std::path::{Path, PathBuf};

use super::Context;
use super::args::{INPUT, Jobs, OUTPUT, PackArg, ReadingArgs, output_path};
use super::error::CliError;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::unpack::{UnpackSettings, unpack};

/// Restore the original files of the checkpoint, byte for byte
///
/// The SHA-256 of each file is compared while it is written. All files appear, or none: they are
/// built in .DIR.partial beside DIR, which takes its place when everything is complete and correct.
/// An interrupted run leaves there what it has finished, and --resume continues it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack unpack omni.segpack -o restored
  segpack unpack omni.segpack -o restored --resume
  segpack unpack omni.segpack -o restored --force
  segpack unpack omni.segpack -o tokenizer --include '*.json' --include merges.txt")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Restore only files that match this pattern; may be repeated
    #[arg(long, value_name = "GLOB", help_heading = INPUT)]
    include: Vec<String>,
    #[command(flatten)]
    jobs: Jobs,
    /// Folder to write
    #[arg(long, short, value_name = "DIR", value_parser = output_path(), help_heading = OUTPUT)]
    output: PathBuf,
    /// Continue an interrupted run, or restore files that DIR lacks; files that are there are
    /// digested again
    #[arg(long, help_heading = OUTPUT)]
    resume: bool,
    /// Replace DIR, if it holds nothing but files of this pack; it stays whole until the new one is
    /// complete. Without --resume, what an interrupted run left is removed
    #[arg(long, help_heading = OUTPUT)]
    force: bool,
    /// Print the summary as JSON
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

impl Args {
    /// The folder to write.
    pub(super) fn output(&self) -> &Path {
        &self.output
    }
}

pub(super) fn run(args: Args, context: &Context) -> Result<Exit, CliError> {
    let settings = UnpackSettings {
        include: args.include,
        resume: args.resume,
        force: args.force,
        jobs: args.jobs.count(),
    };
    let (stop, progress) = (context.stop, context.progress);
    let summary = unpack(
        &args.reading.open(&args.pack, context)?,
        &args.output,
        &settings,
        stop,
        progress,
    )?;
    let place = args.output.display().to_string();
    context
        .terminal
        .document(&summary, args.json, |s| text::unpack(s, &place))?;
    Ok(Exit::Ok)
}

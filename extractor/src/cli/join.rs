use std::path::PathBuf;

use super::Context;
use super::args::{INPUT, Jobs, OUTPUT, output_path};
use super::error::CliError;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::join::{JoinSettings, join};

/// Make one pack of the parts that several machines packed
///
/// The parts come from `segpack pack --part K/N`, all N of one checkpoint, with the same options and
/// version. The result is byte for byte the pack that one machine would have written. Every file is
/// read and its SHA-256 compared with the one that its part recorded. Files are linked where the
/// file system can, else copied; the parts are not changed. After an error nothing is left of the
/// output.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack join part-1.segpack part-2.segpack -o omni.segpack
  segpack join parts/*.segpack -o omni.segpack --move")]
pub(super) struct Args {
    /// Folders of all parts, in any order
    #[arg(value_name = "PART", required = true)]
    parts: Vec<PathBuf>,
    /// Do not read what is linked: only the lengths of the files are compared
    #[arg(long, help_heading = INPUT)]
    no_verify: bool,
    #[command(flatten)]
    jobs: Jobs,
    /// Pack folder to write
    #[arg(long, short, value_name = "PACK", value_parser = output_path(), help_heading = OUTPUT)]
    output: PathBuf,
    /// Remove the parts once the pack is complete
    #[arg(long = "move", help_heading = OUTPUT)]
    remove_parts: bool,
    /// Replace an existing pack, and nothing else; the old pack stays whole until the new one is
    /// complete
    #[arg(long, help_heading = OUTPUT)]
    force: bool,
    /// Print the summary as JSON (schemas/pack-summary.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let settings = JoinSettings {
        force: args.force,
        remove_parts: args.remove_parts,
        verify: !args.no_verify,
    };
    let job = context.job_of(args.jobs.count());
    let summary = join(&args.parts, &args.output, settings, job)?;
    let place = args.output.display().to_string();
    context
        .terminal
        .document(&summary, args.json, |s| text::pack(s, &place))?;
    Ok(Exit::Ok)
}

use std::path::PathBuf;

use super::Context;
use super::args::{INPUT, Jobs, OUTPUT, PackArg, Tolerate};
use super::error::CliError;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::pack::update;

/// Bring a pack up to date with a checkpoint that changed, packing again only what differs
///
/// The checkpoint is read and compared by digest; packs whose tensors are the same stay as they
/// are. Codec, components and the other options are those of the pack. The result is byte for byte
/// what `segpack pack` would make anew. It is built beside the old pack and takes its place in one
/// step.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack update omni.segpack --from ./Qwen3-Omni-30B-A3B-Instruct
  segpack diff omni.segpack ./checkpoint; segpack update omni.segpack --from ./checkpoint
  segpack update omni.segpack --from ./checkpoint --json | jq .written_packs")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    /// The checkpoint as it is now
    #[arg(long, value_name = "CKPT", help_heading = INPUT)]
    from: PathBuf,
    #[command(flatten)]
    tolerate: Tolerate,
    #[command(flatten)]
    jobs: Jobs,
    /// Print the report as JSON (schemas/update-report.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let job = context.job_of(args.jobs.count());
    args.pack
        .local("a pack is updated where it lies, and nothing is written to a server")?;
    let pack = args.pack.open(context)?;
    let report = update(&pack, &args.from, args.tolerate.options()?, job)?;
    let place = args.pack.place();
    context
        .terminal
        .document(&report, args.json, |r| text::update(r, &place))?;
    Ok(Exit::Ok)
}

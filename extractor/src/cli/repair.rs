use std::path::PathBuf;

use super::Context;
use super::args::{INPUT, Jobs, OUTPUT, PackArg, SizeArgs};
use super::error::CliError;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::repair::repair;

/// Restore what is damaged or missing in a pack from its checkpoint or another pack
///
/// Every file is compared with its SHA-256 in the manifest. Damaged segments and files are taken
/// from the checkpoint, or from another pack of it with any codec, after their digests were
/// compared; everything else stays as it is. The result is byte for byte the undamaged pack. It is
/// built beside the old one and takes its place in one step.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack repair omni.segpack --from Qwen/Qwen3-Omni-30B-A3B-Instruct
  segpack repair omni.segpack --from /backup/omni-raw.segpack
  segpack repair omni.segpack --from ./checkpoint --json | jq '.repaired[].path'")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    /// The checkpoint, or another pack of it
    #[arg(long, value_name = "CKPT|PACK2", help_heading = INPUT)]
    from: PathBuf,
    #[command(flatten)]
    jobs: Jobs,
    #[command(flatten)]
    sizes: SizeArgs,
    /// Print the report as JSON (schemas/repair-report.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let job = context.job_of(args.jobs.count());
    let folder = args
        .pack
        .local("a pack is repaired where it lies, and nothing is written to a server")?;
    let report = repair(folder, &args.from, args.pack.wanted()?, job)?;
    let place = args.pack.place();
    context.terminal.document(&report, args.json, |r| {
        text::repair(r, &place, args.sizes.sizes())
    })?;
    Ok(Exit::Ok)
}

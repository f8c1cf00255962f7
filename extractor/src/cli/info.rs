use std::path::PathBuf;

use super::Context;
use super::args::{INPUT, OUTPUT, PackArg, SizeArgs};
use super::error::CliError;
use super::verify::NO_RECEIPT;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::info::info;

/// Show what a pack is: model, codec, sizes, components, origin, identity
///
/// Only the manifest is read, no weights: nothing is verified. A pack records no times, so when it
/// was verified is known only from the receipt that `segpack verify --receipt FILE` writes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack info omni.segpack
  segpack verify omni.segpack --receipt omni.receipt && segpack info omni.segpack --receipt omni.receipt
  segpack info omni.segpack --json | jq -r .manifest_sha256")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    /// Say what and when this receipt of `verify` records, and whether files changed since
    #[arg(long, value_name = "FILE", help_heading = INPUT)]
    receipt: Option<PathBuf>,
    #[command(flatten)]
    sizes: SizeArgs,
    /// Print the report as JSON (schemas/info-report.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    if args.receipt.is_some() {
        args.pack.local(NO_RECEIPT)?;
    }
    let pack = args.pack.open(context)?;
    let report = info(&pack, args.receipt.as_deref())?;
    let place = args.pack.place();
    context.terminal.document(&report, args.json, |r| {
        text::info(r, &place, args.sizes.sizes())
    })?;
    Ok(Exit::Ok)
}

use std::path::PathBuf;

use segpack_manifests::documents::Finding;

use super::Context;
use super::args::{OUTPUT, SizeArgs, Tolerate};
use super::error::CliError;
use super::hints::of_findings;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::scan::scan;

/// Show what a checkpoint contains and whether it is complete
///
/// Reads only headers and config.json. Classifies every tensor, derives from config.json every
/// tensor that the architecture requires, and lists those that are missing, unexpected, or of the
/// wrong shape or dtype.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack scan ./Qwen3-Omni-30B-A3B-Instruct
  segpack scan Qwen/Qwen3-Omni-30B-A3B-Instruct   # from the local Hugging Face cache
  segpack scan hf://Qwen/Qwen3-Omni-30B-A3B-Instruct   # from the hub, headers only
  segpack scan model --json | jq '.classes[] | select(.class == \"norms\")'")]
pub(super) struct Args {
    /// Checkpoint folder, .safetensors file, repo id (OWNER/NAME[@REVISION]) in the local Hugging
    /// Face cache, hf://OWNER/NAME[@REVISION] on the hub, the http(s):// address of a folder, or
    /// s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX in an object store
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    #[command(flatten)]
    tolerate: Tolerate,
    #[command(flatten)]
    sizes: SizeArgs,
    /// List findings one by one instead of grouping those about tensors of one kind
    #[arg(long, help_heading = OUTPUT)]
    all: bool,
    /// Print the inventory as JSON (schemas/inventory.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let (checkpoint, inventory) = scan(&args.checkpoint, args.tolerate.options()?, context.job())?;
    let root = checkpoint.root.display().to_string();
    context.terminal.document(&inventory, args.json, |i| {
        text::scan(i, &root, args.sizes.sizes(), args.all)
    })?;
    context.terminal.hint(of_findings(&inventory.findings));
    Ok(Exit::of(!Finding::any_error(&inventory.findings)))
}

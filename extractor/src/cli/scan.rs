use std::path::PathBuf;

use segpack_manifests::documents::Finding;

use super::Context;
use super::args::Tolerate;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::scan::scan;

/// Show what a checkpoint holds, and whether it is complete
///
/// Reads headers and config.json only. Classifies every tensor, derives from config.json every
/// tensor that the architecture needs, and names each one that is missing, extra or misshaped.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack scan ./Qwen3-Omni-30B-A3B-Instruct
  segpack scan Qwen/Qwen3-Omni-30B-A3B-Instruct      from the local hub cache
  segpack scan model --json | jq '.classes[] | select(.class == \"norms\")'")]
pub struct Args {
    /// A checkpoint folder, a .safetensors file, or a repo id (OWNER/NAME[@REVISION]) in the local
    /// hub cache
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// Print one JSON document (schemas/inventory.schema.json)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tolerate: Tolerate,
}

pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let (checkpoint, inventory) = scan(&args.checkpoint, args.tolerate.options())?;
    let root = checkpoint.root.display().to_string();
    context
        .terminal
        .document(&inventory, args.json, |i| text::scan(i, &root))?;
    Ok(Exit::of(!Finding::any_error(&inventory.findings)))
}

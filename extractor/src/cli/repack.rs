use std::path::PathBuf;

use super::args::{CodecArgs, CodecName, Jobs};
use super::{Context, resume_advice};
use crate::render::text;
use crate::steps::Exit;
use crate::steps::repack::{RepackSettings, plan, repack};

/// Change the codec of a pack, without the checkpoint
///
/// Every tensor is decoded and compared with its SHA-256 on the way. The new pack is, byte for
/// byte, the one that packing the checkpoint with that codec would give. The old one is left alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack repack omni.segpack -o small.segpack --codec bf16-rans
  segpack repack small.segpack -o plain.segpack --codec raw --resume
  segpack repack omni.segpack -o small.segpack --codec bf16-rans --dry-run")]
pub struct Args {
    /// The pack folder to read
    #[arg(value_name = "PACK")]
    pack: PathBuf,
    /// The pack folder to write
    #[arg(long, short, value_name = "PACK2")]
    output: PathBuf,
    /// Print the plan and write nothing
    #[arg(long, conflicts_with_all = ["resume", "force"])]
    dry_run: bool,
    /// How segments are coded
    #[arg(long, value_name = "CODEC")]
    codec: CodecName,
    #[command(flatten)]
    level: CodecArgs,
    #[command(flatten)]
    jobs: Jobs,
    /// Go on where an interrupted run stopped
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Replace an existing pack (and nothing else); the old one is removed first
    #[arg(long)]
    force: bool,
    /// Print one JSON document: the summary, or with --dry-run the plan
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let settings = RepackSettings {
        coding: args.level.coding(args.codec)?,
        jobs: args.jobs.count(),
        resume: args.resume,
        force: args.force,
    };
    if args.dry_run {
        let plan = plan(&args.pack, &settings)?;
        context.terminal.document(&plan, args.json, text::plan)?;
        return Ok(Exit::Ok);
    }
    let (stop, progress) = (context.stop, &context.progress);
    let packed = repack(&args.pack, &args.output, &settings, stop, progress);
    let summary = packed.map_err(|e| resume_advice(e, &args.output))?;
    let place = args.output.display().to_string();
    context
        .terminal
        .document(&summary, args.json, |s| text::pack(s, &place))?;
    Ok(Exit::Ok)
}

use std::path::PathBuf;

use super::pack::{CodecArgs, jobs, print_plan, print_summary};
use super::{Context, resume_advice};
use crate::steps::repack::{RepackSettings, plan, repack};
use crate::steps::{Exit, default_jobs};

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
    codec: super::pack::CodecName,
    #[command(flatten)]
    level: CodecArgs,
    /// Threads [default: one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = jobs)]
    jobs: Option<usize>,
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
        jobs: args.jobs.unwrap_or_else(default_jobs),
        resume: args.resume,
        force: args.force,
    };
    if args.dry_run {
        let plan = plan(&args.pack, &settings)?;
        if args.json {
            context.terminal.document(&plan)?;
        } else {
            context.terminal.stdout(|out| print_plan(&plan, out))?;
        }
        return Ok(Exit::Ok);
    }
    let packed = repack(
        &args.pack,
        &args.output,
        &settings,
        context.stop,
        &context.progress,
    );
    let summary = packed.map_err(|e| resume_advice(e, &args.output))?;
    if args.json {
        context.terminal.document(&summary)?;
    } else {
        let place = args.output.display().to_string();
        context
            .terminal
            .stdout(|out| print_summary(&summary, &place, context, out))?;
    }
    Ok(Exit::Ok)
}

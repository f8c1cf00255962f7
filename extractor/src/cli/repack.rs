use std::path::{Path, PathBuf};

use super::Context;
use super::args::{CodecArgs, CodecName, Jobs, OUTPUT, PackArg, SizeArgs, output_path};
use super::error::CliError;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::repack::{RepackSettings, plan, repack};

/// Change the codec of a pack, without the checkpoint
///
/// Every tensor is decoded and its SHA-256 compared on the way. The new pack is byte for byte the
/// one that packing the checkpoint with that codec would give. The old pack is not changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack repack omni.segpack -o small.segpack --codec bf16-rans
  segpack repack small.segpack -o plain.segpack --codec raw --resume
  segpack repack omni.segpack -o small.segpack --codec bf16-rans --dry-run")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    #[command(flatten)]
    jobs: Jobs,
    /// Pack folder to write
    #[arg(long, short, value_name = "PACK2", value_parser = output_path(), help_heading = OUTPUT)]
    output: PathBuf,
    /// How segments are compressed
    #[arg(long, value_name = "CODEC", help_heading = OUTPUT)]
    codec: CodecName,
    #[command(flatten)]
    level: CodecArgs,
    /// Print the plan and write nothing; with a codec, estimate the coded size from a sample
    #[arg(long, conflicts_with_all = ["resume", "force"], help_heading = OUTPUT)]
    dry_run: bool,
    /// Continue an interrupted run
    #[arg(long, help_heading = OUTPUT)]
    resume: bool,
    /// Replace an existing pack, and nothing else; the old pack stays whole until the new one is
    /// complete
    #[arg(long, help_heading = OUTPUT)]
    force: bool,
    /// With --force, where the disk has no space for both: remove the old pack first. If the run
    /// then fails, neither is there. What is packed is read and checked before
    #[arg(long, requires = "force", conflicts_with = "resume", help_heading = OUTPUT)]
    in_place: bool,
    /// Do not compare the free space of the disk with what the pack will take
    #[arg(long, help_heading = OUTPUT)]
    no_space_check: bool,
    #[command(flatten)]
    sizes: SizeArgs,
    /// Print the summary as JSON; with --dry-run, the plan
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

impl Args {
    /// The folder to write.
    pub(super) fn output(&self) -> &Path {
        &self.output
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let settings = RepackSettings {
        coding: args.level.coding(args.codec)?,
        jobs: args.jobs.count(),
        resume: args.resume,
        force: args.force,
        in_place: args.in_place,
        space_check: !args.no_space_check,
    };
    let pack = args.pack.open(context)?;
    if args.dry_run {
        let plan = plan(&pack, &settings, context.stop, context.progress)?;
        context
            .terminal
            .document(&plan, args.json, |p| text::plan(p, args.sizes.sizes()))?;
        return Ok(Exit::Ok);
    }
    let (stop, progress) = (context.stop, context.progress);
    let summary = repack(&pack, &args.output, &settings, stop, progress)?;
    let place = args.output.display().to_string();
    context
        .terminal
        .document(&summary, args.json, |s| text::pack(s, &place))?;
    Ok(Exit::Ok)
}

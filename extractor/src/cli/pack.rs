use std::path::PathBuf;

use segpack_manifests::layout::Selection;

use super::args::{CodecArgs, CodecName, Jobs, Tolerate};
use super::{Context, resume_advice};
use crate::render::text;
use crate::steps::pack::{PackSettings, pack, plan};
use crate::steps::{Exit, StepError};

/// Pack a checkpoint into per-expert segments with a manifest
///
/// Nothing is written unless the checkpoint is complete. An interrupted run leaves everything
/// unfinished in PACK/.partial, and --resume goes on from there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack pack ./Qwen3-Omni-30B-A3B-Instruct -o omni.segpack
  segpack pack Qwen/Qwen3-Omni-30B-A3B-Instruct -o omni.segpack --resume
  segpack pack ./model -o thinker.segpack --include thinker --codec bf16-rans
  segpack pack ./model -o model.segpack --dry-run")]
pub struct Args {
    /// A checkpoint folder, a .safetensors file, or a repo id (OWNER/NAME[@REVISION]) in the local
    /// hub cache
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// The pack folder to write
    #[arg(long, short, value_name = "PACK")]
    output: PathBuf,
    /// Print the plan and write nothing
    #[arg(long, conflicts_with_all = ["resume", "force"])]
    dry_run: bool,
    /// How segments are coded
    #[arg(long, value_name = "CODEC", default_value = "raw")]
    codec: CodecName,
    #[command(flatten)]
    level: CodecArgs,
    /// Pack only these components and those below them (thinker, talker.text, ...); may be repeated
    #[arg(long, value_name = "COMPONENT")]
    include: Vec<String>,
    /// Leave these components behind; may be repeated
    #[arg(long, value_name = "COMPONENT")]
    exclude: Vec<String>,
    #[command(flatten)]
    jobs: Jobs,
    /// Go on where an interrupted run stopped
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Replace an existing pack (and nothing else); the old one is removed first
    #[arg(long)]
    force: bool,
    /// Do not digest the source shards: faster, but they are not compared with the hub's digests
    #[arg(long)]
    no_source_digests: bool,
    /// Do not record where the checkpoint came from
    #[arg(long)]
    no_provenance: bool,
    /// Do not write SHA256SUMS
    #[arg(long)]
    no_sums: bool,
    /// Print one JSON document: the summary, or with --dry-run the plan
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tolerate: Tolerate,
}

impl Args {
    fn settings(&self) -> Result<PackSettings, StepError> {
        Ok(PackSettings {
            selection: Selection {
                include: self.include.clone(),
                exclude: self.exclude.clone(),
            },
            coding: self.level.coding(self.codec)?,
            jobs: self.jobs.count(),
            resume: self.resume,
            force: self.force,
            source_digests: !self.no_source_digests,
            sums: !self.no_sums,
            provenance: !self.no_provenance,
            scan: self.tolerate.options(),
        })
    }
}

pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let settings = args.settings()?;
    if args.dry_run {
        let plan = plan(&args.checkpoint, &settings)?.plan;
        context.terminal.document(&plan, args.json, text::plan)?;
        return Ok(Exit::Ok);
    }
    let (stop, progress) = (context.stop, &context.progress);
    let packed = pack(&args.checkpoint, &args.output, &settings, stop, progress);
    let summary = packed.map_err(|e| resume_advice(e, &args.output))?;
    let place = args.output.display().to_string();
    context
        .terminal
        .document(&summary, args.json, |s| text::pack(s, &place))?;
    Ok(Exit::Ok)
}

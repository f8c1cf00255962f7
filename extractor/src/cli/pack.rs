use std::path::{Path, PathBuf};

use segpack_manifests::documents::PackSummary;
use segpack_manifests::layout::Selection;

use super::Context;
use super::args::{
    CodecArgs, CodecName, INPUT, Jobs, OUTPUT, SizeArgs, Tolerate, connections, output_path, rate,
};
use super::confirm::{can_ask, confirm};
use super::error::CliError;
use crate::render::text;
use crate::source::is_store;
use crate::steps::Exit;
use crate::steps::pack::{
    FetchSettings, PackSettings, consume_plan, pack_planned, plan_into, plan_with_estimate,
};
#[cfg(feature = "remote")]
use crate::steps::pack::{pack_to_store, spool_of};
use crate::steps::verify::Subset;
#[cfg(not(feature = "remote"))]
use crate::{source::SourceError, steps::StepError};

/// Pack a checkpoint into per-expert segments with a manifest
///
/// Nothing is written unless the checkpoint is complete. An interrupted run leaves its unfinished
/// files in PACK/.partial, and --resume continues it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack pack ./Qwen3-Omni-30B-A3B-Instruct -o omni.segpack
  segpack pack Qwen/Qwen3-Omni-30B-A3B-Instruct -o omni.segpack --resume
  segpack pack ./model -o thinker.segpack --include thinker --codec bf16-rans
  segpack pack ./model -o model.segpack --codec bf16-rans --dry-run
  segpack pack ./model -o model.segpack --consume --yes
  segpack pack hf://Qwen/Qwen3-Omni-30B-A3B-Instruct -o omni.segpack --codec bf16-rans
  segpack pack ./model -o part-2.segpack --part 2/8   # on the second of eight machines")]
pub(super) struct Args {
    /// Checkpoint folder, .safetensors file, repo id (OWNER/NAME[@REVISION]) in the local Hugging
    /// Face cache, hf://OWNER/NAME[@REVISION] on the hub, the http(s):// address of a folder, or
    /// s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX in an object store
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// Pack only this component and those below it, such as thinker or talker.text; may be
    /// repeated
    #[arg(long, value_name = "COMPONENT", help_heading = INPUT)]
    include: Vec<String>,
    /// Leave out this component and those below it; may be repeated
    #[arg(long, value_name = "COMPONENT", help_heading = INPUT)]
    exclude: Vec<String>,
    /// Pack only the share of one of N machines, counted from 1; `segpack join` makes the pack of
    /// all N folders
    #[arg(long, value_name = "K/N", conflicts_with_all = ["consume", "in_place"], help_heading = INPUT)]
    part: Option<Subset>,
    #[command(flatten)]
    tolerate: Tolerate,
    /// Do not compute the SHA-256 of the source shards: faster, but they are not compared with the
    /// hub's
    #[arg(long, help_heading = INPUT)]
    no_source_digests: bool,
    /// For a checkpoint of a server, or an output in an object store: connections at the same time
    #[arg(long, value_name = "N", value_parser = connections, default_value = "4", help_heading = INPUT)]
    connections: usize,
    /// For a checkpoint of a server, or an output in an object store: bytes a second at most in
    /// either direction, such as 20MB
    #[arg(long, value_name = "SIZE", value_parser = rate, help_heading = INPUT)]
    limit_rate: Option<u64>,
    /// For a checkpoint of a server: keep every shard whose digest matched in this folder; those
    /// that are there already are not fetched
    #[arg(long, value_name = "DIR", value_parser = output_path(), help_heading = INPUT)]
    keep_shards: Option<PathBuf>,
    #[command(flatten)]
    jobs: Jobs,
    /// Pack folder to write, or s3://BUCKET/PREFIX, az://CONTAINER/PREFIX: packs go there one by one,
    /// the manifest last
    #[arg(long, short, value_name = "PACK", value_parser = output_path(), help_heading = OUTPUT)]
    output: PathBuf,
    /// For an output in an object store: the folder of packs on their way, and of what --resume
    /// needs; without it, PREFIX.spool in the working folder
    #[arg(long, value_name = "DIR", value_parser = output_path(), help_heading = OUTPUT)]
    spool: Option<PathBuf>,
    /// How segments are compressed
    #[arg(long, value_name = "CODEC", default_value = "raw", help_heading = OUTPUT)]
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
    /// For a disk that has no space for both: delete each shard of the checkpoint as soon as all its
    /// bytes are in finished packs. Asks before it begins
    #[arg(
        long,
        conflicts_with_all = ["force", "in_place", "no_source_digests"],
        help_heading = OUTPUT
    )]
    consume: bool,
    /// Delete without asking (for --consume)
    #[arg(long, short, requires = "consume", help_heading = OUTPUT)]
    yes: bool,
    /// Do not compare the free space of the disk with what the pack will take
    #[arg(long, help_heading = OUTPUT)]
    no_space_check: bool,
    /// Do not record where the checkpoint came from
    #[arg(long, help_heading = OUTPUT)]
    no_provenance: bool,
    /// Do not write SHA256SUMS
    #[arg(long, help_heading = OUTPUT)]
    no_sums: bool,
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

    fn fetching(&self) -> FetchSettings {
        FetchSettings {
            connections: self.connections,
            rate: self.limit_rate,
            keep: self.keep_shards.clone(),
        }
    }

    fn settings(&self) -> Result<PackSettings, CliError> {
        Ok(PackSettings {
            selection: Selection {
                include: self.include.clone(),
                exclude: self.exclude.clone(),
            },
            coding: self.level.coding(self.codec)?,
            part: self.part,
            jobs: self.jobs.count(),
            resume: self.resume,
            force: self.force,
            in_place: self.in_place,
            consume: self.consume,
            source_digests: !self.no_source_digests,
            sums: !self.no_sums,
            provenance: !self.no_provenance,
            space_check: !self.no_space_check,
            fetch: self.fetching(),
            scan: self.tolerate.options()?,
        })
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let settings = args.settings()?;
    if args.dry_run {
        let (stop, progress) = (context.stop, context.progress);
        let plan = plan_with_estimate(&args.checkpoint, &settings, stop, progress)?;
        context
            .terminal
            .document(&plan, args.json, |p| text::plan(p, args.sizes.sizes()))?;
        return Ok(Exit::Ok);
    }
    if is_store(&args.output) {
        return to_store(args, &settings, context);
    }
    if args.spool.is_some() {
        let why = "is for an output in an object store";
        return Err(CliError::Output {
            option: "spool",
            why,
        });
    }
    if args.consume && !args.yes && !can_ask() {
        return Err(CliError::CannotAsk);
    }
    let (checkpoint, output) = (&args.checkpoint, &args.output);
    let job = context.job_of(settings.jobs);
    let planned = plan_into(checkpoint, output, &settings, job)?;
    if args.consume && !args.yes {
        let question = text::consumption(&consume_plan(&planned)?, &checkpoint.display());
        confirm(&question, context.stop)?;
    }
    let summary = pack_planned(checkpoint, &planned, output, &settings, job)?;
    show(&summary, args, context)
}

fn show(summary: &PackSummary, args: &Args, context: &Context) -> Result<Exit, CliError> {
    let place = args.output.display().to_string();
    context
        .terminal
        .document(summary, args.json, |s| text::pack(s, &place))?;
    Ok(Exit::Ok)
}

/// Refuses options that make no sense for an output in an object store.
fn refuse_for_store(args: &Args) -> Result<(), CliError> {
    let given = [
        (
            "force",
            args.force,
            "replaces a folder: nothing is replaced in an object store",
        ),
        (
            "consume",
            args.consume,
            "is for packs that stay on this machine, where they are read again",
        ),
        (
            "part",
            args.part.is_some(),
            "writes a folder, since `segpack join` reads one",
        ),
    ];
    match given.into_iter().find(|(_, is_given, _)| *is_given) {
        Some((option, _, why)) => Err(CliError::Output { option, why }),
        None => Ok(()),
    }
}

#[cfg(feature = "remote")]
fn to_store(args: &Args, settings: &PackSettings, context: &Context) -> Result<Exit, CliError> {
    refuse_for_store(args)?;
    let spool = args.spool.clone().unwrap_or_else(|| spool_of(&args.output));
    let (stop, progress) = (context.stop, context.progress);
    let place = (&*args.output, &*spool);
    let summary = pack_to_store(&args.checkpoint, place, settings, stop, progress)?;
    show(&summary, args, context)
}

#[cfg(not(feature = "remote"))]
fn to_store(args: &Args, _: &PackSettings, _: &Context) -> Result<Exit, CliError> {
    refuse_for_store(args)?;
    let place = args.output.clone();
    Err(StepError::from(SourceError::WithoutRemote { place }).into())
}

use std::path::PathBuf;

use segpack_manifests::folder::OpenOptions;

use super::Context;
use super::args::{INPUT, Identity, Jobs, OUTPUT, SizeArgs, identity};
use super::error::CliError;
use crate::render::text;
use crate::source::PackPlace;
use crate::steps::contents::Contents;
use crate::steps::diff::{DiffSettings, diff};
use crate::steps::{Exit, StepError};
use crate::work::Job;

/// Show what differs between two packs, two checkpoints, or one of each
///
/// Tensors are compared by dtype, shape and SHA-256, files beside the shards by their bytes; codecs
/// and how tensors are spread over shards do not count. The digests of packs are in their
/// manifests, so only the tensors of checkpoints are read. Exit status 0 if all is equal, 3 if not.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack diff omni.segpack ./Qwen3-Omni-30B-A3B-Instruct
  segpack diff before.segpack after.segpack --stat     # how much values moved
  segpack diff before.segpack after.segpack --tensors  # every tensor that differs
  segpack diff before.segpack after.segpack --tensors --json | jq -r '.changed_tensors[].name'")]
pub(super) struct Args {
    /// Pack or checkpoint: a folder, or an address
    #[arg(value_name = "A")]
    a: PathBuf,
    /// Pack or checkpoint to compare it with
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Also read the values of tensors that changed, and show how much they moved: largest absolute
    /// difference, relative root mean square, share of changed values
    #[arg(long, help_heading = INPUT)]
    stat: bool,
    /// SHA-256 that manifest.json must have: 64 hex digits, or a file that holds it, such as a
    /// SHA256SUMS; of two packs, given twice, in their order
    #[arg(long, value_name = "HEX|FILE", value_parser = identity, help_heading = INPUT)]
    manifest_sha256: Vec<Identity>,
    #[command(flatten)]
    jobs: Jobs,
    /// List every tensor that differs
    #[arg(long, help_heading = OUTPUT)]
    tensors: bool,
    #[command(flatten)]
    sizes: SizeArgs,
    /// Print the report as JSON (schemas/diff-report.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

impl Args {
    /// How each of the two is opened: each pack has to be the one that was named.
    fn options(&self, job: Job<'static>) -> Result<[OpenOptions; 2], CliError> {
        if self.manifest_sha256.is_empty() {
            return Ok([OpenOptions::new(); 2]);
        }
        let is_pack = |path| PackPlace::find_pack(path, job).map(|found| found.is_some());
        let packs = [
            is_pack(&self.a).map_err(StepError::from)?,
            is_pack(&self.b).map_err(StepError::from)?,
        ];
        let named = self.manifest_sha256.len();
        if named != packs.iter().filter(|is_pack| **is_pack).count() {
            return Err(CliError::Identities);
        }
        let mut named = self.manifest_sha256.iter();
        let mut options = [OpenOptions::new(); 2];
        for (options, _) in options
            .iter_mut()
            .zip(packs)
            .filter(|(_, is_pack)| *is_pack)
        {
            let wanted = named.next().map(Identity::digest).transpose()?;
            *options = options.manifest_sha256(wanted);
        }
        Ok(options)
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let [a, b] = args.options(context.job())?;
    let a = Contents::open(&args.a, a, context.job())?;
    let b = Contents::open(&args.b, b, context.job())?;
    let settings = DiffSettings {
        stat: args.stat,
        tensors: args.tensors,
    };
    let job = context.job_of(args.jobs.count());
    let report = diff(&a, &b, settings, job)?;
    let places = [&args.a, &args.b].map(|path| path.display().to_string());
    context.terminal.document(&report, args.json, |r| {
        text::diff(r, [&places[0], &places[1]], args.sizes.sizes())
    })?;
    Ok(Exit::of(report.equal))
}

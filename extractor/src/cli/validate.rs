use std::path::PathBuf;

use super::Context;
#[cfg(feature = "remote")]
use super::args::ServerArgs;
use super::args::values::tolerance;
use super::args::{INPUT, OUTPUT, PackArg, PlacementArgs, ReadingArgs, Resources};
use super::error::CliError;
use super::hints::of_validation;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::validate::{Against, ValidateSettings, validate};

/// Run a model from its pack and compare it with a trace of the official model, with its
/// checkpoint, or with what a server generates
///
/// Runs the prompts of the trace and compares every intermediate result that it contains. The
/// recorded tokens are then fed one by one, so that an early difference does not hide later ones.
/// The gate in float32: logits within max(3e-4, 4.5e-5 x layers), the same top token at every
/// position, the same experts. In bfloat16: the same greedy tokens for prompts that the trace marks
/// as stable; everything else is reported only. A trace of a prompt with audio, images or videos is
/// compared stage by stage, from samples and patches through the encoders to the tokens, each stage
/// with what the reference had before it. The trace determines the precision; --against and --server
/// use float32. A server is asked to continue prompts greedily and to tell log-probabilities: its
/// tokens, their order and their log-probabilities are compared with the model's in the pack.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack validate omni.segpack --reference trace.float32.json
  segpack validate omni.segpack --reference trace.float32.json --memory 6GiB --expert-cache 64
  segpack validate omni.segpack --against ./Qwen3-Omni-30B-A3B-Instruct   # needs no trace
  segpack validate omni.segpack --reference trace.bfloat16.json --json | jq .verdict
  segpack validate omni.segpack --reference server.q8_0.json --tolerance 0.5
  segpack validate omni.segpack --server http://127.0.0.1:8000/v1 --server-kind vllm \\
      --served-dtype bfloat16 --tolerance 0.3 --chat --prompt 'Name three rivers.'")]
#[command(group = clap::ArgGroup::new("with").required(true))]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Trace to compare with: the .json or .safetensors file that the scripts in
    /// runtime-min/reference or `segpack run --trace` wrote
    #[arg(
        long,
        value_name = "TRACE",
        group = "with",
        help_heading = INPUT
    )]
    reference: Option<PathBuf>,
    /// Checkpoint to compare with: its results are computed directly from the shards, without a
    /// cache, for fixed prompts
    #[arg(long, value_name = "CKPT", group = "with", help_heading = INPUT)]
    against: Option<PathBuf>,
    #[cfg(feature = "remote")]
    #[command(flatten)]
    server: ServerArgs,
    /// Tolerance for log-probabilities, for a server and for a trace without logits; a smaller gap
    /// also excuses a different token
    #[arg(
        long,
        value_name = "X",
        value_parser = tolerance,
        conflicts_with = "against",
        help_heading = INPUT
    )]
    tolerance: Option<f64>,
    /// Do not check that the trace was recorded from the packed checkpoint
    #[arg(long, conflicts_with = "against", help_heading = INPUT)]
    no_digests: bool,
    #[command(flatten)]
    placement: PlacementArgs,
    #[command(flatten)]
    resources: Resources,
    /// Print the report as JSON (schemas/validate-report.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

impl Args {
    /// What to compare with; the parser sees to it that it is one thing.
    fn against(&self) -> Result<Against, CliError> {
        #[cfg(feature = "remote")]
        if let Some(server) = self.server.settings()? {
            return Ok(Against::Server(Box::new(server)));
        }
        Ok(match (&self.reference, &self.against) {
            (Some(trace), _) => Against::Trace(trace.clone()),
            (None, checkpoint) => Against::Checkpoint(checkpoint.clone().unwrap_or_default()),
        })
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    args.reading
        .refuse_unchecked(args.resources.leaves_unchecked(), "check")?;
    let against = args.against()?;
    let mut settings = ValidateSettings::new(against);
    settings.session = args.resources.session(args.placement);
    settings.tolerance = args.tolerance;
    settings.digests = !args.no_digests;
    let report = validate(
        &args.reading.open(&args.pack, context)?,
        &settings,
        context.stop,
        context.progress,
    )?;
    let place = args.pack.place();
    context
        .terminal
        .document(&report, args.json, |r| text::validate(r, &place))?;
    context.terminal.hint(of_validation(&report));
    Ok(Exit::of(report.ok))
}

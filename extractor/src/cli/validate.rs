use std::path::PathBuf;

use super::Context;
use super::args::values::tolerance;
use super::args::{Placement, Resources};
use crate::render::text;
use crate::steps::Exit;
use crate::steps::validate::{Against, ValidateSettings, validate};

/// Run a model from its pack and compare it with a trace of the official one, or with its
/// checkpoint
///
/// The prompts of the trace are run and every intermediate result that it holds is compared, then
/// its generated tokens are fed one by one, so that one early difference does not hide the rest. In
/// float32 the gate is: logits within max(3e-4, 4.5e-5 x layers), the same best token everywhere,
/// the same experts. In bfloat16: the same greedy tokens on prompts that the trace calls stable;
/// the rest is reported. The precision is the trace's; --against takes float32.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack validate omni.segpack --reference trace.float32.json
  segpack validate omni.segpack --reference trace.float32.json --memory 6GiB --expert-cache 64
  segpack validate omni.segpack --against ./Qwen3-Omni-30B-A3B-Instruct      without any trace
  segpack validate omni.segpack --reference trace.bfloat16.json --json | jq .verdict
  segpack validate omni.segpack --reference server.q8_0.json --tolerance 0.5")]
pub struct Args {
    /// The pack folder
    #[arg(value_name = "PACK")]
    pack: PathBuf,
    /// A trace that runtime-min/reference or `segpack run --trace` wrote: its .json or .safetensors
    /// file
    #[arg(
        long,
        value_name = "TRACE",
        required_unless_present = "against",
        conflicts_with = "against"
    )]
    reference: Option<PathBuf>,
    /// Compare with a direct, uncached calculation from the shards of this checkpoint, on fixed
    /// prompts
    #[arg(long, value_name = "CKPT")]
    against: Option<PathBuf>,
    /// Most that a log-probability may differ, and a gap that excuses another token, for a trace
    /// without logits
    #[arg(long, value_name = "X", value_parser = tolerance, conflicts_with = "against")]
    tolerance: Option<f64>,
    /// Do not ask whether the trace was recorded from the checkpoint that was packed
    #[arg(long, conflicts_with = "against")]
    no_digests: bool,
    #[command(flatten)]
    placement: Placement,
    #[command(flatten)]
    resources: Resources,
    /// Print one JSON document (schemas/validate-report.schema.json)
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let against = match (args.reference, args.against) {
        (Some(trace), _) => Against::Trace(trace),
        // one of the two is there, says the parser
        (None, checkpoint) => Against::Checkpoint(checkpoint.unwrap_or_default()),
    };
    let settings = ValidateSettings {
        against,
        device: args.placement.device,
        device_memory: args.placement.device_memory,
        memory: args.resources.memory,
        experts: args.resources.expert_cache,
        tolerance: args.tolerance,
        digests: !args.no_digests,
        check: args.resources.check(),
        threads: args.resources.threads(),
    };
    let report = validate(&args.pack, &settings, context.stop, &context.progress)?;
    let place = args.pack.display().to_string();
    context
        .terminal
        .document(&report, args.json, |r| text::validate(r, &place))?;
    Ok(Exit::of(report.ok))
}

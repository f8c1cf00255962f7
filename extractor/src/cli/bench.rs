use std::path::PathBuf;

use segpack_manifests::Pack;
use segpack_runtime_min::models::decoder::Check;

use super::Context;
use super::args::values::{count, size, threads};
use super::args::{CheckName, ComputeName};
use crate::render::text;
use crate::steps::bench::{BenchSettings, GpuBenchSettings, bench, bench_gpu};
use crate::steps::device::DeviceChoice;
use crate::steps::{Exit, StepError};
use crate::work::default_jobs;

/// Measure this machine and a model on it, and forecast the whole model
///
/// Measures the rates of memory, multiply-adds, drive and digests, then the model with all weights
/// in memory and in less, and prints each as a share of its limit. Tokens are random: experts are
/// chosen as evenly as the router allows, the worst case for a cache. Nothing else should run
/// meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack bench omni.segpack
  segpack bench few-layers.segpack --layers 48
  segpack bench omni.segpack --device cuda --device-memory 16GB
  segpack bench omni.segpack --no-resident --memory 4GB --memory 8GB --json | jq .on_demand")]
pub struct Args {
    /// The pack folder
    #[arg(value_name = "PACK")]
    pack: PathBuf,
    /// Measure with this many threads; may be repeated [default: 1 and one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = threads)]
    threads: Vec<usize>,
    /// Measure in this much memory, from a cold page cache; may be repeated. With --device, once:
    /// host memory, of which what is left is for experts that --device-memory has no room for
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Vec<u64>,
    /// Do not measure with all weights in memory
    #[arg(long)]
    no_resident: bool,
    /// Tokens of a prompt; may be repeated [default: 128 and 512]
    #[arg(long, value_name = "N", value_parser = count)]
    prompt: Vec<usize>,
    /// Tokens to generate for each figure
    #[arg(long, value_name = "N", default_value = "32", value_parser = count)]
    tokens: usize,
    /// How often to measure each figure; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    /// When the digests of segments are compared
    #[arg(long, value_name = "WHEN", default_value = "always")]
    check: CheckName,
    /// Forecast a model of so many layers of this kind [default: the pack's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    layers: Option<u32>,
    /// Forecast for this much memory; may be repeated [default: 2, 4, 8, 16, 32 and 64 GB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    forecast: Vec<u64>,
    /// Measure on a GPU instead (cuda or cuda:N): with all weights there, and with each
    /// --device-memory
    #[arg(long, value_name = "DEVICE", conflicts_with_all = ["threads", "layers", "forecast"])]
    device: Option<DeviceChoice>,
    /// Measure in this much GPU memory; may be repeated
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "device")]
    device_memory: Vec<u64>,
    /// Precision of activations on a GPU
    #[arg(long, value_name = "TYPE", default_value = "bf16", requires = "device")]
    compute: ComputeName,
    /// Print one JSON document (schemas/bench-report.schema.json; of a GPU
    /// schemas/gpu-bench-report.schema.json)
    #[arg(long)]
    json: bool,
}

fn or<T>(given: Vec<T>, default: impl FnOnce() -> Vec<T>) -> Vec<T> {
    if given.is_empty() { default() } else { given }
}

pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let pack = Pack::open(&args.pack)?;
    if let Some(device) = args.device {
        return run_gpu(&args, device, &pack, context);
    }
    let threads = or(args.threads, || {
        let mut threads = vec![1, default_jobs()];
        threads.dedup();
        threads
    });
    let settings = BenchSettings {
        threads,
        prompts: or(args.prompt, || vec![128, 512]),
        tokens: args.tokens,
        memory: args.memory,
        resident: !args.no_resident,
        repeats: args.repeats,
        check: Check::from(args.check),
        layers: args.layers,
        forecast: or(args.forecast, || {
            [2, 4, 8, 16, 32, 64].map(|g| g * 1_000_000_000).to_vec()
        }),
    };
    let report = bench(&pack, &settings, context.stop, &context.progress)?;
    context.terminal.document(&report, args.json, text::bench)?;
    Ok(Exit::Ok)
}

fn run_gpu(
    args: &Args,
    device: DeviceChoice,
    pack: &Pack,
    context: &Context,
) -> anyhow::Result<Exit> {
    let DeviceChoice::Cuda(number) = device else {
        return Err(StepError::Usage(
            "--device of bench is cuda or cuda:N; without it the CPU is measured".to_owned(),
        )
        .into());
    };
    if args.memory.len() > 1 {
        return Err(
            StepError::Usage("with --device there is one --memory, the host's".to_owned()).into(),
        );
    }
    let settings = GpuBenchSettings {
        number,
        memory: args.memory.first().copied(),
        compute: args.compute.into(),
        prompts: or(args.prompt.clone(), || vec![512, 2048]),
        tokens: args.tokens,
        device_memory: args.device_memory.clone(),
        resident: !args.no_resident,
        repeats: args.repeats,
        check: Check::from(args.check),
    };
    let report = bench_gpu(pack, &settings, context.stop)?;
    context
        .terminal
        .document(&report, args.json, text::gpu_bench)?;
    Ok(Exit::Ok)
}

use segpack_manifests::Pack;
use segpack_runtime_min::session::DeviceChoice;
use segpack_runtime_min::weights::ChecksumPolicy;

use super::Context;
use super::args::values::{count, size, threads};
use super::args::{CheckName, ComputeName, DEVICE, MEASUREMENT, OUTPUT, PackArg};
use super::error::CliError;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::bench::{BenchSettings, GpuBenchSettings, bench, bench_gpu};
use crate::work::default_jobs;

/// Measure this machine and a model on it, and forecast the speed of the whole model
///
/// Measures the speed of memory, multiply-adds, drive and digests, then the model with all weights
/// in memory and with less memory, each also as a share of its limit. Tokens are random: experts
/// are chosen as evenly as the router allows, the worst case for a cache. Nothing else should run
/// at the same time.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack bench omni.segpack
  segpack bench few-layers.segpack --layers 48
  segpack bench omni.segpack --device cuda --device-memory 16GB
  segpack bench omni.segpack --no-resident --memory 4GB --memory 8GB --json | jq .on_demand")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    /// Number of tokens of a prompt; may be repeated [default: 128 and 512; on a GPU 512 and 2048]
    #[arg(long, value_name = "N", value_parser = count, help_heading = MEASUREMENT)]
    prompt: Vec<usize>,
    /// Number of tokens to generate for each result
    #[arg(
        long,
        value_name = "N",
        default_value = "32",
        value_parser = count,
        help_heading = MEASUREMENT
    )]
    tokens: usize,
    /// Number of repetitions of each measurement; the median is reported
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=1000),
        help_heading = MEASUREMENT
    )]
    repeats: u32,
    /// Do not measure with all weights in memory
    #[arg(long, help_heading = MEASUREMENT)]
    no_resident: bool,
    /// Number of layers of the forecast model, of the same kind [default: the pack's]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=10_000),
        help_heading = MEASUREMENT
    )]
    layers: Option<u32>,
    /// Memory budget of the forecast; may be repeated [default: 2, 4, 8, 16, 32 and 64 GB]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = MEASUREMENT)]
    forecast: Vec<u64>,
    /// Measure on a GPU instead (cuda or cuda:N): with all weights there, and with each
    /// --device-memory
    #[arg(
        long,
        value_name = "DEVICE",
        conflicts_with_all = ["threads", "layers", "forecast"],
        help_heading = DEVICE
    )]
    device: Option<DeviceChoice>,
    /// GPU memory budget to measure with; may be repeated
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = size,
        requires = "device",
        help_heading = DEVICE
    )]
    device_memory: Vec<u64>,
    /// Precision of activations [default: f32; on a GPU bf16]
    #[arg(long, value_name = "TYPE", help_heading = DEVICE)]
    compute: Option<ComputeName>,
    /// Memory budget to measure with, from a cold page cache; may be repeated. With --device, only
    /// once: the budget of the host, which caches experts that do not fit on the GPU
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = DEVICE)]
    memory: Vec<u64>,
    /// When to compare the digests of segments
    #[arg(long, value_name = "WHEN", default_value = "always", help_heading = DEVICE)]
    check: CheckName,
    /// Number of threads to measure with; may be repeated [default: 1 and one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = threads, help_heading = DEVICE)]
    threads: Vec<usize>,
    /// Print the report as JSON (schemas/bench-report.schema.json; for a GPU
    /// schemas/gpu-bench-report.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

fn or<T>(given: Vec<T>, default: impl FnOnce() -> Vec<T>) -> Vec<T> {
    if given.is_empty() { default() } else { given }
}

pub(super) fn run(args: Args, context: &Context) -> Result<Exit, CliError> {
    args.pack.local(
        "what is measured is this machine's drive and processor: copy the pack to a folder",
    )?;
    let pack = args.pack.open(context)?;
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
        compute: args.compute.unwrap_or(ComputeName::F32).into(),
        check: ChecksumPolicy::from(args.check),
        layers: args.layers,
        forecast: or(args.forecast, || {
            [2, 4, 8, 16, 32, 64].map(|g| g * 1_000_000_000).to_vec()
        }),
    };
    let report = bench(&pack, &settings, context.stop, context.progress)?;
    context.terminal.document(&report, args.json, text::bench)?;
    Ok(Exit::Ok)
}

fn run_gpu(
    args: &Args,
    device: DeviceChoice,
    pack: &Pack,
    context: &Context,
) -> Result<Exit, CliError> {
    let DeviceChoice::Cuda(number) = device else {
        return Err(CliError::NotAGpu);
    };
    if args.memory.len() > 1 {
        return Err(CliError::HostMemory);
    }
    let settings = GpuBenchSettings {
        number,
        memory: args.memory.first().copied(),
        compute: args.compute.unwrap_or(ComputeName::Bf16).into(),
        prompts: or(args.prompt.clone(), || vec![512, 2048]),
        tokens: args.tokens,
        device_memory: args.device_memory.clone(),
        resident: !args.no_resident,
        repeats: args.repeats,
        check: ChecksumPolicy::from(args.check),
    };
    let report = bench_gpu(pack, &settings, context.stop)?;
    context
        .terminal
        .document(&report, args.json, text::gpu_bench)?;
    Ok(Exit::Ok)
}

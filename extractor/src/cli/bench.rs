use std::io::{self, Write};
use std::path::PathBuf;

use segpack_manifests::Pack;
use segpack_manifests::documents::{BenchReport, GpuBenchReport, Precision};
use segpack_runtime_min::models::decoder::Check;

use super::Context;
use super::pack::jobs;
use super::run::{CheckName, ComputeName, size};
use super::terminal::{bytes, table};
use crate::steps::bench::{BenchSettings, GpuBenchSettings, bench, bench_gpu};
use crate::steps::device::DeviceChoice;
use crate::steps::{Exit, StepError, default_jobs};

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
    #[arg(long, short, value_name = "N", value_parser = jobs)]
    threads: Vec<usize>,
    /// Measure in this much memory, from a cold page cache; may be repeated. With --device, once:
    /// host memory, of which what is left is for experts that --device-memory has no room for
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Vec<u64>,
    /// Do not measure with all weights in memory
    #[arg(long)]
    no_resident: bool,
    /// Tokens of a prompt; may be repeated [default: 128 and 512]
    #[arg(long, value_name = "N", value_parser = jobs)]
    prompt: Vec<usize>,
    /// Tokens to generate for each figure
    #[arg(long, value_name = "N", default_value = "32", value_parser = jobs)]
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
    if args.json {
        context.terminal.document(&report)?;
    } else {
        context.terminal.stdout(|out| print(&report, out))?;
    }
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
    if args.json {
        context.terminal.document(&report)?;
    } else {
        context.terminal.stdout(|out| print_gpu(&report, out))?;
    }
    Ok(Exit::Ok)
}

fn print_gpu(report: &GpuBenchReport, out: &mut dyn Write) -> io::Result<()> {
    let compute = match report.compute {
        Precision::Float32 => "f32",
        Precision::Bfloat16 => "bf16",
    };
    writeln!(
        out,
        "{} ({compute}, medians of {})",
        report.device, report.repeats
    )?;
    if let Some(r) = &report.resident {
        writeln!(
            out,
            "all weights on the GPU, loaded in {:.1} s",
            r.load_seconds
        )?;
        let of = bytes(report.bytes_per_token);
        writeln!(
            out,
            "  decode, {of} a token: {:.1} tokens/s",
            r.decode_tokens_per_second
        )?;
        writeln!(
            out,
            "  decode, tokens chosen by the GPU: {:.1} tokens/s",
            r.greedy_tokens_per_second
        )?;
        for p in &r.prefill {
            writeln!(
                out,
                "  prompt of {} tokens: {:.1} tokens/s",
                p.tokens, p.tokens_per_second
            )?;
        }
    }
    for d in &report.on_demand {
        writeln!(
            out,
            "in {} of the GPU: {:.1} tokens/s, {} of uses on the GPU, {} copied and {} read a token",
            bytes(d.device_memory),
            d.decode_tokens_per_second,
            percent(d.hit_rate),
            about(d.bytes_copied_per_token),
            about(d.bytes_read_per_token)
        )?;
    }
    Ok(())
}

fn rate(bytes_per_second: f64) -> String {
    format!("{:.2} GB/s", bytes_per_second / 1e9)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bytes, rounded"
)]
fn about(n: f64) -> String {
    bytes(n.max(0.0) as u64)
}

fn print(report: &BenchReport, out: &mut dyn Write) -> io::Result<()> {
    let drive = report
        .drive_rate
        .map_or_else(|| "not measured (no direct reads)".to_owned(), rate);
    let check = if report.checked {
        "digests checked"
    } else {
        "digests not checked"
    };
    writeln!(
        out,
        "this machine ({}, medians of {})",
        report.instruction_set, report.repeats
    )?;
    writeln!(
        out,
        "  drive {drive}, BLAKE3 {} on one thread",
        rate(report.blake3_rate)
    )?;
    let limits = report.limits.iter().map(|l| {
        let flops = format!("{:.0} GFLOP/s", l.fma_peak / 1e9);
        vec![format!("  {}", l.threads), rate(l.read_bandwidth), flops]
    });
    writeln!(
        out,
        "{}",
        table(
            1,
            &["  threads", "memory read", "f32 multiply-add"],
            limits.collect()
        )
    )?;
    if !report.resident.is_empty() {
        writeln!(out, "\nall weights in memory")?;
    }
    let mut rows = Vec::new();
    for r in &report.resident {
        let row = |what: String, rate: f64, share: f64, limit: &str| {
            vec![
                format!("  {}", r.threads),
                what,
                format!("{rate:.1}"),
                percent(share),
                limit.to_owned(),
            ]
        };
        let (d, of) = (
            r.decode,
            format!("decode, {} a token", bytes(r.bytes_per_token)),
        );
        rows.push(row(
            of,
            d.tokens_per_second,
            d.share_of_limit,
            "memory read",
        ));
        for p in &r.prefill {
            let of = format!("prompt of {} tokens", p.tokens);
            rows.push(row(
                of,
                p.rate.tokens_per_second,
                p.rate.share_of_limit,
                "multiply-add",
            ));
        }
    }
    if !rows.is_empty() {
        writeln!(
            out,
            "{}",
            table(2, &["  threads", "what", "tokens/s", "share", "of"], rows)
        )?;
    }
    print_on_demand(report, check, out)?;
    print_forecast(report, out)
}

fn print_on_demand(report: &BenchReport, check: &str, out: &mut dyn Write) -> io::Result<()> {
    if report.on_demand.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nexperts on demand, from a cold page cache, {check}")?;
    let rows = report.on_demand.iter().map(|d| {
        vec![
            format!("  {}", bytes(d.memory)),
            d.threads.to_string(),
            percent(d.hit_rate),
            about(d.bytes_read_per_token),
            format!("{:.2}", d.decode.tokens_per_second),
            percent(d.decode.share_of_limit),
            percent(d.waiting),
        ]
    });
    let header = [
        "  memory",
        "threads",
        "hits",
        "read a token",
        "tokens/s",
        "of drive + memory",
        "waiting",
    ];
    writeln!(out, "{}", table(1, &header, rows.collect()))
}

fn print_forecast(report: &BenchReport, out: &mut dyn Write) -> io::Result<()> {
    let f = &report.forecast;
    writeln!(
        out,
        "\nforecast for {} layers (computed, experts chosen evenly)",
        f.layers
    )?;
    writeln!(
        out,
        "  {} of weights, {} a token, at least {} of memory; all in memory: {:.1} tokens/s",
        bytes(f.weights),
        bytes(f.bytes_per_token),
        bytes(f.least_memory),
        f.resident_tokens_per_second
    )?;
    let rows = f.budgets.iter().map(|b| {
        let read = about(b.bytes_read_per_token);
        vec![
            format!("  {}", bytes(b.memory)),
            percent(b.hit_rate),
            read,
            format!("{:.2}", b.tokens_per_second),
        ]
    });
    writeln!(
        out,
        "{}",
        table(
            1,
            &["  memory", "hits", "read a token", "tokens/s"],
            rows.collect()
        )
    )
}

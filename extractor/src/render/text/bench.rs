use segpack_manifests::documents::{
    BenchForecast, BenchForecastBudget, BenchLimits, BenchOnDemand, BenchPrefillLimit, BenchRate,
    BenchReport, BenchResident, GpuBenchOnDemand, GpuBenchReport, GpuBenchResident, Precision,
};

use super::numbers::{bytes, mean_bytes, percent, rate};
use super::page::Page;

/// What `bench` measured, and what follows for the whole model.
pub(crate) fn bench(report: &BenchReport) -> String {
    let mut page = Page::default();
    page.append(&machine(report));
    if !report.resident.is_empty() {
        page.blank();
        page.line("all weights in memory");
        let header = [
            "  threads",
            "phase",
            "tokens/s",
            "of limit",
            "of highest",
            "limit",
        ];
        page.table(
            2,
            &header,
            report.resident.iter().flat_map(resident_rows).collect(),
        );
    }
    if !report.on_demand.is_empty() {
        page.append(&on_demand(report));
    }
    page.append(&forecast(&report.forecast));
    page.into_text()
}

fn machine(report: &BenchReport) -> String {
    let mut page = Page::default();
    let (kernels, repeats) = (&report.instruction_set, report.repeats);
    let compute = compute_name(report.compute);
    page.line(format_args!(
        "machine ({kernels} kernels, {compute}, medians of {repeats})"
    ));
    let drive = report
        .drive_rate
        .map_or("not measured (no direct I/O)".to_owned(), rate);
    let blake3 = rate(report.blake3_rate);
    page.line(format_args!(
        "  drive: {drive}; BLAKE3, one thread: {blake3}"
    ));
    let header = [
        "  threads",
        "memory bandwidth",
        "highest",
        "multiply-add",
        "highest",
    ];
    page.table(1, &header, report.limits.iter().map(limits_row).collect());
    let sunk = report.limits.iter().flat_map(sunk).fold(0.0, f64::max);
    if sunk > MAX_SUNK {
        page.line(format_args!(
            "  warning: repetitions of a limit are up to {} below the highest: others use this machine, \
             and shares of the limit look better than they are",
            percent(sunk)
        ));
    }
    page.into_text()
}

/// How far the median of a limit may be below its highest measurement without a word.
const MAX_SUNK: f64 = 0.1;

/// How far the medians of limits are below their highest measurements.
fn sunk(limits: &BenchLimits) -> [f64; 2] {
    [
        (limits.read_bandwidth, limits.highest_read_bandwidth),
        (limits.fma_peak, limits.highest_fma_peak),
    ]
    .map(|(median, highest)| 1.0 - median / highest)
}

fn limits_row(limits: &BenchLimits) -> Vec<String> {
    vec![
        format!("  {}", limits.threads),
        rate(limits.read_bandwidth),
        rate(limits.highest_read_bandwidth),
        operations(limits.fma_peak),
        operations(limits.highest_fma_peak),
    ]
}

fn operations(per_second: f64) -> String {
    format!("{:.0} GFLOP/s", per_second / 1e9)
}

/// A row for decoding, and one for each prompt.
fn resident_rows(resident: &BenchResident) -> Vec<Vec<String>> {
    let decode = format!("decode, {} per token", bytes(resident.bytes_per_token));
    let mut rows = vec![resident_row(
        resident,
        decode,
        resident.decode,
        "memory bandwidth",
    )];
    for p in &resident.prefill {
        let prompt = format!("prefill, {} tokens", p.tokens);
        let limit = match p.limit {
            BenchPrefillLimit::MultiplyAdd => "multiply-add",
            BenchPrefillLimit::Memory => "memory bandwidth",
        };
        rows.push(resident_row(resident, prompt, p.rate, limit));
    }
    rows
}

fn resident_row(
    resident: &BenchResident,
    what: String,
    rate: BenchRate,
    limit: &str,
) -> Vec<String> {
    vec![
        format!("  {}", resident.threads),
        what,
        format!("{:.1}", rate.tokens_per_second),
        percent(rate.share_of_limit),
        percent(rate.share_of_highest_limit),
        limit.to_owned(),
    ]
}

fn on_demand(report: &BenchReport) -> String {
    let mut page = Page::default();
    let check = if report.checked {
        "digests checked"
    } else {
        "digests not checked"
    };
    page.blank();
    page.line(format_args!("experts on demand (cold page cache, {check})"));
    let header = [
        "  memory",
        "threads",
        "hit rate",
        "read per token",
        "tokens/s",
        "of limit (drive + memory)",
        "of highest",
        "waiting",
    ];
    page.table(
        1,
        &header,
        report.on_demand.iter().map(on_demand_row).collect(),
    );
    page.into_text()
}

fn on_demand_row(budget: &BenchOnDemand) -> Vec<String> {
    vec![
        format!("  {}", bytes(budget.memory)),
        budget.threads.to_string(),
        percent(budget.hit_rate),
        mean_bytes(budget.bytes_read_per_token),
        format!("{:.2}", budget.decode.tokens_per_second),
        percent(budget.decode.share_of_limit),
        percent(budget.decode.share_of_highest_limit),
        percent(budget.waiting),
    ]
}

fn forecast(f: &BenchForecast) -> String {
    let mut page = Page::default();
    page.blank();
    page.line(format_args!(
        "forecast for {} layers (computed; experts chosen evenly)",
        f.layers
    ));
    page.line(format_args!(
        "  {} of weights, {} per token, minimum memory {}; all in memory: {:.1} tokens/s",
        bytes(f.weights),
        bytes(f.bytes_per_token),
        bytes(f.least_memory),
        f.resident_tokens_per_second
    ));
    let header = ["  memory", "hit rate", "read per token", "tokens/s"];
    page.table(1, &header, f.budgets.iter().map(forecast_row).collect());
    page.into_text()
}

fn forecast_row(budget: &BenchForecastBudget) -> Vec<String> {
    vec![
        format!("  {}", bytes(budget.memory)),
        percent(budget.hit_rate),
        mean_bytes(budget.bytes_read_per_token),
        format!("{:.2}", budget.tokens_per_second),
    ]
}

fn compute_name(compute: Precision) -> &'static str {
    match compute {
        Precision::Float32 => "f32",
        Precision::Bfloat16 => "bf16",
    }
}

/// What `bench --device cuda` measured.
pub(crate) fn gpu_bench(report: &GpuBenchReport) -> String {
    let mut page = Page::default();
    let compute = compute_name(report.compute);
    page.line(format_args!(
        "{} ({compute}, medians of {})",
        report.device, report.repeats
    ));
    if let Some(resident) = &report.resident {
        page.append(&gpu_resident(resident, report.bytes_per_token));
    }
    for budget in &report.on_demand {
        page.line(gpu_on_demand(budget));
    }
    page.into_text()
}

fn gpu_resident(resident: &GpuBenchResident, bytes_per_token: u64) -> String {
    let mut page = Page::default();
    page.line(format_args!(
        "all weights on the GPU, loaded in {:.1} s",
        resident.load_seconds
    ));
    page.line(format_args!(
        "  decode, {} per token: {:.1} tokens/s",
        bytes(bytes_per_token),
        resident.decode_tokens_per_second
    ));
    page.line(format_args!(
        "  decode, tokens selected on the GPU: {:.1} tokens/s",
        resident.greedy_tokens_per_second
    ));
    for p in &resident.prefill {
        page.line(format_args!(
            "  prefill, {} tokens: {:.1} tokens/s",
            p.tokens, p.tokens_per_second
        ));
    }
    page.into_text()
}

fn gpu_on_demand(budget: &GpuBenchOnDemand) -> String {
    format!(
        "{} of GPU memory: {:.1} tokens/s, {} hit rate, {} copied and {} read per token",
        bytes(budget.device_memory),
        budget.decode_tokens_per_second,
        percent(budget.hit_rate),
        mean_bytes(budget.bytes_copied_per_token),
        mean_bytes(budget.bytes_read_per_token)
    )
}

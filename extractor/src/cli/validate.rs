use std::io::{self, Write};
use std::path::PathBuf;

use segpack_manifests::documents::{
    Choice, ChoiceRow, Precision, Quantity, ReferenceKind, ValidateReport, ValueRow, Verdict,
};

use super::Context;
use super::run::{Placement, Resources};
use super::terminal::{counted, grouped, table};
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

fn tolerance(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|e| format!("{e}"))?;
    let is_bound = number.is_finite() && number >= 0.0;
    is_bound
        .then_some(number)
        .ok_or_else(|| "wanted a number that is not negative".to_owned())
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
        .report(&report, report.ok, args.json, |out| {
            print(&report, &place, context, out)
        })
}

fn print(
    report: &ValidateReport,
    place: &str,
    context: &Context,
    out: &mut dyn Write,
) -> io::Result<()> {
    if report.verdict != Verdict::Foreign {
        print_tables(report, out)?;
    }
    let reference = match report.reference {
        ReferenceKind::Trace => format!("trace {}", report.reference_name),
        ReferenceKind::Checkpoint => format!("{}, calculated directly", report.reference_name),
    };
    let verdict = match report.verdict {
        Verdict::Inside => "ok, inside the gate",
        Verdict::Outside => "NOT ok, outside the gate",
        Verdict::Foreign => "NOT ok, the reference is of another checkpoint",
        Verdict::NotJudged => "not judged",
    };
    let line = format_args!(
        "{place}: {verdict}; compared with {reference} ({})",
        gate(report)
    );
    context.terminal.verdict(&report.findings, line, out)
}

/// Tables of what a report compared, and where it goes wrong.
pub fn print_tables(report: &ValidateReport, out: &mut dyn Write) -> io::Result<()> {
    let header = [
        "quantity", "max abs", "mean abs", "relative", "cosine", "off from",
    ];
    let rows = Quantity::ALL
        .iter()
        .filter_map(|quantity| value_row(report, *quantity))
        .collect();
    writeln!(out, "{}\n", table(1, &header, rows))?;
    let rows = Choice::ALL
        .iter()
        .filter_map(|choice| choice_row(report, *choice))
        .collect();
    writeln!(
        out,
        "{}\n",
        table(
            1,
            &[
                "choice",
                "compared",
                "equal",
                "too close to tell",
                "off from"
            ],
            rows
        )
    )?;
    if !report.not_compared.is_empty() {
        let level = report
            .level
            .as_ref()
            .map_or(String::new(), |l| format!(" (recorded with level {l:?})"));
        writeln!(
            out,
            "not in the reference{level}: {}",
            report.not_compared.join(", ")
        )?;
    }
    if let Some(first) = &report.first_wrong {
        let relative = first
            .relative
            .map_or(String::new(), |r| format!(", by {r:.1e} of its RMS"));
        writeln!(
            out,
            "first off: {}{}{relative}",
            first.quantity.text(),
            in_layer(first.layer)
        )?;
    }
    Ok(())
}

fn gate(report: &ValidateReport) -> String {
    let prompts = counted(report.prompts.len() as u64, "prompt");
    if let Some(dtype) = &report.reference_dtype {
        let bound = report.tolerance.map_or(String::new(), |t| {
            format!(", log-probabilities within {t:.1e}")
        });
        return format!("{dtype}, {prompts}{bound}");
    }
    match (report.compute, report.tolerance) {
        (Precision::Float32, Some(tolerance)) => {
            format!("float32, {prompts}, logits within {tolerance:.1e}")
        }
        (Precision::Float32, None) => format!("float32, {prompts}"),
        (Precision::Bfloat16, _) => {
            let stable = report.prompts.iter().filter(|p| p.bf16_stable).count();
            format!("bfloat16, greedy tokens of {stable} stable of {prompts}")
        }
    }
}

fn in_layer(layer: Option<u32>) -> String {
    layer.map_or(String::new(), |layer| format!(" of layer {layer}"))
}

/// All layers of a quantity in one row: the worst of them, the mean over all.
fn value_row(report: &ValidateReport, quantity: Quantity) -> Option<Vec<String>> {
    let rows: Vec<&ValueRow> = report
        .values
        .iter()
        .filter(|r| r.quantity == quantity)
        .collect();
    let first = rows.first()?;
    let worst = |number: fn(&ValueRow) -> f64| rows.iter().map(|r| number(r)).fold(0.0, f64::max);
    #[expect(clippy::cast_precision_loss, reason = "a weight of a mean")]
    let sums = rows.iter().fold((0.0, 0.0), |(sum, n), r| {
        (sum + r.mean_abs * r.values as f64, n + r.values as f64)
    });
    let relative = rows.iter().filter_map(|r| r.relative).reduce(f64::max);
    let cosine = rows.iter().filter_map(|r| r.cosine).reduce(f64::min);
    let wrong = rows
        .iter()
        .find(|r| r.wrong)
        .map(|r| match r.layer.or(first.layer) {
            Some(layer) => format!("layer {layer}"),
            None => "here".to_owned(),
        });
    let not_finite: u64 = rows.iter().map(|r| r.not_finite).sum();
    let max_abs = format!("{:.2e}", worst(|r| r.max_abs));
    Some(vec![
        quantity.text().to_owned(),
        if not_finite > 0 {
            format!("{} not finite", grouped(not_finite))
        } else {
            max_abs
        },
        format!("{:.2e}", sums.0 / f64::max(sums.1, 1.0)),
        relative.map_or("-".to_owned(), |r| format!("{r:.2e}")),
        cosine.map_or("-".to_owned(), |c| format!("{c:.9}")),
        wrong.unwrap_or("-".to_owned()),
    ])
}

fn choice_row(report: &ValidateReport, choice: Choice) -> Option<Vec<String>> {
    let rows: Vec<&ChoiceRow> = report
        .choices
        .iter()
        .filter(|r| r.choice == choice)
        .collect();
    rows.first()?;
    let sum = |number: fn(&ChoiceRow) -> u64| grouped(rows.iter().map(|r| number(r)).sum());
    let wrong = rows.iter().find_map(|r| {
        let [prompt, position] = r.first?;
        let layer = r
            .layer
            .map_or(String::new(), |layer| format!("layer {layer}, "));
        Some(format!("{layer}prompt {prompt}, position {position}"))
    });
    let wrong = wrong.unwrap_or("-".to_owned());
    Some(vec![
        choice.text().to_owned(),
        sum(|r| r.compared),
        sum(|r| r.equal),
        sum(|r| r.excused),
        wrong,
    ])
}

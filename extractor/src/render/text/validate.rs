use segpack_manifests::documents::{
    Choice, ChoiceRow, FirstWrong, Precision, Quantity, ReferenceKind, Stage, StageRow,
    ValidateReport, ValueRow, Verdict,
};

use super::findings::findings;
use super::numbers::{counted, grouped};
use super::page::Page;

const VALUES: [&str; 6] = [
    "quantity",
    "max diff",
    "mean diff",
    "relative",
    "cosine",
    "first wrong",
];
const STAGES: [&str; 5] = ["stage", "max diff", "mean diff", "allowed", "first wrong"];
const CHOICES: [&str; 5] = ["choice", "compared", "equal", "near ties", "first wrong"];
const NOTHING: &str = "-";

/// How the model in the pack at `place` compares with its reference.
pub(crate) fn validate(report: &ValidateReport, place: &str) -> String {
    let mut page = Page::default();
    if report.verdict != Verdict::Foreign {
        page.append(&tables(report));
    }
    page.append(&findings(&report.findings));
    let (verdict, reference, gate) = (verdict(report.verdict), reference(report), gate(report));
    page.line(format_args!(
        "{place}: {verdict}; compared with {reference} ({gate})"
    ));
    page.into_text()
}

/// What was compared, and the first difference that matters.
pub(super) fn tables(report: &ValidateReport) -> String {
    let mut page = Page::default();
    if !report.stages.is_empty() {
        let rows = Stage::ALL
            .iter()
            .filter_map(|stage| stage_row(report, *stage));
        page.table(1, &STAGES, rows.collect());
        page.blank();
    }
    let rows = Quantity::ALL
        .iter()
        .filter_map(|quantity| value_row(report, *quantity));
    page.table(1, &VALUES, rows.collect());
    page.blank();
    let rows = Choice::ALL
        .iter()
        .filter_map(|choice| choice_row(report, *choice));
    page.table(1, &CHOICES, rows.collect());
    page.blank();

    if !report.not_compared.is_empty() {
        let level = report.level.as_ref();
        let level = level.map_or(String::new(), |l| format!(" (recorded with level {l:?})"));
        let missing = report.not_compared.join(", ");
        page.line(format_args!("not in the reference{level}: {missing}"));
    }
    if let Some(first) = &report.first_wrong {
        page.line(first_wrong(first));
    }
    page.into_text()
}

fn first_wrong(first: &FirstWrong) -> String {
    let quantity = first.quantity.text();
    let layer = first
        .layer
        .map_or(String::new(), |layer| format!(" of layer {layer}"));
    let by = first
        .relative
        .map_or(String::new(), |r| format!(", by {r:.1e} of its RMS"));
    format!("first wrong: {quantity}{layer}{by}")
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Inside => "ok, within tolerance",
        Verdict::Outside => "NOT ok, outside tolerance",
        Verdict::Foreign => "NOT ok, the reference was computed from another checkpoint",
        Verdict::NotJudged => "not judged",
    }
}

fn reference(report: &ValidateReport) -> String {
    match report.reference {
        ReferenceKind::Trace if report.is_of_export => format!(
            "trace {}, recorded from an export of this pack",
            report.reference_name
        ),
        ReferenceKind::Trace => format!("trace {}", report.reference_name),
        ReferenceKind::Checkpoint => format!("{}, computed directly", report.reference_name),
        ReferenceKind::Server => format!("what {} generates", report.reference_name),
    }
}

/// What the verdict is based on.
fn gate(report: &ValidateReport) -> String {
    let prompts = counted(report.prompts.len() as u64, "prompt");
    if let Some(dtype) = &report.reference_dtype {
        let bound = report.tolerance;
        let bound = bound.map_or(String::new(), |t| {
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

/// All layers, clips or pictures of a stage in one row: the worst of them.
fn stage_row(report: &ValidateReport, stage: Stage) -> Option<Vec<String>> {
    let rows = || report.stages.iter().filter(|row| row.stage == stage);
    let first = rows().next()?;
    let not_finite: u64 = rows().map(|row| row.not_finite).sum();
    let worst = |of: fn(&StageRow) -> f64| rows().map(of).fold(0.0, f64::max);
    let max_abs = match not_finite {
        0 => format!("{:.2e}", worst(|row| row.max_abs)),
        count => format!("{} not finite", grouped(count)),
    };
    let wrong = rows().find(|row| !row.ok).map(|row| match row.number {
        Some(number) => format!("number {number}"),
        None => "yes".to_owned(),
    });
    Some(vec![
        stage.text().to_owned(),
        max_abs,
        format!("{:.2e}", worst(|row| row.mean_abs)),
        allowed(first),
        wrong.unwrap_or(NOTHING.to_owned()),
    ])
}

fn allowed(row: &StageRow) -> String {
    match (row.max_allowed, row.mean_allowed) {
        (Some(0.0), _) => "equal".to_owned(),
        (Some(max), Some(mean)) => format!("{max:.1e}, mean {mean:.1e}"),
        (Some(max), None) => format!("{max:.1e}"),
        (None, _) => NOTHING.to_owned(),
    }
}

/// All layers of a quantity in one row: the worst of them, the mean over all.
fn value_row(report: &ValidateReport, quantity: Quantity) -> Option<Vec<String>> {
    let rows: Vec<_> = report
        .values
        .iter()
        .filter(|r| r.quantity == quantity)
        .collect();
    let first = rows.first()?;
    let not_finite: u64 = rows.iter().map(|r| r.not_finite).sum();
    let max_abs = if not_finite > 0 {
        format!("{} not finite", grouped(not_finite))
    } else {
        format!("{:.2e}", rows.iter().map(|r| r.max_abs).fold(0.0, f64::max))
    };
    let relative = rows.iter().filter_map(|r| r.relative).reduce(f64::max);
    let cosine = rows.iter().filter_map(|r| r.cosine).reduce(f64::min);
    let wrong = rows
        .iter()
        .find(|r| r.wrong)
        .map(|r| match r.layer.or(first.layer) {
            Some(layer) => format!("layer {layer}"),
            None => "yes".to_owned(),
        });
    Some(vec![
        quantity.text().to_owned(),
        max_abs,
        format!("{:.2e}", mean_abs(&rows)),
        relative.map_or(NOTHING.to_owned(), |r| format!("{r:.2e}")),
        cosine.map_or(NOTHING.to_owned(), |c| format!("{c:.9}")),
        wrong.unwrap_or(NOTHING.to_owned()),
    ])
}

/// Over all values of all rows.
#[expect(clippy::cast_precision_loss, reason = "weights of a mean")]
fn mean_abs(rows: &[&ValueRow]) -> f64 {
    let sum: f64 = rows.iter().map(|r| r.mean_abs * r.values as f64).sum();
    let values: f64 = rows.iter().map(|r| r.values as f64).sum();
    sum / values.max(1.0)
}

fn choice_row(report: &ValidateReport, choice: Choice) -> Option<Vec<String>> {
    let rows: Vec<_> = report
        .choices
        .iter()
        .filter(|r| r.choice == choice)
        .collect();
    rows.first()?;
    Some(vec![
        choice.text().to_owned(),
        grouped(rows.iter().map(|r| r.compared).sum()),
        grouped(rows.iter().map(|r| r.equal).sum()),
        grouped(rows.iter().map(|r| r.excused).sum()),
        rows.iter()
            .find_map(|r| first_choice(r))
            .unwrap_or(NOTHING.to_owned()),
    ])
}

/// Where the first choice is that differs and is not excused.
fn first_choice(row: &ChoiceRow) -> Option<String> {
    let [prompt, position] = row.first?;
    let layer = row
        .layer
        .map_or(String::new(), |layer| format!("layer {layer}, "));
    Some(format!("{layer}prompt {prompt}, position {position}"))
}

use std::collections::BTreeSet;

use segpack_manifests::documents::{Finding, FindingKind, TensorValues, ValuesReport};

use super::numbers::{counted, percent, share};
use super::page::Page;

/// Tensors that are listed: those that findings name, then those that stand out most.
const MAX_ROWS: usize = 12;

const HEADER: [&str; 8] = [
    "tensor", "min", "max", "mean", "std", "zero", "NaN, inf", "of peers",
];

/// The tensors whose values stand out most.
pub(super) fn values(report: &ValuesReport, findings: &[Finding]) -> String {
    let mut page = Page::default();
    let odd: BTreeSet<&str> = findings
        .iter()
        .filter(|f| is_of_values(f.kind))
        .filter_map(|f| f.tensor.as_deref())
        .collect();
    let mut worst: Vec<&TensorValues> = report.tensors.iter().collect();
    worst.sort_by(|a, b| {
        let peers = |t: &TensorValues| t.of_peers.unwrap_or(0.0);
        let is_odd = |t: &TensorValues| odd.contains(t.name.as_str());
        let first = is_odd(b).cmp(&is_odd(a));
        first.then(peers(b).total_cmp(&peers(a)))
    });
    worst.truncate(MAX_ROWS);
    page.table(1, &HEADER, worst.into_iter().map(row).collect());
    let all = counted(report.tensors.len() as u64, "tensor");
    page.line(format_args!(
        "values of {all}; `of peers`: the largest magnitude over the median of like tensors' (--json lists all)"
    ));
    if !report.unknown.is_empty() {
        let unknown = counted(report.unknown.len() as u64, "tensor");
        page.line(format_args!(
            "{unknown} of a dtype whose values are not known"
        ));
    }
    page.blank();
    page.into_text()
}

fn is_of_values(kind: FindingKind) -> bool {
    matches!(
        kind,
        FindingKind::AllZero
            | FindingKind::NotFinite
            | FindingKind::OutlierValues
            | FindingKind::ZeroRows
            | FindingKind::ConstantTensor
            | FindingKind::EqualTensors
    )
}

fn row(t: &TensorValues) -> Vec<String> {
    let number = |n: Option<f64>| n.map_or("-".to_owned(), |n| format!("{n:.3e}"));
    vec![
        t.name.clone(),
        number(t.min),
        number(t.max),
        number(t.mean),
        number(t.std),
        percent(share(t.zero, t.values)),
        format!("{}, {}", t.nan, t.infinite),
        t.of_peers.map_or("-".to_owned(), |p| format!("{p:.2}x")),
    ]
}

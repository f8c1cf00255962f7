use std::collections::BTreeMap;

use segpack_manifests::documents::{Finding, Severity};

use super::numbers::grouped;
use super::page::Page;

/// How many lines of warnings are printed; errors are all printed.
const MAX_WARNINGS: usize = 20;
/// How many findings that differ only in numbers are printed one by one.
const MAX_ALIKE: usize = 3;

/// Findings: those about tensors whose names differ only in their numbers share a line, with their
/// count and two examples. All errors, and the first warnings.
pub(crate) fn findings(findings: &[Finding]) -> String {
    let (errors, warnings): (Vec<_>, Vec<_>) =
        findings.iter().partition(|f| f.severity == Severity::Error);
    let mut page = Page::default();
    for line in lines(&errors) {
        page.line(format_args!("  {line}"));
    }
    let warnings = lines(&warnings);
    for line in warnings.iter().take(MAX_WARNINGS) {
        page.line(format_args!("  warning: {line}"));
    }
    if warnings.len() > MAX_WARNINGS {
        let more = warnings.len() - MAX_WARNINGS;
        page.line(format_args!(
            "  and {more} more warnings (--json lists all)"
        ));
    }
    page.into_text()
}

/// Findings, one per line.
pub(crate) fn all_findings(findings: &[Finding]) -> String {
    let mut page = Page::default();
    for finding in findings {
        match finding.severity {
            Severity::Error => page.line(format_args!("  {finding}")),
            Severity::Warning => page.line(format_args!("  warning: {finding}")),
        }
    }
    page.into_text()
}

/// A line for each finding or group of findings alike, in the order of the first of each.
fn lines(findings: &[&Finding]) -> Vec<String> {
    let mut numbers: BTreeMap<Alike<'_>, usize> = BTreeMap::new();
    let mut groups: Vec<Vec<&Finding>> = Vec::new();
    for finding in findings {
        let next = groups.len();
        let number = match Alike::of(finding) {
            Some(alike) => *numbers.entry(alike).or_insert(next),
            None => next,
        };
        if number == next {
            groups.push(Vec::new());
        }
        groups[number].push(finding);
    }
    let mut lines = Vec::new();
    for group in groups {
        if group.len() <= MAX_ALIKE {
            lines.extend(group.iter().map(ToString::to_string));
        } else {
            lines.push(line_of(&group));
        }
    }
    lines
}

/// What findings share that differ only in the numbers of their tensors, and in their files.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Alike<'a> {
    kind: String,
    words: Vec<Option<&'a str>>,
    seen: Option<&'a str>,
    wanted: Option<&'a str>,
}

impl<'a> Alike<'a> {
    fn of(finding: &'a Finding) -> Option<Self> {
        let tensor = finding.tensor.as_deref()?;
        if finding.bytes.is_some() || finding.segment.is_some() {
            return None;
        }
        let words = tensor.split('.');
        Some(Self {
            kind: finding.kind_text(),
            words: words
                .map(|word| (!is_number(word)).then_some(word))
                .collect(),
            seen: finding.seen.as_deref(),
            wanted: finding.wanted.as_deref(),
        })
    }
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit())
}

/// One line for findings alike.
fn line_of(group: &[&Finding]) -> String {
    let names: Vec<&str> = group.iter().filter_map(|f| f.tensor.as_deref()).collect();
    let mut finding = group[0].clone();
    finding.file = None;
    let (first, last) = (names[0], names[names.len() - 1]);
    let count = grouped(names.len() as u64);
    let pattern = pattern_of(&names);
    finding.tensor = Some(format!("{pattern} ({count} tensors: {first} … {last})"));
    finding.to_string()
}

/// The names in one, `{0..60}` where their numbers differ.
fn pattern_of(names: &[&str]) -> String {
    let mut words: Vec<String> = Vec::new();
    for (at, word) in names[0].split('.').enumerate() {
        let numbers = names.iter().filter_map(|name| name.split('.').nth(at));
        let numbers: Vec<u64> = numbers.filter_map(|word| word.parse().ok()).collect();
        let (least, most) = (numbers.iter().min(), numbers.iter().max());
        words.push(match (is_number(word), least, most) {
            (true, Some(least), Some(most)) if least != most => format!("{{{least}..{most}}}"),
            _ => word.to_owned(),
        });
    }
    words.join(".")
}

#[cfg(test)]
mod tests {
    use segpack_manifests::documents::FindingKind;

    use super::*;

    #[test]
    fn findings_alike_share_a_line() {
        let missing = |layer: u32| {
            let name = format!("model.layers.{layer}.mlp.gate.weight");
            let finding = Finding::new(FindingKind::MissingTensor).tensor(name);
            finding.seen("not in the checkpoint")
        };
        let other = Finding::new(FindingKind::MissingTensor).tensor("lm_head.weight");
        let mut all: Vec<Finding> = (3..64).map(missing).collect();
        all.push(other.seen("not in the checkpoint"));
        assert_eq!(
            findings(&all),
            "  missing tensor: tensor model.layers.{3..63}.mlp.gate.weight (61 tensors: \
             model.layers.3.mlp.gate.weight … model.layers.63.mlp.gate.weight): not in the \
             checkpoint\n  missing tensor: tensor lm_head.weight: not in the checkpoint\n"
        );
        assert_eq!(all_findings(&all).lines().count(), 62);
        // few are told one by one
        assert_eq!(findings(&all[..3]).lines().count(), 3);
    }
}

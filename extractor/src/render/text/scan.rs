use std::collections::BTreeMap;

use segpack_manifests::documents::{FindingKind, Inventory, MatchedBy, PublishedMatch, Severity};

use super::findings::{all_findings, findings};
use super::numbers::{Sizes, counted, grouped};
use super::page::Page;

/// What is said of a model of a family that is not known.
const UNKNOWN: [FindingKind; 2] = [FindingKind::NotAudited, FindingKind::UnknownFamily];

const HEADER: [&str; 5] = ["component", "class", "tensors", "parameters", "bytes"];

/// What `scan` found in the checkpoint at `root`; `all` findings one by one, or in groups.
pub(crate) fn scan(inventory: &Inventory, root: &str, sizes: Sizes, all: bool) -> String {
    let mut page = Page::default();
    page.line(title(inventory, root));
    page.line(format_args!("completeness: {}", inventory.completeness));
    page.blank();
    if !inventory.classes.is_empty() {
        page.table(2, &HEADER, rows(inventory, sizes));
        page.blank();
    }
    page.line(counts(inventory));
    if let Some(found) = &inventory.published {
        page.line(published(found, inventory, sizes));
    }
    page.line(verdict(inventory));
    page.append(&match all {
        true => all_findings(&inventory.findings),
        false => findings(&inventory.findings),
    });
    page.into_text()
}

fn title(inventory: &Inventory, root: &str) -> String {
    let family = inventory
        .family
        .map_or("unknown family".to_owned(), |f| f.to_string());
    let shards = counted(inventory.shards.len() as u64, "shard");
    let mut title = format!("{root}: {family}, {shards}");
    if let Some(repo) = &inventory.provenance.repo {
        title += &format!(", {repo}");
    }
    if let Some(revision) = &inventory.provenance.revision {
        title += &format!(" @ {revision}");
    }
    title
}

fn counts(inventory: &Inventory) -> String {
    let counts = &inventory.counts;
    let tensors = counted(counts.stored_tensors, "stored tensor");
    let parameters = counted(counts.logical_parameters, "logical parameter");
    format!("{tensors}\n{parameters}, with the experts of a layer stacked (gate and up, down)")
}

/// Which published checkpoint it is.
fn published(found: &PublishedMatch, inventory: &Inventory, sizes: Sizes) -> String {
    let repos = found.repos.join(" or ");
    let derived = match found.verified {
        true => "",
        false => " (derived from its config.json)",
    };
    match found.by {
        MatchedBy::Names => format!("this is {repos} by names, dtypes and shapes"),
        MatchedBy::Counts => format!("this is {repos} by counts and sizes{derived}"),
        MatchedBy::Nearly => format!(
            "nearly {repos}{derived}: {} of {} tensors, {} of {}",
            grouped(inventory.counts.stored_tensors),
            grouped(found.stored_tensors),
            sizes.bytes(inventory.counts.tensor_bytes),
            sizes.bytes(found.tensor_bytes)
        ),
    }
}

fn verdict(inventory: &Inventory) -> String {
    let errors = inventory
        .findings
        .iter()
        .filter(|f| f.severity == Severity::Error)
        .count();
    match (errors, inventory.audited) {
        (0, true) => "complete: every tensor that config.json requires is present, with its shape",
        (_, false) if only(inventory, &[FindingKind::NotAudited]) => {
            "not audited: whether tensors are missing is unknown"
        }
        (_, false) if only(inventory, &UNKNOWN) => {
            "not audited: this version does not know the family; nothing is known to be wrong"
        }
        (_, true) if only(inventory, &[FindingKind::UnlistedShard]) => {
            "complete, but beside other weights: say what to do with them"
        }
        (n, _) => return format!("NOT usable: {}", counted(n as u64, "problem")),
    }
    .to_owned()
}

/// Whether nothing is wrong but findings of these kinds.
fn only(inventory: &Inventory, kinds: &[FindingKind]) -> bool {
    let findings = inventory.findings.iter();
    let mut errors = findings.filter(|f| f.severity == Severity::Error);
    errors.all(|f| kinds.contains(&f.kind))
}

/// Tensors, parameters and bytes.
type Sums = [u64; 3];

/// By component and class, then sums by part of the model.
fn rows(inventory: &Inventory, sizes: Sizes) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut parts: BTreeMap<&str, Sums> = BTreeMap::new();
    for c in &inventory.classes {
        let sums = [c.tensors, c.parameters, c.bytes];
        rows.push(row(c.component.as_str(), &c.class.to_string(), sums, sizes));
        let part = c.component.as_str().split('.').next().unwrap_or_default();
        let part = parts.entry(part).or_default();
        *part = [part[0] + sums[0], part[1] + sums[1], part[2] + sums[2]];
    }
    rows.push(vec![String::new(); 5]);
    rows.extend(
        parts
            .into_iter()
            .rev()
            .map(|(part, sums)| row(part, "all", sums, sizes)),
    );
    let counts = &inventory.counts;
    rows.push(row(
        "total",
        "all",
        [
            counts.stored_tensors,
            counts.parameters,
            counts.tensor_bytes,
        ],
        sizes,
    ));
    rows
}

fn row(component: &str, class: &str, sums: Sums, sizes: Sizes) -> Vec<String> {
    let [tensors, parameters, bytes] = sums;
    vec![
        component.to_owned(),
        class.to_owned(),
        grouped(tensors),
        grouped(parameters),
        sizes.cell(bytes),
    ]
}

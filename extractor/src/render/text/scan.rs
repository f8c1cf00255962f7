use std::collections::BTreeMap;

use segpack_manifests::documents::{Finding, Inventory};

use super::findings::findings;
use super::numbers::{counted, grouped};
use super::page::Page;

/// What `scan` found in the checkpoint at `root`.
pub fn scan(inventory: &Inventory, root: &str) -> String {
    let mut page = Page::default();
    page.line(title(inventory, root));
    page.blank();
    page.table(
        2,
        &["component", "class", "tensors", "parameters", "bytes"],
        rows(inventory),
    );
    page.blank();

    let counts = &inventory.counts;
    page.line(format_args!(
        "{} stored tensors",
        grouped(counts.stored_tensors)
    ));
    page.line(format_args!(
        "{} logical parameters, once each layer's experts are stacked (gate and up, down)",
        grouped(counts.logical_parameters)
    ));

    page.line(
        match (inventory.audited, Finding::any_error(&inventory.findings)) {
            (true, false) => {
                "complete: every tensor that config.json demands is there, with its shape"
            }
            (false, false) => "not audited: whether tensors are missing is unknown",
            (_, true) => "NOT usable as it is:",
        },
    );
    page.append(&findings(&inventory.findings));
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

/// Tensors, parameters and bytes.
type Sums = [u64; 3];

/// By component and class, then sums by part of the model.
fn rows(inventory: &Inventory) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut parts: BTreeMap<&str, Sums> = BTreeMap::new();
    for c in &inventory.classes {
        let sums = [c.tensors, c.parameters, c.bytes];
        rows.push(row(c.component.as_str(), &c.class.to_string(), sums));
        let part = c.component.as_str().split('.').next().unwrap_or_default();
        let part = parts.entry(part).or_default();
        *part = [part[0] + sums[0], part[1] + sums[1], part[2] + sums[2]];
    }
    rows.push(vec![String::new(); 5]);
    rows.extend(
        parts
            .into_iter()
            .rev()
            .map(|(part, sums)| row(part, "all", sums)),
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
    ));
    rows
}

fn row(component: &str, class: &str, sums: Sums) -> Vec<String> {
    let mut row = vec![component.to_owned(), class.to_owned()];
    row.extend(sums.map(grouped));
    row
}

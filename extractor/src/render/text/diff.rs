use std::collections::BTreeMap;

use segpack_manifests::documents::{
    DiffChange, DiffCounts, DiffGroup, DiffKind, DiffMoved, DiffReport, DiffSide, DiffTensor,
    DiffTensorSide,
};
use segpack_manifests::names::Component;

use super::numbers::{Sizes, counted, grouped, percent, share};
use super::page::Page;

/// Layers that are listed one by one; a model that differs everywhere has more.
const MAX_ROWS: usize = 40;

const COUNTS: [&str; 5] = ["component", "equal", "added", "removed", "changed"];
const GROUPS: [&str; 7] = [
    "component",
    "layer",
    "role",
    "equal",
    "added",
    "removed",
    "changed",
];
const MOVED: [&str; 3] = ["max abs", "rel rms", "values changed"];

/// What differs between the two at `places`; sizes as `sizes` says.
pub(crate) fn diff(report: &DiffReport, places: [&str; 2], sizes: Sizes) -> String {
    let r = report;
    let mut page = Page::default();
    page.line(side("A", places[0], &r.a, sizes));
    page.line(side("B", places[1], &r.b, sizes));
    page.blank();
    if r.equal {
        let (tensors, files) = (counted(r.a.tensors, "tensor"), counted(r.a.files, "file"));
        page.line(format_args!("equal: {tensors} and {files}"));
        return page.into_text();
    }
    page.append(&groups(r));
    page.append(&files(r, sizes));
    if let Some(tensors) = &r.changed_tensors {
        tensors.iter().for_each(|t| page.line(tensor(t)));
        page.blank();
    }
    let (t, f) = (verdict(&r.tensors, "tensor"), verdict(&r.files, "file"));
    page.line(format_args!("different: {t}; {f}"));
    page.into_text()
}

fn side(name: &str, place: &str, s: &DiffSide, sizes: Sizes) -> String {
    let kind = match s.kind {
        DiffKind::Pack => "pack",
        DiffKind::Checkpoint => "checkpoint",
    };
    let family = s
        .family
        .map_or("unknown family".to_owned(), |f| f.to_string());
    let (tensors, files) = (counted(s.tensors, "tensor"), counted(s.files, "other file"));
    let size = sizes.bytes(s.bytes);
    let mut line = format!("{name}  {place}: {kind}, {family}, {tensors}, {size}, {files}");
    if !s.excluded.is_empty() {
        let excluded: Vec<String> = s.excluded.iter().map(Component::to_string).collect();
        line += &format!("; without {}", excluded.join(", "));
    }
    line
}

fn verdict(c: &DiffCounts, what: &str) -> String {
    let (added, removed, changed) = (grouped(c.added), grouped(c.removed), grouped(c.changed));
    let equal = counted(c.equal, what);
    format!("{added} {what}s added, {removed} removed, {changed} changed, {equal} equal")
}

fn counts(c: &DiffCounts) -> [String; 4] {
    [c.equal, c.added, c.removed, c.changed].map(grouped)
}

/// A table of the groups; where there are too many, one of the components before it.
fn groups(r: &DiffReport) -> String {
    let mut page = Page::default();
    if r.groups.len() > MAX_ROWS {
        page.table(1, &COUNTS, by_component(&r.groups));
        page.blank();
    }
    let stat = r.groups.iter().any(|g| g.moved.is_some());
    let mut header = GROUPS.to_vec();
    if stat {
        header.extend(MOVED);
    }
    // where only some are shown, the ones that differ most
    let mut shown: Vec<&DiffGroup> = r.groups.iter().collect();
    if shown.len() > MAX_ROWS {
        shown.sort_by(|a, b| distance(b).total_cmp(&distance(a)));
        shown.truncate(MAX_ROWS);
    }
    let rows = shown.iter().map(|g| group_row(g, stat)).collect();
    page.table(3, &header, rows);
    if r.groups.len() > MAX_ROWS {
        let more = r.groups.len() - MAX_ROWS;
        page.line(format_args!("and {more} more groups (--json has all)"));
    }
    if !r.groups.is_empty() {
        page.blank();
    }
    page.into_text()
}

/// What is missing or new first, then what moved most.
fn distance(g: &DiffGroup) -> f64 {
    if g.tensors.added + g.tensors.removed > 0 {
        return f64::INFINITY;
    }
    let moved = g.moved.as_ref();
    moved.map_or(0.0, |m| m.relative_rms.unwrap_or(f64::MAX))
}

fn by_component(groups: &[DiffGroup]) -> Vec<Vec<String>> {
    let mut sums: BTreeMap<Component, DiffCounts> = BTreeMap::new();
    for group in groups {
        let (sum, g) = (sums.entry(group.component).or_default(), &group.tensors);
        sum.equal += g.equal;
        sum.added += g.added;
        sum.removed += g.removed;
        sum.changed += g.changed;
    }
    sums.iter().map(component_row).collect()
}

fn component_row((component, sum): (&Component, &DiffCounts)) -> Vec<String> {
    let mut row = vec![component.to_string()];
    row.extend(counts(sum));
    row
}

fn group_row(g: &DiffGroup, stat: bool) -> Vec<String> {
    let layer = g.layer.map_or("-".to_owned(), |l| l.to_string());
    let mut row = vec![g.component.to_string(), layer, g.role.to_string()];
    row.extend(counts(&g.tensors));
    if stat {
        row.extend(moved_cells(g.moved.as_ref()));
    }
    row
}

fn moved_cells(moved: Option<&DiffMoved>) -> [String; 3] {
    let Some(m) = moved else {
        return ["-"; 3].map(str::to_owned);
    };
    let relative = m.relative_rms;
    [
        format!("{:.2e}", m.max_abs),
        relative.map_or("from zero".to_owned(), |r| format!("{r:.2e}")),
        percent(share(m.changed, m.values)),
    ]
}

fn files(r: &DiffReport, sizes: Sizes) -> String {
    let mut page = Page::default();
    for f in &r.changed_files {
        let size = |n: Option<u64>| n.map_or("nothing".to_owned(), |n| sizes.bytes(n));
        let (a, b) = (size(f.a_length), size(f.b_length));
        page.line(format_args!("{} {}: {a} -> {b}", word(f.change), f.path));
    }
    if !r.changed_files.is_empty() {
        page.blank();
    }
    page.into_text()
}

fn word(change: DiffChange) -> &'static str {
    match change {
        DiffChange::Added => "added  ",
        DiffChange::Removed => "removed",
        DiffChange::Changed => "changed",
    }
}

fn tensor(t: &DiffTensor) -> String {
    let form = |s: &DiffTensorSide| format!("{} {:?}", s.dtype, s.shape);
    let forms = match (&t.a, &t.b) {
        (Some(a), Some(b)) if form(a) != form(b) => format!("{} -> {}", form(a), form(b)),
        (Some(one), _) | (None, Some(one)) => form(one),
        (None, None) => String::new(),
    };
    let moved = t.moved.as_ref().map_or(String::new(), |m| {
        let [max, rms, share] = moved_cells(Some(m));
        format!("; max abs {max}, rel rms {rms}, {share} of values")
    });
    format!("{} {}  {forms}{moved}", word(t.change), t.name)
}

use segpack_manifests::documents::{
    InfoComponent, InfoReport, InfoVerified, KnownSource, SinceReceipt, VerifyMode,
};

use super::numbers::{Sizes, counted, grouped, percent};
use super::page::Page;

const HEADER: [&str; 8] = [
    "component",
    "packs",
    "layers",
    "experts per layer",
    "tensors",
    "parameters",
    "bytes",
    "stored",
];

/// What `info` says of the pack at `place`; sizes as `sizes` says.
pub(crate) fn info(report: &InfoReport, place: &str, sizes: Sizes) -> String {
    let r = report;
    let mut page = Page::default();
    page.line(format_args!("{place}: {}", model(r)));
    page.blank();
    page.append(&facts(r, sizes));
    page.blank();
    page.table(1, &HEADER, rows(r, sizes));
    for e in &r.excluded {
        let tensors = counted(e.tensors, "tensor");
        let bytes = sizes.bytes(e.bytes);
        page.line(format_args!(
            "excluded: {}, {tensors}, {bytes}",
            e.component
        ));
    }
    page.into_text()
}

fn model(r: &InfoReport) -> String {
    let family = r.model.family;
    let family = family.map_or("unknown family".to_owned(), |f| f.to_string());
    match r.model.text.facts() {
        None => family,
        Some(t) => format!(
            "{family}, {}, {} of {} experts per token, hidden size {}",
            counted(t.layers.into(), "layer"),
            t.experts_per_token,
            t.experts,
            grouped(t.hidden_size)
        ),
    }
}

/// One line each, a name and what there is to say.
fn facts(r: &InfoReport, sizes: Sizes) -> String {
    let mut page = Page::default();
    let mut fact = |name: &str, what: String| page.line(format_args!("{name:<12}{what}"));
    let level = r
        .options
        .level
        .map_or(String::new(), |l| format!(", level {l}"));
    fact("codec", format!("{}{level}", r.options.codec));
    let (raw, stored) = (r.counts.tensor_bytes, r.stored_bytes);
    fact(
        "size",
        format!(
            "{} of tensors, {} stored ({}), and {} of other files",
            sizes.bytes(raw),
            sizes.bytes(stored),
            percent(r.ratio),
            sizes.bytes(r.source_bytes)
        ),
    );
    fact(
        "holds",
        format!(
            "{}, {} ({} parameters), {} of experts",
            counted(r.counts.packs, "pack"),
            counted(r.counts.tensors, "tensor"),
            grouped(r.counts.parameters),
            counted(r.counts.experts, "segment")
        ),
    );
    fact("checkpoint", checkpoint(r));
    fact("origin", origin(r));
    fact("known", r.known.as_ref().map_or_else(unknown, known));
    fact(
        "written by",
        format!("{}, format {}", r.written_by, r.manifest_version),
    );
    fact(
        "identity",
        format!("manifest SHA-256 {}", r.manifest_sha256),
    );
    fact("verified", verified(r.verified.as_ref()));
    page.into_text()
}

fn checkpoint(r: &InfoReport) -> String {
    let (shards, files) = (counted(r.shards, "shard"), counted(r.files, "other file"));
    match r.not_restorable {
        0 => format!("{shards}, {files}; all can be restored"),
        n => format!("{shards}, {files}; {n} cannot be restored, since components were excluded"),
    }
}

fn origin(r: &InfoReport) -> String {
    let Some(provenance) = &r.provenance else {
        return "not recorded".to_owned();
    };
    match (&provenance.repo, &provenance.revision) {
        (None, None) => "a folder that does not say where it came from".to_owned(),
        (Some(repo), None) => repo.clone(),
        (None, Some(revision)) => format!("revision {revision}"),
        (Some(repo), Some(revision)) => format!("{repo} @ {revision}"),
    }
}

fn unknown() -> String {
    "no published checkpoint that this version knew".to_owned()
}

fn known(known: &KnownSource) -> String {
    let published = format!("{} @ {}", known.repo, known.revision);
    if known.identical {
        return format!("{published}, byte for byte");
    }
    let differ = counted(known.differs.len() as u64, "shard");
    let unknown = counted(known.not_compared.len() as u64, "shard");
    format!("resembles {published}; {differ} differ, {unknown} not hashed")
}

fn verified(verified: Option<&InfoVerified>) -> String {
    let Some(v) = verified else {
        return "not by this command, which reads only the manifest; `segpack verify` does"
            .to_owned();
    };
    let report = &v.receipt.report;
    if v.since == SinceReceipt::OtherPack {
        return "the receipt is of another pack".to_owned();
    }
    let how = match report.mode {
        VerifyMode::Quick => "the structure only",
        VerifyMode::Full => "every tensor",
        VerifyMode::Sums => "every tensor and file",
    };
    let part = report
        .subset
        .map_or(String::new(), |[k, n]| format!(", part {k} of {n}"));
    let against = if report.against {
        ", against a checkpoint"
    } else {
        ""
    };
    let verdict = if report.ok { "ok" } else { "NOT ok" };
    let since = match &v.changed {
        None => "no file has changed since, by length and time".to_owned(),
        Some(file) => format!("but files have changed since: {file}"),
    };
    let (time, by) = (&v.receipt.time, &v.receipt.generator);
    format!("{time}, {how}{part}{against}: {verdict} ({by}); {since}")
}

fn rows(r: &InfoReport, sizes: Sizes) -> Vec<Vec<String>> {
    r.components.iter().map(|c| row(c, sizes)).collect()
}

fn row(c: &InfoComponent, sizes: Sizes) -> Vec<String> {
    vec![
        c.component.to_string(),
        grouped(c.packs),
        grouped(c.layers),
        experts(c),
        grouped(c.tensors),
        grouped(c.parameters),
        sizes.cell(c.bytes),
        sizes.cell(c.stored_bytes),
    ]
}

/// `128`, `60-64` where layers differ, `-` without experts.
fn experts(c: &InfoComponent) -> String {
    match (c.min_experts, c.max_experts) {
        (Some(min), Some(max)) if min == max => grouped(min),
        (Some(min), Some(max)) => format!("{}-{}", grouped(min), grouped(max)),
        _ => "-".to_owned(),
    }
}

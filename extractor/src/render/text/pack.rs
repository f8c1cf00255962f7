use std::fmt::Display;

use segpack_formats::codec::Codec;
use segpack_manifests::documents::{ConsumePlan, KnownSource, PackSummary, Plan, PlannedPack};

use super::findings::findings;
use super::numbers::{Sizes, bytes, counted, grouped};
use super::page::Page;

/// What `pack --dry-run` and `repack --dry-run` would write.
pub(crate) fn plan(plan: &Plan, sizes: Sizes) -> String {
    let mut page = Page::default();
    let length = match plan.estimate {
        Some(estimate) if !estimate.exact => "bytes, estimated",
        None if plan.codec != Codec::Raw => "bytes at most",
        Some(_) | None => "bytes",
    };
    let rows = plan.packs.iter().map(|p| pack_row(p, sizes)).collect();
    page.table(1, &["pack", "segments", "tensors", length], rows);
    page.blank();

    let packs = counted(plan.packs.len() as u64, "pack");
    page.line(format_args!(
        "{packs}, {} ({})",
        total(plan, sizes),
        plan.codec
    ));
    if let Some(consume) = &plan.consume {
        page.line(format_args!(
            "{} deleted while packing, {}; {} needed beside them at most",
            counted(consume.removed_files, "shard"),
            sizes.bytes(consume.removed_bytes),
            sizes.bytes(consume.peak_bytes)
        ));
    }
    for e in &plan.excluded {
        let tensors = counted(e.tensors, "tensor");
        page.line(format_args!(
            "excluded: {}, {tensors}, {}",
            e.component,
            sizes.bytes(e.bytes)
        ));
    }
    for l in &plan.left_out {
        page.line(format_args!("not packed: {} ({})", l.path, l.why));
    }
    page.into_text()
}

/// The size of all packs, and how it is known where they are coded.
fn total(plan: &Plan, sizes: Sizes) -> String {
    let raw = sizes.bytes(plan.packs.iter().map(|p| p.length).sum());
    let Some(estimate) = plan.estimate else {
        return raw;
    };
    let (stored, raw) = (sizes.bytes(estimate.stored_bytes), plan.raw_length());
    if estimate.exact {
        return format!("{stored} for {} of tensors", sizes.bytes(raw));
    }
    format!(
        "about {stored} for {} of tensors, estimated from a sample of {}",
        sizes.bytes(raw),
        sizes.bytes(estimate.sampled_bytes)
    )
}

fn pack_row(pack: &PlannedPack, sizes: Sizes) -> Vec<String> {
    let tensors = pack.segments.iter().map(|s| s.tensors.len() as u64).sum();
    let segments = pack.segments.len() as u64;
    vec![
        pack.path.clone(),
        grouped(segments),
        grouped(tensors),
        sizes.cell(pack.estimated_length.unwrap_or(pack.length)),
    ]
}

/// What packing a checkpoint and deleting it meanwhile means, before it is confirmed.
pub(crate) fn consumption(plan: &ConsumePlan, checkpoint: &dyn Display) -> String {
    format!(
        "{} of {checkpoint} ({}) will be deleted, one after the other, each once the pack holds all \
         its bytes.\nThe pack is the only copy then; `segpack unpack` restores the files.",
        counted(plan.removed_files, "shard"),
        bytes(plan.removed_bytes)
    )
}

/// What `pack` or `repack` wrote to `place`.
pub(crate) fn pack(summary: &PackSummary, place: &str) -> String {
    let s = summary;
    let mut page = Page::default();
    page.line(format_args!(
        "{place}: {}, {}, {}; {} of tensors in {}",
        counted(s.packs, "pack"),
        counted(s.segments, "segment"),
        counted(s.tensors, "tensor"),
        bytes(s.tensor_bytes),
        bytes(s.stored_bytes)
    ));
    if s.resumed_packs > 0 {
        page.line(format_args!(
            "{} complete from an earlier run",
            counted(s.resumed_packs, "pack")
        ));
    }
    if s.hub_digests_compared > 0 {
        let files = counted(s.hub_digests_compared, "source file");
        page.line(format_args!("{files} checked against the hub's SHA-256"));
    }
    if s.removed_shards > 0 {
        let shards = counted(s.removed_shards, "source shard");
        page.line(format_args!("{shards} deleted"));
    }
    if let Some(from) = &s.packed_from {
        page.line(format_args!(
            "{} received from {} in {}, {} of them after a failure",
            bytes(from.received_bytes),
            from.place,
            counted(from.requests, "request"),
            from.retries
        ));
    }
    if let Some(to) = &s.uploaded_to {
        page.line(format_args!(
            "{} sent to {} in {}, {} of them after a failure: {}, {}",
            bytes(to.sent_bytes),
            to.place,
            counted(to.requests, "request"),
            to.retries,
            counted(to.objects, "object"),
            counted(to.parts, "part")
        ));
    }
    if let Some(source) = &s.known {
        page.append(&known_source(source));
    }
    page.append(&findings(&s.warnings));
    if let Some(parts) = s.joined_parts {
        page.line(format_args!("joined of {}", counted(parts, "part")));
    }
    let of = match s.part {
        Some([k, n]) => {
            page.line(format_args!(
                "part {k} of {n}; `segpack join` makes a pack of all"
            ));
            "part"
        }
        None => "manifest",
    };
    page.line(format_args!("{of} SHA-256 {}", s.manifest_sha256));
    page.into_text()
}

/// The published checkpoint that a source is, or resembles.
fn known_source(source: &KnownSource) -> String {
    let mut page = Page::default();
    let published = format!("{} @ {}", source.repo, source.revision);
    if source.identical {
        page.line(format_args!("the source is {published}, byte for byte"));
        return page.into_text();
    }
    let but = if source.differs.is_empty() {
        ""
    } else {
        ", but differs:"
    };
    page.line(format_args!("the source resembles {published}{but}"));
    for difference in &source.differs {
        page.line(format_args!("  {difference}"));
    }
    if !source.not_compared.is_empty() {
        let shards = counted(source.not_compared.len() as u64, "shard");
        page.line(format_args!("  {shards} not hashed, so not compared"));
    }
    page.into_text()
}

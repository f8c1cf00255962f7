//! Tensors, segments and packs against the plan that `pack` would make.

use std::collections::HashMap;

use super::writer::is_newer;
use crate::documents::{
    Excluded, Finding, FindingKind, Inventory, Manifest, Plan, PlannedTensor, SegmentEntry,
    SourceFileKind, TensorEntry,
};
use crate::layout::{self, Selection};
use crate::names::{Classification, Component};

/// Whether a newer program classified a tensor that no rule of this one names.
pub(super) fn holds_newer_words(manifest: &Manifest, inventory: &Inventory) -> bool {
    if !is_newer(&manifest.generator) {
        return false;
    }
    let named: HashMap<&str, Component> = inventory
        .tensors
        .iter()
        .map(|t| (t.name.as_str(), t.component))
        .collect();
    manifest.tensors.iter().any(|t| {
        let derived = named.get(t.source.tensor.as_str());
        derived == Some(&Component::Unclassified) && t.component != Component::Unclassified
    })
}

/// Compares the manifest with the plan for this inventory and the manifest's own options.
pub(super) fn compare(manifest: &Manifest, inventory: &Inventory, findings: &mut Vec<Finding>) {
    let options = &manifest.options;
    let selection = Selection {
        include: options.include.clone(),
        exclude: options.exclude.clone(),
    };
    let plan = match layout::plan(inventory, &selection, options.codec) {
        Ok(plan) => plan,
        Err(e) => {
            let finding = Finding::new(FindingKind::WrongExcluded);
            return findings.push(finding.seen(format!("no plan follows from its options: {e}")));
        }
    };
    compare_excluded(&manifest.excluded, &plan.excluded, findings);
    compare_excluded_bytes(manifest, inventory, &plan, findings);
    let before = findings.len();
    compare_tensors(manifest, &plan, findings);
    compare_segments(manifest, &plan, findings);
    compare_packs(manifest, &plan, findings);
    if findings.len() == before {
        findings.extend(wrong_order(manifest, &plan));
    }
}

/// Components that were left behind, by the options and the kept headers.
fn compare_excluded(seen: &[Excluded], wanted: &[Excluded], findings: &mut Vec<Finding>) {
    if seen == wanted {
        return;
    }
    let said = |list: &[Excluded], component: Component| {
        let entry = list.iter().find(|e| e.component == component);
        entry.map_or("not excluded".to_owned(), |e| {
            format!("excluded with {} tensors of {} bytes", e.tensors, e.bytes)
        })
    };
    let before = findings.len();
    let mut components: Vec<Component> = seen.iter().chain(wanted).map(|e| e.component).collect();
    components.sort_unstable();
    components.dedup();
    for component in components {
        let (seen, wanted) = (said(seen, component), said(wanted, component));
        if seen != wanted {
            let finding = Finding::new(FindingKind::WrongExcluded);
            let finding = finding.seen(format!("component {component} is {seen}"));
            findings.push(finding.wanted(format!("{wanted}, as options and kept headers say")));
        }
    }
    if findings.len() == before {
        let finding = Finding::new(FindingKind::WrongExcluded);
        findings.push(finding.seen("components in another order, or one of them twice"));
    }
}

/// What each shard lacks in the pack, and whether it was digested.
fn compare_excluded_bytes(
    manifest: &Manifest,
    inventory: &Inventory,
    plan: &Plan,
    findings: &mut Vec<Finding>,
) {
    let mut packed: HashMap<&str, u64> = HashMap::new();
    for t in planned(plan).map(|p| p.tensor) {
        *packed.entry(&t.source.file).or_default() += t.source.length;
    }
    let lengths: HashMap<&str, u64> = inventory
        .shards
        .iter()
        .map(|s| (s.path.as_str(), s.length - s.data_start))
        .collect();
    let shards = manifest.source_files.iter();
    for shard in shards.filter(|f| f.kind == SourceFileKind::Shard) {
        let data = lengths.get(shard.path.as_str()).copied().unwrap_or(0);
        let of_pack = packed.get(shard.path.as_str()).copied();
        let wanted = data.saturating_sub(of_pack.unwrap_or(0));
        if shard.excluded_bytes != wanted {
            let finding = Finding::new(FindingKind::WrongExcluded).file(&shard.path);
            let finding = finding.seen(format!("excluded_bytes {}", shard.excluded_bytes));
            findings.push(finding.wanted(format!("{wanted}, as options and kept header say")));
        }
        let is_digested = manifest.options.source_digests && of_pack.is_some();
        if shard.sha256.is_some() != is_digested {
            let said = |digest: bool| if digest { "a SHA-256" } else { "no SHA-256" };
            let finding = Finding::new(FindingKind::WrongRecord).file(&shard.path);
            let finding = finding.seen(format!("{} of the shard", said(shard.sha256.is_some())));
            findings.push(finding.wanted(format!("{}, as options say", said(is_digested))));
        }
    }
}

/// A tensor of the plan and where it goes.
#[derive(Clone, Copy)]
struct PlannedPlace<'a> {
    tensor: &'a PlannedTensor,
    component: Component,
    segment: &'a str,
    pack: &'a str,
    offset: u64,
}

fn planned(plan: &Plan) -> impl Iterator<Item = PlannedPlace<'_>> {
    let segments = plan
        .packs
        .iter()
        .flat_map(|pack| pack.segments.iter().map(move |segment| (pack, segment)));
    segments.flat_map(|(pack, segment)| {
        let mut offset = 0_u64;
        segment.tensors.iter().map(move |tensor| {
            let place = PlannedPlace {
                tensor,
                component: pack.component,
                segment: &segment.id,
                pack: &pack.path,
                offset,
            };
            offset = offset.saturating_add(tensor.source.length);
            place
        })
    })
}

fn compare_tensors(manifest: &Manifest, plan: &Plan, findings: &mut Vec<Finding>) {
    let mut wanted: HashMap<&str, PlannedPlace<'_>> = planned(plan)
        .map(|place| (place.tensor.name.as_str(), place))
        .collect();
    let packs: HashMap<&str, &str> = manifest
        .segments
        .iter()
        .map(|s| (s.id.as_str(), s.pack.as_str()))
        .collect();
    for seen in &manifest.tensors {
        match wanted.remove(seen.name.as_str()) {
            Some(place) => compare_tensor(seen, &packs, place, findings),
            None => {
                let finding = Finding::new(FindingKind::NotInCheckpoint).tensor(&seen.name);
                let finding = finding.segment(&seen.segment);
                findings.push(finding.seen(
                    "is in the manifest, but the kept headers and the options call for no tensor \
                     of this name",
                ));
            }
        }
    }
    let mut missing: Vec<PlannedPlace<'_>> = wanted.into_values().collect();
    missing.sort_by(|a, b| a.tensor.name.cmp(&b.tensor.name));
    findings.extend(missing.into_iter().map(not_packed));
}

/// A tensor that a shard had, and that the manifest does not have.
fn not_packed(place: PlannedPlace<'_>) -> Finding {
    Finding::new(FindingKind::NotInPack)
        .tensor(&place.tensor.name)
        .file(&place.tensor.source.file)
        .seen("the shard's kept header lists it, but the manifest does not")
        .wanted(format!("it in segment {}", place.segment))
}

fn compare_tensor(
    seen: &TensorEntry,
    packs: &HashMap<&str, &str>,
    wanted: PlannedPlace<'_>,
    findings: &mut Vec<Finding>,
) {
    let about = |kind| Finding::new(kind).tensor(&seen.name);
    let what = (seen.dtype, &seen.shape);
    if what != (wanted.tensor.dtype, &wanted.tensor.shape) {
        let finding = about(FindingKind::WrongSource).file(&wanted.tensor.source.file);
        let finding = finding.seen(format!("{} {:?}", seen.dtype, seen.shape));
        let (dtype, shape) = (wanted.tensor.dtype, &wanted.tensor.shape);
        findings.push(finding.wanted(format!("{dtype} {shape:?}, as the kept header says")));
    }
    if seen.source != wanted.tensor.source {
        let finding = about(FindingKind::WrongSource).file(&wanted.tensor.source.file);
        let finding = finding.seen(place_in_words(&seen.source));
        let place = place_in_words(&wanted.tensor.source);
        findings.push(finding.wanted(format!("{place}, as the kept header says")));
    }
    let classified = Classification {
        component: wanted.component,
        role: wanted.tensor.role,
        part: wanted.tensor.part,
        layer: wanted.tensor.layer,
        expert: wanted.tensor.expert,
    };
    if seen.classification() != classified {
        let finding = about(FindingKind::WrongClassification);
        let finding = finding.seen(in_words(seen.classification()));
        findings.push(finding.wanted(format!("{}, by its name", in_words(classified))));
    }
    let pack = packs.get(seen.segment.as_str()).copied();
    if (seen.segment.as_str(), pack, seen.offset)
        != (wanted.segment, Some(wanted.pack), wanted.offset)
    {
        let finding = about(FindingKind::WrongPlacement).segment(&seen.segment);
        let seen = format!(
            "byte {} of it, in {}",
            seen.offset,
            pack.unwrap_or("no pack")
        );
        let (offset, segment, pack) = (wanted.offset, wanted.segment, wanted.pack);
        let finding = finding.seen(seen);
        findings.push(finding.wanted(format!("byte {offset} of segment {segment}, in {pack}")));
    }
}

fn place_in_words(range: &crate::documents::SourceRange) -> String {
    let end = range.offset.saturating_add(range.length);
    let (offset, tensor, file) = (range.offset, &range.tensor, &range.file);
    format!("bytes {offset}..{end} of {file}, tensor {tensor}")
}

/// `thinker.text expert_gate of layer 5, expert 17`.
fn in_words(what: Classification) -> String {
    let mut text = format!("{} {}", what.component, what.role);
    if !what.part.is_weight() {
        text += &format!(" ({})", what.part);
    }
    if let Some(layer) = what.layer {
        text += &format!(" of layer {layer}");
    }
    if let Some(expert) = what.expert {
        text += &format!(", expert {expert}");
    }
    text
}

fn compare_segments(manifest: &Manifest, plan: &Plan, findings: &mut Vec<Finding>) {
    let mut wanted: HashMap<&str, (&str, u64)> = plan
        .packs
        .iter()
        .flat_map(|p| p.segments.iter().map(move |s| (p, s)))
        .map(|(p, s)| (s.id.as_str(), (p.path.as_str(), s.raw_length)))
        .collect();
    for seen in &manifest.segments {
        let finding = || Finding::new(FindingKind::WrongPlacement).segment(&seen.id);
        match wanted.remove(seen.id.as_str()) {
            None => findings.push(finding().seen("no tensors of the checkpoint make it up")),
            Some((pack, length)) if (pack, length) != (seen.pack.as_str(), seen.raw_length) => {
                let said = |pack: &str, length| format!("{length} raw bytes in {pack}");
                let finding = finding().seen(said(&seen.pack, seen.raw_length));
                findings.push(finding.wanted(said(pack, length)));
            }
            Some(_) => {}
        }
        findings.extend(wrong_codec(seen, manifest));
    }
    let mut missing: Vec<_> = wanted.into_iter().collect();
    missing.sort_unstable();
    for (id, (pack, _)) in missing {
        let finding = Finding::new(FindingKind::WrongPlacement).segment(id);
        let finding = finding.seen("the manifest does not list it");
        findings.push(finding.wanted(format!("it in {pack}")));
    }
}

/// A segment is of the pack's codec, or raw where it did not shrink.
fn wrong_codec(segment: &SegmentEntry, manifest: &Manifest) -> Option<Finding> {
    use segpack_formats::codec::Codec;
    let (seen, wanted) = (segment.codec, manifest.options.codec);
    if seen == wanted || seen == Codec::Raw {
        return None;
    }
    let finding = Finding::new(FindingKind::WrongRecord).segment(&segment.id);
    let finding = finding.seen(format!("codec {seen}"));
    Some(finding.wanted(format!("{wanted}, as options say, or raw")))
}

fn compare_packs(manifest: &Manifest, plan: &Plan, findings: &mut Vec<Finding>) {
    let mut wanted: HashMap<&str, Component> = plan
        .packs
        .iter()
        .map(|p| (p.path.as_str(), p.component))
        .collect();
    for seen in &manifest.packs {
        let finding = Finding::new(FindingKind::WrongPlacement).file(&seen.path);
        match wanted.remove(seen.path.as_str()) {
            None => findings.push(finding.seen("no tensors of the checkpoint go into this pack")),
            Some(component) if component != seen.component => {
                let finding = finding.seen(format!("component {}", seen.component));
                findings.push(finding.wanted(component));
            }
            Some(_) => {}
        }
    }
    let mut missing: Vec<&str> = wanted.into_keys().collect();
    missing.sort_unstable();
    findings.extend(missing.into_iter().map(|path| {
        let finding = Finding::new(FindingKind::WrongPlacement).file(path);
        finding.seen("the manifest does not list this pack")
    }));
}

/// The first of the lists that names the right things in another order.
fn wrong_order(manifest: &Manifest, plan: &Plan) -> Option<Finding> {
    let packs = first_difference(
        manifest.packs.iter().map(|p| p.path.as_str()),
        plan.packs.iter().map(|p| p.path.as_str()),
    );
    let segments = || {
        let planned = plan.packs.iter().flat_map(|p| &p.segments);
        first_difference(
            manifest.segments.iter().map(|s| s.id.as_str()),
            planned.map(|s| s.id.as_str()),
        )
    };
    let (seen, wanted) = packs.or_else(segments)?;
    let finding = Finding::new(FindingKind::WrongPlacement);
    let finding = finding.seen(format!("{seen} in the place of {wanted}"));
    Some(finding.wanted("the order in which pack writes them"))
}

fn first_difference<'a>(
    seen: impl Iterator<Item = &'a str>,
    wanted: impl Iterator<Item = &'a str>,
) -> Option<(&'a str, &'a str)> {
    seen.zip(wanted).find(|(seen, wanted)| seen != wanted)
}

//! A pack of a family that this build does not know: its words are carried through, and what does
//! not depend on them is compared all the same.

use std::collections::HashMap;

use crate::documents::{Finding, FindingKind, Inventory, InventoryTensor, Manifest, TensorEntry};

/// Every tensor of every kept header is in the pack, as it is or cut into adjacent pieces.
pub(super) fn compare(manifest: &Manifest, inventory: &Inventory, findings: &mut Vec<Finding>) {
    let mut packed: HashMap<(&str, &str), Vec<&TensorEntry>> = HashMap::new();
    for tensor in &manifest.tensors {
        let source = (tensor.source.file.as_str(), tensor.source.tensor.as_str());
        packed.entry(source).or_default().push(tensor);
    }
    let (mut left, mut left_bytes) = (0_u64, 0_u64);
    for stored in &inventory.tensors {
        let shard = inventory.shards[stored.shard].path.as_str();
        match packed.remove(&(shard, stored.name.as_str())) {
            Some(parts) => findings.extend(differing(shard, stored, parts)),
            None if manifest.excluded.is_empty() => findings.push(
                Finding::new(FindingKind::NotInPack)
                    .tensor(&stored.name)
                    .file(shard)
                    .seen("the shard's kept header lists it, but the manifest does not"),
            ),
            None => (left, left_bytes) = (left + 1, left_bytes + stored.length),
        }
    }
    let mut unknown: Vec<&TensorEntry> = packed.into_values().flatten().collect();
    unknown.sort_by(|a, b| a.name.cmp(&b.name));
    findings.extend(unknown.into_iter().map(|tensor| {
        Finding::new(FindingKind::NotInCheckpoint)
            .tensor(&tensor.name)
            .file(&tensor.source.file)
            .seen("is in the manifest, but not in the shard's kept header")
    }));
    let excluded: (u64, u64) = manifest.excluded.iter().fold((0, 0), |sum, e| {
        (
            sum.0.saturating_add(e.tensors),
            sum.1.saturating_add(e.bytes),
        )
    });
    if excluded != (left, left_bytes) {
        let finding = Finding::new(FindingKind::WrongExcluded);
        let printed = |(tensors, bytes): (u64, u64)| format!("{tensors} tensors of {bytes} bytes");
        let finding = finding.seen(format!("{} are excluded", printed(excluded)));
        findings.push(finding.wanted(format!(
            "{}, which the kept headers list and the manifest does not",
            printed((left, left_bytes))
        )));
    }
    compare_components(manifest, findings);
}

/// The parts of a stored tensor, in order, are its bytes; a single part is the tensor itself.
fn differing(
    shard: &str,
    stored: &InventoryTensor,
    mut parts: Vec<&TensorEntry>,
) -> Option<Finding> {
    parts.sort_by_key(|t| (t.source.offset, t.source.length));
    let mut at = stored.offset;
    for part in &parts {
        if part.source.offset != at || part.dtype != stored.dtype {
            break;
        }
        at = at.saturating_add(part.source.length);
    }
    let end = stored.offset.saturating_add(stored.length);
    let alone = |t: &TensorEntry| t.name == stored.name;
    let same_shape = match &parts[..] {
        [one] if alone(one) => one.shape == stored.shape,
        _ => !parts.iter().any(|part| alone(part)),
    };
    if at == end && same_shape && parts.iter().all(|part| part.dtype == stored.dtype) {
        return None;
    }
    let finding = Finding::new(FindingKind::WrongSource)
        .tensor(&stored.name)
        .file(shard);
    let finding = finding.seen(format!("{} parts, or another shape or dtype", parts.len()));
    let (dtype, shape) = (stored.dtype, &stored.shape);
    Some(finding.wanted(format!(
        "bytes {}..{end}, {dtype} {shape:?}, as the kept header says",
        stored.offset
    )))
}

/// A tensor lies in a pack of its own component.
fn compare_components(manifest: &Manifest, findings: &mut Vec<Finding>) {
    let packs: HashMap<&str, _> = manifest
        .packs
        .iter()
        .map(|p| (p.path.as_str(), p.component))
        .collect();
    let segments: HashMap<&str, _> = manifest
        .segments
        .iter()
        .map(|s| (s.id.as_str(), packs.get(s.pack.as_str()).copied()))
        .collect();
    for tensor in &manifest.tensors {
        let wanted = segments.get(tensor.segment.as_str()).copied().flatten();
        if let Some(wanted) = wanted.filter(|wanted| *wanted != tensor.component) {
            let finding = Finding::new(FindingKind::WrongClassification).tensor(&tensor.name);
            let finding = finding.seen(format!("component {}", tensor.component));
            findings.push(finding.wanted(format!("{wanted}, as its pack")));
        }
    }
}

/// Why the audit of a pack is left out.
pub(super) fn not_audited(manifest: &Manifest) -> Finding {
    let family = manifest.model.family;
    let family = family.map_or("its family".to_owned(), |name| format!("family {name}"));
    Finding::new(FindingKind::NotAudited).seen(format!(
        "{family} has words that this version does not know: whether tensors are missing cannot \
         be derived"
    ))
}

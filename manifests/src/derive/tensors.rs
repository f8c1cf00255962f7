//! Tensors, segments and packs against the plan that `pack` would make.

use std::collections::HashMap;

use super::writer::is_newer;
use crate::documents::{
    Excluded, Finding, FindingKind, Inventory, Manifest, PlannedPack, PlannedSegment,
    PlannedTensor, SegmentEntry, SourceFileKind, TensorEntry,
};
use crate::layout::{self, PackPlanner, PlanError, Selection};
use crate::name_index::NameIndex;
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
    match differences(manifest, inventory, &selection) {
        Ok(differences) => findings.extend(differences),
        Err(e) => {
            let finding = Finding::new(FindingKind::WrongExcluded);
            findings.push(finding.seen(format!("no plan follows from its options: {e}")));
        }
    }
}

/// Every difference from the plan, which is made and compared pack by pack.
fn differences(
    manifest: &Manifest,
    inventory: &Inventory,
    selection: &Selection,
) -> Result<Vec<Finding>, PlanError> {
    let packs = PackPlanner::new(inventory, selection, manifest.options.codec)?;
    let mut findings = Vec::new();
    let excluded = layout::excluded(inventory, selection);
    compare_excluded(&manifest.excluded, &excluded, &mut findings);
    compare_excluded_bytes(manifest, inventory, selection, &mut findings);
    let mut listed = Listed::of(manifest);
    for pack in packs {
        listed.compare_pack(&pack?)?;
    }
    findings.extend(listed.finish());
    Ok(findings)
}

/// Components that were left behind, by the options and the kept headers.
fn compare_excluded(seen: &[Excluded], wanted: &[Excluded], findings: &mut Vec<Finding>) {
    if seen == wanted {
        return;
    }
    let before = findings.len();
    let mut components: Vec<Component> = seen.iter().chain(wanted).map(|e| e.component).collect();
    components.sort_unstable();
    components.dedup();
    for component in components {
        let [seen, wanted] = [seen, wanted].map(|list| excluded_in_words(list, component));
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

fn excluded_in_words(list: &[Excluded], component: Component) -> String {
    let entry = list.iter().find(|e| e.component == component);
    entry.map_or("not excluded".to_owned(), |e| {
        format!("excluded with {} tensors of {} bytes", e.tensors, e.bytes)
    })
}

/// What each shard lacks in the pack, and whether it was digested.
fn compare_excluded_bytes(
    manifest: &Manifest,
    inventory: &Inventory,
    selection: &Selection,
    findings: &mut Vec<Finding>,
) {
    let mut packed: HashMap<&str, u64> = HashMap::new();
    let taken = inventory.tensors.iter();
    for t in taken.filter(|t| selection.takes(t.component)) {
        *packed.entry(&inventory.shards[t.shard].path).or_default() += t.length;
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
            let printed = |digest: bool| if digest { "a SHA-256" } else { "no SHA-256" };
            let finding = Finding::new(FindingKind::WrongRecord).file(&shard.path);
            let finding = finding.seen(format!("{} of the shard", printed(shard.sha256.is_some())));
            findings.push(finding.wanted(format!("{}, as options say", printed(is_digested))));
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

/// The lists of a manifest, while they are compared with the packs of the plan.
struct Listed<'a> {
    manifest: &'a Manifest,
    tensors: Listing,
    segments: Listing,
    packs: Listing,
    /// The first entry that is not the one that pack would write there, and that one.
    out_of_order: Option<(&'a str, String)>,
    findings: Vec<Finding>,
}

/// A list by names, and which of it the plan has.
struct Listing {
    index: NameIndex,
    planned: Vec<bool>,
    /// Number of the entry that comes next in the order of the plan.
    next: usize,
}

impl Listing {
    fn of<T>(list: &[T], name: impl Fn(&T) -> &str) -> Self {
        Self {
            index: NameIndex::of(list, name),
            planned: vec![false; list.len()],
            next: 0,
        }
    }

    /// The entry of this name, which is in the plan; an error where it has been before.
    fn take<T>(
        &mut self,
        list: &[T],
        name_of: impl Fn(&T) -> &str,
        name: &str,
    ) -> Result<Option<usize>, PlanError> {
        let Some(number) = self.index.find(list, name_of, name) else {
            return Ok(None);
        };
        if std::mem::replace(&mut self.planned[number], true) {
            let name = name.to_owned();
            return Err(PlanError::DuplicateName { name });
        }
        Ok(Some(number))
    }

    /// The entries that the plan does not have.
    fn others<'a, T>(&'a self, list: &'a [T]) -> impl Iterator<Item = &'a T> {
        let entries = list.iter().zip(&self.planned);
        entries.filter(|(_, planned)| !**planned).map(|(t, _)| t)
    }
}

impl<'a> Listed<'a> {
    fn of(manifest: &'a Manifest) -> Self {
        Self {
            manifest,
            tensors: Listing::of(&manifest.tensors, |t| &t.name),
            segments: Listing::of(&manifest.segments, |s| &s.id),
            packs: Listing::of(&manifest.packs, |p| &p.path),
            out_of_order: None,
            findings: Vec::new(),
        }
    }

    /// The next pack of the plan, with all that is in it.
    fn compare_pack(&mut self, wanted: &PlannedPack) -> Result<(), PlanError> {
        let packs = &self.manifest.packs;
        let finding = Finding::new(FindingKind::WrongPlacement).file(&wanted.path);
        match self.packs.take(packs, |p| &p.path, &wanted.path)? {
            None => {
                let finding = finding.seen("the manifest does not list this pack");
                self.findings.push(finding);
            }
            Some(number) if packs[number].component != wanted.component => {
                let finding = finding.seen(format!("component {}", packs[number].component));
                self.findings.push(finding.wanted(wanted.component));
            }
            Some(_) => {}
        }
        let seen = packs.get(self.packs.next).map(|p| p.path.as_str());
        self.packs.next += 1;
        self.note_order(seen, &wanted.path);
        for segment in &wanted.segments {
            self.compare_segment(segment, wanted)?;
        }
        Ok(())
    }

    fn compare_segment(
        &mut self,
        wanted: &PlannedSegment,
        pack: &PlannedPack,
    ) -> Result<(), PlanError> {
        let segments = &self.manifest.segments;
        let finding = Finding::new(FindingKind::WrongPlacement).segment(&wanted.id);
        match self.segments.take(segments, |s| &s.id, &wanted.id)? {
            None => {
                let finding = finding.seen("the manifest does not list it");
                self.findings
                    .push(finding.wanted(format!("it in {}", pack.path)));
            }
            Some(number) => {
                let seen = &segments[number];
                let printed = |pack: &str, length| format!("{length} raw bytes in {pack}");
                if (&*pack.path, wanted.raw_length) != (&*seen.pack, seen.raw_length) {
                    let finding = finding.seen(printed(&seen.pack, seen.raw_length));
                    let wanted = printed(&pack.path, wanted.raw_length);
                    self.findings.push(finding.wanted(wanted));
                }
            }
        }
        let seen = segments.get(self.segments.next).map(|s| s.id.as_str());
        self.segments.next += 1;
        self.note_order(seen, &wanted.id);
        let mut offset = 0_u64;
        for tensor in &wanted.tensors {
            let place = PlannedPlace {
                tensor,
                component: pack.component,
                segment: &wanted.id,
                pack: &pack.path,
                offset,
            };
            self.compare_tensor(place)?;
            offset = offset.saturating_add(tensor.source.length);
        }
        Ok(())
    }

    fn compare_tensor(&mut self, place: PlannedPlace<'_>) -> Result<(), PlanError> {
        let tensors = &self.manifest.tensors;
        match self
            .tensors
            .take(tensors, |t| &t.name, &place.tensor.name)?
        {
            None => self.findings.push(not_packed(place)),
            Some(number) => {
                let seen = &tensors[number];
                let segments = &self.manifest.segments;
                let segment = self.segments.index.find(segments, |s| &s.id, &seen.segment);
                let pack = segment.map(|number| segments[number].pack.as_str());
                compare_tensor(seen, pack, place, &mut self.findings);
            }
        }
        Ok(())
    }

    /// Keeps the first entry of a list that is in the place of another.
    fn note_order(&mut self, seen: Option<&'a str>, wanted: &str) {
        if let Some(seen) = seen.filter(|seen| *seen != wanted) {
            self.out_of_order
                .get_or_insert_with(|| (seen, wanted.to_owned()));
        }
    }

    /// Every difference; what the plan does not have, and the order, among them.
    fn finish(mut self) -> Vec<Finding> {
        let manifest = self.manifest;
        for tensor in self.tensors.others(&manifest.tensors) {
            let finding = Finding::new(FindingKind::NotInCheckpoint).tensor(&tensor.name);
            let finding = finding.segment(&tensor.segment);
            self.findings.push(finding.seen(
                "is in the manifest, but the kept headers and the options call for no tensor of \
                 this name",
            ));
        }
        let placement = || Finding::new(FindingKind::WrongPlacement);
        for segment in self.segments.others(&manifest.segments) {
            let finding = placement().segment(&segment.id);
            let seen = "no tensors of the checkpoint make it up";
            self.findings.push(finding.seen(seen));
        }
        for pack in self.packs.others(&manifest.packs) {
            let finding = placement().file(&pack.path);
            let seen = "no tensors of the checkpoint go into this pack";
            self.findings.push(finding.seen(seen));
        }
        let coded = manifest.segments.iter();
        self.findings
            .extend(coded.filter_map(|segment| wrong_codec(segment, manifest)));
        // the right things in another order
        if let (true, Some((seen, wanted))) = (self.findings.is_empty(), self.out_of_order) {
            let finding = placement().seen(format!("{seen} in the place of {wanted}"));
            self.findings
                .push(finding.wanted("the order in which pack writes them"));
        }
        self.findings
    }
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
    pack: Option<&str>,
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

//! The manifest that has to be there: derived again from what a pack keeps of its checkpoint, by
//! the audit and the planner that `pack` uses, and compared with the one that is there.
//!
//! A manifest that agrees with itself may still leave out a norm, move an expert or change a
//! number. `config.json`, the index and the headers of the shards do not leave that choice: they
//! say which tensors there are, what each is, where it lies in its shard, and, with the options,
//! where in which pack. What is not derived are the values of tensors, and a smaller model whose
//! `config.json`, index, headers and tensors all agree: those are what digests and the pack's
//! identity are for.

mod carried;
mod kept;
mod record;
mod tensors;
mod writer;

use std::collections::BTreeSet;

use serde_json::{Map, Value};

pub use kept::{Kept, KeptError, KeptShard};

use crate::audit::{Audit, AuditOptions, Classifier, Listed, audit_listed, family_of, list_tensor};
use crate::documents::{
    Completeness, Finding, FindingKind, GENERATOR, Inventory, Manifest, ModelFacts, Severity,
    SourceShard,
};
use crate::families::{Family, FamilyName};
use crate::names::Component;
use writer::is_newer;
pub use writer::newest_writer;

/// What follows from the files that a pack keeps.
#[derive(Debug, Clone, PartialEq)]
pub struct Derivation {
    /// Whether the pack holds every tensor that `config.json` requires, but for what it excludes.
    pub completeness: Completeness,
    /// Every difference between the manifest and what it has to be, unsorted.
    pub findings: Vec<Finding>,
}

/// A pack may hold what `pack` was asked to tolerate, and its options do not say what that was.
const TOLERANT: AuditOptions = AuditOptions {
    allow_unclassified: true,
    allow_unaudited: true,
};

/// Compares a manifest with the one that follows from what its pack keeps. The tensors of the kept
/// headers and the index, each as large as a third of the manifest, are let go of as soon as they
/// are not needed.
#[must_use]
pub fn derive(manifest: &Manifest, mut kept: Kept) -> Derivation {
    let mut findings = Vec::new();
    findings.extend(missing_shards(&kept));
    record::compare(manifest, &kept, &mut findings);
    let mut audit = audit_kept(manifest, &mut kept);
    kept.index = None;
    let known = compare_model(manifest, &kept, audit.family, &mut findings);
    let complete = audit.complete && known;
    let audited = std::mem::take(&mut audit.findings);
    let inventory = inventory(manifest, &kept, audit);
    if known && !tensors::holds_newer_words(manifest, &inventory) {
        findings.extend(audited);
        tensors::compare(manifest, &inventory, &mut findings);
    } else {
        findings.extend(audited.into_iter().filter(is_of_index));
        carried::compare(manifest, &inventory, &mut findings);
        findings.push(carried::not_audited(manifest));
        return Derivation {
            completeness: Completeness::NotKnown,
            findings,
        };
    }
    Derivation {
        completeness: completeness(complete, &findings),
        findings,
    }
}

/// Whether the build that made the pack did not know the family, and so classified nothing. This one
/// may know it: the pack is still what it says it is.
fn is_unclassified(manifest: &Manifest) -> bool {
    let mut tensors = manifest.tensors.iter();
    let all = tensors.all(|t| t.component == Component::Unclassified);
    manifest.model.family.is_none() && all
}

/// The audit of a checkpoint that has these headers, from which it takes the tensors.
fn audit_kept(manifest: &Manifest, kept: &mut Kept) -> Audit {
    let headers = kept.shards.iter().map(|shard| &shard.header);
    let names = headers.flat_map(|header| &header.tensors);
    let by_itself = || family_of(kept.config.as_ref(), names.map(|t| t.name.as_str()));
    let family = match is_unclassified(manifest) {
        true => None,
        false => manifest.options.known_family().or_else(by_itself),
    };
    let classifier = match family {
        None if manifest.tensors.iter().all(|t| t.expert.is_none()) => Classifier::Nothing,
        _ => Classifier::of(family),
    };
    let count = kept.shards.iter().map(|s| s.header.tensors.len()).sum();
    let mut tensors = Vec::with_capacity(count);
    for (number, shard) in kept.shards.iter_mut().enumerate() {
        let stored = std::mem::take(&mut shard.header.tensors).into_iter();
        tensors.extend(stored.map(|t| list_tensor(t, number, classifier)));
    }
    let listed = Listed {
        config: kept.config.as_ref(),
        index: kept.index.as_ref(),
        shards: kept.shards.iter().map(|s| s.path.as_str()).collect(),
        ..Listed::default()
    };
    audit_listed(&listed, family, tensors, TOLERANT)
}

/// Whether the audit found it without the rules of a family: of a model that this build does not
/// know, they are no guide.
fn is_of_index(finding: &Finding) -> bool {
    matches!(
        finding.kind,
        FindingKind::NotInShard
            | FindingKind::NotInIndex
            | FindingKind::DuplicateTensor
            | FindingKind::WrongTotalSize
    )
}

/// The inventory of the checkpoint, as the kept headers have it.
fn inventory(manifest: &Manifest, kept: &Kept, audit: Audit) -> Inventory {
    let held = |number| audit.tensors.iter().filter(|t| t.shard == number).count();
    let shards = kept.shards.iter().enumerate();
    let shards = shards.map(|(number, shard)| SourceShard {
        path: shard.path.clone(),
        length: shard.length,
        data_start: shard.header.data_start,
        tensors: held(number) as u64,
        hub_sha256: None,
    });
    let shards = shards.collect();
    Inventory {
        format_version: Inventory::VERSION,
        generator: GENERATOR.to_owned(),
        provenance: manifest.provenance.clone().unwrap_or_default(),
        family: audit.family.map(Into::into),
        published: None,
        audited: audit.complete,
        completeness: Completeness::NotKnown,
        counts: audit.counts,
        classes: Vec::new(),
        roles: Vec::new(),
        shards,
        files: Vec::new(),
        left_out: manifest.left_out.clone(),
        findings: Vec::new(),
        tensors: audit.tensors,
    }
}

/// Shards that the index names, or that an index should name.
fn missing_shards(kept: &Kept) -> Vec<Finding> {
    let Some(index) = &kept.index else {
        let several = kept.shards.len() > 1;
        let finding = Finding::new(FindingKind::MalformedIndex)
            .seen(format!(
                "{} shards, and no index of them",
                kept.shards.len()
            ))
            .wanted("model.safetensors.index.json");
        return several.then_some(finding).into_iter().collect();
    };
    let is_there = |file: &&str| kept.shards.iter().any(|shard| shard.path == **file);
    let missing = index.shards().into_iter().filter(|file| !is_there(file));
    missing.map(not_listed).collect()
}

fn not_listed(shard: &str) -> Finding {
    let finding = Finding::new(FindingKind::MissingShard).file(shard);
    finding.seen("the index names it, but the manifest does not")
}

/// The model's family and numbers. Returns whether the family is one that can be derived here.
fn compare_model(
    manifest: &Manifest,
    kept: &Kept,
    family: Option<Family>,
    findings: &mut Vec<Finding>,
) -> bool {
    let wanted = ModelFacts::of_config(family, kept.config.as_ref());
    let seen = &manifest.model;
    let is_unknown = |name: FamilyName| name.family().is_none();
    if seen.family.is_some_and(is_unknown) && is_newer(&manifest.generator) {
        return false;
    }
    if seen.family != wanted.family {
        let finding = Finding::new(FindingKind::WrongModelFacts);
        let finding = finding.seen(format!("family {}", name_of(seen.family)));
        findings.push(finding.wanted(format!("{}, {}", name_of(wanted.family), whence(kept))));
    }
    if seen.text == wanted.text {
        return true;
    }
    let (before, after) = (numbers(&seen.text), numbers(&wanted.text));
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for key in keys {
        if before.get(key) != after.get(key) {
            let finding = Finding::new(FindingKind::WrongModelFacts);
            let finding = finding.seen(format!("model.text.{key} is {}", stated(&before, key)));
            findings.push(finding.wanted(format!("{}, {}", stated(&after, key), whence(kept))));
        }
    }
    true
}

/// What there is under a key, as JSON.
fn stated(numbers: &Map<String, Value>, key: &str) -> String {
    let value = numbers.get(key);
    value.map_or("nothing".to_owned(), Value::to_string)
}

fn numbers(text: &crate::documents::TextModel) -> Map<String, Value> {
    match serde_json::to_value(text) {
        Ok(Value::Object(numbers)) => numbers,
        _ => Map::new(),
    }
}

fn name_of(family: Option<FamilyName>) -> String {
    family.map_or("unknown".to_owned(), |name| name.to_string())
}

fn whence(kept: &Kept) -> &'static str {
    match kept.config {
        Some(_) => "as config.json says",
        None => "by the names of the tensors",
    }
}

/// What the findings mean for the whole.
fn completeness(audited: bool, findings: &[Finding]) -> Completeness {
    let is_loss = |f: &&Finding| f.severity == Severity::Error && f.kind.is_incompleteness();
    match (findings.iter().any(|f| is_loss(&f)), audited) {
        (true, _) => Completeness::Incomplete,
        (false, true) => Completeness::Complete,
        (false, false) => Completeness::NotKnown,
    }
}

//! `scan`: the inventory of a checkpoint and the audit of its completeness, from headers and
//! `config.json` alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use segpack_formats::numeric::Dtype;
use segpack_manifests::documents::{
    ClassCount, Finding, FindingKind, FormatVersion, GENERATOR, Inventory, InventoryCounts,
    InventoryTensor, RoleCount, Severity, SourceShard,
};
use segpack_manifests::families::{self, Expected, Family, Presence};
use segpack_manifests::names::{Class, Classification, Component};

use super::StepError;
use super::checkpoint::{Checkpoint, OpenOptions};

/// What `scan` tolerates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// `--extra keep`: weight files that the index does not name are kept verbatim.
    pub keep_extra: bool,
    /// `--allow-unclassified`: tensors that no rule names go into a pack of their own.
    pub allow_unclassified: bool,
}

/// Opens a checkpoint and takes its inventory. Everything that is wrong is in the inventory's
/// findings.
///
/// # Errors
/// Only where there is no checkpoint to open.
pub fn scan(argument: &Path, options: ScanOptions) -> Result<(Checkpoint, Inventory), StepError> {
    let checkpoint = Checkpoint::open(
        argument,
        OpenOptions {
            keep_extra: options.keep_extra,
        },
    )?;
    let inventory = take_inventory(&checkpoint, options);
    Ok((checkpoint, inventory))
}

fn take_inventory(checkpoint: &Checkpoint, options: ScanOptions) -> Inventory {
    let mut findings = checkpoint.findings.clone();
    let family = find_family(checkpoint, options, &mut findings);
    let tensors = list_tensors(checkpoint, family);
    check_index(checkpoint, &mut findings);
    let audited = audit(checkpoint, family, &tensors, options, &mut findings);
    Finding::sort(&mut findings);
    let shards = checkpoint.shards.iter().map(|s| SourceShard {
        path: s.path.clone(),
        length: s.shard.input.length(),
        data_start: s.shard.header.data_start,
        tensors: s.shard.header.tensors.len() as u64,
        hub_sha256: s.hub_sha256,
    });
    Inventory {
        format_version: FormatVersion::CURRENT,
        generator: GENERATOR.to_owned(),
        provenance: checkpoint.provenance.clone(),
        family,
        audited,
        counts: count(&tensors),
        classes: count_by(&tensors, |t| Class::of(t.component, t.role))
            .map(
                |((component, class), [tensors, parameters, bytes])| ClassCount {
                    component,
                    class,
                    tensors,
                    parameters,
                    bytes,
                },
            )
            .collect(),
        roles: count_by(&tensors, |t| t.role)
            .map(
                |((component, role), [tensors, parameters, bytes])| RoleCount {
                    component,
                    role,
                    tensors,
                    parameters,
                    bytes,
                },
            )
            .collect(),
        shards: shards.collect(),
        files: checkpoint.files.clone(),
        left_out: checkpoint.left_out.clone(),
        findings,
        tensors,
    }
}

/// By `config.json`; without one, by the names of the tensors.
fn find_family(
    checkpoint: &Checkpoint,
    options: ScanOptions,
    findings: &mut Vec<Finding>,
) -> Option<Family> {
    match &checkpoint.config {
        Some(config) => {
            let family = Family::of_config(config);
            if family.is_none() && !options.allow_unclassified {
                let text = |key: &str| {
                    config
                        .get(key)
                        .map_or("nothing".to_owned(), ToString::to_string)
                };
                let seen = format!(
                    "model_type {}, architectures {}",
                    text("model_type"),
                    text("architectures")
                );
                let known = Family::ALL
                    .iter()
                    .map(|f| f.as_str())
                    .collect::<Vec<_>>()
                    .join(" or ");
                let finding = Finding::new(FindingKind::BadConfig)
                    .file("config.json")
                    .seen(seen);
                findings.push(finding.wanted(format!(
                    "{known}, or --allow-unclassified to pack it as it is"
                )));
            }
            family
        }
        None => {
            let names = checkpoint
                .shards
                .iter()
                .flat_map(|s| &s.shard.header.tensors)
                .map(|t| t.name.as_str());
            Family::guess(names)
        }
    }
}

fn list_tensors(checkpoint: &Checkpoint, family: Option<Family>) -> Vec<InventoryTensor> {
    let classify = |name: &str| {
        family
            .and_then(|f| f.classify(name))
            .unwrap_or(Classification::UNCLASSIFIED)
    };
    let of_shard = |(shard, s): (usize, &super::checkpoint::CheckpointShard)| {
        let entries = s.shard.header.tensors.iter().map(move |t| {
            let Classification {
                component,
                role,
                layer,
                expert,
            } = classify(&t.name);
            InventoryTensor {
                name: t.name.clone(),
                dtype: t.dtype,
                shape: t.shape.clone(),
                shard,
                offset: t.offset,
                length: t.length,
                component,
                role,
                layer,
                expert,
            }
        });
        entries.collect::<Vec<_>>()
    };
    checkpoint
        .shards
        .iter()
        .enumerate()
        .flat_map(of_shard)
        .collect()
}

/// The index against the headers, both ways.
fn check_index(checkpoint: &Checkpoint, findings: &mut Vec<Finding>) {
    let mut held: HashMap<&str, &str> = HashMap::new();
    for shard in &checkpoint.shards {
        for tensor in &shard.shard.header.tensors {
            if let Some(first) = held.insert(&tensor.name, &shard.path) {
                let finding = Finding::new(FindingKind::DuplicateTensor)
                    .tensor(&tensor.name)
                    .file(&shard.path);
                findings.push(
                    finding
                        .seen(format!("is in {first} too"))
                        .wanted("one of them"),
                );
            }
        }
    }
    let Some(index) = &checkpoint.index else {
        return;
    };
    let opened: HashSet<&str> = checkpoint.shards.iter().map(|s| s.path.as_str()).collect();
    for (name, file) in &index.weight_map {
        if opened.contains(file.as_str()) && held.get(name.as_str()) != Some(&file.as_str()) {
            let finding = Finding::new(FindingKind::NotInShard)
                .tensor(name)
                .file(file);
            let elsewhere = held
                .get(name.as_str())
                .map(|other| format!("it is in {other}"));
            findings.push(
                finding
                    .seen(elsewhere.unwrap_or_else(|| "no shard holds it".to_owned()))
                    .wanted("it there, as the index says"),
            );
        }
    }
    for (name, file) in &held {
        if !index.weight_map.contains_key(*name) {
            findings.push(
                Finding::new(FindingKind::NotInIndex)
                    .tensor(*name)
                    .file(*file)
                    .seen("the index does not name it"),
            );
        }
    }
    let bytes: u64 = checkpoint
        .shards
        .iter()
        .flat_map(|s| &s.shard.header.tensors)
        .map(|t| t.length)
        .sum();
    let complete = index
        .weight_map
        .values()
        .all(|file| opened.contains(file.as_str()));
    if let Some(total) = index.total_size.filter(|total| complete && *total != bytes) {
        let finding =
            Finding::new(FindingKind::WrongTotalSize).file("model.safetensors.index.json");
        findings.push(
            finding
                .seen(format!("metadata.total_size is {total}"))
                .wanted(format!("{bytes}, the sum of all tensors")),
        );
    }
}

/// Compares what there is with what `config.json` demands. Returns whether that was possible.
fn audit(
    checkpoint: &Checkpoint,
    family: Option<Family>,
    tensors: &[InventoryTensor],
    options: ScanOptions,
    findings: &mut Vec<Finding>,
) -> bool {
    if !options.allow_unclassified {
        for t in tensors
            .iter()
            .filter(|t| t.component == Component::Unclassified)
        {
            let finding = Finding::new(FindingKind::UnclassifiedTensor).tensor(&t.name);
            let finding = finding
                .file(&checkpoint.shards[t.shard].path)
                .seen("no rule of the family names it");
            findings.push(finding.wanted("a known name, or --allow-unclassified"));
        }
    }
    if checkpoint.one_of_several {
        findings.push(one_of_several(checkpoint));
        return false;
    }
    let (Some(family), Some(config)) = (family, &checkpoint.config) else {
        let why = if checkpoint.config.is_none() {
            "there is no config.json"
        } else {
            "the family is unknown"
        };
        findings.push(
            Finding::new(FindingKind::NotAudited)
                .seen(format!("{why}: whether tensors are missing is unknown")),
        );
        return false;
    };
    let by_name: HashMap<&str, &InventoryTensor> =
        tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let bad = |e: String| {
        Finding::new(FindingKind::BadConfig)
            .file("config.json")
            .seen(e)
    };
    let unread = Unread::of(checkpoint);
    let expected = match family.expected(config, &|name| {
        by_name.contains_key(name) || unread.names(name)
    }) {
        Ok(expected) => expected,
        Err(e) => {
            findings.push(bad(e.to_string()));
            return false;
        }
    };
    let dtype = families::expected_dtype(config).unwrap_or_else(|e| {
        findings.push(bad(e.to_string()));
        None
    });
    compare(checkpoint, &expected, &by_name, &unread, dtype, findings);
    if dtype.is_none() {
        report_mixed_dtypes(tensors, findings);
    }
    true
}

/// Others are missed by design, so there is no audit; `pack` refuses that, with this reason.
fn one_of_several(checkpoint: &Checkpoint) -> Finding {
    let mut finding = Finding::new(FindingKind::NotAudited);
    finding.file = checkpoint.shards.first().map(|s| s.path.clone());
    let finding = finding.seen("is one shard of several (an index lies beside it)");
    finding.wanted("the folder; or --allow-unclassified to take it as it is")
}

/// The tensors of shards that could not be opened: whether they are there is unknown, and the
/// shard's finding says why.
enum Unread<'a> {
    /// Those that the index places there.
    Placed(HashSet<&'a str>),
    /// Any: a shard could not be opened, and no index says what it holds.
    Any,
}

impl<'a> Unread<'a> {
    fn of(checkpoint: &'a Checkpoint) -> Self {
        let lost = |f: &Finding| {
            matches!(
                f.kind,
                FindingKind::MalformedShard | FindingKind::MissingShard
            )
        };
        match &checkpoint.index {
            None if checkpoint.findings.iter().any(lost) => Self::Any,
            None => Self::Placed(HashSet::new()),
            Some(index) => {
                let opened: HashSet<&str> =
                    checkpoint.shards.iter().map(|s| s.path.as_str()).collect();
                let unopened = index
                    .weight_map
                    .iter()
                    .filter(|(_, file)| !opened.contains(file.as_str()));
                Self::Placed(unopened.map(|(name, _)| name.as_str()).collect())
            }
        }
    }

    /// Whether the index places this tensor in one.
    fn names(&self, name: &str) -> bool {
        matches!(self, Self::Placed(names) if names.contains(name))
    }

    fn may_hold(&self, name: &str) -> bool {
        matches!(self, Self::Any) || self.names(name)
    }
}

fn compare(
    checkpoint: &Checkpoint,
    expected: &[Expected],
    by_name: &HashMap<&str, &InventoryTensor>,
    unread: &Unread<'_>,
    dtype: Option<Dtype>,
    findings: &mut Vec<Finding>,
) {
    let mut wanted = HashSet::with_capacity(expected.len());
    for e in expected {
        wanted.insert(e.name.as_str());
        let Some(t) = by_name.get(e.name.as_str()) else {
            if e.presence == Presence::Required && !unread.may_hold(&e.name) {
                let finding = Finding::new(FindingKind::MissingTensor).tensor(&e.name);
                findings.push(
                    finding
                        .seen("not in the checkpoint")
                        .wanted(format!("shape {:?}", e.shape)),
                );
            }
            continue;
        };
        let file = &checkpoint.shards[t.shard].path;
        if t.shape != e.shape {
            let finding = Finding::new(FindingKind::MisshapedTensor)
                .tensor(&e.name)
                .file(file);
            findings.push(
                finding
                    .seen(format!("shape {:?}", t.shape))
                    .wanted(format!("{:?}", e.shape)),
            );
        }
        if let Some(dtype) = dtype.filter(|d| *d != t.dtype) {
            let finding = Finding::new(FindingKind::WrongDtype)
                .tensor(&e.name)
                .file(file);
            findings.push(
                finding
                    .seen(t.dtype)
                    .wanted(format!("{dtype}, as config.json says")),
            );
        }
    }
    let extra = by_name
        .values()
        .filter(|t| t.component != Component::Unclassified && !wanted.contains(t.name.as_str()));
    for t in extra {
        let finding = Finding::new(FindingKind::ExtraTensor)
            .tensor(&t.name)
            .file(&checkpoint.shards[t.shard].path);
        findings
            .push(finding.seen("the architecture that config.json describes has no such tensor"));
    }
}

fn report_mixed_dtypes(tensors: &[InventoryTensor], findings: &mut Vec<Finding>) {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for t in tensors {
        *counts.entry(t.dtype.to_string()).or_default() += 1;
    }
    if counts.len() > 1 {
        let mut seen = Finding::new(FindingKind::WrongDtype)
            .seen(format!("tensors of several dtypes: {counts:?}"));
        seen.severity = Severity::Warning; // config.json names no dtype to hold them against
        findings.push(seen);
    }
}

fn parameters(tensor: &InventoryTensor) -> u64 {
    tensor
        .shape
        .iter()
        .fold(1, |n, &side| n.saturating_mul(side))
}

fn count(tensors: &[InventoryTensor]) -> InventoryCounts {
    let what: Vec<Classification> = tensors
        .iter()
        .map(|t| Classification {
            component: t.component,
            role: t.role,
            layer: t.layer,
            expert: t.expert,
        })
        .collect();
    InventoryCounts {
        stored_tensors: tensors.len() as u64,
        logical_parameters: families::logical_parameter_count(&what) as u64,
        parameters: tensors.iter().map(parameters).sum(),
        tensor_bytes: tensors.iter().map(|t| t.length).sum(),
    }
}

fn count_by<K: Ord + Copy>(
    tensors: &[InventoryTensor],
    key: impl Fn(&InventoryTensor) -> K,
) -> impl Iterator<Item = ((Component, K), [u64; 3])> {
    let mut sums: BTreeMap<(Component, K), [u64; 3]> = BTreeMap::new();
    for t in tensors {
        let sum = sums.entry((t.component, key(t))).or_default();
        *sum = [sum[0] + 1, sum[1] + parameters(t), sum[2] + t.length];
    }
    sums.into_iter()
}

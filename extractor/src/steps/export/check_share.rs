//! Whether a folder is the share of the experts that a rank has to serve. vLLM notices neither a
//! missing nor another rank's expert: it answers, with wrong words.
//!
//! Names, shapes and the index come from headers and `config.json`, as in the audit of a
//! checkpoint. Bytes are compared where there is a pack to compare them with.

use std::collections::BTreeMap;
use std::path::Path;

use segpack_formats::digest::Sha256Hasher;
use segpack_formats::io::read_limited;
use segpack_formats::safetensors::{Shard, TensorInfo};
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    ExpertParallelMap, Finding, FindingKind, GENERATOR, Inventory, InventoryTensor, ShareReport,
    TensorEntry,
};
use segpack_manifests::families::Family;
use segpack_manifests::names::Component;

use super::ExpertParallel;
use super::expert_parallel::{EXPERT_PARALLEL, experts_of};
use super::origin::{EXPERT_PARALLEL_RANK, EXPERT_PARALLEL_RANKS, MANIFEST_SHA256};
use crate::source::{Checkpoint, CheckpointShard};
use crate::steps::StepError;
use crate::steps::scan::{ScanOptions, scan};
use crate::work::Job;

/// Bytes that are read of the map of experts: some hundred bytes of each rank.
const MAX_MAP_BYTES: u64 = 64 << 20;
/// Bytes of a tensor that are read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Checks a folder against what rank R of N has to have. Everything that is wrong is in the
/// findings.
///
/// # Errors
/// Where there is no checkpoint to open, or the bytes of a tensor cannot be read.
pub(crate) fn check_share(
    folder: &Path,
    parallel: ExpertParallel,
    pack: Option<&Pack>,
    job: Job<'_>,
) -> Result<ShareReport, StepError> {
    let (checkpoint, inventory) = scan(folder, ScanOptions::default(), job)?;
    let experts = experts_of_components(&inventory);
    let mut findings = of_inventory(&inventory, &experts, parallel);
    for shard in &checkpoint.shards {
        findings.extend(of_metadata(shard, parallel));
    }
    findings.extend(of_origins(&checkpoint.shards, pack));
    findings.extend(of_map(folder, &experts, parallel)?);
    let mut report = ShareReport {
        format_version: ShareReport::VERSION,
        generator: GENERATOR.to_owned(),
        rank: parallel.rank,
        ranks: parallel.ranks,
        manifest_sha256: pack.map(Pack::manifest_sha256),
        files: checkpoint.shards.len() as u64,
        tensors: inventory.tensors.len() as u64,
        expert_tensors: inventory
            .tensors
            .iter()
            .filter(|t| t.expert.is_some())
            .count() as u64,
        compared: 0,
        converted: 0,
        ok: true,
        findings,
    };
    if let Some(pack) = pack {
        compare_with(pack, &checkpoint, job, &mut report)?;
    }
    Finding::sort(&mut report.findings);
    report.ok = !Finding::any_error(&report.findings);
    Ok(report)
}

/// How many experts a layer of each component has: of those that are there and those that are
/// missed, all of which the configuration calls for.
fn experts_of_components(inventory: &Inventory) -> BTreeMap<Component, u32> {
    let mut experts: BTreeMap<Component, u32> = BTreeMap::new();
    let present = inventory
        .tensors
        .iter()
        .filter_map(|t| Some((t.component, t.expert?)));
    let missed = inventory
        .findings
        .iter()
        .filter_map(|f| missed_expert(f, inventory));
    for (component, expert) in present.chain(missed) {
        let count = experts.entry(component).or_default();
        *count = (*count).max(expert + 1);
    }
    experts
}

/// The expert that a finding misses.
fn missed_expert(finding: &Finding, inventory: &Inventory) -> Option<(Component, u32)> {
    let family = inventory.family.and_then(|name| name.family())?;
    expert_of(finding, family).filter(|_| finding.kind == FindingKind::MissingTensor)
}

fn expert_of(finding: &Finding, family: Family) -> Option<(Component, u32)> {
    let what = family.classify(finding.tensor.as_deref()?)?;
    Some((what.component, what.expert?))
}

/// What the audit found, but for the experts of other ranks, which have to be missing.
fn of_inventory(
    inventory: &Inventory,
    experts: &BTreeMap<Component, u32>,
    parallel: ExpertParallel,
) -> Vec<Finding> {
    let holds = |(component, expert): (Component, u32)| {
        let count = experts.get(&component).copied().unwrap_or_default();
        parallel.holder_of(expert, count) == Some(parallel.rank)
    };
    let is_ours = |f: &&Finding| missed_expert(f, inventory).is_none_or(holds);
    let mut findings: Vec<Finding> = inventory.findings.iter().filter(is_ours).cloned().collect();
    let others = inventory.tensors.iter().filter_map(|tensor| {
        let count = experts.get(&tensor.component).copied()?;
        let holder = parallel.holder_of(tensor.expert?, count)?;
        (holder != parallel.rank).then(|| of_another_rank(tensor, holder, parallel))
    });
    findings.extend(others);
    if experts.is_empty() {
        let finding = Finding::new(FindingKind::OtherShare);
        let finding = finding.seen("no tensor is an expert's");
        findings.push(finding.wanted(format!("the experts of {parallel}")));
    }
    findings
}

fn of_another_rank(tensor: &InventoryTensor, holder: u32, parallel: ExpertParallel) -> Finding {
    let finding = Finding::new(FindingKind::OtherShare).tensor(&tensor.name);
    let finding = finding.seen(format!("an expert of rank {holder}"));
    finding.wanted(format!("none but those of {parallel}"))
}

/// What a file says of itself.
fn stated<'s>(shard: &'s Shard, key: &str) -> Option<&'s str> {
    let pairs = shard.header.metadata.as_ref()?;
    let found = pairs.iter().find(|(name, _)| name == key);
    found.map(|(_, value)| value.as_str())
}

/// Whether a file says that it is this rank's.
fn of_metadata(shard: &CheckpointShard, parallel: ExpertParallel) -> Option<Finding> {
    let rank = stated(&shard.shard, EXPERT_PARALLEL_RANK);
    let ranks = stated(&shard.shard, EXPERT_PARALLEL_RANKS);
    let wanted = (parallel.rank.to_string(), parallel.ranks.to_string());
    let seen = match (rank, ranks) {
        (Some(rank), Some(ranks)) if (rank, ranks) == (&*wanted.0, &*wanted.1) => return None,
        (Some(rank), Some(ranks)) => format!("its metadata says rank {rank} of {ranks}"),
        (None, None) => "its metadata names no rank".to_owned(),
        _ => {
            "its metadata names a rank without their number, or a number without a rank".to_owned()
        }
    };
    let finding = Finding::new(FindingKind::OtherShare).file(&shard.path);
    Some(finding.seen(seen).wanted(format!("{parallel}")))
}

/// Whether all files are of one pack, and of this one, where one is given.
fn of_origins(shards: &[CheckpointShard], pack: Option<&Pack>) -> Vec<Finding> {
    let own = pack.map(|pack| pack.manifest_sha256().to_string());
    let first = shards
        .first()
        .and_then(|s| stated(&s.shard, MANIFEST_SHA256));
    let wanted = own.as_deref().or(first);
    let others = shards
        .iter()
        .filter(|s| stated(&s.shard, MANIFEST_SHA256) != wanted);
    let finding = |shard: &CheckpointShard| {
        let seen = stated(&shard.shard, MANIFEST_SHA256).unwrap_or("no pack");
        let finding = Finding::new(FindingKind::OtherShare).file(&shard.path);
        let finding = finding.seen(format!("exported from {seen}"));
        finding.wanted(wanted.unwrap_or("the pack of the other files"))
    };
    others.map(finding).collect()
}

/// Whether the map beside the weights says the same.
fn of_map(
    folder: &Path,
    experts: &BTreeMap<Component, u32>,
    parallel: ExpertParallel,
) -> Result<Option<Finding>, StepError> {
    let path = folder.join(EXPERT_PARALLEL);
    let finding = |kind| Finding::new(kind).file(EXPERT_PARALLEL);
    if !path.exists() {
        return Ok(Some(finding(FindingKind::MissingFile)));
    }
    let bytes = read_limited(&path, MAX_MAP_BYTES)?;
    let map: ExpertParallelMap = match serde_json::from_slice(&bytes) {
        Ok(map) => map,
        Err(e) => {
            let finding = finding(FindingKind::OtherShare).seen(e);
            return Ok(Some(finding.wanted("a map of experts to ranks")));
        }
    };
    Ok(wrong_map(&map, experts, parallel).map(|seen| {
        let finding = finding(FindingKind::OtherShare).seen(seen);
        finding.wanted(format!(
            "{parallel}, contiguous shares of the experts that config.json has"
        ))
    }))
}

/// What is wrong with a map. An export may have other names of components than its pack.
fn wrong_map(
    map: &ExpertParallelMap,
    experts: &BTreeMap<Component, u32>,
    parallel: ExpertParallel,
) -> Option<String> {
    if (map.rank, map.ranks) != (parallel.rank, parallel.ranks) {
        return Some(format!("rank {} of {}", map.rank, map.ranks));
    }
    let mut counts: Vec<u32> = map.components.iter().map(|c| c.experts).collect();
    let mut wanted: Vec<u32> = experts.values().copied().collect();
    counts.sort_unstable();
    wanted.sort_unstable();
    if counts != wanted {
        return Some(format!(
            "components with {counts:?} experts, where the model has {wanted:?}"
        ));
    }
    let is_wrong = |component: &&segpack_manifests::documents::ComponentExperts| {
        let shares = (0..map.ranks).map(|rank| experts_of(component.experts, rank, map.ranks));
        !component.ranks.iter().cloned().eq(shares)
    };
    let wrong = map.components.iter().find(is_wrong)?;
    Some(format!(
        "other shares of the experts of {}",
        wrong.component
    ))
}

/// Compares the bytes of every tensor with the pack's digests.
fn compare_with(
    pack: &Pack,
    checkpoint: &Checkpoint,
    job: Job<'_>,
    report: &mut ShareReport,
) -> Result<(), StepError> {
    let tensors = pack.manifest().tensors.iter();
    let by_name: BTreeMap<&str, &TensorEntry> = tensors.map(|t| (&*t.name, t)).collect();
    let all = checkpoint.shards.iter();
    let bytes = all
        .clone()
        .flat_map(|s| &s.shard.header.tensors)
        .map(|t| t.length)
        .sum();
    job.progress.start("comparing with the pack", bytes);
    for shard in all {
        for tensor in &shard.shard.header.tensors {
            compare_tensor(&by_name, shard, tensor, job, report)?;
            job.progress.advance(tensor.length);
        }
    }
    job.progress.finish();
    Ok(())
}

fn compare_tensor(
    by_name: &BTreeMap<&str, &TensorEntry>,
    shard: &CheckpointShard,
    tensor: &TensorInfo,
    job: Job<'_>,
    report: &mut ShareReport,
) -> Result<(), StepError> {
    let finding = |kind| Finding::new(kind).file(&shard.path).tensor(&tensor.name);
    // the text decoder of a thinker has names of its own in a checkpoint of its own
    let of_thinker = format!("thinker.{}", tensor.name);
    let names = [tensor.name.as_str(), of_thinker.as_str()];
    let Some(packed) = names.iter().find_map(|name| by_name.get(name)) else {
        report.findings.push(finding(FindingKind::NotInPack));
        return Ok(());
    };
    if packed.dtype != tensor.dtype {
        report.converted += 1;
        return Ok(());
    }
    report.compared += 1;
    let (mut sha256, mut buffer) = (Sha256Hasher::default(), vec![0; PIECE_BYTES]);
    let range = tensor.offset..tensor.offset + tensor.length;
    shard
        .shard
        .input
        .for_each_piece(range, &mut buffer, job.stop, |piece| {
            sha256.update(piece);
            Ok::<_, StepError>(())
        })?;
    let seen = sha256.finish();
    if seen != packed.sha256 || packed.shape != tensor.shape {
        let finding = finding(FindingKind::DamagedTensor).seen(format!("SHA-256 {seen}"));
        report
            .findings
            .push(finding.wanted(format!("{}, as packed", packed.sha256)));
    }
    Ok(())
}

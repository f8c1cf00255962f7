//! `scan`: the inventory of a checkpoint and the audit of its completeness, from headers and
//! `config.json` alone.

use std::path::Path;

use segpack_manifests::audit::{AuditOptions, Described, ShardTensors, audit};
use segpack_manifests::documents::{
    Completeness, Finding, FindingKind, GENERATOR, Inventory, Severity, SourceShard,
};

use segpack_manifests::families::Family;
use segpack_manifests::registry::published;
use serde_json::Value;

use super::StepError;
pub use crate::source::Extra;
use crate::source::{Checkpoint, CheckpointShard, OpenOptions, RemovedShard};
use crate::work::Job;

/// What `scan` tolerates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScanOptions {
    /// `--config`: what stands for the checkpoint's own `config.json`.
    pub config: Option<Value>,
    /// `--as`: the family whose names the tensors have, whatever `config.json` says.
    pub family: Option<Family>,
    /// `--extra`: what to do with weight files that the index does not name.
    pub extra: Extra,
    /// `--allow-unclassified`: tensors that no rule names go into a pack of their own.
    pub allow_unclassified: bool,
    /// `--allow-unaudited`: it is no error that nothing says which tensors there have to be.
    pub allow_unaudited: bool,
}

/// Opens a checkpoint and takes its inventory. Everything that is wrong is in the inventory's
/// findings.
///
/// # Errors
/// Only where there is no checkpoint to open; `Interrupted` while a server is asked.
pub(crate) fn scan(
    argument: &Path,
    options: ScanOptions,
    job: Job<'_>,
) -> Result<(Checkpoint, Inventory), StepError> {
    scan_with(argument, options, &[], job)
}

/// [`scan`] of a checkpoint from which shards were removed once they were packed.
///
/// # Errors
/// As [`scan`].
#[expect(
    clippy::needless_pass_by_value,
    reason = "as `scan`, whose options are made for one call"
)]
pub(crate) fn scan_with(
    argument: &Path,
    options: ScanOptions,
    removed: &[RemovedShard],
    job: Job<'_>,
) -> Result<(Checkpoint, Inventory), StepError> {
    let mut checkpoint = Checkpoint::open(
        argument,
        OpenOptions {
            extra: options.extra,
            removed,
        },
        job,
    )?;
    if let Some(config) = &options.config {
        checkpoint.replace_config(config.clone());
    }
    let inventory = take_inventory(&checkpoint, &options);
    Ok((checkpoint, inventory))
}

/// Everything that is known of a checkpoint that is open.
pub(crate) fn take_inventory(checkpoint: &Checkpoint, options: &ScanOptions) -> Inventory {
    let described = Described {
        family: options.family,
        ..describe(checkpoint)
    };
    let tolerated = AuditOptions::new()
        .allow_unclassified(options.allow_unclassified)
        .allow_unaudited(options.allow_unaudited);
    let audit = audit(&described, tolerated);
    let mut findings = checkpoint.findings.clone();
    findings.extend(audit.findings);
    Finding::sort(&mut findings);
    Inventory {
        format_version: Inventory::VERSION,
        generator: GENERATOR.to_owned(),
        provenance: checkpoint.provenance.clone(),
        family: audit.family.map(Into::into),
        published: audit
            .family
            .and_then(|family| published(family, &audit.counts, &audit.tensors)),
        audited: audit.complete,
        completeness: completeness(audit.complete, &findings),
        counts: audit.counts,
        classes: audit.classes,
        roles: audit.roles,
        shards: checkpoint.shards.iter().map(source_shard).collect(),
        files: checkpoint.files.clone(),
        left_out: checkpoint.left_out.clone(),
        findings,
        tensors: audit.tensors,
    }
}

/// What findings mean for the whole.
fn completeness(audited: bool, findings: &[Finding]) -> Completeness {
    // other weights beside it take nothing from the checkpoint
    let mut own = findings
        .iter()
        .filter(|f| f.kind != FindingKind::UnlistedShard);
    let any_error = own.any(|f| f.severity == Severity::Error);
    match (audited, any_error) {
        (false, _) => Completeness::NotKnown,
        (true, true) => Completeness::Incomplete,
        (true, false) => Completeness::Complete,
    }
}

/// What the audit needs to know of a checkpoint.
fn describe(checkpoint: &Checkpoint) -> Described<'_> {
    let shards = checkpoint.shards.iter().map(|s| ShardTensors {
        path: &s.path,
        tensors: &s.shard.header.tensors,
    });
    Described {
        config: checkpoint.config.as_ref(),
        index: checkpoint.index.as_ref(),
        shards: shards.collect(),
        shards_missing: checkpoint.findings.iter().any(is_lost_shard),
        one_of_several: checkpoint.one_of_several,
        family: None,
    }
}

/// Whether it says that a shard is not there, or cannot be read at all.
pub(super) fn is_lost_shard(finding: &Finding) -> bool {
    matches!(
        finding.kind,
        FindingKind::MalformedShard | FindingKind::MissingShard
    )
}

fn source_shard(s: &CheckpointShard) -> SourceShard {
    SourceShard {
        path: s.path.clone(),
        length: s.shard.input.length(),
        data_start: s.shard.header.data_start,
        tensors: s.shard.header.tensors.len() as u64,
        hub_sha256: s.hub_sha256,
    }
}

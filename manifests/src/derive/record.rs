//! What the manifest records beside tensors: source files, options, the published checkpoint.

use segpack_formats::codec::Coding;

use super::kept::Kept;
use super::writer::is_newer;
use crate::documents::{Finding, FindingKind, KnownSource, Manifest, Severity, SourceFileKind};
use crate::folder::paths::{SHARD_HEADERS, SOURCE};
use crate::registry::{FoundShard, known_checkpoints, known_source};

/// Compares source files, options and the published checkpoint.
pub(super) fn compare(manifest: &Manifest, kept: &Kept, findings: &mut Vec<Finding>) {
    compare_files(manifest, kept, findings);
    compare_level(manifest, findings);
    compare_known(manifest, findings);
    findings.extend(differing_side_files(manifest));
}

/// Where each file is kept, and how long a shard's header is.
fn compare_files(manifest: &Manifest, kept: &Kept, findings: &mut Vec<Finding>) {
    for file in &manifest.source_files {
        let wanted = match file.kind {
            SourceFileKind::Shard => format!("{SOURCE}/{SHARD_HEADERS}/{}.header", file.path),
            SourceFileKind::File => format!("{SOURCE}/{}", file.path),
        };
        if file.stored_as != wanted {
            let finding = Finding::new(FindingKind::WrongRecord).file(&file.path);
            let finding = finding.seen(format!("stored as {}", file.stored_as));
            findings.push(finding.wanted(wanted));
        }
        let shard = kept.shards.iter().find(|s| s.path == file.path);
        let header = shard.map(|s| s.header.data_start);
        if let Some(header) = header.filter(|header| *header != file.stored_length) {
            let finding = Finding::new(FindingKind::WrongRecord).file(&file.path);
            let finding = finding.seen(format!("a header of {} bytes", file.stored_length));
            findings.push(finding.wanted(header));
        }
    }
    if !manifest.source_files.is_sorted_by(|a, b| a.path < b.path) {
        let finding = Finding::new(FindingKind::WrongRecord);
        findings.push(finding.seen("source_files are not in the order of their paths"));
    }
}

/// A level is recorded where the codec has levels, and nowhere else.
fn compare_level(manifest: &Manifest, findings: &mut Vec<Finding>) {
    let options = &manifest.options;
    let has_levels = Coding::of(options.codec, options.level).level().is_some();
    if options.level.is_some() != has_levels {
        let printed = |level: bool| if level { "a level" } else { "no level" };
        let finding = Finding::new(FindingKind::WrongRecord);
        let finding = finding.seen(format!("options have {}", printed(options.level.is_some())));
        findings.push(finding.wanted(format!(
            "{} for codec {}",
            printed(has_levels),
            options.codec
        )));
    }
}

/// Which published checkpoint the source is: by the shards' names, lengths and digests.
fn compare_known(manifest: &Manifest, findings: &mut Vec<Finding>) {
    let wanted = known_by_shards(manifest);
    // an older program knew fewer checkpoints, a newer one knows more
    let may_differ = match (&manifest.known, &wanted) {
        (None, Some(_)) => true,
        (Some(_), None) => is_newer(&manifest.generator),
        _ => false,
    };
    if manifest.known == wanted || may_differ {
        return;
    }
    let finding = Finding::new(FindingKind::WrongRecord);
    let finding = finding.seen(format!("source is {}", printed(manifest.known.as_ref())));
    findings.push(finding.wanted(format!("{}, by its shards", printed(wanted.as_ref()))));
}

fn printed(known: Option<&KnownSource>) -> String {
    let Some(known) = known else {
        return "no published checkpoint that is known".to_owned();
    };
    let KnownSource {
        repo,
        revision,
        identical,
        differs,
        not_compared,
    } = known;
    match identical {
        true => format!("{repo} @ {revision}"),
        false => format!(
            "like {repo} @ {revision}, but for {} shards, and {} not compared",
            differs.len(),
            not_compared.len()
        ),
    }
}

fn known_by_shards(manifest: &Manifest) -> Option<KnownSource> {
    let shards = manifest.source_files.iter();
    let shards: Vec<_> = shards
        .filter(|f| f.kind == SourceFileKind::Shard)
        .map(|f| (f, f.sha256.map(|digest| digest.to_string())))
        .collect();
    let found: Vec<FoundShard<'_>> = shards
        .iter()
        .map(|(f, digest)| FoundShard {
            file: &f.path,
            length: f.length,
            sha256: digest.as_deref(),
        })
        .collect();
    known_source(&found)
}

/// The other files of a checkpoint whose shards are the published ones: what differs may be meant,
/// but is worth a look.
fn differing_side_files(manifest: &Manifest) -> Vec<Finding> {
    let Some(source) = known_by_shards(manifest).filter(|known| known.identical) else {
        return Vec::new();
    };
    let all = known_checkpoints().unwrap_or_default();
    let published = all.iter().find(|k| k.revision == source.revision);
    let files = manifest.source_files.iter().filter_map(|file| {
        let wanted = published?.small_files_sha256.get(&file.path)?;
        let seen = file.sha256?.to_string();
        let mut finding = Finding::new(FindingKind::DiffersFromHub).file(&file.path);
        finding.severity = Severity::Warning; // a publisher's files may be changed on purpose
        let finding = finding.seen(format!("SHA-256 {seen}"));
        let (repo, revision) = (&source.repo, &source.revision);
        (seen != *wanted)
            .then(|| finding.wanted(format!("{wanted}, as {repo} @ {revision} has it")))
    });
    files.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::documents::GENERATOR;
    use crate::registry::KnownCheckpoint;

    fn published() -> KnownCheckpoint {
        known_checkpoints().unwrap().remove(0)
    }

    /// A manifest of no tensors that lists the shards of a published checkpoint, and a `config.json` of
    /// this digest.
    fn manifest(config: &str) -> Manifest {
        let shards = published().shards.into_iter().map(|shard| {
            json!({
                "path": shard.file, "kind": "shard", "length": shard.bytes, "sha256": shard.sha256,
                "stored_as": format!("source/.shard-headers/{}.header", shard.file),
                "stored_length": 1, "stored_sha256": "00".repeat(32),
            })
        });
        let file = json!({
            "path": "config.json", "kind": "file", "length": 1, "sha256": config,
            "stored_as": "source/config.json", "stored_length": 1, "stored_sha256": config,
        });
        let counts = json!({
            "packs": 0, "segments": 0, "tensors": 0, "parameters": 0, "tensor_bytes": 0,
            "experts": 0,
        });
        let manifest = json!({
            "format_version": "1.2", "generator": GENERATOR, "model": {}, "counts": counts,
            "options": {"codec": "raw", "source_digests": true, "sums": true},
            "excluded": [], "left_out": [], "packs": [], "segments": [], "tensors": [],
            "source_files": shards.chain([file]).collect::<Vec<_>>(),
        });
        serde_json::from_value(manifest).unwrap()
    }

    fn found(manifest: &Manifest) -> usize {
        let mut findings = Vec::new();
        compare_known(manifest, &mut findings);
        findings.len()
    }

    #[test]
    fn a_published_checkpoint_is_known_by_its_shards() {
        let mut manifest = manifest(&"00".repeat(32));
        let known = known_by_shards(&manifest).unwrap();
        assert!(known.identical && known.repo == published().repo);
        // an older program did not know it
        assert_eq!(found(&manifest), 0);
        manifest.known = Some(known.clone());
        assert_eq!(found(&manifest), 0);
        // of another revision, or not whole
        manifest.known = Some(KnownSource {
            revision: "another".to_owned(),
            ..known.clone()
        });
        assert_eq!(found(&manifest), 1);
        manifest.known = Some(known);
        manifest.source_files[2].length += 1;
        assert_eq!(found(&manifest), 1);
    }

    #[test]
    fn only_a_newer_program_knows_a_checkpoint_that_this_one_does_not() {
        let mut manifest = manifest(&"00".repeat(32));
        manifest.known = known_by_shards(&manifest);
        manifest.source_files.clear();
        assert_eq!(found(&manifest), 1);
        manifest.generator = "segpack 9999.0.0".to_owned();
        assert_eq!(found(&manifest), 0);
    }

    #[test]
    fn another_side_file_of_a_published_checkpoint_is_a_warning() {
        let published = published().small_files_sha256["config.json"].clone();
        assert_eq!(differing_side_files(&manifest(&published)), []);
        let found = differing_side_files(&manifest(&"00".repeat(32)));
        let [finding] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(finding.kind, FindingKind::DiffersFromHub);
        assert_eq!(finding.severity, Severity::Warning);
        assert_eq!(finding.file.as_deref(), Some("config.json"));
    }
}

//! Published checkpoints that this version knows by the digests of their shards.

mod published;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::documents::KnownSource;
pub use published::published;

/// The documents of `registry/`.
const DOCUMENTS: &[&str] = &[include_str!("registry/qwen3-omni-30b-a3b-instruct.json")];

/// A checkpoint as its publisher has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KnownCheckpoint {
    /// Repository on the hub.
    pub repo: String,
    /// Commit of the repository.
    pub revision: String,
    /// The shards, in order.
    pub shards: Vec<KnownShard>,
    /// Lower-case hexadecimal SHA-256 of the other files.
    pub small_files_sha256: BTreeMap<String, String>,
    /// Sums over the shards.
    pub totals: KnownTotals,
}

/// One shard of a known checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KnownShard {
    /// File name.
    pub file: String,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Lower-case hexadecimal SHA-256 of the file.
    pub sha256: String,
}

/// Sums over a known checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KnownTotals {
    /// Stored tensors.
    pub tensors: u64,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Bytes of all shards, headers too.
    pub shard_file_bytes: u64,
}

/// A shard as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundShard<'a> {
    /// File name, without folders.
    pub file: &'a str,
    /// Length of the file in bytes.
    pub length: u64,
    /// Hexadecimal SHA-256, where it is known.
    pub sha256: Option<&'a str>,
}

/// How a checkpoint compares with a known one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "result")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum RegistryMatch {
    /// Every shard has the published length and SHA-256, and there is no other.
    Same,
    /// It looks like the known checkpoint, but some shards differ or could not be told to be the
    /// same.
    Differs {
        /// The shards in question, by name.
        files: Vec<ShardDifference>,
    },
    /// No shard is one of the known checkpoint's.
    Unrelated,
}

/// A shard that is not known to be the published one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShardDifference {
    /// File name.
    pub file: String,
    /// What differs.
    pub difference: Difference,
}

/// What differs in a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "what")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Difference {
    /// Published, but not found.
    Missing,
    /// Found, but not published.
    Extra,
    /// Another length, in bytes.
    Length {
        /// The length found.
        found: u64,
        /// The length published.
        wanted: u64,
    },
    /// Another content.
    Sha256 {
        /// The digest found.
        found: String,
        /// The digest published.
        wanted: String,
    },
    /// The right length, but no digest to compare.
    Sha256Unknown,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => write!(f, "missing"),
            Self::Extra => write!(f, "not published"),
            Self::Length { found, wanted } => write!(f, "{found} bytes, published with {wanted}"),
            Self::Sha256 { found, wanted } => write!(f, "sha256 {found}, published with {wanted}"),
            Self::Sha256Unknown => write!(f, "sha256 not known"),
        }
    }
}

impl KnownCheckpoint {
    /// Compares shards with this checkpoint's. They are related to it if at least one has a
    /// published name with its length or digest; file names alone say nothing.
    #[must_use]
    pub fn compare(&self, found: &[FoundShard<'_>]) -> RegistryMatch {
        let known: BTreeMap<&str, &KnownShard> = self
            .shards
            .iter()
            .map(|shard| (shard.file.as_str(), shard))
            .collect();
        let related = |shard: &&FoundShard<'_>| {
            known
                .get(shard.file)
                .is_some_and(|known| known.looks_like(shard))
        };
        if !found.iter().any(|shard| related(&shard)) {
            return RegistryMatch::Unrelated;
        }
        let names: BTreeSet<&str> = found.iter().map(|shard| shard.file).collect();
        let missing = known.keys().filter(|file| !names.contains(**file));
        let missing = missing.map(|file| (*file, Difference::Missing));
        let differing = found.iter().filter_map(|shard| {
            let difference = known
                .get(shard.file)
                .map_or(Some(Difference::Extra), |known| known.difference(shard));
            difference.map(|difference| (shard.file, difference))
        });
        let mut files: Vec<_> = missing
            .chain(differing)
            .map(|(file, difference)| ShardDifference {
                file: file.to_owned(),
                difference,
            })
            .collect();
        files.sort_by(|left, right| left.file.cmp(&right.file));
        if files.is_empty() {
            RegistryMatch::Same
        } else {
            RegistryMatch::Differs { files }
        }
    }
}

impl KnownShard {
    fn looks_like(&self, found: &FoundShard<'_>) -> bool {
        found.length == self.bytes || found.sha256.is_some_and(|digest| self.has_digest(digest))
    }

    fn has_digest(&self, digest: &str) -> bool {
        digest.eq_ignore_ascii_case(&self.sha256)
    }

    fn difference(&self, found: &FoundShard<'_>) -> Option<Difference> {
        if found.length != self.bytes {
            return Some(Difference::Length {
                found: found.length,
                wanted: self.bytes,
            });
        }
        match found.sha256 {
            None => Some(Difference::Sha256Unknown),
            Some(digest) if self.has_digest(digest) => None,
            Some(digest) => Some(Difference::Sha256 {
                found: digest.to_owned(),
                wanted: self.sha256.clone(),
            }),
        }
    }
}

/// The checkpoints that this version knows.
///
/// # Errors
///
/// When a document built into the library does not parse, which a test rules out.
pub fn known_checkpoints() -> Result<Vec<KnownCheckpoint>, serde_json::Error> {
    DOCUMENTS
        .iter()
        .map(|document| serde_json::from_str(document))
        .collect()
}

/// The published checkpoint that these shards are, or resemble.
#[must_use]
pub fn known_source(found: &[FoundShard<'_>]) -> Option<KnownSource> {
    // built into the program; a test rules a parse error out
    let known = known_checkpoints().unwrap_or_default();
    known.iter().find_map(|known| known.source(found))
}

impl KnownCheckpoint {
    fn source(&self, found: &[FoundShard<'_>]) -> Option<KnownSource> {
        let differences = match self.compare(found) {
            RegistryMatch::Same => Vec::new(),
            RegistryMatch::Differs { files } => files,
            RegistryMatch::Unrelated => return None,
        };
        let identical = differences.is_empty();
        let (unknown, differs): (Vec<_>, Vec<_>) = differences
            .into_iter()
            .partition(|d| d.difference == Difference::Sha256Unknown);
        let differs = differs.into_iter();
        Some(KnownSource {
            repo: self.repo.clone(),
            revision: self.revision.clone(),
            identical,
            differs: differs
                .map(|d| format!("{}: {}", d.file, d.difference))
                .collect(),
            not_compared: unknown.into_iter().map(|d| d.file).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruct() -> KnownCheckpoint {
        known_checkpoints().unwrap().remove(0)
    }

    fn found(known: &KnownCheckpoint) -> Vec<FoundShard<'_>> {
        known
            .shards
            .iter()
            .map(
                |KnownShard {
                     file,
                     bytes,
                     sha256,
                 }| FoundShard {
                    file,
                    length: *bytes,
                    sha256: Some(sha256),
                },
            )
            .collect()
    }

    #[test]
    fn documents_add_up() {
        for known in known_checkpoints().unwrap() {
            assert_eq!(
                known.shards.iter().map(|shard| shard.bytes).sum::<u64>(),
                known.totals.shard_file_bytes
            );
            let digests = known
                .shards
                .iter()
                .map(|shard| &shard.sha256)
                .chain(known.small_files_sha256.values());
            for digest in digests {
                assert_eq!(digest.len(), 64);
                assert!(
                    digest
                        .bytes()
                        .all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
                );
            }
            let files: BTreeSet<_> = known.shards.iter().map(|shard| &shard.file).collect();
            assert_eq!(files.len(), known.shards.len());
        }
        assert_eq!(instruct().totals.tensors, 28_010);
    }

    #[test]
    fn the_published_shards_are_the_same() {
        let known = instruct();
        assert_eq!(known.compare(&found(&known)), RegistryMatch::Same);
    }

    #[test]
    fn every_difference_is_listed() {
        let known = instruct();
        let mut shards = found(&known);
        let zeros = "0".repeat(64);
        shards[1].sha256 = Some(&zeros);
        shards[2].length -= 1;
        shards[3].sha256 = None;
        shards.remove(4);
        shards.push(FoundShard {
            file: "adapter.safetensors",
            length: 8,
            sha256: None,
        });
        let RegistryMatch::Differs { files } = known.compare(&shards) else {
            panic!("not found to differ")
        };
        let reported: Vec<_> = files
            .iter()
            .map(|file| format!("{}: {}", file.file, file.difference))
            .collect();
        assert_eq!(
            reported,
            [
                "adapter.safetensors: not published".to_owned(),
                format!(
                    "model-00002-of-00015.safetensors: sha256 {zeros}, published with {}",
                    known.shards[1].sha256
                ),
                "model-00003-of-00015.safetensors: 4997754215 bytes, published with 4997754216"
                    .to_owned(),
                "model-00004-of-00015.safetensors: sha256 not known".to_owned(),
                "model-00005-of-00015.safetensors: missing".to_owned(),
            ]
        );
    }

    #[test]
    fn names_alone_do_not_relate() {
        let known = instruct();
        let mut shards = found(&known);
        for shard in &mut shards {
            (shard.length, shard.sha256) = (1, None);
        }
        assert_eq!(known.compare(&shards), RegistryMatch::Unrelated);
        assert_eq!(known.compare(&[]), RegistryMatch::Unrelated);
    }
}

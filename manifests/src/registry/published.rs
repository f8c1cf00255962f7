//! Published checkpoints that this version knows by the names, or the counts and sizes, of their
//! tensors. `tests/tools/published-registry` writes the list.

use segpack_formats::digest::{Sha256, Sha256Hasher};
use serde::Deserialize;

use crate::documents::{InventoryCounts, InventoryTensor, MatchedBy, PublishedMatch};
use crate::families::Family;

const DOCUMENT: &str = include_str!("published.json");

/// How far counts may be from the published ones, in parts of 100, to be called close.
const CLOSE_PERCENT: u64 = 2;

/// Checkpoints whose tensors agree in all counts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    repos: Vec<String>,
    family: String,
    stored_tensors: u64,
    logical_parameters: u64,
    tensor_bytes: u64,
    /// Whether the counts are those of the real checkpoint, not derived from its `config.json`.
    verified: bool,
    /// Digest of names, dtypes and shapes.
    #[serde(default)]
    names_sha256: Option<Sha256>,
}

/// The published checkpoint that has these tensors, or nearly: the closest of the same family.
#[must_use]
pub fn published(
    family: Family,
    counts: &InventoryCounts,
    tensors: &[InventoryTensor],
) -> Option<PublishedMatch> {
    // built into the program; a test rules a parse error out
    let all: Vec<Published> = serde_json::from_str(DOCUMENT).unwrap_or_default();
    let of_family = all.iter().filter(|p| p.family == family.as_str());
    let distance = |p: &&Published| {
        let tensors = p.stored_tensors.abs_diff(counts.stored_tensors);
        (tensors, p.tensor_bytes.abs_diff(counts.tensor_bytes))
    };
    let close = of_family.filter(|p| p.is_close(counts));
    let entry = close.min_by_key(distance)?;
    // sorting and hashing all names takes a while: only where there is something to compare with
    let names = entry.names_sha256;
    let by = match entry.has_counts(counts) {
        false => MatchedBy::Nearly,
        true if names.is_some_and(|wanted| wanted == digest_of_names(tensors)) => MatchedBy::Names,
        true => MatchedBy::Counts,
    };
    Some(PublishedMatch {
        repos: entry.repos.clone(),
        by,
        stored_tensors: entry.stored_tensors,
        tensor_bytes: entry.tensor_bytes,
        verified: entry.verified,
    })
}

impl Published {
    fn has_counts(&self, counts: &InventoryCounts) -> bool {
        self.stored_tensors == counts.stored_tensors
            && self.logical_parameters == counts.logical_parameters
            && self.tensor_bytes == counts.tensor_bytes
    }

    fn is_close(&self, counts: &InventoryCounts) -> bool {
        let pairs = [
            (self.stored_tensors, counts.stored_tensors),
            (self.tensor_bytes, counts.tensor_bytes),
        ];
        pairs
            .into_iter()
            .all(|(wanted, seen)| wanted.abs_diff(seen) <= wanted / 100 * CLOSE_PERCENT)
    }
}

/// SHA-256 of a line for each tensor, sorted by name: name, dtype, sides separated by commas, with
/// tabs between them.
fn digest_of_names(tensors: &[InventoryTensor]) -> Sha256 {
    let mut sorted: Vec<&InventoryTensor> = tensors.iter().collect();
    sorted.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let mut sha256 = Sha256Hasher::default();
    for t in sorted {
        let sides: Vec<String> = t.shape.iter().map(ToString::to_string).collect();
        let line = format!("{}\t{}\t{}\n", t.name, t.dtype, sides.join(","));
        sha256.update(line.as_bytes());
    }
    sha256.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Published> {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    fn counts(entry: &Published) -> InventoryCounts {
        InventoryCounts {
            stored_tensors: entry.stored_tensors,
            logical_parameters: entry.logical_parameters,
            parameters: 0,
            tensor_bytes: entry.tensor_bytes,
        }
    }

    #[test]
    fn every_published_checkpoint_is_known_by_its_counts() {
        assert!(all().len() > 30);
        for entry in all() {
            let family = Family::named(&entry.family).unwrap();
            let found = published(family, &counts(&entry), &[]).unwrap();
            assert_eq!((found.by, &found.repos), (MatchedBy::Counts, &entry.repos));
        }
    }

    #[test]
    fn a_tensor_less_is_nearly_it_and_half_of_it_is_nothing() {
        let all = all();
        let is_r1 = |p: &&Published| p.repos.iter().any(|r| r.ends_with("DeepSeek-R1"));
        let r1 = all.iter().find(is_r1).unwrap();
        let family = Family::named("deepseek_v3").unwrap();
        let mut less = counts(r1);
        less.stored_tensors -= 1;
        let found = published(family, &less, &[]).unwrap();
        assert_eq!(
            (found.by, found.repos),
            (MatchedBy::Nearly, r1.repos.clone())
        );
        less.stored_tensors /= 2;
        assert_eq!(published(family, &less, &[]), None);
    }
}

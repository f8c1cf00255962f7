//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};
use std::sync::Arc;

use serde::Deserialize;

use super::error::HeaderError;
use crate::strict_json::UniqueEntries;

/// The index of a sharded checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    /// `metadata.total_size`, bytes of all tensors, where it is given.
    pub total_size: Option<u64>,
    /// Shard file (relative path) of every tensor; the tensors of a shard share its path.
    pub weight_map: BTreeMap<String, Arc<str>>,
}

#[derive(Deserialize)]
struct RawIndex {
    metadata: Option<RawMetadata>,
    weight_map: UniqueEntries<String>,
}

#[derive(Deserialize)]
struct RawMetadata {
    total_size: Option<serde_json::Number>,
}

impl ShardIndex {
    /// Parses and checks the text of an index.
    ///
    /// # Errors
    /// Not JSON, a key given twice, no `weight_map`, a shard path that leaves the folder, a
    /// `total_size` that is no whole number of bytes.
    pub fn parse(json: &[u8]) -> Result<Self, HeaderError> {
        let raw: RawIndex = serde_json::from_slice(json).map_err(HeaderError::Index)?;
        let total_size = raw
            .metadata
            .and_then(|m| m.total_size)
            .map(|n| whole(&n))
            .transpose()?;
        let mut shards = Paths::default();
        let places = raw.weight_map.0.into_iter();
        let placed = places.map(|(tensor, file)| {
            let shard = shards.shared(&file).map_err(|why| {
                HeaderError::Rule(format!(
                    "weight_map: tensor {tensor:?} is in {file:?}: {why}"
                ))
            })?;
            Ok((tensor, shard))
        });
        let placed: Result<Vec<(String, Arc<str>)>, HeaderError> = placed.collect();
        Ok(Self {
            total_size,
            weight_map: placed?.into_iter().collect(),
        })
    }

    /// The shards that it names.
    pub fn shards(&self) -> BTreeSet<&str> {
        let mut shards = BTreeSet::new();
        let mut last: Option<&Arc<str>> = None;
        for file in self.weight_map.values() {
            // tensors that follow one another are mostly of one shard
            if !last.is_some_and(|last| Arc::ptr_eq(last, file)) {
                shards.insert(&**file);
                last = Some(file);
            }
        }
        shards
    }
}

/// One copy of each path, checked.
#[derive(Default)]
struct Paths {
    known: BTreeSet<Arc<str>>,
    last: Option<Arc<str>>,
}

impl Paths {
    /// The one copy of a path that is kept, checked.
    fn shared(&mut self, file: &str) -> Result<Arc<str>, &'static str> {
        if let Some(last) = self.last.as_ref().filter(|last| ***last == *file) {
            return Ok(Arc::clone(last));
        }
        let shard = match self.known.get(file) {
            Some(known) => Arc::clone(known),
            None => {
                check_relative_path(file)?;
                let shard: Arc<str> = file.into();
                self.known.insert(Arc::clone(&shard));
                shard
            }
        };
        self.last = Some(Arc::clone(&shard));
        Ok(shard)
    }
}

/// Some writers give the size as a float (`1.2e10`); it is taken while it is exact.
fn whole(number: &serde_json::Number) -> Result<u64, HeaderError> {
    number
        .as_u64()
        .or_else(|| number.as_f64().and_then(exact_integer))
        .ok_or_else(|| {
            HeaderError::Rule(format!(
                "metadata.total_size is {number}, not a whole number of bytes"
            ))
        })
}

fn exact_integer(f: f64) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked just before"
    )]
    (f.fract() == 0.0 && (0.0..=EXACT).contains(&f)).then_some(f as u64)
}

/// Checks that a path from a document stays inside its folder, and means the same on every system.
///
/// # Errors
/// In words: empty, absolute, `..`, `.`, a backslash, a drive, a control character.
pub fn check_relative_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("the path is empty");
    }
    if path.chars().any(char::is_control) {
        return Err("the path holds a control character");
    }
    if path.contains('\\') || path.contains(':') {
        return Err("the path holds a backslash or a colon");
    }
    let normal = |part: Component<'_>| matches!(part, Component::Normal(_));
    if path.starts_with('/')
        || !Path::new(path).components().all(normal)
        || path.split('/').any(|p| p.is_empty() || p == ".")
    {
        return Err("the path is absolute or leaves its folder");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    #[test]
    fn reads_what_transformers_writes() {
        let index = ShardIndex::parse(
            br#"{"metadata":{"total_parameters":3,"total_size":12},"weight_map":{"b":"y.safetensors","a":"x/1.safetensors"}}"#,
        )
        .unwrap();
        assert_eq!(index.total_size, Some(12));
        assert_eq!(&*index.weight_map["a"], "x/1.safetensors");
        assert_eq!(index.shards().len(), 2);
        assert_eq!(
            ShardIndex::parse(br#"{"weight_map":{}}"#)
                .unwrap()
                .total_size,
            None
        );
        let float =
            ShardIndex::parse(br#"{"metadata":{"total_size":1.2e3},"weight_map":{}}"#).unwrap();
        assert_eq!(float.total_size, Some(1200));
    }

    #[test]
    fn refuses_bad_documents_with_their_reason() {
        let cases = [
            ("{", "EOF"),
            ("{}", "missing field `weight_map`"),
            (r#"{"weight_map":{"a":1}}"#, "key \"a\""),
            (
                r#"{"weight_map":{"a":"x","a":"y"}}"#,
                "key \"a\" appears twice",
            ),
            (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "leaves its folder"),
            (r#"{"weight_map":{"a":"../x"}}"#, "leaves its folder"),
            (r#"{"weight_map":{"a":"x/./y"}}"#, "leaves its folder"),
            (r#"{"weight_map":{"a":"x//y"}}"#, "leaves its folder"),
            (r#"{"weight_map":{"a":"..\\x"}}"#, "backslash"),
            (r#"{"weight_map":{"a":"C:x"}}"#, "colon"),
            (r#"{"weight_map":{"a":""}}"#, "empty"),
            (r#"{"weight_map":{"a":"x\ny"}}"#, "control character"),
            (
                r#"{"metadata":{"total_size":-1},"weight_map":{}}"#,
                "total_size is -1",
            ),
            (
                r#"{"metadata":{"total_size":1.5},"weight_map":{}}"#,
                "total_size is 1.5",
            ),
        ];
        for (json, wanted) in cases {
            let seen = chain(&ShardIndex::parse(json.as_bytes()).unwrap_err());
            assert!(seen.contains(wanted), "{json}: {seen}");
        }
    }
}

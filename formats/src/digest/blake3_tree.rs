//! BLAKE3 of bytes that arrive in any order, several threads at a time.
//!
//! BLAKE3 is a binary tree over chunks of 1024 bytes (BLAKE3 paper, section 2.1): any aligned power
//! of two of chunks is a subtree that can be hashed alone, and the values of subtrees merge into
//! the root.

use std::collections::BTreeMap;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, max_subtree_len, merge_subtrees_non_root,
    merge_subtrees_root,
};

use super::Blake3;

/// Ranges are hashed from and to multiples of this many bytes (or to the end).
pub const BLAKE3_CHUNK_BYTES: u64 = 1024;

/// The digest of part of a message.
#[derive(Debug, Clone, Default)]
pub struct Blake3Part {
    whole: Option<Blake3>,
    subtrees: Vec<(u64, u64, ChainingValue)>,
}

impl Blake3Part {
    /// Hashes the bytes of a message of `total` bytes that begin at `offset`, a multiple of
    /// [`BLAKE3_CHUNK_BYTES`]. They end at such a multiple too, or with the message.
    pub fn of(bytes: &[u8], offset: u64, total: u64) -> Self {
        let end = offset + bytes.len() as u64;
        debug_assert!(offset.is_multiple_of(BLAKE3_CHUNK_BYTES), "from {offset}");
        debug_assert!(
            end.is_multiple_of(BLAKE3_CHUNK_BYTES) || end == total,
            "to {end} of {total}"
        );
        if bytes.len() as u64 == total {
            return Self {
                whole: Some(Blake3::of(bytes)),
                subtrees: Vec::new(),
            };
        }
        let (mut part, mut rest, mut at) = (Self::default(), bytes, offset);
        while !rest.is_empty() {
            let length = subtree_length(at, end, total);
            let (subtree, after) = rest.split_at(usize::try_from(length).unwrap_or(rest.len()));
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(at);
            hasher.update(subtree);
            part.subtrees.push((at, length, hasher.finalize_non_root()));
            (rest, at) = (after, at + length);
        }
        part
    }
}

/// Bytes of the largest subtree at `at` that ends at or before `end`.
fn subtree_length(at: u64, end: u64, total: u64) -> u64 {
    let rest = end - at;
    match max_subtree_len(at) {
        Some(max) if max <= rest => max,
        // the last subtree may be shorter than a power of two; at byte 0 it would be the root
        // itself
        Some(_) if end == total => rest,
        _ => 1 << rest.ilog2(),
    }
}

impl Blake3 {
    /// The digest of a message of `total` bytes from parts that cover it, in any order; `None`
    /// where they do not.
    pub fn of_parts<'p>(
        parts: impl IntoIterator<Item = &'p Blake3Part>,
        total: u64,
    ) -> Option<Self> {
        let mut subtrees = BTreeMap::new();
        for part in parts {
            if part.whole.is_some() {
                return part.whole;
            }
            subtrees.extend(
                part.subtrees
                    .iter()
                    .map(|(at, length, value)| ((*at, *length), *value)),
            );
        }
        if total <= BLAKE3_CHUNK_BYTES {
            return (total == 0).then(|| Self::of(&[]));
        }
        let left = left_subtree_len(total);
        let (l, r) = (
            value(&subtrees, 0, left)?,
            value(&subtrees, left, total - left)?,
        );
        Some(Self(*merge_subtrees_root(&l, &r, Mode::Hash).as_bytes()))
    }
}

fn value(
    subtrees: &BTreeMap<(u64, u64), ChainingValue>,
    at: u64,
    length: u64,
) -> Option<ChainingValue> {
    if let Some(value) = subtrees.get(&(at, length)) {
        return Some(*value);
    }
    if length <= BLAKE3_CHUNK_BYTES {
        return None;
    }
    let left = left_subtree_len(length);
    let (l, r) = (
        value(subtrees, at, left)?,
        value(subtrees, at + left, length - left)?,
    );
    Some(merge_subtrees_non_root(&l, &r, Mode::Hash))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(length: usize) -> Vec<u8> {
        (0..length)
            .map(|i| u8::try_from(i * 31 % 251).unwrap_or(0))
            .collect()
    }

    /// Cut at these chunks.
    fn parts(bytes: &[u8], cuts: &[usize]) -> Vec<Blake3Part> {
        let total = bytes.len() as u64;
        let mut at: Vec<usize> = cuts.iter().map(|c| (c * 1024).min(bytes.len())).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        at.dedup();
        at.windows(2)
            .map(|w| Blake3Part::of(&bytes[w[0]..w[1]], w[0] as u64, total))
            .collect()
    }

    #[test]
    fn every_length_and_cut_gives_the_same_digest() {
        for length in [
            1, 1023, 1024, 1025, 2048, 2049, 3072, 4096, 5000, 8192, 9216, 16_384, 16_385,
        ] {
            let bytes = message(length);
            for cut in 0..=length / 1024 {
                let parts = parts(&bytes, &[cut]);
                assert_eq!(
                    Blake3::of_parts(&parts, length as u64),
                    Some(Blake3::of(&bytes)),
                    "{length}/{cut}"
                );
            }
        }
    }

    #[test]
    fn a_missing_part_is_noticed() {
        let bytes = message(10_000);
        let mut parts = parts(&bytes, &[2, 5]);
        parts.remove(1);
        assert_eq!(Blake3::of_parts(&parts, 10_000), None);
        assert_eq!(Blake3::of_parts(&[], 5), None);
    }

    proptest! {
        #[test]
        fn parts_in_any_order_merge(length in 1_usize..300_000, cuts in prop::collection::vec(0_usize..300, 0..9)) {
            let bytes = message(length);
            let mut parts = parts(&bytes, &cuts);
            parts.reverse();
            prop_assert_eq!(Blake3::of_parts(&parts, length as u64), Some(Blake3::of(&bytes)));
        }
    }
}

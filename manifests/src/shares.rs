//! Which of N machines packs what, where many pack one checkpoint: a pure function of the plan.
//!
//! Packs are dealt out whole and in the order of the plan, so that a part has neighbouring layers:
//! of a checkpoint whose shards follow its layers, each machine then reads few.

use std::collections::BTreeMap;

use crate::documents::{PackShare, Plan, PlannedPack};

/// Deals the packs of a plan out to `of` parts, which are counted from 1: part `k` gets those whose
/// middle byte lies in the `k`-th of `of` equal stretches of all tensor bytes. No part has more than
/// its stretch and half of the packs at either end of it; of a plan with few packs a part may get
/// none.
#[must_use]
pub fn share_packs(plan: &Plan, of: u64) -> Vec<PackShare> {
    let total = u128::from(plan.raw_length()).max(1);
    let mut before = 0_u128;
    let share = |pack: &PlannedPack| {
        let length = pack.raw_length();
        let middle = 2 * before + u128::from(length);
        before += u128::from(length);
        let stretch = middle.saturating_mul(u128::from(of)) / (2 * total);
        PackShare {
            path: pack.path.clone(),
            raw_length: length,
            // the middle of a last pack without bytes is the end of all
            part: u64::try_from(stretch)
                .unwrap_or(of)
                .saturating_add(1)
                .min(of),
        }
    };
    plan.packs.iter().map(share).collect()
}

/// Which part digests each shard, by path: of those that pack some of it, the one that packs most.
/// Shards of which nothing is packed are left out: nobody reads them.
#[must_use]
pub fn share_shards<'a>(plan: &'a Plan, packs: &[PackShare]) -> BTreeMap<&'a str, u64> {
    let mut taken: BTreeMap<&str, BTreeMap<u64, u64>> = BTreeMap::new();
    for (pack, share) in plan.packs.iter().zip(packs) {
        for tensor in pack.segments.iter().flat_map(|s| &s.tensors) {
            let of_shard = taken.entry(&tensor.source.file).or_default();
            let bytes = of_shard.entry(share.part).or_default();
            *bytes = bytes.saturating_add(tensor.source.length);
        }
    }
    let most = |parts: BTreeMap<u64, u64>| {
        // of two with as much, the first part
        let by_bytes = |(part, bytes): &(u64, u64)| (*bytes, std::cmp::Reverse(*part));
        parts.into_iter().max_by_key(by_bytes).map(|(part, _)| part)
    };
    let shards = taken.into_iter();
    shards
        .filter_map(|(path, parts)| Some((path, most(parts)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs of these lengths, each of one tensor in the shard of this number.
    fn plan(packs: &[(u64, u64)]) -> Plan {
        let pack = |(number, (length, shard)): (usize, &(u64, u64))| {
            let (path, shard) = (format!("packs/{number}"), format!("shard-{shard}"));
            let source = serde_json::json!({
                "file": shard, "tensor": path, "offset": 100, "length": length
            });
            let tensor = serde_json::json!({
                "name": path, "dtype": "U8", "shape": [length], "role": "norm", "source": source
            });
            let id = format!("{path}.segment");
            serde_json::json!({
                "path": path, "component": "text", "data_offset": 4096, "length": 4096 + length,
                "segments": [{"id": id, "raw_length": length, "tensors": [tensor]}]
            })
        };
        let packs: Vec<_> = packs.iter().enumerate().map(pack).collect();
        serde_json::from_value(serde_json::json!({
            "format_version": "1.1", "generator": "test", "codec": "raw", "excluded": [],
            "left_out": [], "packs": packs
        }))
        .unwrap()
    }

    fn parts(packs: &[(u64, u64)], of: u64) -> Vec<u64> {
        let shares = share_packs(&plan(packs), of);
        shares.iter().map(|s| s.part).collect()
    }

    #[test]
    fn neighbouring_packs_of_like_sizes_go_to_every_part() {
        let six = [(10, 0); 6];
        assert_eq!(parts(&six, 1), [1; 6]);
        assert_eq!(parts(&six, 2), [1, 1, 1, 2, 2, 2]);
        assert_eq!(parts(&six, 3), [1, 1, 2, 2, 3, 3]);
        assert_eq!(parts(&six, 6), [1, 2, 3, 4, 5, 6]);
        assert_eq!(
            parts(&[(30, 0), (10, 0), (10, 0), (10, 0)], 2),
            [1, 2, 2, 2]
        );
    }

    #[test]
    fn more_parts_than_packs_and_packs_without_bytes_are_dealt_out_all_the_same() {
        assert_eq!(parts(&[(1, 0), (1, 0)], 8), [3, 7]);
        assert_eq!(parts(&[(0, 0), (0, 0)], 3), [1, 1]);
        assert_eq!(parts(&[(5, 0), (0, 0)], 2), [2, 2]);
        assert_eq!(parts(&[(u64::MAX - 4096, 0)], u64::MAX).len(), 1);
    }

    #[test]
    fn a_shard_is_digested_by_the_part_that_packs_most_of_it() {
        let plan = plan(&[(20, 1), (10, 2), (10, 1), (10, 2), (10, 3)]);
        let packs = share_packs(&plan, 2);
        let of: Vec<u64> = packs.iter().map(|s| s.part).collect();
        assert_eq!(of, [1, 1, 2, 2, 2]);
        let shards = share_shards(&plan, &packs);
        // of shard 2 both pack ten bytes
        assert_eq!(
            shards.into_iter().collect::<Vec<_>>(),
            [("shard-1", 1), ("shard-2", 1), ("shard-3", 2)]
        );
    }
}

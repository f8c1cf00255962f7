//! Heads and attention.

use super::*;

/// The result of attention and the whole cache after it: keys, then values.
pub(super) type Attended = [Vec<f32>; 3];

/// Attention of some tokens after `before` positions, with room for more: what the device gives,
/// and the reference.
pub(super) fn attended(
    launch: Launch<'_>,
    heads: Heads,
    before: usize,
    tokens: usize,
    parts: usize,
) -> (Attended, Attended) {
    let Heads {
        query,
        key_value,
        width,
    } = heads;
    let (compute, ops) = (
        launch.compute,
        ScalarOps {
            compute: launch.compute,
        },
    );
    let (gpu, row, positions) = (gpu(), key_value * width, before + tokens + 5);
    let [mut q, mut k, v] = [(query, 1), (key_value, 2), (key_value, 3)]
        .map(|(n, seed)| activations(compute, tokens * n * width, seed));
    // what comes after the last position must not count
    let [mut keys, mut values] = [11, 12].map(|seed| {
        [
            activations(compute, before * row, seed),
            vec![f32::NAN; positions * row - before * row],
        ]
        .concat()
    });
    let [cos, sin] = [5, 6].map(|seed| noise(positions * (width / 2), seed));
    let norms = [(7, 4.0), (8, 1.0)].map(|(seed, size)| {
        noise(width, seed)
            .iter()
            .map(|x| x * size)
            .collect::<Vec<_>>()
    });
    let kept = [&q, &k, &v, &keys, &values].map(|x| put(&gpu, compute, x));
    let turned = [&cos, &sin].map(|x| put_f32(&gpu, x));
    let placed = [0, 1].map(|i: usize| put_at(&gpu, &plain(&norms[i]), 0));
    let (_p, position) = put_at(&gpu, &u32::try_from(before).unwrap().to_le_bytes(), 0);
    let norm = |i: usize| MatrixView {
        ptr: placed[i].1,
        dtype: FloatDtype::F32,
        rows: width,
        columns: 1,
    };
    let head_norms = HeadNorms {
        q_norm: norm(0),
        k_norm: norm(1),
        cos: turned[0].1,
        sin: turned[1].1,
        eps: 1e-6,
    };
    let cache = KvCache {
        keys: kept[3].1,
        values: kept[4].1,
        position,
    };
    let (_m, partial) = blank(
        &gpu,
        Compute::F32,
        partial_values(tokens, heads, compute, parts, positions),
    );
    if partial.len > 0 {
        gpu.upload_now(partial.ptr, &vec![0; counters(heads) * 4])
            .unwrap();
    }
    let attend = || {
        let (_o, out) = blank(&gpu, compute, q.len());
        launch
            .attend(
                [kept[0].1, kept[1].1, kept[2].1],
                heads,
                head_norms,
                cache,
                (parts, partial),
                out,
            )
            .unwrap();
        get(&gpu, out)
    };
    let seen = attend();
    if tokens <= FEW_TOKENS {
        assert_eq!(attend(), seen, "a second time, as in a graph");
    }
    let seen = [seen, get(&gpu, cache.keys), get(&gpu, cache.values)];
    let half = before * (width / 2)..(before + tokens) * (width / 2);
    for (x, norm) in [(&mut q, &norms[0]), (&mut k, &norms[1])] {
        ops.rms_norm(x, norm, 1e-6);
        ops.rope(x, &cos[half.clone()], &sin[half.clone()], width);
    }
    let new = before * row..(before + tokens) * row;
    keys[new.clone()].copy_from_slice(&k);
    values[new.clone()].copy_from_slice(&v);
    let mut wanted = vec![0.0; q.len()];
    ops.attention(&q, &keys[..new.end], &values[..new.end], heads, &mut wanted);
    (seen, [wanted, keys, values])
}

/// Cached positions before, new tokens, and parts that few tokens' positions are cut into: at the
/// borders of parts and tiles.
const PASSES: [(usize, usize, usize); 14] = [
    (0, 1, 1),
    (0, 4, 1),
    (127, 2, 1),
    (300, 1, 1),
    (0, 1, 2),
    (5, 4, 3),
    (62, 4, 3),
    (64, 1, 32),
    (126, 3, 2),
    (300, 1, 2),
    (0, 7, 1),
    (40, 33, 1),
    (63, 65, 1),
    (120, 70, 1),
];

const SHAPES: [Heads; 8] = [
    Heads {
        query: 2,
        key_value: 2,
        width: 1,
    },
    Heads {
        query: 1,
        key_value: 1,
        width: 2,
    },
    Heads {
        query: 4,
        key_value: 2,
        width: 32,
    },
    Heads {
        query: 6,
        key_value: 2,
        width: 34,
    },
    Heads {
        query: 9,
        key_value: 1,
        width: 40,
    },
    Heads {
        query: 2,
        key_value: 1,
        width: 64,
    },
    Heads {
        query: 8,
        key_value: 1,
        width: 128,
    },
    Heads {
        query: 2,
        key_value: 2,
        width: 128,
    },
];

#[test]
fn heads_are_normed_turned_and_cached_as_the_reference_does_it() {
    let gpu = gpu();
    let passes = [(0, 1, 1), (3, 4, 1), (62, 4, 3), (5, 7, 1)];
    for ((before, tokens, parts), heads) in passes.into_iter().flat_map(|p| SHAPES.map(|s| (p, s)))
    {
        for launch in launches(&gpu) {
            let (seen, wanted) = attended(launch, heads, before, tokens, parts);
            let row = heads.key_value * heads.width;
            let what = format!("{heads:?}, {before} + {tokens} positions in {parts} parts");
            for (seen, wanted) in seen[1..].iter().zip(&wanted[1..]) {
                let (seen, rest) = seen.split_at((before + tokens) * row);
                assert!(
                    rest.iter().all(|x| x.is_nan()),
                    "{what}: a later position is written"
                );
                assert_eq!(
                    seen[..before * row],
                    wanted[..before * row],
                    "{what}: an earlier position is written"
                );
                assert_close(launch.compute, seen, &wanted[..seen.len()], &what);
            }
        }
    }
}

#[test]
fn attention_agrees_with_the_reference() {
    let gpu = gpu();
    let mut equal = [(0, 0); 2]; // of few tokens, of many
    for (heads, (before, tokens, parts)) in SHAPES.into_iter().flat_map(|s| PASSES.map(|p| (s, p)))
    {
        for launch in launches(&gpu) {
            let (seen, wanted) = attended(launch, heads, before, tokens, parts);
            let what = format!(
                "{heads:?}, {before} + {tokens} positions in {parts} parts, {:?}",
                launch.compute
            );
            assert_close(launch.compute, &seen[0], &wanted[0], &what);
            if launch.compute == Compute::Bf16 {
                let (same, all) = &mut equal[usize::from(tokens > FEW_TOKENS)];
                *same += seen[0]
                    .iter()
                    .zip(&wanted[0])
                    .filter(|(a, b)| a == b)
                    .count();
                *all += wanted[0].len();
            }
        }
    }
    for (same, all) in equal {
        assert!(
            same * 10 >= all * 9,
            "{same} of {all} values have the bits of the reference: a rounding is missing"
        );
    }
}

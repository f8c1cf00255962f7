//! Every kernel against the plain reference, at sizes that are no multiple of any tile, at both precisions: on a GPU where
//! there is one, else on the host shim.

use std::collections::BTreeSet;
use std::sync::Arc;

use segpack_formats::safetensors::Dtype;

use super::driver::{Gpu, Memory, PTX, Place, Stream, entries};
use super::launch::{
    ARGMAX_BYTES, Cache, Choice, FEW_TOKENS, Launch, Layer, Norm, Turns, Values, Weights, counters,
    dense_tile, expert_tile, partial_values, tiles_bytes,
};
use super::testing::{bank_conflicts, gpu, run_lanes_backwards};
use crate::generate::{Greatest, Sampler};
use crate::ops::{Compute, Heads, Matrix, Ops, ScalarOps};
use crate::samples::{activations, bytes, noise};

const BOTH: [Compute; 2] = [Compute::F32, Compute::Bf16];
const DTYPES: [Dtype; 3] = [Dtype::BF16, Dtype::F16, Dtype::F32];

fn plain(values: &[f32]) -> Vec<u8> {
    bytes(Dtype::F32, values)
}

/// Memory on the device with these bytes, `shift` bytes after an aligned address.
fn put_at(gpu: &Arc<Gpu>, bytes: &[u8], shift: usize) -> (Memory, Place) {
    let memory = gpu.alloc(bytes.len() + shift, "a test").unwrap();
    let place = memory.place().byte(shift);
    gpu.upload_now(place, bytes).unwrap();
    (memory, place)
}

/// Activations on the device.
fn put(gpu: &Arc<Gpu>, compute: Compute, values: &[f32]) -> (Memory, Values) {
    let dtype = if compute == Compute::F32 { Dtype::F32 } else { Dtype::BF16 };
    let (memory, place) = put_at(gpu, &bytes(dtype, values), 0);
    (memory, Values::activations(compute, place, values.len()))
}

fn put_f32(gpu: &Arc<Gpu>, values: &[f32]) -> (Memory, Values) {
    put(gpu, Compute::F32, values)
}

/// NaN, so that what is not written shows.
fn blank(gpu: &Arc<Gpu>, compute: Compute, n: usize) -> (Memory, Values) {
    put(gpu, compute, &vec![f32::NAN; n])
}

fn get(gpu: &Gpu, values: Values) -> Vec<f32> {
    let mut bytes = vec![0; values.len * values.width];
    gpu.download(&mut bytes, values.place).unwrap();
    let dtype = if values.width == 4 { Dtype::F32 } else { Dtype::BF16 };
    let mut widened = vec![0.0; values.len];
    crate::ops::widen(dtype, &bytes, &mut widened);
    widened
}

fn get_f32(gpu: &Gpu, place: Place, n: usize) -> Vec<f32> {
    get(gpu, Values::f32(place, n))
}

fn get_numbers(gpu: &Gpu, place: Place, n: usize) -> Vec<u32> {
    get_f32(gpu, place, n).iter().map(|x| x.to_bits()).collect()
}

/// The same in f32 but for the order of sums; one rounding apart in bf16.
fn assert_close(compute: Compute, seen: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(seen.len(), wanted.len(), "{what}");
    let size = wanted.iter().fold(1.0_f32, |most, x| most.max(x.abs()));
    let most = size * if compute == Compute::F32 { 3e-6 } else { 1.0 / 128.0 };
    for (i, (a, b)) in seen.iter().zip(wanted).enumerate() {
        assert!((a - b).abs() <= most, "{what}: value {i} is {a}, wanted {b}");
    }
}

fn launches(gpu: &Gpu) -> impl Iterator<Item = Launch<'_>> {
    BOTH.into_iter().map(move |compute| Launch { gpu, compute })
}

#[test]
fn the_ptx_is_for_old_drivers_and_names_every_kernel() {
    assert!(PTX.contains("\n.version 7.8\n") && PTX.contains("\n.target sm_80\n"));
    let sources = include_str!("shim/driver.cpp");
    let names: BTreeSet<&str> = entries(PTX).map(|(name, _)| name).collect();
    assert!(names.len() >= 25, "{names:?}");
    for name in &names {
        let stem = ["_bf16", "_f16", "_f32"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(sources.contains(&format!("({stem})")), "the shim lacks {name}");
    }
    let norm = entries(PTX).find(|(name, _)| *name == "rms_norm").unwrap();
    assert_eq!(norm.1, [8, size_of::<super::driver::Norm>(), 4, 4]);
    let products = entries(PTX).find(|(name, _)| *name == "gemm_mma_64").unwrap();
    assert_eq!(products.1, [size_of::<super::driver::Products>(), 8, 4, 4, 4]);
    let experts = entries(PTX).find(|(name, _)| *name == "expert_mma_64").unwrap();
    assert_eq!(experts.1, [size_of::<super::driver::Experts>()]);
}

#[test]
fn a_wrong_argument_or_name_is_an_error() {
    use super::driver::Argument::Int;
    let gpu = gpu();
    // SAFETY: neither launches anything
    let [few, none] =
        unsafe { [gpu.launch("add", [1, 1, 1], 32, 0, &[Int(1)]), gpu.launch("sub", [1, 1, 1], 32, 0, &[])] };
    assert!(few.unwrap_err().to_string().contains("parameters of [4] bytes, wanted [8, 8, 8, 4]"));
    assert!(none.unwrap_err().to_string().contains("no such kernel"));
}

#[test]
fn products_agree_with_the_reference() {
    let gpu = gpu();
    // rows of three products, columns, tokens
    let sizes = [
        ([1, 0, 0], 1, 1),
        ([3, 5, 1], 7, 2),
        ([17, 2, 9], 64, 1),
        ([33, 16, 16], 520, 3),
        ([6, 0, 0], 1100, 4),
        ([3, 2, 4], 2088, 2),
        ([2, 0, 0], 12_288, 1),
        ([2, 0, 0], 25_344, 1),
        ([65, 130, 1], 33, 5),
        ([40, 7, 0], 72, 70),
        ([129, 0, 0], 136, 65),
    ];
    for (rows, columns, tokens) in sizes {
        for dtype in DTYPES {
            for (launch, shift) in launches(&gpu).flat_map(|l| [(l, 0), (l, 4)]) {
                let compute = launch.compute;
                let x = activations(compute, tokens * columns, 3);
                let (_x, x_there) = put(&gpu, compute, &x);
                let (mut kept, mut linears, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
                for (i, rows) in rows.into_iter().enumerate() {
                    let seed = u32::try_from(i).unwrap();
                    let weight = bytes(dtype, &noise(rows * columns, 7 + seed));
                    let bias = (i != 1).then(|| noise(rows, 70 + seed));
                    let (w, place) = put_at(&gpu, &weight, shift);
                    let (b, b_place) = put_at(&gpu, &plain(bias.as_deref().unwrap_or(&[])), 0);
                    let (o, out) = blank(&gpu, compute, tokens * rows);
                    let bias_there = bias.as_ref().map(|_| Weights {
                        place: b_place,
                        dtype: Dtype::F32,
                        rows,
                        columns: 1,
                    });
                    linears.push((Weights { place, dtype, rows, columns }, bias_there, out));
                    let mut result = vec![0.0; tokens * rows];
                    let matrix = Matrix { dtype, bytes: &weight, rows, columns };
                    if rows > 0 {
                        ScalarOps { compute }.linear(&x, matrix, bias.as_deref(), &mut result);
                    }
                    wanted.push(result);
                    kept.push((w, b, o));
                }
                launch.products(x_there, None, &linears).unwrap();
                for ((_, _, out), wanted) in linears.iter().zip(&wanted) {
                    let what = format!(
                        "{dtype} {rows:?}x{columns}, {tokens} tokens, shifted by {shift}, {compute:?}"
                    );
                    let scale = f32::from(u16::try_from(columns).unwrap()).sqrt();
                    let seen: Vec<f32> = get(&gpu, *out).iter().map(|x| x / scale).collect();
                    let wanted: Vec<f32> = wanted.iter().map(|x| x / scale).collect();
                    assert_close(compute, &seen, &wanted, &what);
                }
            }
        }
    }
}

/// Two products of one input, whole and unaligned rows, the last tile of few tokens.
#[test]
fn products_are_the_same_in_tiles_of_any_height() {
    let gpu = gpu();
    let (rows, tokens) = ([131, 2], 141);
    for (columns, shift) in [(200, 0), (200, 4), (199, 0), (201, 2)] {
        for (dtype, launch) in DTYPES.into_iter().flat_map(|d| launches(&gpu).map(move |l| (d, l))) {
            if dtype == Dtype::F32 && shift % 4 != 0 {
                continue; // a value begins at a multiple of its width
            }
            let compute = launch.compute;
            let x = activations(compute, tokens * columns, 3);
            let (_x, x_there) = put(&gpu, compute, &x);
            let weights =
                rows.map(|rows| bytes(dtype, &noise(rows * columns, 7 + u32::try_from(rows).unwrap())));
            let placed = [0, 1].map(|i: usize| put_at(&gpu, &weights[i], shift));
            let (_b, bias) = put_at(&gpu, &bytes(Dtype::F16, &noise(rows[0], 5)), 2);
            let bias = Weights { place: bias, dtype: Dtype::F16, rows: rows[0], columns: 1 };
            let run = |tile| {
                let blanks = rows.map(|rows| blank(&gpu, compute, tokens * rows));
                let linear = |i: usize| {
                    let weight = Weights { place: placed[i].1, dtype, rows: rows[i], columns };
                    (weight, (i == 0).then_some(bias), blanks[i].1)
                };
                launch.products_in_tiles(x_there, &[linear(0), linear(1)], Some(tile)).unwrap();
                blanks.map(|(_, out)| get(&gpu, out))
            };
            let what = format!("{dtype} {rows:?}x{columns}, shifted by {shift}, {compute:?}");
            let all = run(32);
            for tile in [64, 128] {
                assert_eq!(run(tile), all, "{what}: tiles of {tile} tokens");
            }
            let mut half = vec![0; rows[0] * 2];
            gpu.download(&mut half, bias.place).unwrap();
            let mut widened = vec![0.0; rows[0]];
            crate::ops::widen(Dtype::F16, &half, &mut widened);
            for (i, seen) in all.iter().enumerate() {
                let matrix = Matrix { dtype, bytes: &weights[i], rows: rows[i], columns };
                let mut wanted = vec![0.0; tokens * rows[i]];
                ScalarOps { compute }.linear(&x, matrix, (i == 0).then_some(&widened[..]), &mut wanted);
                let scaled = |x: &[f32]| x.iter().map(|x| x / 14.0).collect::<Vec<_>>();
                assert_close(compute, &scaled(seen), &scaled(&wanted), &what);
            }
        }
    }
}

/// What `experts` gives in tiles of so many tokens, where every row of a matrix begins `shift` bytes after an aligned one.
fn experts_in_tiles(
    launch: Launch<'_>,
    gpu: &Arc<Gpu>,
    tile: usize,
    dtype: Dtype,
    [hidden, inner, shift]: [usize; 3],
) -> Vec<f32> {
    let (tokens, experts, best) = (150, 3, 2);
    let (_x, x) = put(gpu, launch.compute, &activations(launch.compute, tokens * hidden, 5));
    let matrices: Vec<_> =
        (0..9).map(|i| put_at(gpu, &bytes(dtype, &noise(inner * hidden, 100 + i)), shift)).collect();
    let table: Vec<u8> = matrices.iter().flat_map(|m| m.1.0.to_le_bytes()).collect();
    let (_t, table) = put_at(gpu, &table, 0);
    // experts of 141, 150 and 9 tokens
    let ids: Vec<u32> =
        (0..tokens).flat_map(|t| if t % 16 == 0 && t > 0 { [1, 2] } else { [1, 0] }).collect();
    let (_kept, choice) = choice(gpu, tokens, experts, best);
    gpu.upload_now(choice.ids, &ids.iter().flat_map(|i| i.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let layer = Layer { table, dtype, experts, best, hidden, inner };
    launch.sort_in_tiles(tokens, layer, choice, Some(tile)).unwrap();
    let places = [inner, hidden].map(|n| blank(gpu, launch.compute, tokens * best * n));
    launch.experts_in_tiles(x, layer, choice, [places[0].1, places[1].1], Some(tile)).unwrap();
    get(gpu, places[1].1)
}

#[test]
fn experts_are_the_same_in_tiles_of_any_height() {
    let gpu = gpu();
    for sizes in [[200, 136, 0], [136, 200, 2], [67, 33, 0]] {
        for (dtype, launch) in
            [Dtype::BF16, Dtype::F16].into_iter().flat_map(|d| launches(&gpu).map(move |l| (d, l)))
        {
            let [small, large] = [64, 128].map(|tile| experts_in_tiles(launch, &gpu, tile, dtype, sizes));
            assert!(small.iter().all(|x| x.is_finite()), "{sizes:?} {dtype}");
            assert_eq!(small, large, "{sizes:?} {dtype} {:?}", launch.compute);
        }
    }
}

/// Gate and up in one pass have the bits of two products and silu_mul: rounded in the same places.
#[test]
fn an_expert_of_all_tokens_is_a_dense_mlp() {
    let gpu = gpu();
    let (tokens, hidden, inner) = (70, 72, 66);
    for (dtype, launch) in DTYPES.into_iter().flat_map(|d| launches(&gpu).map(move |l| (d, l))) {
        let compute = launch.compute;
        let (_x, x) = put(&gpu, compute, &activations(compute, tokens * hidden, 5));
        let matrices = [1, 2, 3].map(|i| put_at(&gpu, &bytes(dtype, &noise(inner * hidden, i)), 0));
        let of = |i: usize, rows, columns| Weights { place: matrices[i].1, dtype, rows, columns };
        let dense = [inner, inner, hidden].map(|n| blank(&gpu, compute, tokens * n));
        let [gate, up, down] = [0, 1, 2].map(|i: usize| dense[i].1);
        launch
            .products(x, None, &[(of(0, inner, hidden), None, gate), (of(1, inner, hidden), None, up)])
            .unwrap();
        launch.silu_mul(gate, up).unwrap();
        launch.products(gate, None, &[(of(2, hidden, inner), None, down)]).unwrap();
        let table: Vec<u8> = matrices.iter().flat_map(|m| m.1.0.to_le_bytes()).collect();
        let (_t, table) = put_at(&gpu, &table, 0);
        let (_kept, choice) = choice(&gpu, tokens, 1, 1);
        gpu.upload_now(choice.ids, &vec![0; tokens * 4]).unwrap();
        let layer = Layer { table, dtype, experts: 1, best: 1, hidden, inner };
        launch.sort(tokens, layer, choice).unwrap();
        let places = [inner, hidden].map(|n| blank(&gpu, compute, tokens * n));
        launch.experts(x, layer, choice, [places[0].1, places[1].1]).unwrap();
        assert_eq!(get(&gpu, places[0].1), get(&gpu, gate), "{dtype} {compute:?}");
        assert_eq!(get(&gpu, places[1].1), get(&gpu, down), "{dtype} {compute:?}");
    }
}

#[test]
fn tiles_are_as_high_as_leaves_every_multiprocessor_one() {
    // 132 of them; q, k and v; o; the router; the head of a few tokens
    for (tokens, rows, wanted) in [
        (512, 5120, 128),
        (2048, 5120, 128),
        (512, 2048, 64),
        (2048, 2048, 128),
        (512, 128, 32),
        (64, 151_936, 64),
    ] {
        assert_eq!(dense_tile(tokens, rows / 128, 132), wanted, "{tokens} tokens, {rows} rows");
    }
    // 128 experts, 8 per token
    assert_eq!([5, 512, 1024, 2048].map(|tokens| expert_tile(tokens * 8, 128)), [64, 64, 64, 128]);
}

/// Shared memory serves eight lanes, 16 bytes each, at a time where no two of them are in the same banks.
#[test]
fn no_lanes_of_a_tile_share_banks() {
    let gpu = gpu();
    let launch = Launch { gpu: &gpu, compute: Compute::Bf16 };
    let (rows, columns, tokens) = (65, 264, 70);
    let (_x, x) = put(&gpu, Compute::Bf16, &noise(tokens * columns, 3));
    let (_w, place) = put_at(&gpu, &bytes(Dtype::BF16, &noise(rows * columns, 4)), 0);
    let (_o, out) = blank(&gpu, Compute::Bf16, tokens * rows);
    let weight = Weights { place, dtype: Dtype::BF16, rows, columns };
    for tile in [32, 64, 128] {
        launch.products_in_tiles(x, &[(weight, None, out)], Some(tile)).unwrap();
        experts_in_tiles(launch, &gpu, tile.max(64), Dtype::BF16, [136, 136, 0]);
    }
    for kernel in [
        c"gemm_mma_64",
        c"gemm_mma_128",
        c"expert_gated_mma_64",
        c"expert_gated_mma_128",
        c"expert_mma_64",
        c"expert_mma_128",
    ] {
        assert_eq!(bank_conflicts(kernel).unwrap_or(0), 0, "{kernel:?}");
    }
}

#[test]
fn embeddings_norms_and_sums_agree_with_the_reference() {
    let gpu = gpu();
    for (tokens, width) in [(1, 1), (3, 48), (2, 1025), (5, 130)] {
        for launch in launches(&gpu) {
            let (compute, ops) = (launch.compute, ScalarOps { compute: launch.compute });
            for dtype in DTYPES {
                let table = bytes(dtype, &noise(9 * width, 5));
                let (_t, place) = put_at(&gpu, &table, 2);
                let ids: Vec<u32> = (0..tokens).map(|t| u32::try_from(t * 5 % 9).unwrap()).collect();
                let (_i, ids_there) =
                    put_at(&gpu, &ids.iter().flat_map(|i| i.to_le_bytes()).collect::<Vec<_>>(), 0);
                let (_x, x) = blank(&gpu, compute, tokens * width);
                // rows of an embedding begin at a multiple of their dtype's width
                if dtype != Dtype::F32 {
                    launch.embed(Weights { place, dtype, rows: 9, columns: width }, ids_there, x).unwrap();
                    let row = width * 2;
                    let mut wanted = vec![0.0; tokens * width];
                    for (id, to) in ids.iter().zip(wanted.chunks_mut(width)) {
                        crate::ops::widen(dtype, &table[*id as usize * row..][..row], to);
                    }
                    compute.round_all(&mut wanted);
                    assert_eq!(get(&gpu, x), wanted);
                }
                let weight = noise(width, 9);
                let (_w, place) = put_at(&gpu, &bytes(dtype, &weight), 0);
                let mut widened = vec![0.0; width];
                crate::ops::widen(dtype, &bytes(dtype, &weight), &mut widened);
                let norm = Weights { place, dtype, rows: width, columns: 1 };
                let (a, b) =
                    (activations(compute, tokens * width, 1), activations(compute, tokens * width, 2));
                for added in [false, true] {
                    let (_a, x) = put(&gpu, compute, &a);
                    let (_b, more) = put(&gpu, compute, &b);
                    let (_o, out) = blank(&gpu, compute, tokens * width);
                    let added_there = added.then_some((more, x));
                    let norm = Norm { weight: norm, eps: 1e-6, added: added_there, normed: out };
                    launch.norm(x, norm).unwrap();
                    let mut sum = a.clone();
                    if added {
                        ops.add(&mut sum, &b);
                    }
                    assert_eq!(get(&gpu, x), sum);
                    ops.rms_norm(&mut sum, &widened, 1e-6);
                    assert_close(
                        compute,
                        &get(&gpu, out),
                        &sum,
                        &format!("norm of {tokens}x{width} {dtype}"),
                    );
                }
            }
            let n = tokens * width;
            let (mut a, b) = (activations(compute, n, 11), activations(compute, n, 12));
            let ((_a, x), (_b, y)) = (put(&gpu, compute, &a), put(&gpu, compute, &b));
            launch.add(x, y).unwrap();
            ops.add(&mut a, &b);
            assert_eq!(get(&gpu, x), a);
            launch.silu_mul(x, y).unwrap();
            ops.silu_mul(&mut a, &b);
            assert_close(compute, &get(&gpu, x), &a, "silu_mul");
        }
    }
}

/// The result of attention and the whole cache after it: keys, then values.
type Attended = [Vec<f32>; 3];

/// Attention of some tokens after `before` positions, with room for more: what the device gives, and the reference.
fn attended(
    launch: Launch<'_>,
    heads: Heads,
    before: usize,
    tokens: usize,
    parts: usize,
) -> (Attended, Attended) {
    let Heads { query, key_value, width } = heads;
    let (compute, ops) = (launch.compute, ScalarOps { compute: launch.compute });
    let (gpu, row, positions) = (gpu(), key_value * width, before + tokens + 5);
    let [mut q, mut k, v] = [(query, 1), (key_value, 2), (key_value, 3)]
        .map(|(n, seed)| activations(compute, tokens * n * width, seed));
    // what comes after the last position must not count
    let [mut keys, mut values] = [11, 12].map(|seed| {
        [activations(compute, before * row, seed), vec![f32::NAN; positions * row - before * row]].concat()
    });
    let [cos, sin] = [5, 6].map(|seed| noise(positions * (width / 2), seed));
    let norms = [(7, 4.0), (8, 1.0)]
        .map(|(seed, size)| noise(width, seed).iter().map(|x| x * size).collect::<Vec<_>>());
    let kept = [&q, &k, &v, &keys, &values].map(|x| put(&gpu, compute, x));
    let turned = [&cos, &sin].map(|x| put_f32(&gpu, x));
    let placed = [0, 1].map(|i: usize| put_at(&gpu, &plain(&norms[i]), 0));
    let (_p, position) = put_at(&gpu, &u32::try_from(before).unwrap().to_le_bytes(), 0);
    let norm = |i: usize| Weights { place: placed[i].1, dtype: Dtype::F32, rows: width, columns: 1 };
    let turns = Turns { q_norm: norm(0), k_norm: norm(1), cos: turned[0].1, sin: turned[1].1, eps: 1e-6 };
    let cache = Cache { keys: kept[3].1, values: kept[4].1, position };
    let (_m, partial) = blank(&gpu, Compute::F32, partial_values(tokens, heads, compute, parts, positions));
    if partial.len > 0 {
        gpu.upload_now(partial.place, &vec![0; counters(heads) * 4]).unwrap();
    }
    let attend = || {
        let (_o, out) = blank(&gpu, compute, q.len());
        launch.attend([kept[0].1, kept[1].1, kept[2].1], heads, turns, cache, (parts, partial), out).unwrap();
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

/// Cached positions before, new tokens, and parts that few tokens' positions are cut into: at the borders of parts and tiles.
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
    Heads { query: 2, key_value: 2, width: 1 },
    Heads { query: 1, key_value: 1, width: 2 },
    Heads { query: 4, key_value: 2, width: 32 },
    Heads { query: 6, key_value: 2, width: 34 },
    Heads { query: 9, key_value: 1, width: 40 },
    Heads { query: 2, key_value: 1, width: 64 },
    Heads { query: 8, key_value: 1, width: 128 },
    Heads { query: 2, key_value: 2, width: 128 },
];

#[test]
fn heads_are_normed_turned_and_cached_as_the_reference_does_it() {
    let gpu = gpu();
    let passes = [(0, 1, 1), (3, 4, 1), (62, 4, 3), (5, 7, 1)];
    for ((before, tokens, parts), heads) in passes.into_iter().flat_map(|p| SHAPES.map(|s| (p, s))) {
        for launch in launches(&gpu) {
            let (seen, wanted) = attended(launch, heads, before, tokens, parts);
            let row = heads.key_value * heads.width;
            let what = format!("{heads:?}, {before} + {tokens} positions in {parts} parts");
            for (seen, wanted) in seen[1..].iter().zip(&wanted[1..]) {
                let (seen, rest) = seen.split_at((before + tokens) * row);
                assert!(rest.iter().all(|x| x.is_nan()), "{what}: a later position is written");
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
    for (heads, (before, tokens, parts)) in SHAPES.into_iter().flat_map(|s| PASSES.map(|p| (s, p))) {
        for launch in launches(&gpu) {
            let (seen, wanted) = attended(launch, heads, before, tokens, parts);
            let what =
                format!("{heads:?}, {before} + {tokens} positions in {parts} parts, {:?}", launch.compute);
            assert_close(launch.compute, &seen[0], &wanted[0], &what);
            if launch.compute == Compute::Bf16 {
                let (same, all) = &mut equal[usize::from(tokens > FEW_TOKENS)];
                *same += seen[0].iter().zip(&wanted[0]).filter(|(a, b)| a == b).count();
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

/// Where `route` and `sort` write.
fn choice(gpu: &Arc<Gpu>, tokens: usize, experts: usize, best: usize) -> (Vec<Memory>, Choice) {
    let pairs = tokens * best;
    let sizes = [
        tokens * experts * 4,
        pairs * 4,
        pairs * 4,
        pairs * 4,
        experts * 4,
        pairs * 4,
        tiles_bytes(pairs, experts),
    ];
    let kept: Vec<Memory> = sizes.iter().map(|n| gpu.alloc(*n, "a test").unwrap()).collect();
    let [probabilities, ids, weights, order, counts, sorted, tiles] =
        [0, 1, 2, 3, 4, 5, 6].map(|i| kept[i].place());
    (kept, Choice { probabilities, ids, weights, order, counts, sorted, tiles, uses: Place::NULL })
}

/// The best experts of a row by the rule of the CPU.
fn best_of(row: &[f32], best: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..u32::try_from(row.len()).unwrap()).collect();
    ids.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
    ids.truncate(best);
    ids
}

#[test]
fn the_router_chooses_as_the_reference_does() {
    let gpu = gpu();
    for (tokens, experts, best) in [(1, 1, 1), (3, 12, 4), (2, 128, 8), (5, 33, 33), (40, 70, 3)] {
        for (launch, normalise) in launches(&gpu).flat_map(|l| [(l, false), (l, true)]) {
            let compute = launch.compute;
            let mut logits = activations(compute, tokens * experts, 3);
            if experts > 8 {
                logits[4] = 2.0; // ties
                logits[7] = 2.0;
                logits[1] = 2.0;
            }
            let (_l, there) = put(&gpu, compute, &logits);
            let (_kept, choice) = choice(&gpu, tokens, experts, best);
            let layer = Layer { table: Place::NULL, dtype: Dtype::BF16, experts, best, hidden: 1, inner: 1 };
            launch.route(there, layer, normalise, choice).unwrap();
            let values = |place, n| get_f32(&gpu, place, n);
            let probabilities = values(choice.probabilities, tokens * experts);
            let ids = get_numbers(&gpu, choice.ids, tokens * best);
            let weights = values(choice.weights, tokens * best);
            let order = get_numbers(&gpu, choice.order, tokens * best);
            for (t, p) in probabilities.chunks(experts).enumerate() {
                let mut wanted = logits[t * experts..][..experts].to_vec();
                crate::ops::softmax(&mut wanted);
                assert_close(Compute::F32, p, &wanted, "probabilities");
                let own = t * best..(t + 1) * best;
                let chosen = best_of(p, best);
                assert_eq!(ids[own.clone()], chosen, "of {p:?}");
                let sum: f32 = chosen.iter().map(|e| p[*e as usize]).sum();
                let divisor = if normalise { sum } else { 1.0 };
                let wanted: Vec<f32> =
                    chosen.iter().map(|e| compute.round(p[*e as usize] / divisor)).collect();
                assert_close(compute, &weights[own.clone()], &wanted, "weights");
                let by_id: Vec<u32> = order[own.clone()].iter().map(|pair| ids[*pair as usize]).collect();
                assert!(by_id.is_sorted() && order[own.clone()].iter().all(|i| own.contains(&(*i as usize))));
            }
        }
    }
}

#[test]
fn the_device_counts_the_passes_that_use_an_expert() {
    let gpu = gpu();
    let (experts, best) = (40, 3);
    let launch = Launch { gpu: &gpu, compute: Compute::F32 };
    let layer = Layer { table: Place::NULL, dtype: Dtype::BF16, experts, best, hidden: 1, inner: 1 };
    let (_u, uses) = put_at(&gpu, &vec![0; experts * 4], 0);
    let mut wanted = vec![0; experts];
    for tokens in [1, 3, 70, 1] {
        let (_l, logits) = put_f32(&gpu, &noise(tokens * experts, u32::try_from(tokens).unwrap()));
        let (_kept, choice) = choice(&gpu, tokens, experts, best);
        let choice = Choice { uses, ..choice };
        launch.route(logits, layer, true, choice).unwrap();
        launch.sort(tokens, layer, choice).unwrap();
        let ids: BTreeSet<u32> = get_numbers(&gpu, choice.ids, tokens * best).into_iter().collect();
        ids.iter().for_each(|id| wanted[*id as usize] += 1);
    }
    assert_eq!(get_numbers(&gpu, uses, experts), wanted);
}

#[test]
fn experts_agree_with_the_reference_and_absent_ones_are_left_out() {
    let gpu = gpu();
    for (tokens, experts, best, hidden, inner) in [
        (1, 4, 2, 48, 24),
        (3, 5, 5, 33, 7),
        (5, 3, 2, 40, 136),
        (150, 6, 3, 72, 40),
        (70, 2, 1, 20, 9),
        (2, 3, 2, 1096, 1040),
    ] {
        for (dtype, launch) in DTYPES.into_iter().flat_map(|d| launches(&gpu).map(move |l| (d, l))) {
            let (compute, ops) = (launch.compute, ScalarOps { compute: launch.compute });
            let x = activations(compute, tokens * hidden, 5);
            let (_x, x_there) = put(&gpu, compute, &x);
            let logits = noise(tokens * experts, 77);
            let (_l, logits_there) = put(&gpu, compute, &logits);
            let (mut kept, mut table, mut weights) = (Vec::new(), Vec::new(), Vec::new());
            for e in 0..u32::try_from(experts).unwrap() {
                let sizes = [inner * hidden, inner * hidden, hidden * inner];
                let matrices = [0, 1, 2].map(|i| bytes(dtype, &noise(sizes[i as usize], 100 + 3 * e + i)));
                for matrix in &matrices {
                    let (memory, place) = put_at(&gpu, matrix, 0);
                    kept.push(memory);
                    table.push(place.0);
                }
                weights.push(matrices);
            }
            let absent = experts - 1;
            let [all, but_one] = [false, true].map(|without| {
                let entry = |(i, place): (usize, &u64)| if without && i / 3 == absent { 0 } else { *place };
                let bytes: Vec<u8> = table.iter().enumerate().map(entry).flat_map(u64::to_le_bytes).collect();
                put_at(&gpu, &bytes, 0)
            });
            let (_kept, choice) = choice(&gpu, tokens, experts, best);
            let layer = Layer { table: all.1, dtype, experts, best, hidden, inner };
            launch.route(logits_there, layer, true, choice).unwrap();
            launch.sort(tokens, layer, choice).unwrap();
            let pairs = tokens * best;
            let buffers = [pairs * inner, pairs * hidden].map(|n| blank(&gpu, compute, n));
            let places = [0, 1].map(|i: usize| buffers[i].1);
            launch.experts(x_there, layer, choice, places).unwrap();
            let (_a, added) = blank(&gpu, compute, tokens * hidden);
            launch.combine(places[1], layer, choice, added).unwrap();
            let ids = get_numbers(&gpu, choice.ids, pairs);
            let factors = get_f32(&gpu, choice.weights, pairs);
            let mut wanted = vec![0.0; tokens * hidden];
            for (e, [gate, up, down]) in weights.iter().enumerate() {
                for (pair, _) in ids.iter().enumerate().filter(|(_, id)| **id as usize == e) {
                    let t = pair / best;
                    let matrix = |bytes, rows, columns| Matrix { dtype, bytes, rows, columns };
                    let (mut g, mut u, mut y) = (vec![0.0; inner], vec![0.0; inner], vec![0.0; hidden]);
                    let x = &x[t * hidden..(t + 1) * hidden];
                    ops.linear(x, matrix(gate, inner, hidden), None, &mut g);
                    ops.linear(x, matrix(up, inner, hidden), None, &mut u);
                    ops.silu_mul(&mut g, &u);
                    ops.linear(&g, matrix(down, hidden, inner), None, &mut y);
                    ops.add_scaled(&mut wanted[t * hidden..(t + 1) * hidden], &y, factors[pair]);
                }
            }
            let side = |n: usize| f32::from(u16::try_from(n).unwrap()).sqrt();
            let scale = side(hidden) * side(inner);
            let scaled = |x: Vec<f32>| x.iter().map(|x| x / scale).collect::<Vec<_>>();
            let what = format!("{tokens} tokens, {dtype}, {compute:?}");
            assert_close(compute, &scaled(get(&gpu, added)), &scaled(wanted), &what);
            // a table without one expert touches no pair of it, and the others as before
            let before = get(&gpu, places[1]);
            let (_y, y) = blank(&gpu, compute, pairs * hidden);
            let without = Layer { table: but_one.1, ..layer };
            launch.experts(x_there, without, choice, [places[0], y]).unwrap();
            let after = get(&gpu, y);
            for (pair, id) in ids.iter().enumerate() {
                let row = pair * hidden..(pair + 1) * hidden;
                if *id as usize == absent {
                    assert!(after[row].iter().all(|x| x.is_nan()), "{what}: pair {pair}");
                } else {
                    assert_eq!(after[row.clone()], before[row], "{what}: pair {pair}");
                }
            }
        }
    }
}

#[test]
fn the_lowest_id_of_the_greatest_logits_is_next() {
    let gpu = gpu();
    for n in [1, 31, 320, 5000] {
        for best in [0, n / 2, n - 1] {
            let mut logits = noise(n, 3);
            logits[best] = 7.0;
            logits[n - 1] = 7.0;
            let (_l, there) = put_f32(&gpu, &logits);
            let parts = gpu.alloc(ARGMAX_BYTES, "a test").unwrap();
            let (_i, id) = put_at(&gpu, &[0; 4], 0);
            let (_p, position) = put_at(&gpu, &41_u32.to_le_bytes(), 0);
            let (_m, logit) = put_at(&gpu, &[0; 4], 0);
            let launch = Launch { gpu: &gpu, compute: Compute::F32 };
            launch.argmax(there, parts.place(), [id, position, logit]).unwrap();
            assert_eq!(get_numbers(&gpu, id, 1), [u32::try_from(best).unwrap()]);
            assert_eq!(get_numbers(&gpu, position, 1), [42]);
            assert_eq!(get_f32(&gpu, logit, 1), [7.0]);
        }
    }
}

#[test]
fn a_logit_that_is_no_number_is_found_wherever_it_is_as_the_host_finds_it() {
    let gpu = gpu();
    let launch = Launch { gpu: &gpu, compute: Compute::F32 };
    let parts = gpu.alloc(ARGMAX_BYTES, "a test").unwrap();
    let greatest = |logits: &[f32]| {
        let (_l, there) = put_f32(&gpu, logits);
        let (_o, place) = put_at(&gpu, &[0; 12], 0);
        launch.argmax(there, parts.place(), [place, place.byte(4), place.byte(8)]).unwrap();
        let logit = get_f32(&gpu, place.byte(8), 1)[0];
        Greatest { id: get_numbers(&gpu, place, 1)[0], logit }
    };
    let mut rows = vec![vec![-1.0, -0.0, 0.0], vec![f32::NEG_INFINITY; 700], vec![f32::NEG_INFINITY, -3e38]];
    let minus_nan = f32::from_bits(0xffc0_0001);
    for (first, second) in [(0, 1), (5, 2000), (40, 3), (2999, 1500), (1024, 1023)] {
        for (a, b) in [(f32::NAN, f32::INFINITY), (f32::INFINITY, minus_nan), (minus_nan, 3e38)] {
            let mut logits = noise(3000, 3);
            (logits[first], logits[second]) = (a, b);
            rows.push(logits);
        }
    }
    for logits in rows {
        // NaN is unequal to itself: compared as it is shown
        let (seen, wanted) = (greatest(&logits).token(), Sampler::greedy().choose(&logits));
        assert_eq!(format!("{seen:?}"), format!("{wanted:?}"));
    }
}

/// A weight on the device.
fn matrix(gpu: &Arc<Gpu>, dtype: Dtype, rows: usize, columns: usize, seed: u32) -> (Memory, Weights) {
    let (memory, place) = put_at(gpu, &bytes(dtype, &noise(rows * columns, seed)), 0);
    (memory, Weights { place, dtype, rows, columns })
}

/// What a launch norms on its way is what a norm of its own gives, to the bit, and so is the sum that it leaves.
#[test]
fn products_norm_their_input_as_a_launch_of_its_own_does() {
    let gpu = gpu();
    for (tokens, columns, rows) in [(1, 1, 3), (2, 300, 17), (4, 2048, 40), (3, 2056, 9), (1, 4101, 5)] {
        for (dtype, launch) in DTYPES.into_iter().flat_map(|d| launches(&gpu).map(move |l| (d, l))) {
            let compute = launch.compute;
            let n = tokens * columns;
            let (_w, weight) = matrix(&gpu, dtype, rows, columns, 1);
            let (_v, other) = matrix(&gpu, dtype, rows + 1, columns, 2);
            let (_n, norm_weight) = matrix(&gpu, dtype, columns, 1, 3);
            let [(_x, x), (_y, y)] = [4, 5].map(|seed| put(&gpu, compute, &activations(compute, n, seed)));
            for adds in [false, true] {
                let places = || [n, n, tokens * rows, tokens * (rows + 1)].map(|n| blank(&gpu, compute, n));
                let [alone, along] = [places(), places()];
                let norm = |[sum, normed, ..]: &[(Memory, Values); 4]| Norm {
                    weight: norm_weight,
                    eps: 1e-6,
                    added: adds.then_some((y, sum.1)),
                    normed: normed.1,
                };
                let linears = |[.., a, b]: &[(Memory, Values); 4]| [(weight, None, a.1), (other, None, b.1)];
                launch.norm(x, norm(&alone)).unwrap();
                launch.products(alone[1].1, None, &linears(&alone)).unwrap();
                launch.products(x, Some(&norm(&along)), &linears(&along)).unwrap();
                for (i, (alone, along)) in alone.iter().zip(&along).enumerate() {
                    let [alone, along] = [alone, along]
                        .map(|v| get(&gpu, v.1).iter().map(|x| x.to_bits()).collect::<Vec<_>>());
                    let what = format!("{i}: {tokens}x{columns} to {rows}, {dtype}, {compute:?}, {adds}");
                    assert_eq!(alone, along, "{what}");
                }
                assert!(get(&gpu, along[3].1).iter().all(|x| !x.is_nan()));
            }
        }
    }
}

/// The router in one launch is norm, product and choice in three, again and again.
#[test]
fn a_router_in_one_launch_chooses_as_three_do() {
    let gpu = gpu();
    for (tokens, columns, experts, best) in [(1, 48, 12, 4), (4, 520, 128, 8), (2, 33, 7, 7), (3, 8, 1, 1)] {
        for (dtype, launch) in DTYPES.into_iter().flat_map(|d| launches(&gpu).map(move |l| (d, l))) {
            let compute = launch.compute;
            let (_w, weight) = matrix(&gpu, dtype, experts, columns, 1);
            let (_n, norm_weight) = matrix(&gpu, dtype, columns, 1, 3);
            let (_x, x) = put(&gpu, compute, &activations(compute, tokens * columns, 4));
            let layer = Layer { table: Place::NULL, dtype, experts, best, hidden: columns, inner: 1 };
            let (_a, arrived) = put_at(&gpu, &[0; 16], 0);
            let sizes = [tokens * columns, tokens * experts];
            let [alone, along] = [(); 2].map(|()| sizes.map(|n| blank(&gpu, compute, n)));
            let [chosen, chosen_along] = [(); 2].map(|()| choice(&gpu, tokens, experts, best));
            let norm = |normed| Norm { weight: norm_weight, eps: 1e-6, added: None, normed };
            launch.norm(x, norm(alone[0].1)).unwrap();
            launch.products(alone[0].1, None, &[(weight, None, alone[1].1)]).unwrap();
            launch.route(alone[1].1, layer, true, chosen.1).unwrap();
            for again in 0..2 {
                let linear = (weight, None, along[1].1);
                let choice = (chosen_along.1, arrived);
                launch.router(x, Some(&norm(along[0].1)), linear, layer, true, choice).unwrap();
                let of = |values: &[(Memory, Values); 2], choice: Choice| {
                    let pairs = tokens * best;
                    let mut all = vec![get(&gpu, values[0].1), get(&gpu, values[1].1)];
                    all.push(get_f32(&gpu, choice.probabilities, tokens * experts));
                    all.extend([choice.ids, choice.weights, choice.order].map(|p| get_f32(&gpu, p, pairs)));
                    all.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>()
                };
                let what = format!("{tokens}x{columns}, {best} of {experts}, {dtype}, {compute:?}, {again}");
                assert_eq!(of(&alone, chosen.1), of(&along, chosen_along.1), "{what}");
                assert_eq!(get_numbers(&gpu, arrived, 4), [0; 4], "{what}");
            }
        }
    }
}

/// Experts that are all there are computed and added up in one launch, with the bits that two give.
#[test]
fn experts_in_one_launch_add_up_as_two_do() {
    let gpu = gpu();
    for (tokens, experts, best, hidden, inner) in
        [(1, 4, 2, 48, 24), (3, 5, 5, 33, 7), (4, 9, 8, 40, 768), (2, 3, 3, 9, 1040), (1, 1, 1, 8, 8)]
    {
        for (dtype, launch) in DTYPES.into_iter().flat_map(|d| launches(&gpu).map(move |l| (d, l))) {
            let compute = launch.compute;
            let (_x, x) = put(&gpu, compute, &activations(compute, tokens * hidden, 5));
            let (_l, logits) = put(&gpu, compute, &activations(compute, tokens * experts, 77));
            let matrices: Vec<_> = (0..u32::try_from(experts * 3).unwrap())
                .map(|i| matrix(&gpu, dtype, inner, hidden, 100 + i))
                .collect();
            let table: Vec<u8> = matrices.iter().flat_map(|m| m.1.place.0.to_le_bytes()).collect();
            let (_t, table) = put_at(&gpu, &table, 0);
            let (_kept, choice) = choice(&gpu, tokens, experts, best);
            let layer = Layer { table, dtype, experts, best, hidden, inner };
            launch.route(logits, layer, true, choice).unwrap();
            let pairs = tokens * best;
            let [(_b, between), (_y, y)] = [pairs * inner, pairs * hidden].map(|n| blank(&gpu, compute, n));
            let [(_a, alone), (_l, along)] = [(); 2].map(|()| blank(&gpu, compute, tokens * hidden));
            launch.experts(x, layer, choice, [between, y]).unwrap();
            launch.combine(y, layer, choice, alone).unwrap();
            assert!(launch.all_experts(x, layer, choice, between, along).unwrap());
            let bits = |values| get(&gpu, values).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let what =
                format!("{tokens} tokens, {best} of {experts}, {hidden}x{inner}, {dtype}, {compute:?}");
            assert_eq!(bits(alone), bits(along), "{what}");
            assert!(get(&gpu, along).iter().all(|x| !x.is_nan()), "{what}");
        }
    }
}

/// Kernels whose threads hand values to each other give the same bits in whatever order the threads run.
#[test]
fn no_result_depends_on_the_order_of_lanes() {
    let gpu = gpu();
    let run = || {
        let mut all = Vec::new();
        for (launch, tile) in launches(&gpu).flat_map(|l| [32, 64, 128].map(|tile| (l, tile))) {
            // more steps than stages, and a last one that is not whole
            let (rows, columns, tokens) = (70, 344, 100);
            let (_x, x) = put(&gpu, launch.compute, &activations(launch.compute, tokens * columns, 3));
            let (_w, place) = put_at(&gpu, &bytes(Dtype::BF16, &noise(rows * columns, 4)), 0);
            let (_o, out) = blank(&gpu, launch.compute, tokens * rows);
            let weight = Weights { place, dtype: Dtype::BF16, rows, columns };
            launch.products_in_tiles(x, &[(weight, None, out)], Some(tile)).unwrap();
            all.push(get(&gpu, out));
            all.push(experts_in_tiles(launch, &gpu, tile.max(64), Dtype::BF16, [72, 264, 0]));
        }
        // several parts, and tiles enough to use every stage again
        let heads = Heads { query: 4, key_value: 2, width: 72 };
        for (launch, (before, tokens, parts)) in
            launches(&gpu).flat_map(|l| [(150, 3, 3), (150, 3, 1), (250, 37, 1)].map(|p| (l, p)))
        {
            all.push(attended(launch, heads, before, tokens, parts).0[0].clone());
        }
        for (launch, tokens) in launches(&gpu).flat_map(|l| [(l, 2), (l, 37)]) {
            let x = activations(launch.compute, tokens * 128, 3);
            let (_x, x) = put(&gpu, launch.compute, &x);
            let (_w, place) = put_at(&gpu, &bytes(Dtype::BF16, &noise(70 * 128, 4)), 0);
            let (_o, out) = blank(&gpu, launch.compute, tokens * 70);
            launch
                .products(
                    x,
                    None,
                    &[(Weights { place, dtype: Dtype::BF16, rows: 70, columns: 128 }, None, out)],
                )
                .unwrap();
            all.push(get(&gpu, out));
            let (_n, norm) = blank(&gpu, launch.compute, tokens * 128);
            let weight = Weights { place, dtype: Dtype::BF16, rows: 128, columns: 1 };
            launch.norm(x, Norm { weight, eps: 1e-6, added: None, normed: norm }).unwrap();
            all.push(get(&gpu, norm));
            let (_kept, choice) = choice(&gpu, tokens, 64, 3);
            let layer =
                Layer { table: Place::NULL, dtype: Dtype::BF16, experts: 64, best: 3, hidden: 1, inner: 1 };
            launch.route(x.part(0..tokens * 64), layer, true, choice).unwrap();
            launch.sort(tokens, layer, choice).unwrap();
            all.push(get_f32(&gpu, choice.weights, tokens * 3));
            let sorted = if tokens > 4 { get_numbers(&gpu, choice.sorted, tokens * 3) } else { Vec::new() };
            all.push(sorted.iter().map(|i| f32::from(u16::try_from(*i).unwrap())).collect());
        }
        all
    };
    let forwards = run();
    run_lanes_backwards(true);
    let backwards = run();
    run_lanes_backwards(false);
    assert_eq!(forwards, backwards);
}

#[test]
fn copies_run_beside_work_and_events_order_them() {
    let gpu = gpu();
    let launch = Launch { gpu: &gpu, compute: Compute::F32 };
    let (_x, x) = put_f32(&gpu, &[1.0; 100]);
    let (_y, y) = put_f32(&gpu, &[0.0; 100]);
    let mut host = gpu.alloc_host(400).unwrap();
    host.copy_from_slice(&plain(&[5.0; 100]));
    let copied = gpu.event().unwrap();
    // SAFETY: `host` lives, unchanged, until the download has waited for work that waits for the copy
    unsafe { gpu.upload(y.place, &host, Stream::Copies) }.unwrap();
    copied.record(Stream::Copies).unwrap();
    copied.hold(Stream::Work).unwrap();
    launch.add(x, y).unwrap();
    assert_eq!(get(&gpu, x), [6.0; 100]);
    copied.wait().unwrap();
}

#[test]
fn a_graph_runs_what_was_recorded_each_time() {
    gpu(); // the driver
    let gpu = Gpu::open(0).unwrap(); // nothing else may come into the recording
    let launch = Launch { gpu: &gpu, compute: Compute::F32 };
    let (_x, x) = put_f32(&gpu, &[1.0; 10]);
    let (_y, y) = put_f32(&gpu, &[2.0; 10]);
    gpu.begin_recording().unwrap();
    launch.add(x, y).unwrap();
    let graph = gpu.end_recording().unwrap();
    assert_eq!(get(&gpu, x), [1.0; 10], "nothing runs while it is recorded");
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(get(&gpu, x), [5.0; 10]);
}

#[test]
fn too_much_memory_is_a_clear_error() {
    let gpu = gpu();
    let free = usize::try_from(gpu.free_memory().unwrap()).unwrap();
    let refused = gpu.alloc(free.saturating_mul(2), "experts").unwrap_err().to_string();
    assert!(refused.contains("no room for") && refused.contains("(experts)"), "{refused}");
}

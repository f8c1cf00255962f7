//! Every kernel against the plain reference, at sizes that are no multiple of any tile, on every
//! instruction set that this processor has; and the promise that bits do not depend on threads or
//! batches.

use segpack_formats::io::CancelToken;
use segpack_formats::numeric::{FloatDtype, bf16};

use super::exp::exp;
use super::simd::{LANES, Line, Simd, Work};
use super::{CPU_VARIABLE, Kernels};
use crate::ops::{CpuOps, Ops, ScalarOps};
use crate::samples::{activations, bytes, noise};
use crate::tensor::{Compute, Convolution, Heads, Linear, Matrix};

fn linear(ops: &impl Ops, x: &[f32], weight: Matrix<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / weight.columns * weight.rows];
    ops.linear(x, weight, bias, &mut out);
    out
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Products as the kernels add them up: as the reference does, but for those in tile registers and
/// in blocks.
fn wanted(ops: &CpuOps, x: &[f32], weight: Matrix<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let compute = ops.compute();
    let dot = match dot_of(ops.kernels(), compute) {
        Some(dot) if weight.dtype == FloatDtype::BF16 && has_an_order(ops) => dot,
        _ => return linear(&ScalarOps { compute }, x, weight, bias),
    };
    let rows = (0..weight.rows).map(|n| {
        let mut row = vec![0.0; weight.columns];
        weight.dtype.widen(weight.row(n), &mut row);
        row
    });
    let rows: Vec<_> = rows.collect();
    let of_a_token = |x: &[f32]| -> Vec<f32> {
        let sums = rows.iter().map(|row| dot(x, row)).enumerate();
        sums.map(|(n, sum)| compute.round(sum + bias.map_or(0.0, |b| b[n])))
            .collect()
    };
    x.chunks_exact(weight.columns)
        .flat_map(of_a_token)
        .collect()
}

/// Whether products with bf16 weights have an order of additions of their own.
fn has_an_order(ops: &CpuOps) -> bool {
    match ops.compute() {
        Compute::Bf16 => ["amx", "neon-bf16"].contains(&ops.kernels().name()),
        Compute::F32 => ops.kernels().name() == "amx",
    }
}

/// A dot product in some order.
type Dot = fn(&[f32], &[f32]) -> f32;

/// How kernels add up a row of bf16 values; not for what the reference does otherwise under
/// `Compute::F32`.
fn dot_of(kernels: Kernels, compute: Compute) -> Option<Dot> {
    match (kernels.name(), compute) {
        ("amx", Compute::Bf16) => Some(in_tiles),
        ("amx", Compute::F32) => Some(in_tiles_of_pieces),
        (_, Compute::F32) => None,
        ("neon-bf16", _) => Some(in_blocks),
        _ => Some(in_pairs),
    }
}

/// A dot product in the order of all kernels but these: of every pair of columns the odd one first.
fn in_pairs(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = 0.0;
    for (a, b) in a.chunks(2).zip(b.chunks(2)) {
        for (a, b) in a.iter().zip(b).rev() {
            sum = a.mul_add(*b, sum);
        }
    }
    sum
}

/// A dot product in the order of `TDPBF16PS` (Intel SDM): of every 32 columns a chain of the even
/// ones and one of the odd ones.
fn in_tiles(a: &[f32], b: &[f32]) -> f32 {
    let chunks = a.chunks(32).zip(b.chunks(32));
    chunks.fold(0.0, |sum, (a, b)| sum + chunk_in_tiles(a, b))
}

/// The same of three pieces of each value of `a`, the smallest first.
fn in_tiles_of_pieces(a: &[f32], b: &[f32]) -> f32 {
    let chunks = a.chunks(32).zip(b.chunks(32));
    chunks.fold(0.0, |sum, (a, b)| {
        let pieces = [2, 1, 0].map(|i| a.iter().map(|x| pieces(*x)[i]).collect::<Vec<_>>());
        pieces.iter().fold(sum, |sum, a| sum + chunk_in_tiles(a, b))
    })
}

fn chunk_in_tiles(a: &[f32], b: &[f32]) -> f32 {
    let mut chains = [0.0_f32; 2];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        chains[i % 2] = a.mul_add(*b, chains[i % 2]);
    }
    chains[0] + chains[1]
}

/// An f32 value as three of 8 bits of significand each, the largest first.
fn pieces(x: f32) -> [f32; 3] {
    let cut = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
    let first = cut(x);
    let second = cut(x - first);
    [first, second, x - first - second]
}

#[test]
fn pieces_are_bf16_values_whose_sum_is_the_value() {
    for x in noise(1000, 3)
        .into_iter()
        .chain([0.0, -0.0, 1.0, f32::MAX, f32::MIN, 1e-30])
    {
        let pieces = pieces(x);
        assert!(
            pieces.iter().all(|x| bf16::round(*x) == *x),
            "{x}: {pieces:?}"
        );
        assert_eq!(pieces[2] + pieces[1] + pieces[0], x);
    }
}

/// A dot product in the order of `BFMMLA` (Arm ARM): pairs of columns, all rounded to odd.
fn in_blocks(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = 0.0;
    for (a, b) in a.chunks(2).zip(b.chunks(2)) {
        let [a, b] = [a, b].map(|pair| [upper(pair.first()), upper(pair.get(1))]);
        sum = dot_add(sum, a, b);
    }
    sum
}

/// The bits of a bf16 value, zero where there is none.
fn upper(x: Option<&f32>) -> u16 {
    let [.., low, high] = x.map_or(0, |x| x.to_bits()).to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// `BFDotAdd` of the Arm ARM, where `FPCR.EBF` is 0: the products of a pair of bf16 values with
/// another, their sum, and the sum of that and `sum`, each rounded to odd.
pub(super) fn dot_add(sum: f32, a: [u16; 2], b: [u16; 2]) -> f32 {
    let [first, second] = [0, 1].map(|i| {
        let [a, b] = [a[i], b[i]].map(|x| f64::from(no_subnormal(bf16::decode(x.to_le_bytes()))));
        // exact: 8 bits times 8 bits
        to_odd(a * b, 0.0)
    });
    let pair = add_to_odd(first, second);
    add_to_odd(sum, pair)
}

/// `FPAdd_BF16` of the Arm ARM.
fn add_to_odd(a: f32, b: f32) -> f32 {
    let [a, b] = [a, b].map(|x| f64::from(no_subnormal(x)));
    // the sum and its rounding error (Knuth, TAOCP 2, 4.2.2): exact, as nothing overflows in f64
    let sum = a + b;
    let of_b = sum - a;
    let error = (a - (sum - of_b)) + (b - of_b);
    to_odd(sum, error)
}

/// `BFRound` of the Arm ARM, of `sum + error`, where `sum` is the nearest f64: cut off, with a last
/// bit of 1 where something was cut off; zero below 2⁻¹²⁶, infinity from 2¹²⁸ on.
#[expect(clippy::cast_possible_truncation, reason = "exact, or infinity")]
fn to_odd(sum: f64, error: f64) -> f32 {
    const CUT_OFF: u64 = (1 << 29) - 1;
    let mut bits = sum.to_bits();
    // the f64 that is odd of the two around the exact sum
    if sum.is_finite() && error != 0.0 && bits.is_multiple_of(2) {
        let away_from_zero = (error > 0.0) == (sum > 0.0);
        bits = if away_from_zero { bits + 1 } else { bits - 1 };
    }
    let odd = f64::from_bits(bits);
    if odd.abs() < f64::from(f32::MIN_POSITIVE) {
        return 0.0_f32.copysign(odd as f32);
    }
    let last = u64::from(bits & CUT_OFF != 0) << 29;
    f64::from_bits(bits & !CUT_OFF | last) as f32
}

/// Zero of the same sign where the value is subnormal.
fn no_subnormal(x: f32) -> f32 {
    if x.is_subnormal() {
        0.0_f32.copysign(x)
    } else {
        x
    }
}

#[test]
fn sums_that_are_rounded_to_odd() {
    let [one, above, tiny] = [1.0, 1.0 + f32::EPSILON, f32::EPSILON / 4.0];
    assert_eq!(add_to_odd(one, tiny), above, "cut off, and odd");
    assert_eq!(add_to_odd(above, tiny), above, "odd already");
    assert_eq!(add_to_odd(one, -tiny), 1.0 - f32::EPSILON / 2.0);
    assert_eq!(add_to_odd(-one, -1e-30), -above);
    assert_eq!(add_to_odd(1.0, 2.0), 3.0);
    assert_eq!(add_to_odd(f32::MAX, f32::MAX), f32::INFINITY);
    assert_eq!(add_to_odd(f32::MAX, 1.0), f32::MAX);
    let least = f32::MIN_POSITIVE;
    assert_eq!(add_to_odd(least * 1.5, -least), 0.0);
    assert_eq!(add_to_odd(least * 2.0, -least), least);
    assert!(add_to_odd(f32::INFINITY, f32::NEG_INFINITY).is_nan());
    let [half, three] = [0x3f00, 0x4040];
    assert_eq!(dot_add(2.0, [half, three], [three, three]), 12.5);
    assert_eq!(dot_add(2.0, [1, three], [three, three]), 11.0);
}

/// Every instruction set at both precisions.
fn all() -> impl Iterator<Item = CpuOps> {
    Kernels::all().into_iter().flat_map(|kernels| {
        [Compute::F32, Compute::Bf16].map(|compute| CpuOps::with_kernels(compute, kernels))
    })
}

fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap()
        .install(work)
}

#[test]
fn products_agree_with_the_reference_at_odd_sizes() {
    let sizes = [
        (1, 1, 1),
        (1, 2, 2),
        (2, 31, 1),
        (15, 32, 3),
        (16, 33, 5),
        (17, 63, 7),
        (31, 64, 12),
        (32, 65, 13),
        (33, 129, 1),
        (40, 511, 4),
        (47, 512, 6),
        (5, 513, 25),
        (64, 545, 2),
        (65, 1024, 1),
        (97, 1061, 11),
        (130, 1600, 1),
        (3, 7, 600),
    ];
    for (rows, columns, tokens) in sizes {
        for dtype in [FloatDtype::BF16, FloatDtype::F16, FloatDtype::F32] {
            let weight = bytes(dtype, &noise(rows * columns, 7));
            let weight = Matrix {
                dtype,
                bytes: &weight,
                rows,
                columns,
            };
            for ops in all() {
                let compute = ops.compute();
                let x = activations(compute, tokens * columns, 11);
                let bias = noise(rows, 13);
                for bias in [None, Some(&bias[..])] {
                    let wanted = wanted(&ops, &x, weight, bias);
                    let seen = linear(&ops, &x, weight, bias);
                    // exact where products are exact, or fused as the reference does it
                    let exact = compute == Compute::Bf16
                        && (dtype != FloatDtype::F32 || ops.kernels().name() != "portable");
                    let tolerance = if exact {
                        0.0
                    } else {
                        2e-5 * (1.0 + worst(&wanted, &vec![0.0; wanted.len()]))
                    };
                    let tolerance = if compute == Compute::Bf16 && !exact {
                        0.3
                    } else {
                        tolerance
                    };
                    let worst = worst(&seen, &wanted);
                    assert!(
                        worst <= tolerance,
                        "{ops:?} {dtype} {rows}x{columns}, {tokens} tokens: {worst}"
                    );
                }
            }
        }
    }
}

/// Whatever the order of additions and whatever activations are cut into: under f32 a sum is as near to
/// the exact one as that of a single chain of fused multiply-adds.
#[test]
fn products_under_f32_are_as_exact_as_a_chain_of_multiply_adds() {
    let (rows, columns, tokens) = (64, 2048, 24);
    let weight = bytes(FloatDtype::BF16, &noise(rows * columns, 7));
    let weight = Matrix {
        bytes: &weight,
        ..of(rows, columns)
    };
    let x = activations(Compute::F32, tokens * columns, 11);
    let mut wide = vec![0.0; rows * columns];
    FloatDtype::BF16.widen(weight.bytes, &mut wide);
    let exact = |i: usize| -> f64 {
        let x = &x[i / rows * columns..][..columns];
        let row = &wide[i % rows * columns..][..columns];
        let products = x
            .iter()
            .zip(row)
            .map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    let exact: Vec<f64> = (0..rows * tokens).map(exact).collect();
    let error = |seen: &[f32]| -> f64 {
        let squares = seen
            .iter()
            .zip(&exact)
            .map(|(a, b)| (f64::from(*a) - b).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let one_chain = error(&linear(&ScalarOps::default(), &x, weight, None));
    for kernels in Kernels::all() {
        // without fused multiply-add every product is rounded, too
        if kernels.name() == "portable" && !cfg!(target_arch = "aarch64") {
            continue;
        }
        let ops = CpuOps::with_kernels(Compute::F32, kernels);
        let seen = error(&linear(&ops, &x, weight, None));
        assert!(
            seen <= one_chain,
            "{kernels:?}: {seen:e}, one chain: {one_chain:e}"
        );
    }
}

/// Rounding a result to bf16 hides most of what is wrong with a sum: here the bias takes away the sum
/// that is wanted, so that nothing is left.
#[test]
fn sums_of_bf16_products_are_those_wanted_to_the_bit() {
    let [rows, many] = [37, 40];
    let not_a_number = bytes(FloatDtype::BF16, &vec![f32::NAN; rows * 512]);
    let not_a_number = Matrix {
        bytes: &not_a_number,
        ..of(rows, 512)
    };
    for columns in [1, 2, 30, 33, 64, 250, 259, 512, 771] {
        let values = noise(rows * columns, 7);
        let weight = bytes(FloatDtype::BF16, &values);
        let weight = Matrix {
            bytes: &weight,
            ..of(rows, columns)
        };
        let mut wide = values;
        FloatDtype::BF16.widen(weight.bytes, &mut wide);
        for ops in all() {
            let kernels = ops.kernels();
            let dot = match dot_of(kernels, ops.compute()) {
                // without fused multiply-add there is no such promise
                Some(_) if kernels.name() == "portable" && !cfg!(target_arch = "aarch64") => {
                    continue;
                }
                Some(dot) => dot,
                None => continue,
            };
            let x = activations(ops.compute(), columns, 11);
            let bias: Vec<f32> = wide.chunks(columns).map(|row| -dot(&x, row)).collect();
            for tokens in (1..=many).chain([130]) {
                // nothing that was left in scratch memory may count
                linear(&ops, &vec![1.0; 512 * tokens], not_a_number, None);
                let left = linear(&ops, &x.repeat(tokens), weight, Some(&bias));
                let wrong = left.iter().position(|x| *x != 0.0);
                assert_eq!(wrong, None, "{ops:?} {columns} columns, {tokens} tokens");
            }
        }
    }
}

/// A convolution is a product with rows that have the inputs of all taps side by side, to the bit: in
/// tiles where a chunk of columns is of one tap, else in vectors.
#[test]
fn a_convolution_has_the_bits_of_a_product() {
    // channels that are whole chunks of a tile, and others; more tokens than one task takes
    for (channels, kernel, dilation, rows, tokens) in [
        (32, 1, 1, 5, 1),
        (32, 7, 3, 40, 33),
        (96, 2, 1, 67, 17),
        (64, 3, 9, 33, 16),
        (40, 3, 2, 21, 45),
        (64, 7, 1, 32, 1041),
    ] {
        let columns = kernel * channels;
        let weight = bytes(FloatDtype::BF16, &noise(rows * columns, 7));
        let weight = Matrix {
            bytes: &weight,
            ..of(rows, columns)
        };
        let bias = noise(rows, 13);
        for ops in all() {
            let history = (kernel - 1) * dilation;
            let x = activations(ops.compute(), (history + tokens) * channels, 11);
            let side_by_side: Vec<f32> = (0..tokens)
                .flat_map(|t| (0..kernel).map(move |tap| t + tap * dilation))
                .flat_map(|row| x[row * channels..][..channels].to_vec())
                .collect();
            let vectors = match ops.kernels().name() {
                "amx" if ops.compute() == Compute::F32 && channels % 32 == 0 => "amx",
                "amx" => "avx512",
                "neon-bf16" => "neon",
                name => name,
            };
            let vectors = CpuOps::with_kernels(ops.compute(), Kernels::named(vectors).unwrap());
            let product = linear(&vectors, &side_by_side, weight, Some(&bias));
            for before in [0, history] {
                for adds in [false, true] {
                    let (before, x) = x.split_at(before * channels);
                    let mut out = vec![1.0; tokens * rows];
                    let convolution = Convolution {
                        before,
                        x,
                        snake: None,
                        channels,
                        dilation,
                        weight,
                        bias: Some(&bias),
                        out: &mut out,
                        adds,
                    };
                    ops.convolve_until(convolution, &CancelToken::default())
                        .unwrap();
                    let wanted = product.iter().map(|x| match adds {
                        true => ops.compute().round(1.0 + x),
                        false => *x,
                    });
                    let wanted: Vec<f32> = wanted.collect();
                    assert_eq!(
                        bits(&out),
                        bits(&wanted),
                        "{ops:?} {channels} {kernel} {dilation}"
                    );
                }
            }
        }
    }
}

fn of(rows: usize, columns: usize) -> Matrix<'static> {
    Matrix {
        dtype: FloatDtype::BF16,
        bytes: &[],
        rows,
        columns,
    }
}

#[test]
fn products_without_rows_columns_or_tokens() {
    for ops in all() {
        ops.linears(&mut []);
        ops.linear(&[], of(0, 3), None, &mut []);
        ops.linear(&[1.0; 6], of(0, 3), None, &mut []);
        let mut out = [f32::NAN; 4];
        ops.linear(&[], of(2, 0), Some(&[1.0, 2.0]), &mut out);
        assert_eq!(out, [1.0, 2.0, 1.0, 2.0]);
        ops.linear(&[], of(2, 0), None, &mut out);
        assert_eq!(out, [0.0; 4]);
        let weight = [0; 12];
        ops.linear(
            &[],
            Matrix {
                bytes: &weight,
                ..of(2, 3)
            },
            None,
            &mut [],
        );
    }
}

#[test]
fn a_product_has_the_same_bits_in_any_batch_on_any_number_of_threads() {
    // more than a block of columns, and a few; more tokens than any kernel for few takes
    let (rows, columns) = (67, 2149);
    for dtype in [FloatDtype::BF16, FloatDtype::F16, FloatDtype::F32] {
        let bytes = bytes(dtype, &noise(rows * columns, 3));
        let weight = Matrix {
            dtype,
            bytes: &bytes,
            rows,
            columns,
        };
        for ops in all() {
            let x = activations(ops.compute(), 61 * columns, 5);
            let bias = noise(rows, 17);
            let one_by_one: Vec<f32> = x
                .chunks(columns)
                .flat_map(|x| linear(&ops, x, weight, Some(&bias)))
                .collect();
            for (threads, tokens) in [(1, 61), (2, 48), (2, 29), (4, 13), (2, 8), (1, 5), (3, 2)] {
                let seen = on_threads(threads, || {
                    let parts = x.chunks(tokens * columns);
                    parts
                        .flat_map(|x| linear(&ops, x, weight, Some(&bias)))
                        .collect::<Vec<_>>()
                });
                assert_eq!(
                    bits(&seen),
                    bits(&one_by_one),
                    "{ops:?} {dtype}, {tokens} at a time"
                );
            }
        }
    }
}

#[test]
fn products_of_one_call_do_not_touch_each_other() {
    let sizes = [
        (40, 96, 1),
        (40, 96, 9),
        (33, 96, 9),
        (7, 2048, 600),
        (128, 32, 1),
        (16, 3, 2),
        (64, 2048, 1000),
    ];
    let weights: Vec<Vec<u8>> = sizes
        .iter()
        .map(|(rows, columns, _)| bytes(FloatDtype::BF16, &noise(rows * columns, 23)))
        .collect();
    for ops in all() {
        let x = activations(ops.compute(), 2048 * 1000, 29);
        let matrix = |i: usize| {
            let (rows, columns, _) = sizes[i];
            Matrix {
                dtype: FloatDtype::BF16,
                bytes: &weights[i],
                rows,
                columns,
            }
        };
        let mut outs: Vec<Vec<f32>> = sizes
            .iter()
            .map(|(rows, _, tokens)| vec![f32::NAN; rows * tokens])
            .collect();
        let mut batch: Vec<Linear<'_>> = outs
            .iter_mut()
            .enumerate()
            .map(|(i, out)| Linear {
                x: &x[..sizes[i].1 * sizes[i].2],
                weight: matrix(i),
                bias: None,
                out,
            })
            .collect();
        on_threads(3, || ops.linears(&mut batch));
        for (i, out) in outs.iter().enumerate() {
            let alone = linear(&ops, &x[..sizes[i].1 * sizes[i].2], matrix(i), None);
            assert_eq!(bits(out), bits(&alone), "{ops:?} product {i}");
        }
    }
}

#[test]
fn weights_may_lie_at_any_even_address() {
    let (rows, columns) = (35, 200);
    let even = bytes(FloatDtype::BF16, &noise(rows * columns, 41));
    for ops in all() {
        let x = activations(ops.compute(), 3 * columns, 43);
        let wanted = linear(
            &ops,
            &x,
            Matrix {
                dtype: FloatDtype::BF16,
                bytes: &even,
                rows,
                columns,
            },
            None,
        );
        for shift in [1, 2, 6, 62] {
            let moved = [vec![0xff; shift], even.clone()].concat();
            let weight = Matrix {
                dtype: FloatDtype::BF16,
                bytes: &moved[shift..],
                rows,
                columns,
            };
            for (x, wanted) in x.chunks(columns).zip(wanted.chunks(rows)) {
                assert_eq!(
                    linear(&ops, x, weight, None),
                    wanted,
                    "{ops:?} shifted by {shift}"
                );
            }
            assert_eq!(
                linear(&ops, &x, weight, None),
                wanted,
                "{ops:?} shifted by {shift}"
            );
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    let (rows, columns) = (40, 70);
    let mut values = noise(rows * columns, 1);
    values[3 * columns + 5] = f32::NAN;
    values[20 * columns + 69] = f32::INFINITY;
    let weight = bytes(FloatDtype::BF16, &values);
    let weight = Matrix {
        dtype: FloatDtype::BF16,
        bytes: &weight,
        rows,
        columns,
    };
    for ops in all() {
        let mut x = activations(ops.compute(), 4 * columns, 2);
        x[2 * columns + 7] = f32::NAN;
        let wanted = linear(
            &ScalarOps {
                compute: ops.compute(),
            },
            &x,
            weight,
            None,
        );
        let together = linear(&ops, &x, weight, None);
        let alone: Vec<f32> = x
            .chunks(columns)
            .flat_map(|x| linear(&ops, x, weight, None))
            .collect();
        for seen in [together, alone] {
            for (i, (seen, wanted)) in seen.iter().zip(&wanted).enumerate() {
                assert_eq!(seen.is_nan(), wanted.is_nan(), "{ops:?} {i}");
                assert!(
                    seen.is_nan() || *seen == *wanted || (seen - wanted).abs() < 1e-4,
                    "{ops:?} {i}"
                );
            }
        }
    }
}

fn attend(ops: &impl Ops, q: &[f32], keys: &[f32], values: &[f32], heads: Heads) -> Vec<f32> {
    let mut out = vec![f32::NAN; q.len()];
    ops.attention(q, keys, values, heads, &mut out);
    out
}

#[test]
fn attention_agrees_with_the_reference_at_odd_sizes() {
    let sizes = [
        ((1, 1, 1), 1, 1),
        ((6, 2, 10), 3, 7),
        ((4, 4, 16), 5, 64),
        ((8, 1, 33), 17, 65),
        ((14, 1, 40), 2, 130),
        ((26, 2, 20), 40, 150),
        ((32, 4, 128), 3, 200),
        ((3, 1, 128), 70, 70),
    ];
    for ((query, key_value, width), tokens, positions) in sizes {
        let heads = Heads {
            query,
            key_value,
            width,
        };
        for ops in all() {
            let compute = ops.compute();
            let q: Vec<f32> = noise(tokens * query * width, 1)
                .iter()
                .map(|x| compute.round(x * 4.0))
                .collect();
            let keys = activations(compute, positions * key_value * width, 2);
            let values = activations(compute, positions * key_value * width, 3);
            let wanted = attend(&ScalarOps { compute }, &q, &keys, &values, heads);
            let seen = attend(&ops, &q, &keys, &values, heads);
            let worst = worst(&seen, &wanted);
            // under bf16 a last bit of a probability may be rounded the other way
            let tolerance = if compute == Compute::F32 { 3e-6 } else { 0.008 };
            assert!(
                worst <= tolerance,
                "{ops:?} {heads:?} {tokens} of {positions}: {worst}"
            );
        }
    }
}

#[test]
fn attention_has_the_same_bits_in_any_batch_on_any_number_of_threads() {
    let heads = Heads {
        query: 16,
        key_value: 2,
        width: 24,
    };
    let (tokens, positions) = (90, 200);
    for ops in all() {
        let q = activations(ops.compute(), tokens * 16 * 24, 1);
        let (keys, values) = (
            activations(ops.compute(), positions * 2 * 24, 2),
            activations(ops.compute(), positions * 2 * 24, 3),
        );
        let in_batches = |batch: usize| -> Vec<f32> {
            let part = |(i, q): (usize, &[f32])| {
                let end = (positions - tokens + i * batch + q.len() / (16 * 24)) * 2 * 24;
                attend(&ops, q, &keys[..end], &values[..end], heads)
            };
            q.chunks(batch * 16 * 24)
                .enumerate()
                .flat_map(part)
                .collect()
        };
        let wanted = in_batches(1);
        for (threads, batch) in [(1, 90), (2, 90), (4, 7), (2, 64), (3, 33)] {
            let seen = on_threads(threads, || in_batches(batch));
            assert_eq!(
                bits(&seen),
                bits(&wanted),
                "{ops:?}, {batch} at a time, {threads} threads"
            );
        }
    }
}

#[test]
fn attention_of_scores_that_are_not_finite() {
    let heads = Heads {
        query: 2,
        key_value: 1,
        width: 4,
    };
    for kernels in Kernels::all() {
        let ops = CpuOps::with_kernels(Compute::F32, kernels);
        let mut keys = noise(70 * 4, 1);
        let values = noise(70 * 4, 2);
        let q = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0];
        keys[..256].fill(f32::NEG_INFINITY); // a whole block without a score
        let wanted = attend(&ScalarOps::default(), &q, &keys, &values, heads);
        assert!(
            worst(&attend(&ops, &q, &keys, &values, heads), &wanted) < 1e-6,
            "{kernels:?}"
        );
        keys.fill(f32::NEG_INFINITY);
        assert!(
            attend(&ops, &q, &keys, &values, heads)
                .iter()
                .all(|x| x.is_nan()),
            "{kernels:?}"
        );
        keys[277] = f32::NAN;
        assert!(
            attend(&ops, &q, &keys, &values, heads)
                .iter()
                .all(|x| x.is_nan()),
            "{kernels:?}"
        );
    }
}

/// The same value, or one within so much of it.
fn is_close(a: f32, b: f32, tolerance: f32) -> bool {
    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * b.abs().max(1e-3)
}

/// The result of `make` in the reference, and on every instruction set.
fn compare(tolerance: f32, what: &str, make: impl Fn(&dyn Ops) -> Vec<f32>) {
    for ops in all() {
        let wanted = make(&ScalarOps {
            compute: ops.compute(),
        });
        let seen = make(&ops);
        // bf16 has 8 bits: a last bit that was rounded the other way
        let tolerance = match ops.compute() {
            Compute::Bf16 => 1.0 / 128.0,
            Compute::F32 => tolerance,
        };
        let bad = seen
            .iter()
            .zip(&wanted)
            .position(|(a, b)| !is_close(*a, *b, tolerance));
        assert_eq!(
            bad,
            None,
            "{what} {ops:?}: {:?} for {:?}",
            bad.map(|i| seen[i]),
            bad.map(|i| wanted[i])
        );
    }
}

#[test]
fn rows_and_values_agree_with_the_reference() {
    for length in [1, 2, 15, 16, 17, 63, 64, 65, 130, 2048, 20_000] {
        compare(1e-5, "rms_norm", |ops| {
            let mut x = activations(ops.compute(), 3 * length, 1);
            ops.rms_norm(&mut x, &activations(ops.compute(), length, 2), 1e-6);
            x
        });
        compare(1e-6, "silu_mul", |ops| {
            let mut gate: Vec<f32> = noise(length, 3)
                .iter()
                .map(|x| ops.compute().round(x * 30.0))
                .collect();
            ops.silu_mul(&mut gate, &activations(ops.compute(), length, 4));
            gate
        });
        compare(1e-5, "softmax", |ops| {
            let mut rows: Vec<f32> = noise(2 * length, 5).iter().map(|x| x * 20.0).collect();
            ops.softmax(&mut rows, length);
            rows
        });
        compare(0.0, "add", |ops| {
            let mut to = activations(ops.compute(), length, 6);
            ops.add(&mut to, &activations(ops.compute(), length, 7));
            ops.add_scaled(&mut to, &activations(ops.compute(), length, 8), 0.3);
            to
        });
    }
    for (tokens, heads, width) in [(1, 1, 2), (3, 5, 10), (40, 4, 128), (2, 1, 36)] {
        compare(0.0, "rope", |ops| {
            let mut x = activations(ops.compute(), tokens * heads * width, 9);
            let angles = noise(tokens * width / 2, 10);
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles
                .iter()
                .map(|a| (ops.compute().round(a.cos()), ops.compute().round(a.sin())))
                .unzip();
            ops.rope(&mut x, &cos, &sin, width);
            x
        });
    }
}

#[test]
fn silu_and_softmax_at_the_edges() {
    let edges = [
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1e30,
        -1e30,
        88.9,
        -88.9,
        -104.5,
        f32::MIN_POSITIVE,
    ];
    compare(1e-6, "silu_mul", |ops| {
        let mut gate = edges.to_vec();
        ops.silu_mul(&mut gate, &[1.0; 11]);
        gate
    });
    for row in [
        vec![f32::NEG_INFINITY; 20],
        vec![f32::INFINITY, 0.0, 1.0],
        vec![f32::NAN, 0.0, 1.0],
        [vec![0.0; 17], vec![f32::NEG_INFINITY]].concat(),
        vec![3e38, -3e38, 0.0],
    ] {
        compare(1e-6, "softmax", |ops| {
            let mut row = row.clone();
            let width = row.len();
            ops.softmax(&mut row, width);
            row
        });
    }
}

/// `exp` of some values.
struct Exp<'a>(&'a mut [f32]);

impl Work for Exp<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.0.as_chunks_mut::<LANES>().0 {
            s.store(exp(s, s.load(x)), x);
        }
    }
}

#[test]
fn exp_is_within_two_ulp() {
    // every 997th float of [-104, 89]
    let values: Vec<f32> = (0..u32::MAX / 997)
        .map(|i| f32::from_bits(i * 997))
        .filter(|x| (-104.0..89.0).contains(x))
        .collect();
    let values = values.as_chunks::<LANES>().0.as_flattened();
    assert!(values.len() > 1_000_000);
    for kernels in Kernels::all() {
        let mut seen = values.to_vec();
        kernels.run(Exp(&mut seen));
        for (x, seen) in values.iter().zip(&seen) {
            let exact = f64::from(*x).exp();
            #[expect(clippy::cast_possible_truncation, reason = "the nearest f32")]
            let wanted = exact as f32;
            let ulp = f64::from(f32::from_bits(wanted.to_bits() + 1)) - f64::from(wanted);
            let right = *seen == wanted || (f64::from(*seen) - exact).abs() <= 2.0 * ulp;
            assert!(right, "{kernels:?}: exp({x}) is {seen}, wanted {wanted}");
        }
        let mut edges = Line([f32::NEG_INFINITY; LANES]).0;
        edges[1..6].copy_from_slice(&[f32::INFINITY, f32::NAN, -1e30, 0.0, 88.722_84]);
        kernels.run(Exp(&mut edges));
        assert_eq!(edges[..2], [0.0, f32::INFINITY], "{kernels:?}");
        assert!(edges[2].is_nan(), "{kernels:?}");
        assert_eq!(edges[3..5], [0.0, 1.0], "{kernels:?}");
        assert!(edges[5].is_infinite() || edges[5] > 3.402e38, "{kernels:?}");
    }
}

#[test]
fn all_sets_with_fused_multiply_add_give_the_same_bits() {
    let fused: Vec<Kernels> = Kernels::all()
        .into_iter()
        .filter(|k| k.name() != "portable" || cfg!(target_arch = "aarch64"))
        .collect();
    let weight = bytes(FloatDtype::BF16, &noise(70 * 700, 1));
    let weight = Matrix {
        dtype: FloatDtype::BF16,
        bytes: &weight,
        rows: 70,
        columns: 700,
    };
    let heads = Heads {
        query: 8,
        key_value: 2,
        width: 20,
    };
    for compute in [Compute::F32, Compute::Bf16] {
        // tiles and blocks have an order of their own
        let sets = fused
            .iter()
            .map(|kernels| CpuOps::with_kernels(compute, *kernels));
        let results = sets.filter(|ops| !has_an_order(ops)).map(|ops| {
            let mut out = linear(&ops, &activations(compute, 700, 2), weight, None);
            out.extend(linear(
                &ops,
                &activations(compute, 15 * 700, 2),
                weight,
                None,
            ));
            let keys = activations(compute, 100 * 40, 3);
            out.extend(attend(
                &ops,
                &activations(compute, 30 * 160, 4),
                &keys,
                &keys,
                heads,
            ));
            ops.softmax(&mut out, 100);
            bits(&out)
        });
        let results: Vec<_> = results.collect();
        assert!(
            results.windows(2).all(|pair| pair[0] == pair[1]),
            "{compute:?}"
        );
    }
}

/// What instructions for bf16 do with values that are too small for their exponent; the sums of other
/// kernels keep them.
#[test]
fn instructions_for_bf16_take_subnormal_values_for_zero() {
    let bytes = bytes(FloatDtype::BF16, &[f32::from_bits(1 << 22), 1.0]);
    let weight = Matrix {
        dtype: FloatDtype::BF16,
        bytes: &bytes,
        rows: 1,
        columns: 2,
    };
    for ops in all() {
        let subnormal = linear(&ops, &[1.0, 0.0], weight, None)[0];
        let of_bf16: &[_] = match ops.compute() {
            Compute::Bf16 => &["avx512-bf16", "amx", "neon-bf16"],
            Compute::F32 => &["amx"],
        };
        let of_bf16 = of_bf16.contains(&ops.kernels().name());
        assert_eq!(subnormal == 0.0, of_bf16, "{ops:?}: {subnormal:e}");
        assert_eq!(linear(&ops, &[0.0, 3.0], weight, None), [3.0]);
    }
}

#[test]
fn kernels_are_chosen_by_name() {
    for kernels in Kernels::all() {
        assert_eq!(Kernels::named(kernels.name()), Ok(kernels));
    }
    let error = Kernels::named("sse9").unwrap_err().to_string();
    assert!(
        error.contains(CPU_VARIABLE) && error.contains("\"sse9\"") && error.contains("portable"),
        "{error}"
    );
    assert_eq!(Kernels::all().last(), Some(&Kernels::detect()));
}

#[test]
fn rows_are_gathered_and_added_in_order_at_any_size() {
    for (tokens, visits, width) in [(1, 3, 8), (9, 40, 7), (64, 500, 96), (3, 0, 5)] {
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let to: Vec<(usize, f32)> = (0..visits)
            .map(|i| (i * 7 % tokens, 0.25 + i as f32))
            .collect();
        let (x, y) = (noise(tokens * width, 1), noise(visits * width, 2));
        for compute in [Compute::F32, Compute::Bf16] {
            let scalar = ScalarOps { compute };
            let cpu = CpuOps::with_kernels(compute, Kernels::named("portable").unwrap());
            let (mut wanted, mut seen) = (vec![0.0; y.len()], vec![0.0; y.len()]);
            scalar.gather(&x, width, &to, &mut wanted);
            cpu.gather(&x, width, &to, &mut seen);
            assert_eq!(seen, wanted);
            let (mut wanted, mut seen) = (x.clone(), x.clone());
            scalar.scatter_add(&y, width, &to, &mut wanted);
            cpu.scatter_add(&y, width, &to, &mut seen);
            assert_eq!(seen, wanted, "{tokens} {visits} {width}");
        }
    }
}

#[test]
fn attention_within_segments_agrees_with_the_reference() {
    for (heads, width) in [(1, 1), (3, 18), (2, 64), (5, 72)] {
        for segments in [
            &[0, 1][..],
            &[0, 5, 5, 70],
            &[0, 104, 208, 250],
            &[0, 17, 300, 301],
        ] {
            let tokens = segments[segments.len() - 1];
            let shape = Heads {
                query: heads,
                key_value: heads,
                width,
            };
            for ops in all() {
                let compute = ops.compute();
                let [q, k, v] =
                    [3, 5, 7].map(|seed| activations(compute, tokens * heads * width, seed));
                let run = |ops: &dyn Ops| {
                    let mut out = vec![f32::NAN; q.len()];
                    ops.attention_within([&q, &k, &v], shape, segments, &mut out);
                    out
                };
                let (seen, wanted) = (run(&ops), run(&ScalarOps { compute }));
                let tolerance = if compute == Compute::Bf16 { 2e-2 } else { 2e-6 };
                let worst = worst(&seen, &wanted);
                assert!(
                    worst <= tolerance,
                    "{ops:?} {heads} x {width} {segments:?}: {worst}"
                );
                // the same bits on any number of threads
                assert_eq!(bits(&seen), bits(&on_threads(3, || run(&ops))));
            }
        }
    }
}

#[test]
fn a_token_of_a_segment_does_not_depend_on_others_than_its_own() {
    let shape = Heads {
        query: 2,
        key_value: 2,
        width: 24,
    };
    for ops in all() {
        let x = activations(ops.compute(), 200 * 48, 3);
        let run = |x: &[f32], segments: &[usize]| {
            let mut out = vec![0.0; x.len()];
            ops.attention_within([x, x, x], shape, segments, &mut out);
            bits(&out)
        };
        let all = run(&x, &[0, 7, 130, 200]);
        assert_eq!(all[7 * 48..130 * 48], run(&x[7 * 48..130 * 48], &[0, 123]));
        assert_ne!(all, run(&x, &[0, 130, 200]));
    }
}

#[test]
fn layer_norms_and_gelus_agree_with_the_reference() {
    for ops in all() {
        let compute = ops.compute();
        let scalar = ScalarOps { compute };
        for width in [1, 5, 32, 1152, 1280] {
            let x = activations(compute, width * 40, 3);
            let (weight, bias) = (noise(width, 5), noise(width, 7));
            let norm = |ops: &dyn Ops| {
                let mut x = x.clone();
                ops.layer_norm(&mut x, &weight, &bias, 1e-6);
                x
            };
            let tolerance = if compute == Compute::Bf16 { 2e-2 } else { 3e-5 };
            let worst = worst(&norm(&ops), &norm(&scalar));
            assert!(worst <= tolerance, "{ops:?} {width}: {worst}");
        }
        let x: Vec<f32> = (-900..=900_i16).map(|i| f32::from(i) / 100.0).collect();
        let apply = |ops: &dyn Ops, gelu: fn(&dyn Ops, &mut [f32])| {
            let mut x = x.clone();
            gelu(ops, &mut x);
            x
        };
        let tolerance = if compute == Compute::Bf16 { 4e-2 } else { 6e-7 };
        let exact: fn(&dyn Ops, &mut [f32]) = |ops, x| ops.gelu(x);
        let tanh: fn(&dyn Ops, &mut [f32]) = |ops, x| ops.gelu_tanh(x);
        for gelu in [exact, tanh] {
            let worst = worst(&apply(&ops, gelu), &apply(&scalar, gelu));
            assert!(worst <= tolerance, "{ops:?}: {worst}");
        }
        let mut odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30];
        ops.gelu(&mut odd);
        assert!(odd[0].is_nan() && odd[1] == f32::INFINITY && odd[3] > 9e29);
        assert!(odd[2].abs() < 1e-6 && odd[4].abs() < 1e-6, "{odd:?}");
    }
}

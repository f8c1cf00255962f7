//! Against ggml's own quantizers: `tests/tools/make_ggml_blocks.py` recorded what they make.

use std::fs;
use std::path::Path;

use super::*;
use crate::codec::samples::{every_sort, weights};

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/ggml");
    fs::read(folder.join(name)).unwrap()
}

/// What ggml made of the values of the fixture.
fn recorded(kind: BlockType) -> Vec<u8> {
    fixture(&kind.to_string().to_lowercase())
}

fn values() -> (Vec<u8>, Vec<f32>) {
    let bytes = fixture("values.bf16");
    let mut wide = vec![0.0; bytes.len() / 2];
    FloatDtype::BF16.widen(&bytes, &mut wide);
    (bytes, wide)
}

fn quantized(kind: BlockType, dtype: FloatDtype, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    kind.quantize(dtype, bytes, &mut out).unwrap();
    out
}

fn dequantized(kind: BlockType, blocks: &[u8]) -> Vec<f32> {
    let mut out = Vec::new();
    kind.dequantize(blocks, &mut out);
    out
}

/// Root mean square difference.
fn rmse(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

#[test]
fn blocks_of_32_are_those_of_ggml_byte_for_byte() {
    let (bytes, _) = values();
    for kind in [
        BlockType::Q4_0,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
    ] {
        let ours = quantized(kind, FloatDtype::BF16, &bytes);
        assert!(ours == recorded(kind), "{kind}");
    }
}

#[test]
fn most_k_blocks_are_those_of_ggml_and_the_others_are_as_near_to_the_values() {
    let (bytes, wide) = values();
    // of 20: ggml sums in another order
    for (kind, alike) in [
        (BlockType::Q4K, 14),
        (BlockType::Q5K, 13),
        (BlockType::Q6K, 16),
    ] {
        let (ours, theirs) = (quantized(kind, FloatDtype::BF16, &bytes), recorded(kind));
        assert_eq!(ours.len(), theirs.len());
        let size = kind.bytes();
        let pairs = ours.chunks(size).zip(theirs.chunks(size));
        let same = pairs.filter(|(ours, theirs)| ours == theirs).count();
        assert!(same >= alike, "{kind}: {same} blocks are the same");
        let (ours, theirs) = (dequantized(kind, &ours), dequantized(kind, &theirs));
        assert!(rmse(&wide, &ours) <= rmse(&wide, &theirs) * 1.002, "{kind}");
        for (row, x) in wide.chunks(256).enumerate() {
            let part = row * 256..(row + 1) * 256;
            let (ours, theirs) = (rmse(x, &ours[part.clone()]), rmse(x, &theirs[part]));
            assert!(
                ours <= theirs * 1.02,
                "{kind}, row {row}: {ours}, ggml has {theirs}"
            );
        }
    }
}

#[test]
fn the_error_of_weights_is_below_that_of_one_step_fewer() {
    let bytes = weights(256 * 64, 11);
    let mut wide = vec![0.0; 256 * 64];
    FloatDtype::BF16.widen(&bytes, &mut wide);
    let spread = rmse(&wide, &vec![0.0; wide.len()]);
    // uniform steps of the range of 32 normal values (4.1 deviations) have an error of range / steps / 12^0.5
    for (kind, levels) in [
        (BlockType::Q4_0, 16.0),
        (BlockType::Q4K, 16.0),
        (BlockType::Q5_0, 32.0),
        (BlockType::Q5_1, 32.0),
        (BlockType::Q5K, 32.0),
        (BlockType::Q6K, 64.0),
        (BlockType::Q8_0, 256.0),
    ] {
        let error = rmse(
            &wide,
            &dequantized(kind, &quantized(kind, FloatDtype::BF16, &bytes)),
        );
        let uniform = 4.9 * spread / (levels - 2.0) / 12.0_f64.sqrt();
        assert!(error < uniform, "{kind}: {error}, {uniform}");
        assert!(error > uniform / 3.0, "{kind}: {error}, {uniform}");
    }
}

#[test]
fn dtypes_instructions_and_threads_do_not_change_a_byte() {
    let (bytes, wide) = values();
    let singles: Vec<u8> = wide.iter().flat_map(|x| x.to_le_bytes()).collect();
    let many = bytes.repeat(30);
    for kind in BlockType::ALL {
        let wanted = quantized(kind, FloatDtype::BF16, &bytes);
        assert!(
            quantized(kind, FloatDtype::F32, &singles) == wanted,
            "{kind}"
        );
        for simd in Simd::available() {
            let mut out = Vec::new();
            kind.quantize_with(simd, FloatDtype::BF16, &bytes, &mut out)
                .unwrap();
            assert!(out == wanted, "{kind}, {simd:?}");
        }
        for threads in [1, 2, 3, 7] {
            let mut out = vec![7];
            kind.quantize_on(threads, FloatDtype::BF16, &many, &mut out)
                .unwrap();
            assert!(out[1..] == wanted.repeat(30), "{kind}, {threads} threads");
        }
    }
}

/// Blocks of every sort of value that is not refused.
fn of_every_sort(kind: BlockType) -> Vec<u8> {
    let mut out = quantized(kind, FloatDtype::BF16, &weights(256 * 65, 11));
    for (_, bytes) in every_sort(256 * 8) {
        for dtype in FloatDtype::ALL {
            for block in bytes.chunks_exact(1024) {
                let _ = kind.quantize(dtype, block, &mut out);
            }
        }
    }
    out
}

#[test]
fn no_version_writes_other_bytes() {
    for (kind, wanted) in [
        (BlockType::Q4K, "ddf19a796a15cb86"),
        (BlockType::Q5K, "c034b05180d5cf65"),
        (BlockType::Q6K, "c53d468f5a7932d8"),
    ] {
        let digest = crate::digest::Sha256::of(&of_every_sort(kind));
        assert_eq!(&digest.to_string()[..16], wanted, "{kind}");
    }
}

/// Of the columns of the fixture's rows.
fn importance() -> Vec<f32> {
    let number = |i: u16| f32::from(37 * i % 101 + 1) / 64.0;
    (0..256).map(number).collect()
}

fn quantized_rows(kind: BlockType, dtype: FloatDtype, bytes: &[u8], threads: usize) -> Vec<u8> {
    let mut out = Vec::new();
    kind.quantize_rows(threads, dtype, &importance(), bytes, &mut out)
        .unwrap();
    out
}

/// What is to be as small as it can be: the differences, weighted by the importance of columns.
fn weighted_rmse(a: &[f32], b: &[f32]) -> f64 {
    let weights = importance();
    let weights = weights.iter().cycle();
    let squares = a.iter().zip(b).zip(weights);
    let squares = squares.map(|((a, b), w)| f64::from(*w) * f64::from(a - b).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

#[test]
fn with_an_importance_matrix_blocks_are_as_near_to_the_values_as_those_of_ggml() {
    let (bytes, wide) = values();
    for kind in [
        BlockType::Q4_0,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q4K,
        BlockType::Q5K,
        BlockType::Q6K,
    ] {
        let ours = quantized_rows(kind, FloatDtype::BF16, &bytes, 1);
        let theirs = fixture(&format!("{}.weighted", kind.to_string().to_lowercase()));
        assert_eq!(ours.len(), theirs.len());
        let pairs = ours.chunks(kind.bytes()).zip(theirs.chunks(kind.bytes()));
        let same = pairs.filter(|(ours, theirs)| ours == theirs).count();
        let blocks = ours.len() / kind.bytes();
        println!("{kind}: {same} of {blocks} blocks are the same");
        assert!(
            2 * same >= blocks,
            "{kind}: {same} of {blocks} blocks are the same"
        );
        let (ours, theirs) = (dequantized(kind, &ours), dequantized(kind, &theirs));
        for (row, x) in wide.chunks(256).enumerate() {
            let part = row * 256..(row + 1) * 256;
            let (ours, theirs) = (
                weighted_rmse(x, &ours[part.clone()]),
                weighted_rmse(x, &theirs[part]),
            );
            assert!(
                ours <= theirs * 1.02,
                "{kind}, row {row}: {ours}, ggml has {theirs}"
            );
        }
        // it is what the matrix says that became nearer
        let plain = dequantized(kind, &quantized(kind, FloatDtype::BF16, &bytes));
        assert!(
            weighted_rmse(&wide, &ours) < weighted_rmse(&wide, &plain),
            "{kind}"
        );
    }
}

#[test]
fn dtypes_threads_and_instructions_do_not_change_weighted_blocks() {
    let (bytes, wide) = values();
    let singles: Vec<u8> = wide.iter().flat_map(|x| x.to_le_bytes()).collect();
    for kind in BlockType::ALL {
        let wanted = quantized_rows(kind, FloatDtype::BF16, &bytes, 1);
        assert!(
            quantized_rows(kind, FloatDtype::F32, &singles, 1) == wanted,
            "{kind}"
        );
        let many = bytes.repeat(20);
        for threads in [2, 3, 7] {
            let made = quantized_rows(kind, FloatDtype::BF16, &many, threads);
            assert!(made == wanted.repeat(20), "{kind}, {threads} threads");
        }
        for simd in Simd::available() {
            let mut to = vec![0; wanted.len()];
            kind.rows_into(simd, FloatDtype::BF16, &importance(), &bytes, &mut to)
                .unwrap();
            assert!(to == wanted, "{kind}, {simd:?}");
        }
        for place in [0, wanted.len() / 2, wanted.len() - 1] {
            let mut bad = wanted.clone();
            bad[place] ^= 0x10;
            let seen = kind.first_wrong_row(2, FloatDtype::BF16, &importance(), &bytes, &bad);
            let row = 256 / kind.values() * kind.bytes();
            assert_eq!(seen, Some(place / row), "{kind}");
        }
        let same = kind.first_wrong_row(2, FloatDtype::BF16, &importance(), &bytes, &wanted);
        assert_eq!(same, None, "{kind}");
        // a value that is not finite, and columns that do not matter at all
        let mut many = many;
        let place = 256 * 70 + 3;
        many[place * 2..place * 2 + 2].copy_from_slice(&0x7fc0_u16.to_le_bytes());
        let mut out = vec![7];
        let error = kind
            .quantize_rows(3, FloatDtype::BF16, &importance(), &many, &mut out)
            .unwrap_err();
        assert_eq!(
            (error.block, &out[..]),
            (place / kind.values(), &[7][..]),
            "{kind}"
        );
        let mut out = Vec::new();
        kind.quantize_rows(1, FloatDtype::BF16, &[0.0; 256], &bytes, &mut out)
            .unwrap();
        assert!(
            dequantized(kind, &out).iter().all(|x| x.is_finite()),
            "{kind}"
        );
    }
}

#[test]
fn what_cannot_be_quantized_is_refused_with_its_place() {
    let (bytes, _) = values();
    for kind in BlockType::ALL {
        for (bits, why) in [
            (0x7fc0_u16, "not finite"),
            (0xff80, "not finite"),
            (0x7f7f, "65504"),
        ] {
            let mut many = bytes.repeat(30);
            let place = 256 * 400 + 3;
            many[place * 2..place * 2 + 2].copy_from_slice(&bits.to_le_bytes());
            for threads in [1, 3] {
                let mut out = vec![7];
                let error = kind
                    .quantize_on(threads, FloatDtype::BF16, &many, &mut out)
                    .unwrap_err();
                assert_eq!(error.block, place / kind.values(), "{kind}");
                let printed = error.to_string();
                assert!(printed.contains(&format!("cannot be {kind}")), "{printed}");
                assert!(printed.contains(why), "{printed}");
                assert_eq!(out, [7]);
            }
        }
    }
}

#[test]
fn one_wrong_byte_anywhere_is_seen() {
    let bytes = weights(256 * 3, 5);
    for kind in BlockType::ALL {
        let after = quantized(kind, FloatDtype::BF16, &bytes);
        let wrong = |after: &[u8]| kind.first_wrong(1, FloatDtype::BF16, &bytes, after);
        assert_eq!(wrong(&after), None);
        for place in 0..after.len() {
            let mut bad = after.clone();
            bad[place] ^= 0x10;
            assert_eq!(wrong(&bad), Some(place / kind.bytes()), "{kind}, {place}");
        }
        assert_eq!(
            wrong(&after[..after.len() - kind.bytes()]),
            Some(after.len() / kind.bytes() - 1)
        );
    }
}

#[test]
fn every_sort_of_value_is_finite_again_or_refused() {
    for (name, bytes) in every_sort(256 * 8) {
        for kind in BlockType::ALL {
            for dtype in FloatDtype::ALL {
                let mut out = Vec::new();
                for block in bytes.chunks_exact(1024) {
                    // refused where it is not finite or too large
                    let _ = kind.quantize(dtype, block, &mut out);
                }
                let back = dequantized(kind, &out);
                assert!(
                    back.iter().all(|x| x.is_finite()),
                    "{name}, {kind}, {dtype}"
                );
            }
        }
    }
}

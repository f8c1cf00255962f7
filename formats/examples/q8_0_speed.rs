//! GB/s (10^9 bytes) of values that go in, one thread, pieces of 1 MiB that stay in the L2 cache: Q8_0,
//! then ggml's other blocks.
//!
//! `cargo run --release -p segpack-formats --example q8_0_speed [NAME]`, such as Q4_K for that block alone

use std::hint::black_box;
use std::time::Instant;

use segpack_formats::numeric::ggml::BlockType;
use segpack_formats::numeric::{FloatDtype, q8_0};

const PIECE: usize = 1 << 20;

/// Median rate of 5 runs of 1 GiB each.
fn rate(name: &str, step: impl FnMut()) {
    rate_of(name, 1 << 30, step);
}

/// Median rate of 5 runs of this many bytes each.
fn rate_of(name: &str, bytes: usize, mut step: impl FnMut()) {
    let steps = bytes / PIECE;
    let mut rates: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            (0..steps).for_each(|_| step());
            (steps * PIECE) as f64 / start.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!(
        "{name:<28} {:6.2} GB/s  ({:.2} to {:.2})",
        rates[2], rates[0], rates[4]
    );
}

/// Finite values of all three dtypes: no exponent beyond 0x3f in the byte that holds it.
fn values() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40).to_le_bytes()
    };
    (0..PIECE / 4)
        .flat_map(|_| {
            let [a, b, c, d] = [next()[0], next()[1], next()[0], next()[1]];
            [a, b & 0xbf, c, d & 0xbf]
        })
        .collect()
}

/// Values as weights have them: of a normal distribution with a standard deviation of 0.02. Sums of
/// squares of random bits are below what a processor computes at full speed.
fn weights() -> Vec<u8> {
    let bytes = values();
    // the sum of 12 uniform numbers has a variance of 1
    let sum = |piece: &[u8]| piece.iter().map(|b| f32::from(*b) / 256.0).sum::<f32>();
    let normal = |start: usize| {
        let pieces = (0..12).map(|i| bytes[(start + i * 4099) % bytes.len()]);
        (sum(&pieces.collect::<Vec<_>>()) - 6.0) * 0.02
    };
    let bf16 = |i: usize| normal(i * 4 + i / 9973).to_bits().to_be_bytes();
    (0..PIECE / 2)
        .map(bf16)
        .flat_map(|b| [b[1], b[0]])
        .collect()
}

fn main() {
    match std::env::args().nth(1) {
        None => {
            q8_0_alone();
            blocks("");
        }
        Some(name) => blocks(&name),
    }
}

/// All blocks whose names hold this.
fn blocks(name: &str) {
    let (bytes, mut out) = (weights(), Vec::with_capacity(PIECE));
    let named = BlockType::ALL
        .into_iter()
        .filter(|kind| kind.to_string().contains(name));
    for kind in named {
        rate_of(&format!("BF16 to {kind}"), 1 << 27, || {
            out.clear();
            let done = kind.quantize(FloatDtype::BF16, black_box(&bytes), &mut out);
            assert!(done.is_ok(), "{done:?}");
        });
    }
}

fn q8_0_alone() {
    let (bytes, mut out) = (values(), Vec::with_capacity(PIECE));
    for dtype in FloatDtype::ALL {
        rate(&format!("{dtype} to Q8_0"), || {
            out.clear();
            let done = q8_0::quantize(dtype, black_box(&bytes), &mut out);
            assert!(done.is_ok(), "{done:?}");
        });
    }
    out.clear();
    let done = q8_0::quantize(FloatDtype::BF16, &bytes, &mut out);
    assert!(done.is_ok(), "{done:?}");
    rate("check by value, BF16", || {
        assert_eq!(
            q8_0::first_wrong(FloatDtype::BF16, black_box(&bytes), &out),
            None
        );
    });
}

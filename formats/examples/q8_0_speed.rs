//! GB/s (10^9 bytes) of values that go in, one thread, pieces of 1 MiB that stay in the L2 cache: Q8_0,
//! then ggml's other blocks.
//!
//! `cargo run --release -p segpack-formats --example q8_0_speed`

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

fn main() {
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
    for kind in BlockType::ALL {
        rate_of(&format!("BF16 to {kind}"), 1 << 27, || {
            out.clear();
            let done = kind.quantize(FloatDtype::BF16, black_box(&bytes), &mut out);
            assert!(done.is_ok(), "{done:?}");
        });
    }
}

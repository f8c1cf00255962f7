//! GB/s (10^9 bytes) of each way to hash, one thread, inputs that stay in the L2 cache.

use std::hint::black_box;
use std::time::Instant;

use segpack_formats::digest::{Sha256Hasher, Sha256Lanes};

/// Median rate of 5 runs of about 512 MiB each, `bytes` to a step.
fn rate(name: &str, bytes: usize, mut step: impl FnMut()) {
    let steps = (512 << 20) / bytes;
    let mut rates: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            (0..steps).for_each(|_| step());
            (steps * bytes) as f64 / start.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!(
        "{name:<46} {:5.2} GB/s  ({:.2} to {:.2})",
        rates[2], rates[0], rates[4]
    );
}

fn main() {
    let data: Vec<u8> = (0..17_u32 << 16)
        .map(|i| i.wrapping_mul(0x9E37_79B9).to_be_bytes()[0])
        .collect();
    // blocks at multiples of 64 bytes, as in a page-aligned buffer
    let aligned = &data[data.as_ptr().align_offset(64)..];
    let piece = &data[..512 << 10];
    let (left, right) = (&data[..256 << 10], &data[256 << 10..512 << 10]);

    let mut one = Sha256Hasher::default();
    rate("single", piece.len(), || one.update(black_box(piece)));

    let (mut a, mut b) = (Sha256Hasher::default(), Sha256Hasher::default());
    rate("two plain updates (bytes once)", piece.len(), || {
        a.update(black_box(piece));
        b.update(black_box(piece));
    });
    rate(
        "update_pair, same alignment (bytes once)",
        piece.len(),
        || {
            Sha256Hasher::update_pair(&mut a, &mut b, black_box(piece));
        },
    );
    b.update(b"header");
    rate(
        "update_pair, other alignment (bytes once)",
        piece.len(),
        || {
            Sha256Hasher::update_pair(&mut a, &mut b, black_box(piece));
        },
    );
    rate("update_two (both streams)", piece.len(), || {
        Sha256Hasher::update_two(&mut a, black_box(left), &mut b, black_box(right));
    });

    for count in [1, 2, 3, 4, 6, 8, 10, 11, 12, 13, 14, 15, 16] {
        let pieces: Vec<&[u8]> = data.chunks(64 << 10).take(count).collect();
        let mut lanes = Sha256Lanes::new(count);
        rate(
            &format!("lanes({count}), 64 KiB pieces (all messages)"),
            count * (64 << 10),
            || {
                lanes.update(black_box(&pieces));
            },
        );
    }
    let pieces: Vec<&[u8]> = aligned.chunks(64 << 10).take(16).collect();
    let mut lanes = Sha256Lanes::new(16);
    rate(
        "lanes(16), pieces at multiples of 64 bytes",
        16 * (64 << 10),
        || {
            lanes.update(black_box(&pieces));
        },
    );
    black_box((one.finish(), a.finish(), b.finish()));
}

//! What this machine can do at most: the rates that kernels are measured against.
//!
//! Both run one loop per thread of rayon's current pool and time it once, from the first thread's start to the last one's
//! end. Machines are noisy: take the median of several calls, in the same run as what is compared with them.

use std::time::Instant;

use super::Kernels;
use super::simd::{LANES, Line, Simd, Work};

/// How far ahead of the loop memory is asked for, in bytes.
const AHEAD: usize = 8 << 10;
/// Independent chains: enough to hide the latency of two units.
const CHAINS: usize = 12;

/// Reads a buffer once, each thread a part of its own: bytes per second.
///
/// The buffer should be far larger than the caches, written before (fresh pages are all one page), and on huge pages, as
/// weights are.
pub fn read_bandwidth(kernels: Kernels, buffer: &[u8]) -> f64 {
    let (lines, _) = buffer.as_chunks::<{ 4 * LANES }>();
    let part = lines.len().div_ceil(rayon::current_num_threads()).max(1);
    let start = Instant::now();
    let sums = rayon::broadcast(|thread| {
        let lines = lines.chunks(part).nth(thread.index()).unwrap_or_default();
        kernels.run(Read(lines))
    });
    std::hint::black_box(sums);
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let bytes = size_of_val(lines) as f64;
    bytes / start.elapsed().as_secs_f64()
}

/// Fused multiply-adds on registers, `steps` times per thread: floating-point operations per second, two per
/// multiply-add.
pub fn fma_peak(kernels: Kernels, steps: usize) -> f64 {
    let start = Instant::now();
    let sums = rayon::broadcast(|_| kernels.run(MultiplyAdd(steps)));
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let operations = (sums.len() * steps * CHAINS * LANES * 2) as f64;
    std::hint::black_box(sums);
    operations / start.elapsed().as_secs_f64()
}

struct Read<'a>(&'a [[u8; 4 * LANES]]);

impl Work for Read<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut most = [s.splat(0.0); 8];
        let (blocks, _) = self.0.as_chunks::<8>();
        for block in blocks {
            for (most, line) in most.iter_mut().zip(block) {
                s.prefetch(line.as_ptr().wrapping_add(AHEAD));
                *most = s.max(s.load_bits(line), *most);
            }
        }
        let mut all = most[0];
        for most in most {
            all = s.max(all, most);
        }
        s.greatest(all)
    }
}

struct MultiplyAdd(usize);

impl Work for MultiplyAdd {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(1.0); CHAINS];
        let factor = s.splat(std::hint::black_box(0.999_9));
        let term = s.splat(std::hint::black_box(1e-4));
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = s.mul_add(*sum, factor, term);
            }
        }
        let mut all = Line::ZERO;
        for sum in sums {
            s.store(s.add(s.load(&all.0), sum), &mut all.0);
        }
        all.0[0]
    }
}

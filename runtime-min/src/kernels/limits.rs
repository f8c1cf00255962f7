//! What this machine can do at most: the rates that kernels are measured against.
//!
//! Each runs one loop per thread of rayon's current pool and times it once, from the first thread's
//! start to the last one's end. Machines are noisy: take the median of several calls, in the same
//! run as what is compared with them.

use std::ops::Range;
use std::time::Instant;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::simd::{LANES, Line, Simd, Work};
use super::{Bf16Products, Kernels};
use crate::tensor::Compute;

/// How far ahead of the loop memory is asked for, in bytes.
const AHEAD: usize = 8 << 10;
/// A vector's bytes.
type Bits = [u8; 4 * LANES];

/// Reads memory once, each thread an equal share of it: bytes per second.
///
/// The parts together should be far larger than the caches, written before (fresh pages are all one
/// page), and on huge pages, as weights are; best, they are the weights.
pub fn read_bandwidth(kernels: Kernels, parts: &[&[u8]]) -> f64 {
    let parts: Vec<&[Bits]> = parts.iter().map(|part| part.as_chunks().0).collect();
    let lines = parts.iter().map(|part| part.len()).sum::<usize>();
    let share = lines.div_ceil(rayon::current_num_threads()).max(1);
    let start = Instant::now();
    let sums = rayon::broadcast(|thread| {
        let from = thread.index() * share;
        within(&parts, from..from + share)
            .map(|lines| kernels.run(Read(lines)))
            .fold(0.0, f32::max)
    });
    std::hint::black_box(sums);
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let bytes = (lines * size_of::<Bits>()) as f64;
    bytes / start.elapsed().as_secs_f64()
}

/// What of the parts lies in a range that counts through all of them.
fn within<'a>(parts: &[&'a [Bits]], range: Range<usize>) -> impl Iterator<Item = &'a [Bits]> {
    let mut end = 0;
    parts.iter().map(move |part| {
        let start = end;
        end += part.len();
        let cut = |at: usize| at.clamp(start, start + part.len()) - start;
        &part[cut(range.start)..cut(range.end)]
    })
}

/// Fused multiply-adds on registers, `steps` times per thread: floating-point operations per
/// second, two per multiply-add.
pub fn fma_peak(kernels: Kernels, steps: usize) -> f64 {
    rate(|| kernels.run(MultiplyAdd::<false>(steps)) * steps * LANES * 2)
}

/// Multiply-adds on registers, as products of bf16 weights do them in this precision: floating-point
/// operations per second, two per multiply-add. Under `Compute::Bf16` they are those of the instructions
/// for bf16, at least as many as in `steps` of [`fma_peak`], which it is where there are none.
pub fn multiply_add_peak(kernels: Kernels, compute: Compute, steps: usize) -> f64 {
    match kernels.bf16 {
        _ if compute == Compute::F32 => fma_peak(kernels, steps),
        Bf16Products::Widened => fma_peak(kernels, steps),
        #[cfg(target_arch = "x86_64")]
        Bf16Products::Pairs(instructions) => {
            rate(|| instructions.run(MultiplyAdd::<true>(steps)) * steps * LANES * 4)
        }
        #[cfg(target_arch = "x86_64")]
        Bf16Products::Tiles(amx) => rate(|| amx::multiply_registers(amx, steps / 8) * 2),
        #[cfg(target_arch = "aarch64")]
        Bf16Products::Blocks(bfmmla) => rate(|| bfmmla.multiply_registers(steps) * 2),
    }
}

/// What every thread counts, per second.
#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn rate(count: impl Fn() -> usize + Sync) -> f64 {
    let start = Instant::now();
    let counts = rayon::broadcast(|_| count());
    counts.iter().sum::<usize>() as f64 / start.elapsed().as_secs_f64()
}

/// Products of weights that lie as `[rows / 32][columns][16 × (row j, row j + 16)]`, in bytes of
/// weights per second: what laying them out anew while they are loaded could reach. It is the inner
/// loop alone, over as many whole panels of 32 rows as `weights` holds, for one token, or a
/// multiple of 12, whose activations were packed before.
pub fn relaid_product(kernels: Kernels, weights: &[u8], columns: usize, tokens: usize) -> f64 {
    let panels: Vec<&[Bits]> = weights.as_chunks().0.chunks_exact(columns.max(1)).collect();
    let share = panels.len().div_ceil(rayon::current_num_threads()).max(1);
    let start = Instant::now();
    let sums = rayon::broadcast(|thread| {
        let panels = panels.chunks(share).nth(thread.index()).unwrap_or_default();
        kernels.run(Relaid {
            panels,
            columns,
            tokens,
        })
    });
    std::hint::black_box(sums);
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let bytes = (panels.len() * columns * size_of::<Bits>()) as f64;
    bytes / start.elapsed().as_secs_f64()
}

struct Relaid<'a> {
    panels: &'a [&'a [Bits]],
    columns: usize,
    tokens: usize,
}

impl Work for Relaid<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        match (self.tokens, S::TOKENS) {
            (0 | 1, _) => self.tiles::<S, 1>(s),
            (_, 12..) => self.tiles::<S, 12>(s),
            _ => self.tiles::<S, 4>(s),
        }
    }
}

impl Relaid<'_> {
    #[inline(always)]
    fn tiles<S: Simd, const TOKENS: usize>(self, s: S) -> f32 {
        let x = vec![[std::hint::black_box(0.5); TOKENS]; self.columns];
        let mut all = s.splat(0.0);
        for panel in self.panels {
            for _ in 0..self.tokens.div_ceil(TOKENS) {
                let mut sums = [[s.splat(0.0); 2]; TOKENS];
                for (line, x) in panel.iter().zip(&x) {
                    s.prefetch(line.as_ptr().wrapping_add(AHEAD));
                    let words = s.load_bits(line);
                    let (low, high) = (s.low(words), s.high(words));
                    for (sums, x) in sums.iter_mut().zip(x) {
                        sums[0] = s.mul_add(low, s.splat(*x), sums[0]);
                        sums[1] = s.mul_add(high, s.splat(*x), sums[1]);
                    }
                }
                for [a, b] in sums {
                    all = s.max(all, s.max(a, b));
                }
            }
        }
        s.max_lane(all)
    }
}

struct Read<'a>(&'a [Bits]);

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
        s.max_lane(all)
    }
}

/// So many steps of independent chains of multiply-adds, or of those of pairs of bf16 values.
struct MultiplyAdd<const PAIRS: bool>(usize);

impl<const PAIRS: bool> Work for MultiplyAdd<PAIRS> {
    /// Chains.
    type Out = usize;

    /// Enough chains to hide the latency of two units, and no more than there are registers for:
    /// 12 of 32 registers of 16 lanes, 6 × 2 of 16 of 8 lanes, 6 × 4 of 32 of 4 lanes, 3 × 4 of 16.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        match S::TOKENS {
            12.. => self.chains::<S, 12>(s),
            4.. => self.chains::<S, 6>(s),
            _ => self.chains::<S, 3>(s),
        }
    }
}

impl<const PAIRS: bool> MultiplyAdd<PAIRS> {
    /// Every lane of every chain begins with a value that the compiler does not know and ends in
    /// memory: equal ones would be computed once, and those that nobody reads not at all.
    #[inline(always)]
    fn chains<S: Simd, const CHAINS: usize>(self, s: S) -> usize {
        let mut lines = std::hint::black_box([Line([1.0; LANES]); CHAINS]);
        let mut sums = [s.splat(0.0); CHAINS];
        for (sum, line) in sums.iter_mut().zip(&lines) {
            *sum = s.load(&line.0);
        }
        let factor = s.splat(std::hint::black_box(0.999_9));
        let term = s.splat(std::hint::black_box(1e-4));
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = match PAIRS {
                    true => s.dot_pairs(factor, term, *sum),
                    false => s.mul_add(*sum, factor, term),
                };
            }
        }
        for (sum, line) in sums.iter().zip(&mut lines) {
            s.store(*sum, &mut line.0);
        }
        std::hint::black_box(&lines);
        CHAINS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_in_one_share() {
        let lines: Vec<Bits> = (0..10).map(|i| [i; 64]).collect();
        let parts = [&lines[..3], &[], &lines[3..4], &lines[4..]];
        for share in 1..12 {
            let seen: Vec<u8> = (0..10_usize.div_ceil(share))
                .flat_map(|i| within(&parts, i * share..(i + 1) * share).flatten())
                .map(|line| line[0])
                .collect();
            assert_eq!(seen, (0..10).collect::<Vec<u8>>(), "{share}");
        }
    }
}

//! Blocks of quantized values as ggml stores them: one file for each layout.
//!
//! | type | values | bytes | bits a value | layout |
//! |---|---|---|---|---|
//! | Q4_0 | 32 | 18 | 4.5 | `simple.rs` |
//! | Q5_0 | 32 | 22 | 5.5 | `simple.rs` |
//! | Q5_1 | 32 | 24 | 6 | `simple.rs` |
//! | Q8_0 | 32 | 34 | 8.5 | [`q8_0`] |
//! | Q4_K | 256 | 144 | 4.5 | `k45.rs` |
//! | Q5_K | 256 | 176 | 5.5 | `k45.rs` |
//! | Q6_K | 256 | 210 | 6.5625 | `q6_k.rs` |
//!
//! The quantizers search as ggml's do (`quantize_row_…_ref` in ggml/src/ggml-quants.c, MIT licence),
//! with all runs of a block side by side in vector instructions. The same values give the same bytes
//! on every processor; ggml's own bytes differ in some last bits from one compiler to the next.

#![allow(
    clippy::needless_range_loop,
    reason = "one index over the runs of several arrays becomes vector instructions"
)]

mod affine;
mod k45;
mod lanes;
mod q6_k;
mod simple;
#[cfg(test)]
mod tests;

use std::fmt;
use std::marker::PhantomData;
use std::thread;

use super::{FloatDtype, f16, q8_0};
use crate::codec::{Simd, Work};

/// Values of a block of the K types.
const K_VALUES: usize = 256;
/// Blocks that are worth a thread: a tenth of a millisecond.
const SHARE_BLOCKS: usize = 64;
/// ggml's `GROUP_MAX_EPS`: runs of smaller values are zeros.
const NEARLY_ZERO: f32 = 1e-15;

/// A layout of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// 4 bits around zero, a scale for 32 values.
    Q4_0,
    /// 5 bits around zero, a scale for 32 values.
    Q5_0,
    /// 5 bits above a minimum, a scale and a minimum for 32 values.
    Q5_1,
    /// See [`q8_0`].
    Q8_0,
    /// 4 bits above a minimum, scales and minima of 6 bits for 32 values.
    Q4K,
    /// 5 bits above a minimum, scales and minima of 6 bits for 32 values.
    Q5K,
    /// 6 bits around zero, scales of 8 bits for 16 values.
    Q6K,
}

/// A block that its type cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "values {first} to {last} of this piece cannot be {kind}: {why}",
    first = block * kind.values(), last = (block + 1) * kind.values() - 1
)]
pub struct NotQuantizable {
    /// Its number in the piece, from 0.
    pub block: usize,
    /// What it was to become.
    pub kind: BlockType,
    why: &'static str,
}

/// Why a block cannot be quantized.
type Problem = &'static str;

const NOT_FINITE: Problem = "one is not finite";
const SCALE_TOO_LARGE: Problem = "the scale is beyond 65504, the largest F16";

impl BlockType {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Q4_0,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Values of a block.
    pub const fn values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => K_VALUES,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => simple::Q4_0::BYTES,
            Self::Q5_0 => simple::Q5_0::BYTES,
            Self::Q5_1 => simple::Q5_1::BYTES,
            Self::Q8_0 => q8_0::BLOCK_BYTES,
            Self::Q4K => k45::Q4K::BYTES,
            Self::Q5K => k45::Q5K::BYTES,
            Self::Q6K => q6_k::Q6K::BYTES,
        }
    }

    /// Appends the blocks of these values. `bytes` is a whole number of blocks of values of
    /// `dtype`; what is left over adds nothing.
    ///
    /// # Errors
    /// [`NotQuantizable`] for the first block with a value that is not finite or with a scale that
    /// F16 cannot hold; nothing is added then.
    pub fn quantize(
        self,
        dtype: FloatDtype,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), NotQuantizable> {
        self.quantize_with(Simd::best(), dtype, bytes, out)
    }

    /// As [`quantize`](Self::quantize), on this many threads; the bytes are the same.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    pub fn quantize_on(
        self,
        threads: usize,
        dtype: FloatDtype,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), NotQuantizable> {
        let block = dtype.byte_width() * self.values();
        let blocks = bytes.len() / block;
        let share = blocks.div_ceil(threads.max(1)).max(SHARE_BLOCKS);
        // Q8_0 is made faster than threads are
        if blocks <= share || self == Self::Q8_0 {
            return self.quantize(dtype, bytes, out);
        }
        let (simd, size) = (Simd::best(), (block, self.bytes()));
        let done = in_shares(size, share, bytes, out, |bytes, to| {
            self.quantize_into(simd, dtype, bytes, to)
        });
        done.map_err(|(first, e)| NotQuantizable {
            block: first + e.block,
            ..e
        })
    }

    /// Appends the blocks of whole rows, where errors count more in columns of more importance: the
    /// mean square of what such a column is multiplied with. `bytes` are values of `dtype`, each row
    /// as many as `importance`, which are finite, not negative, and a whole number of blocks.
    /// Q8_0 has nothing to choose, and is as without importance.
    ///
    /// As ggml's `quantize_row_…_impl` with `quant_weights`.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    pub fn quantize_rows(
        self,
        threads: usize,
        dtype: FloatDtype,
        importance: &[f32],
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), NotQuantizable> {
        let row = dtype.byte_width() * importance.len();
        let blocks = importance.len() / self.values();
        if self == Self::Q8_0 || row == 0 {
            return self.quantize_on(threads, dtype, bytes, out);
        }
        let rows = bytes.len() / row;
        let share = rows
            .div_ceil(threads.max(1))
            .max(SHARE_BLOCKS.div_ceil(blocks.max(1)));
        let (simd, size) = (Simd::best(), (row, blocks * self.bytes()));
        let done = in_shares(size, share, bytes, out, |bytes, to| {
            self.rows_into(simd, dtype, importance, bytes, to)
        });
        done.map_err(|(first, (block, why))| NotQuantizable {
            block: first * blocks + block,
            kind: self,
            why,
        })
    }

    /// Into as many bytes as the blocks of the rows take.
    fn rows_into(
        self,
        simd: Simd,
        dtype: FloatDtype,
        importance: &[f32],
        bytes: &[u8],
        to: &mut [u8],
    ) -> Result<(), (usize, Problem)> {
        macro_rules! rows {
            ($layout:ty, $values:expr) => {
                simd.run(Rows::<$layout, { $values }> {
                    dtype,
                    bytes,
                    importance,
                    to,
                    layout: PhantomData,
                })
            };
        }
        match self {
            Self::Q4_0 => rows!(simple::Q4_0, 32),
            Self::Q5_0 => rows!(simple::Q5_0, 32),
            Self::Q5_1 => rows!(simple::Q5_1, 32),
            Self::Q8_0 => q8_0::quantize_into(dtype, bytes, to).map_err(|e| (e.block, e.why)),
            Self::Q4K => rows!(k45::Q4K, K_VALUES),
            Self::Q5K => rows!(k45::Q5K, K_VALUES),
            Self::Q6K => rows!(q6_k::Q6K, K_VALUES),
        }
    }

    /// As [`quantize`](Self::quantize), with these instructions.
    fn quantize_with(
        self,
        simd: Simd,
        dtype: FloatDtype,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), NotQuantizable> {
        let start = out.len();
        let blocks = bytes.len() / (dtype.byte_width() * self.values());
        out.resize(start + blocks * self.bytes(), 0);
        let done = self.quantize_into(simd, dtype, bytes, &mut out[start..]);
        if done.is_err() {
            out.truncate(start);
        }
        done
    }

    /// Into as many bytes as the blocks take.
    fn quantize_into(
        self,
        simd: Simd,
        dtype: FloatDtype,
        bytes: &[u8],
        to: &mut [u8],
    ) -> Result<(), NotQuantizable> {
        let done = match self {
            Self::Q4_0 => simd.run(Blocks::<simple::Q4_0, 32>::new(dtype, bytes, to)),
            Self::Q5_0 => simd.run(Blocks::<simple::Q5_0, 32>::new(dtype, bytes, to)),
            Self::Q5_1 => simd.run(Blocks::<simple::Q5_1, 32>::new(dtype, bytes, to)),
            Self::Q8_0 => q8_0::quantize_into(dtype, bytes, to).map_err(|e| (e.block, e.why)),
            Self::Q4K => simd.run(Blocks::<k45::Q4K, K_VALUES>::new(dtype, bytes, to)),
            Self::Q5K => simd.run(Blocks::<k45::Q5K, K_VALUES>::new(dtype, bytes, to)),
            Self::Q6K => simd.run(Blocks::<q6_k::Q6K, K_VALUES>::new(dtype, bytes, to)),
        };
        done.map_err(|(block, why)| NotQuantizable {
            block,
            kind: self,
            why,
        })
    }

    /// Whether `after` is what becomes of `before`, without knowing what was made of it: Q8_0 is judged
    /// by value, the others are quantized again, on this many threads.
    ///
    /// Returns the number of the first block that is wrong.
    pub fn first_wrong(
        self,
        threads: usize,
        dtype: FloatDtype,
        before: &[u8],
        after: &[u8],
    ) -> Option<usize> {
        if self == Self::Q8_0 {
            return q8_0::first_wrong(dtype, before, after);
        }
        let mut wanted = Vec::with_capacity(after.len());
        if let Err(e) = self.quantize_on(threads, dtype, before, &mut wanted) {
            return Some(e.block);
        }
        first_different(after, &wanted, self.bytes())
    }

    /// As [`first_wrong`](Self::first_wrong) of what [`quantize_rows`](Self::quantize_rows) made: the
    /// number of the first row that is wrong.
    pub fn first_wrong_row(
        self,
        threads: usize,
        dtype: FloatDtype,
        importance: &[f32],
        before: &[u8],
        after: &[u8],
    ) -> Option<usize> {
        let blocks = (importance.len() / self.values()).max(1);
        if self == Self::Q8_0 {
            return q8_0::first_wrong(dtype, before, after).map(|block| block / blocks);
        }
        let mut wanted = Vec::with_capacity(after.len());
        if let Err(e) = self.quantize_rows(threads, dtype, importance, before, &mut wanted) {
            return Some(e.block / blocks);
        }
        first_different(after, &wanted, blocks * self.bytes())
    }

    /// Appends the values of whole blocks.
    pub fn dequantize(self, blocks: &[u8], out: &mut Vec<f32>) {
        let one = match self {
            Self::Q4_0 => simple::dequantize_q4_0,
            Self::Q5_0 => simple::dequantize_q5_0,
            Self::Q5_1 => simple::dequantize_q5_1,
            Self::Q8_0 => q8_0::dequantize,
            Self::Q4K => k45::dequantize_q4,
            Self::Q5K => k45::dequantize_q5,
            Self::Q6K => q6_k::dequantize,
        };
        for block in blocks.chunks_exact(self.bytes()) {
            let start = out.len();
            out.resize(start + self.values(), 0.0);
            one(block, &mut out[start..]);
        }
    }
}

/// Appends what `make` makes of whole units of `(bytes, bytes made of them)`, on a thread for every
/// `share` units. Where one fails nothing is added, and the number of its share's first unit comes
/// with the error of the first share that failed.
fn in_shares<E: Send>(
    (size, made): (usize, usize),
    share: usize,
    bytes: &[u8],
    out: &mut Vec<u8>,
    make: impl Fn(&[u8], &mut [u8]) -> Result<(), E> + Sync,
) -> Result<(), (usize, E)> {
    let units = bytes.len() / size;
    let start = out.len();
    out.resize(start + units * made, 0);
    let shares = bytes[..units * size].chunks(share * size);
    let to = out[start..].chunks_mut(share * made);
    let make = &make;
    let done: Vec<_> = thread::scope(|scope| {
        let begun: Vec<_> = shares
            .zip(to)
            .map(|(bytes, to)| scope.spawn(move || make(bytes, to)))
            .collect();
        begun
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect()
    });
    for (number, done) in done.into_iter().enumerate() {
        let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if let Err(e) = done {
            out.truncate(start);
            return Err((number * share, e));
        }
    }
    Ok(())
}

/// The number of the first piece of so many bytes that differs, or that only one of them has.
fn first_different(seen: &[u8], wanted: &[u8], size: usize) -> Option<usize> {
    let (seen, wanted) = (seen.chunks(size), wanted.chunks(size));
    let same = seen.len().min(wanted.len());
    let first = seen.clone().zip(wanted.clone()).position(|(a, b)| a != b);
    first.or((seen.len() != wanted.len()).then_some(same))
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Q4_0 => "Q4_0",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}

/// How one block is quantized.
trait Layout<const N: usize> {
    /// Bytes of a block.
    const BYTES: usize;

    /// Inlined always, with all that it calls: see [`Work`].
    fn quantize(values: &[f32; N], to: &mut [u8]) -> Result<(), Problem>;

    /// With the importance of each value, and the mean square of the row that the block is of.
    fn quantize_weighted(
        values: &[f32; N],
        importance: &[f32; N],
        spread: f32,
        to: &mut [u8],
    ) -> Result<(), Problem>;

    /// Two blocks that follow each other, where that is faster; the bytes are the same. Which one
    /// cannot be quantized is not said.
    #[inline(always)]
    fn quantize_pair(values: [&[f32; N]; 2], to: &mut [u8]) -> Result<(), Problem> {
        let (first, second) = to.split_at_mut(Self::BYTES);
        Self::quantize(values[0], first)?;
        Self::quantize(values[1], second)
    }
}

/// Rows that are to be quantized with the importance of each column.
struct Rows<'a, L, const N: usize> {
    dtype: FloatDtype,
    bytes: &'a [u8],
    importance: &'a [f32],
    to: &'a mut [u8],
    layout: PhantomData<L>,
}

impl<L: Layout<N>, const N: usize> Work for Rows<'_, L, N> {
    /// Where it fails, the number of the block and why.
    type Done = Result<(), (usize, Problem)>;

    #[inline(always)]
    fn run(self) -> Self::Done {
        let columns = self.importance.len();
        let blocks = columns / N;
        let rows = self.bytes.chunks_exact(self.dtype.byte_width() * columns);
        let to = self.to.chunks_exact_mut(L::BYTES * blocks);
        let mut values = vec![0.0; columns];
        for (row, (bytes, to)) in rows.zip(to).enumerate() {
            self.dtype.widen(bytes, &mut values);
            let squares = values.iter().fold(0.0, |sum, x| sum + x * x);
            #[expect(clippy::cast_precision_loss, reason = "rows are shorter than 2^24")]
            let spread: f32 = squares / columns as f32;
            let (values, _) = values.as_chunks::<N>();
            let (importance, _) = self.importance.as_chunks::<N>();
            let pairs = values
                .iter()
                .zip(importance)
                .zip(to.chunks_exact_mut(L::BYTES));
            for (block, ((values, importance), to)) in pairs.enumerate() {
                L::quantize_weighted(values, importance, spread, to)
                    .map_err(|why| (row * blocks + block, why))?;
            }
        }
        Ok(())
    }
}

/// Values that are to be quantized block after block.
struct Blocks<'a, L, const N: usize> {
    dtype: FloatDtype,
    bytes: &'a [u8],
    to: &'a mut [u8],
    layout: PhantomData<L>,
}

impl<'a, L, const N: usize> Blocks<'a, L, N> {
    fn new(dtype: FloatDtype, bytes: &'a [u8], to: &'a mut [u8]) -> Self {
        Self {
            dtype,
            bytes,
            to,
            layout: PhantomData,
        }
    }
}

impl<L: Layout<N>, const N: usize> Work for Blocks<'_, L, N> {
    /// Where it fails, the number of the block and why.
    type Done = Result<(), (usize, Problem)>;

    #[inline(always)]
    fn run(self) -> Self::Done {
        let block = self.dtype.byte_width() * N;
        let pairs = self.bytes.chunks(2 * block);
        let to = self.to.chunks_mut(2 * L::BYTES);
        let (mut first, mut second) = ([0.0; N], [0.0; N]);
        for (pair, (bytes, to)) in pairs.zip(to).enumerate() {
            let (bytes, after) = bytes.split_at(block.min(bytes.len()));
            self.dtype.widen(bytes, &mut first);
            let is_pair = after.len() == block;
            if is_pair {
                self.dtype.widen(after, &mut second);
                if L::quantize_pair([&first, &second], to).is_ok() {
                    continue;
                }
            }
            // alone, or to know which of the two it is
            let (to, to_second) = to.split_at_mut(L::BYTES);
            L::quantize(&first, to).map_err(|why| (2 * pair, why))?;
            if is_pair {
                L::quantize(&second, to_second).map_err(|why| (2 * pair + 1, why))?;
            }
        }
        Ok(())
    }
}

/// No layout has a scale for values of this magnitude, and sums of squares of smaller ones are finite.
const TOO_LARGE: f32 = 1e10;

/// Values that can be computed with.
#[inline(always)]
fn check_values<const N: usize>(values: &[f32; N]) -> Result<(), Problem> {
    // magnitudes order as their bits do, and infinities and NaN come last
    let largest = values
        .iter()
        .fold(0, |max: u32, x| max.max(x.to_bits() & 0x7fff_ffff));
    if largest < TOO_LARGE.to_bits() {
        Ok(())
    } else if largest < f32::INFINITY.to_bits() {
        Err(SCALE_TOO_LARGE)
    } else {
        Err(NOT_FINITE)
    }
}

/// The nearest F16, ties to even.
fn scale(value: f32) -> Result<[u8; 2], Problem> {
    let bytes = f16::encode(value);
    if f16::is_finite(bytes) {
        Ok(bytes)
    } else {
        Err(SCALE_TOO_LARGE)
    }
}

//! Q8_0, ggml's blocks of 32 values in 34 bytes: a scale as F16, then one signed byte for each
//! value.
//!
//! Bit for bit what `quantize_row_q8_0_ref` (ggml/src/ggml-quants.c) and gguf-py's
//! `Q8_0.quantize_blocks` make, which agree: in f32, `d = max |x| / 127`, `q = roundf(x * (1 / d))`
//! with halves away from zero, and `d` as the nearest F16, ties to even. Where those leave the
//! result to chance (NaN, infinity, a scale beyond F16), this refuses.
//!
//! Plain Rust, which the compiler turns into vector instructions: 2 GB/s of bf16 per core without
//! any of AVX (measured with `examples/q8_0_speed.rs`; versions compiled for AVX2 and AVX-512 were
//! no faster).

use super::{FloatDtype, bf16, f16};

/// Values of a block.
pub const BLOCK_VALUES: usize = 32;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 34;

/// A block that Q8_0 cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "values {first} to {last} of this piece cannot be Q8_0: {why}",
    first = block * BLOCK_VALUES, last = block * BLOCK_VALUES + BLOCK_VALUES - 1
)]
pub struct NotQ8_0 {
    /// Its number in the piece, from 0.
    pub block: usize,
    pub(super) why: &'static str,
}

/// The values of a block.
pub(super) fn dequantize(block: &[u8], to: &mut [f32]) {
    let scale = f16::decode([block[0], block[1]]);
    for (x, q) in to.iter_mut().zip(&block[2..]) {
        *x = scale * f32::from(q.cast_signed());
    }
}

const NOT_FINITE: &str = "one is not finite";
const TOO_LARGE: &str = "one is beyond 127 x 65504, the largest that the scale can hold";

/// Appends the blocks of these values. `bytes` is a whole number of blocks of values of `dtype`;
/// what is left over adds nothing.
///
/// # Errors
/// [`NotQ8_0`] for the first block that cannot be represented; nothing is added then.
pub fn quantize(dtype: FloatDtype, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NotQ8_0> {
    let start = out.len();
    let blocks = bytes.len() / (dtype.byte_width() * BLOCK_VALUES);
    out.resize(start + blocks * BLOCK_BYTES, 0);
    let done = quantize_into(dtype, bytes, &mut out[start..]);
    if done.is_err() {
        out.truncate(start);
    }
    done
}

/// As [`quantize`], into as many bytes as the blocks take.
pub(super) fn quantize_into(dtype: FloatDtype, bytes: &[u8], to: &mut [u8]) -> Result<(), NotQ8_0> {
    let to = to.as_chunks_mut::<BLOCK_BYTES>().0;
    match dtype {
        FloatDtype::F32 => each_block(bytes, f32::from_le_bytes, to),
        FloatDtype::F16 => each_block(bytes, f16::decode, to),
        FloatDtype::BF16 => each_block(bytes, bf16::decode, to),
    }
}

/// Judges by value, without quantizing again, whether `after` is what should have become of
/// `before`: each block's scale is the F16 nearest to its largest magnitude over 127, and each
/// value lies within half a step of its own.
///
/// Returns the number of the first block that is wrong.
pub fn first_wrong(dtype: FloatDtype, before: &[u8], after: &[u8]) -> Option<usize> {
    let block_before = dtype.byte_width() * BLOCK_VALUES;
    let (blocks, left) = after.as_chunks::<BLOCK_BYTES>();
    let wanted = before.len() / block_before;
    if blocks.len() != wanted || !left.is_empty() {
        return Some(blocks.len().min(wanted));
    }
    let mut values = [0.0; BLOCK_VALUES];
    before
        .chunks_exact(block_before)
        .zip(blocks)
        .position(|(before, block)| {
            dtype.widen(before, &mut values);
            !is_right(&values.map(f64::from), block)
        })
}

fn is_right(values: &[f64; BLOCK_VALUES], block: &[u8; BLOCK_BYTES]) -> bool {
    let step = values.iter().fold(0.0_f64, |max, x| max.max(x.abs())) / 127.0;
    let scale = f64::from(f16::decode([block[0], block[1]]));
    // half a unit in the last place: 11 bits of F16, 24 of the division before it, or half the
    // smallest F16
    let nearest = (scale - step).abs()
        <= (step * (0.5_f64.powi(11) + 0.5_f64.powi(23))).max(0.5_f64.powi(25));
    // x / step takes three roundings of 2^-24, at most 127 times
    let near = |(x, q): (&f64, &u8)| (x / step - f64::from(q.cast_signed())).abs() <= 0.500_05;
    // where 1 / step overflows f32, ggml writes zeros
    let zeros = step < f64::from(f32::MIN_POSITIVE) && block[2..].iter().all(|q| *q == 0);
    nearest && (zeros || values.iter().zip(&block[2..]).all(near))
}

fn each_block<const N: usize>(
    bytes: &[u8],
    widen: impl Fn([u8; N]) -> f32,
    to: &mut [[u8; BLOCK_BYTES]],
) -> Result<(), NotQ8_0> {
    let (sources, _) = bytes.as_chunks::<N>();
    for (block, (from, to)) in sources
        .as_chunks::<BLOCK_VALUES>()
        .0
        .iter()
        .zip(to)
        .enumerate()
    {
        one_block(&from.map(&widen), to).map_err(|why| NotQ8_0 { block, why })?;
    }
    Ok(())
}

#[inline]
fn one_block(values: &[f32; BLOCK_VALUES], to: &mut [u8; BLOCK_BYTES]) -> Result<(), &'static str> {
    // magnitudes order as their bits do, and infinities and NaN come last
    let largest = values
        .iter()
        .fold(0, |max: u32, x| max.max(x.to_bits() & 0x7fff_ffff));
    if largest >= f32::INFINITY.to_bits() {
        return Err(NOT_FINITE);
    }
    let step = f32::from_bits(largest) / 127.0;
    let scale = f16::encode_magnitude(step);
    if scale == 0x7c00 {
        return Err(TOO_LARGE);
    }
    // beyond f32 where the step is subnormal; C and numpy then cast infinity to 0 on x86, and the
    // scale is 0 anyway
    let inverse = Some(1.0 / step).filter(|n| n.is_finite()).unwrap_or(0.0);
    let (head, quants) = to.split_at_mut(2);
    head.copy_from_slice(&scale.to_le_bytes());
    for (x, q) in values.iter().zip(quants) {
        let x = x * inverse;
        // |x| <= largest / step < 128: added to 2^23, its integer part is the low bits, rounded to the nearest, ties to even
        let shifted = x.abs() + TWO_TO_23;
        // ties that went down to an even number go up: halves away from zero
        let tie = u32::from(x.abs() - (shifted - TWO_TO_23) == 0.5);
        let magnitude = shifted.to_bits().wrapping_add(tie);
        let sign = (x.to_bits() >> 31).wrapping_neg();
        *q = (magnitude ^ sign).wrapping_sub(sign).to_le_bytes()[0];
    }
    Ok(())
}

const TWO_TO_23: f32 = 8_388_608.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::samples::{Noise, every_sort, weights};

    fn le(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn quantized(dtype: FloatDtype, bytes: &[u8]) -> Result<Vec<u8>, NotQ8_0> {
        let mut out = Vec::new();
        quantize(dtype, bytes, &mut out).map(|()| out)
    }

    /// The formula of ggml, word for word.
    fn by_the_book(values: &[f32]) -> Vec<u8> {
        let mut out = Vec::new();
        for block in values.chunks(BLOCK_VALUES) {
            let amax = block.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            let d = amax / 127.0;
            let id = if d == 0.0 { 0.0 } else { 1.0 / d };
            out.extend(f16::encode_magnitude(d).to_le_bytes());
            #[expect(clippy::cast_possible_truncation, reason = "as in C")]
            out.extend(
                block
                    .iter()
                    .map(|x| ((x * id).round() as i8).cast_unsigned()),
            );
        }
        out
    }

    #[test]
    fn every_dtype_follows_the_book() {
        let bytes = weights(32 * 500, 3);
        let values: Vec<f32> = bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| bf16::decode(*b))
            .collect();
        let wanted = by_the_book(&values);
        assert_eq!(quantized(FloatDtype::BF16, &bytes).unwrap(), wanted);
        assert_eq!(quantized(FloatDtype::F32, &le(&values)).unwrap(), wanted);
        let halves: Vec<f32> = bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| f16::decode(*b))
            .collect();
        assert_eq!(
            quantized(FloatDtype::F16, &bytes).unwrap(),
            by_the_book(&halves)
        );
        assert_eq!(first_wrong(FloatDtype::BF16, &bytes, &wanted), None);
    }

    #[test]
    fn the_check_agrees_on_every_sort_of_value() {
        for (name, bytes) in every_sort(32 * 40) {
            for dtype in [FloatDtype::BF16, FloatDtype::F16, FloatDtype::F32] {
                for block in bytes.chunks(128) {
                    if let Ok(after) = quantized(dtype, block) {
                        assert_eq!(first_wrong(dtype, block, &after), None, "{name}, {dtype}");
                    }
                }
            }
        }
    }

    #[test]
    fn halves_are_rounded_away_from_zero_and_what_is_just_less_is_not() {
        // the step is 1: quantized values are the rounded ones
        for whole in 0..127_u8 {
            let half = f32::from(whole) + 0.5;
            let below = f32::from_bits(half.to_bits() - 1);
            let mut values = [0.0; 32];
            values[..5].copy_from_slice(&[127.0, half, -half, below, -below]);
            let block = quantized(FloatDtype::F32, &le(&values)).unwrap();
            let quants: Vec<i8> = block[2..7].iter().map(|q| q.cast_signed()).collect();
            let (up, down) = (whole.cast_signed() + 1, whole.cast_signed());
            assert_eq!(quants, [127, up, -up, down, -down], "{half}");
        }
    }

    #[test]
    fn what_has_no_q8_0_is_refused_with_its_place() {
        let mut values = vec![1.0_f32; 96];
        for (bad, why) in [
            (f32::NAN, "not finite"),
            (f32::NEG_INFINITY, "not finite"),
            (1e7, "65504"),
        ] {
            values[70] = bad;
            let error = quantized(FloatDtype::F32, &le(&values)).unwrap_err();
            assert_eq!(error.block, 2);
            assert!(error.to_string().contains("values 64 to 95"), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
        assert_eq!(
            quantized(FloatDtype::F32, &le(&[127.0 * 65_504.0; 32])).unwrap()[..2],
            [0xff, 0x7b]
        );
    }

    #[test]
    fn zeros_and_values_without_a_step_become_zeros() {
        for value in [0.0, -0.0, 1e-44, 1e-38] {
            let block = quantized(FloatDtype::F32, &le(&[value; 32])).unwrap();
            assert_eq!(block[..2], [0, 0], "{value}");
        }
        assert_eq!(
            quantized(FloatDtype::F32, &le(&[1e-44; 32])).unwrap(),
            [0; 34]
        );
    }

    #[test]
    fn the_check_sees_one_wrong_byte_anywhere() {
        let bytes = weights(32 * 4, 5);
        let after = quantized(FloatDtype::BF16, &bytes).unwrap();
        for place in 0..after.len() {
            for change in [1, 0x80] {
                let mut bad = after.clone();
                bad[place] ^= change;
                assert_eq!(
                    first_wrong(FloatDtype::BF16, &bytes, &bad),
                    Some(place / 34),
                    "byte {place}"
                );
            }
        }
        assert_eq!(
            first_wrong(FloatDtype::BF16, &bytes, &after[..34 * 3]),
            Some(3)
        );
        assert_eq!(
            first_wrong(FloatDtype::BF16, &bytes, &after[..34 * 3 + 1]),
            Some(3)
        );
    }

    #[test]
    fn values_left_over_add_nothing() {
        let mut noise = Noise(1);
        let bytes: Vec<u8> = (0..40)
            .flat_map(|_| bf16::encode((noise.next() % 7) as f32))
            .collect();
        assert_eq!(quantized(FloatDtype::BF16, &bytes).unwrap().len(), 34);
    }
}

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

use crate::numeric::Dtype;

/// Values of a block.
pub const Q8_0_VALUES: usize = 32;
/// Bytes of a block.
pub const Q8_0_BYTES: usize = 34;

/// A block that Q8_0 cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "values {first} to {last} of this piece cannot be Q8_0: {why}",
    first = block * Q8_0_VALUES, last = block * Q8_0_VALUES + Q8_0_VALUES - 1
)]
pub struct NotQ8_0 {
    /// Its number in the piece, from 0.
    pub block: usize,
    why: &'static str,
}

const NOT_FINITE: &str = "one is not finite";
const TOO_LARGE: &str = "one is beyond 127 x 65504, the largest that the scale can hold";

/// Bytes of a value of a dtype that can become Q8_0: F32, F16 and BF16 can.
pub fn q8_0_source_bytes(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

/// Appends the blocks of these values. `bytes` is a whole number of blocks of little-endian values
/// of `dtype`; what is left over, and a dtype that [`q8_0_source_bytes`] does not know, adds
/// nothing.
///
/// # Errors
/// [`NotQ8_0`] for the first block that cannot be represented; nothing is added then.
pub fn quantize_q8_0(dtype: Dtype, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NotQ8_0> {
    let start = out.len();
    let blocks = q8_0_source_bytes(dtype).map_or(0, |n| bytes.len() / (n * Q8_0_VALUES));
    out.resize(start + blocks * Q8_0_BYTES, 0);
    let to = out[start..].as_chunks_mut::<Q8_0_BYTES>().0;
    let done = match dtype {
        Dtype::F32 => each_block(bytes, f32::from_le_bytes, to),
        Dtype::F16 => each_block(bytes, widen_f16, to),
        _ => each_block(bytes, widen_bf16, to),
    };
    if done.is_err() {
        out.truncate(start);
    }
    done
}

/// Judges by value, without quantizing again, whether `after` is what should have become of
/// `before`: each block's scale is the F16 nearest to its largest magnitude over 127, and each
/// value lies within half a step of its own.
///
/// Returns the number of the first block that is wrong.
pub fn first_wrong_q8_0(dtype: Dtype, before: &[u8], after: &[u8]) -> Option<usize> {
    let width = q8_0_source_bytes(dtype)?;
    let (blocks, left) = after.as_chunks::<Q8_0_BYTES>();
    let wanted = before.len() / (width * Q8_0_VALUES);
    if blocks.len() != wanted || !left.is_empty() {
        return Some(blocks.len().min(wanted));
    }
    before
        .chunks_exact(width * Q8_0_VALUES)
        .zip(blocks)
        .position(|(x, block)| {
            let mut values = [0.0; Q8_0_VALUES];
            for (value, bytes) in values.iter_mut().zip(x.chunks_exact(width)) {
                *value = f64::from(decode(dtype, bytes));
            }
            !is_right(&values, block)
        })
}

fn is_right(values: &[f64; Q8_0_VALUES], block: &[u8; Q8_0_BYTES]) -> bool {
    let step = values.iter().fold(0.0_f64, |most, x| most.max(x.abs())) / 127.0;
    let scale = f64::from(widen_f16([block[0], block[1]]));
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

fn decode(dtype: Dtype, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (Dtype::F16, [a, b]) => widen_f16([*a, *b]),
        (Dtype::BF16, [a, b]) => widen_bf16([*a, *b]),
        (_, bytes) => bytes
            .first_chunk()
            .map_or(f32::NAN, |b| f32::from_le_bytes(*b)),
    }
}

fn each_block<const N: usize>(
    bytes: &[u8],
    widen: impl Fn([u8; N]) -> f32,
    to: &mut [[u8; Q8_0_BYTES]],
) -> Result<(), NotQ8_0> {
    let (sources, _) = bytes.as_chunks::<N>();
    for (block, (from, to)) in sources
        .as_chunks::<Q8_0_VALUES>()
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
fn one_block(values: &[f32; Q8_0_VALUES], to: &mut [u8; Q8_0_BYTES]) -> Result<(), &'static str> {
    // magnitudes order as their bits do, and infinities and NaN come last
    let largest = values
        .iter()
        .fold(0, |most: u32, x| most.max(x.to_bits() & 0x7fff_ffff));
    if largest >= f32::INFINITY.to_bits() {
        return Err(NOT_FINITE);
    }
    let step = f32::from_bits(largest) / 127.0;
    let scale = narrow_to_f16(step);
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

#[inline]
fn widen_bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

const TWO_TO_23: f32 = 8_388_608.0;
const TWO_TO_112: f32 = f32::from_bits((127 + 112) << 23);

/// The exponent is moved from a bias of 15 to one of 127 by a multiplication, which also normalises
/// subnormals.
#[inline]
fn widen_f16(bytes: [u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    let (magnitude, sign) = ((bits & 0x7fff) << 13, (bits & 0x8000) << 16);
    let moved = f32::from_bits(magnitude) * TWO_TO_112;
    // all ones stay all ones: infinity and NaN
    let special = if bits & 0x7c00 == 0x7c00 {
        0x7f80_0000
    } else {
        0
    };
    f32::from_bits(moved.to_bits() | special | sign)
}

/// The nearest F16 to a value that is not negative, ties to even; infinity where it is too large.
fn narrow_to_f16(value: f32) -> u16 {
    const SMALLEST_NORMAL: f32 = 6.103_515_6e-5;
    const HALF_BEYOND_LARGEST: f32 = 65_520.0;
    let bits = if value >= HALF_BEYOND_LARGEST {
        0x7c00
    } else if value < SMALLEST_NORMAL {
        // added to 0.5, the value's bits below 2^-24 are rounded off by the addition itself
        (value + 0.5).to_bits() - 0.5_f32.to_bits()
    } else {
        let bits = value.to_bits();
        let odd = (bits >> 13) & 1;
        (bits - (112 << 23) + 0xfff + odd) >> 13
    };
    u16::try_from(bits).unwrap_or(0x7c00)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::samples::{Noise, bf16, every_sort, weights};

    fn le(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn quantized(dtype: Dtype, bytes: &[u8]) -> Result<Vec<u8>, NotQ8_0> {
        let mut out = Vec::new();
        quantize_q8_0(dtype, bytes, &mut out).map(|()| out)
    }

    /// The formula of ggml, word for word.
    fn by_the_book(values: &[f32]) -> Vec<u8> {
        let mut out = Vec::new();
        for block in values.chunks(Q8_0_VALUES) {
            let amax = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            let d = amax / 127.0;
            let id = if d == 0.0 { 0.0 } else { 1.0 / d };
            out.extend(narrow_to_f16(d).to_le_bytes());
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
            .map(|b| widen_bf16(*b))
            .collect();
        let wanted = by_the_book(&values);
        assert_eq!(quantized(Dtype::BF16, &bytes).unwrap(), wanted);
        assert_eq!(quantized(Dtype::F32, &le(&values)).unwrap(), wanted);
        let halves: Vec<f32> = bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| widen_f16(*b))
            .collect();
        assert_eq!(quantized(Dtype::F16, &bytes).unwrap(), by_the_book(&halves));
        assert_eq!(first_wrong_q8_0(Dtype::BF16, &bytes, &wanted), None);
    }

    #[test]
    fn the_check_agrees_on_every_sort_of_value() {
        for (name, bytes) in every_sort(32 * 40) {
            for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
                for block in bytes.chunks(128) {
                    if let Ok(after) = quantized(dtype, block) {
                        assert_eq!(
                            first_wrong_q8_0(dtype, block, &after),
                            None,
                            "{name}, {dtype}"
                        );
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
            let block = quantized(Dtype::F32, &le(&values)).unwrap();
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
            let error = quantized(Dtype::F32, &le(&values)).unwrap_err();
            assert_eq!(error.block, 2);
            assert!(error.to_string().contains("values 64 to 95"), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
        assert_eq!(
            quantized(Dtype::F32, &le(&[127.0 * 65_504.0; 32])).unwrap()[..2],
            [0xff, 0x7b]
        );
    }

    #[test]
    fn zeros_and_values_without_a_step_become_zeros() {
        for value in [0.0, -0.0, 1e-44, 1e-38] {
            let block = quantized(Dtype::F32, &le(&[value; 32])).unwrap();
            assert_eq!(block[..2], [0, 0], "{value}");
        }
        assert_eq!(quantized(Dtype::F32, &le(&[1e-44; 32])).unwrap(), [0; 34]);
    }

    #[test]
    fn the_check_sees_one_wrong_byte_anywhere() {
        let bytes = weights(32 * 4, 5);
        let after = quantized(Dtype::BF16, &bytes).unwrap();
        for place in 0..after.len() {
            for change in [1, 0x80] {
                let mut bad = after.clone();
                bad[place] ^= change;
                assert_eq!(
                    first_wrong_q8_0(Dtype::BF16, &bytes, &bad),
                    Some(place / 34),
                    "byte {place}"
                );
            }
        }
        assert_eq!(
            first_wrong_q8_0(Dtype::BF16, &bytes, &after[..34 * 3]),
            Some(3)
        );
        assert_eq!(
            first_wrong_q8_0(Dtype::BF16, &bytes, &after[..34 * 3 + 1]),
            Some(3)
        );
    }

    /// Every F16 comes back; what lies between two goes to the nearer one, in the middle to the
    /// even one.
    #[test]
    fn halves_of_every_exponent_are_the_nearest() {
        for bits in 0..0x7c00_u16 {
            let value = widen_f16(bits.to_le_bytes());
            assert_eq!(narrow_to_f16(value), bits);
            let middle = if bits == 0x7bff {
                65_520.0
            } else {
                (value + widen_f16((bits + 1).to_le_bytes())) / 2.0
            };
            assert_eq!(narrow_to_f16(middle), bits + (bits & 1), "{middle}");
            assert_eq!(narrow_to_f16(f32::from_bits(middle.to_bits() - 1)), bits);
            assert_eq!(
                narrow_to_f16(f32::from_bits(middle.to_bits() + 1)),
                bits + 1
            );
        }
        assert_eq!(widen_f16([0, 0x3c]), 1.0);
        assert_eq!(widen_f16([1, 0x80]), -(2.0_f32.powi(-24)));
        assert_eq!(widen_f16([0, 0xfc]), f32::NEG_INFINITY);
        assert!(widen_f16([1, 0x7e]).is_nan());
    }

    #[test]
    fn other_dtypes_and_left_over_values_add_nothing() {
        assert_eq!(q8_0_source_bytes(Dtype::I32), None);
        assert_eq!(quantized(Dtype::I64, &[0; 512]), Ok(Vec::new()));
        let mut noise = Noise(1);
        let bytes: Vec<u8> = (0..40)
            .flat_map(|_| bf16((noise.next() % 7) as f32).to_le_bytes())
            .collect();
        assert_eq!(quantized(Dtype::BF16, &bytes).unwrap().len(), 34);
    }
}

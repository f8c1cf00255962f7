//! Values of one floating-point dtype as another: exact where the new one is wider, else rounded to
//! the nearest, ties to even (IEEE 754-2019, section 4.3.1). All bytes are little-endian.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use segpack_formats::numeric::Dtype;

use crate::ops::widen;

/// Values that are converted in one step.
const STEP: usize = 4096;

/// From one floating-point dtype to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloatConversion {
    from: Dtype,
    to: Dtype,
}

/// A finite value that the new dtype cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("value number {index} of this piece, {value:e}, is beyond what {to} can hold")]
pub struct Overflow {
    /// Its place in the piece, counted from 0.
    pub index: usize,
    /// The value.
    pub value: f64,
    /// The new dtype.
    pub to: Dtype,
}

impl FloatConversion {
    /// From F16, BF16, F32 or F64 to F16, BF16 or F32; `None` where either is another dtype, or
    /// both are the same.
    pub fn new(from: Dtype, to: Dtype) -> Option<Self> {
        let known = matches!(from, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
            && matches!(to, Dtype::F16 | Dtype::BF16 | Dtype::F32);
        (known && from != to).then_some(Self { from, to })
    }

    /// The new dtype.
    pub fn to(self) -> Dtype {
        self.to
    }

    /// Bytes of one value before.
    pub fn from_bytes(self) -> usize {
        self.from.bitsize() / 8
    }

    /// Bytes of one value after.
    pub fn to_bytes(self) -> usize {
        self.to.bitsize() / 8
    }

    /// Appends the new values to `out`. `bytes` is a whole number of values. NaN stays NaN,
    /// infinities stay.
    ///
    /// # Errors
    /// `Overflow` for the first finite value that would become infinite.
    pub fn convert(self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Overflow> {
        let mut values = [0.0_f32; STEP];
        let mut done = 0;
        for piece in bytes.chunks(STEP * self.from_bytes()) {
            let start = out.len();
            if self.from == Dtype::F64 {
                self.narrow_f64(piece, out);
            } else {
                let values = &mut values[..piece.len() / self.from_bytes()];
                widen(self.from, piece, values);
                self.narrow(values, out);
            }
            if let Some(index) = self.first_new_infinity(piece, &out[start..]) {
                let value = decode(self.from, &piece[index * self.from_bytes()..]);
                return Err(Overflow {
                    index: done + index,
                    value,
                    to: self.to,
                });
            }
            done += piece.len() / self.from_bytes();
        }
        Ok(())
    }

    fn narrow(self, values: &[f32], out: &mut Vec<u8>) {
        match self.to {
            Dtype::F16 => {
                let mut narrow = [f16::ZERO; STEP];
                let narrow = &mut narrow[..values.len()];
                narrow.convert_from_f32_slice(values);
                out.extend(narrow.iter().flat_map(|x| x.to_le_bytes()));
            }
            Dtype::BF16 => out.extend(values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes())),
            _ => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
        }
    }

    fn narrow_f64(self, bytes: &[u8], out: &mut Vec<u8>) {
        let values = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| f64::from_le_bytes(*b));
        match self.to {
            Dtype::F16 => out.extend(values.flat_map(|x| f16::from_f64(x).to_le_bytes())),
            Dtype::BF16 => out.extend(values.flat_map(|x| bf16::from_f64(x).to_le_bytes())),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "rounds to the nearest, ties to even"
            )]
            _ => out.extend(values.flat_map(|x| (x as f32).to_le_bytes())),
        }
    }

    fn first_new_infinity(self, before: &[u8], after: &[u8]) -> Option<usize> {
        let is_new = |(index, infinite): (usize, bool)| {
            (infinite && decode(self.from, &before[index * self.from_bytes()..]).is_finite())
                .then_some(index)
        };
        if self.to == Dtype::F32 {
            let values = after
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b).is_infinite());
            return (self.from == Dtype::F64)
                .then(|| values.enumerate().find_map(is_new))
                .flatten();
        }
        let infinity = if self.to == Dtype::F16 {
            0x7c00
        } else {
            0x7f80
        };
        let is_infinite = |b: &[u8; 2]| u16::from_le_bytes(*b) & 0x7fff == infinity;
        let values = after.as_chunks::<2>().0;
        // without branches first: infinities are rare
        if !values.iter().fold(false, |any, b| any | is_infinite(b)) {
            return None;
        }
        values.iter().map(is_infinite).enumerate().find_map(is_new)
    }

    /// The first of `after` that is not the value of `before` in the new dtype, judged by value:
    /// what is written has to be the same number, or, where the new dtype is narrower, no farther
    /// from it than its neighbours, and even in a tie.
    pub fn first_wrong(self, before: &[u8], after: &[u8]) -> Option<usize> {
        let values = before
            .chunks_exact(self.from_bytes())
            .zip(after.chunks_exact(self.to_bytes()));
        let wrong = values.map(|(x, y)| !is_nearest(decode(self.from, x), self.to, y));
        let count = (
            before.len() / self.from_bytes(),
            after.len() / self.to_bytes(),
        );
        wrong
            .enumerate()
            .find_map(|(i, wrong)| wrong.then_some(i))
            .or((count.0 != count.1).then_some(count.0))
    }
}

/// The value at the start of `bytes`. 0 where the dtype is not a float.
fn decode(dtype: Dtype, bytes: &[u8]) -> f64 {
    match (dtype, bytes) {
        (Dtype::F16, [a, b, ..]) => f16::from_le_bytes([*a, *b]).to_f64(),
        (Dtype::BF16, [a, b, ..]) => bf16::from_le_bytes([*a, *b]).to_f64(),
        (Dtype::F32, [a, b, c, d, ..]) => f64::from(f32::from_le_bytes([*a, *b, *c, *d])),
        (Dtype::F64, bytes) => bytes.first_chunk().map_or(0.0, |b| f64::from_le_bytes(*b)),
        _ => 0.0,
    }
}

/// Whether the value at the start of `bytes` is the nearest to `x` that its dtype has.
fn is_nearest(x: f64, dtype: Dtype, bytes: &[u8]) -> bool {
    let y = decode(dtype, bytes);
    if x.is_nan() || y.is_nan() {
        return x.is_nan() && y.is_nan();
    }
    if x == y {
        return x.is_sign_negative() == y.is_sign_negative();
    }
    if x.is_infinite() || y.is_infinite() || x.is_sign_negative() != y.is_sign_negative() {
        return false;
    }
    let away = (x - y).abs();
    let odd = bytes[0] & 1 == 1;
    // bits count up in magnitude, whatever the sign
    [beside(bytes, true), beside(bytes, false)]
        .iter()
        .flatten()
        .all(|neighbour| {
            let farther = (x - decode(dtype, neighbour)).abs();
            away < farther || (away == farther && !odd)
        })
}

/// The value that is one step larger or smaller in magnitude; none below zero.
fn beside(bytes: &[u8], larger: bool) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    if !larger
        && bytes
            .split_last()
            .is_some_and(|(top, rest)| top & 0x7f == 0 && rest.iter().all(|b| *b == 0))
    {
        return None;
    }
    for byte in &mut bytes {
        let (next, carried) = if larger {
            byte.overflowing_add(1)
        } else {
            byte.overflowing_sub(1)
        };
        *byte = next;
        if !carried {
            break;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversion(from: Dtype, to: Dtype) -> FloatConversion {
        FloatConversion::new(from, to).unwrap()
    }

    fn all_u16() -> Vec<u8> {
        (0..=u16::MAX).flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn every_16_bit_value_widens_and_comes_back() {
        for dtype in [Dtype::BF16, Dtype::F16] {
            let (widen, narrow) = (conversion(dtype, Dtype::F32), conversion(Dtype::F32, dtype));
            let (before, mut wide, mut after) = (all_u16(), Vec::new(), Vec::new());
            widen.convert(&before, &mut wide).unwrap();
            narrow.convert(&wide, &mut after).unwrap();
            for (x, y) in before.chunks_exact(2).zip(after.chunks_exact(2)) {
                assert!(
                    x == y || (decode(dtype, x).is_nan() && decode(dtype, y).is_nan()),
                    "{x:?} {y:?}"
                );
            }
            assert_eq!(widen.first_wrong(&before, &wide), None);
            assert_eq!(narrow.first_wrong(&wide, &after), None);
        }
    }

    #[test]
    fn narrowing_rounds_to_nearest_even_and_the_check_knows() {
        // 1 + 2^-8 is a tie between 1 and 1 + 2^-7; 1 + 3 * 2^-8 one between odd and even; a bit
        // more is none
        let values = [
            1.0 + 1.0 / 256.0,
            1.0 + 3.0 / 256.0,
            1.003_907,
            -0.0,
            f32::INFINITY,
            1e-45,
        ];
        let before: Vec<u8> = values.iter().flat_map(|x: &f32| x.to_le_bytes()).collect();
        let narrow = conversion(Dtype::F32, Dtype::BF16);
        let mut after = Vec::new();
        narrow.convert(&before, &mut after).unwrap();
        let bits: Vec<u16> = after
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| u16::from_le_bytes(*b))
            .collect();
        assert_eq!(bits, [0x3f80, 0x3f82, 0x3f81, 0x8000, 0x7f80, 0]);
        assert_eq!(narrow.first_wrong(&before, &after), None);
        for (index, wrong) in [
            (0, 0x3f81_u16),
            (1, 0x3f81),
            (2, 0x3f80),
            (3, 0),
            (4, 0x7f7f),
            (5, 1),
        ] {
            let mut bad = after.clone();
            bad[2 * index..2 * index + 2].copy_from_slice(&wrong.to_le_bytes());
            assert_eq!(narrow.first_wrong(&before, &bad), Some(index));
        }
        assert_eq!(narrow.first_wrong(&before, &after[..10]), Some(6));
    }

    #[test]
    fn a_finite_value_never_becomes_infinite() {
        let bf16 = |x: f32| half::bf16::from_f32(x).to_le_bytes();
        let before = [bf16(1.0), bf16(f32::INFINITY), bf16(65_536.0)].concat();
        let mut out = Vec::new();
        let narrow = conversion(Dtype::BF16, Dtype::F16);
        assert!(narrow.convert(&before[..4], &mut out).is_ok());
        let error = narrow.convert(&before, &mut out).unwrap_err();
        assert_eq!((error.index, error.value), (2, 65_536.0));
        let large = f32::MAX.to_le_bytes();
        assert!(
            conversion(Dtype::F32, Dtype::BF16)
                .convert(&large, &mut out)
                .is_err()
        );
        assert!(
            conversion(Dtype::F64, Dtype::F32)
                .convert(&1e300_f64.to_le_bytes(), &mut out)
                .is_err()
        );
    }

    #[test]
    fn only_floats_are_converted() {
        assert_eq!(FloatConversion::new(Dtype::I32, Dtype::F32), None);
        assert_eq!(FloatConversion::new(Dtype::F32, Dtype::F32), None);
        assert_eq!(FloatConversion::new(Dtype::F32, Dtype::F8_E4M3), None);
    }
}

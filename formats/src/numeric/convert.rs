//! Values of one floating-point dtype as another: exact where the new one is wider, else rounded to
//! the nearest, ties to even (IEEE 754-2019, section 4.3.1). All bytes are little-endian.

use super::{Dtype, FloatDtype, bf16, f16};

/// Values that are converted in one step.
const STEP: usize = 4096;

/// From one floating-point dtype to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloatConversion {
    from: Source,
    to: FloatDtype,
}

/// What can be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Float(FloatDtype),
    F64,
}

impl Source {
    fn of(dtype: Dtype) -> Option<Self> {
        if dtype == Dtype::F64 {
            return Some(Self::F64);
        }
        FloatDtype::try_from(dtype).ok().map(Self::Float)
    }

    const fn byte_width(self) -> usize {
        match self {
            Self::Float(float) => float.byte_width(),
            Self::F64 => super::f64::WIDTH,
        }
    }

    /// The value at the start of `bytes`, exact; NaN where they are too few.
    fn decode(self, bytes: &[u8]) -> f64 {
        match self {
            Self::Float(FloatDtype::F16) => decode_first(bytes, |b| f64::from(f16::decode(b))),
            Self::Float(FloatDtype::BF16) => decode_first(bytes, |b| f64::from(bf16::decode(b))),
            Self::Float(FloatDtype::F32) => {
                decode_first(bytes, |b| f64::from(f32::from_le_bytes(b)))
            }
            Self::F64 => decode_first(bytes, f64::from_le_bytes),
        }
    }
}

fn decode_first<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f64) -> f64 {
    bytes.first_chunk().copied().map_or(f64::NAN, decode)
}

/// A finite value that the new dtype cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("value number {index} of this piece, {value:e}, is beyond what {to} can hold")]
pub struct Overflow {
    /// Its position in the piece, counted from 0.
    pub index: usize,
    /// The value.
    pub value: f64,
    /// The new dtype.
    pub to: FloatDtype,
}

impl FloatConversion {
    /// From F16, BF16, F32 or F64 to F16, BF16 or F32; `None` where `from` is another dtype, or
    /// both are the same.
    pub fn new(from: Dtype, to: FloatDtype) -> Option<Self> {
        let from = Source::of(from).filter(|from| *from != Source::Float(to))?;
        Some(Self { from, to })
    }

    /// The new dtype.
    pub fn to(self) -> Dtype {
        self.to.into()
    }

    /// Bytes of one value before.
    pub fn from_bytes(self) -> usize {
        self.from.byte_width()
    }

    /// Bytes of one value after.
    pub fn to_bytes(self) -> usize {
        self.to.byte_width()
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
            match self.from {
                Source::F64 => self.narrow_f64(piece, out),
                Source::Float(from) => {
                    let values = &mut values[..piece.len() / self.from_bytes()];
                    from.widen(piece, values);
                    self.to.narrow(values, out);
                }
            }
            if let Some(index) = self.first_new_infinity(piece, &out[start..]) {
                let value = self.from.decode(&piece[index * self.from_bytes()..]);
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

    /// In one rounding: by way of F32 there would be two.
    fn narrow_f64(self, bytes: &[u8], out: &mut Vec<u8>) {
        let (values, _) = bytes.as_chunks();
        let values = values.iter().map(|b| super::f64::decode(*b));
        match self.to {
            FloatDtype::F16 => out.extend(values.flat_map(f16::encode_f64)),
            FloatDtype::BF16 => out.extend(values.flat_map(bf16::encode_f64)),
            FloatDtype::F32 => {
                out.extend(values.flat_map(|x| super::f64::narrow(x).to_le_bytes()));
            }
        }
    }

    /// The first value that is infinite in `after` and was not in `before`.
    fn first_new_infinity(self, before: &[u8], after: &[u8]) -> Option<usize> {
        match (self.from, self.to) {
            // both have the range of F32
            (Source::Float(_), FloatDtype::F32) => None,
            (Source::F64, FloatDtype::F32) => {
                let infinity = super::f32::EXPONENT;
                let is_infinite = |b: &[u8; 4]| u32::from_le_bytes(*b) & 0x7fff_ffff == infinity;
                self.first_new(before, after, is_infinite)
            }
            (_, FloatDtype::F16) => {
                let is_infinite = |b: &[u8; 2]| u16::from_le_bytes(*b) & 0x7fff == f16::EXPONENT;
                self.first_new(before, after, is_infinite)
            }
            (_, FloatDtype::BF16) => {
                let is_infinite = |b: &[u8; 2]| u16::from_le_bytes(*b) & 0x7fff == bf16::EXPONENT;
                self.first_new(before, after, is_infinite)
            }
        }
    }

    fn first_new<const N: usize>(
        self,
        before: &[u8],
        after: &[u8],
        is_infinite: impl Fn(&[u8; N]) -> bool,
    ) -> Option<usize> {
        let (after, _) = after.as_chunks::<N>();
        // without branches first: infinities are rare
        if !after.iter().fold(false, |any, b| any | is_infinite(b)) {
            return None;
        }
        let width = self.from_bytes();
        after
            .iter()
            .enumerate()
            .position(|(i, b)| is_infinite(b) && self.from.decode(&before[i * width..]).is_finite())
    }

    /// The first of `after` that is not the value of `before` in the new dtype, judged by value:
    /// what is written has to be the same number, or, where the new dtype is narrower, no farther
    /// from it than its neighbours, and even in a tie.
    pub fn first_wrong(self, before: &[u8], after: &[u8]) -> Option<usize> {
        let (from, to) = (self.from_bytes(), self.to_bytes());
        let mut values = before.chunks_exact(from).zip(after.chunks_exact(to));
        let wrong = values.position(|(x, y)| !is_nearest(self.from.decode(x), self.to, y));
        let count = (before.len() / from, after.len() / to);
        wrong.or((count.0 != count.1).then_some(count.0))
    }
}

/// Whether the value at the start of `bytes` is the nearest to `x` that its dtype has.
fn is_nearest(x: f64, dtype: FloatDtype, bytes: &[u8]) -> bool {
    let stored = Source::Float(dtype);
    let y = stored.decode(bytes);
    if x.is_nan() || y.is_nan() {
        return x.is_nan() && y.is_nan();
    }
    if x == y {
        return x.is_sign_negative() == y.is_sign_negative();
    }
    if x.is_infinite() || y.is_infinite() || x.is_sign_negative() != y.is_sign_negative() {
        return false;
    }
    let distance = (x - y).abs();
    let odd = bytes[0] & 1 == 1;
    // bits count up in magnitude, whatever the sign
    [beside(bytes, true), beside(bytes, false)]
        .iter()
        .flatten()
        .all(|neighbour| {
            let farther = (x - stored.decode(neighbour)).abs();
            distance < farther || (distance == farther && !odd)
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

    fn conversion(from: Dtype, to: FloatDtype) -> FloatConversion {
        FloatConversion::new(from, to).unwrap()
    }

    fn all_u16() -> Vec<u8> {
        (0..=u16::MAX).flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn every_16_bit_value_widens_and_comes_back() {
        for float in [FloatDtype::BF16, FloatDtype::F16] {
            let dtype = Dtype::from(float);
            let (widen, narrow) = (
                conversion(dtype, FloatDtype::F32),
                conversion(Dtype::F32, float),
            );
            let (before, mut wide, mut after) = (all_u16(), Vec::new(), Vec::new());
            widen.convert(&before, &mut wide).unwrap();
            narrow.convert(&wide, &mut after).unwrap();
            let is_nan = |b: &[u8]| Source::of(dtype).unwrap().decode(b).is_nan();
            for (x, y) in before.chunks_exact(2).zip(after.chunks_exact(2)) {
                assert!(x == y || (is_nan(x) && is_nan(y)), "{x:?} {y:?}");
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
        let narrow = conversion(Dtype::F32, FloatDtype::BF16);
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
        let before = [1.0, f32::INFINITY, 65_536.0].map(bf16::encode).concat();
        let mut out = Vec::new();
        let narrow = conversion(Dtype::BF16, FloatDtype::F16);
        assert!(narrow.convert(&before[..4], &mut out).is_ok());
        let error = narrow.convert(&before, &mut out).unwrap_err();
        assert_eq!((error.index, error.value), (2, 65_536.0));
        let large = f32::MAX.to_le_bytes();
        assert!(
            conversion(Dtype::F32, FloatDtype::BF16)
                .convert(&large, &mut out)
                .is_err()
        );
        assert!(
            conversion(Dtype::F64, FloatDtype::F32)
                .convert(&1e300_f64.to_le_bytes(), &mut out)
                .is_err()
        );
    }

    #[test]
    fn only_floats_are_converted() {
        assert_eq!(FloatConversion::new(Dtype::I32, FloatDtype::F32), None);
        assert_eq!(FloatConversion::new(Dtype::F32, FloatDtype::F32), None);
        assert_eq!(FloatConversion::new(Dtype::F8_E4M3, FloatDtype::F32), None);
    }
}

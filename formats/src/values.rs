//! A look at the values of a tensor while its bytes pass: are they all zero, is any not finite?

use crate::numeric::Dtype;

/// What was seen of a tensor's values so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueCheck {
    mask: Option<Exponent>,
    seen: bool,
    all_zero: bool,
    finite: bool,
}

/// Exponent bits that are all ones in infinities and NaNs, for one width of value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exponent {
    Bits16(u16),
    Bits32(u32),
    Bits64(u64),
}

impl ValueCheck {
    /// Nothing seen yet of a tensor of this dtype. Only F16, BF16, F32 and F64 are checked for
    /// finiteness.
    pub fn new(dtype: Dtype) -> Self {
        let mask = match dtype {
            Dtype::BF16 => Some(Exponent::Bits16(0x7f80)),
            Dtype::F16 => Some(Exponent::Bits16(0x7c00)),
            Dtype::F32 => Some(Exponent::Bits32(0x7f80_0000)),
            Dtype::F64 => Some(Exponent::Bits64(0x7ff0_0000_0000_0000)),
            _ => None,
        };
        Self {
            mask,
            seen: false,
            all_zero: true,
            finite: true,
        }
    }

    /// Looks at the next bytes; every piece but the last is a whole number of values.
    pub fn update(&mut self, bytes: &[u8]) {
        self.seen |= !bytes.is_empty();
        // most pieces hold something in their first bytes
        self.all_zero = self.all_zero
            && bytes.iter().take(64).all(|b| *b == 0)
            && bytes.iter().all(|b| *b == 0);
        let finite = |any: bool| !any;
        self.finite = self.finite
            && match self.mask {
                None => true,
                Some(Exponent::Bits16(mask)) => {
                    let (values, _) = bytes.as_chunks::<2>();
                    finite(values.iter().fold(false, |any, v| {
                        any | (u16::from_le_bytes(*v) & mask == mask)
                    }))
                }
                Some(Exponent::Bits32(mask)) => {
                    let (values, _) = bytes.as_chunks::<4>();
                    finite(values.iter().fold(false, |any, v| {
                        any | (u32::from_le_bytes(*v) & mask == mask)
                    }))
                }
                Some(Exponent::Bits64(mask)) => {
                    let (values, _) = bytes.as_chunks::<8>();
                    finite(values.iter().fold(false, |any, v| {
                        any | (u64::from_le_bytes(*v) & mask == mask)
                    }))
                }
            };
    }

    /// Whether there were values and all their bits were zero.
    pub fn is_all_zero(&self) -> bool {
        self.seen && self.all_zero
    }

    /// Whether every value was a finite number.
    pub fn is_finite(&self) -> bool {
        self.finite
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(dtype: Dtype, pieces: &[&[u8]]) -> (bool, bool) {
        let mut check = ValueCheck::new(dtype);
        pieces.iter().for_each(|p| check.update(p));
        (check.is_all_zero(), check.is_finite())
    }

    #[test]
    fn zeros_and_infinities_are_noticed_at_any_place() {
        assert_eq!(check(Dtype::BF16, &[&[0; 200], &[0; 2]]), (true, true));
        assert_eq!(check(Dtype::BF16, &[&[0; 200], &[1, 0]]), (false, true));
        assert_eq!(check(Dtype::BF16, &[]), (false, true));
        assert_eq!(
            check(Dtype::BF16, &[&[0; 100], &[0x80, 0x7f]]),
            (false, false),
            "infinity"
        );
        assert_eq!(
            check(Dtype::BF16, &[&[0xc1, 0xff], &[0; 100]]),
            (false, false),
            "NaN"
        );
        assert_eq!(check(Dtype::F16, &[&[0x80, 0x7f]]), (false, false));
        assert_eq!(
            check(
                Dtype::F32,
                &[&1.0_f32.to_le_bytes(), &f32::MAX.to_le_bytes()]
            ),
            (false, true)
        );
        assert_eq!(
            check(Dtype::F32, &[&f32::NAN.to_le_bytes()]),
            (false, false)
        );
        assert_eq!(
            check(Dtype::F64, &[&f64::NEG_INFINITY.to_le_bytes()]),
            (false, false)
        );
        assert_eq!(check(Dtype::I64, &[&[255; 8]]), (false, true));
    }
}

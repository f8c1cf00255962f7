//! A look at the values of a tensor while its bytes pass: are they all zero, is any not finite?

use super::{Dtype, bf16, f16};

/// What was seen of a tensor's values so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueCheck {
    not_finite: NotFinite,
    seen: bool,
    all_zero: bool,
    finite: bool,
}

/// Which values of a dtype are infinite or NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotFinite {
    /// None is.
    Never,
    /// Those of 8 bits that are `pattern` under `mask`.
    Bits8 { mask: u8, pattern: u8 },
    /// Those of 16 bits whose exponent is all ones.
    Bits16 { exponent: u16 },
    /// Those of 32 bits whose exponent is all ones.
    Bits32 { exponent: u32 },
    /// Those of 64 bits whose exponent is all ones.
    Bits64 { exponent: u64 },
}

impl NotFinite {
    const fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F8_E5M2 => Self::Bits8 {
                mask: 0x7c,
                pattern: 0x7c,
            },
            Dtype::F8_E4M3 => Self::Bits8 {
                mask: 0x7f,
                pattern: 0x7f,
            },
            Dtype::F8_E8M0 => Self::Bits8 {
                mask: 0xff,
                pattern: 0xff,
            },
            Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ => Self::Bits8 {
                mask: 0xff,
                pattern: 0x80,
            },
            Dtype::F16 => Self::Bits16 {
                exponent: f16::EXPONENT,
            },
            Dtype::BF16 => Self::Bits16 {
                exponent: bf16::EXPONENT,
            },
            // a complex number is finite where both of its parts are
            Dtype::F32 | Dtype::C64 => Self::Bits32 {
                exponent: super::f32::EXPONENT,
            },
            Dtype::F64 => Self::Bits64 {
                exponent: super::f64::EXPONENT,
            },
            Dtype::BOOL
            | Dtype::F4
            | Dtype::F6_E2M3
            | Dtype::F6_E3M2
            | Dtype::U8
            | Dtype::I8
            | Dtype::I16
            | Dtype::U16
            | Dtype::I32
            | Dtype::U32
            | Dtype::I64
            | Dtype::U64 => Self::Never,
        }
    }

    /// Whether any of these values is. Without branches, so that it keeps up with the digests.
    fn is_in(self, bytes: &[u8]) -> bool {
        match self {
            Self::Never => false,
            Self::Bits8 { mask, pattern } => bytes
                .iter()
                .fold(false, |any, v| any | (v & mask == pattern)),
            Self::Bits16 { exponent } => {
                let (values, _) = bytes.as_chunks::<2>();
                let all_ones = |v: &[u8; 2]| u16::from_le_bytes(*v) & exponent == exponent;
                values.iter().fold(false, |any, v| any | all_ones(v))
            }
            Self::Bits32 { exponent } => {
                let (values, _) = bytes.as_chunks::<4>();
                let all_ones = |v: &[u8; 4]| u32::from_le_bytes(*v) & exponent == exponent;
                values.iter().fold(false, |any, v| any | all_ones(v))
            }
            Self::Bits64 { exponent } => {
                let (values, _) = bytes.as_chunks::<8>();
                let all_ones = |v: &[u8; 8]| u64::from_le_bytes(*v) & exponent == exponent;
                values.iter().fold(false, |any, v| any | all_ones(v))
            }
        }
    }
}

impl ValueCheck {
    /// Nothing seen yet of a tensor of this dtype. The values of dtypes that have infinities or
    /// NaNs are checked for them; all values of the others are finite.
    pub fn new(dtype: Dtype) -> Self {
        Self {
            not_finite: NotFinite::of(dtype),
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
        self.finite = self.finite && !self.not_finite.is_in(bytes);
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
    use super::super::fp8::{self, Fp8};
    use super::*;

    fn not_finite_of(format: &Fp8) -> Vec<u8> {
        (0..=u8::MAX)
            .filter(|bits| !format.is_finite(*bits))
            .collect()
    }

    /// Values of one byte whose decoder says that they are not finite.
    fn not_finite_bytes(dtype: Dtype) -> Option<Vec<u8>> {
        match dtype {
            Dtype::F8_E5M2 => Some(not_finite_of(&fp8::E5M2)),
            Dtype::F8_E4M3 => Some(not_finite_of(&fp8::E4M3)),
            Dtype::F8_E8M0 => Some(not_finite_of(&fp8::E8M0)),
            Dtype::F8_E4M3FNUZ => Some(not_finite_of(&fp8::E4M3_FNUZ)),
            Dtype::F8_E5M2FNUZ => Some(not_finite_of(&fp8::E5M2_FNUZ)),
            Dtype::BOOL
            | Dtype::F4
            | Dtype::F6_E2M3
            | Dtype::F6_E3M2
            | Dtype::U8
            | Dtype::I8
            | Dtype::I16
            | Dtype::U16
            | Dtype::F16
            | Dtype::BF16
            | Dtype::I32
            | Dtype::U32
            | Dtype::F32
            | Dtype::C64
            | Dtype::F64
            | Dtype::I64
            | Dtype::U64 => None,
        }
    }

    /// Bytes of a value that is not finite; every dtype has its row, `None` where it has none.
    const NOT_FINITE: [(Dtype, Option<&[u8]>); Dtype::ALL.len()] = [
        (Dtype::BOOL, None),
        (Dtype::F4, None),
        (Dtype::F6_E2M3, None),
        (Dtype::F6_E3M2, None),
        (Dtype::U8, None),
        (Dtype::I8, None),
        (Dtype::F8_E5M2, Some(&[0xfc])),
        (Dtype::F8_E4M3, Some(&[0xff])),
        (Dtype::F8_E8M0, Some(&[0xff])),
        (Dtype::F8_E4M3FNUZ, Some(&[0x80])),
        (Dtype::F8_E5M2FNUZ, Some(&[0x80])),
        (Dtype::I16, None),
        (Dtype::U16, None),
        (Dtype::F16, Some(&[0, 0xfc])),
        (Dtype::BF16, Some(&[0xc1, 0xff])),
        (Dtype::I32, None),
        (Dtype::U32, None),
        (Dtype::F32, Some(&[0, 0, 0x80, 0xff])),
        (Dtype::C64, Some(&[0, 0, 0, 0, 0, 0, 0x80, 0x7f])),
        (Dtype::F64, Some(&[0, 0, 0, 0, 0, 0, 0xf0, 0x7f])),
        (Dtype::I64, None),
        (Dtype::U64, None),
    ];

    #[test]
    fn every_dtype_has_its_check() {
        for ((dtype, not_finite), listed) in NOT_FINITE.into_iter().zip(Dtype::ALL) {
            assert_eq!(dtype, listed);
            match not_finite {
                Some(bytes) => {
                    assert_eq!(check(dtype, &[&[0; 64], bytes]), (false, false), "{dtype}");
                }
                None => {
                    let every: Vec<u8> = (0..=255).collect();
                    assert_eq!(check(dtype, &[&every]), (false, true), "{dtype}");
                }
            }
            let ones = dtype.byte_width().unwrap_or(1);
            assert_eq!(
                check(dtype, &[&vec![1; ones * 40]]),
                (false, true),
                "{dtype}"
            );
        }
    }

    #[test]
    fn values_of_one_byte_are_judged_as_their_decoder_does() {
        for dtype in Dtype::ALL {
            let Some(wanted) = not_finite_bytes(dtype) else {
                continue;
            };
            let seen: Vec<u8> = (0..=255)
                .filter(|bits| !check(dtype, &[&[*bits]]).1)
                .collect();
            assert_eq!(seen, wanted, "{dtype}");
        }
    }

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

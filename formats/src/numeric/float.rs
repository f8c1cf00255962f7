//! The floats that are computed with as they are stored.

use std::fmt;

use super::{Dtype, bf16, f16};

/// A dtype whose values are all F32 values and stand for themselves, without a scale. Kernels
/// compute with weights of these; a dtype that is none of them never reaches a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FloatDtype {
    /// See [`bf16`].
    BF16,
    /// See [`f16`](mod@super::f16).
    F16,
    /// See [`f32`](mod@super::f32).
    F32,
}

/// A dtype that is no [`FloatDtype`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("dtype is {0}; wanted BF16, F16 or F32")]
pub struct NotFloat(pub Dtype);

impl FloatDtype {
    /// Every one of them.
    pub const ALL: [Self; 3] = [Self::BF16, Self::F16, Self::F32];

    /// The size of one value in bytes.
    #[inline]
    pub const fn byte_width(self) -> usize {
        match self {
            Self::BF16 => bf16::WIDTH,
            Self::F16 => f16::WIDTH,
            Self::F32 => super::f32::WIDTH,
        }
    }

    /// Decodes as many values as both sides hold; exact.
    #[inline]
    pub fn widen(self, bytes: &[u8], to: &mut [f32]) {
        match self {
            Self::BF16 => bf16::widen(bytes, to),
            Self::F16 => f16::widen(bytes, to),
            Self::F32 => super::f32::widen(bytes, to),
        }
    }

    /// Appends the nearest values of this dtype, ties to even.
    pub fn narrow(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::BF16 => out.extend(values.iter().flat_map(|x| bf16::encode(*x))),
            Self::F16 => f16::encode_all::<4096>(values, out),
            Self::F32 => out.extend(values.iter().flat_map(|x| super::f32::encode(*x))),
        }
    }
}

impl From<FloatDtype> for Dtype {
    fn from(float: FloatDtype) -> Self {
        match float {
            FloatDtype::BF16 => Self::BF16,
            FloatDtype::F16 => Self::F16,
            FloatDtype::F32 => Self::F32,
        }
    }
}

impl TryFrom<Dtype> for FloatDtype {
    type Error = NotFloat;

    fn try_from(dtype: Dtype) -> Result<Self, NotFloat> {
        match dtype {
            Dtype::BF16 => Ok(Self::BF16),
            Dtype::F16 => Ok(Self::F16),
            Dtype::F32 => Ok(Self::F32),
            Dtype::BOOL
            | Dtype::F4
            | Dtype::F6_E2M3
            | Dtype::F6_E3M2
            | Dtype::U8
            | Dtype::I8
            | Dtype::F8_E5M2
            | Dtype::F8_E4M3
            | Dtype::F8_E8M0
            | Dtype::F8_E4M3FNUZ
            | Dtype::F8_E5M2FNUZ
            | Dtype::I16
            | Dtype::U16
            | Dtype::I32
            | Dtype::U32
            | Dtype::C64
            | Dtype::F64
            | Dtype::I64
            | Dtype::U64 => Err(NotFloat(dtype)),
        }
    }
}

impl fmt::Display for FloatDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Dtype::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_widen_exactly_and_narrow_again() {
        let cases: [(_, &[u8], _); 3] = [
            (FloatDtype::BF16, &[0x80, 0x3f, 0x00, 0xc0], [1.0, -2.0]),
            (
                FloatDtype::F16,
                &[0x00, 0x3c, 0x01, 0x00],
                [1.0, 5.960_464_5e-8],
            ),
            (FloatDtype::F32, &[0, 0, 128, 63, 0, 0, 0, 192], [1.0, -2.0]),
        ];
        for (dtype, bytes, wanted) in cases {
            let (mut to, mut back) = ([0.0; 2], Vec::new());
            dtype.widen(bytes, &mut to);
            assert_eq!(to, wanted, "{dtype}");
            dtype.narrow(&to, &mut back);
            assert_eq!(back, bytes, "{dtype}");
        }
    }

    #[test]
    fn other_dtypes_are_refused_by_name() {
        for dtype in Dtype::ALL {
            match FloatDtype::try_from(dtype) {
                Ok(float) => {
                    assert_eq!(Dtype::from(float), dtype);
                    assert_eq!(Some(float.byte_width()), dtype.byte_width());
                }
                Err(e) => {
                    assert!(!FloatDtype::ALL.map(Dtype::from).contains(&dtype));
                    assert_eq!(
                        e.to_string(),
                        format!("dtype is {dtype}; wanted BF16, F16 or F32")
                    );
                }
            }
        }
    }
}

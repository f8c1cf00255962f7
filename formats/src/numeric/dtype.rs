//! The element types of safetensors files.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Defines [`Dtype`] from one table: a variant's name is also its name in headers and documents.
macro_rules! dtypes {
    ($($(#[doc = $doc:literal])+ $name:ident: $bits:literal,)+) => {
        /// The element type of a tensor, named as in the header of a safetensors file.
        ///
        /// The list is that of the `safetensors` crate, in its order: by alignment. It is closed,
        /// so that every `match` over it names each type, and a new one is found by the compiler.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[expect(non_camel_case_types, reason = "the names in headers and documents")]
        pub enum Dtype {
            $($(#[doc = $doc])+ $name,)+
        }

        impl FromStr for Dtype {
            type Err = UnknownDtype;

            fn from_str(text: &str) -> Result<Self, UnknownDtype> {
                match text {
                    $(stringify!($name) => Ok(Self::$name),)+
                    _ => Err(UnknownDtype(text.to_owned())),
                }
            }
        }

        impl Dtype {
            /// Every dtype, in order.
            pub const ALL: [Self; [$($bits),+].len()] = [$(Self::$name),+];

            /// The name in headers and documents, for example `BF16`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }

            /// The size of one value in bits; fewer than 8 for values that share bytes.
            pub const fn bitsize(self) -> usize {
                match self {
                    $(Self::$name => $bits,)+
                }
            }
        }
    };
}

dtypes! {
    /// A truth value in one byte: 0 or 1.
    BOOL: 8,
    /// E2M1, the 4-bit float of MXFP4: see [`mxfp4`](super::mxfp4).
    F4: 4,
    /// E2M3, a 6-bit float of the OCP Microscaling formats (1.0, section 5.3.2).
    F6_E2M3: 6,
    /// E3M2, a 6-bit float of the OCP Microscaling formats (1.0, section 5.3.2).
    F6_E3M2: 6,
    /// Unsigned, 8 bits.
    U8: 8,
    /// Two's complement, 8 bits.
    I8: 8,
    /// OCP 8-bit float, 5 bits of exponent, 2 of mantissa: see [`fp8`](super::fp8).
    F8_E5M2: 8,
    /// OCP 8-bit float, 4 bits of exponent, 3 of mantissa, no infinities: see [`fp8`](super::fp8).
    F8_E4M3: 8,
    /// A power of two without a sign, the scale of OCP Microscaling blocks: see
    /// [`fp8`](super::fp8).
    F8_E8M0: 8,
    /// As `F8_E4M3` with a bias of 8; one NaN, no negative zero (<https://arxiv.org/abs/2206.02915>).
    F8_E4M3FNUZ: 8,
    /// As `F8_E5M2` with a bias of 16; one NaN, no infinities, no negative zero
    /// (<https://arxiv.org/abs/2206.02915>).
    F8_E5M2FNUZ: 8,
    /// Two's complement, 16 bits.
    I16: 16,
    /// Unsigned, 16 bits.
    U16: 16,
    /// IEEE 754 binary16: see [`f16`](super::f16).
    F16: 16,
    /// The upper half of an IEEE 754 binary32: see [`bf16`](super::bf16).
    BF16: 16,
    /// Two's complement, 32 bits.
    I32: 32,
    /// Unsigned, 32 bits.
    U32: 32,
    /// IEEE 754 binary32: see [`f32`](super::f32).
    F32: 32,
    /// A complex number: real, then imaginary part, each as `F32`.
    C64: 64,
    /// IEEE 754 binary64: see [`f64`](super::f64).
    F64: 64,
    /// Two's complement, 64 bits.
    I64: 64,
    /// Unsigned, 64 bits.
    U64: 64,
}

impl Dtype {
    /// The size of one value in bytes; `None` where values share bytes.
    pub const fn byte_width(self) -> Option<usize> {
        match self.bitsize() {
            bits if bits.is_multiple_of(8) => Some(bits / 8),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no [`Dtype`]'s.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype {0:?}")]
pub struct UnknownDtype(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    /// The dtype of this name in the stock crate.
    fn stock(name: &str) -> Option<safetensors::Dtype> {
        serde_json::from_value(name.into()).ok()
    }

    #[test]
    fn the_stock_crate_has_the_same_dtypes() {
        for dtype in Dtype::ALL {
            let stock = stock(dtype.name()).unwrap_or_else(|| panic!("{dtype} is not stock"));
            assert_eq!(stock.to_string(), dtype.to_string());
            assert_eq!(stock.bitsize(), dtype.bitsize(), "{dtype}");
        }
        // serde's message for an unknown variant lists the known ones, which are all of them
        let unknown = serde_json::from_str::<safetensors::Dtype>("\"?\"")
            .unwrap_err()
            .to_string();
        let mut theirs: Vec<_> = unknown.split('`').skip(3).step_by(2).collect();
        let mut ours: Vec<_> = Dtype::ALL.into_iter().map(Dtype::name).collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        assert_eq!(theirs, ours);
        assert!(Dtype::ALL.is_sorted());
    }

    #[test]
    fn names_are_read_and_written_alike_by_text_and_by_serde() {
        for dtype in Dtype::ALL {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
            let json = serde_json::to_string(&dtype).unwrap();
            assert_eq!(json, format!("\"{dtype}\""));
            assert_eq!(serde_json::from_str::<Dtype>(&json).unwrap(), dtype);
        }
        for wrong in ["", "bf16", "BF16 ", "F12"] {
            assert_eq!(wrong.parse::<Dtype>(), Err(UnknownDtype(wrong.to_owned())));
        }
    }

    #[test]
    fn only_values_of_whole_bytes_have_a_width_in_bytes() {
        for dtype in Dtype::ALL {
            let shares = matches!(dtype, Dtype::F4 | Dtype::F6_E2M3 | Dtype::F6_E3M2);
            assert_eq!(dtype.byte_width().is_none(), shares, "{dtype}");
        }
    }
}

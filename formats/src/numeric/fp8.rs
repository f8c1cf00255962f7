//! The 8-bit floats: three of the OCP, two without negative zero.
//!
//! | | exponent, mantissa | bias | largest | infinities | NaN |
//! |---|---|---|---|---|---|
//! | [`E4M3`] | 4, 3 | 7 | 448 | none | `0x7f`, `0xff` |
//! | [`E5M2`] | 5, 2 | 15 | 57344 | `0x7c`, `0xfc` | `0x7d`–`0x7f`, `0xfd`–`0xff` |
//! | [`E8M0`] | 8, 0, no sign | 127 | 2^127 | none | `0xff` |
//! | [`E4M3_FNUZ`] | 4, 3 | 8 | 240 | none | `0x80` |
//! | [`E5M2_FNUZ`] | 5, 2 | 16 | 57344 | none | `0x80` |
//!
//! Sources: [OCP 8-bit Floating Point Specification (OFP8) 1.0][ofp8], [OCP Microscaling Formats
//! 1.0][mx] (`E8M0`, section 5.4.1), <https://arxiv.org/abs/2206.02915> (FNUZ). Weights in these
//! formats mean something together with their scales only, which are tensors of their own.
//!
//! [ofp8]: https://www.opencompute.org/documents/ocp-8-bit-floating-point-specification-ofp8-revision-1-0-2023-12-01-pdf-1
//! [mx]: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf

use super::minifloat::Layout;

/// Bytes of a value.
pub const WIDTH: usize = 1;

/// An 8-bit float format.
#[derive(Debug)]
pub struct Fp8 {
    values: [f32; 256],
}

/// `F8_E4M3`, PyTorch's `float8_e4m3fn`.
pub static E4M3: Fp8 = Fp8::new(
    Layout {
        exponent_bits: 4,
        mantissa_bits: 3,
        bias: 7,
    },
    &[(0x7f, f32::NAN), (0xff, f32::NAN)],
);

/// `F8_E5M2`, PyTorch's `float8_e5m2`.
pub static E5M2: Fp8 = Fp8::new(
    Layout {
        exponent_bits: 5,
        mantissa_bits: 2,
        bias: 15,
    },
    &[
        (0x7c, f32::INFINITY),
        (0x7d, f32::NAN),
        (0x7e, f32::NAN),
        (0x7f, f32::NAN),
        (0xfc, f32::NEG_INFINITY),
        (0xfd, f32::NAN),
        (0xfe, f32::NAN),
        (0xff, f32::NAN),
    ],
);

/// `F8_E8M0`, PyTorch's `float8_e8m0fnu`: 2^(bits − 127).
pub static E8M0: Fp8 = Fp8 {
    values: powers_of_two(),
};

/// `F8_E4M3FNUZ`, PyTorch's `float8_e4m3fnuz`.
pub static E4M3_FNUZ: Fp8 = Fp8::new(
    Layout {
        exponent_bits: 4,
        mantissa_bits: 3,
        bias: 8,
    },
    &[(0x80, f32::NAN)],
);

/// `F8_E5M2FNUZ`, PyTorch's `float8_e5m2fnuz`.
pub static E5M2_FNUZ: Fp8 = Fp8::new(
    Layout {
        exponent_bits: 5,
        mantissa_bits: 2,
        bias: 16,
    },
    &[(0x80, f32::NAN)],
);

impl Fp8 {
    const fn new(layout: Layout, special: &[(u8, f32)]) -> Self {
        let mut values = layout.table();
        let mut i = 0;
        while i < special.len() {
            values[special[i].0 as usize] = special[i].1;
            i += 1;
        }
        Self { values }
    }

    /// The value; exact.
    #[inline]
    pub fn decode(&self, bits: u8) -> f32 {
        self.values[usize::from(bits)]
    }

    /// Whether the value is neither infinite nor NaN.
    #[inline]
    pub fn is_finite(&self, bits: u8) -> bool {
        self.decode(bits).is_finite()
    }

    /// Decodes as many values as both sides hold, without any scale.
    #[inline]
    pub fn widen(&self, bytes: &[u8], to: &mut [f32]) {
        bytes
            .iter()
            .zip(to)
            .for_each(|(bits, x)| *x = self.decode(*bits));
    }
}

const fn powers_of_two() -> [f32; 256] {
    let mut values = [f32::NAN; 256];
    // 2^-127 is subnormal as an f32
    values[0] = f32::from_bits(1 << 22);
    let mut bits: u32 = 1;
    while bits < 255 {
        values[bits as usize] = f32::from_bits(bits << 23);
        bits += 1;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The book's formula, in f64 and with powers.
    fn by_the_book(bits: u8, mantissa_bits: i32, bias: i32) -> f64 {
        let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
        let exponent = i32::from(bits & 0x7f) >> mantissa_bits;
        let mantissa = f64::from(bits & ((1 << mantissa_bits) - 1)) / 2_f64.powi(mantissa_bits);
        match exponent {
            0 => sign * mantissa * 2_f64.powi(1 - bias),
            _ => sign * (1.0 + mantissa) * 2_f64.powi(exponent - bias),
        }
    }

    fn not_finite(format: &Fp8) -> Vec<u8> {
        (0..=u8::MAX)
            .filter(|bits| !format.is_finite(*bits))
            .collect()
    }

    fn largest(format: &Fp8) -> f32 {
        let finite = format.values.iter().copied().filter(|x| x.is_finite());
        finite.fold(0.0, f32::max)
    }

    #[test]
    fn finite_values_follow_the_book_and_the_others_are_where_the_table_says() {
        for (format, mantissa_bits, bias) in [
            (&E4M3, 3, 7),
            (&E5M2, 2, 15),
            (&E4M3_FNUZ, 3, 8),
            (&E5M2_FNUZ, 2, 16),
        ] {
            for bits in (0..=u8::MAX).filter(|bits| format.is_finite(*bits)) {
                let wanted = by_the_book(bits, mantissa_bits, bias);
                assert_eq!(f64::from(format.decode(bits)), wanted, "{bits:#04x}");
            }
        }
        for bits in 0..255 {
            let wanted = 2_f64.powi(i32::from(bits) - 127);
            assert_eq!(f64::from(E8M0.decode(bits)), wanted, "{bits:#04x}");
        }
        assert_eq!(not_finite(&E4M3), [0x7f, 0xff]);
        assert_eq!(
            not_finite(&E5M2),
            [0x7c, 0x7d, 0x7e, 0x7f, 0xfc, 0xfd, 0xfe, 0xff]
        );
        assert_eq!(not_finite(&E8M0), [0xff]);
        assert_eq!(not_finite(&E4M3_FNUZ), [0x80]);
        assert_eq!(not_finite(&E5M2_FNUZ), [0x80]);
    }

    #[test]
    fn extremes_are_those_of_the_specifications() {
        assert_eq!(largest(&E4M3), 448.0);
        assert_eq!(largest(&E5M2), 57_344.0);
        assert_eq!(largest(&E8M0), 2_f32.powi(127));
        assert_eq!(largest(&E4M3_FNUZ), 240.0);
        assert_eq!(largest(&E5M2_FNUZ), 57_344.0);
        assert_eq!(E4M3.decode(0x01), 2_f32.powi(-9));
        assert_eq!(E5M2.decode(0x01), 2_f32.powi(-16));
        assert_eq!(E5M2.decode(0xfc), f32::NEG_INFINITY);
        assert!(E4M3.decode(0x80) == 0.0 && E4M3.decode(0x80).is_sign_negative());
    }
}

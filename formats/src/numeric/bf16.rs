//! BF16: the upper half of an IEEE 754 binary32.

/// Bytes of a value.
pub const WIDTH: usize = 2;

/// The bits of the exponent, all ones in infinities and NaNs.
pub(super) const EXPONENT: u16 = 0x7f80;

/// The value; exact.
#[inline]
pub fn decode(bytes: [u8; WIDTH]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// The nearest value, ties to even (IEEE 754-2019, section 4.3.1). A NaN becomes a quiet one.
#[inline]
pub fn encode(x: f32) -> [u8; WIDTH] {
    half::bf16::from_f32(x).to_le_bytes()
}

/// As [`encode`], in one rounding.
#[inline]
pub fn encode_f64(x: f64) -> [u8; WIDTH] {
    half::bf16::from_f64(x).to_le_bytes()
}

/// The nearest value of BF16 as an f32, ties to even; a NaN is returned as it is.
#[inline]
pub fn round(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    let bits = x.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

/// Whether the value is neither infinite nor NaN.
#[inline]
pub fn is_finite(bytes: [u8; WIDTH]) -> bool {
    u16::from_le_bytes(bytes) & EXPONENT != EXPONENT
}

/// Decodes as many values as both sides hold.
#[inline]
pub fn widen(bytes: &[u8], to: &mut [f32]) {
    let (values, _) = bytes.as_chunks::<WIDTH>();
    values
        .iter()
        .zip(to)
        .for_each(|(bytes, x)| *x = decode(*bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_nearest_even() {
        let cases = [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),       // halfway, down to even
            (1.0 + 3.0 / 256.0, 1.015_625), // halfway, up to even
            (-1.004, -1.007_812_5),
            (f32::INFINITY, f32::INFINITY),
            (f32::MAX, f32::INFINITY),
            (0.0, 0.0),
        ];
        for (x, wanted) in cases {
            assert_eq!(round(x), wanted, "{x}");
            assert_eq!(decode(encode(x)), wanted, "{x}");
        }
        assert!(round(f32::NAN).is_nan());
        assert!(decode(encode(f32::from_bits(0x7f80_0001))).is_nan());
    }

    #[test]
    fn every_value_comes_back() {
        for bits in 0..=u16::MAX {
            let x = decode(bits.to_le_bytes());
            assert_eq!(x.is_finite(), is_finite(bits.to_le_bytes()), "{bits:#06x}");
            if !x.is_nan() {
                assert_eq!(encode(x), bits.to_le_bytes());
                assert_eq!(round(x).to_bits(), x.to_bits());
            }
        }
    }
}

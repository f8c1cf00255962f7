//! F16: IEEE 754 binary16.

use half::slice::HalfFloatSliceExt;

/// Bytes of a value.
pub const WIDTH: usize = 2;

/// The bits of the exponent, all ones in infinities and NaNs.
pub(super) const EXPONENT: u16 = 0x7c00;

const TWO_TO_112: f32 = f32::from_bits((127 + 112) << 23);

/// The value; exact. A NaN becomes a quiet one.
///
/// The exponent is moved from a bias of 15 to one of 127 by a multiplication, which also normalises
/// subnormals: no branches, so that loops over this become vector instructions.
#[inline]
pub fn decode(bytes: [u8; WIDTH]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    let (magnitude, sign) = (bits & 0x7fff, (bits & 0x8000) << 16);
    let moved = f32::from_bits(magnitude << 13) * TWO_TO_112;
    // an exponent of all ones stays all ones: infinity and NaN
    let special = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    let quiet = if magnitude > 0x7c00 { 0x0040_0000 } else { 0 };
    f32::from_bits(moved.to_bits() | special | quiet | sign)
}

/// The nearest value, ties to even (IEEE 754-2019, section 4.3.1). A NaN becomes a quiet one.
#[inline]
pub fn encode(x: f32) -> [u8; WIDTH] {
    half::f16::from_f32(x).to_le_bytes()
}

/// As [`encode`], in one rounding.
#[inline]
pub fn encode_f64(x: f64) -> [u8; WIDTH] {
    half::f16::from_f64(x).to_le_bytes()
}

/// As [`encode`], many at once and with the processor's instruction for it where it has one:
/// appends the values to `out`.
pub(super) fn encode_all<const N: usize>(values: &[f32], out: &mut Vec<u8>) {
    for values in values.chunks(N) {
        let mut narrow = [half::f16::ZERO; N];
        let narrow = &mut narrow[..values.len()];
        narrow.convert_from_f32_slice(values);
        out.extend(narrow.iter().flat_map(|x| x.to_le_bytes()));
    }
}

/// The nearest value to one that is not negative, ties to even; infinity where it is too large.
/// Plain arithmetic, for loops over blocks.
#[inline]
pub(super) fn encode_magnitude(value: f32) -> u16 {
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
    fn every_value_is_that_of_the_half_crate_and_comes_back() {
        for bits in 0..=u16::MAX {
            let x = decode(bits.to_le_bytes());
            assert_eq!(
                x.to_bits(),
                half::f16::from_bits(bits).to_f32().to_bits(),
                "{bits:#06x}"
            );
            assert_eq!(x.is_finite(), is_finite(bits.to_le_bytes()), "{bits:#06x}");
            if !x.is_nan() {
                assert_eq!(encode(x), bits.to_le_bytes());
            }
        }
    }

    /// Every F16 comes back; what lies between two goes to the nearer one, in the middle to the
    /// even one.
    #[test]
    fn magnitudes_of_every_exponent_are_the_nearest() {
        for bits in 0..0x7c00_u16 {
            let value = decode(bits.to_le_bytes());
            assert_eq!(encode_magnitude(value), bits);
            let middle = if bits == 0x7bff {
                65_520.0
            } else {
                (value + decode((bits + 1).to_le_bytes())) / 2.0
            };
            assert_eq!(encode_magnitude(middle), bits + (bits & 1), "{middle}");
            assert_eq!(encode_magnitude(f32::from_bits(middle.to_bits() - 1)), bits);
            assert_eq!(
                encode_magnitude(f32::from_bits(middle.to_bits() + 1)),
                bits + 1
            );
        }
        assert_eq!(decode([0, 0x3c]), 1.0);
        assert_eq!(decode([1, 0x80]), -(2.0_f32.powi(-24)));
        assert_eq!(decode([0, 0xfc]), f32::NEG_INFINITY);
        assert!(decode([1, 0x7e]).is_nan());
    }
}

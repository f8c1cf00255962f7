//! F32: IEEE 754 binary32.

/// Bytes of a value.
pub const WIDTH: usize = 4;

/// The bits of the exponent, all ones in infinities and NaNs.
pub(super) const EXPONENT: u32 = 0x7f80_0000;

/// The value.
#[inline]
pub fn decode(bytes: [u8; WIDTH]) -> f32 {
    f32::from_le_bytes(bytes)
}

/// Its bytes.
#[inline]
pub fn encode(x: f32) -> [u8; WIDTH] {
    x.to_le_bytes()
}

/// Whether the value is neither infinite nor NaN.
#[inline]
pub fn is_finite(bytes: [u8; WIDTH]) -> bool {
    u32::from_le_bytes(bytes) & EXPONENT != EXPONENT
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

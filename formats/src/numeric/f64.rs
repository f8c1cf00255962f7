//! F64: IEEE 754 binary64.

/// Bytes of a value.
pub const WIDTH: usize = 8;

/// The bits of the exponent, all ones in infinities and NaNs.
pub(super) const EXPONENT: u64 = 0x7ff0_0000_0000_0000;

/// The value.
#[inline]
pub fn decode(bytes: [u8; WIDTH]) -> f64 {
    f64::from_le_bytes(bytes)
}

/// Its bytes.
#[inline]
pub fn encode(x: f64) -> [u8; WIDTH] {
    x.to_le_bytes()
}

/// Whether the value is neither infinite nor NaN.
#[inline]
pub fn is_finite(bytes: [u8; WIDTH]) -> bool {
    u64::from_le_bytes(bytes) & EXPONENT != EXPONENT
}

/// The nearest F32, ties to even.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounds to the nearest, ties to even"
)]
pub(super) fn narrow(x: f64) -> f32 {
    x as f32
}

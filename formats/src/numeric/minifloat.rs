//! What the floats of at most 8 bits have in common: a sign, a biased exponent, a mantissa, and
//! subnormals where the exponent is 0.

/// Where the bits of a small float lie; the sign is above the exponent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) exponent_bits: u32,
    pub(super) mantissa_bits: u32,
    pub(super) bias: u32,
}

impl Layout {
    /// The value of these bits, read as a finite number; exact. Formats that keep bit patterns for
    /// infinities and NaNs look for those first.
    pub(super) const fn decode(self, bits: u8) -> f32 {
        let bits = bits as u32;
        let mantissa = bits & ((1 << self.mantissa_bits) - 1);
        let exponent = (bits >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1);
        let sign = (bits >> (self.mantissa_bits + self.exponent_bits)) & 1;
        // a subnormal has the exponent of the smallest normal, without its leading one
        let (significand, exponent) = match exponent {
            0 => (mantissa, 1),
            _ => (mantissa | 1 << self.mantissa_bits, exponent),
        };
        // a product of two exact floats whose result is exact
        let power = f32::from_bits((exponent + 127 - self.bias - self.mantissa_bits) << 23);
        let magnitude = significand as f32 * power;
        if sign == 1 { -magnitude } else { magnitude }
    }

    /// The values of all bit patterns.
    pub(super) const fn table(self) -> [f32; 256] {
        let mut values = [0.0; 256];
        let mut bits: u8 = 0;
        loop {
            values[bits as usize] = self.decode(bits);
            match bits.checked_add(1) {
                Some(next) => bits = next,
                None => return values,
            }
        }
    }
}

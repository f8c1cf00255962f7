//! 4-bit integers, two in a byte, the first in its low half.
//!
//! Little-endian words of 32 bits hold eight of them in the same order, as GPTQ and
//! compressed-tensors pack them. Schemes with another order (AWQ interleaves the eight of a word)
//! rearrange them themselves. What an integer stands for, scale · (integer − zero point), takes
//! tensors beside it.

/// Values of a byte.
pub const PER_BYTE: usize = 2;

/// The two unsigned values of a byte, 0 to 15.
#[inline]
pub fn decode(byte: u8) -> [u8; PER_BYTE] {
    [byte & 0xf, byte >> 4]
}

/// The two values of a byte as two's complement, -8 to 7.
#[inline]
pub fn decode_signed(byte: u8) -> [i8; PER_BYTE] {
    decode(byte).map(|bits| (bits << 4).cast_signed() >> 4)
}

/// The byte of two values, of which the lower four bits count.
#[inline]
pub fn encode([first, second]: [u8; PER_BYTE]) -> u8 {
    first & 0xf | second << 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_two_values_and_comes_back() {
        for byte in 0..=u8::MAX {
            let values = decode(byte);
            assert!(values.iter().all(|v| *v < 16));
            assert_eq!(encode(values), byte);
            let signed = decode_signed(byte);
            assert_eq!(encode(signed.map(i8::cast_unsigned)), byte);
            for (signed, plain) in signed.into_iter().zip(values) {
                let wanted = plain.cast_signed() - if plain < 8 { 0 } else { 16 };
                assert_eq!(signed, wanted);
            }
        }
        assert_eq!(decode(0x1f), [15, 1]);
        assert_eq!(decode_signed(0x1f), [-1, 1]);
    }
}

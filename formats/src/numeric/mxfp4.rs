//! MXFP4: blocks of 32 values of E2M1 (dtype `F4`) that share a scale of E8M0.
//!
//! Source: [OCP Microscaling Formats 1.0][mx], sections 5.3.3 and 6. Two values share a byte, the
//! first in its low half. Checkpoints keep blocks and scales as two tensors, often of dtype `U8`.
//!
//! [mx]: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf

use super::fp8;
use super::minifloat::Layout;

/// Values of a block.
pub const BLOCK_VALUES: usize = 32;
/// Bytes of a block's values, without its scale.
pub const BLOCK_BYTES: usize = BLOCK_VALUES / 2;

/// Bytes of a block as ggml stores it: its scale, then its values.
pub const GGML_BLOCK_BYTES: usize = 1 + BLOCK_BYTES;

/// The values of E2M1: no infinities, no NaN.
const VALUES: [f32; 256] = Layout {
    exponent_bits: 2,
    mantissa_bits: 1,
    bias: 1,
}
.table();

/// The value of the lower four bits, without a scale; exact.
#[inline]
pub fn decode(bits: u8) -> f32 {
    VALUES[usize::from(bits & 0xf)]
}

/// The values of a block times its scale (E8M0). Exact, but where a product lies below the
/// smallest normal or beyond the largest F32; a scale of `0xff` makes every value NaN.
#[inline]
pub fn decode_block(bytes: &[u8; BLOCK_BYTES], scale: u8, to: &mut [f32; BLOCK_VALUES]) {
    let scale = fp8::E8M0.decode(scale);
    for (pair, to) in bytes.iter().zip(to.as_chunks_mut::<2>().0) {
        *to = [decode(*pair) * scale, decode(pair >> 4) * scale];
    }
}

/// A block as ggml stores it: the scale, then values 0 to 15 in the low halves of 16 bytes and
/// values 16 to 31 in the high ones. Not a value changes.
///
/// Source: `block_mxfp4` and `dequantize_row_mxfp4`, ggml/src/ggml-quants.c.
#[inline]
pub fn to_ggml(bytes: &[u8; BLOCK_BYTES], scale: u8, to: &mut [u8; GGML_BLOCK_BYTES]) {
    let code = |value: usize| bytes[value / 2] >> (4 * (value % 2)) & 0xf;
    to[0] = scale;
    for (value, to) in to[1..].iter_mut().enumerate() {
        *to = code(value) | code(value + BLOCK_BYTES) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sixteen_values_are_those_of_the_specification() {
        let positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (bits, wanted) in (0..8).zip(positive) {
            assert_eq!(decode(bits), wanted);
            assert_eq!(decode(bits | 8), -wanted);
            assert_eq!(
                decode(bits | 0xf0),
                wanted,
                "the upper half is another value's"
            );
        }
    }

    #[test]
    fn a_block_is_its_values_times_its_scale_low_halves_first() {
        let mut bytes = [0; BLOCK_BYTES];
        (bytes[0], bytes[15]) = (0xa7, 0x1f);
        let mut values = [1.0; BLOCK_VALUES];
        decode_block(&bytes, 130, &mut values);
        assert_eq!((values[0], values[1]), (6.0 * 8.0, -8.0));
        assert_eq!((values[30], values[31]), (-6.0 * 8.0, 0.5 * 8.0));
        assert!(values[2..30].iter().all(|x| *x == 0.0));
        decode_block(&bytes, 0xff, &mut values);
        assert!(values.iter().all(|x| x.is_nan()));
    }

    #[test]
    fn ggml_has_the_first_half_of_a_block_in_the_low_halves_of_its_bytes() {
        // value n has the code n modulo 16
        let bytes = std::array::from_fn(|i| {
            let code = |value: usize| u8::try_from(value % 16).unwrap();
            code(2 * i) | (code(2 * i + 1) << 4)
        });
        let mut to = [0; GGML_BLOCK_BYTES];
        to_ggml(&bytes, 0x7b, &mut to);
        assert_eq!(to[0], 0x7b);
        let wanted: Vec<u8> = (0..16).map(|code| code | (code << 4)).collect();
        assert_eq!(to[1..], wanted[..]);
        let mut bytes = [0; BLOCK_BYTES];
        (bytes[0], bytes[8]) = (0xba, 0xdc);
        to_ggml(&bytes, 0, &mut to);
        assert_eq!(to[1..3], [0xca, 0xdb]);
    }
}

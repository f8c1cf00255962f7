//! The values of a tensor as F64, whatever its dtype: for statistics and comparisons, where
//! exactness counts more than speed.

use super::fp8::{self, Fp8};
use super::{Dtype, bf16, f16, mxfp4};

/// Whether this build knows which numbers the bytes of a dtype stand for. The 6-bit floats lie
/// packed in ways that no published checkpoint has shown yet.
pub const fn has_values(dtype: Dtype) -> bool {
    !matches!(dtype, Dtype::F6_E2M3 | Dtype::F6_E3M2)
}

/// How many numbers this many bytes hold: two for each complex one.
pub const fn value_count(dtype: Dtype, bytes: u64) -> u64 {
    let parts = if matches!(dtype, Dtype::C64) { 2 } else { 1 };
    let bits = dtype.bitsize() as u64 / parts;
    bytes / bits * 8 + bytes % bits * 8 / bits
}

/// Appends the values of `bytes` (little-endian, a whole number of values) to `to`: floats without
/// any scale, integers rounded to the nearest F64, truth values as 0 and 1, complex numbers as two
/// values each. Nothing where this build [does not know](has_values) them.
pub fn append_values(dtype: Dtype, bytes: &[u8], to: &mut Vec<f64>) {
    match dtype {
        Dtype::BOOL => to.extend(bytes.iter().map(|b| f64::from(u8::from(*b != 0)))),
        Dtype::F4 => to.extend(
            bytes
                .iter()
                .flat_map(|b| [mxfp4::decode(*b), mxfp4::decode(b >> 4)].map(f64::from)),
        ),
        Dtype::F6_E2M3 | Dtype::F6_E3M2 => {}
        Dtype::U8 => to.extend(bytes.iter().map(|b| f64::from(*b))),
        Dtype::I8 => append(bytes, to, |b: [u8; 1]| f64::from(i8::from_le_bytes(b))),
        Dtype::F8_E5M2 => append_fp8(&fp8::E5M2, bytes, to),
        Dtype::F8_E4M3 => append_fp8(&fp8::E4M3, bytes, to),
        Dtype::F8_E8M0 => append_fp8(&fp8::E8M0, bytes, to),
        Dtype::F8_E4M3FNUZ => append_fp8(&fp8::E4M3_FNUZ, bytes, to),
        Dtype::F8_E5M2FNUZ => append_fp8(&fp8::E5M2_FNUZ, bytes, to),
        Dtype::I16 => append(bytes, to, |b| f64::from(i16::from_le_bytes(b))),
        Dtype::U16 => append(bytes, to, |b| f64::from(u16::from_le_bytes(b))),
        Dtype::F16 => append(bytes, to, |b| f64::from(f16::decode(b))),
        Dtype::BF16 => append(bytes, to, |b| f64::from(bf16::decode(b))),
        Dtype::I32 => append(bytes, to, |b| f64::from(i32::from_le_bytes(b))),
        Dtype::U32 => append(bytes, to, |b| f64::from(u32::from_le_bytes(b))),
        Dtype::F32 | Dtype::C64 => append(bytes, to, |b| f64::from(f32::from_le_bytes(b))),
        Dtype::F64 => append(bytes, to, f64::from_le_bytes),
        Dtype::I64 => append(bytes, to, |b| nearest(i128::from(i64::from_le_bytes(b)))),
        Dtype::U64 => append(bytes, to, |b| nearest(i128::from(u64::from_le_bytes(b)))),
    }
}

#[expect(clippy::cast_precision_loss, reason = "rounded to the nearest")]
fn nearest(n: i128) -> f64 {
    n as f64
}

fn append<const N: usize>(bytes: &[u8], to: &mut Vec<f64>, decode: impl Fn([u8; N]) -> f64) {
    let (values, _) = bytes.as_chunks::<N>();
    to.extend(values.iter().map(|b| decode(*b)));
}

fn append_fp8(format: &Fp8, bytes: &[u8], to: &mut Vec<f64>) {
    to.extend(bytes.iter().map(|b| f64::from(format.decode(*b))));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
        let mut values = Vec::new();
        append_values(dtype, bytes, &mut values);
        let wanted = value_count(dtype, bytes.len() as u64);
        if has_values(dtype) {
            assert_eq!(values.len() as u64, wanted, "{dtype}");
        } else {
            assert!(values.is_empty());
        }
        values
    }

    #[test]
    fn every_dtype_gives_as_many_values_as_it_holds() {
        for dtype in Dtype::ALL {
            values(dtype, &[0; 24]);
        }
    }

    #[test]
    fn values_are_those_of_the_formats() {
        assert_eq!(values(Dtype::BOOL, &[0, 1, 2]), [0.0, 1.0, 1.0]);
        assert_eq!(values(Dtype::F4, &[0x21]), [0.5, 1.0]);
        assert_eq!(values(Dtype::I8, &[0xff, 2]), [-1.0, 2.0]);
        assert_eq!(values(Dtype::F8_E4M3, &[0x38, 0x7e]), [1.0, 448.0]);
        assert_eq!(values(Dtype::F8_E5M2, &[0x3c]), [1.0]);
        assert_eq!(values(Dtype::F8_E8M0, &[127, 128]), [1.0, 2.0]);
        assert_eq!(values(Dtype::F8_E4M3FNUZ, &[0x40]), [1.0]);
        assert_eq!(values(Dtype::F8_E5M2FNUZ, &[0x40]), [1.0]);
        assert_eq!(values(Dtype::I16, &[0xfe, 0xff]), [-2.0]);
        assert_eq!(values(Dtype::U16, &[0xfe, 0xff]), [65534.0]);
        assert_eq!(values(Dtype::F16, &[0, 0xc0]), [-2.0]);
        assert_eq!(values(Dtype::BF16, &[0x80, 0x3f]), [1.0]);
        assert_eq!(values(Dtype::I32, &(-7_i32).to_le_bytes()), [-7.0]);
        assert_eq!(
            values(Dtype::U32, &u32::MAX.to_le_bytes()),
            [4_294_967_295.0]
        );
        assert_eq!(
            values(Dtype::F32, &0.1_f32.to_le_bytes()),
            [f64::from(0.1_f32)]
        );
        let complex = [1.5_f32.to_le_bytes(), (-2.5_f32).to_le_bytes()].concat();
        assert_eq!(values(Dtype::C64, &complex), [1.5, -2.5]);
        assert_eq!(values(Dtype::F64, &0.1_f64.to_le_bytes()), [0.1]);
        assert_eq!(values(Dtype::I64, &(-9_i64).to_le_bytes()), [-9.0]);
        assert_eq!(
            values(Dtype::U64, &u64::MAX.to_le_bytes()),
            [18_446_744_073_709_551_616.0]
        );
    }
}

//! What the bytes of a segment become in memory where they are no matrices `[out, in]` of floats:
//! quantised values times their scales, matrices that are stored transposed, matrices that share a
//! tensor.
//!
//! A value is computed as transformers 5.23 does when it dequantises while it loads
//! (`Fp8Dequantize` of integrations/finegrained_fp8.py, `convert_moe_packed_tensors` of
//! integrations/mxfp4.py): an FP8 value times the scale of its block in f32, rounded once to the
//! dtype of the weights; an MXFP4 value times a power of two.

use rayon::prelude::*;
use segpack_formats::numeric::{FloatDtype, bf16, f16, f32 as float32, fp8, mxfp4};

use super::placed::PlacedTensor;

/// Where each matrix of a decoded segment begins: kernels read whole cache lines.
const ALIGNMENT: usize = 64;
/// Rows that one thread decodes at a time: columns of this many neighbours fill a cache line.
const ROWS_AT_A_TIME: usize = 32;

/// How the bytes of one segment become matrices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decoding {
    matrices: Vec<MatrixDecoding>,
    length: usize,
}

/// How one matrix is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MatrixDecoding {
    values: StoredValues,
    rows: StoredRows,
    /// Where it goes to.
    to: PlacedTensor,
}

/// Which rows (outputs) of a stored matrix are those of a matrix in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredRows {
    /// The first.
    pub first: usize,
    /// From one to the next.
    pub step: usize,
}

impl StoredRows {
    /// All of them.
    pub const ALL: Self = Self { first: 0, step: 1 };
}

/// Values in a segment. Offsets are of its raw bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredValues {
    /// Floats, taken as they are.
    Plain {
        /// Their first byte.
        at: usize,
        /// The stored matrix's last dimension.
        width: usize,
        /// Whether the matrix is stored `[in, out]`.
        is_transposed: bool,
    },
    /// F8_E4M3 `[out, in]`, and a scale for each block.
    Fp8 {
        /// The first value.
        at: usize,
        /// The first scale, of `[ceil(out / rows), ceil(in / columns)]`.
        scales: usize,
        /// Element type of the scales.
        scale: FloatDtype,
        /// Rows and columns of a block.
        block: [usize; 2],
    },
    /// Two E2M1 values to a byte, `[out, in / 32, 16]`, and an E8M0 scale for each 32.
    Mxfp4 {
        /// The first byte of values.
        at: usize,
        /// The first scale, of `[out, in / 32]`.
        scales: usize,
    },
}

impl Decoding {
    /// Adds a matrix of `[rows, columns]` values of a dtype, which the stored values are rounded to.
    /// Plain ones have to be of this dtype. Returns where it will lie.
    pub fn add(
        &mut self,
        values: StoredValues,
        rows: StoredRows,
        [count, columns]: [usize; 2],
        dtype: FloatDtype,
    ) -> PlacedTensor {
        let to = PlacedTensor {
            dtype,
            offset: self.length,
            length: count * columns * dtype.byte_width(),
            rows: count,
            columns,
        };
        self.length = (to.offset + to.length).next_multiple_of(ALIGNMENT);
        self.matrices.push(MatrixDecoding { values, rows, to });
        to
    }

    /// Bytes that the segment takes once it is decoded.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Decodes the raw bytes of a segment, with the threads of the pool that it is called in.
    pub fn run(&self, raw: &[u8], to: &mut [u8]) {
        let (mut rest, mut begin) = (to, 0);
        for matrix in &self.matrices {
            let (_, after) = rest.split_at_mut(matrix.to.offset - begin);
            let (out, after) = after.split_at_mut(matrix.to.length);
            (rest, begin) = (after, matrix.to.offset + matrix.to.length);
            matrix.run(raw, out);
        }
    }
}

impl MatrixDecoding {
    fn run(&self, raw: &[u8], to: &mut [u8]) {
        let row = self.to.columns * self.to.dtype.byte_width();
        if row == 0 {
            return;
        }
        let pieces = to.par_chunks_mut(ROWS_AT_A_TIME * row).enumerate();
        pieces.for_each(|(i, piece)| self.piece(raw, i * ROWS_AT_A_TIME, piece));
    }

    /// Some rows from this one on.
    fn piece(&self, raw: &[u8], first: usize, to: &mut [u8]) {
        let (columns, dtype) = (self.to.columns, self.to.dtype);
        let stored = |row: usize| self.rows.first + (first + row) * self.rows.step;
        let rows = to.chunks_exact_mut(columns * dtype.byte_width());
        match self.values {
            StoredValues::Plain {
                at,
                width,
                is_transposed: true,
            } => self.transposed(&raw[at..], width, first, to),
            StoredValues::Plain { at, width, .. } => {
                let width = width * dtype.byte_width();
                for (row, to) in rows.enumerate() {
                    to.copy_from_slice(&raw[at + stored(row) * width..][..to.len()]);
                }
            }
            StoredValues::Fp8 {
                at,
                scales,
                scale,
                block,
            } => {
                let of_row = columns.div_ceil(block[1]);
                let (mut factors, mut values) = (vec![0.0; of_row], vec![0.0; columns]);
                for (row, to) in rows.enumerate() {
                    let row = stored(row);
                    let begin = scales + row / block[0] * of_row * scale.byte_width();
                    scale.widen(&raw[begin..], &mut factors);
                    fp8::E4M3.widen(&raw[at + row * columns..], &mut values);
                    let blocks = values.chunks_mut(block[1]).zip(&factors);
                    blocks.for_each(|(block, factor)| block.iter_mut().for_each(|x| *x *= factor));
                    narrow(dtype, &values, to);
                }
            }
            StoredValues::Mxfp4 { at, scales } => {
                let (blocks, mut values) = (columns / mxfp4::BLOCK_VALUES, vec![0.0; columns]);
                for (row, to) in rows.enumerate() {
                    let row = stored(row);
                    let bytes = &raw[at + row * blocks * mxfp4::BLOCK_BYTES..];
                    let bytes = bytes.as_chunks::<{ mxfp4::BLOCK_BYTES }>().0;
                    let into = values.as_chunks_mut::<{ mxfp4::BLOCK_VALUES }>().0;
                    let scales = &raw[scales + row * blocks..];
                    for ((block, scale), to) in bytes.iter().zip(scales).zip(into) {
                        mxfp4::decode_block(block, *scale, to);
                    }
                    narrow(dtype, &values, to);
                }
            }
        }
    }

    /// Some rows of a matrix that is stored `[in, out]`: read along its outputs, so that each line
    /// of the cache is read once.
    fn transposed(&self, raw: &[u8], width: usize, first: usize, to: &mut [u8]) {
        let (bytes, columns) = (self.to.dtype.byte_width(), self.to.columns);
        for (column, line) in raw.chunks_exact(width * bytes).take(columns).enumerate() {
            let rows = to.chunks_exact_mut(columns * bytes);
            for (row, to) in (first..).zip(rows) {
                let from = (self.rows.first + row * self.rows.step) * bytes;
                to[column * bytes..][..bytes].copy_from_slice(&line[from..][..bytes]);
            }
        }
    }
}

/// The nearest values of a dtype, ties to even.
fn narrow(dtype: FloatDtype, values: &[f32], to: &mut [u8]) {
    match dtype {
        FloatDtype::BF16 => each(values, to, bf16::encode),
        FloatDtype::F16 => each(values, to, f16::encode),
        FloatDtype::F32 => each(values, to, float32::encode),
    }
}

fn each<const N: usize>(values: &[f32], to: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    let to = to.as_chunks_mut::<N>().0;
    values.iter().zip(to).for_each(|(x, to)| *to = encode(*x));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of transformers 5.23, `Fp8Dequantize._dequantize_one` with torch 2.15: values `[4, 6]`, scales
    /// `[2, 2]`, and what becomes of them in BF16 and F32.
    const FP8: [u8; 24] = [
        167, 57, 193, 38, 64, 182, 74, 202, 58, 63, 65, 157, 184, 60, 167, 203, 60, 50, 56, 72, 57,
        18, 65, 170,
    ];
    const SCALES: [u32; 4] = [0x3bdf_9db7, 0x3bad_1ebd, 0x3bb2_07ee, 0x3b34_092a];
    const FP8_AS_BF16: [u16; 24] = [
        0xbad2, 0x3bfc, 0xbc7c, 0x3a97, 0x3c2d, 0xbb97, 0x3d0c, 0xbd0c, 0x3c0c, 0x3c22, 0x3c43,
        0xba0d, 0xbbb2, 0x3c06, 0xbaa7, 0xbc78, 0x3b87, 0x3ae1, 0x3bb2, 0x3cb2, 0x3bc8, 0x38e1,
        0x3bcb, 0xba61,
    ];
    const FP8_AS_F32: [u32; 24] = [
        0xbad1_a3dc,
        0x3bfb_916e,
        0xbc7b_916e,
        0x3a97_7ae5,
        0x3c2d_1ebd,
        0xbb97_7ae5,
        0x3d0b_c292,
        0xbd0b_c292,
        0x3c0b_c292,
        0x3c22_4cd1,
        0x3c42_c295,
        0xba0c_a8fa,
        0xbbb2_07ee,
        0x3c05_85f2,
        0xbaa6_e76f,
        0xbc77_8c9a,
        0x3b87_06e0,
        0x3ae1_0b74,
        0x3bb2_07ee,
        0x3cb2_07ee,
        0x3bc8_48ec,
        0x38e1_0b74,
        0x3bca_8a4f,
        0xba61_0b74,
    ];

    /// Of transformers 5.23, `convert_moe_packed_tensors`: 4 outputs of 32 inputs, scales 120, 127,
    /// 130 and 125, and what becomes of the second and the fourth.
    const BLOCKS: [u8; 64] = [
        99, 206, 239, 189, 230, 118, 144, 73, 8, 228, 231, 190, 155, 112, 158, 208, 7, 204, 143,
        113, 181, 231, 80, 27, 44, 205, 203, 65, 175, 30, 212, 86, 125, 146, 254, 121, 137, 106,
        41, 233, 190, 129, 210, 103, 144, 206, 5, 58, 0, 208, 132, 110, 164, 105, 179, 27, 31, 2,
        68, 38, 105, 211, 147, 18,
    ];
    const MXFP4_AS_BF16: [[u16; 32]; 2] = [
        [
            0x40c0, 0x0000, 0xc000, 0xc000, 0xc0c0, 0x8000, 0x3f00, 0x40c0, 0x4040, 0xbfc0, 0x40c0,
            0xc080, 0x0000, 0x4040, 0xbfc0, 0x3f00, 0xc000, 0x3f80, 0xc040, 0xc000, 0xbfc0, 0xc000,
            0x3f00, 0x4000, 0xc0c0, 0xbf80, 0xc080, 0x3f00, 0x4000, 0xc040, 0x4080, 0x4040,
        ],
        [
            0x0000, 0x0000, 0x0000, 0xbf40, 0x3f00, 0x8000, 0xbf80, 0x3f80, 0x3f00, 0xbe80, 0xbe00,
            0x3f80, 0x3ec0, 0xbec0, 0xbec0, 0x3e00, 0xbfc0, 0x3e00, 0x3e80, 0x0000, 0x3f00, 0x3f00,
            0x3f80, 0x3e80, 0xbe00, 0x3f80, 0x3ec0, 0xbf40, 0x3ec0, 0xbe00, 0x3e80, 0x3e00,
        ],
    ];

    fn decoded(decoding: &Decoding, raw: &[u8]) -> Vec<u8> {
        let mut memory = vec![0xee; decoding.length()];
        decoding.run(raw, &mut memory);
        memory
    }

    fn bytes_of<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|x| bytes(*x)).collect()
    }

    #[test]
    fn fp8_blocks_become_what_the_official_class_makes_of_them() {
        let mut raw = FP8.to_vec();
        raw.extend(bytes_of(&SCALES, u32::to_le_bytes));
        let values = StoredValues::Fp8 {
            at: 0,
            scales: 24,
            scale: FloatDtype::F32,
            block: [2, 3],
        };
        for (dtype, wanted) in [
            (FloatDtype::BF16, bytes_of(&FP8_AS_BF16, u16::to_le_bytes)),
            (FloatDtype::F32, bytes_of(&FP8_AS_F32, u32::to_le_bytes)),
        ] {
            let mut decoding = Decoding::default();
            let to = decoding.add(values, StoredRows::ALL, [4, 6], dtype);
            let memory = decoded(&decoding, &raw);
            assert_eq!(memory[..to.length], wanted, "{dtype}");
        }
        // a block at the edge is smaller: rows 0 to 2, and row 3
        let block = [3, 6];
        let mut raw = vec![0x38; 24];
        raw.extend(bytes_of(&[2.0_f32, 4.0], f32::to_le_bytes));
        let mut decoding = Decoding::default();
        let values = StoredValues::Fp8 {
            at: 0,
            scales: 24,
            scale: FloatDtype::F32,
            block,
        };
        let to = decoding.add(values, StoredRows::ALL, [4, 6], FloatDtype::F32);
        let values = to.values(&decoded(&decoding, &raw));
        assert_eq!(values[..18], [2.0; 18]);
        assert_eq!(values[18..], [4.0; 6]);
    }

    #[test]
    fn mxfp4_rows_that_alternate_become_two_matrices() {
        let mut raw = BLOCKS.to_vec();
        raw.extend([120, 127, 130, 125]);
        let values = StoredValues::Mxfp4 { at: 0, scales: 64 };
        let mut decoding = Decoding::default();
        let every_second = |first| StoredRows { first, step: 2 };
        decoding.add(values, every_second(0), [2, 32], FloatDtype::BF16);
        let odd = decoding.add(values, every_second(1), [2, 32], FloatDtype::BF16);
        let memory = decoded(&decoding, &raw);
        let wanted = bytes_of(MXFP4_AS_BF16.as_flattened(), u16::to_le_bytes);
        assert_eq!(memory[odd.offset..][..odd.length], wanted);
    }

    #[test]
    fn transposed_matrices_are_turned_and_apart() {
        // 3 inputs, 70 outputs that alternate between two matrices: value = 100 · output + input
        let stored: Vec<u16> = (0..3)
            .flat_map(|i| (0..70).map(move |o| 100 * o + i))
            .collect();
        let raw = bytes_of(&stored, u16::to_le_bytes);
        let values = StoredValues::Plain {
            at: 0,
            width: 70,
            is_transposed: true,
        };
        let mut decoding = Decoding::default();
        for first in [0, 1] {
            let rows = StoredRows { first, step: 2 };
            let to = decoding.add(values, rows, [35, 3], FloatDtype::BF16);
            let first = u16::try_from(first).unwrap();
            let wanted: Vec<u16> = (0..35)
                .flat_map(|row| (0..3).map(move |i| 100 * (2 * row + first) + i))
                .collect();
            let memory = decoded(&decoding, &raw);
            let wanted = bytes_of(&wanted, u16::to_le_bytes);
            assert_eq!(memory[to.offset..][..to.length], wanted);
        }
    }
}

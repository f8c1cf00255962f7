//! Chunks of every dtype under every codec.

#![expect(clippy::cast_possible_truncation, reason = "bits of random numbers")]

use proptest::prelude::*;

use super::chunked::Method;
use super::samples::{Noise, bf16, every_sort, weights};
use super::*;
use crate::numeric::Dtype;

const CODINGS: [Coding; 4] = [
    Coding::Raw,
    Coding::Zstd { level: 3 },
    Coding::Bf16Zstd,
    Coding::Bf16Rans,
];
const DTYPES: [Dtype; 12] = [
    Dtype::BF16,
    Dtype::F16,
    Dtype::F32,
    Dtype::F64,
    Dtype::F8_E4M3,
    Dtype::F8_E5M2,
    Dtype::I8,
    Dtype::U8,
    Dtype::I32,
    Dtype::I64,
    Dtype::BOOL,
    Dtype::F4,
];

/// Encodes and decodes on every path; the method and the stored length.
fn round_trip(coding: Coding, dtype: Dtype, raw: &[u8]) -> (Method, usize) {
    let mut reference: Option<(Chunk, Vec<u8>)> = None;
    for simd in Simd::available() {
        let mut encoder = ChunkEncoder::with_simd(coding, simd).unwrap();
        let (chunk, stored) = encoder.encode(dtype, raw, 5, 7).unwrap();
        let (chunk, stored) = reference
            .get_or_insert((chunk.clone(), stored.to_vec()))
            .clone();
        let again = encoder.encode(dtype, raw, 5, 7).unwrap();
        assert!(
            again == (chunk.clone(), &stored[..]),
            "{coding:?} {dtype} {simd:?}: other bytes"
        );
        let mut back = vec![0xaa; raw.len()];
        ChunkDecoder::with_simd(simd)
            .unwrap()
            .decode(&chunk, &stored, &mut back)
            .unwrap();
        assert!(back == raw, "{coding:?} {dtype} {simd:?}");
        assert!(
            stored.len() <= raw.len()
                && (chunk.raw.end, chunk.stored.end)
                    == (5 + raw.len() as u64, 7 + stored.len() as u64)
        );
    }
    let (chunk, stored) = reference.unwrap();
    (chunk.method, stored.len())
}

#[test]
fn every_sort_of_values_comes_back_under_every_codec_and_dtype() {
    for (_, values) in every_sort(1000).into_iter().chain(every_sort(33)) {
        for coding in CODINGS {
            for dtype in DTYPES {
                round_trip(coding, dtype, &values);
                round_trip(coding, dtype, &values[..values.len() - 1]);
            }
        }
    }
    for coding in CODINGS {
        for dtype in DTYPES {
            assert_eq!(round_trip(coding, dtype, &[]), (Method::Stored, 0));
            assert_eq!(round_trip(coding, dtype, &[1]), (Method::Stored, 1));
            assert_eq!(round_trip(coding, dtype, &[1, 2]), (Method::Stored, 2));
        }
    }
}

#[test]
fn weights_take_the_method_that_is_made_for_them() {
    let values = weights(1 << 18, 3);
    let share = |length: usize| length as f64 / values.len() as f64;
    let (method, length) = round_trip(Coding::Bf16Rans, Dtype::BF16, &values);
    assert!(
        method == Method::Rans && share(length) < 0.662,
        "{method:?} {}",
        share(length)
    );
    let (method, length) = round_trip(Coding::Bf16Zstd, Dtype::BF16, &values);
    assert!(
        method == Method::Planes && share(length) < 0.670,
        "{method:?} {}",
        share(length)
    );
    let (method, length) = round_trip(Coding::Zstd { level: 3 }, Dtype::BF16, &values);
    assert!(
        method == Method::Zstd && share(length) > 0.7,
        "{method:?} {}",
        share(length)
    );
}

#[test]
fn other_dtypes_take_the_shorter_of_planes_and_zstd() {
    let floats: Vec<f32> = weights(1 << 17, 4)
        .as_chunks()
        .0
        .iter()
        .map(|v| f32::from_bits(u32::from(u16::from_le_bytes(*v)) << 16 | 0x1234))
        .collect();
    let mut noise = Noise(1);
    let full: Vec<u8> = floats
        .iter()
        .flat_map(|f| (f.to_bits() ^ noise.next() as u32 & 0xffff).to_le_bytes())
        .collect();
    let (method, length) = round_trip(Coding::Bf16Rans, Dtype::F32, &full);
    assert!(
        method == Method::Planes && length < full.len() * 85 / 100,
        "{method:?} {length}"
    );
    let repeated = b"the same again, ".repeat(5000);
    for dtype in [Dtype::U8, Dtype::BF16, Dtype::I64] {
        let (method, length) = round_trip(Coding::Bf16Zstd, dtype, &repeated);
        assert!(
            method == Method::Zstd && length < 100,
            "{dtype}: {method:?} {length}"
        );
        let (method, length) = round_trip(Coding::Bf16Rans, dtype, &repeated);
        assert!(
            method == Method::Zstd && length < 100,
            "{dtype}: {method:?} {length}"
        );
    }
    // bf16 that once was fp8: three mantissa bits, the others are zero
    let coarse: Vec<u8> = weights(1 << 17, 6)
        .as_chunks()
        .0
        .iter()
        .flat_map(|v| (u16::from_le_bytes(*v) & 0xfff0).to_le_bytes())
        .collect();
    let (_, length) = round_trip(Coding::Bf16Rans, Dtype::BF16, &coarse);
    assert!(
        length < coarse.len() * 48 / 100,
        "{length} of {}",
        coarse.len()
    );
    let eight: Vec<u8> = floats.iter().map(|f| (bf16(*f) >> 5) as u8).collect();
    let (_, length) = round_trip(Coding::Bf16Rans, Dtype::F8_E4M3, &eight);
    assert!(length < eight.len() * 6 / 10, "{length}");
}

fn chunk_of(method: Method) -> Chunk {
    Chunk {
        raw: 0..0,
        stored: 0..0,
        method,
        check: [0; 8],
    }
}

/// What a decoder says of these bytes as planes of a chunk of `raw` bytes.
fn planes_error(stored: &[u8], raw: usize) -> String {
    let mut decoder = ChunkDecoder::new().unwrap();
    let decoded = decoder.decode_unchecked(&chunk_of(Method::Planes), stored, &mut vec![0; raw]);
    decoded.unwrap_err().to_string()
}

#[test]
fn hostile_chunks_are_errors() {
    let values = weights(2000, 2);
    for coding in [
        Coding::Zstd { level: 3 },
        Coding::Bf16Zstd,
        Coding::Bf16Rans,
    ] {
        let mut encoder = ChunkEncoder::new(coding).unwrap();
        let (chunk, stored) = encoder.encode(Dtype::BF16, &values, 0, 0).unwrap();
        let (chunk, mut stored) = (chunk, stored.to_vec());
        let mut decoder = ChunkDecoder::new().unwrap();
        for length in [
            0,
            3,
            values.len() - 2,
            values.len() - 1,
            values.len() + 1,
            values.len() + 2,
        ] {
            decoder
                .decode(&chunk, &stored, &mut vec![0; length])
                .unwrap_err();
        }
        for cut in 0..stored.len() {
            decoder
                .decode_unchecked(&chunk, &stored[..cut], &mut vec![0; values.len()])
                .unwrap_err();
        }
        stored[50] ^= 1;
        let error = decoder
            .decode(&chunk, &stored, &mut vec![0; values.len()])
            .unwrap_err();
        assert!(
            error.to_string().contains("its check does not match"),
            "{error}"
        );
    }
    assert!(planes_error(&[], 2).contains("no width"));
    assert!(planes_error(&[2, 0, 1, 0], 2).contains("no width"));
    assert!(planes_error(&[3, 0, 0, 0], 2).contains("values of 3 bytes"));
    assert!(planes_error(&[2, 0, 0, 0, 1], 2).contains("end among the lengths"));
    assert!(
        planes_error(&[1, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3], 2).contains("3 bytes of 3 for 2 values")
    );
    assert!(
        planes_error(&[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1], 2).contains("4294967295 bytes of 1")
    );
    assert!(
        planes_error(&[1, 0, 0, 0, 2, 0, 0, 0, 1, 2, 3], 2)
            .contains("1 bytes after the planes, wanted 0")
    );
    assert!(planes_error(&[1, 0, 0, 0, 1, 0, 0, 0, 1], 2).contains("zstd"));
}

/// What was written once is decoded for ever: the seeds of the fuzz targets are chunks of these
/// values.
#[test]
fn old_chunks_are_decoded() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let read = |target: &str, name: &str| std::fs::read(corpus.join(target).join(name)).unwrap();
    let cases = [
        ("rans_chunk", Method::Rans, "weights", ""),
        ("rans_chunk", Method::Rans, "exceptions", ""),
        ("planes_chunk", Method::Planes, "weights", ""),
        ("planes_chunk", Method::Planes, "exceptions", ""),
        ("planes_chunk", Method::Planes, "weights", "-f32"),
    ];
    for (target, method, name, suffix) in cases {
        let raw = &read("chunk_encoder", name)[1..];
        let stored = &read(target, &format!("{name}{suffix}"))[3..];
        let chunk = chunk_of(method);
        for simd in Simd::available() {
            let mut back = vec![0; raw.len()];
            ChunkDecoder::with_simd(simd)
                .unwrap()
                .decode_unchecked(&chunk, stored, &mut back)
                .unwrap();
            assert!(back == raw, "{target} {name}{suffix} {simd:?}");
        }
        assert!(stored.len() < raw.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_bytes_come_back(
        seed: u64, length in 0_usize..40_000, mask: u64, dtype in 0..DTYPES.len(), coding in 0..CODINGS.len(),
    ) {
        let mut noise = Noise(seed);
        let mut raw: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| (noise.next() & mask).to_le_bytes()).collect();
        raw.truncate(length);
        round_trip(CODINGS[coding], DTYPES[dtype], &raw);
    }
}

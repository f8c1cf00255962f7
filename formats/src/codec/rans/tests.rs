use proptest::prelude::*;

use super::super::samples::{Noise, every_sort, weights};
use super::*;

fn encoded(simd: Simd, values: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![1, 2, 3];
    let shrank = Encoder::new(simd).encode(values, &mut out);
    assert_eq!(out[..3], [1, 2, 3]);
    assert!(shrank || out.len() == 3, "gave up and left something");
    shrank.then(|| out.split_off(3))
}

fn decoded(simd: Simd, stored: &[u8], length: usize) -> Result<Vec<u8>, String> {
    let mut values = vec![0xaa; length];
    Decoder::new(simd)
        .decode(stored, &mut values)
        .map(|()| values)
}

/// Every path writes the same bytes and reads them back.
fn round_trip(what: &str, values: &[u8]) -> Option<usize> {
    let reference = encoded(Simd::SCALAR, values);
    for simd in Simd::available() {
        assert!(
            encoded(simd, values) == reference,
            "{what}: {simd:?} writes other bytes"
        );
        if let Some(stored) = &reference {
            assert!(stored.len() < values.len());
            assert!(
                decoded(simd, stored, values.len()).unwrap() == values,
                "{what}: {simd:?}"
            );
        }
    }
    reference.map(|stored| stored.len())
}

#[test]
fn this_machine_tests_its_vector_paths() {
    #[cfg(target_arch = "x86_64")]
    let wanted = 1 + usize::from(std::is_x86_feature_detected!("avx2"));
    #[cfg(target_arch = "aarch64")]
    let wanted = 1 + usize::from(std::arch::is_aarch64_feature_detected!("neon"));
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let wanted = 1;
    assert!(Simd::available().len() >= wanted);
    assert_eq!(Simd::available()[0], Simd::SCALAR);
}

#[test]
fn every_sort_of_values_comes_back_on_every_path() {
    for count in [1, 63, 64, 65, 128, 4096, 70_001] {
        for (what, values) in every_sort(count) {
            round_trip(&format!("{count} {what}"), &values);
        }
    }
    assert_eq!(round_trip("nothing", &[]), None);
    assert_eq!(
        encoded(Simd::SCALAR, &weights(5000, 3)[1..]),
        None,
        "odd lengths are not for this coder"
    );
}

#[test]
fn weights_shrink_to_nearly_their_entropy() {
    let values = weights(1 << 20, 5);
    let mut counts = vec![0_u32; CODES];
    for value in values.as_chunks::<2>().0 {
        counts[usize::from(code_of(u16::from_le_bytes(*value)))] += 1;
    }
    let share = |n: u32| f64::from(n) / f64::from(1 << 20);
    let bits: f64 = counts
        .iter()
        .filter(|n| **n > 0)
        .map(|n| -share(*n) * share(*n).log2())
        .sum();
    let bound = (bits + 6.0) / 16.0 * values.len() as f64;
    let length = round_trip("weights", &values).unwrap() as f64;
    assert!(length < bound * 1.0015, "{length} bytes, {bound} bound");
}

/// The values of this sort.
fn sort_of<'a>(all: &'a [(&'static str, Vec<u8>)], name: &str) -> &'a [u8] {
    let found = all.iter().find(|(n, _)| *n == name);
    found.map(|(_, values)| &values[..]).unwrap()
}

#[test]
fn too_many_exceptions_are_given_up() {
    let count = 70_000;
    let all = every_sort(count);
    assert_eq!(encoded(Simd::SCALAR, sort_of(&all, "noise")), None);
    assert_eq!(
        encoded(Simd::SCALAR, sort_of(&all, "all exponents alike")),
        None
    );
    let stored = encoded(Simd::SCALAR, sort_of(&all, "weights with outliers")).unwrap();
    assert!(u32_at(&stored, 8) > 5, "there are exceptions");
}

/// A chunk with everything in it: exceptions, a special code, values behind the last round.
fn rich() -> (Vec<u8>, Vec<u8>) {
    let mut values = weights(64 * 40 + 17, 9);
    for (at, value) in [
        (3, 0_u16),
        (70, 0),
        (71, 0x7f80),
        (500, 0xffff),
        (2559, 0x0001),
    ] {
        values[2 * at..2 * at + 2].copy_from_slice(&value.to_le_bytes());
    }
    let stored = encoded(Simd::SCALAR, &values).unwrap();
    (values, stored)
}

/// All paths accept the same streams, give the same values and the same errors.
fn agree(stored: &[u8], length: usize) -> Result<Vec<u8>, String> {
    let reference = decoded(Simd::SCALAR, stored, length);
    for simd in Simd::available() {
        assert!(decoded(simd, stored, length) == reference, "{simd:?}");
    }
    reference
}

#[test]
fn what_is_cut_short_or_too_long_is_an_error() {
    let (values, stored) = rich();
    for cut in 0..stored.len() {
        agree(&stored[..cut], values.len()).unwrap_err();
    }
    agree(&[&stored[..], &[0]].concat(), values.len()).unwrap_err();
    agree(&[&stored[..], &[0, 0]].concat(), values.len()).unwrap_err();
    for length in [
        0,
        1,
        2,
        values.len() - 2,
        values.len() - 1,
        values.len() + 2,
        values.len() + 128,
    ] {
        agree(&stored, length).unwrap_err();
    }
}

#[test]
fn flipped_bits_are_errors_or_other_values_on_every_path_alike() {
    let (values, stored) = rich();
    let (mut noticed, mut idle) = (0, 0);
    for bit in 0..stored.len() * 8 {
        let mut bad = stored.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        match agree(&bad, values.len()) {
            Err(_) => noticed += 1,
            Ok(other) => idle += usize::from(other == values),
        }
    }
    assert!(noticed > 0);
    assert_eq!(
        idle,
        6 * u32_at(&stored, 8) as usize,
        "only the raw bits of an exception mean nothing"
    );
}

/// What a decoder says of a chunk in which these bytes were written at `at`.
fn error_with(stored: &[u8], length: usize, at: usize, bytes: &[u8]) -> String {
    let mut bad = stored.to_vec();
    bad[at..at + bytes.len()].copy_from_slice(bytes);
    decoded(Simd::SCALAR, &bad, length).unwrap_err()
}

#[test]
fn lying_heads_are_errors_that_say_what_is_wrong() {
    let (values, stored) = rich();
    let symbols = usize::from(u16_at(&stored, 4));
    let exceptions = HEAD_BYTES + 2 * symbols;
    let states =
        exceptions + u32_at(&stored, 8) as usize * EXCEPTION_BYTES + 17 * 2 + 40 * RAW_BYTES;
    let far = 5000_u32.to_le_bytes();
    let cases: [(usize, &[u8], &str); 13] = [
        (0, &[0xff, 0x03], "wanted less than 1024"),
        (2, &[0, 4], "wanted less than 1024"),
        (4, &[0, 0], "0 symbols"),
        (4, &[1, 1], "257 symbols"),
        (6, &[1], "wanted 1 to 256 and zero"),
        (8, &[0xff; 4], "its counts ask for"),
        (12, &[0xff; 4], "its counts ask for"),
        (HEAD_BYTES, &[0xff, 0xff], "frequencies add up to"),
        (exceptions, &far, "exception at value"),
        (exceptions + 6, &[0; 4], "follows one at value"),
        (states, &[0; 4], "state 0 is not"),
        (states + 3, &[0x80], "is not 32768 to"),
        (states, &[0xff, 0xff, 0xff, 0x7f], "words are too few"),
    ];
    for (at, bytes, wanted) in cases {
        let seen = error_with(&stored, values.len(), at, bytes);
        assert!(seen.contains(wanted), "{seen:?}, wanted {wanted:?}");
    }
    assert!(
        decoded(Simd::SCALAR, &stored[..7], values.len())
            .unwrap_err()
            .contains("its head alone takes 16")
    );
    assert!(
        decoded(Simd::SCALAR, &stored, 33)
            .unwrap_err()
            .contains("no whole number of values")
    );
}

/// The sum of frequencies is right, one of them is not.
#[test]
fn a_frequency_that_has_it_all_is_refused() {
    let mut stored = vec![0; HEAD_BYTES];
    stored[4] = 1;
    stored.extend(4096_u16.to_le_bytes());
    stored.extend([0; RAW_BYTES]);
    stored.extend([0, 0x80, 0, 0].repeat(LANES));
    assert!(
        agree(&stored, ROUND_BYTES)
            .unwrap_err()
            .contains("the greatest is 4096")
    );
}

#[test]
fn buffers_carry_nothing_over() {
    let (mut encoders, mut decoders): (Vec<_>, Vec<_>) = Simd::available()
        .into_iter()
        .map(|s| (Encoder::new(s), Decoder::new(s)))
        .unzip();
    for (what, values) in every_sort(3000)
        .into_iter()
        .chain(every_sort(200))
        .chain(every_sort(5000))
    {
        let fresh = encoded(Simd::SCALAR, &values);
        for (encoder, decoder) in encoders.iter_mut().zip(&mut decoders) {
            let mut out = Vec::new();
            let shrank = encoder.encode(&values, &mut out);
            assert!(shrank.then_some(&out) == fresh.as_ref(), "{what}");
            let mut back = vec![0; values.len()];
            if shrank {
                decoder.decode(&out, &mut back).unwrap();
                assert!(back == values, "{what}");
                decoder.decode(&out[1..], &mut back).unwrap_err();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_values_come_back(
        seed: u64, count in 0_usize..3000, mask: u16, set: u16, rare in 1_u64..5000,
    ) {
        let mut noise = Noise(seed);
        let value = |n: u64| if n.is_multiple_of(rare) { (n >> 32) as u16 } else { (n >> 16) as u16 & mask | set };
        let values: Vec<u8> = (0..count).flat_map(|_| value(noise.next()).to_le_bytes()).collect();
        round_trip("any", &values);
    }

    #[test]
    fn any_damage_is_met_alike(seed: u64, flips in 1_usize..20) {
        let (values, mut stored) = rich();
        let mut noise = Noise(seed);
        for _ in 0..flips {
            let at = noise.next() as usize % stored.len();
            stored[at] = noise.next() as u8;
        }
        let _ = agree(&stored, values.len());
    }
}

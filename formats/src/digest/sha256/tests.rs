//! Every path against the `sha2` crate's own hasher and the published vectors.

use proptest::prelude::*;
use sha2::Digest as _;

use super::*;

const PORTABLE: Paths = Paths {
    sha_ni: None,
    avx512: None,
    wide_from: usize::MAX,
};

/// Every path this processor has, each forced for all it can do, and the choice made by default.
fn all_paths() -> Vec<Paths> {
    let mut paths = vec![PORTABLE, Paths::detect()];
    if let Some(sha_ni) = ShaNi::detect() {
        paths.push(Paths {
            sha_ni: Some(sha_ni),
            ..PORTABLE
        });
    }
    if let Some(avx512) = Avx512::detect() {
        paths.push(Paths {
            avx512: Some(avx512),
            wide_from: 1,
            ..PORTABLE
        });
        // hands over from lanes to pairs on the way, where pieces differ in length
        paths.push(Paths {
            sha_ni: ShaNi::detect(),
            avx512: Some(avx512),
            wide_from: 4,
        });
    }
    paths
}

fn expected(bytes: &[u8]) -> Sha256 {
    Sha256(sha2::Sha256::digest(bytes).into())
}

/// Bytes without a short period, different for each `seed`.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[5]
        })
        .collect()
}

fn after(prefix: &[u8]) -> Sha256Hasher {
    let mut hasher = Sha256Hasher::default();
    hasher.update(prefix);
    hasher
}

#[test]
fn the_published_vectors_hold_on_every_path() {
    // FIPS 180-2 appendix B (B.1, B.2, B.3), and the empty message of the CAVP short vectors
    let million = vec![b'a'; 1_000_000];
    let vectors: [(&[u8], &str); 4] = [
        (
            b"",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ),
        (
            b"abc",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ),
        (
            b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        ),
        (
            &million,
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
        ),
    ];
    for (message, digest) in vectors {
        assert_eq!(hex::encode(after(message).finish().0), digest);
        for paths in all_paths() {
            let (mut first, mut second) = (Sha256Hasher::default(), Sha256Hasher::default());
            Sha256Hasher::update_pair_on(paths, &mut first, &mut second, message);
            assert_eq!(
                [first, second].map(|h| hex::encode(h.finish().0)),
                [digest; 2],
                "{paths:?}"
            );
            let (mut first, mut second) = (Sha256Hasher::default(), Sha256Hasher::default());
            Sha256Hasher::update_two_on(paths, &mut first, message, &mut second, message);
            assert_eq!(
                [first, second].map(|h| hex::encode(h.finish().0)),
                [digest; 2],
                "{paths:?}"
            );
            let mut lanes = Sha256Lanes::new(LANES);
            lanes.update_on(paths, &[message; LANES]);
            assert!(
                lanes.finish().iter().all(|d| hex::encode(d.0) == digest),
                "{paths:?}"
            );
        }
    }
}

#[test]
fn every_length_up_to_300_in_every_number_of_lanes() {
    for paths in all_paths() {
        for len in 0..300 {
            let messages: Vec<Vec<u8>> =
                (0..LANES as u64).map(|lane| bytes(lane + 1, len)).collect();
            let digests: Vec<Sha256> = messages.iter().map(|m| expected(m)).collect();
            for count in 1..=LANES {
                let pieces: Vec<&[u8]> = messages[..count].iter().map(Vec::as_slice).collect();
                let mut lanes = Sha256Lanes::new(count);
                lanes.update_on(paths, &pieces);
                assert_eq!(
                    lanes.finish(),
                    digests[..count],
                    "{paths:?}, {count} of {len} bytes"
                );
            }
        }
    }
}

#[test]
fn a_pair_agrees_at_every_two_alignments() {
    // different bytes before, so that equal alignments meet in different states
    let (first_data, second_data, data) = (bytes(7, 64), bytes(8, 128), bytes(9, 200));
    for paths in all_paths() {
        for (first_at, second_at) in (0..64).flat_map(|i| (0..128).map(move |j| (i, j))) {
            let (first_before, second_before) =
                (&first_data[..first_at], &second_data[..second_at]);
            for len in [0, 1, 63, 64, 65, 200] {
                let (mut first, mut second) = (after(first_before), after(second_before));
                Sha256Hasher::update_pair_on(paths, &mut first, &mut second, &data[..len]);
                let whole = |before: &[u8]| expected(&[before, &data[..len]].concat());
                assert_eq!(
                    first.finish(),
                    whole(first_before),
                    "{paths:?} {first_at} {second_at} {len}"
                );
                assert_eq!(
                    second.finish(),
                    whole(second_before),
                    "{paths:?} {first_at} {second_at} {len}"
                );
            }
        }
    }
}

#[test]
fn big_messages() {
    let (long, longer) = (bytes(3, 1_000_003), bytes(4, 3_000_001));
    for paths in all_paths() {
        let (mut first, mut second) = (Sha256Hasher::default(), after(b"header"));
        Sha256Hasher::update_two_on(paths, &mut first, &long, &mut second, &longer);
        Sha256Hasher::update_pair_on(paths, &mut first, &mut second, &long);
        assert_eq!(first.finish(), expected(&[&long[..], &long].concat()));
        assert_eq!(
            second.finish(),
            expected(&[b"header", &longer[..], &long].concat())
        );

        let pieces: Vec<&[u8]> = long.chunks(62_500).collect();
        assert_eq!(
            pieces.len(),
            LANES + 1,
            "one whole group and another of its own"
        );
        let mut lanes = Sha256Lanes::new(pieces.len());
        lanes.update_on(paths, &pieces);
        let digests: Vec<Sha256> = pieces.iter().map(|p| expected(p)).collect();
        assert_eq!(lanes.finish(), digests);
    }
}

#[test]
fn a_message_without_a_piece_waits_and_a_piece_without_a_message_begins_one() {
    for paths in all_paths() {
        let mut lanes = Sha256Lanes::new(3);
        lanes.update_on(paths, &[b"a"]);
        assert_eq!(
            lanes.clone().finish(),
            [expected(b"a"), expected(b""), expected(b"")]
        );
        lanes.update_on(paths, &[b"b", b"c", b"d", b"e"]);
        assert_eq!(
            lanes.finish(),
            [
                expected(b"ab"),
                expected(b"c"),
                expected(b"d"),
                expected(b"e")
            ]
        );
    }
    assert!(Sha256Lanes::new(0).finish().is_empty());
}

#[test]
fn public_entry_points_reach_the_same_code() {
    let data = bytes(9, 5000);
    let (mut first, mut second) = (Sha256Hasher::default(), Sha256Hasher::default());
    Sha256Hasher::update_pair(&mut first, &mut second, &data);
    Sha256Hasher::update_two(&mut first, &data[..10], &mut second, &data[..4000]);
    assert_eq!(first.finish(), expected(&[&data[..], &data[..10]].concat()));
    assert_eq!(
        second.finish(),
        expected(&[&data[..], &data[..4000]].concat())
    );
    let mut lanes = Sha256Lanes::new(16);
    lanes.update(&[&data[..]; 16]);
    assert_eq!(lanes.finish(), [expected(&data); 16]);
}

/// Pieces as lengths; a piece is short, or long enough for several blocks.
fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![0_usize..130, 0_usize..3000], 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn one_stream_split_anywhere(seed: u64, lengths in lengths()) {
        let data = bytes(seed, lengths.iter().sum());
        let mut hasher = Sha256Hasher::default();
        let mut rest = &data[..];
        for len in lengths {
            hasher.update(&rest[..len]);
            rest = &rest[len..];
        }
        prop_assert_eq!(hasher.finish(), expected(&data));
    }

    #[test]
    fn two_streams_split_anywhere(seed: u64, steps in prop::collection::vec((0_usize..1500, 0_usize..1500, any::<bool>()), 0..8)) {
        let data = bytes(seed, 3000);
        for paths in all_paths() {
            let (mut first, mut second) = (Sha256Hasher::default(), Sha256Hasher::default());
            let (mut first_all, mut second_all) = (vec![], vec![]);
            for &(i, j, same) in &steps {
                let (a, b) = if same { (&data[i..], &data[i..]) } else { (&data[i..], &data[..j]) };
                if same {
                    Sha256Hasher::update_pair_on(paths, &mut first, &mut second, a);
                } else {
                    Sha256Hasher::update_two_on(paths, &mut first, a, &mut second, b);
                }
                first_all.extend_from_slice(a);
                second_all.extend_from_slice(b);
            }
            prop_assert_eq!(first.finish(), expected(&first_all), "{:?}", paths);
            prop_assert_eq!(second.finish(), expected(&second_all), "{:?}", paths);
        }
    }

    #[test]
    fn lanes_split_anywhere(seed: u64, count in 1..=LANES, lengths in lengths()) {
        let messages: Vec<Vec<u8>> =
            (0..count as u64).map(|lane| bytes(seed ^ lane, lengths.iter().sum())).collect();
        for paths in all_paths() {
            let mut lanes = Sha256Lanes::new(count);
            let mut at = 0;
            for &len in &lengths {
                let pieces: Vec<&[u8]> = messages.iter().map(|m| &m[at..at + len]).collect();
                lanes.update_on(paths, &pieces);
                at += len;
            }
            let digests: Vec<Sha256> = messages.iter().map(|m| expected(m)).collect();
            prop_assert_eq!(lanes.finish(), digests, "{:?}", paths);
        }
    }

    #[test]
    fn lanes_of_different_lengths(seed: u64, rounds in prop::collection::vec(prop::collection::vec(0_usize..2000, 1..40), 1..4)) {
        let count = rounds.iter().map(Vec::len).max().unwrap_or(0);
        for paths in all_paths() {
            let mut lanes = Sha256Lanes::new(count);
            let mut whole = vec![vec![]; count];
            for (n, lengths) in rounds.iter().enumerate() {
                let messages: Vec<Vec<u8>> = lengths
                    .iter()
                    .enumerate()
                    .map(|(lane, &len)| bytes(seed ^ (n * 100 + lane) as u64, len))
                    .collect();
                for (whole, message) in whole.iter_mut().zip(&messages) {
                    whole.extend_from_slice(message);
                }
                lanes.update_on(paths, &messages.iter().map(Vec::as_slice).collect::<Vec<_>>());
            }
            let digests: Vec<Sha256> = whole.iter().map(|m| expected(m)).collect();
            prop_assert_eq!(lanes.finish(), digests, "{:?}", paths);
        }
    }
}

#[test]
fn a_message_goes_on_from_any_midstate() {
    let message: Vec<u8> = (0..1000_u32).map(|i| i.to_le_bytes()[0] ^ 0x5a).collect();
    let whole = Sha256::of(&message);
    for cut in [0, 1, 63, 64, 65, 640, 999] {
        let mut before = Sha256Hasher::default();
        before.update(&message[..cut]);
        let (midstate, length) = before.midstate();
        assert_eq!(length, cut as u64 / 64 * 64);
        let mut after = Sha256Hasher::resume(midstate, length).unwrap();
        after.update(&message[usize::try_from(length).unwrap()..]);
        assert_eq!(after.finish(), whole, "cut at {cut}");
    }
    let (midstate, _) = Sha256Hasher::default().midstate();
    assert!(Sha256Hasher::resume(midstate, 65).is_none());
}

#[test]
fn hashers_that_began_at_different_bytes_are_updated_together() {
    let message: Vec<u8> = (0..70_000_u32).map(|i| i.to_le_bytes()[1]).collect();
    for count in [1, 2, 13, 16, 17, 40] {
        let mut hashers = vec![Sha256Hasher::default(); count];
        let mut wanted = hashers.clone();
        for (i, (many, one)) in hashers.iter_mut().zip(&mut wanted).enumerate() {
            many.update(&message[..i]);
            one.update(&message[..i]);
        }
        let pieces: Vec<&[u8]> = (0..count).map(|i| &message[i..60_000 + 100 * i]).collect();
        Sha256Hasher::update_many(&mut hashers, &pieces);
        for ((many, mut one), piece) in hashers.into_iter().zip(wanted).zip(pieces) {
            one.update(piece);
            assert_eq!(many.finish(), one.finish(), "{count} hashers");
        }
    }
}

#[test]
fn the_faster_instructions_are_taken() {
    let micros = Duration::from_micros;
    assert_eq!(fewest_messages(micros(4), micros(1)), 8);
    assert_eq!(fewest_messages(micros(9), micros(2)), 9);
    assert_eq!(fewest_messages(micros(8), micros(1)), LANES);
    assert_eq!(fewest_messages(micros(9), micros(1)), LANES + 1);
    // a clock that stands still
    assert_eq!(fewest_messages(micros(0), micros(0)), WIDE_FROM_ALONE);
}

//! The fuzz targets of `formats/fuzz` over mutations of their seeds: the same ones every time, in
//! seconds.
//!
//! A failure keeps the input and prints its file. `cargo fuzz` looks further, see
//! `formats/fuzz/src/lib.rs`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::{env, fs};

#[path = "../../../formats/fuzz/src/bodies.rs"]
mod bodies;

const INPUTS: u64 = 10_000;

/// Numbers at which something ends.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    7,
    8,
    255,
    4095,
    4096,
    65_536,
    1 << 22,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX,
];

/// George Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../formats/fuzz/corpus")
        .join(target);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} holds no seed", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// One to four changes to a seed.
fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = random.pick(seeds).clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(8) {
            _ if bytes.is_empty() => bytes.push(random.next().to_le_bytes()[0]),
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = *random.pick(b"\x00\xff\x01\x7f\x80 \"{}[],:.-0e\\/"),
            2 => bytes.truncate(at),
            3 => splice(&mut bytes, at, random.pick(seeds).clone(), random),
            4 => set_word(&mut bytes, at, random),
            _ => edit_number(&mut bytes, at, random),
        }
    }
    bytes
}

/// Puts a piece of another seed in the place of up to as many bytes.
fn splice(bytes: &mut Vec<u8>, at: usize, other: Vec<u8>, random: &mut Random) {
    let from = random.below(other.len());
    let piece = 1 + random.below((other.len() - from).min(200));
    let gone = random.below(piece + 1).min(bytes.len() - at);
    bytes.splice(at..at + gone, other.into_iter().skip(from).take(piece));
}

/// Sets a little-endian number of 4 or 8 bytes to an edge, or moves it a little.
fn set_word(bytes: &mut [u8], at: usize, random: &mut Random) {
    let width = *random.pick(&[4, 8]);
    let at = at - at % 4;
    let Some(word) = bytes.get_mut(at..at + width) else {
        return;
    };
    let mut old = [0; 8];
    old[..width].copy_from_slice(word);
    let new = changed(u64::from_le_bytes(old), random).to_le_bytes();
    word.copy_from_slice(&new[..width]);
}

/// Changes the next number in a text.
fn edit_number(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let Some(start) = (at..bytes.len()).find(|&i| bytes[i].is_ascii_digit()) else {
        return;
    };
    let end = (start..bytes.len())
        .find(|&i| !bytes[i].is_ascii_digit())
        .unwrap_or(bytes.len());
    let old = std::str::from_utf8(&bytes[start..end])
        .unwrap()
        .parse()
        .unwrap_or(u64::MAX);
    let new = match random.below(12) {
        0 => format!("-{old}"),
        1 => format!("{old}.5"),
        2 => format!("{old}e3"),
        _ => changed(old, random).to_string(),
    };
    bytes.splice(start..end, new.into_bytes());
}

fn changed(old: u64, random: &mut Random) -> u64 {
    match random.below(6) {
        0 | 1 => *random.pick(&EDGES),
        2 => old.wrapping_add(1),
        3 => old.wrapping_sub(1),
        4 => old.wrapping_mul(2),
        _ => old.wrapping_add(random.next() >> 40),
    }
}

/// Runs a target over its seeds and [`INPUTS`] mutations of them.
fn smoke(target: &str) {
    let (_, body) = bodies::TARGETS
        .iter()
        .find(|(name, _)| *name == target)
        .unwrap();
    let seeds = seeds(target);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mutated = (0..INPUTS).map(|_| mutate(&seeds, &mut random));
    let mut accepted = 0;
    for (number, input) in seeds.iter().cloned().chain(mutated).enumerate() {
        let Ok(taken) = catch_unwind(AssertUnwindSafe(|| body(&input))) else {
            let path = env::temp_dir().join(format!("segpack-fuzz-smoke-{target}"));
            fs::write(&path, &input).unwrap();
            panic!(
                "target {target} failed at input {number}, kept as {}",
                path.display()
            );
        };
        accepted += u64::from(taken);
    }
    // what is always refused reaches nothing behind the parser
    assert!(
        (INPUTS / 50..INPUTS).contains(&accepted),
        "{target} accepted {accepted} of {INPUTS} inputs"
    );
}

#[test]
fn every_target_has_a_test_and_seeds() {
    let mut folders: Vec<String> =
        fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../formats/fuzz/corpus"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
    folders.sort();
    let mut targets = bodies::TARGETS.map(|(name, _)| name);
    targets.sort_unstable();
    assert_eq!(folders, targets);
    assert_eq!(
        targets,
        [
            "chunk_encoder",
            "chunk_table",
            "gguf_header",
            "manifest",
            "pack_reader",
            "planes_chunk",
            "rans_chunk",
            "shard_header",
            "shard_index"
        ]
    );
}

#[test]
fn shard_header() {
    smoke("shard_header");
}

#[test]
fn shard_index() {
    smoke("shard_index");
}

#[test]
fn chunk_table() {
    smoke("chunk_table");
}

#[test]
fn pack_reader() {
    smoke("pack_reader");
}

#[test]
fn planes_chunk() {
    smoke("planes_chunk");
}

#[test]
fn rans_chunk() {
    smoke("rans_chunk");
}

#[test]
fn chunk_encoder() {
    smoke("chunk_encoder");
}

#[test]
fn manifest() {
    smoke("manifest");
}

#[test]
fn gguf_header() {
    smoke("gguf_header");
}

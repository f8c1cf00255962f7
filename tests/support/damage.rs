//! Ways in which files come to harm, and how a liar would cover them up.

use std::fs::{self, File};
use std::path::Path;

use segpack_formats::digest::{Blake3, Sha256};
use serde_json::{Value, json};

use super::tiny::write_file;

/// Flips the lowest bit of one byte; a negative place counts from the end.
pub fn flip(path: &Path, at: i64) {
    let mut bytes = fs::read(path).expect("read");
    let at = if at < 0 {
        bytes.len() - at.unsigned_abs() as usize
    } else {
        at.unsigned_abs() as usize
    };
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("write");
}

/// Cuts a file or makes it longer by zeros.
pub fn resize(path: &Path, by: i64) {
    let file = File::options().write(true).open(path).expect("open");
    let length = file.metadata().expect("length").len();
    file.set_len(length.checked_add_signed(by).expect("a length"))
        .expect("set the length");
}

/// Swaps two byte ranges of one length within a file.
pub fn swap_ranges(path: &Path, first: usize, second: usize, length: usize) {
    let mut bytes = fs::read(path).expect("read");
    for i in 0..length {
        bytes.swap(first + i, second + i);
    }
    fs::write(path, bytes).expect("write");
}

pub fn manifest(pack: &Path) -> Value {
    serde_json::from_slice(&fs::read(pack.join("manifest.json")).expect("read")).expect("parse")
}

/// Changes the manifest and writes SHA256SUMS anew, so that no outer digest betrays it.
pub fn edit_manifest(pack: &Path, edit: impl FnOnce(&mut Value)) {
    let mut document = manifest(pack);
    edit(&mut document);
    write_file(
        &pack.join("manifest.json"),
        format!("{document}\n").as_bytes(),
    );
    reseal_sums(pack);
}

/// Recomputes the digest of every file and stored segment (not of tensors: those are what a pack is
/// about), and lengths of files, then everything above them.
pub fn reseal(pack: &Path) {
    edit_manifest(pack, |document| {
        let read =
            |path: &Value| fs::read(pack.join(path.as_str().expect("a path"))).expect("read");
        for entry in list(document, "packs") {
            let bytes = read(&entry["path"]);
            entry["length"] = json!(bytes.len());
            entry["sha256"] = json!(Sha256::of(&bytes).to_string());
        }
        for entry in list(document, "source_files") {
            let bytes = read(&entry["stored_as"]);
            entry["stored_length"] = json!(bytes.len());
            entry["stored_sha256"] = json!(Sha256::of(&bytes).to_string());
        }
        for entry in list(document, "segments") {
            let bytes = read(&entry["pack"]);
            let range = range_of(entry, "stored_length");
            entry["blake3"] = json!(Blake3::of(&bytes[range]).to_string());
        }
    });
}

/// The elements of a list of a document.
pub fn list<'a>(document: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    document[key]
        .as_array_mut()
        .unwrap_or_else(|| panic!("no list {key}"))
}

/// The bytes of a pack that a segment entry names.
pub fn range_of(entry: &Value, length: &str) -> std::ops::Range<usize> {
    let number = |key: &str| entry[key].as_u64().expect("a number") as usize;
    number("offset")..number("offset") + number(length)
}

/// Writes SHA256SUMS for the files as they are.
pub fn reseal_sums(pack: &Path) {
    let old = fs::read_to_string(pack.join("SHA256SUMS")).expect("read");
    let digest = |line: &str| {
        let path = line.split_once("  ").expect("digest and path").1;
        let bytes = fs::read(pack.join(path)).expect("read");
        format!("{}  {path}\n", Sha256::of(&bytes))
    };
    fs::write(
        pack.join("SHA256SUMS"),
        old.lines().map(digest).collect::<String>(),
    )
    .expect("write");
}

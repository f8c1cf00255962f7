//! The folder against its manifest: which files are there, how long, with which headers and digest
//! list.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use segpack_formats::FormatError;
use segpack_formats::codec::Codec;
use segpack_formats::pack::{SegmentSpec, coded_header, data_start, raw_header};
use segpack_manifests::Pack;
use segpack_manifests::documents::{Finding, FindingKind, PackEntry, SegmentEntry};
use segpack_manifests::folder::{MANIFEST, PARTIAL, SUMS};
use walkdir::WalkDir;

use super::{Findings, describe};
use crate::steps::StepError;

/// Checks everything but the content of the files. Returns the files that are there with their
/// right length.
pub(super) fn check(pack: &Pack, findings: &Findings) -> Result<BTreeSet<String>, StepError> {
    let manifest = pack.manifest();
    let mut listed: BTreeMap<&str, Option<u64>> = manifest
        .files()
        .into_iter()
        .map(|(path, length, _)| (path, Some(length)))
        .collect();
    listed.insert(MANIFEST, None);
    if manifest.options.sums {
        listed.insert(SUMS, None);
    }
    let Listing { there, links } = list(pack.folder(), &listed, findings)?;
    let mut sound = BTreeSet::new();
    for (path, wanted) in &listed {
        match there.get(*path) {
            None if links.contains(*path) => {} // is reported as a link
            None => findings.add(
                Finding::new(FindingKind::MissingFile)
                    .file(*path)
                    .seen("is not there"),
            ),
            Some(seen) => match wanted.filter(|wanted| wanted != seen) {
                None => {
                    sound.insert((*path).to_owned());
                }
                Some(wanted) => {
                    let finding = Finding::new(FindingKind::WrongLength).file(*path);
                    findings.add(
                        finding
                            .seen(format!("{seen} bytes"))
                            .wanted(format!("{wanted} bytes")),
                    );
                }
            },
        }
    }
    check_sums(pack, &sound, findings);
    check_headers(pack, &sound, findings);
    Ok(sound)
}

/// What lies in a pack folder under listed paths.
#[derive(Default)]
struct Listing {
    /// Regular files with their lengths.
    there: BTreeMap<String, u64>,
    /// Links.
    links: BTreeSet<String>,
}

/// What lies under listed paths; anything that is not listed, and any link, is a finding.
fn list(
    root: &Path,
    listed: &BTreeMap<&str, Option<u64>>,
    findings: &Findings,
) -> Result<Listing, FormatError> {
    let mut listing = Listing::default();
    let folders: BTreeSet<&str> = listed.keys().flat_map(|path| parents(path)).collect();
    let mut walk = WalkDir::new(root)
        .min_depth(1)
        .sort_by_file_name()
        .into_iter();
    while let Some(entry) = walk.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                let path = e
                    .path()
                    .unwrap_or(root)
                    .strip_prefix(root)
                    .unwrap_or(root)
                    .to_string_lossy()
                    .into_owned();
                let finding = Finding::new(FindingKind::Unreadable).file(path).seen(&e);
                let at = e.path().unwrap_or(root).to_owned();
                let Some(error) = e.into_io_error().map(FormatError::io("list", at)) else {
                    findings.add(finding);
                    continue;
                };
                // what is in a folder that cannot be listed would all seem to be missing
                if error.is_environment() {
                    return Err(error);
                }
                findings.add(finding);
                continue;
            }
        };
        let path = entry.path().strip_prefix(root).unwrap_or(entry.path());
        let path = path
            .iter()
            .map(|p| p.to_string_lossy())
            .collect::<Vec<_>>()
            .join("/");
        let unlisted = |seen: &str| unlisted(&path, seen);
        let kind = entry.file_type();
        if kind.is_dir() {
            if folders.contains(path.as_str()) {
                continue;
            }
            findings.add(unlisted(if path == PARTIAL {
                "is what an interrupted run left behind"
            } else {
                "a folder that the manifest does not list"
            }));
            walk.skip_current_dir();
        } else if kind.is_symlink() {
            findings.add(unlisted("is a link; a pack holds none"));
            listing.links.insert(path);
        } else if !kind.is_file() {
            findings.add(unlisted("is neither a file nor a folder"));
        } else if listed.contains_key(path.as_str()) {
            let length = entry.metadata().map_or(u64::MAX, |m| m.len());
            listing.there.insert(path, length);
        } else {
            findings.add(unlisted("a file that the manifest does not list"));
        }
    }
    Ok(listing)
}

/// The folders above a path: `a` and `a/b` for `a/b/c`.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn check_sums(pack: &Pack, sound: &BTreeSet<String>, findings: &Findings) {
    if !sound.contains(SUMS) {
        return;
    }
    let wanted = pack.manifest().sums_text(pack.manifest_sha256());
    let finding = Finding::new(FindingKind::WrongSums).file(SUMS);
    let read = pack
        .open_file(SUMS)
        .and_then(|f| f.read_range(0..f.length()));
    match read {
        Err(e) => {
            let unread = Finding::new(FindingKind::Unreadable).file(SUMS);
            let unread = unread.seen(describe(&e));
            findings.add_unread(e, unread);
        }
        Ok(seen) if seen == wanted.as_bytes() => {}
        Ok(seen) => {
            let at = first_difference(&seen, wanted.as_bytes());
            let before = &wanted.as_bytes()[..at.min(wanted.len())];
            let number = before.iter().filter(|b| **b == b'\n').count();
            let (seen, wanted) = (line(&seen, number), line(wanted.as_bytes(), number));
            let finding = finding.bytes(at as u64, at as u64 + 1);
            findings.add(
                finding
                    .seen(seen)
                    .wanted(format!("{wanted:?}, as the manifest says")),
            );
        }
    }
}

/// Where two byte strings begin to differ.
fn first_difference(a: &[u8], b: &[u8]) -> usize {
    a.iter()
        .zip(b)
        .position(|(a, b)| a != b)
        .unwrap_or(a.len().min(b.len()))
}

fn check_headers(pack: &Pack, sound: &BTreeSet<String>, findings: &Findings) {
    let manifest = pack.manifest();
    let specs = manifest.segment_specs();
    let mut at = 0;
    for entry in &manifest.packs {
        let count = manifest.segments[at..]
            .iter()
            .take_while(|s| s.pack == entry.path)
            .count();
        let range = at..at + count;
        at += count;
        if sound.contains(&entry.path) {
            check_header(
                pack,
                entry,
                &manifest.segments[range.clone()],
                &specs[range],
                findings,
            );
            findings.count(|c| c.packs += 1);
        }
    }
}

/// The header is a function of the manifest: derived again, it must be the same, byte for byte.
fn check_header(
    pack: &Pack,
    entry: &PackEntry,
    segments: &[SegmentEntry],
    specs: &[SegmentSpec],
    findings: &Findings,
) {
    let codec = pack.manifest().options.codec;
    let finding = || Finding::new(FindingKind::WrongHeader).file(&entry.path);
    let start = data_start(specs, codec);
    if start != entry.data_offset {
        let finding = finding()
            .file(MANIFEST)
            .seen(format!("{}: data_offset {}", entry.path, entry.data_offset));
        return findings.add(finding.wanted(start));
    }
    let stored: Vec<_> = segments.iter().map(SegmentEntry::stored).collect();
    let wanted = if codec == Codec::Raw {
        raw_header(specs)
    } else {
        coded_header(specs, &stored, start)
    };
    let seen = pack
        .open_file(&entry.path)
        .and_then(|f| f.read_range(0..start.min(f.length())));
    match seen {
        Err(e) => {
            let unread = Finding::new(FindingKind::Unreadable).file(&entry.path);
            let unread = unread.seen(describe(&e));
            findings.add_unread(e, unread);
        }
        Ok(seen) if seen == wanted => {}
        Ok(seen) => {
            let at = first_difference(&seen, &wanted);
            let (seen, wanted) = (byte(&seen, at), byte(&wanted, at));
            let finding = finding().bytes(at as u64, at as u64 + 1).seen(seen);
            findings.add(finding.wanted(format!("{wanted}, as the manifest says")));
        }
    }
}

/// A byte in words.
fn byte(bytes: &[u8], at: usize) -> String {
    bytes
        .get(at)
        .map_or("the end".to_owned(), |b| format!("byte {b:#04x}"))
}

/// A line of a text, counted from 0.
fn line(text: &[u8], number: usize) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().nth(number).unwrap_or("nothing").to_owned()
}

/// Something in the folder that the manifest does not list.
fn unlisted(path: &str, seen: &str) -> Finding {
    Finding::new(FindingKind::UnlistedFile)
        .file(path)
        .seen(seen)
}

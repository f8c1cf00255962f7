//! The folder against its manifest: which files are there, how long, with which headers and digest
//! list.

use std::collections::BTreeSet;

use segpack_formats::codec::Codec;
use segpack_formats::pack::{SegmentSpec, coded_header, data_start, raw_header};
use segpack_manifests::Pack;
use segpack_manifests::documents::{Finding, FindingKind, PackEntry, SegmentEntry};
use segpack_manifests::folder::SUMS;

use super::{Findings, describe};
use crate::steps::StepError;
use crate::steps::listing::{Listing, list_pack, listed_paths};

/// Checks everything but the content of the files. Returns the files that are there with their
/// right length.
pub(super) fn check(pack: &Pack, findings: &Findings) -> Result<BTreeSet<String>, StepError> {
    let listed = listed_paths(pack.manifest(), pack.document(), pack.has_sums());
    let listing = list_pack(pack, &listed)?;
    let Listing { there, links, .. } = listing;
    findings.extend(listing.findings);
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

fn check_sums(pack: &Pack, sound: &BTreeSet<String>, findings: &Findings) {
    if !sound.contains(SUMS) {
        return;
    }
    let wanted = pack.sums_text();
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
            .file(pack.document())
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

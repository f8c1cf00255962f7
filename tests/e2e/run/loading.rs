//! Whole segments into memory: the right bytes from every kind of segment, and damage found before
//! they are used.

use std::fs;

use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::PackReader;
use segpack_manifests::documents::SegmentEntry;
use segpack_runtime_min::weights::{Arena, Block};
use segpack_runtime_min::weights::{ChecksumPolicy, Load, Loader, buffer_len, data_offset};

use crate::support::damage::flip;
use crate::support::folders::temp;
use crate::support::packs::pack_into;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full};

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

fn block(segment: &SegmentEntry) -> Block {
    let room = index(buffer_len(segment));
    Arena::new(room).unwrap().take(room).unwrap()
}

fn load(loader: &Loader<'_>, segment: &SegmentEntry) -> Result<Vec<u8>, String> {
    let mut block = block(segment);
    let loaded = loader.load(
        &mut [Load::plain(segment, &mut block)],
        &CancelToken::default(),
    );
    loaded.map_err(|e| e.to_string())?;
    Ok(block[data_offset(segment)..][..index(segment.raw_length)].to_vec())
}

fn wanted(source: &PackReader<'_>, segment: &SegmentEntry) -> Vec<u8> {
    let (mut bytes, stop) = (Vec::new(), CancelToken::default());
    let take = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok::<_, segpack_formats::FormatError>(())
    };
    source
        .cursor()
        .unwrap()
        .read_segment(segment, 0..segment.raw_length, &stop, take)
        .unwrap();
    bytes
}

#[test]
fn every_segment_comes_whole_from_raw_and_coded_packs() {
    let folder = temp();
    // experts of 2.4 MB: more than one read, more than one chunk, no multiple of a page
    let size = Qwen3Moe {
        layers: 1,
        experts: 2,
        hidden: 510,
        width: 790,
        shards: 1,
    };
    let large = Tiny::qwen3_moe(size).write(&folder.path().join("large"));
    for (i, checkpoint) in [tiny_full(), large].iter().enumerate() {
        for codec in ["raw", "zstd"] {
            let out = folder.path().join(format!("{i}-{codec}"));
            pack_into(checkpoint, &out, &["--codec", codec]);
            let pack = Pack::open(&out).unwrap();
            let source = PackReader::new(&pack);
            for check in [
                ChecksumPolicy::Always,
                ChecksumPolicy::First,
                ChecksumPolicy::Never,
            ] {
                let loader = Loader::new(&source, check).unwrap();
                for segment in &pack.manifest().segments {
                    let seen = load(&loader, segment).unwrap();
                    assert!(seen == wanted(&source, segment), "{codec} {}", segment.id);
                }
                let stats = loader.stats();
                assert!(
                    stats.bytes() > 0 && (stats.decoded > 0) == (codec == "zstd"),
                    "{stats:?}"
                );
                assert_eq!(stats.check_time.is_zero(), check == ChecksumPolicy::Never);
            }
        }
    }
}

#[test]
fn many_segments_load_at_once_while_something_else_is_done() {
    let folder = temp();
    let out = folder.path().join("pack");
    pack_into(&tiny_full(), &out, &["--codec", "raw"]);
    let pack = Pack::open(&out).unwrap();
    let source = PackReader::new(&pack);
    let loader = Loader::new(&source, ChecksumPolicy::Always).unwrap();
    let segments = &pack.manifest().segments;
    let mut blocks: Vec<Block> = segments.iter().map(block).collect();
    let mut loads: Vec<Load<'_, '_>> = segments
        .iter()
        .zip(&mut blocks)
        .map(|(segment, block)| Load::plain(segment, &mut block[..]))
        .collect();
    let (loaded, done) = loader.load_while(&mut loads, &CancelToken::default(), || 6 * 7);
    loaded.unwrap();
    assert_eq!(done, 42);
    for (segment, block) in segments.iter().zip(&blocks) {
        let seen = &block[data_offset(segment)..][..index(segment.raw_length)];
        assert!(seen == wanted(&source, segment), "{}", segment.id);
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_segment_is_found_before_it_is_used() {
    let folder = temp();
    for codec in ["raw", "zstd"] {
        let out = folder.path().join(codec);
        pack_into(&tiny_full(), &out, &["--codec", codec]);
        let pack = Pack::open(&out).unwrap();
        for segment in pack.manifest().segments.iter().step_by(3) {
            let path = out.join(&segment.pack);
            for at in [0, segment.stored_length / 2, segment.stored_length - 1] {
                let at = i64::try_from(segment.offset + at).unwrap();
                flip(&path, at);
                let source = PackReader::new(&pack);
                for check in [ChecksumPolicy::Always, ChecksumPolicy::First] {
                    let error = load(&Loader::new(&source, check).unwrap(), segment).unwrap_err();
                    let file = path.file_name().unwrap().to_str().unwrap();
                    assert!(error.contains(file) && error.contains("egment"), "{error}");
                }
                flip(&path, at);
            }
        }
    }
}

#[test]
fn the_first_load_is_checked_and_later_ones_only_if_asked() {
    let folder = temp();
    let out = folder.path().join("pack");
    pack_into(&tiny_full(), &out, &["--codec", "raw"]);
    let pack = Pack::open(&out).unwrap();
    let source = PackReader::new(&pack);
    let segment = &pack.manifest().segments[0];
    let [always, first, never] = [
        ChecksumPolicy::Always,
        ChecksumPolicy::First,
        ChecksumPolicy::Never,
    ]
    .map(|c| Loader::new(&source, c).unwrap());
    assert!(load(&always, segment).is_ok() && load(&first, segment).is_ok());
    flip(
        &out.join(&segment.pack),
        i64::try_from(segment.offset).unwrap(),
    );
    assert!(
        load(&always, segment)
            .unwrap_err()
            .contains("is damaged: BLAKE3")
    );
    assert!(load(&first, segment).is_ok() && load(&never, segment).is_ok());
}

#[test]
fn a_pack_that_was_cut_and_a_request_to_stop_are_errors() {
    let folder = temp();
    let out = folder.path().join("pack");
    pack_into(&tiny_full(), &out, &["--codec", "raw"]);
    let pack = Pack::open(&out).unwrap();
    let source = PackReader::new(&pack);
    let loader = Loader::new(&source, ChecksumPolicy::Always).unwrap();
    let segment = pack
        .manifest()
        .segments
        .iter()
        .max_by_key(|s| s.offset)
        .unwrap();
    let stop = CancelToken::default();
    stop.cancel();
    let mut memory = block(segment);
    let stopped = loader.load(&mut [Load::plain(segment, &mut memory)], &stop);
    assert!(stopped.unwrap_err().to_string().contains("interrupted"));
    let path = out.join(&segment.pack);
    let length = fs::metadata(&path).unwrap().len();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(length - 1)
        .unwrap();
    assert!(
        load(&loader, segment)
            .unwrap_err()
            .contains("ends before byte")
    );
    let fresh = PackReader::new(&pack);
    assert!(
        load(
            &Loader::new(&fresh, ChecksumPolicy::Never).unwrap(),
            segment
        )
        .unwrap_err()
        .contains("ends after")
    );
}

//! What each fuzz target does with its input: parse it, and hold what was accepted to its promises.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;

use segpack_formats::codec::{
    ChunkDecoder, ChunkEncoder, ChunkTable, Codec, Coding, MAX_CHUNK_BYTES, PREFIX_BYTES, Simd,
    TABLE_ENTRY_BYTES,
};
use segpack_formats::digest::{Blake3, Sha256};
use segpack_formats::gguf;
use segpack_formats::io::{CancelToken, MemoryFile, READ_BYTES, ReadAt};
use segpack_formats::numeric::Dtype;
use segpack_formats::pack::{self, SegmentReader, StoredSegment, Unpacker};
use segpack_formats::safetensors::{ShardHeader, ShardIndex, byte_length, check_relative_path};
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::{Manifest, TensorEntry as ListedTensor};

/// A target: takes an input, panics where a promise is broken, and says whether anything was
/// accepted.
pub type Body = fn(&[u8]) -> bool;

/// The name of each target (also of its folder in `corpus/`) and its body.
pub const TARGETS: [(&str, Body); 9] = [
    ("shard_header", shard_header),
    ("shard_index", shard_index),
    ("chunk_table", chunk_table),
    ("pack_reader", pack_reader),
    ("planes_chunk", planes_chunk),
    ("rans_chunk", rans_chunk),
    ("chunk_encoder", chunk_encoder),
    ("manifest", manifest),
    ("gguf_header", gguf_header),
];

/// The whole image of a shard; its JSON also with the file length that its largest number asks for.
pub fn shard_header(data: &[u8]) -> bool {
    let file_length = data.len() as u64;
    let Ok(length) = ShardHeader::parse_length(data, file_length) else {
        return false;
    };
    let mut accepted = false;
    let json = &data[8..8 + as_index(length)];
    if let Ok(header) = ShardHeader::parse(json, file_length) {
        accepted = true;
        check_header(&header, 8 + length, file_length);
        // stricter than the stock reader, never laxer
        safetensors::SafeTensors::read_metadata(data)
            .expect("the stock reader refuses what was accepted");
    }
    let file_length = (8 + length).saturating_add(largest_number(json));
    if let Ok(header) = ShardHeader::parse(json, file_length) {
        accepted = true;
        check_header(&header, 8 + length, file_length);
    }
    accepted
}

fn check_header(header: &ShardHeader, data_start: u64, file_length: u64) {
    assert_eq!(header.data_start, data_start);
    let mut at = data_start;
    let mut names = HashSet::new();
    for t in &header.tensors {
        assert_eq!(
            t.offset, at,
            "{:?} does not follow the tensor before it",
            t.name
        );
        assert_eq!(byte_length(t.dtype, &t.shape), Ok(t.length));
        assert!(!t.name.is_empty() && !t.name.chars().any(char::is_control));
        assert!(names.insert(&t.name), "{:?} twice", t.name);
        at = t
            .offset
            .checked_add(t.length)
            .expect("a range that ends after 2^64");
    }
    assert_eq!(at, file_length, "the tensors do not tile the file");

    let json = header_json(header);
    let start = 8 + json.len() as u64;
    let file_length = start + (file_length - data_start).min(u64::MAX - start);
    if let Ok(again) = ShardHeader::parse(json.as_bytes(), file_length) {
        let mut moved = header.tensors.clone();
        for t in &mut moved {
            t.offset = t.offset - data_start + start;
        }
        assert_eq!(again.tensors, moved);
        assert_eq!(again.metadata, header.metadata);
    } else {
        // only where the new header, being longer, moves the end past 2^64
        assert!(
            (at - data_start).checked_add(start).is_none(),
            "{json} was not accepted again"
        );
    }
}

fn header_json(header: &ShardHeader) -> String {
    let text = |s: &str| serde_json::Value::from(s).to_string();
    let mut entries = Vec::new();
    if let Some(metadata) = &header.metadata {
        let pairs: Vec<_> = metadata
            .iter()
            .map(|(k, v)| format!("{}:{}", text(k), text(v)))
            .collect();
        entries.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    }
    for t in &header.tensors {
        let begin = t.offset - header.data_start;
        entries.push(format!(
            "{}:{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{begin},{}]}}",
            text(&t.name),
            t.dtype,
            t.shape,
            begin + t.length
        ));
    }
    format!("{{{}}}", entries.join(","))
}

fn largest_number(json: &[u8]) -> u64 {
    let runs = json.split(|b| !b.is_ascii_digit());
    runs.filter_map(|run| std::str::from_utf8(run).ok()?.parse().ok())
        .max()
        .unwrap_or(0)
}

/// The text of `model.safetensors.index.json`.
pub fn shard_index(data: &[u8]) -> bool {
    let Ok(index) = ShardIndex::parse(data) else {
        return false;
    };
    for file in index.shards() {
        check_path(file);
    }
    let placed = index
        .weight_map
        .iter()
        .map(|(name, file)| (name.clone(), (&**file).into()));
    let placed: serde_json::Map<String, serde_json::Value> = placed.collect();
    let mut again = serde_json::json!({ "weight_map": placed });
    if let Some(total) = index.total_size {
        again["metadata"] = serde_json::json!({ "total_size": total });
    }
    assert_eq!(
        ShardIndex::parse(again.to_string().as_bytes()).ok(),
        Some(index)
    );
    true
}

/// A path that was accepted stays in its folder, on every system.
fn check_path(path: &str) {
    assert_eq!(check_relative_path(path), Ok(()));
    let parts: Vec<&str> = path.split('/').collect();
    assert!(
        parts.iter().all(|p| !["", ".", ".."].contains(p)),
        "{path:?}"
    );
    assert!(!path.contains(['\\', ':', '\n', '\0']), "{path:?}");
}

/// The stored bytes of a coded segment, as they are and with the right check.
pub fn chunk_table(data: &[u8]) -> bool {
    let as_it_is = parse_table(data);
    with_table_check(data).is_some_and(|repaired| parse_table(&repaired)) || as_it_is
}

fn parse_table(segment: &[u8]) -> bool {
    let stored_length = segment.len() as u64;
    let prefix = &segment[..segment.len().min(as_index(PREFIX_BYTES))];
    let Ok(end) = ChunkTable::parse_prefix(prefix, stored_length) else {
        return false;
    };
    assert!((PREFIX_BYTES..=stored_length).contains(&end));
    let head = &segment[..as_index(end)];
    let Ok(table) = ChunkTable::parse(head, stored_length) else {
        return false;
    };
    assert_eq!(
        table.encode(),
        head,
        "an accepted table is encoded otherwise"
    );
    assert_eq!(
        end,
        PREFIX_BYTES + table.chunks.len() as u64 * TABLE_ENTRY_BYTES
    );
    let (mut raw, mut stored) = (0, end);
    for chunk in &table.chunks {
        assert_eq!((chunk.raw.start, chunk.stored.start), (raw, stored));
        (raw, stored) = (chunk.raw.end, chunk.stored.end);
        assert!((1..=u64::from(MAX_CHUNK_BYTES)).contains(&(raw - chunk.raw.start)));
        assert!(stored - chunk.stored.start <= u64::from(MAX_CHUNK_BYTES));
    }
    assert_eq!(raw, table.raw_length);
    assert!(stored <= stored_length);
    for range in some_ranges(raw) {
        let found = table.overlapping(&range);
        let wanted = table
            .chunks
            .iter()
            .filter(|c| c.raw.start < range.end && range.start < c.raw.end);
        assert!(range.is_empty() || found.iter().eq(wanted), "{range:?}");
    }
    true
}

fn some_ranges(length: u64) -> [Range<u64>; 5] {
    let (third, half) = (length / 3, length / 2);
    [
        0..length,
        0..half,
        third..length - third,
        half..length,
        half..half,
    ]
}

/// The segment with the check that its head should have, so that the parser behind it is reached.
fn with_table_check(segment: &[u8]) -> Option<Vec<u8>> {
    let prefix = segment.get(..as_index(PREFIX_BYTES))?;
    let end = as_index(ChunkTable::parse_prefix(prefix, segment.len() as u64).ok()?);
    let mut repaired = segment.to_vec();
    let covered = [&segment[..24], &segment[32..end]].concat();
    repaired[24..32].copy_from_slice(&Blake3::of(&covered).0[..8]);
    Some(repaired)
}

/// The segment with the check that each chunk and the head should have.
fn with_all_checks(segment: &[u8]) -> Option<Vec<u8>> {
    let mut repaired = with_table_check(segment)?;
    let table = parsed_table(&repaired)?;
    for (i, chunk) in table.chunks.iter().enumerate() {
        let stored = &segment[as_index(chunk.stored.start)..as_index(chunk.stored.end)];
        let entry = as_index(PREFIX_BYTES + i as u64 * TABLE_ENTRY_BYTES);
        repaired[entry + 16..entry + 24].copy_from_slice(&Blake3::of(stored).0[..8]);
    }
    with_table_check(&repaired)
}

fn parsed_table(segment: &[u8]) -> Option<ChunkTable> {
    let end =
        ChunkTable::parse_prefix(segment.get(..as_index(PREFIX_BYTES))?, segment.len() as u64)
            .ok()?;
    ChunkTable::parse(&segment[..as_index(end)], segment.len() as u64).ok()
}

/// Bytes before the pack's image: offset, stored length, raw length (u64 each), and a byte of
/// [`Place`].
pub const PLACE_BYTES: usize = 25;

/// Set in the last byte of a place where the codec is zstd.
pub const PLACE_ZSTD: u8 = 1;
/// Set where checks and the raw length are made right first, so that the decoder is reached.
pub const PLACE_REPAIR: u8 = 2;

/// The image of a pack file behind the place of a segment in it.
pub fn pack_reader(data: &[u8]) -> bool {
    let Some((place, image)) = data.split_at_checked(PLACE_BYTES) else {
        return false;
    };
    let word = |at: usize| place[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let zstd = place[24] & PLACE_ZSTD != 0;
    let mut segment = StoredSegment {
        offset: word(0),
        stored_length: word(8),
        raw_length: word(16),
        codec: if zstd { Codec::Zstd } else { Codec::Raw },
        blake3: Blake3([0; 32]),
    };
    let mut image = image.to_vec();
    if zstd && place[24] & PLACE_REPAIR != 0 {
        repair(&mut image, &mut segment);
    }
    let file = MemoryFile::new("image", image.clone());
    read_segment(&file, &image, segment)
}

fn repair(image: &mut [u8], segment: &mut StoredSegment) {
    let end = segment.offset.saturating_add(segment.stored_length);
    if end > image.len() as u64 {
        return;
    }
    let bytes = &mut image[as_index(segment.offset)..as_index(end)];
    if let Some(repaired) = with_all_checks(bytes) {
        bytes.copy_from_slice(&repaired);
        segment.raw_length = parsed_table(bytes).map_or(segment.raw_length, |t| t.raw_length);
    }
}

/// Raw bytes of a segment that are read: a few kilobytes of zstd frames can stand for
/// gigabytes.
const MAX_READ_BYTES: usize = 16 << 20;

fn read_segment(pack: &dyn ReadAt, image: &[u8], segment: StoredSegment) -> bool {
    let Ok(reader) = SegmentReader::open(pack, segment) else {
        return false;
    };
    assert!(segment.offset + segment.stored_length <= image.len() as u64);
    let Ok(whole) = read_range(&reader, 0..segment.raw_length) else {
        return false;
    };
    if whole.len() < MAX_READ_BYTES {
        assert_eq!(
            whole.len() as u64,
            segment.raw_length,
            "decoded another length than declared"
        );
        for range in some_ranges(segment.raw_length) {
            let part =
                read_range(&reader, range.clone()).expect("a part of what was read as a whole");
            assert_eq!(
                part,
                whole[as_index(range.start)..as_index(range.end)],
                "{range:?}"
            );
        }
    }
    if segment.codec == Codec::Raw {
        let start = as_index(segment.offset);
        assert_eq!(whole, image[start..start + whole.len()]);
    }
    let past = segment.raw_length..segment.raw_length.saturating_add(1);
    assert!(past.is_empty() || read_range(&reader, past).is_err());
    true
}

thread_local! {
    // reused as in the program: what one segment leaves behind must not reach the next
    static UNPACKER: RefCell<Unpacker> = RefCell::new(Unpacker::new().expect("memory for a decoder"));
}

/// At most [`MAX_READ_BYTES`] of the range.
fn read_range(reader: &SegmentReader<'_>, range: Range<u64>) -> Result<Vec<u8>> {
    let (mut bytes, cancel) = (Vec::new(), CancelToken::default());
    let read = UNPACKER.with_borrow_mut(|unpacker| {
        reader.for_each_piece(range, unpacker, &cancel, |piece| {
            assert!(piece.len() <= READ_BYTES.max(MAX_CHUNK_BYTES as usize));
            bytes.extend_from_slice(piece);
            if bytes.len() < MAX_READ_BYTES {
                Ok(())
            } else {
                Err(FormatError::Interrupted)
            }
        })
    });
    match read {
        Err(FormatError::Interrupted) | Ok(()) => Ok(bytes),
        Err(e) => Err(e),
    }
}

/// Numbers of the methods in a chunk table.
const METHOD_PLANES: u8 = 2;
const METHOD_RANS: u8 = 3;

/// Bytes before a chunk's stored ones: its raw length (u16) and what is made right first.
pub const CHUNK_PLACE_BYTES: usize = 3;
/// Set where a rANS chunk's count of words is made what is left for them.
pub const REPAIR_WORDS: u8 = 1;
/// Set where its frequencies are made to add up.
pub const REPAIR_FREQUENCIES: u8 = 2;
/// Set where its states are brought into their range.
pub const REPAIR_STATES: u8 = 4;

/// The stored bytes of a chunk of byte planes.
pub fn planes_chunk(data: &[u8]) -> bool {
    let Some((place, stored)) = data.split_first_chunk::<CHUNK_PLACE_BYTES>() else {
        return false;
    };
    decode_alike(
        METHOD_PLANES,
        usize::from(u16::from_le_bytes([place[0], place[1]])),
        stored,
    )
}

/// The stored bytes of a rANS chunk.
pub fn rans_chunk(data: &[u8]) -> bool {
    let Some((place, stored)) = data.split_first_chunk::<CHUNK_PLACE_BYTES>() else {
        return false;
    };
    let raw_length = usize::from(u16::from_le_bytes([place[0], place[1]]));
    let mut stored = stored.to_vec();
    repair_rans(&mut stored, raw_length, place[2]);
    decode_alike(METHOD_RANS, raw_length, &stored)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn repair_rans(stored: &mut [u8], raw_length: usize, flags: u8) {
    if stored.len() < 16 {
        return;
    }
    let symbols = (u32_at(stored, 4) & 0xffff) as usize;
    let exceptions = u32_at(stored, 8) as usize;
    let states =
        16 + 2 * symbols + exceptions.saturating_mul(6) + raw_length % 128 + raw_length / 128 * 48;
    if flags & REPAIR_WORDS != 0 && states + 256 <= stored.len() {
        let words = ((stored.len() - states - 256) / 2) as u32;
        stored[12..16].copy_from_slice(&words.to_le_bytes());
    }
    if flags & REPAIR_FREQUENCIES != 0
        && (1..=256).contains(&symbols)
        && 16 + 2 * symbols <= stored.len()
    {
        let mut left = 4096_u16;
        for (i, f) in stored[16..16 + 2 * symbols].chunks_exact_mut(2).enumerate() {
            let wanted = u16::from_le_bytes([f[0], f[1]]).min(left).min(4095);
            let wanted = if i + 1 == symbols { left } else { wanted };
            left -= wanted;
            f.copy_from_slice(&wanted.to_le_bytes());
        }
    }
    if flags & REPAIR_STATES != 0 && states + 256 <= stored.len() {
        for state in stored[states..states + 256].chunks_exact_mut(4) {
            let mut value = u32_at(state, 0) & 0x7fff_ffff;
            if value < 0x8000 {
                value |= 0x8000;
            }
            state.copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// A table of one chunk, whose check nobody looks at.
fn table_of_one(method: u8, raw_length: usize, stored_length: usize) -> Option<ChunkTable> {
    let mut head = b"SEGCHNK\x01".to_vec();
    head.extend(1_u32.to_le_bytes());
    head.extend(0_u32.to_le_bytes());
    head.extend((raw_length as u64).to_le_bytes());
    head.resize(as_index(PREFIX_BYTES), 0);
    head.extend((raw_length as u32).to_le_bytes());
    head.extend((stored_length as u32).to_le_bytes());
    head.push(method);
    head.resize(as_index(PREFIX_BYTES + TABLE_ENTRY_BYTES), 0);
    let check = Blake3::of(&[&head[..24], &head[32..]].concat()).0;
    head[24..32].copy_from_slice(&check[..8]);
    ChunkTable::parse(&head, (head.len() + stored_length) as u64).ok()
}

thread_local! {
    static DECODERS: RefCell<Vec<ChunkDecoder>> = RefCell::new(
        Simd::available().into_iter().map(|s| ChunkDecoder::with_simd(s).expect("memory for a decoder")).collect()
    );
}

/// Every decoder gives the same bytes or the same error, and writes nowhere else.
fn decode_alike(method: u8, raw_length: usize, stored: &[u8]) -> bool {
    const GUARD: usize = 64;
    let Some(table) = table_of_one(method, raw_length, stored.len()) else {
        return false;
    };
    let chunk = &table.chunks[0];
    let mut first: Option<Result<Vec<u8>, String>> = None;
    DECODERS.with_borrow_mut(|decoders| {
        for decoder in decoders {
            let mut room = vec![0xa5; raw_length + 2 * GUARD];
            let to = &mut room[GUARD..GUARD + raw_length];
            let decoded = decoder
                .decode_unchecked(chunk, stored, to)
                .map_err(|e| e.to_string());
            let decoded = decoded.map(|()| to.to_vec());
            assert!(
                room[..GUARD]
                    .iter()
                    .chain(&room[GUARD + raw_length..])
                    .all(|b| *b == 0xa5),
                "written outside"
            );
            assert!(
                *first.get_or_insert_with(|| decoded.clone()) == decoded,
                "decoders disagree"
            );
        }
    });
    first.is_some_and(|decoded| decoded.is_ok())
}

/// The first byte of an encoder's input chooses among these, and among the codecs.
const DTYPES: [Dtype; 5] = [
    Dtype::BF16,
    Dtype::F32,
    Dtype::F8_E4M3,
    Dtype::F16,
    Dtype::I64,
];

thread_local! {
    static ENCODERS: RefCell<Vec<Vec<ChunkEncoder>>> = RefCell::new(
        [Coding::Bf16Rans, Coding::Bf16Zstd, Coding::Zstd { level: 1 }]
            .into_iter()
            .map(|coding| {
                let encoder = |simd| ChunkEncoder::with_simd(coding, simd).expect("memory for an encoder");
                Simd::available().into_iter().map(encoder).collect()
            })
            .collect()
    );
}

/// Raw bytes behind a byte of choices: every encoder writes the same, which comes back. Says
/// whether it shrank.
pub fn chunk_encoder(data: &[u8]) -> bool {
    let Some((choice, raw)) = data.split_first() else {
        return false;
    };
    let choice = usize::from(*choice);
    let dtype = DTYPES[choice % DTYPES.len()];
    if raw.is_empty() {
        return false;
    }
    ENCODERS.with_borrow_mut(|all| {
        let count = all.len();
        let encoders = &mut all[choice / DTYPES.len() % count];
        let mut first: Option<Vec<u8>> = None;
        for encoder in encoders {
            let (chunk, stored) = encoder
                .encode(dtype, raw, 0, 0)
                .expect("an encoder that works");
            assert!(
                *first.get_or_insert_with(|| stored.to_vec()) == stored,
                "encoders disagree"
            );
            DECODERS.with_borrow_mut(|decoders| {
                for decoder in decoders {
                    let mut back = vec![0; raw.len()];
                    decoder
                        .decode(&chunk, stored, &mut back)
                        .expect("what was coded just now");
                    assert!(back == raw, "other bytes came back");
                }
            });
        }
        first.is_some_and(|stored| stored.len() < raw.len())
    })
}

/// The text of `manifest.json`, and everything that readers of a pack derive from it.
pub fn manifest(data: &[u8]) -> bool {
    let Ok(manifest) = Manifest::parse(data) else {
        return false;
    };
    let mut text = Vec::new();
    manifest
        .write(&mut text)
        .expect("a vector takes everything");
    assert_eq!(Manifest::parse(&text).expect("its own text"), manifest);
    assert_eq!(manifest.count(), manifest.counts);
    check_files(&manifest);
    check_segments(&manifest);
    check_headers(&manifest);
    true
}

fn check_files(manifest: &Manifest) {
    let files = manifest.files();
    files.iter().for_each(|(path, ..)| check_path(path));
    manifest
        .source_files
        .iter()
        .for_each(|f| check_path(&f.path));
    let sums = manifest.sums_text(Sha256::of(b""));
    let paths: Vec<&str> = sums.lines().map(|line| line.split_at(66).1).collect();
    assert_eq!(paths.len(), files.len() + 1);
    assert!(paths.is_sorted_by(|a, b| a < b), "{paths:?}");
}

/// Everything lies where it is said to, reckoned without wrapping round.
fn check_segments(manifest: &Manifest) {
    let lists = manifest.tensors_of_segments();
    assert_eq!(
        lists.iter().map(|list| list.len()).sum::<usize>(),
        manifest.tensors.len()
    );
    for (segment, tensors) in manifest.segments.iter().zip(lists) {
        let pack = manifest
            .packs
            .iter()
            .find(|p| p.path == segment.pack)
            .expect("its pack is listed");
        let end = segment.offset.checked_add(segment.stored_length);
        assert!(segment.offset >= pack.data_offset && end.is_some_and(|end| end <= pack.length));
        for t in tensors {
            let end = t
                .offset
                .checked_add(t.length)
                .expect("a tensor that ends after 2^64");
            assert!(end <= segment.raw_length);
            check_source(manifest, t);
        }
    }
}

fn check_source(manifest: &Manifest, t: &ListedTensor) {
    let shard = manifest
        .source_files
        .iter()
        .find(|f| f.path == t.source.file)
        .expect("its shard is listed");
    let end = t.source.offset.checked_add(t.source.length);
    assert!(end.is_some_and(|end| end <= shard.length));
}

/// The headers that `verify` derives, and those that the same tensors would get in a coded pack.
fn check_headers(manifest: &Manifest) {
    const LONGEST: u64 = 1 << 40;
    let specs = manifest.segment_specs();
    let mut at = 0;
    for entry in &manifest.packs {
        let listed = manifest.segments[at..]
            .iter()
            .take_while(|s| s.pack == entry.path);
        let stored: Vec<StoredSegment> = listed.map(|s| s.stored()).collect();
        let specs = &specs[at..at + stored.len()];
        at += stored.len();
        let start = pack::data_start(specs, manifest.options.codec);
        assert!(start >= pack::ALIGNMENT && start.is_multiple_of(pack::ALIGNMENT));
        if start == entry.data_offset {
            check_whole(&pack::coded_header(specs, &stored, start), start);
        }
        if specs.iter().all(|s| s.raw_length() < LONGEST) {
            let start = pack::data_start(specs, Codec::Zstd);
            check_whole(
                &pack::coded_header(specs, &stored_from(specs, start), start),
                start,
            );
        }
    }
}

/// The JSON fits before the data: it was not cut off.
fn check_whole(header: &[u8], data_start: u64) {
    assert_eq!(header.len() as u64, data_start);
    let json = header[8..].trim_ascii_end();
    assert!(
        json.starts_with(b"{\"__metadata__\":") && json.ends_with(b"}"),
        "cut off"
    );
}

/// A segment that did not shrink, at `at`, which moves to its end.
fn stored_at(at: &mut u64, spec: &pack::SegmentSpec) -> StoredSegment {
    let (offset, length) = (*at, spec.raw_length());
    *at += length;
    StoredSegment {
        offset,
        stored_length: length,
        raw_length: length,
        codec: if length == 0 { Codec::Raw } else { Codec::Zstd },
        blake3: Blake3([0; 32]),
    }
}

/// As a coded pack whose segments shrank by nothing would be laid out.
fn stored_from(specs: &[pack::SegmentSpec], start: u64) -> Vec<StoredSegment> {
    let mut at = start;
    specs.iter().map(|spec| stored_at(&mut at, spec)).collect()
}

/// For lengths that a slice was just found to have.
fn as_index(length: u64) -> usize {
    usize::try_from(length).expect("a length that fits into memory")
}

/// The image of a GGUF file, also with the file length that its header asks for.
pub fn gguf_header(data: &[u8]) -> bool {
    let read = |length: u64| gguf::Header::read(&mut &data[..], length);
    // no data follows a header that was cut off: the error says where the tensors end
    let claimed = read(data.len() as u64).err().and_then(|e| {
        let text = e.to_string();
        text.split("end at byte ")
            .nth(1)?
            .split(':')
            .next()?
            .parse()
            .ok()
    });
    let Ok(header) = read(claimed.unwrap_or(data.len() as u64)) else {
        return false;
    };
    let mut wanted = 0;
    for t in &header.tensors {
        assert_eq!(
            t.offset, wanted,
            "{:?} does not follow the tensor before it",
            t.name
        );
        assert_eq!(t.kind.byte_length(&t.shape), Ok(t.length));
        wanted = (t.offset + t.length).next_multiple_of(header.alignment);
    }
    let specs = header.tensors.iter().map(|t| gguf::TensorSpec {
        name: t.name.clone(),
        kind: t.kind,
        shape: t.shape.clone(),
    });
    let again = gguf::Header::place(header.metadata.clone(), specs.collect())
        .expect("what was accepted is not refused when written");
    assert_eq!(
        again.to_bytes(),
        data[..as_index(header.data_start)],
        "written again, it differs"
    );
    true
}

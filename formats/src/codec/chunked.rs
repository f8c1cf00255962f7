//! The framing of a coded segment: a table of independently decodable chunks, then the chunks.
//!
//! ```text
//! ┌───────────────────────────┐ 0
//! │ magic  "SEGCHNK\x01"   8 B│
//! │ chunk count       u32  4 B│
//! │ shared length     u32  4 B│ bytes of codec tables after the chunk table; 0 now
//! │ raw length        u64  8 B│
//! │ check                  8 B│ BLAKE3 of all other bytes up to the first chunk, its first 8 bytes
//! ├───────────────────────────┤ PREFIX_BYTES
//! │ table  n × 24 B           │ raw length u32, stored length u32, method u8, 7 zeros, check 8 B
//! │ shared                    │
//! ├───────────────────────────┤
//! │ chunks, adjacent          │ in raw order, none across a tensor's end
//! │ zeros to a multiple of 4096
//! └───────────────────────────┘ integers are little-endian
//! ```

use std::ops::Range;

use crate::digest::Blake3Hasher;
use crate::{FormatError, Result};

const MAGIC: [u8; 8] = *b"SEGCHNK\x01";

/// Bytes before the chunk table.
pub const PREFIX_BYTES: u64 = 32;
/// Bytes of one entry of the chunk table.
pub const TABLE_ENTRY_BYTES: u64 = 24;
/// Raw bytes of a chunk as written here; the last chunk of a tensor is shorter.
pub const RAW_CHUNK_BYTES: u64 = 2 << 20;
/// The longest chunk, raw or stored, that a reader accepts.
pub const MAX_CHUNK_BYTES: u32 = 4 << 20;

const METHOD_STORED: u8 = 0;
const METHOD_ZSTD: u8 = 1;
const METHOD_PLANES: u8 = 2;
const METHOD_RANS: u8 = 3;

/// How one chunk is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// Its raw bytes.
    Stored,
    /// One zstd frame.
    Zstd,
    /// Byte planes of rotated values, each stored or a zstd frame.
    Planes,
    /// Interleaved rANS over the upper bits of bf16 values.
    Rans,
}

impl Method {
    const ALL: [(u8, Self); 4] = [
        (METHOD_STORED, Self::Stored),
        (METHOD_ZSTD, Self::Zstd),
        (METHOD_PLANES, Self::Planes),
        (METHOD_RANS, Self::Rans),
    ];

    fn number(self) -> u8 {
        Self::ALL
            .into_iter()
            .find(|(_, method)| *method == self)
            .map_or(METHOD_STORED, |(number, _)| number)
    }

    fn of(number: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|(n, _)| *n == number)
            .map(|(_, method)| method)
    }
}

/// One chunk of a coded segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its bytes within the raw segment.
    pub raw: Range<u64>,
    /// Its bytes within the stored segment.
    pub stored: Range<u64>,
    pub(super) method: Method,
    /// First 8 bytes of the BLAKE3 of its stored bytes.
    pub(super) check: [u8; 8],
}

/// The chunks of a coded segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkTable {
    /// In raw order, without gaps.
    pub chunks: Vec<Chunk>,
    /// Bytes of the decoded segment.
    pub raw_length: u64,
}

/// First 8 bytes of a BLAKE3 digest: enough to tell damage, not to stand against forgery.
pub(super) fn short_check(parts: &[&[u8]]) -> [u8; 8] {
    let mut hasher = Blake3Hasher::default();
    for part in parts {
        hasher.update(part);
    }
    let digest = hasher.finish().0;
    let mut check = [0; 8];
    check.copy_from_slice(&digest[..8]);
    check
}

/// Number of chunks of a tensor of this many bytes.
pub fn chunk_count(tensor_bytes: u64) -> u64 {
    tensor_bytes.div_ceil(RAW_CHUNK_BYTES)
}

/// Raw lengths of the chunks of a tensor of this many bytes.
pub fn chunk_lengths(tensor_bytes: u64) -> impl Iterator<Item = u64> {
    (0..chunk_count(tensor_bytes))
        .map(move |i| RAW_CHUNK_BYTES.min(tensor_bytes - i * RAW_CHUNK_BYTES))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .copied()
        .map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .copied()
        .map_or(0, u64::from_le_bytes)
}

impl ChunkTable {
    /// Bytes from the segment's start to its first chunk, from its first [`PREFIX_BYTES`] bytes.
    ///
    /// # Errors
    /// `Coded` where the magic is wrong or the table does not fit into the segment.
    pub fn parse_prefix(prefix: &[u8], stored_length: u64) -> Result<u64> {
        if stored_length < PREFIX_BYTES || (prefix.len() as u64) < PREFIX_BYTES {
            return Err(FormatError::coded(format!(
                "has {stored_length} bytes, its prefix alone takes {PREFIX_BYTES}"
            )));
        }
        if prefix[..8] != MAGIC {
            return Err(FormatError::coded(format!(
                "begins with {:02x?}, wanted {MAGIC:02x?}",
                &prefix[..8]
            )));
        }
        let shared = u32_at(prefix, 12);
        if shared != 0 {
            return Err(FormatError::coded(format!(
                "has {shared} bytes of shared tables; no codec of this build has any"
            )));
        }
        let table = u64::from(u32_at(prefix, 8)) * TABLE_ENTRY_BYTES;
        let end = PREFIX_BYTES + table;
        if end > stored_length {
            return Err(FormatError::coded(format!(
                "{} chunks need a table that ends at byte {end}, after the segment's {stored_length} bytes",
                u32_at(prefix, 8)
            )));
        }
        Ok(end)
    }

    /// Parses all bytes before the first chunk (their number is what
    /// [`parse_prefix`](Self::parse_prefix) gives).
    ///
    /// # Errors
    /// `Coded`: a failed check, a chunk over [`MAX_CHUNK_BYTES`], lengths that do not add up.
    pub fn parse(head: &[u8], stored_length: u64) -> Result<Self> {
        let end = Self::parse_prefix(head, stored_length)?;
        if head.len() as u64 != end {
            return Err(FormatError::coded(format!(
                "head has {} bytes, wanted {end}",
                head.len()
            )));
        }
        if short_check(&[&head[..24], &head[32..]]) != head[24..32] {
            return Err(FormatError::coded(
                "chunk table is damaged: its check does not match",
            ));
        }
        let mut table = Self {
            chunks: Vec::new(),
            raw_length: u64_at(head, 16),
        };
        let (mut raw, mut stored) = (0, end);
        for (i, entry) in head[32..].chunks_exact(24).enumerate() {
            let chunk = parse_entry(entry, raw, stored)
                .map_err(|why| FormatError::coded(format!("chunk {i}: {why}")))?;
            (raw, stored) = (chunk.raw.end, chunk.stored.end);
            table.chunks.push(chunk);
        }
        if stored > stored_length {
            return Err(FormatError::coded(format!(
                "chunks end at byte {stored}, after the segment's {stored_length} bytes"
            )));
        }
        if raw != table.raw_length {
            return Err(FormatError::coded(format!(
                "chunks hold {raw} raw bytes, the prefix says {}",
                table.raw_length
            )));
        }
        Ok(table)
    }

    /// Parses the table of a segment from its first bytes, which may reach past the table. Those of
    /// nearly every segment lie in its first 4096: they hold 169 chunks, over 300 MB.
    ///
    /// A chunk's `stored` range then says which bytes of the segment to hand to
    /// [`ChunkDecoder::decode`](super::ChunkDecoder::decode), and `raw` where they go: chunks can be read and decoded in
    /// any order, by any number of threads with a decoder each.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); `Coded` where the table is longer than `start`, with the number
    /// of bytes that it takes.
    pub fn from_start(start: &[u8], stored_length: u64) -> Result<Self> {
        let end = Self::parse_prefix(start, stored_length)?;
        let head = usize::try_from(end).ok().and_then(|end| start.get(..end));
        let head = head.ok_or_else(|| {
            FormatError::coded(format!(
                "chunk table ends at byte {end}, only {} are there",
                start.len()
            ))
        })?;
        Self::parse(head, stored_length)
    }

    /// The bytes before the first chunk.
    pub fn encode(&self) -> Vec<u8> {
        let mut table = Vec::new();
        for chunk in &self.chunks {
            let (raw, stored) = (
                chunk.raw.end - chunk.raw.start,
                chunk.stored.end - chunk.stored.start,
            );
            table.extend(u32::try_from(raw).unwrap_or(u32::MAX).to_le_bytes());
            table.extend(u32::try_from(stored).unwrap_or(u32::MAX).to_le_bytes());
            table.extend([chunk.method.number(), 0, 0, 0, 0, 0, 0, 0]);
            table.extend(chunk.check);
        }
        let mut head = MAGIC.to_vec();
        head.extend(
            u32::try_from(self.chunks.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        head.extend(0_u32.to_le_bytes());
        head.extend(self.raw_length.to_le_bytes());
        let check = short_check(&[&head, &table]);
        head.extend(check);
        head.extend(table);
        head
    }

    /// The chunks that hold some of these raw bytes.
    pub fn overlapping(&self, raw: &Range<u64>) -> &[Chunk] {
        let first = self.chunks.partition_point(|c| c.raw.end <= raw.start);
        let end = self.chunks.partition_point(|c| c.raw.start < raw.end);
        self.chunks.get(first..end.max(first)).unwrap_or(&[])
    }
}

fn parse_entry(entry: &[u8], raw: u64, stored: u64) -> Result<Chunk, String> {
    let (raw_length, stored_length) = (u32_at(entry, 0), u32_at(entry, 4));
    if raw_length == 0 || raw_length > MAX_CHUNK_BYTES || stored_length > MAX_CHUNK_BYTES {
        return Err(format!(
            "{raw_length} raw and {stored_length} stored bytes; wanted 1 to {MAX_CHUNK_BYTES}"
        ));
    }
    let Some(method) = Method::of(entry[8]) else {
        return Err(format!(
            "method {} is unknown; this build reads 0 to {METHOD_RANS}",
            entry[8]
        ));
    };
    if method == Method::Stored && raw_length != stored_length {
        return Err(format!(
            "stored as it is, but {stored_length} bytes for {raw_length}"
        ));
    }
    if entry[9..16] != [0; 7] {
        return Err("reserved bytes are not zero".to_owned());
    }
    let mut check = [0; 8];
    check.copy_from_slice(&entry[16..24]);
    Ok(Chunk {
        raw: raw..raw + u64::from(raw_length),
        stored: stored..stored + u64::from(stored_length),
        method,
        check,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(raw: Range<u64>, stored: Range<u64>, method: Method, check: u8) -> Chunk {
        Chunk {
            raw,
            stored,
            method,
            check: [check; 8],
        }
    }

    fn table() -> ChunkTable {
        ChunkTable {
            chunks: vec![
                chunk(0..10, 80..85, Method::Zstd, 1),
                chunk(10..14, 85..89, Method::Stored, 2),
            ],
            raw_length: 14,
        }
    }

    #[test]
    fn framing_constants_never_change() {
        assert_eq!((PREFIX_BYTES, TABLE_ENTRY_BYTES), (32, 24));
        assert_eq!((RAW_CHUNK_BYTES, MAX_CHUNK_BYTES), (2_097_152, 4_194_304));
        assert_eq!(MAGIC, [0x53, 0x45, 0x47, 0x43, 0x48, 0x4e, 0x4b, 0x01]);
        let head = table().encode();
        assert_eq!(
            head[8..24],
            [2, 0, 0, 0, 0, 0, 0, 0, 14, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            head[32..56],
            [
                10, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1
            ]
        );
    }

    #[test]
    fn a_table_reads_back_and_finds_chunks() {
        let table = table();
        assert_eq!(ChunkTable::parse(&table.encode(), 4096).unwrap(), table);
        let longer = [table.encode(), vec![7; 100]].concat();
        assert_eq!(ChunkTable::from_start(&longer, 4096).unwrap(), table);
        let error = ChunkTable::from_start(&longer[..79], 4096)
            .unwrap_err()
            .to_string();
        assert!(error.contains("ends at byte 80, only 79"), "{error}");
        for (raw, starts) in [
            (0..1, &[0][..]),
            (9..11, &[0, 10]),
            (10..14, &[10]),
            (14..20, &[]),
        ] {
            let found = table.overlapping(&raw).iter().map(|c| c.raw.start);
            assert_eq!(found.collect::<Vec<_>>(), starts, "{raw:?}");
        }
        assert!(table.overlapping(&(3..3)).len() <= 1);
    }

    #[test]
    fn every_flipped_bit_of_the_head_is_noticed() {
        let head = table().encode();
        for bit in 0..head.len() * 8 {
            let mut bad = head.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(ChunkTable::parse(&bad, 4096).is_err(), "bit {bit}");
        }
    }

    /// The head of the table with a change, its check made right.
    fn change(f: fn(&mut ChunkTable)) -> Vec<u8> {
        let mut bad = table();
        f(&mut bad);
        bad.encode()
    }

    #[test]
    fn lying_lengths_are_refused_though_their_check_is_right() {
        let cases = [
            (
                change(|t| t.raw_length = 15),
                4096,
                "chunks hold 14 raw bytes, the prefix says 15",
            ),
            (
                change(|t| t.chunks[0].raw = 0..0),
                4096,
                "0 raw and 5 stored",
            ),
            (
                change(|t| t.chunks[0].raw = 0..5_000_000),
                4096,
                "wanted 1 to 4194304",
            ),
            (
                change(|t| t.chunks[1].stored = 85..90),
                4096,
                "stored as it is, but 5 bytes for 4",
            ),
            (table().encode(), 88, "after the segment's 88 bytes"),
            (table().encode(), 79, "table that ends at byte 80"),
            (b"SEGCHNK\x01".to_vec(), 8, "prefix alone takes 32"),
        ];
        for (head, stored, wanted) in cases {
            let seen = ChunkTable::parse(&head, stored).unwrap_err().to_string();
            assert!(seen.contains(wanted), "{seen}");
        }
    }

    #[test]
    fn chunks_never_cross_a_tensors_end() {
        assert_eq!(chunk_lengths(0).count(), 0);
        assert_eq!(
            chunk_lengths(3_145_728).collect::<Vec<_>>(),
            [2_097_152, 1_048_576]
        );
        assert_eq!(
            chunk_lengths(RAW_CHUNK_BYTES).collect::<Vec<_>>(),
            [RAW_CHUNK_BYTES]
        );
    }
}

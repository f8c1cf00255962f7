//! How segments lie in memory: alone, and in groups.

use std::sync::Arc;

use segpack_formats::codec::Codec;
use segpack_formats::io::to_usize;
use segpack_formats::io::{DIRECT_ALIGNMENT, align_outward};
use segpack_manifests::documents::SegmentEntry;

use super::decoding::Decoding;

/// Where the raw bytes of a segment begin in the memory that it is loaded to: direct reads are
/// aligned outward.
pub fn data_offset(segment: &SegmentEntry) -> usize {
    match segment.codec {
        Codec::Raw => to_usize(segment.offset % DIRECT_ALIGNMENT),
        Codec::Zstd | Codec::Bf16Zstd | Codec::Bf16Rans => 0,
    }
}

/// Bytes of memory that a segment is loaded to.
pub fn buffer_len(segment: &SegmentEntry) -> u64 {
    let range = segment.offset..segment.offset.saturating_add(segment.raw_length);
    match segment.codec {
        Codec::Raw => align_outward(&range).end - align_outward(&range).start,
        Codec::Zstd | Codec::Bf16Zstd | Codec::Bf16Rans => {
            segment.raw_length.next_multiple_of(DIRECT_ALIGNMENT)
        }
    }
}

/// A segment, and what its bytes become in memory.
#[derive(Debug, Clone)]
pub struct SegmentLoad<'a> {
    /// What is read.
    pub segment: &'a SegmentEntry,
    /// `None`: its raw bytes are used as they are.
    pub decoding: Option<Arc<Decoding>>,
}

impl<'a> SegmentLoad<'a> {
    /// A segment whose raw bytes are used as they are.
    pub fn plain(segment: &'a SegmentEntry) -> Self {
        Self {
            segment,
            decoding: None,
        }
    }

    /// Where what is computed with begins in the memory that the segment is loaded to.
    pub fn data_offset(&self) -> usize {
        match &self.decoding {
            Some(_) => 0,
            None => data_offset(self.segment),
        }
    }

    /// Bytes that are computed with.
    pub fn data_bytes(&self) -> u64 {
        match &self.decoding {
            Some(decoding) => decoding.length() as u64,
            None => self.segment.raw_length,
        }
    }

    /// Bytes of memory that the segment is loaded to.
    pub fn buffer_len(&self) -> u64 {
        match &self.decoding {
            Some(decoding) => (decoding.length() as u64).next_multiple_of(DIRECT_ALIGNMENT),
            None => buffer_len(self.segment),
        }
    }

    /// Bytes of memory in which the segment is decoded; 0 where it is used as it is.
    pub fn staging_bytes(&self) -> u64 {
        match &self.decoding {
            Some(_) => buffer_len(self.segment),
            None => 0,
        }
    }
}

/// Segments that are loaded together, one behind the other.
#[derive(Debug, Default)]
pub struct SegmentGroup<'a> {
    segments: Vec<SegmentLoad<'a>>,
    buffer_len: usize,
}

impl<'a> SegmentGroup<'a> {
    /// Where the raw bytes of a segment begin in the group's memory. A new one is added.
    pub fn place(&mut self, segment: &'a SegmentEntry) -> usize {
        self.place_as(SegmentLoad::plain(segment))
    }

    /// Where what a segment becomes begins in the group's memory. A new one is added.
    pub fn place_as(&mut self, load: SegmentLoad<'a>) -> usize {
        let mut start = 0;
        for known in &self.segments {
            if known.segment.id == load.segment.id {
                return start + known.data_offset();
            }
            start += to_usize(known.buffer_len());
        }
        let begin = start + load.data_offset();
        self.buffer_len += to_usize(load.buffer_len());
        self.segments.push(load);
        begin
    }

    /// Its segments, in their order in memory.
    pub fn segments(&self) -> &[SegmentLoad<'a>] {
        &self.segments
    }

    /// Bytes of memory that it is loaded to.
    pub fn buffer_len(&self) -> usize {
        self.buffer_len
    }

    /// Raw bytes of its segments.
    pub fn raw_bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.segment.raw_length).sum()
    }
}

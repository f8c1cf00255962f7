//! The safetensors header of a pack: written here because the order of its tensors matters.
//!
//! It is a function of what the manifest says, so `verify` derives it again and compares it byte
//! for byte.

use super::{ALIGNMENT, SegmentSpec, StoredSegment};
use crate::codec::{Codec, PREFIX_BYTES, TABLE_ENTRY_BYTES, chunk_count};
use crate::io::to_usize;
use crate::safetensors::push_entry;

/// `__metadata__` of every pack; transformers wants to see `format`.
const METADATA: &str = r#""__metadata__":{"format":"pt","segpack":"1"}"#;

/// Appends the entries of a segment that is stored as it is, and returns where it ends.
fn push_raw(json: &mut String, segment: &SegmentSpec, begin: u64) -> u64 {
    segment.tensors.iter().fold(begin, |at, tensor| {
        let end = at.saturating_add(tensor.length);
        push_entry(
            json,
            &tensor.name,
            &tensor.dtype.to_string(),
            &tensor.shape,
            at,
            end,
        );
        end
    })
}

/// The JSON text with its length field, padded with spaces so that the data starts at `data_start`.
fn finish(json: &str, data_start: u64) -> Vec<u8> {
    let mut bytes = (data_start - 8).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(to_usize(data_start), b' ');
    bytes
}

fn aligned_start(json_length: usize) -> u64 {
    (json_length as u64 + 8).next_multiple_of(ALIGNMENT)
}

/// The header of a pack whose segments are all raw, from byte 0 to the data section.
pub fn raw_header(segments: &[SegmentSpec]) -> Vec<u8> {
    let mut json = format!("{{{METADATA}");
    segments
        .iter()
        .fold(0, |at, segment| push_raw(&mut json, segment, at));
    json.push('}');
    finish(&json, aligned_start(json.len()))
}

/// First byte of the data section of a pack of these segments.
///
/// Where segments may be coded, their stored lengths are not known before they are written, so the
/// header takes as many bytes as the longest possible one.
pub fn data_start(segments: &[SegmentSpec], codec: Codec) -> u64 {
    if codec == Codec::Raw {
        return raw_header(segments).len() as u64;
    }
    let max = segments.iter().map(max_stored).fold(0, u64::saturating_add);
    let length: usize = segments
        .iter()
        .map(|segment| longest_entry(segment, max))
        .sum();
    aligned_start(METADATA.len() + 2 + length)
}

/// No coded segment is longer: one that does not shrink is stored raw.
fn max_stored(segment: &SegmentSpec) -> u64 {
    let chunks = segment
        .tensors
        .iter()
        .map(|t| chunk_count(t.length))
        .fold(0, u64::saturating_add);
    let table = chunks
        .saturating_mul(TABLE_ENTRY_BYTES)
        .saturating_add(PREFIX_BYTES);
    let length = segment.raw_length().saturating_add(table);
    length
        .checked_next_multiple_of(ALIGNMENT)
        .unwrap_or(u64::MAX)
}

fn longest_entry(segment: &SegmentSpec, max: u64) -> usize {
    let (mut raw, mut coded) = (String::new(), String::new());
    for t in &segment.tensors {
        push_entry(&mut raw, &t.name, &t.dtype.to_string(), &t.shape, max, max);
    }
    push_entry(&mut coded, &segment.id, "U8", &[max], max, max);
    raw.len().max(coded.len())
}

/// The header of a pack whose segments were stored like this.
pub fn coded_header(
    segments: &[SegmentSpec],
    stored: &[StoredSegment],
    data_start: u64,
) -> Vec<u8> {
    let mut json = format!("{{{METADATA}");
    for (segment, stored) in segments.iter().zip(stored) {
        let begin = stored.offset.saturating_sub(data_start);
        if stored.codec == Codec::Raw {
            push_raw(&mut json, segment, begin);
        } else {
            let end = begin.saturating_add(stored.stored_length);
            push_entry(
                &mut json,
                &segment.id,
                "U8",
                &[stored.stored_length],
                begin,
                end,
            );
        }
    }
    json.push('}');
    finish(&json, data_start)
}

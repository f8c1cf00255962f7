//! Coding and decoding of one chunk, with contexts and buffers that are reused.

use std::fmt;

use zstd::bulk::{Compressor, Decompressor};

use super::chunked::{Chunk, Method, short_check};
use crate::{FormatError, Result};

/// Codes chunks at one zstd level.
pub struct ChunkEncoder {
    compressor: Compressor<'static>,
    buffer: Vec<u8>,
}

impl fmt::Debug for ChunkEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkEncoder")
    }
}

impl ChunkEncoder {
    /// A coder for this level.
    ///
    /// # Errors
    /// `Coded` where zstd refuses the level or has no memory.
    pub fn new(level: i32) -> Result<Self> {
        let compressor =
            Compressor::new(level).map_err(|e| FormatError::coded(format!("zstd level {level}: {e}")))?;
        Ok(Self { compressor, buffer: Vec::new() })
    }

    /// The stored bytes of a chunk that follows `raw_start` and `stored_start`; they are `raw` itself where coding does not shrink it.
    ///
    /// # Errors
    /// `Coded` where zstd fails.
    pub fn encode<'a>(
        &'a mut self,
        raw: &'a [u8],
        raw_start: u64,
        stored_start: u64,
    ) -> Result<(Chunk, &'a [u8])> {
        self.buffer.clear();
        self.buffer.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        self.compressor
            .compress_to_buffer(raw, &mut self.buffer)
            .map_err(|e| FormatError::coded(format!("zstd cannot code {} bytes: {e}", raw.len())))?;
        let (method, stored) = if self.buffer.len() < raw.len() {
            (Method::Zstd, &self.buffer[..])
        } else {
            (Method::Stored, raw)
        };
        let chunk = Chunk {
            raw: raw_start..raw_start + raw.len() as u64,
            stored: stored_start..stored_start + stored.len() as u64,
            method,
            check: short_check(&[stored]),
        };
        Ok((chunk, stored))
    }
}

/// Decodes chunks.
pub struct ChunkDecoder {
    decompressor: Decompressor<'static>,
}

impl fmt::Debug for ChunkDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkDecoder")
    }
}

impl ChunkDecoder {
    /// A decoder.
    ///
    /// # Errors
    /// `Coded` where zstd has no memory.
    pub fn new() -> Result<Self> {
        let decompressor = Decompressor::new().map_err(|e| FormatError::coded(format!("zstd: {e}")))?;
        Ok(Self { decompressor })
    }

    /// Decodes one chunk into `raw`, which has exactly its raw length.
    ///
    /// # Errors
    /// `Coded` where the stored bytes do not match the chunk's check, or decode to another length.
    pub fn decode(&mut self, chunk: &Chunk, stored: &[u8], raw: &mut [u8]) -> Result<()> {
        let wrong = |what: String| {
            FormatError::coded(format!(
                "chunk at bytes {}..{} (raw {}..{}): {what}",
                chunk.stored.start, chunk.stored.end, chunk.raw.start, chunk.raw.end
            ))
        };
        if short_check(&[stored]) != chunk.check {
            return Err(wrong("is damaged: its check does not match".to_owned()));
        }
        match chunk.method {
            Method::Stored if stored.len() == raw.len() => raw.copy_from_slice(stored),
            Method::Stored => {
                return Err(wrong(format!("{} stored for {} raw bytes", stored.len(), raw.len())));
            }
            Method::Zstd => {
                let decoded = self
                    .decompressor
                    .decompress_to_buffer(stored, raw)
                    .map_err(|e| wrong(format!("zstd: {e}")))?;
                if decoded != raw.len() {
                    return Err(wrong(format!("decodes to {decoded} bytes, wanted {}", raw.len())));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(raw: &[u8]) -> (Method, usize) {
        let mut encoder = ChunkEncoder::new(3).unwrap();
        let (chunk, stored) = encoder.encode(raw, 5, 7).unwrap();
        let (chunk, stored) = (chunk, stored.to_vec());
        let mut back = vec![0; raw.len()];
        ChunkDecoder::new().unwrap().decode(&chunk, &stored, &mut back).unwrap();
        assert_eq!(back, raw);
        (chunk.method, stored.len())
    }

    #[test]
    fn chunks_come_back_and_never_grow() {
        assert_eq!(round_trip(&[1, 2, 3]), (Method::Stored, 3));
        let (method, length) = round_trip(&[7; 100_000]);
        assert!(method == Method::Zstd && length < 100);
    }

    #[test]
    fn hostile_frames_are_errors() {
        let mut encoder = ChunkEncoder::new(3).unwrap();
        let (chunk, stored) = encoder.encode(&[7; 1000], 0, 0).unwrap();
        let (mut chunk, mut stored) = (chunk, stored.to_vec());
        let mut decoder = ChunkDecoder::new().unwrap();
        let error = |decoder: &mut ChunkDecoder, chunk: &Chunk, stored: &[u8], raw: usize| {
            decoder.decode(chunk, stored, &mut vec![0; raw]).unwrap_err().to_string()
        };
        assert!(error(&mut decoder, &chunk, &stored, 999).contains("zstd"));
        assert!(error(&mut decoder, &chunk, &stored, 1001).contains("decodes to 1000 bytes, wanted 1001"));
        stored[5] ^= 1;
        assert!(error(&mut decoder, &chunk, &stored, 1000).contains("its check does not match"));
        for cut in 0..stored.len() {
            chunk.check = short_check(&[&stored[..cut]]);
            let _ = decoder.decode(&chunk, &stored[..cut], &mut [0; 1000]).unwrap_err();
        }
    }
}

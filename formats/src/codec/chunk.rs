//! Coding and decoding of one chunk, with contexts and buffers that are reused.

use std::fmt;

use crate::numeric::Dtype;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, ParamSwitch};

use super::chunked::{Chunk, Method, short_check};
use super::simd::Simd;
use super::{Coding, planes, rans};
use crate::{FormatError, Result};

/// zstd's own default.
pub const DEFAULT_LEVEL: i32 = 3;
/// zstd's lowest level: it looks for no matches, and nearly all that is left is the entropy coding
/// of literals. The matches of ordinary levels cost more bits in an exponent plane than they save.
const LITERALS_LEVEL: i32 = -131_072;
/// Chunks up to this are coded in every way that there is: there the tables of rANS may cost more
/// than it saves.
const SMALL_BYTES: usize = 128 << 10;

fn compressor(level: i32) -> Result<Compressor<'static>> {
    Compressor::new(level).map_err(|e| FormatError::coded(format!("zstd level {level}: {e}")))
}

/// Appends one zstd frame.
fn compress(compressor: &mut Compressor<'static>, raw: &[u8], to: &mut Vec<u8>) -> Result<()> {
    let start = to.len();
    to.resize(start + zstd::zstd_safe::compress_bound(raw.len()), 0);
    let length = compressor
        .compress_to_buffer(raw, &mut to[start..])
        .map_err(|e| FormatError::coded(format!("zstd cannot code {} bytes: {e}", raw.len())))?;
    to.truncate(start + length);
    Ok(())
}

/// Codes chunks.
pub struct ChunkEncoder {
    coding: Coding,
    plain: Compressor<'static>,
    literals: Compressor<'static>,
    rans: rans::Encoder,
    plane: Vec<u8>,
    trial: Vec<u8>,
    best: Vec<u8>,
}

impl fmt::Debug for ChunkEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkEncoder")
            .field("coding", &self.coding)
            .finish_non_exhaustive()
    }
}

impl ChunkEncoder {
    /// A coder with the fastest instructions there are.
    ///
    /// # Errors
    /// `Coded` where zstd refuses the level or has no memory.
    pub fn new(coding: Coding) -> Result<Self> {
        Self::with_simd(coding, Simd::best())
    }

    /// A coder with these instructions. It gives the same bytes with any.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_simd(coding: Coding, simd: Simd) -> Result<Self> {
        let level = if let Coding::Zstd { level } = coding {
            level
        } else {
            DEFAULT_LEVEL
        };
        let mut literals = compressor(LITERALS_LEVEL)?;
        literals
            .set_parameter(CParameter::LiteralCompressionMode(ParamSwitch::Enable))
            .map_err(|e| FormatError::coded(format!("zstd cannot code literals alone: {e}")))?;
        Ok(Self {
            coding,
            plain: compressor(level)?,
            literals,
            rans: rans::Encoder::new(simd),
            plane: Vec::new(),
            trial: Vec::new(),
            best: Vec::new(),
        })
    }

    /// The stored bytes of a chunk of a tensor of `dtype` that follows `raw_start` and
    /// `stored_start`; they are `raw` itself where coding does not shrink it.
    ///
    /// # Errors
    /// `Coded` where zstd fails.
    pub fn encode<'a>(
        &'a mut self,
        dtype: Dtype,
        raw: &'a [u8],
        raw_start: u64,
        stored_start: u64,
    ) -> Result<(Chunk, &'a [u8])> {
        let method = self.choose(dtype, raw)?;
        let stored = if method == Method::Stored {
            raw
        } else {
            &self.best[..]
        };
        let chunk = Chunk {
            raw: raw_start..raw_start + raw.len() as u64,
            stored: stored_start..stored_start + stored.len() as u64,
            method,
            check: short_check(&[stored]),
        };
        Ok((chunk, stored))
    }

    /// Leaves the shortest form in `best`; among equals the one tried first.
    fn choose(&mut self, dtype: Dtype, raw: &[u8]) -> Result<Method> {
        let mut method = Method::Stored;
        self.best.clear();
        let wants_rans = match self.coding {
            Coding::Raw => return Ok(method),
            Coding::Zstd { .. } => {
                self.try_zstd(raw, &mut method)?;
                return Ok(method);
            }
            Coding::Bf16Zstd => false,
            Coding::Bf16Rans => true,
        };
        if dtype != Dtype::BF16 {
            self.try_planes(raw, dtype.byte_width().unwrap_or(1), true, &mut method)?;
            self.try_zstd(raw, &mut method)?;
            return Ok(method);
        }
        let structured = raw.len() <= SMALL_BYTES || rans::has_structure(raw);
        if wants_rans {
            self.try_rans(raw, &mut method);
        }
        if structured || method == Method::Stored {
            self.try_planes(raw, 2, structured, &mut method)?;
        }
        if structured {
            self.try_zstd(raw, &mut method)?;
        }
        Ok(method)
    }

    /// Keeps what was tried where it is the shortest so far.
    fn keep(&mut self, raw: &[u8], tried: Method, method: &mut Method) {
        let shortest = if *method == Method::Stored {
            raw.len()
        } else {
            self.best.len()
        };
        if self.trial.len() < shortest {
            std::mem::swap(&mut self.best, &mut self.trial);
            *method = tried;
        }
    }

    fn try_zstd(&mut self, raw: &[u8], method: &mut Method) -> Result<()> {
        self.trial.clear();
        compress(&mut self.plain, raw, &mut self.trial)?;
        self.keep(raw, Method::Zstd, method);
        Ok(())
    }

    /// With `every` each plane is coded, otherwise the uppermost one only.
    fn try_planes(
        &mut self,
        raw: &[u8],
        width: usize,
        every: bool,
        method: &mut Method,
    ) -> Result<()> {
        let Self {
            literals,
            plane,
            trial,
            ..
        } = self;
        trial.clear();
        planes::encode(raw, width, plane, trial, |number, plane, out| {
            let tried = every || number + 1 == width;
            if tried {
                compress(literals, plane, out)?;
            }
            Ok::<_, FormatError>(tried)
        })?;
        self.keep(raw, Method::Planes, method);
        Ok(())
    }

    fn try_rans(&mut self, raw: &[u8], method: &mut Method) {
        self.trial.clear();
        if self.rans.encode(raw, &mut self.trial) {
            self.keep(raw, Method::Rans, method);
        }
    }
}

/// Decodes chunks. One thread's: it holds tables and buffers that are reused, at most a few
/// megabytes.
pub struct ChunkDecoder {
    simd: Simd,
    decompressor: Decompressor<'static>,
    scratch: Vec<u8>,
    rans: rans::Decoder,
}

impl fmt::Debug for ChunkDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkDecoder")
            .field("simd", &self.simd)
            .finish_non_exhaustive()
    }
}

impl ChunkDecoder {
    /// A decoder with the fastest instructions there are.
    ///
    /// # Errors
    /// `Coded` where zstd has no memory.
    pub fn new() -> Result<Self> {
        Self::with_simd(Simd::best())
    }

    /// A decoder with these instructions. It gives the same bytes with any.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_simd(simd: Simd) -> Result<Self> {
        let decompressor =
            Decompressor::new().map_err(|e| FormatError::coded(format!("zstd: {e}")))?;
        Ok(Self {
            simd,
            decompressor,
            scratch: Vec::new(),
            rans: rans::Decoder::new(simd),
        })
    }

    /// Decodes one chunk into `raw`, which has exactly its raw length.
    ///
    /// # Errors
    /// `Coded` where the stored bytes do not match the chunk's check, or decode to another length.
    pub fn decode(&mut self, chunk: &Chunk, stored: &[u8], raw: &mut [u8]) -> Result<()> {
        if short_check(&[stored]) != chunk.check {
            return Err(wrong(chunk, "is damaged: its check does not match"));
        }
        self.decode_unchecked(chunk, stored, raw)
    }

    /// As [`decode`](Self::decode), without the check: for bytes that were compared with a digest
    /// before. Bytes that were not are an error or decode to something else; nothing worse happens.
    ///
    /// # Errors
    /// `Coded` where the stored bytes cannot be decoded to exactly as many as `raw` has.
    pub fn decode_unchecked(&mut self, chunk: &Chunk, stored: &[u8], raw: &mut [u8]) -> Result<()> {
        let Self {
            simd,
            decompressor,
            scratch,
            rans,
        } = self;
        let decoded = match chunk.method {
            Method::Stored if stored.len() == raw.len() => {
                raw.copy_from_slice(stored);
                Ok(())
            }
            Method::Stored => Err(format!(
                "{} stored for {} raw bytes",
                stored.len(),
                raw.len()
            )),
            Method::Zstd => expand(decompressor, stored, raw),
            Method::Planes => planes::decode(*simd, stored, raw, scratch, |frame, plane| {
                expand(decompressor, frame, plane)
            }),
            Method::Rans => rans.decode(stored, raw),
        };
        decoded.map_err(|what| wrong(chunk, &what))
    }
}

fn wrong(chunk: &Chunk, what: &str) -> FormatError {
    FormatError::coded(format!(
        "chunk at bytes {}..{} (raw {}..{}): {what}",
        chunk.stored.start, chunk.stored.end, chunk.raw.start, chunk.raw.end
    ))
}

/// Decodes one zstd frame into exactly as many bytes as `to` has.
fn expand(
    decompressor: &mut Decompressor<'static>,
    frame: &[u8],
    to: &mut [u8],
) -> Result<(), String> {
    let decoded = decompressor
        .decompress_to_buffer(frame, to)
        .map_err(|e| format!("zstd: {e}"))?;
    if decoded == to.len() {
        Ok(())
    } else {
        Err(format!("decodes to {decoded} bytes, wanted {}", to.len()))
    }
}

//! Lossless codecs of segments, and the chunked framing that all of them share.

mod chunk;
mod chunked;
mod frame;
mod planes;
mod rans;
mod simd;

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use chunk::{ChunkDecoder, ChunkEncoder, DEFAULT_LEVEL};
pub use chunked::{
    Chunk, ChunkTable, MAX_CHUNK_BYTES, PREFIX_BYTES, RAW_CHUNK_BYTES, TABLE_ENTRY_BYTES,
    chunk_count, chunk_lengths,
};
pub use frame::decompress;
pub use simd::Simd;
pub(crate) use simd::Work;

/// How the bytes of a stored segment are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Codec {
    /// The tensors' own bytes, one after the other.
    #[default]
    Raw,
    /// Chunked framing, each chunk a zstd frame (RFC 8878) or stored.
    Zstd,
    /// Chunked framing for bf16 weights, which decodes with any zstd: byte planes, the exponents'
    /// one a zstd frame of literals alone. Other dtypes take the shorter one of planes and plain
    /// zstd.
    Bf16Zstd,
    /// Chunked framing for bf16 weights, the smallest and fastest: interleaved rANS over exponents
    /// and two mantissa bits. Other dtypes as in [`Bf16Zstd`](Self::Bf16Zstd).
    Bf16Rans,
}

impl Codec {
    /// All codecs that this build reads and writes.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Zstd, Self::Bf16Zstd, Self::Bf16Rans];

    /// The name in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Zstd => "zstd",
            Self::Bf16Zstd => "bf16-zstd",
            Self::Bf16Rans => "bf16-rans",
        }
    }
}

/// A codec that this build does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown codec {seen:?}; this build reads raw, zstd, bf16-zstd and bf16-rans: a newer segpack may read it"
)]
pub struct UnknownCodec {
    seen: String,
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Codec {
    type Err = UnknownCodec;

    fn from_str(text: &str) -> Result<Self, UnknownCodec> {
        Self::ALL
            .into_iter()
            .find(|c| c.name() == text)
            .ok_or_else(|| UnknownCodec {
                seen: text.to_owned(),
            })
    }
}

impl Serialize for Codec {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Codec {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// How to write segments: the codec with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// See [`Codec::Raw`].
    Raw,
    /// See [`Codec::Zstd`].
    Zstd {
        /// zstd's compression level, 1–22 (negative levels are faster still).
        level: i32,
    },
    /// See [`Codec::Bf16Zstd`].
    Bf16Zstd,
    /// See [`Codec::Bf16Rans`].
    Bf16Rans,
}

impl Coding {
    /// The codec without its settings.
    pub fn codec(self) -> Codec {
        match self {
            Self::Raw => Codec::Raw,
            Self::Zstd { .. } => Codec::Zstd,
            Self::Bf16Zstd => Codec::Bf16Zstd,
            Self::Bf16Rans => Codec::Bf16Rans,
        }
    }

    /// A codec's coding; `level` counts for zstd alone, which takes its own default without one.
    pub fn of(codec: Codec, level: Option<i32>) -> Self {
        match codec {
            Codec::Raw => Self::Raw,
            Codec::Zstd => Self::Zstd {
                level: level.unwrap_or(DEFAULT_LEVEL),
            },
            Codec::Bf16Zstd => Self::Bf16Zstd,
            Codec::Bf16Rans => Self::Bf16Rans,
        }
    }

    /// The level, where the codec has levels.
    pub fn level(self) -> Option<i32> {
        if let Self::Zstd { level } = self {
            Some(level)
        } else {
            None
        }
    }
}

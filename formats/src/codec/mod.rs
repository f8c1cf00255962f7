//! Lossless codecs of segments, and the chunked framing that all of them share.

mod chunked;
mod zstd;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use chunked::{
    Chunk, ChunkTable, MAX_CHUNK_BYTES, PREFIX_BYTES, RAW_CHUNK_BYTES, TABLE_ENTRY_BYTES, chunk_count,
    chunk_lengths,
};
pub use zstd::{ChunkDecoder, ChunkEncoder};

/// How the bytes of a stored segment are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Codec {
    /// The tensors' own bytes, one after the other.
    #[default]
    Raw,
    /// Chunked framing, each chunk a zstd frame (RFC 8878) or stored.
    Zstd,
}

impl Codec {
    /// All codecs that this build reads and writes.
    pub const ALL: [Self; 2] = [Self::Raw, Self::Zstd];

    /// The name in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Zstd => "zstd",
        }
    }
}

/// A codec that this build does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown codec {seen:?}; this build reads raw and zstd: a newer segpack may read it")]
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
        Self::ALL.into_iter().find(|c| c.name() == text).ok_or_else(|| UnknownCodec { seen: text.to_owned() })
    }
}

impl Serialize for Codec {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Codec {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
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
}

impl Coding {
    /// The codec without its settings.
    pub fn codec(self) -> Codec {
        match self {
            Self::Raw => Codec::Raw,
            Self::Zstd { .. } => Codec::Zstd,
        }
    }
}

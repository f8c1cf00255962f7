//! The bytes of [segpack](https://github.com/segpack/segpack): safetensors shards, segment packs,
//! chunked lossless codecs, digests, number formats. It knows nothing of models.
//!
//! # Reading
//!
//! [`Shard`](safetensors::Shard) opens a safetensors file and checks its whole header; data is read
//! at positions, from anything that is [`ReadAt`](io::ReadAt): a local file, bytes in memory, or
//! what lies behind an address.
//!
//! ```
//! use std::sync::Arc;
//!
//! use segpack_formats::io::MemoryFile;
//! use segpack_formats::numeric::Dtype;
//! use segpack_formats::safetensors::Shard;
//!
//! let header = br#"{"weight":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}"#;
//! let length = (header.len() as u64).to_le_bytes();
//! let file = [&length[..], header, &[0x80, 0x3f, 0x00, 0xc0]].concat();
//!
//! // `Shard::open(path)` does the same with a file
//! let shard = Shard::open_from(Arc::new(MemoryFile::new("model.safetensors", file)))?;
//! let weight = shard.tensor("weight").expect("the header lists it");
//! assert_eq!((weight.dtype, &weight.shape[..]), (Dtype::BF16, &[1, 2][..]));
//! let bytes = shard.input.read_range(weight.offset..weight.offset + weight.length)?;
//! assert_eq!(bytes, [0x80, 0x3f, 0x00, 0xc0]);
//! # Ok::<(), segpack_formats::FormatError>(())
//! ```
//!
//! # Writing
//!
//! A pack is a safetensors file whose tensors are grouped into *segments*, each a contiguous range
//! of bytes that is loaded at once. [`write_pack`](pack::write_pack) writes one, with any codec;
//! [`SegmentReader`](pack::SegmentReader) gives any range of a segment back.
//!
//! ```
//! use segpack_formats::Result;
//! use segpack_formats::io::{CancelToken, MemoryFile};
//! use segpack_formats::numeric::Dtype;
//! use segpack_formats::pack::{
//!     SegmentReader, SegmentSpec, TensorSource, PackTensor, Unpacker, write_raw_pack,
//! };
//!
//! /// Where the tensors' bytes come from; usually, a checkpoint.
//! struct Zeros;
//!
//! impl TensorSource for Zeros {
//!     fn read(
//!         &mut self,
//!         _segment: usize,
//!         _tensor: usize,
//!         take: &mut dyn FnMut(&[u8]) -> Result<()>,
//!     ) -> Result<()> {
//!         take(&[0; 12])
//!     }
//! }
//!
//! let bias = PackTensor {
//!     name: "bias".to_owned(),
//!     dtype: Dtype::F32,
//!     shape: vec![3],
//!     length: 12,
//! };
//! let segments = [SegmentSpec { id: "text.biases".to_owned(), tensors: vec![bias] }];
//! let mut file = Vec::new();
//! let written = write_raw_pack("text.safetensors".as_ref(), &segments, &mut Zeros, &|_| {}, &mut |piece| {
//!     file.extend_from_slice(piece);
//!     Ok(())
//! })?;
//! assert_eq!(written.segments[0].offset % 4096, 0);
//!
//! let pack = MemoryFile::new("text.safetensors", file);
//! let segment = SegmentReader::open(&pack, written.segments[0])?;
//! let mut last_value = Vec::new();
//! segment.for_each_piece(8..12, &mut Unpacker::new()?, &CancelToken::default(), |piece| {
//!     last_value.extend_from_slice(piece);
//!     Ok::<_, segpack_formats::FormatError>(())
//! })?;
//! assert_eq!(last_value, [0; 4]);
//! # Ok::<(), segpack_formats::FormatError>(())
//! ```
//!
//! # What it looks like
//!
//! [`specification`] has the format to the last byte, with readers in Python. In one picture:
//!
//! ```text
//! pack file   [ header length | JSON header, padded to 4096 | segment | segment | … ]
//! raw segment [ tensor | tensor | … ]                       codec `raw`
//! coded one   [ chunk table | chunk | chunk | … | padding ] codecs `zstd`, `bf16-zstd`, `bf16-rans`
//! ```
//!
//! # Modules
//!
//! | module | for |
//! |---|---|
//! | [`io`] | sources of bytes, direct and sequential I/O, cancelling |
//! | [`digest`] | SHA-256, BLAKE3 |
//! | [`numeric`] | dtypes, and one module for each number format |
//! | [`codec`] | the codecs, and the framing in chunks that they share |
//! | [`pack`] | segments: reader, writer, headers |
//! | [`safetensors`], [`gguf`], [`npy`] | other people's file formats, read strictly and written |
//! | [`strict_json`] | JSON objects without duplicate keys |
//!
//! # Hostile input
//!
//! Every parser treats its input as hostile: a length is compared with the file before memory is
//! allocated for it, sums do not wrap, a file that shrinks while it is read is an error. `unsafe`
//! is used in `codec` and `digest` alone, for vector instructions; plain code beside it gives the
//! same bytes, and tests compare the two.

pub mod codec;
pub mod digest;
mod error;
pub mod gguf;
pub mod io;
pub mod npy;
pub mod numeric;
pub mod pack;
pub mod safetensors;
pub mod strict_json;
pub mod wav;

pub use error::{FormatError, Result};

#[doc = include_str!("../FORMAT.md")]
pub mod specification {}

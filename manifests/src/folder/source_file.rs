//! The checkpoint's other files, as a pack keeps them.

use segpack_formats::digest::Sha256;
use segpack_formats::safetensors::ShardHeader;
use segpack_formats::{FormatError, Result};

use super::Pack;
use crate::documents::{SourceFile, SourceFileKind};

/// Bytes that are read of a vocabulary, a list of merges or a whole tokenizer: the largest that are
/// published have some 30 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Bytes that are read of a chat template, or of a file that holds one beside settings.
const MAX_TEMPLATE_BYTES: u64 = 4 << 20;
/// Bytes that are read of any other file: configurations, the index of the shards, their headers.
const MAX_OTHER_BYTES: u64 = 128 << 20;

/// Bytes that are read of the checkpoint's file of this name, where it is read whole. Files that are
/// copied without being understood have no such limit.
#[must_use]
pub fn max_source_bytes(name: &str) -> u64 {
    match name {
        "tokenizer.json" | "vocab.json" | "merges.txt" => MAX_TOKENIZER_BYTES,
        "chat_template.jinja" | "chat_template.json" | "tokenizer_config.json" => {
            MAX_TEMPLATE_BYTES
        }
        _ => MAX_OTHER_BYTES,
    }
}

/// A file of the checkpoint as the pack keeps it, checked against its digest. `None` where the
/// checkpoint had no such file.
///
/// # Errors
/// `Io` where it cannot be read, `TooLarge` where it has more bytes than
/// [`max_source_bytes`], `Malformed` where it is damaged.
pub fn source_file(pack: &Pack, name: &str) -> Result<Option<Vec<u8>>> {
    let mut files = pack.manifest().source_files.iter();
    let listed = files.find(|f| f.kind == SourceFileKind::File && f.path == name);
    listed.map(|listed| stored_file(pack, listed)).transpose()
}

/// What the pack keeps of this file of the checkpoint, checked against its digest.
///
/// # Errors
/// As [`source_file`].
pub fn stored_file(pack: &Pack, listed: &SourceFile) -> Result<Vec<u8>> {
    let path = pack.path(&listed.stored_as);
    let input = pack.open_file(&listed.stored_as)?;
    let (length, limit) = (input.length(), max_source_bytes(&listed.path));
    if length > limit {
        return Err(FormatError::TooLarge {
            path,
            length,
            limit,
        });
    }
    let bytes = input.read_range(0..length)?;
    let (seen, wanted) = (Sha256::of(&bytes), listed.stored_sha256);
    if seen != wanted {
        let what = format!("is damaged: SHA-256 {seen}, wanted {wanted}");
        return Err(FormatError::malformed(&path, what));
    }
    Ok(bytes)
}

/// The original header of a shard, checked against its digest.
///
/// # Errors
/// As [`source_file`]; `Header` where it is none.
pub fn shard_header(pack: &Pack, listed: &SourceFile) -> Result<ShardHeader> {
    let bytes = stored_file(pack, listed)?;
    let json = bytes.get(8..).unwrap_or_default();
    ShardHeader::parse(json, listed.length).map_err(|source| FormatError::Header {
        path: pack.path(&listed.stored_as),
        source,
    })
}

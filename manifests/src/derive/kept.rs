//! What a pack keeps of its checkpoint: `config.json`, the index and the headers of the shards.

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;
use segpack_formats::safetensors::{MAX_HEADER_BYTES, ShardHeader, ShardIndex};
use segpack_formats::strict_json::UniqueEntries;
use serde_json::Value;

use crate::Pack;
use crate::documents::{Finding, FindingKind, SourceFile, SourceFileKind};
use crate::quantization::{self, ANNOUNCEMENTS};

const CONFIG: &str = "config.json";
const INDEX_ENDING: &str = ".safetensors.index.json";
/// The longest of these files that is read, in bytes: an index of a million tensors.
const MAX_KEPT_BYTES: u64 = MAX_HEADER_BYTES + 8;

/// The files of a checkpoint that say which tensors there are.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// `config.json`.
    pub config: Option<Value>,
    /// What files beside it announce of the quantisation.
    announced: Vec<(String, Value)>,
    /// The index of the shards.
    pub index: Option<ShardIndex>,
    /// The shards, in the order of their names.
    pub shards: Vec<KeptShard>,
}

/// What is kept of a shard.
#[derive(Debug, Clone)]
pub struct KeptShard {
    /// Path relative to the checkpoint.
    pub path: String,
    /// Bytes of the original.
    pub length: u64,
    /// Its header.
    pub header: ShardHeader,
}

/// Why a kept file cannot be used.
#[derive(Debug)]
pub enum KeptError {
    /// It cannot be read.
    Unreadable {
        /// The file, relative to the pack.
        file: String,
        /// Why not.
        source: FormatError,
    },
    /// It is not what it has to be.
    Wrong(Box<Finding>),
}

impl Kept {
    /// Reads them from a pack, each compared with its digest.
    ///
    /// # Errors
    /// Every file that cannot be used.
    pub fn read(pack: &Pack) -> Result<Self, Vec<KeptError>> {
        let mut kept = Self::default();
        let mut errors = Vec::new();
        let given = pack.manifest().options.config.clone();
        for file in Self::files(&pack.manifest().source_files) {
            if let Err(error) = kept.add(pack, file) {
                errors.push(error);
            }
        }
        if given.is_some() {
            kept.config = given;
        }
        // a file that is no JSON announces nothing
        let announced = kept.announced.iter();
        for (file, contents) in announced {
            if let Some(config) = &mut kept.config {
                quantization::announce(config, file, contents);
            }
        }
        kept.shards.sort_by(|a, b| a.path.cmp(&b.path));
        if errors.is_empty() {
            Ok(kept)
        } else {
            Err(errors)
        }
    }

    /// Which files of a pack these are.
    pub fn files(all: &[SourceFile]) -> impl Iterator<Item = &SourceFile> {
        all.iter().filter(|f| is_read(f))
    }

    fn add(&mut self, pack: &Pack, file: &SourceFile) -> Result<(), KeptError> {
        let bytes = read(pack, file)?;
        if file.kind == SourceFileKind::Shard {
            self.shards.push(parse_shard(file, &bytes)?);
        } else if file.path == CONFIG {
            let entries: UniqueEntries<Value> = serde_json::from_slice(&bytes)
                .map_err(|e| wrong(file, FindingKind::BadConfig, &e))?;
            self.config = Some(Value::Object(entries.0.into_iter().collect()));
        } else if ANNOUNCEMENTS.contains(&file.path.as_str()) {
            let contents = serde_json::from_slice(&bytes).ok();
            self.announced
                .extend(contents.map(|c| (file.path.clone(), c)));
        } else {
            let several = "is one of several indexes; wanted one";
            if self.index.is_some() {
                return Err(wrong(file, FindingKind::MalformedIndex, &several));
            }
            let index = ShardIndex::parse(&bytes)
                .map_err(|e| wrong(file, FindingKind::MalformedIndex, &e))?;
            self.index = Some(index);
        }
        Ok(())
    }
}

/// Whether a file says which tensors there are.
fn is_read(file: &SourceFile) -> bool {
    let path = file.path.as_str();
    let of_model = path == CONFIG || ANNOUNCEMENTS.contains(&path);
    file.kind == SourceFileKind::Shard || of_model || is_index(path)
}

fn is_index(path: &str) -> bool {
    path.ends_with(INDEX_ENDING) && !path.contains('/')
}

fn wrong(file: &SourceFile, kind: FindingKind, seen: &dyn std::fmt::Display) -> KeptError {
    let finding = Finding::new(kind).file(&file.stored_as).seen(seen);
    KeptError::Wrong(Box::new(finding))
}

/// The bytes of a kept file, which are those of its digest.
fn read(pack: &Pack, file: &SourceFile) -> Result<Vec<u8>, KeptError> {
    let unreadable = |source| KeptError::Unreadable {
        file: file.stored_as.clone(),
        source,
    };
    let input = pack.open_file(&file.stored_as).map_err(unreadable)?;
    if input.length() > MAX_KEPT_BYTES {
        let seen = format!(
            "has {} bytes, over the limit of {MAX_KEPT_BYTES}",
            input.length()
        );
        return Err(wrong(file, FindingKind::WrongLength, &seen));
    }
    let bytes = input.read_range(0..input.length()).map_err(unreadable)?;
    let seen = Sha256::of(&bytes);
    if seen == file.stored_sha256 {
        return Ok(bytes);
    }
    let finding = Finding::new(FindingKind::DamagedFile).file(&file.stored_as);
    let finding = finding.seen(format!("SHA-256 {seen}"));
    Err(KeptError::Wrong(Box::new(
        finding.wanted(file.stored_sha256),
    )))
}

fn parse_shard(file: &SourceFile, bytes: &[u8]) -> Result<KeptShard, KeptError> {
    let malformed = |e: &dyn std::fmt::Display| wrong(file, FindingKind::MalformedShard, e);
    let length = ShardHeader::parse_length(bytes, file.length).map_err(|e| malformed(&e))?;
    let kept = (bytes.len() as u64).saturating_sub(8);
    if length != kept {
        return Err(malformed(&format!(
            "its length field says {length} bytes of header, {kept} follow it"
        )));
    }
    let json = bytes.get(8..).unwrap_or_default();
    let header = ShardHeader::parse(json, file.length).map_err(|e| malformed(&e))?;
    Ok(KeptShard {
        path: file.path.clone(),
        length: file.length,
        header,
    })
}

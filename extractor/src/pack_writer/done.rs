//! What of a pack folder is written already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use segpack_formats::codec::Coding;
use segpack_formats::digest::Sha256;
use segpack_formats::pack::WrittenPack;
use segpack_manifests::documents::Finding;

use super::PackWriterError;
use crate::output::{Journal, KeptRanges, OutputError, Record, ShardDigests, WRITE_BEHIND_MEMORY};
use crate::work::lock;

/// What is finished.
#[derive(Debug, Default)]
pub(crate) struct Done {
    packs: BTreeMap<String, (WrittenPack, Vec<Finding>)>,
    shards: BTreeMap<String, ShardDigests>,
    /// Shards that were removed, or are about to be.
    removed: BTreeSet<String>,
    /// What was kept of shards of a server that were passed.
    kept: BTreeMap<String, KeptRanges>,
    /// By their path in the pack folder.
    files: BTreeMap<String, Sha256>,
}

impl Done {
    pub(crate) fn add(&mut self, record: Record) {
        match record {
            Record::Begun => {}
            Record::Pack {
                path,
                written,
                warnings,
            } => {
                self.packs.insert(path, (written, warnings));
            }
            Record::Shard { path, digests } => {
                self.shards.insert(path, digests);
            }
            Record::Removed { path, .. } => {
                self.removed.insert(path);
            }
            Record::Passed { path, kept } => match kept {
                Some(kept) => drop(self.kept.insert(path, kept)),
                None => drop(self.kept.remove(&path)),
            },
        }
    }

    pub(crate) fn packs(&self) -> usize {
        self.packs.len()
    }

    pub(crate) fn has_pack(&self, path: &str) -> bool {
        self.packs.contains_key(path)
    }

    /// The digests of a shard, where it was read as a whole.
    pub(crate) fn shard(&self, path: &str) -> Option<&ShardDigests> {
        self.shards.get(path)
    }

    /// How many shards were removed.
    pub(crate) fn removed(&self) -> u64 {
        self.removed.len() as u64
    }

    /// Whether a shard was removed.
    pub(crate) fn is_removed(&self, path: &str) -> bool {
        self.removed.contains(path)
    }

    /// Every shard that was read as a whole.
    pub(crate) fn shards(&self) -> impl Iterator<Item = (&str, &ShardDigests)> {
        self.shards.iter().map(|(path, digests)| (&**path, digests))
    }

    /// Every pack that was written.
    pub(crate) fn written_packs(&self) -> impl Iterator<Item = (&str, &WrittenPack)> {
        let packs = self.packs.iter();
        packs.map(|(path, (written, _))| (&**path, written))
    }

    /// What was written of a pack.
    ///
    /// # Errors
    /// `NotWritten` where it was not.
    pub(crate) fn written(&self, path: &str) -> Result<&WrittenPack, PackWriterError> {
        let found = self.packs.get(path).map(|(written, _)| written);
        found.ok_or_else(|| not_written(path))
    }

    /// A file with this path in the pack folder, and this digest, is written.
    pub(crate) fn add_file(&mut self, stored_as: String, sha256: Sha256) {
        self.files.insert(stored_as, sha256);
    }

    /// The digest of a file that was written.
    ///
    /// # Errors
    /// `NotWritten` where it was not.
    pub(crate) fn file(&self, stored_as: &str) -> Result<Sha256, PackWriterError> {
        let found = self.files.get(stored_as).copied();
        found.ok_or_else(|| not_written(stored_as))
    }

    pub(crate) fn warnings(&self) -> Vec<Finding> {
        let mut all: Vec<Finding> = self
            .packs
            .values()
            .flat_map(|(_, warnings)| warnings)
            .cloned()
            .collect();
        Finding::sort(&mut all);
        all
    }
}

/// Keeps what the threads of a run finish: in the journal, then in memory.
pub(crate) struct Recorder<'a> {
    journal: &'a Journal,
    done: Mutex<&'a mut Done>,
}

impl<'a> Recorder<'a> {
    /// Adds to what is done.
    pub(crate) fn new(journal: &'a Journal, done: &'a mut Done) -> Self {
        Self {
            journal,
            done: Mutex::new(done),
        }
    }

    /// A pack or a shard is finished.
    ///
    /// # Errors
    /// `Io` on the journal.
    pub(crate) fn add(&self, record: Record) -> Result<(), OutputError> {
        self.journal.add(&record)?;
        lock(&self.done).add(record);
        Ok(())
    }

    /// The digest of a file that was written.
    ///
    /// # Errors
    /// `NotWritten` where it was not.
    pub(crate) fn file(&self, stored_as: &str) -> Result<Sha256, PackWriterError> {
        lock(&self.done).file(stored_as)
    }

    /// The digests of a shard that was read as a whole.
    ///
    /// # Errors
    /// `NotWritten` where it was not.
    pub(crate) fn shard(&self, path: &str) -> Result<ShardDigests, PackWriterError> {
        let found = lock(&self.done).shard(path).cloned();
        found.ok_or_else(|| not_written(path))
    }

    /// What was kept of a shard of a server, the last time that it was passed.
    pub(crate) fn kept(&self, path: &str) -> Option<KeptRanges> {
        lock(&self.done).kept.get(path).cloned()
    }

    /// Whether a pack is written.
    pub(crate) fn has_pack(&self, path: &str) -> bool {
        lock(&self.done).has_pack(path)
    }

    /// What was written of a pack.
    ///
    /// # Errors
    /// `NotWritten` where it was not.
    pub(crate) fn written(&self, path: &str) -> Result<WrittenPack, PackWriterError> {
        lock(&self.done).written(path).cloned()
    }

    /// A file with this path in the pack folder, and this digest, is written.
    pub(crate) fn add_file(&self, stored_as: String, sha256: Sha256) {
        lock(&self.done).add_file(stored_as, sha256);
    }
}

fn not_written(path: &str) -> PackWriterError {
    PackWriterError::NotWritten {
        path: path.to_owned(),
    }
}

/// What one thread takes to write a pack, in bytes: measured, with the buffers of a chunk, rounded
/// up.
pub(crate) fn memory_of(coding: Coding) -> u64 {
    let mib = match coding {
        Coding::Raw => return WRITE_BEHIND_MEMORY,
        Coding::Zstd { level: ..=6 } => 9,
        Coding::Bf16Zstd | Coding::Bf16Rans => 16,
        Coding::Zstd { level: 7..=9 } => 18,
        Coding::Zstd { level: 10..=12 } => 28,
        Coding::Zstd { level: 13.. } => 40,
    };
    mib << 20
}

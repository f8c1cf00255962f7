//! What of a pack folder is written already.

use std::collections::BTreeMap;
use std::sync::Mutex;

use segpack_formats::codec::Coding;
use segpack_formats::digest::Sha256;
use segpack_formats::pack::WrittenPack;
use segpack_manifests::documents::Finding;

use crate::output::{BEHIND_MEMORY, Record};
use crate::steps::StepError;

/// What is finished.
#[derive(Debug, Default)]
pub struct Done {
    pub packs: BTreeMap<String, (WrittenPack, Vec<Finding>)>,
    shards: BTreeMap<String, Sha256>,
    /// By their place in the pack folder.
    pub files: BTreeMap<String, Sha256>,
}

impl Done {
    pub fn add(&mut self, record: Record) {
        match record {
            Record::Begun { .. } => {}
            Record::Pack {
                path,
                written,
                warnings,
            } => {
                self.packs.insert(path, (written, warnings));
            }
            Record::Shard { path, sha256 } => {
                self.shards.insert(path, sha256);
            }
        }
    }

    pub fn packs(&self) -> usize {
        self.packs.len()
    }

    pub fn has_pack(&self, path: &str) -> bool {
        self.packs.contains_key(path)
    }

    pub fn shard(&self, path: &str) -> Option<Sha256> {
        self.shards.get(path).copied()
    }

    pub fn warnings(&self) -> Vec<Finding> {
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

/// What one thread takes to write a pack, in bytes: measured, with the buffers of a chunk, rounded
/// up.
pub fn memory_of(coding: Coding) -> u64 {
    let mib = match coding {
        Coding::Raw => return BEHIND_MEMORY,
        Coding::Zstd { level: ..=6 } => 9,
        Coding::Bf16Zstd | Coding::Bf16Rans => 16,
        Coding::Zstd { level: 7..=9 } => 18,
        Coding::Zstd { level: 10..=12 } => 28,
        Coding::Zstd { level: 13.. } => 40,
    };
    mib << 20
}

pub fn lock<'a, T>(mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub fn unfinished(path: &str) -> StepError {
    StepError::Refused(format!("{path} was not finished; continue with --resume"))
}

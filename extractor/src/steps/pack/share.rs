//! The share of one of many machines that pack one checkpoint: which packs it writes, and which
//! shards it has to have read as a whole.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use segpack_formats::digest::Sha256;
use segpack_manifests::Pack;
use segpack_manifests::documents::{PartShare, ShardShare};
use segpack_manifests::folder::{MANIFEST, PART};
use segpack_manifests::shares::{share_packs, share_shards};

use super::{PackSettings, Planned};
use crate::pack_writer::PackWriterError;
use crate::steps::StepError;

/// What this run writes of the plan: all of it, or a part.
pub(super) struct Share {
    /// Who does what, where this is a part.
    part: Option<PartShare>,
    /// Packs of other parts.
    others: HashSet<String>,
    /// Numbers of the shards with bytes of packs of this run.
    needed: HashSet<usize>,
    /// Shards that other parts digest.
    not_digested: HashSet<String>,
}

impl Share {
    /// Everything, or the part that the settings name.
    pub(super) fn of(planned: &Planned, settings: &PackSettings) -> Self {
        let part = settings.part.map(|subset| {
            let packs = share_packs(&planned.plan, subset.of);
            let digesting = match settings.source_digests {
                true => share_shards(&planned.plan, &packs),
                false => Default::default(),
            };
            let shards = planned.checkpoint.shards.iter().map(|shard| ShardShare {
                path: shard.path.clone(),
                part: digesting.get(shard.path.as_str()).copied(),
                published_sha256: shard.hub_sha256,
                tensors: Vec::new(),
            });
            PartShare {
                part: subset.part,
                of: subset.of,
                shards: shards.collect(),
                packs,
            }
        });
        let mut share = Self {
            others: HashSet::new(),
            needed: HashSet::new(),
            not_digested: HashSet::new(),
            part,
        };
        if let Some(part) = &share.part {
            let others = part.packs.iter().filter(|p| p.part != part.part);
            share.others = others.map(|p| p.path.clone()).collect();
            let others = part.shards.iter().filter(|s| s.part != Some(part.part));
            share.not_digested = others.map(|s| s.path.clone()).collect();
        }
        share.needed = share.needed_of(planned);
        share
    }

    fn needed_of(&self, planned: &Planned) -> HashSet<usize> {
        let numbers = super::shard_numbers(&planned.checkpoint);
        let packs = planned.plan.packs.iter().filter(|p| self.takes(&p.path));
        let tensors = packs.flat_map(|p| &p.segments).flat_map(|s| &s.tensors);
        tensors
            .filter_map(|t| numbers.get(t.source.file.as_str()).copied())
            .collect()
    }

    /// Whether this run writes a pack.
    pub(super) fn takes(&self, pack: &str) -> bool {
        !self.others.contains(pack)
    }

    /// Whether a pack of this run has bytes of the shard with this number.
    #[cfg(feature = "remote")]
    pub(super) fn needs(&self, shard: usize) -> bool {
        self.needed.contains(&shard)
    }

    /// Whether the digest of a shard is this run's to record.
    pub(super) fn digests(&self, shard: &str) -> bool {
        !self.not_digested.contains(shard)
    }

    /// Part K of N, where it is one.
    pub(super) fn numbers(&self) -> Option<[u64; 2]> {
        self.part.as_ref().map(|share| [share.part, share.of])
    }

    /// What the document of the part says, with the digests of tensors that `digests` has of the
    /// shards that it read.
    pub(super) fn document(&self, digests: &HashMap<&str, &[Sha256]>) -> Option<PartShare> {
        let mut share = self.part.clone()?;
        for shard in &mut share.shards {
            if shard.part == Some(share.part)
                && let Some(tensors) = digests.get(shard.path.as_str())
            {
                shard.tensors = tensors.to_vec();
            }
        }
        Some(share)
    }

    /// Opens what an earlier run finished in `out`: a pack, or the same part.
    ///
    /// # Errors
    /// `OtherOptions` where it is another part; as [`Pack::open`].
    pub(super) fn open_finished(&self, out: &Path) -> Result<Pack, StepError> {
        let Some(wanted) = &self.part else {
            return Ok(Pack::open(out)?);
        };
        let (pack, mut seen) = Pack::open_part(out)?;
        // what was found by reading the shards is not compared with what is not read yet
        seen.shards.iter_mut().for_each(|s| s.tensors = Vec::new());
        if seen == *wanted {
            return Ok(pack);
        }
        let folder = out.to_owned();
        Err(PackWriterError::OtherOptions { folder }.into())
    }

    /// The file whose presence means that this run is finished.
    pub(super) fn document_name(&self) -> &'static str {
        match self.part {
            Some(_) => PART,
            None => MANIFEST,
        }
    }
}

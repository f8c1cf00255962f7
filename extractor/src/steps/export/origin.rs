//! What every file of weights says of where it comes from.

use segpack_manifests::Pack;

use super::expert_parallel::Share;

/// SHA-256 of the manifest of the pack that a file was exported from, in lower-case hex. A trace that
/// is recorded from the export keeps it, and so `validate` knows whose trace that is.
pub(super) const MANIFEST_SHA256: &str = "segpack.manifest_sha256";
/// Whose share of the experts a file holds, from 0, and of how many.
pub(super) const EXPERT_PARALLEL_RANK: &str = "segpack.expert_parallel_rank";
pub(super) const EXPERT_PARALLEL_RANKS: &str = "segpack.expert_parallel_ranks";

/// Keys and values of a file's metadata.
pub(super) struct Origin(Vec<(&'static str, String)>);

impl Origin {
    /// Of files that hold whole tensors of a pack.
    pub(super) fn of(pack: &Pack) -> Self {
        let sha256 = pack.manifest_sha256().to_string();
        Self(vec![(MANIFEST_SHA256, sha256)])
    }

    /// Of files that hold a rank's share, where it is one.
    pub(super) fn of_share(pack: &Pack, share: &Share) -> Self {
        let mut origin = Self::of(pack);
        if let Some((rank, ranks)) = share.rank() {
            origin.0.push((EXPERT_PARALLEL_RANK, rank.to_string()));
            origin.0.push((EXPERT_PARALLEL_RANKS, ranks.to_string()));
        }
        origin
    }

    /// The pairs, as a safetensors header takes them.
    pub(super) fn pairs(&self) -> Vec<(&str, &str)> {
        let pairs = self.0.iter();
        pairs.map(|(key, value)| (*key, value.as_str())).collect()
    }
}

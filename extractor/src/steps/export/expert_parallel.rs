//! The share of the experts that one rank of several holds.

use std::collections::BTreeMap;

use segpack_manifests::documents::{
    ComponentExperts, ExpertParallelMap, GENERATOR, Placement, RankExperts, TensorEntry,
};
use segpack_manifests::names::Component;

use super::{ExpertParallel, ExportError, ExportSettings};

/// Which rank holds which expert.
pub(super) const EXPERT_PARALLEL: &str = "expert_parallel.json";

/// Which experts go along.
pub(super) struct Share {
    parallel: Option<ExpertParallel>,
    /// Experts of each component that has any.
    experts: BTreeMap<Component, u32>,
}

/// Experts `start..end` of one rank: contiguous, the first `experts % ranks` ranks have one more.
/// vLLM's "linear" placement:
/// <https://docs.vllm.ai/en/latest/api/vllm/model_executor/layers/fused_moe/expert_map_manager/>.
fn linear_share(experts: u32, rank: u32, ranks: u32) -> std::ops::Range<u32> {
    let (base, more) = (experts / ranks, experts % ranks);
    let start = rank * base + rank.min(more);
    start..start + base + u32::from(rank < more)
}

impl ExpertParallel {
    /// The rank that holds an expert of `count`; none where there is no such expert.
    pub(super) fn holder_of(self, expert: u32, count: u32) -> Option<u32> {
        (0..self.ranks).find(|rank| linear_share(count, *rank, self.ranks).contains(&expert))
    }
}

impl Share {
    pub(super) fn of(
        tensors: &[&TensorEntry],
        settings: &ExportSettings,
    ) -> Result<Self, ExportError> {
        let mut experts: BTreeMap<Component, u32> = BTreeMap::new();
        for tensor in tensors {
            if let Some(expert) = tensor.expert {
                let count = experts.entry(tensor.component).or_default();
                *count = (*count).max(expert + 1);
            }
        }
        let parallel = settings.expert_parallel;
        if let Some(ExpertParallel { ranks, .. }) = parallel {
            if experts.is_empty() {
                return Err(ExportError::NoExperts);
            }
            if let Some((component, count)) = experts.iter().find(|(_, count)| **count < ranks) {
                return Err(ExportError::TooFewExperts {
                    component: component.to_string(),
                    count: *count,
                    ranks,
                });
            }
        }
        Ok(Self { parallel, experts })
    }

    pub(super) fn of_tensors<'a>(&self, mut tensors: Vec<&'a TensorEntry>) -> Vec<&'a TensorEntry> {
        tensors.retain(|t| self.holds(t.component, t.expert));
        tensors
    }

    /// Whether this rank holds an expert; all hold what is no expert's.
    pub(super) fn holds(&self, component: Component, expert: Option<u32>) -> bool {
        match (self.parallel, expert, self.experts.get(&component)) {
            (Some(ExpertParallel { rank, ranks }), Some(expert), Some(count)) => {
                linear_share(*count, rank, ranks).contains(&expert)
            }
            _ => true,
        }
    }

    /// Whose share it is, and of how many; `None` where all experts are there.
    pub(super) fn rank(&self) -> Option<(u32, u32)> {
        self.parallel
            .map(|parallel| (parallel.rank, parallel.ranks))
    }

    pub(super) fn map(&self) -> Option<ExpertParallelMap> {
        let ExpertParallel { rank, ranks } = self.parallel?;
        let components = self
            .experts
            .iter()
            .map(|(component, count)| ComponentExperts {
                component: *component,
                experts: *count,
                ranks: (0..ranks)
                    .map(|rank| experts_of(*count, rank, ranks))
                    .collect(),
            });
        Some(ExpertParallelMap {
            format_version: ExpertParallelMap::VERSION,
            generator: GENERATOR.to_owned(),
            placement: Placement::Linear,
            rank,
            ranks,
            components: components.collect(),
        })
    }
}

/// The experts that a rank holds.
pub(super) fn experts_of(count: u32, rank: u32, ranks: u32) -> RankExperts {
    RankExperts {
        rank,
        experts: linear_share(count, rank, ranks).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(experts: u32, ranks: u32) -> Vec<usize> {
        let shares = (0..ranks).map(|rank| linear_share(experts, rank, ranks));
        shares.map(|share| share.len()).collect()
    }

    #[test]
    fn ranks_share_all_experts_and_the_first_have_one_more() {
        assert_eq!(lengths(128, 8), [16; 8]);
        assert_eq!(lengths(10, 4), [3, 3, 2, 2]);
        for (experts, ranks) in [(1, 1), (12, 5), (128, 3), (7, 7), (60, 8)] {
            let all: Vec<u32> = (0..ranks)
                .flat_map(|rank| linear_share(experts, rank, ranks))
                .collect();
            assert_eq!(
                all,
                (0..experts).collect::<Vec<_>>(),
                "{experts} over {ranks}"
            );
        }
    }
}

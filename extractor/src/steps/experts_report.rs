//! Which experts a run used.

use segpack_manifests::documents::{ExpertsReport, GENERATOR, RunSummary};

/// The report of a run.
pub(crate) fn report(summary: &RunSummary) -> ExpertsReport {
    ExpertsReport {
        format_version: ExpertsReport::VERSION,
        generator: GENERATOR.to_owned(),
        // the prompt's, and one for each token but the last
        passes: (summary.ids.len() as u64).max(1),
        experts: summary
            .experts
            .iter()
            .map(|l| l.uses.len())
            .max()
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(0),
        layers: summary.experts.clone(),
        restricted_experts: summary.restricted_experts.clone(),
    }
}

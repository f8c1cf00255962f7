//! What a run made, how long it took and what it cost.

use std::fs;

use segpack_manifests::documents::{
    GENERATOR, LayerExperts, RunCosts, RunDrafts, RunEnd, RunSummary, ShownRank,
};
use segpack_runtime_min::generate::{DraftCounts, StopReason};
use segpack_runtime_min::models::decoder::{LayerUses, RunStats};
use segpack_runtime_min::session::{Generation, RankedContinuation, Session};
use segpack_runtime_min::weights::Residency;

use super::stream::shown;

/// The document of a generation: `prompt` are the ids that it continues.
pub fn summarize(session: &Session<'_>, prompt: Vec<u32>, generation: Generation) -> RunSummary {
    let stats = &generation.stats;
    RunSummary {
        format_version: RunSummary::VERSION,
        generator: GENERATOR.to_owned(),
        device: session.device_name(),
        prompt_tokens: prompt.len() as u64,
        prompt_ids: prompt,
        text: generation.text,
        stop_reason: run_end(generation.stop_reason),
        stop_string: generation.stop_string,
        notes: generation.notes.iter().map(ToString::to_string).collect(),
        time_to_first_token: generation.time_to_first_token.as_secs_f64(),
        generation_seconds: generation.time_after_first.as_secs_f64(),
        bytes_read: stats.bytes_read,
        expert_hits: stats.cache.hits,
        expert_misses: stats.cache.misses,
        expert_slots: generation.budget.slots,
        dense_resident: generation.budget.residency == Residency::Resident,
        peak_rss: peak_rss(),
        rank: generation.rank.as_ref().map(shown_rank),
        drafts: drafts(generation.drafts),
        costs: costs(
            stats,
            generation.bytes_read_before_first,
            generation.ids.len(),
        ),
        experts: layer_experts(stats, text_experts(session)),
        restricted_experts: generation.restricted_experts,
        ids: generation.ids,
    }
}

/// Experts of a layer of the text model; a pack that ran has this number.
pub(super) fn text_experts(session: &Session<'_>) -> u32 {
    let facts = session.pack().manifest().model.text.facts();
    facts.map_or(0, |facts| facts.experts)
}

pub(super) fn run_end(reason: StopReason) -> RunEnd {
    match reason {
        StopReason::StopId(_) => RunEnd::StopId,
        StopReason::StopString => RunEnd::StopString,
        StopReason::ContextFull => RunEnd::ContextFull,
        // a caller that breaks off is an error before
        StopReason::MaxNewTokens | StopReason::Caller => RunEnd::MaxNewTokens,
    }
}

/// `None` where there were none.
fn drafts(counts: DraftCounts) -> Option<RunDrafts> {
    let DraftCounts {
        passes,
        drafted,
        accepted,
    } = counts;
    (passes > 0).then_some(RunDrafts {
        passes,
        drafted,
        accepted,
    })
}

fn shown_rank(ranked: &RankedContinuation) -> ShownRank {
    ShownRank {
        text: ranked.continuation.text.clone(),
        first: shown(&ranked.first),
        tokens: ranked.continuation.tokens as u64,
        rank: ranked.rank as u64,
    }
}

/// What a run of so many tokens cost; `before` is what was read until the first of them.
pub(super) fn costs(stats: &RunStats, before: u64, tokens: usize) -> RunCosts {
    let load = stats.load;
    let tokens_after = tokens.saturating_sub(1).max(1);
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let per_token = stats.bytes_read.saturating_sub(before) as f64 / tokens_after as f64;
    RunCosts {
        bytes_direct: load.direct,
        bytes_cached: load.cached,
        bytes_decoded: load.decoded,
        bytes_copied: stats.bytes_copied,
        bytes_read_per_token: per_token,
        forward: stats.forward.as_secs_f64(),
        waiting: stats.waited.as_secs_f64(),
        reading: load.read_time.as_secs_f64(),
        checking: load.check_time.as_secs_f64(),
        decoding: load.decode_time.as_secs_f64(),
    }
}

/// The layers whose experts were used.
pub(super) fn layer_experts(stats: &RunStats, experts: u32) -> Vec<LayerExperts> {
    let layers = (0..)
        .zip(&stats.layers)
        .filter(|(_, uses)| uses.hits + uses.misses > 0);
    layers
        .map(|(layer, uses)| one_layer(stats, experts, layer, *uses))
        .collect()
}

fn one_layer(stats: &RunStats, experts: u32, layer: u32, layer_uses: LayerUses) -> LayerExperts {
    let counts = &stats.expert_uses;
    let uses_of = |expert| counts.get(&(layer, expert)).copied().unwrap_or(0);
    LayerExperts {
        layer,
        hits: layer_uses.hits,
        misses: layer_uses.misses,
        uses: (0..experts).map(uses_of).collect(),
    }
}

/// Peak resident memory of this process in bytes: `VmHWM`, which is `ru_maxrss`. `None` where the
/// system does not report it this way.
pub(super) fn peak_rss() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

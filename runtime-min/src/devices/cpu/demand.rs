//! How much memory a decoder needs on the CPU.

use super::head::BLOCK_BYTES;
use crate::models::decoder::DecoderSpec;
use crate::models::decoder::executor::DecoderSetup;
use crate::weights::{Demand, NetworkDemand, SegmentGroup, program_bytes, streamed_bytes};

/// Bytes that a decoder and its settings need.
pub(super) fn demand(setup: &DecoderSetup<'_, '_>) -> Demand {
    let (overhead, manifest) = program_bytes(setup.source, setup.weights.is_any_coded());
    Demand {
        overhead: overhead.saturating_add(setup.weights.staging_bytes()),
        manifest,
        network: network_demand(setup),
    }
}

fn network_demand(setup: &DecoderSetup<'_, '_>) -> NetworkDemand {
    let (weights, spec) = (setup.weights, setup.spec);
    let tokens = setup.settings.longest_pass.max(1) as u64;
    let positions = setup.settings.positions as u64;
    NetworkDemand {
        state: product([
            weights.layers.len() as u64,
            positions,
            2 * 4, // keys and values in f32
            spec.key_width() as u64,
        ]),
        tokens,
        activations: product([tokens, values_per_token(spec), 4])
            .saturating_add(spec.vocab as u64 * 8),
        per_token: values_per_batch_token(spec) * 4,
        dense: weights.groups.iter().map(|g| g.buffer_len() as u64).sum(),
        dense_streamed: dense_streamed(setup, &weights.groups),
        expert: weights.slot_bytes(),
        experts: weights.experts().count() as u64,
        experts_per_token: spec.experts_per_token as u64,
    }
}

/// More than can be counted is too much for every budget.
fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

/// Values of each token of a forward pass: residual, normed, added; router logits, probabilities
/// and a copy; gate, up, out and router of the shared expert.
fn values_per_token(spec: &DecoderSpec) -> u64 {
    let shared = spec.shared_intermediate();
    let shared = shared.map_or(0, |inner| 2 * inner + spec.hidden + 1);
    (3 * spec.hidden + 3 * spec.experts + shared) as u64
}

/// Values of each token of a batch: q, attended, k, v; x, gate, up, y of the MLP.
fn values_per_batch_token(spec: &DecoderSpec) -> u64 {
    let inner = spec.intermediate.max(spec.moe_intermediate);
    let attention = 2 * spec.query_width() + 2 * spec.key_width();
    (attention + 2 * spec.hidden + 2 * inner) as u64
}

/// The largest group, and a block of the head.
fn dense_streamed(setup: &DecoderSetup<'_, '_>, groups: &[SegmentGroup<'_>]) -> u64 {
    let head = setup.weights.head().entry.length;
    let row = head / (setup.spec.vocab as u64).max(1);
    streamed_bytes(groups) as u64 + BLOCK_BYTES.min(head).max(row)
}

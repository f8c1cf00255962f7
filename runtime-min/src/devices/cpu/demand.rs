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
    let logit_rows = setup.settings.logit_rows.max(1) as u64;
    NetworkDemand {
        state: positions.saturating_mul(spec.position_bytes()),
        tokens,
        activations: tokens
            .saturating_mul(spec.token_bytes())
            .saturating_add(logit_rows.saturating_mul(spec.logit_bytes())),
        per_token: values_per_batch_token(spec) * 4,
        dense: weights.groups.iter().map(|g| g.buffer_len() as u64).sum(),
        dense_streamed: dense_streamed(setup, &weights.groups),
        expert: weights.slot_bytes(),
        experts: weights.experts().count() as u64,
        experts_per_token: spec.experts_per_token as u64,
    }
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

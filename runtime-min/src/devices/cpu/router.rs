//! Which experts each token goes to.

use crate::models::decoder::{DecoderSpec, Routing};
use crate::ops::Ops;

/// Softmax of the router's logits, `[tokens, experts]`, over all experts in f32, then the top k;
/// their weights are rounded after they are normalised.
pub(super) fn route(ops: &impl Ops, spec: &DecoderSpec, logits: &[f32]) -> Routing {
    let mut routing = Routing {
        logits: logits.to_vec(),
        probabilities: logits.to_vec(),
        ..Routing::default()
    };
    ops.softmax(&mut routing.probabilities, spec.experts);
    for row in routing.probabilities.chunks_exact(spec.experts) {
        let chosen = top_k(row, spec.experts_per_token);
        let sum: f32 = chosen.iter().map(|e| row[*e as usize]).sum();
        let divisor = if spec.normalizes_top_k() { sum } else { 1.0 };
        for expert in &chosen {
            let weight = row[*expert as usize] / divisor;
            routing.weights.push(ops.compute().round(weight));
        }
        routing.ids.extend(chosen);
    }
    routing
}

/// The indices of the `k` largest values, largest first, the lower index on ties.
fn top_k(row: &[f32], k: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..row.len())
        .map(|i| u32::try_from(i).unwrap_or(u32::MAX))
        .collect();
    let order = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
    if k < ids.len() && k > 0 {
        ids.select_nth_unstable_by(k - 1, order);
    }
    ids.truncate(k);
    ids.sort_unstable_by(order);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_the_lower_id_on_ties() {
        assert_eq!(top_k(&[0.1, 0.5, 0.2, 0.5, 0.3], 3), [1, 3, 4]);
        assert_eq!(top_k(&[1.0, 1.0, 1.0], 2), [0, 1]);
        assert_eq!(top_k(&[1.0, 2.0], 5), [1, 0]);
        assert!(top_k(&[1.0], 0).is_empty());
    }
}

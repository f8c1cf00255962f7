//! Which experts each token goes to.

use segpack_manifests::families::{ExpertGroups, RouterScore, WeightDivisor};

use crate::models::decoder::{DecoderSpec, Routing};
use crate::ops::{Ops, softmax};

/// Routes tokens by the router's logits, `[tokens, experts]`. `choice_bias`, `[experts]` or empty,
/// is added to the scores for the choice alone. Scores, choice and weights are in f32; weights are
/// rounded at last, unless the family keeps them in f32.
pub(super) fn route(
    ops: &impl Ops,
    spec: &DecoderSpec,
    logits: &[f32],
    choice_bias: &[f32],
) -> Routing {
    let router = &spec.options.router;
    let mut routing = Routing {
        logits: logits.to_vec(),
        probabilities: logits.to_vec(),
        ..Routing::default()
    };
    match router.score {
        RouterScore::Softmax | RouterScore::SoftmaxOfChosen => {
            ops.softmax(&mut routing.probabilities, spec.experts);
        }
        RouterScore::Sigmoid => {
            let scores = routing.probabilities.iter_mut();
            scores.for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
        }
    }
    let scores = match router.score {
        RouterScore::SoftmaxOfChosen => &routing.logits,
        RouterScore::Softmax | RouterScore::Sigmoid => &routing.probabilities,
    };
    for row in scores.chunks_exact(spec.experts) {
        let chosen = choose(row, choice_bias, router.groups, spec.experts_per_token);
        for weight in weights(spec, row, &chosen) {
            routing.weights.push(match router.has_f32_weights {
                true => weight,
                false => ops.compute().round(weight),
            });
        }
        routing.ids.extend(chosen);
    }
    routing
}

/// The experts of one token, the best first.
fn choose(scores: &[f32], bias: &[f32], groups: Option<ExpertGroups>, k: usize) -> Vec<u32> {
    if bias.is_empty() && groups.is_none() {
        return top_k(scores, k);
    }
    let mut by = scores.to_vec();
    by.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    if let Some(groups) = groups {
        keep_groups(&mut by, groups);
    }
    top_k(&by, k)
}

/// Takes the experts of all but the best groups out of the choice.
fn keep_groups(scores: &mut [f32], groups: ExpertGroups) {
    let width = scores.len() / (groups.count as usize).max(1);
    let sums: Vec<f32> = scores
        .chunks_exact(width.max(1))
        .map(|group| top_k(group, 2).iter().map(|e| group[*e as usize]).sum())
        .collect();
    let kept = top_k(&sums, groups.chosen as usize);
    for (number, group) in (0..).zip(scores.chunks_exact_mut(width.max(1))) {
        if !kept.contains(&number) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

/// What the outputs of a token's experts are multiplied by.
#[expect(
    clippy::cast_possible_truncation,
    reason = "constants are applied in f32, as torch does"
)]
fn weights(spec: &DecoderSpec, scores: &[f32], chosen: &[u32]) -> Vec<f32> {
    let router = &spec.options.router;
    let mut weights: Vec<f32> = chosen.iter().map(|e| scores[*e as usize]).collect();
    if router.score == RouterScore::SoftmaxOfChosen {
        softmax(&mut weights);
    }
    let sum: f32 = weights.iter().sum();
    let divisor = match router.divisor {
        WeightDivisor::One => 1.0,
        WeightDivisor::Sum => sum,
        WeightDivisor::SumPlus(more) => sum + more as f32,
        WeightDivisor::SumAtLeast(least) => sum.max(least as f32),
    };
    let scale = router.scale as f32;
    weights.iter_mut().for_each(|x| *x = *x / divisor * scale);
    weights
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

    #[test]
    fn a_bias_changes_the_choice_and_groups_that_lose_have_none_chosen() {
        let scores = [0.9, 0.1, 0.5, 0.6, 0.8, 0.2];
        assert_eq!(choose(&scores, &[], None, 2), [0, 4]);
        assert_eq!(
            choose(&scores, &[0.0, 1.0, 0.0, 0.0, 0.0, 0.0], None, 2),
            [1, 0]
        );
        // sums of two: 1.0, 1.1, 1.0
        let scores = [0.9, 0.1, 0.5, 0.6, 0.8, 0.2];
        let mut kept = scores;
        let [mut groups] = [ExpertGroups::of(3, 1)];
        keep_groups(&mut kept, groups);
        assert_eq!(top_k(&kept, 2), [3, 2]);
        groups.chosen = 2;
        assert_eq!(choose(&scores, &[], Some(groups), 3), [0, 3, 2]);
    }
}

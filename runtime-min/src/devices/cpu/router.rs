//! Which experts each token goes to.

use segpack_manifests::families::{ExpertGroups, RouterScore, WeightDivisor};

use crate::models::decoder::{DecoderSpec, Routing};
use crate::ops::{Ops, softmax};

/// Routes tokens by the router's logits, `[tokens, experts]`. `choice_bias`, `[experts]` or empty,
/// is added to the scores for the choice alone. Scores, choice and weights are in f32; weights are
/// rounded at last, unless the family keeps them in f32. Where the layer's router is restricted to
/// some experts, probabilities are taken over those, and others have 0.
pub(super) fn route(
    ops: &impl Ops,
    spec: &DecoderSpec,
    layer: usize,
    logits: &[f32],
    choice_bias: &[f32],
) -> Routing {
    let router = &spec.options.router;
    let allowed = spec.allowed(layer);
    let mut routing = Routing {
        logits: logits.to_vec(),
        probabilities: logits.to_vec(),
        ..Routing::default()
    };
    match router.score {
        RouterScore::Softmax | RouterScore::SoftmaxOfChosen => {
            softmax_of_allowed(ops, &mut routing.probabilities, spec.experts, allowed);
        }
        RouterScore::Sigmoid => {
            let scores = routing.probabilities.iter_mut();
            scores.for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
            let rows = routing.probabilities.chunks_exact_mut(spec.experts);
            rows.for_each(|row| fill_forbidden(row, allowed, 0.0));
        }
    }
    let scores = match router.score {
        RouterScore::SoftmaxOfChosen => &routing.logits,
        RouterScore::Softmax | RouterScore::Sigmoid => &routing.probabilities,
    };
    for row in scores.chunks_exact(spec.experts) {
        let among = (allowed, router.groups);
        let chosen = choose(row, choice_bias, among, spec.experts_per_token);
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

/// Softmax of every row over the experts that may be chosen: the bits are those of a router that has
/// no others.
fn softmax_of_allowed(ops: &impl Ops, rows: &mut [f32], experts: usize, allowed: Option<&[bool]>) {
    let Some(allowed) = allowed else {
        return ops.softmax(rows, experts);
    };
    for row in rows.chunks_exact_mut(experts) {
        let among = row.iter().zip(allowed).filter(|(_, may)| **may);
        let mut those: Vec<f32> = among.map(|(x, _)| *x).collect();
        let width = those.len();
        ops.softmax(&mut those, width);
        fill_forbidden(row, Some(allowed), 0.0);
        let among = row.iter_mut().zip(allowed).filter(|(_, may)| **may);
        among.zip(those).for_each(|((to, _), x)| *to = x);
    }
}

/// Puts a value in the place of those of experts that may not be chosen.
fn fill_forbidden(row: &mut [f32], allowed: Option<&[bool]>, value: f32) {
    let pairs = row.iter_mut().zip(allowed.unwrap_or_default());
    pairs
        .filter(|(_, may)| !**may)
        .for_each(|(x, _)| *x = value);
}

/// The experts of one token among those that may be chosen, the best first.
fn choose(
    scores: &[f32],
    bias: &[f32],
    (allowed, groups): (Option<&[bool]>, Option<ExpertGroups>),
    k: usize,
) -> Vec<u32> {
    if bias.is_empty() && groups.is_none() && allowed.is_none() {
        return top_k(scores, k);
    }
    let mut by = scores.to_vec();
    by.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    fill_forbidden(&mut by, allowed, f32::NEG_INFINITY);
    if let Some(groups) = groups {
        keep_groups(&mut by, allowed, groups, k);
    }
    top_k(&by, k)
}

/// Takes the experts of all but the best groups out of the choice. Where the best have fewer than `k`
/// experts that may be chosen, the next best ones stay, too.
fn keep_groups(scores: &mut [f32], allowed: Option<&[bool]>, groups: ExpertGroups, k: usize) {
    let width = (scores.len() / (groups.count as usize).max(1)).max(1);
    let sums: Vec<f32> = scores
        .chunks_exact(width)
        .enumerate()
        .map(|(number, group)| {
            // at most as many as there are: one that may not be chosen has no score
            let best = top_k(group, experts_of_group(number, width, allowed).min(2));
            match best.is_empty() {
                true => f32::NEG_INFINITY,
                false => best.iter().map(|e| group[*e as usize]).sum(),
            }
        })
        .collect();
    let mut kept = top_k(&sums, sums.len());
    let mut experts = 0;
    let mut groups_before = 0;
    kept.retain(|group| {
        let stays = groups_before < groups.chosen || experts < k;
        groups_before += 1;
        experts += if stays {
            experts_of_group(*group as usize, width, allowed)
        } else {
            0
        };
        stays
    });
    for (number, group) in (0..).zip(scores.chunks_exact_mut(width)) {
        if !kept.contains(&number) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

/// Experts of a group of so many that may be chosen.
fn experts_of_group(group: usize, width: usize, allowed: Option<&[bool]>) -> usize {
    let Some(allowed) = allowed else {
        return width;
    };
    let of_group = &allowed[group * width..(group + 1) * width];
    of_group.iter().filter(|may| **may).count()
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
    use crate::ops::CpuOps;
    use crate::tensor::Compute;

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
        let all = (None, None);
        assert_eq!(choose(&scores, &[], all, 2), [0, 4]);
        assert_eq!(
            choose(&scores, &[0.0, 1.0, 0.0, 0.0, 0.0, 0.0], all, 2),
            [1, 0]
        );
        // sums of two: 1.0, 1.1, 1.0
        let scores = [0.9, 0.1, 0.5, 0.6, 0.8, 0.2];
        let mut kept = scores;
        let [mut groups] = [ExpertGroups::of(3, 1)];
        keep_groups(&mut kept, None, groups, 2);
        assert_eq!(top_k(&kept, 2), [3, 2]);
        groups.chosen = 2;
        assert_eq!(choose(&scores, &[], (None, Some(groups)), 3), [0, 3, 2]);
    }

    #[test]
    fn of_restricted_experts_none_else_is_chosen_and_probabilities_are_those_of_fewer() {
        let allowed = [true, false, true, true, false, true];
        let logits = [0.5, 9.0, -1.0, 2.0, 8.0, 0.1];
        let mut row = logits.to_vec();
        let ops = CpuOps::new(Compute::F32);
        softmax_of_allowed(&ops, &mut row, 6, Some(&allowed));
        let mut fewer = vec![0.5, -1.0, 2.0, 0.1];
        ops.softmax(&mut fewer, 4);
        assert_eq!(row, [fewer[0], 0.0, fewer[1], fewer[2], 0.0, fewer[3]]);
        assert_eq!(choose(&row, &[], (Some(&allowed), None), 2), [3, 0]);
        // a bias brings none back
        let bias = [0.0, 100.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(choose(&row, &bias, (Some(&allowed), None), 4), [3, 0, 5, 2]);
        // all of them are no restriction
        let mut all = logits.to_vec();
        softmax_of_allowed(&ops, &mut all, 6, Some(&[true; 6]));
        let mut wanted = logits.to_vec();
        ops.softmax(&mut wanted, 6);
        assert_eq!(all, wanted);
    }

    #[test]
    fn groups_without_enough_restricted_experts_are_joined_by_the_next() {
        let scores = [0.9, 0.8, 0.7, 0.1, 0.2, 0.3];
        let allowed = [true, false, false, true, true, true];
        let groups = ExpertGroups::of(3, 1);
        // sums of those that may be chosen: 0.9, 0.1, 0.5
        let chosen = |k| choose(&scores, &[], (Some(&allowed), Some(groups)), k);
        assert_eq!(chosen(1), [0]);
        assert_eq!(chosen(2), [0, 5]);
        assert_eq!(chosen(4), [0, 5, 4, 3]);
    }
}

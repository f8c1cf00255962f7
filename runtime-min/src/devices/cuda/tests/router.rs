//! The choice of experts.

use super::*;

/// The top k experts of a row by the rule of the CPU.
fn best_of(row: &[f32], top_k: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..u32::try_from(row.len()).unwrap()).collect();
    ids.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
    ids.truncate(top_k);
    ids
}

#[test]
fn the_router_chooses_as_the_reference_does() {
    let gpu = gpu();
    for (tokens, experts, top_k) in [(1, 1, 1), (3, 12, 4), (2, 128, 8), (5, 33, 33), (40, 70, 3)] {
        for (launch, normalise) in launches(&gpu).flat_map(|l| [(l, false), (l, true)]) {
            let compute = launch.compute;
            let mut logits = activations(compute, tokens * experts, 3);
            if experts > 8 {
                logits[4] = 2.0; // ties
                logits[7] = 2.0;
                logits[1] = 2.0;
            }
            let (_l, there) = put(&gpu, compute, &logits);
            let (_kept, choice) = choice(&gpu, tokens, experts, top_k);
            let layer = ExpertBlock {
                table: DevicePtr::NULL,
                dtype: FloatDtype::BF16,
                experts,
                top_k,
                hidden: 1,
                inner: 1,
            };
            launch.route(there, layer, normalise, choice).unwrap();
            let values = |place, n| get_f32(&gpu, place, n);
            let probabilities = values(choice.probabilities, tokens * experts);
            let ids = get_numbers(&gpu, choice.ids, tokens * top_k);
            let weights = values(choice.weights, tokens * top_k);
            let order = get_numbers(&gpu, choice.order, tokens * top_k);
            for (t, p) in probabilities.chunks(experts).enumerate() {
                let mut wanted = logits[t * experts..][..experts].to_vec();
                crate::ops::softmax(&mut wanted);
                assert_close(Compute::F32, p, &wanted, "probabilities");
                let own = t * top_k..(t + 1) * top_k;
                let chosen = best_of(p, top_k);
                assert_eq!(ids[own.clone()], chosen, "of {p:?}");
                let sum: f32 = chosen.iter().map(|e| p[*e as usize]).sum();
                let divisor = if normalise { sum } else { 1.0 };
                let wanted: Vec<f32> = chosen
                    .iter()
                    .map(|e| compute.round(p[*e as usize] / divisor))
                    .collect();
                assert_close(compute, &weights[own.clone()], &wanted, "weights");
                let by_id: Vec<u32> = order[own.clone()]
                    .iter()
                    .map(|pair| ids[*pair as usize])
                    .collect();
                assert!(
                    by_id.is_sorted()
                        && order[own.clone()]
                            .iter()
                            .all(|i| own.contains(&(*i as usize)))
                );
            }
        }
    }
}

#[test]
fn the_device_counts_the_passes_that_use_an_expert() {
    let gpu = gpu();
    let (experts, top_k) = (40, 3);
    let launch = Launch {
        gpu: &gpu,
        compute: Compute::F32,
    };
    let layer = ExpertBlock {
        table: DevicePtr::NULL,
        dtype: FloatDtype::BF16,
        experts,
        top_k,
        hidden: 1,
        inner: 1,
    };
    let (_u, uses) = put_at(&gpu, &vec![0; experts * 4], 0);
    let mut wanted = vec![0; experts];
    for tokens in [1, 3, 70, 1] {
        let (_l, logits) = put_f32(
            &gpu,
            &noise(tokens * experts, u32::try_from(tokens).unwrap()),
        );
        let (_kept, choice) = choice(&gpu, tokens, experts, top_k);
        let choice = RouterBuffers { uses, ..choice };
        launch.route(logits, layer, true, choice).unwrap();
        launch.sort(tokens, layer, choice).unwrap();
        let ids: BTreeSet<u32> = get_numbers(&gpu, choice.ids, tokens * top_k)
            .into_iter()
            .collect();
        ids.iter().for_each(|id| wanted[*id as usize] += 1);
    }
    assert_eq!(get_numbers(&gpu, uses, experts), wanted);
}

/// The router in one launch is norm, product and choice in three, again and again.
#[test]
fn a_router_in_one_launch_chooses_as_three_do() {
    let gpu = gpu();
    for (tokens, columns, experts, top_k) in [
        (1, 48, 12, 4),
        (4, 520, 128, 8),
        (2, 33, 7, 7),
        (3, 8, 1, 1),
    ] {
        for (dtype, launch) in DTYPES
            .into_iter()
            .flat_map(|d| launches(&gpu).map(move |l| (d, l)))
        {
            let compute = launch.compute;
            let (_w, weight) = matrix(&gpu, dtype, experts, columns, 1);
            let (_n, norm_weight) = matrix(&gpu, dtype, columns, 1, 3);
            let (_x, x) = put(&gpu, compute, &activations(compute, tokens * columns, 4));
            let layer = ExpertBlock {
                table: DevicePtr::NULL,
                dtype,
                experts,
                top_k,
                hidden: columns,
                inner: 1,
            };
            let (_a, arrived) = put_at(&gpu, &[0; 16], 0);
            let sizes = [tokens * columns, tokens * experts];
            let [alone, along] = [(); 2].map(|()| sizes.map(|n| blank(&gpu, compute, n)));
            let [chosen, chosen_along] = [(); 2].map(|()| choice(&gpu, tokens, experts, top_k));
            let norm = |normed| Norm {
                weight: norm_weight,
                eps: 1e-6,
                added: None,
                normed,
            };
            launch.norm(x, norm(alone[0].1)).unwrap();
            launch
                .linears(alone[0].1, None, &[(weight, None, alone[1].1)])
                .unwrap();
            launch.route(alone[1].1, layer, true, chosen.1).unwrap();
            for again in 0..2 {
                let linear = (weight, None, along[1].1);
                let choice = (chosen_along.1, arrived);
                launch
                    .router(x, Some(&norm(along[0].1)), linear, layer, true, choice)
                    .unwrap();
                let of = |values: &[(DeviceMemory, View); 2], choice: RouterBuffers| {
                    let pairs = tokens * top_k;
                    let mut all = vec![get(&gpu, values[0].1), get(&gpu, values[1].1)];
                    all.push(get_f32(&gpu, choice.probabilities, tokens * experts));
                    all.extend(
                        [choice.ids, choice.weights, choice.order].map(|p| get_f32(&gpu, p, pairs)),
                    );
                    all.iter()
                        .flatten()
                        .map(|x| x.to_bits())
                        .collect::<Vec<_>>()
                };
                let what = format!(
                    "{tokens}x{columns}, {top_k} of {experts}, {dtype}, {compute:?}, {again}"
                );
                assert_eq!(of(&alone, chosen.1), of(&along, chosen_along.1), "{what}");
                assert_eq!(get_numbers(&gpu, arrived, 4), [0; 4], "{what}");
            }
        }
    }
}

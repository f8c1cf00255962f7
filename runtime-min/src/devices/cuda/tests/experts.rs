//! Experts, of few tokens and of many.

use super::*;

/// What `experts` gives in tiles of so many tokens, where every row of a matrix begins `shift`
/// bytes after an aligned one.
pub(super) fn experts_in_tiles(
    launch: Launch<'_>,
    gpu: &Arc<Gpu>,
    tile: usize,
    dtype: FloatDtype,
    [hidden, inner, shift]: [usize; 3],
) -> Vec<f32> {
    let (tokens, experts, top_k) = (150, 3, 2);
    let (_x, x) = put(
        gpu,
        launch.compute,
        &activations(launch.compute, tokens * hidden, 5),
    );
    let matrices: Vec<_> = (0..9)
        .map(|i| put_at(gpu, &bytes(dtype, &noise(inner * hidden, 100 + i)), shift))
        .collect();
    let table: Vec<u8> = matrices.iter().flat_map(|m| m.1.0.to_le_bytes()).collect();
    let (_t, table) = put_at(gpu, &table, 0);
    // experts of 141, 150 and 9 tokens
    let ids: Vec<u32> = (0..tokens)
        .flat_map(|t| if t % 16 == 0 && t > 0 { [1, 2] } else { [1, 0] })
        .collect();
    let (_kept, choice) = choice(gpu, tokens, experts, top_k);
    gpu.upload_now(
        choice.ids,
        &ids.iter().flat_map(|i| i.to_le_bytes()).collect::<Vec<_>>(),
    )
    .unwrap();
    let layer = ExpertBlock {
        table,
        dtype,
        experts,
        top_k,
        hidden,
        inner,
    };
    launch
        .sort_in_tiles(tokens, layer, choice, Some(tile))
        .unwrap();
    let places = [inner, hidden].map(|n| blank(gpu, launch.compute, tokens * top_k * n));
    launch
        .experts_in_tiles(x, layer, choice, [places[0].1, places[1].1], Some(tile))
        .unwrap();
    get(gpu, places[1].1)
}

#[test]
fn experts_are_the_same_in_tiles_of_any_height() {
    let gpu = gpu();
    for sizes in [[200, 136, 0], [136, 200, 2], [67, 33, 0]] {
        for (dtype, launch) in [FloatDtype::BF16, FloatDtype::F16]
            .into_iter()
            .flat_map(|d| launches(&gpu).map(move |l| (d, l)))
        {
            let [small, large] =
                [64, 128].map(|tile| experts_in_tiles(launch, &gpu, tile, dtype, sizes));
            assert!(small.iter().all(|x| x.is_finite()), "{sizes:?} {dtype}");
            assert_eq!(small, large, "{sizes:?} {dtype} {:?}", launch.compute);
        }
    }
}

/// Gate and up in one pass have the bits of two products and silu_mul: rounded in the same places.
#[test]
fn an_expert_of_all_tokens_is_a_dense_mlp() {
    let gpu = gpu();
    let (tokens, hidden, inner) = (70, 72, 66);
    for (dtype, launch) in DTYPES
        .into_iter()
        .flat_map(|d| launches(&gpu).map(move |l| (d, l)))
    {
        let compute = launch.compute;
        let (_x, x) = put(&gpu, compute, &activations(compute, tokens * hidden, 5));
        let matrices = [1, 2, 3].map(|i| put_at(&gpu, &bytes(dtype, &noise(inner * hidden, i)), 0));
        let of = |i: usize, rows, columns| MatrixView {
            ptr: matrices[i].1,
            dtype,
            rows,
            columns,
        };
        let dense = [inner, inner, hidden].map(|n| blank(&gpu, compute, tokens * n));
        let [gate, up, down] = [0, 1, 2].map(|i: usize| dense[i].1);
        launch
            .linears(
                x,
                None,
                &[
                    (of(0, inner, hidden), None, gate),
                    (of(1, inner, hidden), None, up),
                ],
            )
            .unwrap();
        launch.silu_mul(gate, up).unwrap();
        launch
            .linears(gate, None, &[(of(2, hidden, inner), None, down)])
            .unwrap();
        let table: Vec<u8> = matrices.iter().flat_map(|m| m.1.0.to_le_bytes()).collect();
        let (_t, table) = put_at(&gpu, &table, 0);
        let (_kept, choice) = choice(&gpu, tokens, 1, 1);
        gpu.upload_now(choice.ids, &vec![0; tokens * 4]).unwrap();
        let layer = ExpertBlock {
            table,
            dtype,
            experts: 1,
            top_k: 1,
            hidden,
            inner,
        };
        launch.sort(tokens, layer, choice).unwrap();
        let places = [inner, hidden].map(|n| blank(&gpu, compute, tokens * n));
        launch
            .experts(x, layer, choice, [places[0].1, places[1].1])
            .unwrap();
        assert_eq!(
            get(&gpu, places[0].1),
            get(&gpu, gate),
            "{dtype} {compute:?}"
        );
        assert_eq!(
            get(&gpu, places[1].1),
            get(&gpu, down),
            "{dtype} {compute:?}"
        );
    }
}

#[test]
fn experts_agree_with_the_reference_and_absent_ones_are_left_out() {
    let gpu = gpu();
    for (tokens, experts, top_k, hidden, inner) in [
        (1, 4, 2, 48, 24),
        (3, 5, 5, 33, 7),
        (5, 3, 2, 40, 136),
        (150, 6, 3, 72, 40),
        (70, 2, 1, 20, 9),
        (2, 3, 2, 1096, 1040),
    ] {
        for (dtype, launch) in DTYPES
            .into_iter()
            .flat_map(|d| launches(&gpu).map(move |l| (d, l)))
        {
            let (compute, ops) = (
                launch.compute,
                ScalarOps {
                    compute: launch.compute,
                },
            );
            let x = activations(compute, tokens * hidden, 5);
            let (_x, x_there) = put(&gpu, compute, &x);
            let logits = noise(tokens * experts, 77);
            let (_l, logits_there) = put(&gpu, compute, &logits);
            let (mut kept, mut table, mut weights) = (Vec::new(), Vec::new(), Vec::new());
            for e in 0..u32::try_from(experts).unwrap() {
                let sizes = [inner * hidden, inner * hidden, hidden * inner];
                let matrices =
                    [0, 1, 2].map(|i| bytes(dtype, &noise(sizes[i as usize], 100 + 3 * e + i)));
                for matrix in &matrices {
                    let (memory, place) = put_at(&gpu, matrix, 0);
                    kept.push(memory);
                    table.push(place.0);
                }
                weights.push(matrices);
            }
            let absent = experts - 1;
            let [all, but_one] = [false, true].map(|without| {
                let entry = |(i, place): (usize, &u64)| {
                    if without && i / 3 == absent {
                        0
                    } else {
                        *place
                    }
                };
                let bytes: Vec<u8> = table
                    .iter()
                    .enumerate()
                    .map(entry)
                    .flat_map(u64::to_le_bytes)
                    .collect();
                put_at(&gpu, &bytes, 0)
            });
            let (_kept, choice) = choice(&gpu, tokens, experts, top_k);
            let layer = ExpertBlock {
                table: all.1,
                dtype,
                experts,
                top_k,
                hidden,
                inner,
            };
            launch.route(logits_there, layer, true, choice).unwrap();
            launch.sort(tokens, layer, choice).unwrap();
            let pairs = tokens * top_k;
            let buffers = [pairs * inner, pairs * hidden].map(|n| blank(&gpu, compute, n));
            let places = [0, 1].map(|i: usize| buffers[i].1);
            launch.experts(x_there, layer, choice, places).unwrap();
            let (_a, added) = blank(&gpu, compute, tokens * hidden);
            launch.combine(places[1], layer, choice, added).unwrap();
            let ids = get_numbers(&gpu, choice.ids, pairs);
            let factors = get_f32(&gpu, choice.weights, pairs);
            let mut wanted = vec![0.0; tokens * hidden];
            for (e, [gate, up, down]) in weights.iter().enumerate() {
                for (pair, _) in ids.iter().enumerate().filter(|(_, id)| **id as usize == e) {
                    let t = pair / top_k;
                    let matrix = |bytes, rows, columns| Matrix {
                        dtype,
                        bytes,
                        rows,
                        columns,
                    };
                    let (mut g, mut u, mut y) =
                        (vec![0.0; inner], vec![0.0; inner], vec![0.0; hidden]);
                    let x = &x[t * hidden..(t + 1) * hidden];
                    ops.linear(x, matrix(gate, inner, hidden), None, &mut g);
                    ops.linear(x, matrix(up, inner, hidden), None, &mut u);
                    ops.silu_mul(&mut g, &u);
                    ops.linear(&g, matrix(down, hidden, inner), None, &mut y);
                    ops.add_scaled(&mut wanted[t * hidden..(t + 1) * hidden], &y, factors[pair]);
                }
            }
            let side = |n: usize| f32::from(u16::try_from(n).unwrap()).sqrt();
            let scale = side(hidden) * side(inner);
            let scaled = |x: Vec<f32>| x.iter().map(|x| x / scale).collect::<Vec<_>>();
            let what = format!("{tokens} tokens, {dtype}, {compute:?}");
            assert_close(compute, &scaled(get(&gpu, added)), &scaled(wanted), &what);
            // a table without one expert touches no pair of it, and the others as before
            let before = get(&gpu, places[1]);
            let (_y, y) = blank(&gpu, compute, pairs * hidden);
            let without = ExpertBlock {
                table: but_one.1,
                ..layer
            };
            launch
                .experts(x_there, without, choice, [places[0], y])
                .unwrap();
            let after = get(&gpu, y);
            for (pair, id) in ids.iter().enumerate() {
                let row = pair * hidden..(pair + 1) * hidden;
                if *id as usize == absent {
                    assert!(after[row].iter().all(|x| x.is_nan()), "{what}: pair {pair}");
                } else {
                    assert_eq!(after[row.clone()], before[row], "{what}: pair {pair}");
                }
            }
        }
    }
}

/// Experts that are all there are computed and added up in one launch, with the bits that two give.
#[test]
fn experts_in_one_launch_add_up_as_two_do() {
    let gpu = gpu();
    for (tokens, experts, top_k, hidden, inner) in [
        (1, 4, 2, 48, 24),
        (3, 5, 5, 33, 7),
        (4, 9, 8, 40, 768),
        (2, 3, 3, 9, 1040),
        (1, 1, 1, 8, 8),
    ] {
        for (dtype, launch) in DTYPES
            .into_iter()
            .flat_map(|d| launches(&gpu).map(move |l| (d, l)))
        {
            let compute = launch.compute;
            let (_x, x) = put(&gpu, compute, &activations(compute, tokens * hidden, 5));
            let (_l, logits) = put(&gpu, compute, &activations(compute, tokens * experts, 77));
            let matrices: Vec<_> = (0..u32::try_from(experts * 3).unwrap())
                .map(|i| matrix(&gpu, dtype, inner, hidden, 100 + i))
                .collect();
            let table: Vec<u8> = matrices
                .iter()
                .flat_map(|m| m.1.ptr.0.to_le_bytes())
                .collect();
            let (_t, table) = put_at(&gpu, &table, 0);
            let (_kept, choice) = choice(&gpu, tokens, experts, top_k);
            let layer = ExpertBlock {
                table,
                dtype,
                experts,
                top_k,
                hidden,
                inner,
            };
            launch.route(logits, layer, true, choice).unwrap();
            let pairs = tokens * top_k;
            let [(_b, between), (_y, y)] =
                [pairs * inner, pairs * hidden].map(|n| blank(&gpu, compute, n));
            let [(_a, alone), (_l, along)] =
                [(); 2].map(|()| blank(&gpu, compute, tokens * hidden));
            launch.experts(x, layer, choice, [between, y]).unwrap();
            launch.combine(y, layer, choice, alone).unwrap();
            assert!(
                launch
                    .all_experts(x, layer, choice, between, along)
                    .unwrap()
            );
            let bits = |values| {
                get(&gpu, values)
                    .iter()
                    .map(|x| x.to_bits())
                    .collect::<Vec<_>>()
            };
            let what = format!(
                "{tokens} tokens, {top_k} of {experts}, {hidden}x{inner}, {dtype}, {compute:?}"
            );
            assert_eq!(bits(alone), bits(along), "{what}");
            assert!(get(&gpu, along).iter().all(|x| !x.is_nan()), "{what}");
        }
    }
}

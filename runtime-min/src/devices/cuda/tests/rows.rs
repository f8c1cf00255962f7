//! Embeddings, norms, sums, the greatest logit.

use super::*;

#[test]
fn embeddings_norms_and_sums_agree_with_the_reference() {
    let gpu = gpu();
    for (tokens, width) in [(1, 1), (3, 48), (2, 1025), (5, 130)] {
        for launch in launches(&gpu) {
            let (compute, ops) = (
                launch.compute,
                ScalarOps {
                    compute: launch.compute,
                },
            );
            for dtype in DTYPES {
                let table = bytes(dtype, &noise(9 * width, 5));
                let (_t, place) = put_at(&gpu, &table, 2);
                let ids: Vec<u32> = (0..tokens)
                    .map(|t| u32::try_from(t * 5 % 9).unwrap())
                    .collect();
                let (_i, ids_there) = put_at(
                    &gpu,
                    &ids.iter().flat_map(|i| i.to_le_bytes()).collect::<Vec<_>>(),
                    0,
                );
                let (_x, x) = blank(&gpu, compute, tokens * width);
                // rows of an embedding begin at a multiple of their dtype's width
                if dtype != FloatDtype::F32 {
                    launch
                        .embed(
                            MatrixView {
                                ptr: place,
                                dtype,
                                rows: 9,
                                columns: width,
                            },
                            ids_there,
                            x,
                        )
                        .unwrap();
                    let row = width * 2;
                    let mut wanted = vec![0.0; tokens * width];
                    for (id, to) in ids.iter().zip(wanted.chunks_mut(width)) {
                        dtype.widen(&table[*id as usize * row..][..row], to);
                    }
                    compute.round_all(&mut wanted);
                    assert_eq!(get(&gpu, x), wanted);
                }
                let weight = noise(width, 9);
                let (_w, place) = put_at(&gpu, &bytes(dtype, &weight), 0);
                let mut widened = vec![0.0; width];
                dtype.widen(&bytes(dtype, &weight), &mut widened);
                let norm = MatrixView {
                    ptr: place,
                    dtype,
                    rows: width,
                    columns: 1,
                };
                let (a, b) = (
                    activations(compute, tokens * width, 1),
                    activations(compute, tokens * width, 2),
                );
                for added in [false, true] {
                    let (_a, x) = put(&gpu, compute, &a);
                    let (_b, more) = put(&gpu, compute, &b);
                    let (_o, out) = blank(&gpu, compute, tokens * width);
                    let added_there = added.then_some((more, x));
                    let norm = Norm {
                        weight: norm,
                        eps: 1e-6,
                        added: added_there,
                        normed: out,
                    };
                    launch.norm(x, norm).unwrap();
                    let mut sum = a.clone();
                    if added {
                        ops.add(&mut sum, &b);
                    }
                    assert_eq!(get(&gpu, x), sum);
                    ops.rms_norm(&mut sum, &widened, 1e-6);
                    assert_close(
                        compute,
                        &get(&gpu, out),
                        &sum,
                        &format!("norm of {tokens}x{width} {dtype}"),
                    );
                }
            }
            let n = tokens * width;
            let (mut a, b) = (activations(compute, n, 11), activations(compute, n, 12));
            let ((_a, x), (_b, y)) = (put(&gpu, compute, &a), put(&gpu, compute, &b));
            launch.add(x, y).unwrap();
            ops.add(&mut a, &b);
            assert_eq!(get(&gpu, x), a);
            launch.silu_mul(x, y).unwrap();
            ops.silu_mul(&mut a, &b);
            assert_close(compute, &get(&gpu, x), &a, "silu_mul");
        }
    }
}

#[test]
fn the_lowest_id_of_the_greatest_logits_is_next() {
    let gpu = gpu();
    for n in [1, 31, 320, 5000] {
        for top_k in [0, n / 2, n - 1] {
            let mut logits = noise(n, 3);
            logits[top_k] = 7.0;
            logits[n - 1] = 7.0;
            let (_l, there) = put_f32(&gpu, &logits);
            let parts = gpu.alloc(ARGMAX_BYTES, "a test").unwrap();
            let (_i, id) = put_at(&gpu, &[0; 4], 0);
            let (_p, position) = put_at(&gpu, &41_u32.to_le_bytes(), 0);
            let (_m, logit) = put_at(&gpu, &[0; 4], 0);
            let launch = Launch {
                gpu: &gpu,
                compute: Compute::F32,
            };
            launch
                .argmax(there, parts.start(), [id, position, logit])
                .unwrap();
            assert_eq!(get_numbers(&gpu, id, 1), [u32::try_from(top_k).unwrap()]);
            assert_eq!(get_numbers(&gpu, position, 1), [42]);
            assert_eq!(get_f32(&gpu, logit, 1), [7.0]);
        }
    }
}

#[test]
fn a_logit_that_is_no_number_is_found_wherever_it_is_as_the_host_finds_it() {
    let gpu = gpu();
    let launch = Launch {
        gpu: &gpu,
        compute: Compute::F32,
    };
    let parts = gpu.alloc(ARGMAX_BYTES, "a test").unwrap();
    let greatest = |logits: &[f32]| {
        let (_l, there) = put_f32(&gpu, logits);
        let (_o, place) = put_at(&gpu, &[0; 12], 0);
        launch
            .argmax(
                there,
                parts.start(),
                [place, place.offset(4), place.offset(8)],
            )
            .unwrap();
        let logit = get_f32(&gpu, place.offset(8), 1)[0];
        ArgMax {
            id: get_numbers(&gpu, place, 1)[0],
            logit,
        }
    };
    let mut rows = vec![
        vec![-1.0, -0.0, 0.0],
        vec![f32::NEG_INFINITY; 700],
        vec![f32::NEG_INFINITY, -3e38],
    ];
    let minus_nan = f32::from_bits(0xffc0_0001);
    for (first, second) in [(0, 1), (5, 2000), (40, 3), (2999, 1500), (1024, 1023)] {
        for (a, b) in [
            (f32::NAN, f32::INFINITY),
            (f32::INFINITY, minus_nan),
            (minus_nan, 3e38),
        ] {
            let mut logits = noise(3000, 3);
            (logits[first], logits[second]) = (a, b);
            rows.push(logits);
        }
    }
    for logits in rows {
        // NaN is unequal to itself: compared as it is shown
        let (seen, wanted) = (greatest(&logits).token(), Sampler::greedy().choose(&logits));
        assert_eq!(format!("{seen:?}"), format!("{wanted:?}"));
    }
}

#[test]
fn a_gate_of_each_token_scales_what_is_added() {
    let gpu = gpu();
    for (tokens, width) in [(1, 1), (2, 257), (5, 130)] {
        for launch in launches(&gpu) {
            let compute = launch.compute;
            let ops = ScalarOps { compute };
            let values = |n, seed| activations(compute, n, seed);
            let (x, gates) = (values(tokens * width, 2), values(tokens, 3));
            let mut wanted = values(tokens * width, 1);
            let (_to, to) = put(&gpu, compute, &wanted);
            let (_x, x_there) = put(&gpu, compute, &x);
            let (_g, gates_there) = put(&gpu, compute, &gates);
            launch.add_gated(to, x_there, gates_there).unwrap();
            let rows = wanted.chunks_exact_mut(width).zip(x.chunks_exact(width));
            for ((to, x), gate) in rows.zip(&gates) {
                ops.add_scaled(to, x, compute.round(1.0 / (1.0 + (-gate).exp())));
            }
            assert_close(compute, &get(&gpu, to), &wanted, "gated");
        }
    }
}

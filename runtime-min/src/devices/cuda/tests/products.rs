//! Dense products, of few tokens and of many.

use super::*;

#[test]
fn products_agree_with_the_reference() {
    let gpu = gpu();
    // rows of three products, columns, tokens
    let sizes = [
        ([1, 0, 0], 1, 1),
        ([3, 5, 1], 7, 2),
        ([17, 2, 9], 64, 1),
        ([33, 16, 16], 520, 3),
        ([6, 0, 0], 1100, 4),
        ([3, 2, 4], 2088, 2),
        ([2, 0, 0], 12_288, 1),
        ([2, 0, 0], 25_344, 1),
        ([65, 130, 1], 33, 5),
        ([40, 7, 0], 72, 70),
        ([129, 0, 0], 136, 65),
    ];
    for (rows, columns, tokens) in sizes {
        for dtype in DTYPES {
            for (launch, shift) in launches(&gpu).flat_map(|l| [(l, 0), (l, 4)]) {
                let compute = launch.compute;
                let x = activations(compute, tokens * columns, 3);
                let (_x, x_there) = put(&gpu, compute, &x);
                let (mut kept, mut linears, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
                for (i, rows) in rows.into_iter().enumerate() {
                    let seed = u32::try_from(i).unwrap();
                    let weight = bytes(dtype, &noise(rows * columns, 7 + seed));
                    let bias = (i != 1).then(|| noise(rows, 70 + seed));
                    let (w, place) = put_at(&gpu, &weight, shift);
                    let (b, b_place) = put_at(&gpu, &plain(bias.as_deref().unwrap_or(&[])), 0);
                    let (o, out) = blank(&gpu, compute, tokens * rows);
                    let bias_there = bias.as_ref().map(|_| MatrixView {
                        ptr: b_place,
                        dtype: FloatDtype::F32,
                        rows,
                        columns: 1,
                    });
                    linears.push((
                        MatrixView {
                            ptr: place,
                            dtype,
                            rows,
                            columns,
                        },
                        bias_there,
                        out,
                    ));
                    let mut result = vec![0.0; tokens * rows];
                    let matrix = Matrix {
                        dtype,
                        bytes: &weight,
                        rows,
                        columns,
                    };
                    if rows > 0 {
                        ScalarOps { compute }.linear(&x, matrix, bias.as_deref(), &mut result);
                    }
                    wanted.push(result);
                    kept.push((w, b, o));
                }
                launch.linears(x_there, None, &linears).unwrap();
                for ((_, _, out), wanted) in linears.iter().zip(&wanted) {
                    let what = format!(
                        "{dtype} {rows:?}x{columns}, {tokens} tokens, shifted by {shift}, {compute:?}"
                    );
                    let scale = f32::from(u16::try_from(columns).unwrap()).sqrt();
                    let seen: Vec<f32> = get(&gpu, *out).iter().map(|x| x / scale).collect();
                    let wanted: Vec<f32> = wanted.iter().map(|x| x / scale).collect();
                    assert_close(compute, &seen, &wanted, &what);
                }
            }
        }
    }
}

/// Two products of one input, whole and unaligned rows, the last tile of few tokens.
#[test]
fn products_are_the_same_in_tiles_of_any_height() {
    let gpu = gpu();
    let (rows, tokens) = ([131, 2], 141);
    for (columns, shift) in [(200, 0), (200, 4), (199, 0), (201, 2)] {
        for (dtype, launch) in DTYPES
            .into_iter()
            .flat_map(|d| launches(&gpu).map(move |l| (d, l)))
        {
            if dtype == FloatDtype::F32 && shift % 4 != 0 {
                continue; // a value begins at a multiple of its width
            }
            let compute = launch.compute;
            let x = activations(compute, tokens * columns, 3);
            let (_x, x_there) = put(&gpu, compute, &x);
            let weights = rows.map(|rows| {
                bytes(
                    dtype,
                    &noise(rows * columns, 7 + u32::try_from(rows).unwrap()),
                )
            });
            let placed = [0, 1].map(|i: usize| put_at(&gpu, &weights[i], shift));
            let (_b, bias) = put_at(&gpu, &bytes(FloatDtype::F16, &noise(rows[0], 5)), 2);
            let bias = MatrixView {
                ptr: bias,
                dtype: FloatDtype::F16,
                rows: rows[0],
                columns: 1,
            };
            let run = |tile| {
                let blanks = rows.map(|rows| blank(&gpu, compute, tokens * rows));
                let linear = |i: usize| {
                    let weight = MatrixView {
                        ptr: placed[i].1,
                        dtype,
                        rows: rows[i],
                        columns,
                    };
                    (weight, (i == 0).then_some(bias), blanks[i].1)
                };
                launch
                    .linears_in_tiles(x_there, &[linear(0), linear(1)], Some(tile))
                    .unwrap();
                blanks.map(|(_, out)| get(&gpu, out))
            };
            let what = format!("{dtype} {rows:?}x{columns}, shifted by {shift}, {compute:?}");
            let all = run(32);
            for tile in [64, 128] {
                assert_eq!(run(tile), all, "{what}: tiles of {tile} tokens");
            }
            let mut half = vec![0; rows[0] * 2];
            gpu.download(&mut half, bias.ptr).unwrap();
            let mut widened = vec![0.0; rows[0]];
            FloatDtype::F16.widen(&half, &mut widened);
            for (i, seen) in all.iter().enumerate() {
                let matrix = Matrix {
                    dtype,
                    bytes: &weights[i],
                    rows: rows[i],
                    columns,
                };
                let mut wanted = vec![0.0; tokens * rows[i]];
                ScalarOps { compute }.linear(
                    &x,
                    matrix,
                    (i == 0).then_some(&widened[..]),
                    &mut wanted,
                );
                let scaled = |x: &[f32]| x.iter().map(|x| x / 14.0).collect::<Vec<_>>();
                assert_close(compute, &scaled(seen), &scaled(&wanted), &what);
            }
        }
    }
}

#[test]
fn tiles_are_as_high_as_leaves_every_multiprocessor_one() {
    // 132 of them; q, k and v; o; the router; the head of a few tokens
    for (tokens, rows, wanted) in [
        (512, 5120, 128),
        (2048, 5120, 128),
        (512, 2048, 64),
        (2048, 2048, 128),
        (512, 128, 32),
        (64, 151_936, 64),
    ] {
        assert_eq!(
            dense_tile(tokens, rows / 128, 132),
            wanted,
            "{tokens} tokens, {rows} rows"
        );
    }
    // 128 experts, 8 per token
    assert_eq!(
        [5, 512, 1024, 2048].map(|tokens| expert_tile(tokens * 8, 128)),
        [64, 64, 64, 128]
    );
}

/// What a launch norms on its way is what a norm of its own gives, to the bit, and so is the sum
/// that it leaves.
#[test]
fn products_norm_their_input_as_a_launch_of_its_own_does() {
    let gpu = gpu();
    for (tokens, columns, rows) in [
        (1, 1, 3),
        (2, 300, 17),
        (4, 2048, 40),
        (3, 2056, 9),
        (1, 4101, 5),
    ] {
        for (dtype, launch) in DTYPES
            .into_iter()
            .flat_map(|d| launches(&gpu).map(move |l| (d, l)))
        {
            let compute = launch.compute;
            let n = tokens * columns;
            let (_w, weight) = matrix(&gpu, dtype, rows, columns, 1);
            let (_v, other) = matrix(&gpu, dtype, rows + 1, columns, 2);
            let (_n, norm_weight) = matrix(&gpu, dtype, columns, 1, 3);
            let [(_x, x), (_y, y)] =
                [4, 5].map(|seed| put(&gpu, compute, &activations(compute, n, seed)));
            for adds in [false, true] {
                let places =
                    || [n, n, tokens * rows, tokens * (rows + 1)].map(|n| blank(&gpu, compute, n));
                let [alone, along] = [places(), places()];
                let norm = |[sum, normed, ..]: &[(DeviceMemory, View); 4]| Norm {
                    weight: norm_weight,
                    eps: 1e-6,
                    added: adds.then_some((y, sum.1)),
                    normed: normed.1,
                };
                let linears = |[.., a, b]: &[(DeviceMemory, View); 4]| {
                    [(weight, None, a.1), (other, None, b.1)]
                };
                launch.norm(x, norm(&alone)).unwrap();
                launch.linears(alone[1].1, None, &linears(&alone)).unwrap();
                launch
                    .linears(x, Some(&norm(&along)), &linears(&along))
                    .unwrap();
                for (i, (alone, along)) in alone.iter().zip(&along).enumerate() {
                    let [alone, along] = [alone, along].map(|v| {
                        get(&gpu, v.1)
                            .iter()
                            .map(|x| x.to_bits())
                            .collect::<Vec<_>>()
                    });
                    let what =
                        format!("{i}: {tokens}x{columns} to {rows}, {dtype}, {compute:?}, {adds}");
                    assert_eq!(alone, along, "{what}");
                }
                assert!(get(&gpu, along[3].1).iter().all(|x| !x.is_nan()));
            }
        }
    }
}

//! What a device's order of lanes, and its banks of shared memory, must not change.

use super::attention::attended;
use super::experts::experts_in_tiles;
use super::*;

/// Shared memory serves eight lanes, 16 bytes each, at a time where no two of them are in the same
/// banks.
#[test]
fn no_lanes_of_a_tile_share_banks() {
    let gpu = gpu();
    let launch = Launch {
        gpu: &gpu,
        compute: Compute::Bf16,
    };
    let (rows, columns, tokens) = (65, 264, 70);
    let (_x, x) = put(&gpu, Compute::Bf16, &noise(tokens * columns, 3));
    let (_w, place) = put_at(&gpu, &bytes(FloatDtype::BF16, &noise(rows * columns, 4)), 0);
    let (_o, out) = blank(&gpu, Compute::Bf16, tokens * rows);
    let weight = MatrixView {
        ptr: place,
        dtype: FloatDtype::BF16,
        rows,
        columns,
    };
    for tile in [32, 64, 128] {
        launch
            .linears_in_tiles(x, &[(weight, None, out)], Some(tile))
            .unwrap();
        experts_in_tiles(launch, &gpu, tile.max(64), FloatDtype::BF16, [136, 136, 0]);
    }
    for kernel in [
        c"gemm_mma_64",
        c"gemm_mma_128",
        c"expert_gated_mma_64",
        c"expert_gated_mma_128",
        c"expert_mma_64",
        c"expert_mma_128",
    ] {
        assert_eq!(bank_conflicts(kernel).unwrap_or(0), 0, "{kernel:?}");
    }
}

/// What kernels of every kind give.
fn results(gpu: &Arc<Gpu>) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    run_tiles(gpu, &mut all);
    run_attention(gpu, &mut all);
    run_rows(gpu, &mut all);
    all
}

fn run_tiles(gpu: &Arc<Gpu>, all: &mut Vec<Vec<f32>>) {
    for (launch, tile) in launches(gpu).flat_map(|l| [32, 64, 128].map(|tile| (l, tile))) {
        // more steps than stages, and a last one that is not whole
        let (rows, columns, tokens) = (70, 344, 100);
        let (_x, x) = put(
            gpu,
            launch.compute,
            &activations(launch.compute, tokens * columns, 3),
        );
        let (_w, place) = put_at(gpu, &bytes(FloatDtype::BF16, &noise(rows * columns, 4)), 0);
        let (_o, out) = blank(gpu, launch.compute, tokens * rows);
        let weight = MatrixView {
            ptr: place,
            dtype: FloatDtype::BF16,
            rows,
            columns,
        };
        launch
            .linears_in_tiles(x, &[(weight, None, out)], Some(tile))
            .unwrap();
        all.push(get(gpu, out));
        all.push(experts_in_tiles(
            launch,
            gpu,
            tile.max(64),
            FloatDtype::BF16,
            [72, 264, 0],
        ));
    }
}

fn run_attention(gpu: &Arc<Gpu>, all: &mut Vec<Vec<f32>>) {
    // several parts, and tiles enough to use every stage again
    let heads = Heads {
        query: 4,
        key_value: 2,
        width: 72,
    };
    for (launch, (before, tokens, parts)) in
        launches(gpu).flat_map(|l| [(150, 3, 3), (150, 3, 1), (250, 37, 1)].map(|p| (l, p)))
    {
        all.push(attended(launch, heads, before, tokens, parts).0[0].clone());
    }
}

fn run_rows(gpu: &Arc<Gpu>, all: &mut Vec<Vec<f32>>) {
    for (launch, tokens) in launches(gpu).flat_map(|l| [(l, 2), (l, 37)]) {
        let x = activations(launch.compute, tokens * 128, 3);
        let (_x, x) = put(gpu, launch.compute, &x);
        let (_w, place) = put_at(gpu, &bytes(FloatDtype::BF16, &noise(70 * 128, 4)), 0);
        let (_o, out) = blank(gpu, launch.compute, tokens * 70);
        launch
            .linears(
                x,
                None,
                &[(
                    MatrixView {
                        ptr: place,
                        dtype: FloatDtype::BF16,
                        rows: 70,
                        columns: 128,
                    },
                    None,
                    out,
                )],
            )
            .unwrap();
        all.push(get(gpu, out));
        let (_n, norm) = blank(gpu, launch.compute, tokens * 128);
        let weight = MatrixView {
            ptr: place,
            dtype: FloatDtype::BF16,
            rows: 128,
            columns: 1,
        };
        launch
            .norm(
                x,
                Norm {
                    weight,
                    eps: 1e-6,
                    added: None,
                    normed: norm,
                },
            )
            .unwrap();
        all.push(get(gpu, norm));
        let (_kept, choice) = choice(gpu, tokens, 64, 3);
        let layer = ExpertBlock {
            table: DevicePtr::NULL,
            dtype: FloatDtype::BF16,
            experts: 64,
            top_k: 3,
            hidden: 1,
            inner: 1,
        };
        launch
            .route(x.part(0..tokens * 64), layer, true, choice)
            .unwrap();
        launch.sort(tokens, layer, choice).unwrap();
        all.push(get_f32(gpu, choice.weights, tokens * 3));
        let sorted = if tokens > 4 {
            get_numbers(gpu, choice.sorted, tokens * 3)
        } else {
            Vec::new()
        };
        all.push(
            sorted
                .iter()
                .map(|i| f32::from(u16::try_from(*i).unwrap()))
                .collect(),
        );
    }
}

/// Kernels whose threads hand values to each other give the same bits in whatever order the threads
/// run.
#[test]
fn no_result_depends_on_the_order_of_lanes() {
    let gpu = gpu();
    let forwards = results(&gpu);
    run_lanes_backwards(true);
    let backwards = results(&gpu);
    run_lanes_backwards(false);
    assert_eq!(forwards, backwards);
}

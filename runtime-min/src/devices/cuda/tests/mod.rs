//! Every kernel against the plain reference, at sizes that are no multiple of any tile, at both
//! precisions: on a GPU where there is one, else on the host shim.

mod attention;
mod codes;
mod driver;
mod experts;
mod lanes;
mod products;
mod router;
mod rows;

use std::collections::BTreeSet;
use std::sync::Arc;

use segpack_formats::numeric::FloatDtype;

use crate::devices::cuda::driver::{DeviceMemory, DevicePtr, Gpu, Stream, entries, ptx};
use crate::devices::cuda::launch::{
    ARGMAX_BYTES, ExpertBlock, FEW_TOKENS, HeadNorms, KvCache, Launch, MatrixView, Norm,
    RouterBuffers, View, counters, dense_tile, expert_tile, partial_values, tiles_bytes,
};
use crate::devices::cuda::testing::{bank_conflicts, gpu, run_lanes_backwards};
use crate::generate::{ArgMax, Sampler};
use crate::ops::{Ops, ScalarOps};
use crate::samples::{activations, bytes, noise};
use crate::tensor::{Compute, Heads, Matrix};

const BOTH: [Compute; 2] = [Compute::F32, Compute::Bf16];
const DTYPES: [FloatDtype; 3] = [FloatDtype::BF16, FloatDtype::F16, FloatDtype::F32];

fn plain(values: &[f32]) -> Vec<u8> {
    bytes(FloatDtype::F32, values)
}

/// Memory on the device with these bytes, `shift` bytes after an aligned address.
fn put_at(gpu: &Arc<Gpu>, bytes: &[u8], shift: usize) -> (DeviceMemory, DevicePtr) {
    let memory = gpu.alloc(bytes.len() + shift, "a test").unwrap();
    let place = memory.start().offset(shift);
    gpu.upload_now(place, bytes).unwrap();
    (memory, place)
}

/// Activations on the device.
fn put(gpu: &Arc<Gpu>, compute: Compute, values: &[f32]) -> (DeviceMemory, View) {
    let dtype = if compute == Compute::F32 {
        FloatDtype::F32
    } else {
        FloatDtype::BF16
    };
    let (memory, place) = put_at(gpu, &bytes(dtype, values), 0);
    (memory, View::activations(compute, place, values.len()))
}

fn put_f32(gpu: &Arc<Gpu>, values: &[f32]) -> (DeviceMemory, View) {
    put(gpu, Compute::F32, values)
}

/// NaN, so that what is not written shows.
fn blank(gpu: &Arc<Gpu>, compute: Compute, n: usize) -> (DeviceMemory, View) {
    put(gpu, compute, &vec![f32::NAN; n])
}

fn get(gpu: &Gpu, values: View) -> Vec<f32> {
    let mut bytes = vec![0; values.len * values.width];
    gpu.download(&mut bytes, values.ptr).unwrap();
    let dtype = if values.width == 4 {
        FloatDtype::F32
    } else {
        FloatDtype::BF16
    };
    let mut widened = vec![0.0; values.len];
    dtype.widen(&bytes, &mut widened);
    widened
}

fn get_f32(gpu: &Gpu, ptr: DevicePtr, n: usize) -> Vec<f32> {
    get(gpu, View::f32(ptr, n))
}

fn get_numbers(gpu: &Gpu, ptr: DevicePtr, n: usize) -> Vec<u32> {
    get_f32(gpu, ptr, n).iter().map(|x| x.to_bits()).collect()
}

/// The same in f32 but for the order of sums; one rounding apart in bf16.
fn assert_close(compute: Compute, seen: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(seen.len(), wanted.len(), "{what}");
    let size = wanted.iter().fold(1.0_f32, |most, x| most.max(x.abs()));
    let most = size
        * if compute == Compute::F32 {
            3e-6
        } else {
            1.0 / 128.0
        };
    for (i, (a, b)) in seen.iter().zip(wanted).enumerate() {
        assert!(
            (a - b).abs() <= most,
            "{what}: value {i} is {a}, wanted {b}"
        );
    }
}

fn launches(gpu: &Gpu) -> impl Iterator<Item = Launch<'_>> {
    BOTH.into_iter().map(move |compute| Launch { gpu, compute })
}

/// Where `route` and `sort` write.
fn choice(
    gpu: &Arc<Gpu>,
    tokens: usize,
    experts: usize,
    top_k: usize,
) -> (Vec<DeviceMemory>, RouterBuffers) {
    let pairs = tokens * top_k;
    let sizes = [
        tokens * experts * 4,
        pairs * 4,
        pairs * 4,
        pairs * 4,
        experts * 4,
        pairs * 4,
        tiles_bytes(pairs, experts),
    ];
    let kept: Vec<DeviceMemory> = sizes
        .iter()
        .map(|n| gpu.alloc(*n, "a test").unwrap())
        .collect();
    let [probabilities, ids, weights, order, counts, sorted, tiles] =
        [0, 1, 2, 3, 4, 5, 6].map(|i| kept[i].start());
    (
        kept,
        RouterBuffers {
            probabilities,
            ids,
            weights,
            order,
            counts,
            sorted,
            tiles,
            uses: DevicePtr::NULL,
        },
    )
}

/// A weight on the device.
fn matrix(
    gpu: &Arc<Gpu>,
    dtype: FloatDtype,
    rows: usize,
    columns: usize,
    seed: u32,
) -> (DeviceMemory, MatrixView) {
    let (memory, place) = put_at(gpu, &bytes(dtype, &noise(rows * columns, seed)), 0);
    (
        memory,
        MatrixView {
            ptr: place,
            dtype,
            rows,
            columns,
        },
    )
}

//! Made-up values that the tests of the kernels, on the CPU and on a GPU, compute with.

use segpack_formats::numeric::FloatDtype;

use crate::tensor::Compute;

/// Values in [-1, 1) without a short period.
pub(crate) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761);
    (0..n).map(|_| next(&mut state)).collect()
}

/// The next value of a linear congruential generator.
#[expect(clippy::cast_precision_loss, reason = "24 bits")]
fn next(state: &mut u32) -> f32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (*state >> 8) as f32 / 8_388_608.0 - 1.0
}

/// Activations in the precision of `compute`.
pub(crate) fn activations(compute: Compute, n: usize, seed: u32) -> Vec<f32> {
    let mut x = noise(n, seed);
    compute.round_all(&mut x);
    x
}

/// Values as stored, little-endian.
pub(crate) fn bytes(dtype: FloatDtype, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    dtype.narrow(values, &mut bytes);
    bytes
}

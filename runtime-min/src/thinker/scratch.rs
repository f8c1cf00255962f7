//! Activations in memory that is reused: fresh memory costs more to touch for the first time than to compute in.

/// Grows, never shrinks.
#[derive(Debug, Default)]
pub(super) struct Buffer(Vec<f32>);

impl Buffer {
    /// `n` values, of which any may be left from before.
    pub(super) fn of(&mut self, n: usize) -> &mut [f32] {
        if self.0.len() < n {
            self.0 = Vec::new(); // nothing is worth copying
            self.0.resize(n, 0.0);
        }
        &mut self.0[..n]
    }

    /// `n` zeros.
    pub(super) fn zeros(&mut self, n: usize) -> &mut [f32] {
        let values = self.of(n);
        values.fill(0.0);
        values
    }

    /// A copy.
    pub(super) fn copy(&mut self, values: &[f32]) -> &mut [f32] {
        let copy = self.of(values.len());
        copy.copy_from_slice(values);
        copy
    }
}

/// The activations of a pass, `[tokens, …]`, and of a batch, `[batch, …]`.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// `[tokens, hidden]`, after a norm.
    pub(super) normed: Buffer,
    /// `[tokens, hidden]`, what a layer adds.
    pub(super) added: Buffer,
    /// `[tokens, experts]`.
    pub(super) router: Buffer,
    /// `[batch, heads × width]`.
    pub(super) q: Buffer,
    /// `[batch, kv_heads × width]`.
    pub(super) k: Buffer,
    /// `[batch, kv_heads × width]`.
    pub(super) v: Buffer,
    /// `[batch, heads × width]`.
    pub(super) attended: Buffer,
    /// The MLP's.
    pub(super) mlp: MlpScratch,
}

/// The activations of an MLP, or of several experts.
#[derive(Debug, Default)]
pub(super) struct MlpScratch {
    /// `[batch, hidden]`, the tokens that go to each expert.
    pub(super) x: Buffer,
    /// `[batch, intermediate]`.
    pub(super) gate: Buffer,
    /// `[batch, intermediate]`.
    pub(super) up: Buffer,
    /// `[batch, hidden]`.
    pub(super) y: Buffer,
}

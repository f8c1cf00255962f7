//! Activations in memory that is reused: fresh memory costs more to touch for the first time than
//! to compute in.

/// Grows, never shrinks.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    values: Vec<f32>,
    /// Values asked for last.
    used: usize,
}

impl From<Vec<f32>> for Buffer {
    fn from(values: Vec<f32>) -> Self {
        Self {
            used: values.len(),
            values,
        }
    }
}

impl Buffer {
    /// `n` values, of which any may be left from before.
    pub(super) fn of(&mut self, n: usize) -> &mut [f32] {
        if self.values.len() < n {
            self.values = Vec::new(); // nothing is worth copying
            self.values.resize(n, 0.0);
        }
        self.used = n;
        &mut self.values[..n]
    }

    /// Those that were asked for last.
    pub(super) fn last(&self) -> &[f32] {
        &self.values[..self.used]
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

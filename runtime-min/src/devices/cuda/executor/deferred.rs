//! Work that waits for a launch that takes it along: the sum of a residual, the norm after it, and
//! the router's linear layer after that.

use super::super::launch::{LinearOperands, Norm};
use super::*;

impl CudaExecutor<'_> {
    /// Queues the sum that waits.
    pub(super) fn queue_sum(&mut self) -> Result<(), RunError> {
        if std::mem::take(&mut self.is_sum_deferred) {
            self.launch().add(
                self.all_rows(Activation::Residual),
                self.all_rows(Activation::Added),
            )?;
        }
        Ok(())
    }

    /// A norm as the kernels know it; with a `sum`, what is still to be added goes there.
    fn norm_of(
        &self,
        weight: GroupTensor,
        normed: View,
        sum: Option<View>,
    ) -> Result<Norm, RunError> {
        Ok(Norm {
            weight: self.matrix(weight.group, weight.tensor)?,
            eps: self.spec.rms_norm_eps,
            added: sum.map(|sum| (self.all_rows(Activation::Added), sum)),
            normed,
        })
    }

    /// The norm that waits, for a launch that reads Residual. After that launch Residual is where
    /// [`norm_was_queued`](Self::norm_was_queued) says.
    pub(super) fn waiting_norm(&self) -> Result<Option<Norm>, RunError> {
        let Some(weight) = self.deferred_norm else {
            return Ok(None);
        };
        let values = self.tokens * self.sizes.hidden;
        let sum = self
            .is_sum_deferred
            .then(|| self.residual_in(!self.is_residual_swapped).part(0..values));
        self.norm_of(weight, self.all_rows(Activation::Normed), sum)
            .map(Some)
    }

    /// The norm that waited is queued, with what was to be added.
    pub(super) fn norm_was_queued(&mut self) {
        if self.deferred_norm.take().is_some() {
            self.is_residual_swapped ^= std::mem::take(&mut self.is_sum_deferred);
        }
    }

    /// Queues the norm and the router that wait on their own.
    pub(super) fn queue_deferred(&mut self) -> Result<(), RunError> {
        if let Some(weight) = self.deferred_norm.take() {
            self.queue_norm(Activation::Residual, Activation::Normed, weight)?;
        }
        if let Some((linear, group)) = self.deferred_router.take() {
            let router = [(&linear, Activation::Router)];
            self.queue_linears(Activation::Normed, None, &(0..self.tokens), group, &router)?;
        }
        Ok(())
    }

    pub(super) fn queue_norm(
        &mut self,
        from: Activation,
        to: Activation,
        weight: GroupTensor,
    ) -> Result<(), RunError> {
        let x = self.all_rows(from);
        let adds = from == Activation::Residual && self.is_sum_deferred;
        let norm = self.norm_of(weight, self.all_rows(to), adds.then_some(x))?;
        self.launch().norm(x, norm)?;
        self.is_sum_deferred &= !adds;
        Ok(())
    }

    pub(super) fn queue_linears(
        &self,
        from: Activation,
        norm: Option<&Norm>,
        tokens: &Range<usize>,
        group: usize,
        linears: &[(&LinearWeights, Activation)],
    ) -> Result<(), RunError> {
        let x = self.rows(from, tokens);
        let operands = linears
            .iter()
            .map(|(linear, to)| self.operands(linear, group, self.rows(*to, tokens)))
            .collect::<Result<Vec<LinearOperands>, RunError>>()?;
        for same in operands.chunk_by(|a, b| a.0.dtype == b.0.dtype) {
            self.launch().linears(x, norm, same)?;
        }
        Ok(())
    }

    pub(super) fn operands(
        &self,
        linear: &LinearWeights,
        group: usize,
        to: View,
    ) -> Result<LinearOperands, RunError> {
        let bias = linear.bias.map(|b| self.matrix(group, b)).transpose()?;
        Ok((self.matrix(group, linear.weight)?, bias, to))
    }
}

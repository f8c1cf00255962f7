//! Forward passes of few rows that take the place of embeddings, recorded: those of a talker and of
//! its predictor, whose inputs the host makes. Each is a graph of its own, for frames that cannot be
//! one as a whole (see `frames`).

use std::collections::{BTreeMap, BTreeSet};

use super::super::driver::Graph;
use super::*;
use crate::models::decoder::executor::StateAndLogits;

/// What such a pass is, apart from its rows: how many, and the head that its logits are by.
type RowPass = (usize, usize);

/// A pass that was recorded, and the buffer that it leaves Residual in.
struct Recorded {
    graph: Graph,
    is_residual_swapped: bool,
}

/// The passes of a decoder that are graphs.
#[derive(Default)]
pub(super) struct RowSteps {
    /// This pass, where it may be a graph.
    now: Option<RowPass>,
    /// Its kernels are being recorded.
    pub(super) is_recording: bool,
    /// Passes whose kernels were queued one by one before: none of them is loaded any more while
    /// they are recorded.
    warm: BTreeSet<RowPass>,
    ready: BTreeMap<RowPass, Recorded>,
}

impl CudaExecutor<'_> {
    /// The pass that begins is none of rows.
    pub(super) fn forget_rows(&mut self) {
        self.row_steps.now = None;
    }

    /// Ends a recording whose forward pass failed.
    pub(super) fn drop_recording(&mut self) {
        if std::mem::take(&mut self.row_steps.is_recording) {
            drop(self.gpu.end_recording());
        }
    }

    /// A pass of rows that begins, and may be a graph: state of the last row and logits, where it is
    /// one already.
    pub(super) fn run_rows(
        &mut self,
        rows: &[f32],
        head: usize,
        is_observed: bool,
    ) -> Result<Option<StateAndLogits>, RunError> {
        self.drop_recording();
        let tokens = rows.len() / self.sizes.hidden.max(1);
        let may_be_graph = !is_observed && tokens > 0 && Launch::is_few(tokens, self.sizes.hidden);
        let pass = (tokens, head);
        self.row_steps.now = may_be_graph.then_some(pass);
        if !may_be_graph || !self.buffers.has_rotary || !self.row_steps.ready.contains_key(&pass) {
            return Ok(None);
        }
        self.tokens = tokens;
        self.is_residual_swapped = false;
        self.send_positions()?;
        self.upload_residual(rows)?;
        if let Some(recorded) = self.row_steps.ready.get(&pass) {
            recorded.graph.launch()?;
            self.is_residual_swapped = recorded.is_residual_swapped;
        }
        let logits = self.fetch(self.buffers.logits.part(0..self.sizes.vocab))?;
        let last = self.rows(Activation::Residual, &(tokens - 1..tokens));
        Ok(Some((self.download(last)?, logits)))
    }

    /// The rows are on the device: what follows is recorded, where it was queued one by one before
    /// and there is nothing that the host has to decide or load.
    pub(super) fn record_rows(&mut self) -> Result<(), RunError> {
        let Some(pass) = self.row_steps.now.filter(|_| self.has_all_weights()) else {
            return Ok(());
        };
        if !self.row_steps.warm.insert(pass) {
            self.gpu.begin_recording()?;
            self.row_steps.is_recording = true;
        }
        Ok(())
    }

    /// The logits are queued: what was recorded is a graph, and runs.
    pub(super) fn finish_rows(&mut self) -> Result<(), RunError> {
        if !std::mem::take(&mut self.row_steps.is_recording) {
            return Ok(());
        }
        let graph = self.gpu.end_recording()?;
        graph.launch()?;
        if let Some(pass) = self.row_steps.now {
            let recorded = Recorded {
                graph,
                is_residual_swapped: self.is_residual_swapped,
            };
            self.row_steps.ready.insert(pass, recorded);
        }
        Ok(())
    }
}

//! What is copied to and from the device for a forward pass, and steps of one token that are
//! recorded.

use super::super::driver::Graph;
use super::super::{bytes, bytes_mut};
use super::*;
use crate::generate::ArgMax;
use crate::models::decoder::Rotary;
use crate::models::decoder::bind::DecoderWeights;
use crate::models::decoder::executor::DecoderExecutor;

/// What a choice leaves of a token or code: its id, and its logit.
pub(super) const CHOSEN_BYTES: usize = 8;

/// What was chosen, one after the other.
pub(super) fn chosen(bytes: &[u8]) -> impl Iterator<Item = ArgMax> {
    let each = bytes.as_chunks::<CHOSEN_BYTES>().0.iter();
    each.map(|&[a, b, c, d, ref logit @ ..]| ArgMax {
        id: u32::from_le_bytes([a, b, c, d]),
        logit: f32::from_le_bytes(*logit),
    })
}

/// Whether a step of one token is a graph.
pub(super) enum GraphState {
    /// Not all weights can be on the device.
    Never,
    /// So many steps were queued one by one.
    Warm(u32),
    /// This one is recorded.
    Recording,
    /// Each step is one launch.
    Ready(Graph),
}

impl GraphState {
    /// Before the first step.
    pub(super) fn new(has_all_weights: bool) -> Self {
        if has_all_weights {
            Self::Warm(0)
        } else {
            Self::Never
        }
    }
}

impl CudaExecutor<'_> {
    /// Values, widened where they are bf16.
    pub(super) fn download(&self, from: View) -> Result<Vec<f32>, RunError> {
        let mut values = vec![0.0; from.len];
        if from.width == size_of::<f32>() {
            self.gpu.download(bytes_mut(&mut values), from.ptr)?;
        } else {
            let mut narrow = vec![0; from.len * from.width];
            self.gpu.download(&mut narrow, from.ptr)?;
            FloatDtype::BF16.widen(&narrow, &mut values);
        }
        Ok(values)
    }

    /// The experts that the router chose.
    pub(super) fn download_ids(&self, tokens: usize) -> Result<Vec<u32>, RunError> {
        let ids = View::f32(self.buffers.router.ids, tokens * self.sizes.top_k);
        let bits = self.download(ids)?;
        Ok(bits.into_iter().map(f32::to_bits).collect())
    }

    /// Queues the logits of some tokens by one of the heads.
    pub(super) fn queue_logits(
        &self,
        weights: &DecoderWeights<'_>,
        head: usize,
        tokens: Range<usize>,
    ) -> Result<View, RunError> {
        let head = weights.heads.get(head);
        let head = head.ok_or(RunError::Internal("no such head"))?;
        let head = self.matrix(weights.head_group(), head.matrix)?;
        let logits = self.buffers.logits.part(0..tokens.len() * head.rows);
        let x = self.rows(Activation::Residual, &tokens);
        self.launch().linears(x, None, &[(head, None, logits)])?;
        Ok(logits)
    }

    /// Waits for logits, and brings the counts of uses along.
    pub(super) fn fetch(&mut self, logits: View) -> Result<Vec<f32>, RunError> {
        let uses = self.buffers.uses;
        self.gpu.download(&mut self.buffers.host_uses[..], uses)?;
        self.download(logits)
    }

    /// Copies the rotary embedding of all positions, once.
    pub(super) fn send_rotary(
        &mut self,
        rotary: &dyn Fn(Range<usize>) -> Rotary,
    ) -> Result<(), RunError> {
        if self.buffers.has_rotary {
            return Ok(());
        }
        let positions = self.buffers.rotary[0].len / self.sizes.half.max(1);
        let all = rotary(0..positions);
        for (view, values) in self.buffers.rotary.iter().zip([all.cos, all.sin]) {
            self.gpu.upload_now(view.ptr, bytes(&values))?;
        }
        self.buffers.has_rotary = true;
        Ok(())
    }

    /// Copies the positions of this forward pass' batches, and counts its tokens.
    pub(super) fn send_positions(&mut self) -> Result<(), RunError> {
        let (batch, first) = (self.max_batch(), self.positions);
        let starts = (0..self.tokens)
            .step_by(batch)
            .map(|t| u32::try_from(first + t).unwrap_or(u32::MAX));
        let host = &mut self.buffers.host_positions;
        let mut length = 0;
        for (to, start) in host.as_chunks_mut::<4>().0.iter_mut().zip(starts) {
            *to = start.to_le_bytes();
            length += 4;
        }
        // SAFETY: written again only in the next forward pass; every one ends with a wait
        unsafe {
            self.gpu
                .upload(self.buffers.positions, &host[..length], Stream::Work)?;
        }
        self.positions += self.tokens;
        Ok(())
    }

    /// Copies this forward pass' ids.
    pub(super) fn send_ids(&mut self, ids: &[u32]) -> Result<(), RunError> {
        let host = &mut self.buffers.host_ids;
        for (to, id) in host.as_chunks_mut::<4>().0.iter_mut().zip(ids) {
            *to = id.to_le_bytes();
        }
        // SAFETY: as in `send_positions`
        unsafe {
            self.gpu
                .upload(self.buffers.ids, &host[..ids.len() * 4], Stream::Work)?;
        }
        Ok(())
    }

    /// Whether this forward pass can be a graph: one token, and nothing that the host has to decide
    /// or load.
    fn is_step(&self) -> bool {
        self.is_plain
            && self.embedding.as_ref().is_some_and(|e| e.memory.is_some())
            && self.has_all_weights()
    }

    /// Whether all weights but the embedding are on the device.
    pub(super) fn has_all_weights(&self) -> bool {
        self.dense.is_complete() && self.layers.iter().all(|l| l.is_complete || !l.has_experts)
    }

    /// After a first step that was queued the usual way, records the next one.
    pub(super) fn record_step(&mut self) -> Result<(), RunError> {
        self.graph = match std::mem::replace(&mut self.graph, GraphState::Never) {
            GraphState::Warm(steps) if self.is_step() && steps > 0 => {
                self.gpu.begin_recording()?;
                GraphState::Recording
            }
            GraphState::Warm(steps) if self.is_step() => GraphState::Warm(steps + 1),
            other => other,
        };
        Ok(())
    }

    /// Ends a step: queues the choice of the next token, ends the recording, and runs what was
    /// recorded.
    pub(super) fn finish_step(&mut self, logits: View) -> Result<(), RunError> {
        if self.is_step() {
            // also in the step before the recording: no kernel may be loaded during it
            let b = &self.buffers;
            // a step has one id: what follows it is free for its logit
            self.launch()
                .argmax(logits, b.argmax, [b.ids, b.positions, b.ids.offset(4)])?;
        }
        if let GraphState::Recording = self.graph {
            self.graph = GraphState::Never; // unless what follows succeeds
            let graph = self.gpu.end_recording()?;
            graph.launch()?;
            self.graph = GraphState::Ready(graph);
        }
        Ok(())
    }

    /// The logits of a token whose step is a graph; `None` where it is not.
    pub(super) fn run_graph(&mut self, ids: &[u32]) -> Result<Option<Vec<f32>>, RunError> {
        if let GraphState::Recording = self.graph {
            // a forward pass failed while it was recorded
            self.graph = GraphState::Never;
            drop(self.gpu.end_recording());
        }
        if !self.is_plain || !matches!(self.graph, GraphState::Ready(_)) {
            return Ok(None);
        }
        self.tokens = 1;
        self.send_positions()?;
        self.send_ids(ids)?;
        if let GraphState::Ready(graph) = &self.graph {
            graph.launch()?;
        }
        let logits = self.buffers.logits.part(0..self.sizes.vocab);
        self.fetch(logits).map(Some)
    }

    /// Steps whose next token the device chooses; false where steps are no graphs.
    pub(super) fn run_graphs(&mut self, first: u32, next: &mut [ArgMax]) -> Result<bool, RunError> {
        if next.is_empty() || !matches!(self.graph, GraphState::Ready(_)) {
            return Ok(false);
        }
        let bytes = next.len() * CHOSEN_BYTES;
        if self.chosen.as_ref().is_none_or(|c| c.len() < bytes) {
            self.chosen = Some(self.gpu.alloc_host(bytes)?);
        }
        self.tokens = 1;
        self.send_positions()?;
        self.send_ids(&[first])?;
        let (GraphState::Ready(graph), Some(chosen)) = (&self.graph, &mut self.chosen) else {
            return Ok(false);
        };
        for to in chosen.chunks_exact_mut(CHOSEN_BYTES).take(next.len()) {
            graph.launch()?;
            // SAFETY: waited for in the next download; where that is not reached, `chosen` waits
            // before it is freed
            unsafe { self.gpu.download_later(to, self.buffers.ids)? };
        }
        self.gpu
            .download(&mut self.buffers.host_uses[..], self.buffers.uses)?;
        self.positions += next.len() - 1; // and the one that was sent
        let tokens = self::chosen(chosen);
        next.iter_mut()
            .zip(tokens)
            .for_each(|(to, from)| *to = from);
        Ok(true)
    }
}

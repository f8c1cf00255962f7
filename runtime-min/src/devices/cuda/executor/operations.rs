//! The decoder's operations.

use std::borrow::Cow;
use std::time::Instant;

use segpack_formats::numeric::bf16;

use super::super::bytes;
use super::super::launch::{HeadNorms, KvCache, RouterBuffers, activation_bytes};
use super::super::layout::LOGIT_ROWS;
use super::*;
use crate::generate::ArgMax;
use crate::models::decoder::bind::{DecoderWeights, SharedExpert};
use crate::models::decoder::executor::{
    AttentionTensors, DecoderExecutor, ExecutorStats, ExpertLayer, StateAndLogits,
};
use crate::models::decoder::{Logits, Observer, Rotary, Routing};
use crate::weights::SegmentGroup;

impl<'a> DecoderExecutor<'a> for CudaExecutor<'a> {
    fn budget(&self) -> Budget {
        self.budget
    }

    fn demand(&self) -> Demand {
        self.demand
    }

    /// What a decoder has besides its network is its own here, and not the process'.
    fn held(&self) -> u64 {
        let network = self.demand.network.held(self.budget.residency);
        let embedding = self.embedding.as_ref().map_or(0, |e| buffer_len(e.segment));
        self.demand.overhead + network + embedding
    }

    fn stats(&self) -> ExecutorStats {
        let (counts, _) = self.buffers.host_uses.as_chunks::<4>();
        let counts: Vec<u32> = counts.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let per_layer = self.sizes.experts.max(1);
        let mut cache = self.experts.cache.stats();
        cache.hits += counts.iter().map(|n| u64::from(*n)).sum::<u64>();
        ExecutorStats {
            load: self.loader.stats(),
            cache,
            bytes_read: 0,
            bytes_copied: self.bytes_copied,
            waited: self.waited,
            resident_uses: counts.chunks(per_layer).map(<[u32]>::to_vec).collect(),
        }
    }

    fn preload_bytes(&self, weights: &DecoderWeights<'a>) -> u64 {
        let embedding = self.embedding.as_ref().map_or(0, |e| e.segment.raw_length);
        weights.bytes_within(&self.budget) + embedding
    }

    fn preload(
        &mut self,
        weights: &DecoderWeights<'a>,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), RunError> {
        let waited = self.waited;
        let loaded = self.load_all(weights, report);
        self.waited = waited; // no forward pass had to wait for this
        loaded
    }

    fn load_group(&mut self, group: usize, groups: &[SegmentGroup<'a>]) -> Result<(), RunError> {
        let began = Instant::now();
        self.load_dense(group, groups)?;
        self.waited += began.elapsed();
        Ok(())
    }

    fn positions(&self) -> usize {
        self.positions
    }

    fn truncate(&mut self, positions: usize) {
        self.positions = positions; // every forward pass sends its own
    }

    fn forward_recorded(
        &mut self,
        ids: &[u32],
        want: Logits,
        is_observed: bool,
    ) -> Result<Option<Vec<f32>>, RunError> {
        self.forget_rows();
        self.is_plain = ids.len() == 1 && want == Logits::Last && !is_observed;
        if !self.buffers.has_rotary {
            return Ok(None); // it is copied where a step is queued
        }
        self.run_graph(ids)
    }

    fn rows_recorded(
        &mut self,
        rows: &[f32],
        head: usize,
        is_observed: bool,
    ) -> Result<Option<StateAndLogits>, RunError> {
        self.is_plain = false;
        self.run_rows(rows, head, is_observed)
    }

    fn greedy(&mut self, first: u32, next: &mut [ArgMax]) -> Result<bool, RunError> {
        if !self.buffers.has_rotary {
            return Ok(false);
        }
        self.run_graphs(first, next)
    }

    fn forget_rotary(&mut self) {
        self.buffers.has_rotary = false;
    }

    fn begin(
        &mut self,
        tokens: usize,
        rotary: &dyn Fn(Range<usize>) -> Rotary,
    ) -> Result<(), RunError> {
        self.begin_pass(tokens);
        self.send_rotary(rotary)?;
        self.send_positions()
    }

    fn embed(&mut self, ids: &[u32]) -> Result<bool, RunError> {
        let Some(embedding) = &self.embedding else {
            return Ok(false);
        };
        if embedding.memory.is_none() {
            let began = Instant::now();
            self.load_embedding()?;
            self.waited += began.elapsed();
        }
        self.send_ids(ids)?;
        self.record_step()?;
        let Some(Embedding {
            table,
            memory: Some(memory),
            ..
        }) = &self.embedding
        else {
            return Ok(false);
        };
        let table = matrix_at(memory.start(), *table);
        let x = self.all_rows(Activation::Residual);
        self.launch().embed(table, self.buffers.ids, x)?;
        Ok(true)
    }

    fn set_residual(&mut self, values: Vec<f32>) -> Result<(), RunError> {
        self.upload_residual(&values)?;
        self.record_rows()
    }

    fn read(&mut self, activation: Activation) -> Result<Cow<'_, [f32]>, RunError> {
        match activation {
            Activation::Residual => self.queue_sum()?,
            Activation::Normed | Activation::Router => self.queue_deferred()?,
            _ => {}
        }
        Ok(Cow::Owned(self.download(self.all_rows(activation))?))
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn max_batch(&self) -> usize {
        to_usize(self.budget.batch).max(1)
    }

    fn norm(
        &mut self,
        from: Activation,
        to: Activation,
        weight: GroupTensor,
    ) -> Result<(), RunError> {
        self.queue_deferred()?;
        if (from, to) == (Activation::Residual, Activation::Normed) && self.is_few() {
            self.deferred_norm = Some(weight);
            return Ok(());
        }
        self.queue_norm(from, to, weight)
    }

    fn linears(
        &mut self,
        from: Activation,
        tokens: Range<usize>,
        group: usize,
        linears: &[(&LinearWeights, Activation)],
        _: &mut dyn Observer,
    ) -> Result<(), RunError> {
        self.batch_tokens = tokens.len();
        if let [(linear, Activation::Router)] = linears
            && from == Activation::Normed
            && self.is_few()
        {
            self.deferred_router = Some((**linear, group));
            return Ok(());
        }
        // one launch takes the norm along
        let has_one_dtype = linears
            .windows(2)
            .all(|pair| pair[0].0.weight.dtype == pair[1].0.weight.dtype);
        let is_one_launch = tokens.len() == self.tokens && has_one_dtype;
        if from != Activation::Normed || self.deferred_norm.is_none() || !is_one_launch {
            self.queue_deferred()?;
            return self.queue_linears(from, None, &tokens, group, linears);
        }
        let norm = self.waiting_norm()?;
        self.queue_linears(Activation::Residual, norm.as_ref(), &tokens, group, linears)?;
        self.norm_was_queued();
        Ok(())
    }

    fn attention(
        &mut self,
        layer: usize,
        tokens: Range<usize>,
        of: AttentionTensors,
    ) -> Result<(), RunError> {
        let norms = of.qk_norms;
        let [q_norm, k_norm] = norms.ok_or(RunError::Internal("attention without norms"))?;
        let [cos, sin] = self.buffers.rotary;
        let norms = HeadNorms {
            q_norm: self.matrix(q_norm.group, q_norm.tensor)?,
            k_norm: self.matrix(k_norm.group, k_norm.tensor)?,
            cos,
            sin,
            eps: self.spec.rms_norm_eps,
        };
        let cache = self.kv_cache_of(layer, tokens.start / self.max_batch());
        let [q, k, v, out] = [
            Activation::Q,
            Activation::K,
            Activation::V,
            Activation::Attended,
        ]
        .map(|activation| self.rows(activation, &tokens));
        let parts = (self.buffers.parts, self.buffers.partial);
        Ok(self
            .launch()
            .attend([q, k, v], self.sizes.heads, norms, cache, parts, out)?)
    }

    fn silu_mul(&mut self) -> Result<(), RunError> {
        let rows = 0..self.batch_tokens;
        let [gate, up] = [Activation::Gate, Activation::Up].map(|a| self.rows(a, &rows));
        Ok(self.launch().silu_mul(gate, up)?)
    }

    fn add_residual(&mut self) -> Result<(), RunError> {
        self.queue_sum()?;
        self.is_sum_deferred = true;
        Ok(())
    }

    fn route(&mut self, layer: ExpertLayer<'a, '_>) -> Result<(), RunError> {
        let block = self.block(layer.number, DevicePtr::NULL);
        let router = RouterBuffers {
            uses: self.uses(layer.number),
            ..self.buffers.router
        };
        let logits = self.all_rows(Activation::Router);
        let normalise = self.spec.normalizes_top_k();
        if let Some((linear, group)) = self.deferred_router {
            let norm = self.waiting_norm()?;
            let x = self.all_rows(if norm.is_some() {
                Activation::Residual
            } else {
                Activation::Normed
            });
            let operands = self.operands(&linear, group, logits)?;
            let buffers = (router, self.buffers.arrived);
            self.launch()
                .router(x, norm.as_ref(), operands, block, normalise, buffers)?;
            self.norm_was_queued();
            self.deferred_router = None;
        } else {
            self.launch().route(logits, block, normalise, router)?;
        }
        Ok(self.launch().sort(self.tokens, block, router)?)
    }

    fn routing(&mut self) -> Result<Cow<'_, Routing>, RunError> {
        let router = self.buffers.router;
        let view = |ptr, width: usize| View::f32(ptr, self.tokens * width);
        Ok(Cow::Owned(Routing {
            logits: self.download(self.all_rows(Activation::Router))?,
            probabilities: self.download(view(router.probabilities, self.sizes.experts))?,
            ids: self.download_ids(self.tokens)?,
            weights: self.download(view(router.weights, self.sizes.top_k))?,
        }))
    }

    fn experts(
        &mut self,
        layer: ExpertLayer<'a, '_>,
        _: &mut dyn Observer,
    ) -> Result<Vec<(u32, bool)>, RunError> {
        if !self.layers[layer.number].is_complete {
            return self.experts_on_demand(layer);
        }
        let table = self.table_of(layer.number);
        let (b, block) = (&self.buffers, self.block(layer.number, table));
        let [x, added] = [Activation::Normed, Activation::Added].map(|a| self.all_rows(a));
        let between = b.inner.part(0..self.tokens * block.top_k * block.inner);
        if !self
            .launch()
            .all_experts(x, block, b.router, between, added)?
        {
            self.queue_experts(layer.number, table)?;
            self.combine(layer.number)?;
        }
        Ok(Vec::new())
    }

    fn shared_expert(
        &mut self,
        group: usize,
        shared: &SharedExpert,
        observer: &mut dyn Observer,
    ) -> Result<[Vec<f32>; 2], RunError> {
        let buffers = self.shared_rows();
        self.queue_shared_expert(group, shared, buffers)?;
        if !observer.observes() {
            return Ok([Vec::new(), Vec::new()]);
        }
        let router = match shared.router {
            Some(_) => self.download(buffers.router)?,
            None => Vec::new(),
        };
        Ok([router, self.download(buffers.out)?])
    }

    fn logits(&mut self, weights: &DecoderWeights<'a>, want: Logits) -> Result<Vec<f32>, RunError> {
        self.load_group(weights.head_group(), &weights.groups)?;
        let rows = want.of(self.tokens);
        let mut all = Vec::new();
        for from in rows.clone().step_by(LOGIT_ROWS) {
            let logits = self.queue_logits(weights, 0, from..(from + LOGIT_ROWS).min(rows.end))?;
            self.finish_step(logits)?;
            all.extend(self.fetch(logits)?);
        }
        Ok(all)
    }

    fn logits_of(
        &mut self,
        weights: &DecoderWeights<'a>,
        head: usize,
    ) -> Result<Vec<f32>, RunError> {
        self.load_group(weights.head_group(), &weights.groups)?;
        let last = Logits::Last.of(self.tokens);
        let logits = self.queue_logits(weights, head, last)?;
        self.finish_rows()?;
        self.fetch(logits)
    }
}

impl CudaExecutor<'_> {
    /// A forward pass of so many tokens begins: nothing waits, and Residual is in its first buffer.
    pub(super) fn begin_pass(&mut self, tokens: usize) {
        self.tokens = tokens;
        self.is_sum_deferred = false;
        self.is_residual_swapped = false;
        (self.deferred_norm, self.deferred_router) = (None, None);
    }

    /// Residual = these values.
    pub(super) fn upload_residual(&self, values: &[f32]) -> Result<(), RunError> {
        let to = self.all_rows(Activation::Residual).ptr;
        match self.compute {
            Compute::F32 => self.gpu.upload_now(to, bytes(values))?,
            Compute::Bf16 => self.gpu.upload_now(to, &narrow(values))?,
        }
        Ok(())
    }

    /// The cache of a layer, before the batch of this number.
    fn kv_cache_of(&self, layer: usize, batch: usize) -> KvCache {
        let bytes = self.kv_cache.len() / self.layers.len();
        let half = bytes / 2; // of keys
        let values = half / activation_bytes(self.compute);
        let [keys, values] = [0, half].map(|offset| {
            let start = self.kv_cache.start().offset(layer * bytes + offset);
            View::activations(self.compute, start, values)
        });
        KvCache {
            keys,
            values,
            position: self.buffers.positions.offset(batch * 4),
        }
    }
}

/// As bf16, rounded to the nearest, ties to even.
fn narrow(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| bf16::encode(*x)).collect()
}

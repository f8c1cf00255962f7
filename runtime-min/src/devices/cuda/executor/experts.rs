//! Experts of a layer: from the device's slots, else from host memory, else from the pack.

use std::collections::BTreeSet;
use std::time::Instant;

use super::super::driver::Event;
use super::super::launch::ExpertBlock;
use super::super::layout::{MIN_HOST_SLOTS, SharedBuffers};
use super::super::slots::{ENTRY_BYTES, HostSlot, entry};
use super::*;
use crate::models::decoder::bind::{ExpertWeights, SharedExpert};
use crate::models::decoder::executor::ExpertLayer;
use crate::weights::{ExpertKey, Load};

impl<'a> CudaExecutor<'a> {
    /// The experts of a layer, as far as this table lists them.
    pub(super) fn block(&self, number: usize, table: DevicePtr) -> ExpertBlock {
        ExpertBlock {
            table,
            dtype: self.layers[number].dtype,
            experts: self.sizes.experts,
            top_k: self.sizes.top_k,
            hidden: self.sizes.hidden,
            inner: self.sizes.moe,
        }
    }

    /// Where this layer's uses are counted, if the device does it.
    pub(super) fn uses(&self, number: usize) -> DevicePtr {
        if self.layers[number].is_complete {
            self.buffers.uses.offset(number * self.sizes.experts * 4)
        } else {
            DevicePtr::NULL
        }
    }

    /// Queues the experts that a table has, for all tokens of the forward pass.
    pub(super) fn queue_experts(&self, number: usize, table: DevicePtr) -> Result<(), RunError> {
        let b = &self.buffers;
        let (pairs, block) = (self.tokens * self.sizes.top_k, self.block(number, table));
        let between = b.inner.part(0..pairs * block.inner);
        let y = b.y.part(0..pairs * block.hidden);
        let x = self.all_rows(Activation::Normed);
        Ok(self.launch().experts(x, block, b.router, [between, y])?)
    }

    /// Queues the sum of the experts' outputs.
    pub(super) fn combine(&self, number: usize) -> Result<(), RunError> {
        let block = self.block(number, DevicePtr::NULL);
        let values = self.tokens * block.top_k * block.hidden;
        let y = self.buffers.y.part(0..values);
        let added = self.all_rows(Activation::Added);
        Ok(self
            .launch()
            .combine(y, block, self.buffers.router, added)?)
    }

    /// The buffers of the shared expert, for the tokens of this forward pass.
    pub(super) fn shared_rows(&self) -> SharedBuffers {
        let (all, tokens) = (self.buffers.shared, self.tokens);
        let inner = self.sizes.shared.unwrap_or(0);
        SharedBuffers {
            gate: all.gate.part(0..tokens * inner),
            up: all.up.part(0..tokens * inner),
            out: all.out.part(0..tokens * self.sizes.hidden),
            router: all.router.part(0..tokens),
        }
    }

    /// Queues the expert that every token visits, and adds it to Added.
    pub(super) fn queue_shared_expert(
        &self,
        group: usize,
        shared: &SharedExpert,
        to: SharedBuffers,
    ) -> Result<(), RunError> {
        let [x, added] = [Activation::Normed, Activation::Added].map(|a| self.all_rows(a));
        let mut of_x = vec![
            self.operands(&shared.gate, group, to.gate)?,
            self.operands(&shared.up, group, to.up)?,
        ];
        if let Some(router) = &shared.router {
            of_x.push(self.operands(router, group, to.router)?);
        }
        for same in of_x.chunk_by(|a, b| a.0.dtype == b.0.dtype) {
            self.launch().linears(x, None, same)?;
        }
        self.launch().silu_mul(to.gate, to.up)?;
        let down = self.operands(&shared.down, group, to.out)?;
        self.launch().linears(to.gate, None, &[down])?;
        match shared.router {
            Some(_) => self.launch().add_gated(added, to.out, to.router)?,
            None => self.launch().add(added, to.out)?,
        }
        Ok(())
    }

    /// Where a layer's table of all its experts is: gate, up, down.
    pub(super) fn table_of(&self, number: usize) -> DevicePtr {
        let bytes = self.sizes.experts * ENTRY_BYTES;
        self.buffers.tables.offset(number * bytes)
    }

    /// Fills the table of a layer once all its experts are on the device.
    pub(super) fn complete_table(&mut self, layer: ExpertLayer<'a, '_>) -> Result<(), RunError> {
        if self.layers[layer.number].is_complete || !self.experts.has_all {
            return Ok(());
        }
        let number = u32::try_from(layer.number).unwrap_or(u32::MAX);
        let mut table = Vec::new();
        for (expert, weights) in (0..).zip(layer.experts) {
            let Some(slot) = self.experts.cache.get((number, expert)) else {
                return Ok(());
            };
            table.extend(entry(slot.ptr, weights));
        }
        self.gpu.upload_now(self.table_of(layer.number), &table)?;
        self.layers[layer.number].is_complete = true;
        Ok(())
    }

    /// Loads experts into slots of the device, from host memory where they are there. `keep` must
    /// not be evicted.
    pub(super) fn load_experts(
        &mut self,
        number: u32,
        experts: &[ExpertWeights<'a>],
        wanted: &[u32],
        keep: &[u32],
    ) -> Result<(), RunError> {
        self.load_to_host(number, experts, wanted)?;
        let copied = wanted.iter().try_for_each(|expert| {
            self.copy_expert(number, &experts[*expert as usize], *expert, keep)
        });
        // also where one failed: the others are in the cache
        self.experts.copied.record(Stream::Copies)?;
        self.experts.copied.hold(Stream::Work)?;
        copied
    }

    /// Loads those of the wanted experts into host memory that are not there.
    fn load_to_host(
        &mut self,
        number: u32,
        experts: &[ExpertWeights<'a>],
        wanted: &[u32],
    ) -> Result<(), RunError> {
        // slots, as soon as nothing is copied from them any more
        let host = &mut self.experts.host;
        let missing: Vec<u32> = wanted
            .iter()
            .copied()
            .filter(|expert| !host.touch((number, *expert)))
            .collect();
        let is_wanted = |key: ExpertKey| key.0 == number && wanted.contains(&key.1);
        let mut slots: Vec<(u32, HostSlot)> = Vec::new();
        for expert in missing {
            let slot = host.take(is_wanted);
            let slot = slot.ok_or(RunError::Internal("too few expert slots in host memory"))?;
            slot.copied.wait()?;
            slots.push((expert, slot));
        }
        // all of them at once
        let began = Instant::now();
        let mut loads: Vec<Load<'_, '_>> = slots
            .iter_mut()
            .map(|(expert, slot)| Load::new(&experts[*expert as usize].load, &mut slot.memory[..]))
            .collect();
        let loaded = self.loader.load(&mut loads, self.stop);
        drop(loads);
        self.waited += began.elapsed();
        for (expert, slot) in slots {
            match loaded {
                Ok(()) => host.put((number, expert), slot),
                Err(_) => host.put_empty(slot),
            }
        }
        Ok(loaded?)
    }

    /// Queues the copy of one expert from host memory to a slot, as soon as nothing reads that any
    /// more.
    fn copy_expert(
        &mut self,
        number: u32,
        weights: &ExpertWeights<'a>,
        expert: u32,
        keep: &[u32],
    ) -> Result<(), RunError> {
        let is_kept = |key: ExpertKey| key.0 == number && keep.contains(&key.1);
        let slot = self.experts.cache.take(is_kept);
        let slot = slot.ok_or(RunError::Internal("too few expert slots on the GPU"))?;
        let copied = match self.experts.host.get((number, expert)) {
            Some(host) => self.queue_copy(weights, host, slot.ptr, &slot.used),
            None => Err(RunError::Internal("an expert is not in host memory")),
        };
        match copied {
            Ok(()) => self.experts.cache.put((number, expert), slot),
            Err(e) => {
                self.experts.cache.put_empty(slot);
                return Err(e);
            }
        }
        self.bytes_copied += weights.load.data_bytes();
        Ok(())
    }

    /// Queues the copy of an expert to this address, after the last work that reads what is there.
    fn queue_copy(
        &self,
        weights: &ExpertWeights<'a>,
        host: &HostSlot,
        to: DevicePtr,
        used: &Event,
    ) -> Result<(), RunError> {
        let begin = weights.load.data_offset();
        let bytes = &host.memory[begin..begin + to_usize(weights.load.data_bytes())];
        used.hold(Stream::Copies)?;
        // SAFETY: a host slot is written only after a wait for its `copied`, and freed after one
        // for the stream
        unsafe { self.gpu.upload(to.offset(begin), bytes, Stream::Copies)? };
        Ok(host.copied.record(Stream::Copies)?)
    }

    /// Queues the work of experts that are on the device or on their way; `group` counts those of
    /// this layer.
    fn compute_group(
        &mut self,
        layer: ExpertLayer<'a, '_>,
        wanted: &[u32],
        group: usize,
    ) -> Result<(), RunError> {
        let number = u32::try_from(layer.number).unwrap_or(u32::MAX);
        let bytes = layer.experts.len() * ENTRY_BYTES;
        let mut table = vec![0; bytes];
        for expert in wanted {
            let slot = self.experts.cache.get((number, *expert));
            let slot = slot.ok_or(RunError::Internal("an expert is not on the GPU"))?;
            let weights = &layer.experts[*expert as usize];
            table[*expert as usize * ENTRY_BYTES..][..ENTRY_BYTES]
                .copy_from_slice(&entry(slot.ptr, weights));
        }
        let host = &mut self.buffers.host_tables[group * bytes..(group + 1) * bytes];
        host.copy_from_slice(&table);
        // SAFETY: this part is written again only after the next layer's ids were waited for
        unsafe { self.gpu.upload(self.buffers.table, host, Stream::Work)? };
        self.queue_experts(layer.number, self.buffers.table)?;
        for expert in wanted {
            if let Some(slot) = self.experts.cache.get((number, *expert)) {
                slot.used.record(Stream::Work)?;
            }
        }
        Ok(())
    }

    /// Experts that are on the device are computed while others are copied; every one once,
    /// whatever the slots.
    pub(super) fn experts_on_demand(
        &mut self,
        layer: ExpertLayer<'a, '_>,
    ) -> Result<Vec<(u32, bool)>, RunError> {
        let number = u32::try_from(layer.number).unwrap_or(u32::MAX);
        let wanted: BTreeSet<u32> = self.download_ids(self.tokens)?.into_iter().collect();
        let wanted: Vec<u32> = wanted.into_iter().collect();
        self.experts.cache.visit(number, &wanted);
        let uses: Vec<(u32, bool)> = wanted
            .iter()
            .map(|e| (*e, self.experts.cache.touch((number, *e))))
            .collect();
        let [there, missing] = [true, false].map(|hit| {
            let same = uses.iter().filter(|(_, h)| *h == hit);
            same.map(|(e, _)| *e).collect::<Vec<u32>>()
        });
        self.experts.host.visit(number, &missing);
        let mut group = 0;
        if !there.is_empty() {
            self.compute_group(layer, &there, group)?;
            group += 1;
        }
        for wanted in missing.chunks(self.group_size(missing.len())) {
            self.stop.check()?;
            self.load_experts(number, layer.experts, wanted, wanted)?;
            self.compute_group(layer, wanted, group)?;
            group += 1;
        }
        self.combine(layer.number)?;
        self.complete_table(layer)?;
        Ok(uses)
    }

    /// How many of the missing experts are loaded at a time: half of the slots, so that copies need
    /// not wait for the work before.
    fn group_size(&self, missing: usize) -> usize {
        let slots = self
            .experts
            .cache
            .slots()
            .min(self.experts.host.slots())
            .max(1);
        let some = if slots >= 2 * missing {
            missing.max(1)
        } else {
            (slots / 2).max(1)
        };
        some.min(to_usize(MIN_HOST_SLOTS))
    }
}

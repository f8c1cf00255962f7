//! Experts of a layer: from the device's slots, else from host memory, else from the pack.

use std::collections::BTreeSet;
use std::time::Instant;

use super::*;

impl<'a> CudaModel<'a> {
    pub(super) fn layer(&self, number: usize, table: Place) -> Layer {
        Layer {
            table,
            dtype: self.layers[number].dtype,
            experts: self.sizes.experts,
            best: self.sizes.best,
            hidden: self.sizes.hidden,
            inner: self.sizes.moe,
        }
    }

    /// Where this layer's uses are counted, if the device does it.
    pub(super) fn uses(&self, number: usize) -> Place {
        if self.layers[number].is_complete {
            self.buffers.uses.byte(number * self.sizes.experts * 4)
        } else {
            Place::NULL
        }
    }

    /// Queues the experts that a table has, for all tokens of the pass.
    pub(super) fn queue_experts(&self, number: usize, table: Place) -> Result<(), RunError> {
        let b = &self.buffers;
        let (pairs, layer) = (self.tokens * self.sizes.best, self.layer(number, table));
        let places = [
            b.inner.part(0..pairs * layer.inner),
            b.y.part(0..pairs * layer.hidden),
        ];
        Ok(self
            .launch()
            .experts(self.all_rows(Values::Normed), layer, b.choice, places)?)
    }

    pub(super) fn combine(&self, number: usize) -> Result<(), RunError> {
        let layer = self.layer(number, Place::NULL);
        let y = self
            .buffers
            .y
            .part(0..self.tokens * layer.best * layer.hidden);
        Ok(self
            .launch()
            .combine(y, layer, self.buffers.choice, self.all_rows(Values::Added))?)
    }

    /// Where a layer's table of all its experts is: gate, up, down.
    pub(super) fn table_of(&self, number: usize) -> Place {
        self.buffers.tables.byte(number * self.sizes.experts * 24)
    }

    /// Fills the table of a layer once all its experts are on the device.
    pub(super) fn complete_table(&mut self, layer: ExpertLayer<'a, '_>) -> Result<(), RunError> {
        let number = u32::try_from(layer.number).unwrap_or(u32::MAX);
        let there = |e: usize| {
            self.experts
                .cache
                .get((number, u32::try_from(e).unwrap_or(u32::MAX)))
        };
        if self.layers[layer.number].is_complete
            || !self.experts.all
            || !(0..layer.experts.len()).all(|e| there(e).is_some())
        {
            return Ok(());
        }
        let mut table = Vec::new();
        for (e, expert) in layer.experts.iter().enumerate() {
            let Some(slot) = there(e) else { return Ok(()) };
            table.extend(entry(slot.place, expert));
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
        experts: &[Expert<'a>],
        wanted: &[u32],
        keep: &[u32],
    ) -> Result<(), RunError> {
        let mut in_host: Vec<(u32, HostSlot)> = Vec::new();
        let mut missing = Vec::new();
        for expert in wanted {
            if !self.experts.host.touch((number, *expert)) {
                missing.push(*expert);
            }
        }
        for expert in &missing {
            let held = |key: (u32, u32)| key.0 == number && wanted.contains(&key.1);
            let slot = self.experts.host.take(held);
            let slot = slot.ok_or(RunError::Internal("too few expert slots in host memory"))?;
            slot.copied.wait()?;
            in_host.push((*expert, slot));
        }
        let began = Instant::now();
        let loaded = {
            let loads = in_host.iter_mut().map(|(expert, slot)| Load {
                segment: experts[*expert as usize].segment,
                to: &mut slot.memory[..],
            });
            let mut loads: Vec<Load<'_, '_>> = loads.collect();
            self.loader.load(&mut loads, self.stop)
        };
        self.waited += began.elapsed();
        for (expert, slot) in in_host {
            match loaded {
                Ok(()) => self.experts.host.put((number, expert), slot),
                Err(_) => self.experts.host.put_empty(slot),
            }
        }
        loaded?;
        let copy =
            |expert: &u32| self.copy_expert(number, &experts[*expert as usize], *expert, keep);
        let copied = wanted.iter().try_for_each(copy);
        // also where one failed: the others are in the cache
        self.experts.copied.record(Stream::Copies)?;
        self.experts.copied.hold(Stream::Work)?;
        copied
    }

    /// Queues the copy of one expert from host memory to a slot, as soon as nothing reads that any
    /// more.
    fn copy_expert(
        &mut self,
        number: u32,
        of: &Expert<'a>,
        expert: u32,
        keep: &[u32],
    ) -> Result<(), RunError> {
        let kept = |key: (u32, u32)| key.0 == number && keep.contains(&key.1);
        let slot = self.experts.cache.take(kept);
        let slot = slot.ok_or(RunError::Internal("too few expert slots on the GPU"))?;
        let copied = self.experts.host.get((number, expert)).map_or(
            Err(RunError::Internal("an expert is not in host memory")),
            |host| {
                let begin = begins_at(of.segment);
                let bytes = &host.memory[begin..begin + index(of.segment.raw_length)];
                slot.used.hold(Stream::Copies)?;
                // SAFETY: a host slot is written only after a wait for its `copied`, and freed
                // after one for the stream
                unsafe {
                    self.gpu
                        .upload(slot.place.byte(begin), bytes, Stream::Copies)?;
                };
                Ok(host.copied.record(Stream::Copies)?)
            },
        );
        match copied {
            Ok(()) => self.experts.cache.put((number, expert), slot),
            Err(e) => {
                self.experts.cache.put_empty(slot);
                return Err(e);
            }
        }
        self.bytes_copied += of.segment.raw_length;
        Ok(())
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
        let bytes = layer.experts.len() * 24;
        let mut table = vec![0; bytes];
        for expert in wanted {
            let slot = self.experts.cache.get((number, *expert));
            let slot = slot.ok_or(RunError::Internal("an expert is not on the GPU"))?;
            let at = *expert as usize * 24;
            table[at..at + 24]
                .copy_from_slice(&entry(slot.place, &layer.experts[*expert as usize]));
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

    /// Experts that are there are computed while others come; every one once, whatever the slots.
    pub(super) fn experts_on_demand(
        &mut self,
        layer: ExpertLayer<'a, '_>,
    ) -> Result<Vec<(u32, bool)>, RunError> {
        let number = u32::try_from(layer.number).unwrap_or(u32::MAX);
        let wanted: BTreeSet<u32> = self.download_ids(self.tokens)?.into_iter().collect();
        let uses: Vec<(u32, bool)> = wanted
            .iter()
            .map(|e| (*e, self.experts.cache.touch((number, *e))))
            .collect();
        let [there, missing] = [true, false].map(|hit| {
            uses.iter()
                .filter(|(_, h)| *h == hit)
                .map(|(e, _)| *e)
                .collect::<Vec<u32>>()
        });
        let mut group = 0;
        if !there.is_empty() {
            self.compute_group(layer, &there, group)?;
            group += 1;
        }
        let most = self
            .experts
            .cache
            .slots()
            .min(self.experts.host.slots())
            .max(1);
        // half of the slots at a time, so that copies need not wait for the work before
        let some = if most >= 2 * missing.len() {
            missing.len().max(1)
        } else {
            (most / 2).max(1)
        };
        for wanted in missing.chunks(some.min(index(LEAST_HOST_SLOTS))) {
            self.stop.check()?;
            self.load_experts(number, layer.experts, wanted, wanted)?;
            self.compute_group(layer, wanted, group)?;
            group += 1;
        }
        self.combine(layer.number)?;
        self.complete_table(layer)?;
        Ok(uses)
    }
}

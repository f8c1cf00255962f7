//! Dense weights and the embedding: through host memory to the device.

use segpack_manifests::documents::SegmentEntry;

use super::*;
use crate::models::decoder::bind::DecoderWeights;
use crate::models::decoder::executor::ExpertLayer;
use crate::weights::{Load, SegmentGroup, SegmentLoad};

use super::super::layout::MIN_HOST_SLOTS;

/// The embedding, where there is memory for it.
pub(super) struct Embedding<'a> {
    pub(super) segment: &'a SegmentEntry,
    /// Within the memory of the segment.
    pub(super) table: PlacedTensor,
    /// Once it is loaded.
    pub(super) memory: Option<DeviceMemory>,
}

impl<'a> Embedding<'a> {
    pub(super) fn new(segment: &'a SegmentEntry, table: PlacedTensor) -> Self {
        Self {
            segment,
            table,
            memory: None,
        }
    }
}

impl<'a> CudaExecutor<'a> {
    /// Loads a segment to an address of the device, through host memory.
    pub(super) fn load_segment(
        &mut self,
        load: &SegmentLoad<'a>,
        to: DevicePtr,
    ) -> Result<(), RunError> {
        let bytes = to_usize(load.buffer_len());
        if self.staging.as_ref().is_none_or(|s| s.len() < bytes) {
            self.staging = None; // the old one first
            self.staging = Some(self.gpu.alloc_host(bytes)?);
        }
        let Some(staging) = &mut self.staging else {
            return Ok(());
        };
        let mut loads = [Load::new(load, &mut staging[..])];
        self.loader.load(&mut loads, self.stop)?;
        self.gpu.upload_now(to, &staging[..bytes])?;
        self.bytes_copied += load.data_bytes();
        Ok(())
    }

    /// Loads the embedding, if it is to be on the device and is not yet.
    pub(super) fn load_embedding(&mut self) -> Result<(), RunError> {
        let Some(Embedding {
            segment,
            memory: None,
            ..
        }) = self.embedding
        else {
            return Ok(());
        };
        let bytes = to_usize(buffer_len(segment));
        let memory = self.gpu.alloc(bytes, "the embedding")?;
        self.load_segment(&SegmentLoad::plain(segment), memory.start())?;
        if let Some(embedding) = &mut self.embedding {
            embedding.memory = Some(memory);
        }
        Ok(())
    }

    /// Loads a group if it is not on the device.
    pub(super) fn load_dense(
        &mut self,
        number: usize,
        groups: &[SegmentGroup<'a>],
    ) -> Result<(), RunError> {
        if self.dense.find(number).is_some() {
            return Ok(());
        }
        if self.budget.residency == Residency::Streamed {
            self.gpu.wait(Stream::Work)?; // what still reads the last one
        }
        let mut to = self.dense.begin(number);
        for segment in groups[number].segments() {
            self.load_segment(segment, to)?;
            to = to.offset(to_usize(segment.buffer_len()));
        }
        self.dense.end(number);
        if self.dense.is_complete() {
            self.staging = None; // nothing passes through it any more
        }
        Ok(())
    }

    /// Loads the embedding, all groups that stay, and as many experts as have slots.
    pub(super) fn load_all(
        &mut self,
        weights: &DecoderWeights<'a>,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), RunError> {
        self.load_embedding()?;
        report(self.embedding.as_ref().map_or(0, |e| e.segment.raw_length));
        if self.budget.residency == Residency::Resident {
            for (number, group) in weights.groups.iter().enumerate() {
                self.load_dense(number, &weights.groups)?;
                report(group.raw_bytes());
            }
        }
        for (number, layer) in weights.layers.iter().enumerate() {
            if let MlpWeights::Experts { experts, .. } = &layer.mlp {
                let layer = ExpertLayer {
                    number,
                    experts,
                    choice_bias: None,
                };
                self.load_layer_experts(layer, report)?;
            }
        }
        Ok(self.gpu.wait(Stream::Copies)?)
    }

    /// Loads the experts of a layer that are not on the device, as far as slots are free.
    fn load_layer_experts(
        &mut self,
        layer: ExpertLayer<'a, '_>,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), RunError> {
        let number = u32::try_from(layer.number).unwrap_or(u32::MAX);
        let count = u32::try_from(layer.experts.len()).unwrap_or(0);
        let absent: Vec<u32> = (0..count)
            .filter(|e| self.experts.cache.get((number, *e)).is_none())
            .collect();
        let max = self
            .experts
            .host
            .slots()
            .min(to_usize(MIN_HOST_SLOTS))
            .max(1);
        for some in absent.chunks(max) {
            let some = &some[..some.len().min(self.experts.cache.free())];
            self.load_experts(number, layer.experts, some, some)?;
            let bytes = |e: &u32| layer.experts[*e as usize].load.segment.raw_length;
            report(some.iter().map(bytes).sum());
        }
        self.complete_table(layer)
    }
}

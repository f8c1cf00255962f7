//! The memory of an encoder: a bound that is checked before anything is allocated, and weights that
//! are loaded when they are needed.

use segpack_formats::codec::Codec;
use segpack_formats::io::{CancelToken, to_usize};
use segpack_manifests::PackReader;

use crate::error::RunError;
use crate::weights::{Arena, Block, ChecksumPolicy, Load, Loader, SegmentGroup, program_bytes};

/// How an encoder runs.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct EncoderSettings {
    /// Memory budget of the process. `None`: as much as is needed.
    pub memory: Option<u64>,
    /// When the digests of segments are compared.
    pub check: ChecksumPolicy,
    /// Bytes that others hold meanwhile.
    pub taken: u64,
}

/// Where an encoder's weights come from, and how it runs.
#[derive(Debug, Clone, Copy)]
pub struct EncoderContext<'a> {
    /// The pack.
    pub source: &'a PackReader<'a>,
    /// How it runs.
    pub settings: EncoderSettings,
    /// Ends the work.
    pub stop: &'a CancelToken,
}

impl<'a> EncoderContext<'a> {
    /// Starts the threads that load, if the memory allows for it: `groups` that are in memory at
    /// once, and `values` of activations.
    ///
    /// # Errors
    /// `Memory` with the least that works; `Threads`.
    pub(crate) fn open(
        &self,
        groups: &[&SegmentGroup<'_>],
        values: u64,
    ) -> Result<EncoderLoader<'a>, RunError> {
        let mut segments = groups.iter().flat_map(|group| group.segments());
        let is_any_coded = segments.any(|load| load.segment.codec != Codec::Raw);
        let (overhead, manifest) = program_bytes(self.source, is_any_coded);
        let weights = groups.iter().map(|group| group.buffer_len() as u64);
        let parts = [
            overhead,
            manifest,
            self.settings.taken,
            values.saturating_mul(4),
        ];
        let minimum = parts
            .into_iter()
            .chain(weights)
            .fold(0, u64::saturating_add);
        if let Some(memory) = self.settings.memory
            && memory < minimum
        {
            return Err(RunError::Memory { memory, minimum });
        }
        Ok(EncoderLoader {
            loader: Loader::new(self.source, self.settings.check)?,
            stop: self.stop,
        })
    }
}

/// Loads groups of weights.
pub(crate) struct EncoderLoader<'a> {
    loader: Loader<'a>,
    stop: &'a CancelToken,
}

impl EncoderLoader<'_> {
    /// What ends the work.
    pub(crate) fn stop(&self) -> &CancelToken {
        self.stop
    }

    /// Memory for any of these groups.
    pub(crate) fn reserve<'g>(
        groups: impl Iterator<Item = &'g SegmentGroup<'g>>,
    ) -> Result<Block, RunError> {
        let bytes = groups.map(SegmentGroup::buffer_len).max().unwrap_or(0);
        Arena::new(bytes)?.take(bytes)
    }

    /// Loads a group into memory of its own.
    pub(crate) fn load_alone(&self, group: &SegmentGroup<'_>) -> Result<Block, RunError> {
        let mut block = Self::reserve(std::iter::once(group))?;
        self.load(group, &mut block)?;
        Ok(block)
    }

    /// Loads a group into memory that holds it.
    pub(crate) fn load(&self, group: &SegmentGroup<'_>, block: &mut Block) -> Result<(), RunError> {
        let mut rest = &mut block[..];
        let mut loads = Vec::new();
        for segment in group.segments() {
            let (to, after) = rest.split_at_mut(to_usize(segment.buffer_len()).min(rest.len()));
            rest = after;
            loads.push(Load::new(segment, to));
        }
        Ok(self.loader.load(&mut loads, self.stop)?)
    }
}

//! An open model, wherever it runs.

use std::collections::BTreeMap;

use segpack_formats::io::CancelToken;
use segpack_manifests::PackReader;
use segpack_manifests::families::TextFacts;

use super::device::OpenDevice;
use super::{Phase, Reservation, SequenceId, SequenceTokens, SessionProgress};
#[cfg(feature = "cuda")]
use crate::devices::cuda::Cuda;
#[cfg(feature = "cuda")]
use crate::error::ExpertChoiceError;
use crate::error::RunError;
use crate::generate::ArgMax;
use crate::kernels;
use crate::models::decoder::{
    Decoder, ExpertChoice, Logits, LogitsVisitor, MediaInputs, Observer, RunSettings, RunStats,
};
use crate::ops::CpuOps;
use crate::weights::{Budget, Demand};

/// A model with room for its [`Reservation`]: keys and values of the tokens so far, and the weights
/// that are loaded.
pub struct Model<'s> {
    decoder: OnDevice<'s>,
    pub(super) reservation: Reservation,
}

enum OnDevice<'s> {
    Cpu(Box<Decoder<'s, CpuOps>>),
    #[cfg(feature = "cuda")]
    Cuda(Box<Decoder<'s, Cuda>>),
}

/// The same for every device.
macro_rules! on_any {
    ($decoder:expr, $thinker:ident => $what:expr) => {
        on_any!($decoder, $thinker => $what, $what)
    };
    ($decoder:expr, $thinker:ident => $on_cpu:expr, $elsewhere:expr) => {
        match $decoder {
            OnDevice::Cpu($thinker) => $on_cpu,
            #[cfg(feature = "cuda")]
            OnDevice::Cuda($thinker) => $elsewhere,
        }
    };
}

/// A forward pass: the CPU's threads stay awake until it is done.
macro_rules! pass_on_any {
    ($decoder:expr, $thinker:ident => $what:expr) => {
        on_any!($decoder, $thinker => kernels::awake(|| $what), $what)
    };
}

impl<'s> Model<'s> {
    pub(super) fn new(
        reader: &'s PackReader<'s>,
        device: &OpenDevice,
        experts: Option<&ExpertChoice>,
        settings: RunSettings,
        cancel: &'s CancelToken,
    ) -> Result<Self, RunError> {
        let decoder = match device.clone() {
            OpenDevice::Cpu(ops) => {
                let decoder = Decoder::restricted(reader, ops, experts, settings, cancel)?;
                OnDevice::Cpu(Box::new(decoder))
            }
            #[cfg(feature = "cuda")]
            OpenDevice::Cuda(_) if experts.is_some() => {
                return Err(ExpertChoiceError::OnGpu.into());
            }
            #[cfg(feature = "cuda")]
            OpenDevice::Cuda(cuda) => {
                OnDevice::Cuda(Box::new(Decoder::new(reader, cuda, settings, cancel)?))
            }
        };
        let RunSettings {
            positions,
            longest_pass,
            ..
        } = settings;
        Ok(Self {
            decoder,
            reservation: Reservation {
                positions,
                longest_pass,
            },
        })
    }

    /// The model's sizes.
    pub fn facts(&self) -> &TextFacts {
        on_any!(&self.decoder, t => t.facts())
    }

    /// Of each layer whose router is restricted the experts that it may choose: see
    /// [`SessionOptions::experts`](super::SessionOptions::experts).
    pub fn restricted_experts(&self) -> BTreeMap<u32, Vec<u32>> {
        on_any!(&self.decoder, t => t.spec().restricted_experts())
    }

    /// How memory is shared out.
    pub fn budget(&self) -> Budget {
        on_any!(&self.decoder, t => t.budget())
    }

    /// What this model and its reservation need of memory.
    pub fn demand(&self) -> Demand {
        on_any!(&self.decoder, t => t.demand())
    }

    /// Layers that have experts.
    pub fn expert_layers(&self) -> u64 {
        on_any!(&self.decoder, t => t.expert_layers())
    }

    /// Bytes of the head.
    pub fn head_bytes(&self) -> u64 {
        on_any!(&self.decoder, t => t.head_bytes())
    }

    /// Bytes of one weight.
    pub fn bytes_per_weight(&self) -> u64 {
        on_any!(&self.decoder, t => t.bytes_per_weight())
    }

    /// What was done so far.
    pub fn stats(&self) -> RunStats {
        on_any!(&self.decoder, t => t.stats())
    }

    /// Positions in the cache of keys and values.
    pub fn positions(&self) -> usize {
        on_any!(&self.decoder, t => t.positions())
    }

    /// Whether observers see [`Observer::linear_input`].
    pub fn shows_linear_inputs(&self) -> bool {
        self.is_on_cpu()
    }

    pub(super) fn is_on_cpu(&self) -> bool {
        match &self.decoder {
            OnDevice::Cpu(_) => true,
            #[cfg(feature = "cuda")]
            OnDevice::Cuda(_) => false,
        }
    }

    /// The memory of the weights that are loaded; empty on a GPU, which has its own.
    pub fn resident_memory(&self) -> Vec<&[u8]> {
        match &self.decoder {
            OnDevice::Cpu(thinker) => thinker.resident_memory(),
            #[cfg(feature = "cuda")]
            OnDevice::Cuda(_) => Vec::new(),
        }
    }

    /// Bytes that [`preload`](Self::preload) loads where nothing is loaded yet.
    pub fn preload_bytes(&self) -> u64 {
        on_any!(&self.decoder, t => t.preload_bytes())
    }

    /// Loads the dense weights and as many experts as fit, which otherwise happens on first use.
    ///
    /// # Errors
    /// Damage of the pack; `Interrupted`.
    pub fn preload(&mut self) -> Result<(), RunError> {
        self.preload_with_progress(&())
    }

    /// As [`preload`](Self::preload), with progress in bytes.
    ///
    /// # Errors
    /// As [`preload`](Self::preload).
    pub fn preload_with_progress(
        &mut self,
        progress: &dyn SessionProgress,
    ) -> Result<(), RunError> {
        progress.begin(Phase::Preload {
            bytes: self.preload_bytes(),
        });
        let mut advance = |bytes| progress.advance(bytes);
        let loaded = on_any!(&mut self.decoder, t => t.preload(&mut advance));
        progress.end();
        loaded
    }

    /// Forgets all tokens, keeps all weights.
    pub fn reset(&mut self) {
        on_any!(&mut self.decoder, t => t.reset());
    }

    /// Forgets the tokens from this position on; the next ones take their places.
    pub fn truncate(&mut self, positions: usize) {
        on_any!(&mut self.decoder, t => t.truncate(positions));
    }

    /// Runs these tokens after those before; returns logits, `[vocab]` or `[tokens, vocab]`.
    ///
    /// # Errors
    /// `TokenId`, `TooLong`; damage of the pack.
    pub fn forward(
        &mut self,
        ids: &[u32],
        want: Logits,
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>, RunError> {
        pass_on_any!(&mut self.decoder, t => t.forward(ids, want, observer))
    }

    /// Runs these tokens after those before, and hands the logits of each, `[vocab]`, to `visit`
    /// with its number from 0. At most `block` tokens' logits are in memory at a time, beside the
    /// memory budget, which has room for those of one.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and what `visit` returns.
    pub fn forward_each<E: From<RunError>>(
        &mut self,
        ids: &[u32],
        block: usize,
        visit: &mut LogitsVisitor<'_, E>,
    ) -> Result<(), E> {
        pass_on_any!(&mut self.decoder, t => t.forward_each(ids, block, visit))
    }

    /// Opens a sequence with room for so many positions, of a model that was opened for several
    /// ([`Session::batch_model`](super::Session::batch_model)).
    ///
    /// # Errors
    /// `TooLong` where fewer positions are free; `OutOfMemory`; `Internal` of another model.
    pub fn open_sequence(&mut self, positions: usize) -> Result<SequenceId, RunError> {
        on_any!(&mut self.decoder, t => t.open_sequence(positions))
    }

    /// Forgets a sequence; its positions are free again.
    pub fn close_sequence(&mut self, sequence: SequenceId) {
        on_any!(&mut self.decoder, t => t.close_sequence(sequence));
    }

    /// Runs tokens of several sequences in one forward pass, which reads each weight once. Returns
    /// the logits of each, `[vocab]` or `[tokens, vocab]`: the same bits as if it were run alone.
    /// `observers` has one for each of them, or is empty.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); `Internal` where a sequence is not open, comes twice or has no
    /// tokens.
    pub fn forward_batch(
        &mut self,
        parts: &[SequenceTokens<'_>],
        observers: &mut [&mut dyn Observer],
    ) -> Result<Vec<Vec<f32>>, RunError> {
        pass_on_any!(&mut self.decoder, t => t.forward_batch(parts, observers))
    }

    /// Runs a prompt with media, which has to be the first of its text: see
    /// [`Session::encode`](super::Session::encode).
    ///
    /// # Errors
    /// As [`forward`](Self::forward); `Media` where it is not the first.
    pub fn forward_media(
        &mut self,
        ids: &[u32],
        media: &MediaInputs,
        want: Logits,
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>, RunError> {
        pass_on_any!(&mut self.decoder, t => t.forward_media(ids, media, want, observer))
    }

    /// Runs `first`, then each token that follows but the last, chosen by the device itself: see
    /// [`Decoder::greedy`]. False, and nothing is run, where it cannot choose.
    ///
    /// # Errors
    /// `TokenId`, `TooLong`; what the driver says.
    pub fn greedy(&mut self, first: u32, next: &mut [ArgMax]) -> Result<bool, RunError> {
        on_any!(&mut self.decoder, t => t.greedy(first, next))
    }
}

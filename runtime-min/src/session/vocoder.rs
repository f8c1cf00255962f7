//! Sound of codes: on the CPU, whatever the decoder runs on.

use segpack_manifests::PackModel;
use segpack_manifests::families::VocoderFacts;

use super::{Session, SessionError};
use crate::error::{RunError, Unsuitable};
use crate::models::code2wav::{Chunks, Vocoder, VocoderObserver};
use crate::models::encoder::{EncoderContext, EncoderSettings};
use crate::ops::CpuOps;
use crate::tensor::Compute;

impl Session<'_> {
    /// What the model wants to know of its vocoder.
    ///
    /// # Errors
    /// `Run` where `config.json` cannot be used, or the model has no vocoder.
    pub fn vocoder_facts(&self) -> Result<VocoderFacts, SessionError> {
        let model = PackModel::read(self.pack).map_err(RunError::from)?;
        let facts = model.vocoder().map_err(RunError::from)?;
        let missing = || Unsuitable::NoComponent {
            component: "code2wav".to_owned(),
        };
        Ok(facts.ok_or_else(|| RunError::from(missing()))?)
    }

    /// The vocoder, where others hold so many bytes of the memory budget. No weight is read.
    ///
    /// # Errors
    /// `Run`: the model has no vocoder, or the pack does not hold all of it.
    pub fn vocoder(&self, taken: u64) -> Result<Vocoder<'_>, SessionError> {
        let context = EncoderContext {
            source: &self.reader,
            settings: EncoderSettings {
                memory: self.memory,
                check: self.options.check,
                taken,
            },
            stop: self.cancel,
        };
        Ok(Vocoder::new(context, &self.vocoder_facts()?)?)
    }

    /// Sound of codes, `[frames, groups]`, in f32: `sink` takes samples in [-1, 1] as they come.
    ///
    /// # Errors
    /// Those of `sink`; `Run`: the codes are not the model's, the memory budget is too small, or the
    /// pack is damaged.
    pub fn vocode<E: From<SessionError> + Send>(
        &self,
        vocoder: &Vocoder<'_>,
        codes: &[u32],
        chunks: Chunks,
        observer: &mut (dyn VocoderObserver + Send),
        sink: &mut (dyn FnMut(&[f32]) -> Result<(), E> + Send),
    ) -> Result<(), E> {
        let kernels = self.encoder_ops()?.kernels();
        let ops = CpuOps::with_kernels(Compute::F32, kernels);
        self.install(|| {
            vocoder
                .decode(&ops, codes, chunks, observer, &mut |wave| {
                    sink(wave).map_err(Failure::Sink)
                })
                .map_err(Failure::into_inner)
        })
    }
}

/// What ended a decoding.
enum Failure<E> {
    Run(RunError),
    Sink(E),
}

impl<E> From<RunError> for Failure<E> {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

impl<E: From<SessionError>> Failure<E> {
    fn into_inner(self) -> E {
        match self {
            Self::Run(error) => SessionError::from(error).into(),
            Self::Sink(error) => error,
        }
    }
}

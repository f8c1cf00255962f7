//! Why a session could not be opened, or did not generate.

use segpack_formats::FormatError;

use crate::error::RunError;
use crate::generate::{GenerateError, LogitsError, SamplingError};
use crate::kernels::UnknownKernels;
use crate::processing::PromptError;

/// Why a session could not be opened, or did not generate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The model cannot be run, or failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The environment names kernels that this processor cannot run.
    #[error(transparent)]
    Kernels(#[from] UnknownKernels),
    /// The prompt cannot be made token ids.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// Sampling settings are out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The prompt cannot be continued, or the model's logits cannot be used.
    #[error(transparent)]
    Generate(GenerateError<RunError>),
    /// The candidates or the rank at a step cannot be determined.
    #[error(transparent)]
    Logits(#[from] LogitsError),
    /// A prompt of a batch cannot be continued.
    #[error("prompt {} of the batch cannot be continued", number + 1)]
    InBatch {
        /// Its number, from 0.
        number: usize,
        /// Why.
        source: Box<SessionError>,
    },
    /// GPU memory was limited for a model that runs on the CPU.
    #[error("a GPU memory budget was given, but the model runs on the CPU")]
    DeviceMemoryOnCpu,
    /// Drafts on a GPU.
    #[error("drafts are checked on the CPU alone, and the model runs on a GPU")]
    DraftsOnGpu,
    /// A GPU was requested, and this build cannot use any.
    #[error("cannot use GPU {number}: built without the feature `cuda`")]
    WithoutCuda {
        /// Its number.
        number: u32,
    },
    /// The first token of a continuation has no logit.
    #[error("token id {id} of {text:?} is not in the embedding")]
    ContinuationOutside {
        /// The continuation.
        text: String,
        /// Its first token.
        id: u32,
    },
}

impl From<FormatError> for SessionError {
    fn from(e: FormatError) -> Self {
        Self::Run(e.into())
    }
}

impl From<GenerateError<RunError>> for SessionError {
    fn from(e: GenerateError<RunError>) -> Self {
        match e {
            GenerateError::Model(e) => Self::Run(e),
            e => Self::Generate(e),
        }
    }
}

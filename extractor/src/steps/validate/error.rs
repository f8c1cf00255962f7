//! Why a pack cannot be compared with a reference.

use std::path::PathBuf;

use segpack_formats::numeric::NotFloat;
use segpack_manifests::families::{ConfigError, FamilyName, UnstackError};
use segpack_runtime_min::processing::audio::AudioError;
use segpack_runtime_min::processing::image::ImageError;
use segpack_runtime_min::processing::media::SettingsError;

#[cfg(feature = "remote")]
use super::server::ServerError;

/// Why a pack cannot be compared with a reference.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ValidateError {
    /// The checkpoint to calculate from has no configuration.
    #[error("{}: has no config.json that can be read", checkpoint.display())]
    NoConfig {
        /// Its folder.
        checkpoint: PathBuf,
    },
    /// No family claims the checkpoint to calculate from.
    #[error("{}: its model is of no known family", checkpoint.display())]
    UnknownFamily {
        /// Its folder.
        checkpoint: PathBuf,
    },
    /// The checkpoint to calculate from is of a family that this is not written for.
    #[error(
        "{}: family \"{family}\" is compared with recorded traces alone, only Qwen3-MoE's decoder \
         with a checkpoint",
        checkpoint.display()
    )]
    OtherFamily {
        /// Its folder.
        checkpoint: PathBuf,
        /// Its family.
        family: FamilyName,
    },
    /// The checkpoint's configuration describes no text model.
    #[error("{}: config.json cannot be used", checkpoint.display())]
    Config {
        /// Its folder.
        checkpoint: PathBuf,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// A stack of experts is not as its family's rule says.
    #[error("{}: a tensor cannot be split into experts", checkpoint.display())]
    Unstack {
        /// Its folder.
        checkpoint: PathBuf,
        /// Which, and why.
        source: UnstackError,
    },
    /// The checkpoint has no text model where one may be.
    #[error("{}: has no embed_tokens.weight of a text model", checkpoint.display())]
    NoTextModel {
        /// Its folder.
        checkpoint: PathBuf,
    },
    /// The calculation needs a tensor that the checkpoint does not have.
    #[error("{}: has no tensor {name:?}", checkpoint.display())]
    NoSuchTensor {
        /// Its folder.
        checkpoint: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor is of a dtype that is not calculated with.
    #[error("{}: tensor {name:?} cannot be calculated with", checkpoint.display())]
    Dtype {
        /// Its folder.
        checkpoint: PathBuf,
        /// The tensor.
        name: String,
        /// Its dtype.
        source: NotFloat,
    },
    /// What the pack keeps of its checkpoint's processor cannot be used.
    #[error("what the pack keeps of its checkpoint's processor cannot be used")]
    Processor {
        /// Why.
        source: SettingsError,
    },
    /// The samples of a trace have no spectrogram.
    #[error("the samples of the trace cannot be processed")]
    Audio {
        /// Why.
        source: AudioError,
    },
    /// The pictures of a trace cannot be made patches.
    #[error("the pictures of the trace cannot be processed")]
    Picture {
        /// Why.
        source: ImageError,
    },
    /// A tensor of a trace has another width than the model.
    #[error("{}: tensor {tensor:?} has not {wanted} columns, as the model has", trace.display())]
    TraceShape {
        /// The trace.
        trace: PathBuf,
        /// The tensor.
        tensor: String,
        /// The model's.
        wanted: usize,
    },
    /// A server cannot be judged.
    #[cfg(feature = "remote")]
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A tolerance was given for logits, whose gate is fixed.
    #[error("{}: the trace has logits, whose tolerance is fixed", trace.display())]
    FixedTolerance {
        /// The trace.
        trace: PathBuf,
    },
}

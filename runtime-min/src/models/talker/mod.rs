//! From a text to codes of sound: the talker, which chooses the first code of every frame, and the
//! predictor, which adds the residual ones.
//!
//! The equations are those of transformers 5.23, modeling_qwen3_omni_moe.py
//! (`Qwen3OmniMoeTalkerForConditionalGeneration`, `Qwen3OmniMoeTalkerCodePredictorModel`,
//! `_get_talker_user_parts`, `_get_talker_assistant_parts`). Both networks are
//! [`Decoder`](super::decoder::Decoder)s: the talker's layers have a shared expert beside the routed
//! ones, the predictor has dense layers and an embedding and a head for each residual group.

mod device;
mod frame;
mod projection;
mod prompt;
mod scores;
mod thinker_embedding;

pub(crate) use self::device::SpeechBackend;
#[cfg(feature = "cuda")]
pub(crate) use self::device::{FrameInput, FrameOutput};
pub(crate) use self::frame::Talker;
pub use self::frame::{ForcedFrame, SpeechObserver, TalkerPrompt};
pub(crate) use self::projection::Projections;
pub use self::prompt::{AcceptedStates, Row, TalkerScript};
pub(crate) use self::scores::CodeSampler;
pub use self::scores::{CodeSampling, SpeechSampling};
pub(crate) use self::thinker_embedding::ThinkerEmbedding;
pub use crate::error::SpeechError;

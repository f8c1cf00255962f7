//! A decoder of transformer layers with dense MLPs or experts, straight from a pack: the text
//! thinker, and plain Qwen3-MoE models.
//!
//! * [`DecoderSpec`]: its numbers, apart from any weights.
//! * `bind`: its tensors, found in a pack and placed in memory.
//! * `executor`: the operations that a device implements: the CPU, or a GPU.
//! * [`Decoder`]: the forward pass, written once in these operations.

mod batch;
#[cfg(feature = "cuda")]
mod beyond_qwen3;
pub(crate) mod bind;
pub(crate) mod executor;
mod forward;
mod media;
mod observer;
mod restricted;
mod spec;
mod stats;

pub use self::batch::{SequenceId, SequenceTokens, Span};
pub use self::executor::Backend;
pub(crate) use self::forward::DecoderModel;
pub use self::forward::{Decoder, LogitsVisitor};
pub use self::media::MediaInputs;
pub use self::observer::{LinearInput, Observer, Routing, Unobserved};
pub use self::restricted::ExpertChoice;
pub(crate) use self::spec::Ends;
pub use self::spec::{DecoderSpec, Rotary, text_decoder};
pub use self::stats::{LayerUses, Logits, RunSettings, RunStats};

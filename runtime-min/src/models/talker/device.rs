//! What a device may do for speech beside running both decoders.

use crate::error::RunError;
use crate::generate::{ArgMax, Draws};
use crate::models::decoder::{Backend, Decoder};

/// What a frame is made of, apart from the decoders.
#[cfg_attr(
    not(feature = "cuda"),
    expect(dead_code, reason = "a CPU makes no frames as a whole")
)]
pub(crate) struct FrameInput<'f> {
    /// `[hidden]`, the talker's last state after its final norm.
    pub(crate) state: &'f [f32],
    /// The first code.
    pub(crate) first: u32,
    /// What the residual codes are chosen by.
    pub(crate) draws: &'f Draws,
    /// `[hidden]`, the text that is added to what the talker takes in next.
    pub(crate) text: &'f [f32],
}

/// A frame, and the talker's step after it.
pub(crate) struct FrameOutput {
    /// `[groups - 1]`, the residual codes with their logits; see [`ArgMax::token`].
    pub(crate) residual: Vec<ArgMax>,
    /// `[hidden]`, the talker's next state after its final norm.
    pub(crate) state: Vec<f32>,
    /// `[vocabulary]`, the logits of the next first code.
    pub(crate) logits: Vec<f32>,
}

/// Somewhere a talker and its predictor can run.
pub(crate) trait SpeechBackend: Backend {
    /// Loads what whole frames take besides the weights of both, where they are loaded and there is
    /// memory for it.
    ///
    /// # Errors
    /// Damage of the pack; what the driver says.
    fn prepare_frames<'a>(
        _talker: &mut Decoder<'a, Self>,
        _predictor: &mut Decoder<'a, Self>,
    ) -> Result<(), RunError> {
        Ok(())
    }

    /// Makes a frame and runs the talker's step after it as a whole: the device chooses the residual
    /// codes, to the code as the host would. `None`, and nothing is run, where it cannot do that now.
    ///
    /// # Errors
    /// `TokenId`, `TooLong`; damage of the pack; what the driver says.
    fn frame<'a>(
        _talker: &mut Decoder<'a, Self>,
        _predictor: &mut Decoder<'a, Self>,
        _input: &FrameInput<'_>,
    ) -> Result<Option<FrameOutput>, RunError> {
        Ok(None)
    }
}

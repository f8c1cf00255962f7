//! Why codes cannot be made sound.

/// Codes that cannot be made sound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VocoderError {
    /// Not a whole number of frames.
    #[error("{seen} codes are no whole number of frames of {groups} codes")]
    Groups {
        /// Codes.
        seen: usize,
        /// Codes of a frame.
        groups: usize,
    },
    /// There is nothing to decode.
    #[error("there is no frame of codes")]
    NoFrames,
    /// So few frames that nothing is left when their end is cut.
    #[error("{frames} frames are too few: this model makes no sample of them")]
    NoSamples {
        /// Frames.
        frames: usize,
    },
    /// A code that the codebook does not have.
    #[error(
        "code {code} of group {group}, frame {frame}, is not in the codebook of {codebook} codes"
    )]
    Code {
        /// The code.
        code: u32,
        /// Its group, from 0.
        group: usize,
        /// Its frame, from 0.
        frame: usize,
        /// Codes of a codebook.
        codebook: usize,
    },
}

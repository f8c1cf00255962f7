//! Audio files to log-mel spectrograms, as the official processor makes them (cargo feature
//! `audio`).
//!
//! [`decode`] gives the samples of one file, [`features`] the spectrograms of all clips of a prompt:
//! clips are padded to the longest before, so that their ends depend on each other.

mod decode;
mod error;
mod mel;
mod resample;

pub use decode::{MAX_SECONDS, decode};
pub use error::AudioError;
pub use mel::{features, valid_frames};
pub use symphonia::core::io::MediaSource as AudioSource;

/// Tokens that so many frames become: the encoder halves chunks of 100 frames three times, rounding
/// up; an empty one has none.
pub fn tokens(frames: usize) -> usize {
    const CHUNK: usize = 100;
    const TOKENS_OF_A_CHUNK: usize = 13;
    let halved = |n: usize| n.div_ceil(2);
    frames / CHUNK * TOKENS_OF_A_CHUNK + halved(halved(halved(frames % CHUNK)))
}

#[cfg(test)]
mod tests;

//! Audio files to log-mel spectrograms, as the official processor makes them (cargo feature
//! `audio`).
//!
//! [`decode`] gives the samples of one file, [`features`] the spectrograms of all clips of a prompt:
//! clips are padded to the longest before, so that their ends depend on each other.

mod clip;
mod codec;
mod decode;
mod error;
mod flac;
mod mel;
mod resample;

#[cfg(feature = "video")]
pub(crate) use decode::is_aac;
pub use decode::{MAX_SECONDS, decode, decode_until};
pub use error::AudioError;
pub use mel::{features, features_until, valid_frames};
pub use resample::resample;
pub use symphonia::core::io::MediaSource as AudioSource;

#[cfg(test)]
mod tests;

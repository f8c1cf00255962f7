use std::io;

use symphonia::core::errors::Error;

use super::MAX_SECONDS;

/// Why a file cannot be made samples, or samples no features. Which file it is, is for whoever
/// opened it to say.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AudioError {
    /// It cannot be read.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// No format that is known.
    #[error(
        "not an audio file of a known format (WAV, FLAC, MP3, Ogg Vorbis, M4A, AAC, AIFF, CAF are)"
    )]
    NotAudio,
    /// A known format, damaged.
    #[error("the header is damaged")]
    Container(#[source] Error),
    /// A container without sound.
    #[error("there is no sound in it")]
    NoTrack,
    /// A container with sound of a kind that cannot be decoded.
    #[error("its codec, {codec}, cannot be decoded: convert it to FLAC or WAV")]
    Codec {
        /// The codec's name or number.
        codec: String,
        /// What the decoder says.
        #[source]
        source: Error,
    },
    /// A codec that another program decodes, which is not there.
    #[error(
        "its codec, {codec}, is decoded by the program ffmpeg, which cannot be started: install the package ffmpeg, or convert it to FLAC or WAV"
    )]
    NoProgram {
        /// The codec's name or number.
        codec: String,
    },
    /// A sampling rate that no recording has.
    #[error("it has {rate} samples per second, supported are 1,000 to 384,000")]
    Rate {
        /// Samples per second.
        rate: u32,
    },
    /// More channels than a recording has, or none.
    #[error("it has {channels} channels, supported are 1 to 64")]
    Channels {
        /// Their number.
        channels: usize,
    },
    /// Rate or channels are others than at the beginning.
    #[error("sampling rate or channels change at sample {frame}: convert it to FLAC or WAV")]
    Changes {
        /// Samples of each channel before.
        frame: u64,
    },
    /// Something between the samples cannot be decoded.
    #[error("damaged after sample {frame}")]
    Damaged {
        /// Samples of each channel before.
        frame: u64,
        /// What the decoder says.
        #[source]
        source: Error,
    },
    /// There are fewer samples than the header counts.
    #[error(
        "truncated or damaged: {frames} of the {promised} samples that its header counts can be decoded"
    )]
    Truncated {
        /// Samples of each channel.
        frames: u64,
        /// Those of the header.
        promised: u64,
    },
    /// Samples are not those of the checksum in the file.
    #[error("damaged: its samples do not have the MD5 digest that the file records")]
    Digest,
    /// A decoder could not cope with it.
    #[error("damaged: its decoder gave up on it")]
    Decoder,
    /// Endless pieces of a stream without samples.
    #[error("damaged: pieces without samples do not end")]
    NoSamples,
    /// NaN, or infinite.
    #[error("sample {frame} is not a finite number")]
    NotFinite {
        /// Its place in its channel.
        frame: u64,
    },
    /// Longer than any model takes.
    #[error("longer than {} hours, which is the limit", MAX_SECONDS / 3600)]
    TooLong,
    /// It was asked to stop.
    #[error("interrupted")]
    Stopped,
    /// The longest clip of a prompt is shorter than half a frame, which cannot be mirrored.
    #[error(
        "{} {samples} samples at the model's rate: the longest clip of a prompt needs at least {minimum}",
        if *.clips == 1 { "it has".to_owned() } else { format!("the longest of {clips} clips has") }
    )]
    TooShort {
        /// Clips of the prompt.
        clips: usize,
        /// Samples of the longest.
        samples: usize,
        /// Samples that are enough.
        minimum: usize,
    },
}

//! What is asked of symphonia: which container a file is, its packets, and who decodes them.

use std::io;

use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader};
use symphonia::core::io::{MediaSource, MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;

use super::AudioError;

/// The container of a file.
pub(super) fn probe(source: Box<dyn MediaSource>) -> Result<Box<dyn FormatReader>, Error> {
    let stream = MediaSourceStream::new(source, MediaSourceStreamOptions::default());
    symphonia::default::get_probe().probe(
        &Hint::new(),
        stream,
        FormatOptions::default(),
        MetadataOptions::default(),
    )
}

/// What `probe` says of a file without any format that it knows is an end of the file.
pub(super) fn not_audio(error: Error) -> AudioError {
    match error {
        Error::IoError(e) if e.kind() == io::ErrorKind::UnexpectedEof => AudioError::NotAudio,
        Error::IoError(e) if e.raw_os_error().is_some() => AudioError::Read(e),
        Error::Unsupported(_) => AudioError::NotAudio,
        other => AudioError::Container(other),
    }
}

/// Opens a decoder, which compares the digest of the samples with that of the file where `verify`
/// is set and there is one.
pub(super) fn open_decoder(
    parameters: &AudioCodecParameters,
    verify: bool,
) -> Result<Box<dyn AudioDecoder>, AudioError> {
    let registry = symphonia::default::get_codecs();
    let options = AudioDecoderOptions::default().verify(verify);
    registry
        .make_audio_decoder(parameters, &options)
        .map_err(|source| AudioError::Codec {
            codec: codec_name(parameters),
            source,
        })
}

/// The name of a codec that is met and cannot be decoded.
fn codec_name(parameters: &AudioCodecParameters) -> String {
    use symphonia::core::codecs::audio::well_known::CODEC_ID_OPUS;
    match parameters.codec {
        CODEC_ID_OPUS => "Opus".to_owned(),
        other => other.to_string(),
    }
}

/// The next packet of any track; `None`: there are no more.
pub(super) fn next_packet(format: &mut dyn FormatReader) -> Result<Option<Packet>, Error> {
    match format.next_packet() {
        // whether that is too early is for whoever knows the length
        Err(Error::IoError(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        packet => packet,
    }
}

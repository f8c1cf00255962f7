//! From a file to the samples of one channel at the rate that the model takes.
//!
//! As transformers' `load_audio` with soundfile and soxr, which is `librosa.load`: integers are
//! divided by 2^(bits − 1), channels are averaged in float32, then the rate is changed. Containers
//! and codecs are symphonia's.

use std::panic::{AssertUnwindSafe, catch_unwind};

use segpack_formats::io::CancelToken;
use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::AudioCodecParameters;
use symphonia::core::formats::{FormatReader, Track, TrackType};
use symphonia::core::io::MediaSource;

use super::AudioError;
use super::clip::Clip;
use super::codec::{next_packet, not_audio, open_decoder, probe};
use super::flac;

/// Longest clip in seconds: beyond the context of any model that takes 13 tokens a second.
pub const MAX_SECONDS: u32 = 2 * 60 * 60;
/// Pieces that a damaged stream may have without a single sample.
const MAX_EMPTY_PACKETS: u32 = 1 << 16;

/// Decodes a file: one channel, `rate` samples per second.
///
/// # Errors
/// Where it is no audio, in a format that cannot be decoded, damaged, or longer than
/// [`MAX_SECONDS`].
pub fn decode(source: Box<dyn MediaSource>, rate: u32) -> Result<Vec<f32>, AudioError> {
    decode_until(source, rate, &CancelToken::default())
}

/// Whether a file's sound is AAC: what its container cuts off at both ends is known to FFmpeg alone.
#[cfg(feature = "video")]
pub(crate) fn is_aac(source: Box<dyn MediaSource>) -> bool {
    use symphonia::core::codecs::audio::well_known::CODEC_ID_AAC;
    let codec = catch_unwind(AssertUnwindSafe(|| {
        let format = probe(source).ok()?;
        match &format.default_track(TrackType::Audio)?.codec_params {
            Some(CodecParameters::Audio(parameters)) => Some(parameters.codec),
            _ => None,
        }
    }));
    matches!(codec, Ok(Some(CODEC_ID_AAC)))
}

/// As [`decode`]; ends soon after `cancel` is requested.
///
/// # Errors
/// As [`decode`]; `Stopped`.
pub fn decode_until(
    source: Box<dyn MediaSource>,
    rate: u32,
    cancel: &CancelToken,
) -> Result<Vec<f32>, AudioError> {
    decode_at_most(source, rate, MAX_SECONDS, cancel)
}

pub(super) fn decode_at_most(
    source: Box<dyn MediaSource>,
    rate: u32,
    seconds: u32,
    cancel: &CancelToken,
) -> Result<Vec<f32>, AudioError> {
    // the decoders are not ours: one that panics on hostile bytes fails for this file alone, and
    // nothing of it is used afterwards
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        decode_unguarded(source, rate, seconds, cancel)
    }));
    decoded.unwrap_or(Err(AudioError::Decoder))
}

fn decode_unguarded(
    source: Box<dyn MediaSource>,
    rate: u32,
    seconds: u32,
    cancel: &CancelToken,
) -> Result<Vec<f32>, AudioError> {
    let mut format = probe(source).map_err(not_audio)?;
    let track = format
        .default_track(TrackType::Audio)
        .ok_or(AudioError::NoTrack)?
        .clone();
    let parameters = match &track.codec_params {
        Some(CodecParameters::Audio(parameters)) => parameters,
        _ => return Err(AudioError::NoTrack),
    };
    let mut clip = Clip::new(rate, seconds);
    let (reader, id) = (format.as_mut(), track.id);
    let has_digest = match flac::is_native(reader, parameters) {
        true => flac::decode_track(reader, parameters, id, &mut clip, cancel)?,
        false => decode_track(reader, parameters, id, &mut clip, cancel)?,
    };
    let frames = clip.frames;
    if let Some(promised) = exact_length(format.as_ref(), &track)
        && frames < promised
    {
        return Err(AudioError::Truncated { frames, promised });
    }
    if has_digest == Some(false) {
        return Err(AudioError::Digest);
    }
    Ok(clip.finish())
}

/// The number of samples of each channel, where the container has an exact one.
fn exact_length(format: &dyn FormatReader, track: &Track) -> Option<u64> {
    let exact = ["wave", "flac", "aiff", "caf"];
    let is_exact = exact.contains(&format.format_info().short_name);
    track.num_frames.filter(|_| is_exact)
}

/// Decodes a track on this thread. Gives whether its samples have the digest that the file records;
/// `None`: it records none.
fn decode_track(
    format: &mut dyn FormatReader,
    parameters: &AudioCodecParameters,
    track: u32,
    clip: &mut Clip,
    cancel: &CancelToken,
) -> Result<Option<bool>, AudioError> {
    let mut decoder = open_decoder(parameters, true)?;
    let mut empty = 0;
    let plain = plain_16_bit(decoder.codec_params());
    loop {
        if cancel.is_cancelled() {
            return Err(AudioError::Stopped);
        }
        let packet = next_packet(format).map_err(|e| clip.damaged(e))?;
        let Some(packet) = packet else {
            return Ok(decoder.finalize().verify_ok);
        };
        if packet.track_id != track {
            continue;
        }
        let before = clip.frames;
        match plain {
            Some(shape) => clip.push_16_bit(&packet.data, shape)?,
            None => {
                let decoded = decoder.decode(&packet).map_err(|e| clip.damaged(e))?;
                clip.push(&decoded)?;
            }
        }
        empty = if clip.frames == before { empty + 1 } else { 0 };
        if empty > MAX_EMPTY_PACKETS {
            return Err(AudioError::NoSamples);
        }
    }
}

/// Rate and channels of the samples that most files have, signed integers of 16 bits in
/// little-endian order, which need no decoder. `None`: others.
fn plain_16_bit(parameters: &AudioCodecParameters) -> Option<(u32, usize)> {
    use symphonia::core::codecs::audio::well_known::CODEC_ID_PCM_S16LE;
    let widths = [parameters.bits_per_sample, parameters.bits_per_coded_sample];
    let is_plain =
        parameters.codec == CODEC_ID_PCM_S16LE && widths.iter().flatten().all(|width| *width == 16);
    let shape = (
        parameters.sample_rate?,
        parameters.channels.as_ref()?.count(),
    );
    is_plain.then_some(shape)
}

//! From a file to the samples of one channel at the rate that the model takes.
//!
//! As transformers' `load_audio` with soundfile and soxr, which is `librosa.load`: integers are
//! divided by 2^(bits − 1), channels are averaged in float32, then the rate is changed. Containers
//! and codecs are symphonia's.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use segpack_formats::io::CancelToken;
use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, Track, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;

use super::AudioError;
use super::resample::{Resampler, resampled_length};

/// Longest clip in seconds: beyond the context of any model that takes 13 tokens a second.
pub const MAX_SECONDS: u32 = 2 * 60 * 60;
/// Channels of a clip.
const MAX_CHANNELS: usize = 64;
/// Sampling rates of files, in samples per second.
const RATES: std::ops::RangeInclusive<u32> = 1_000..=384_000;
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

fn probe(source: Box<dyn MediaSource>) -> Result<Box<dyn FormatReader>, Error> {
    let stream = MediaSourceStream::new(source, MediaSourceStreamOptions::default());
    symphonia::default::get_probe().probe(
        &Hint::new(),
        stream,
        FormatOptions::default(),
        MetadataOptions::default(),
    )
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
    let mut decoder = open_decoder(parameters)?;
    let mut clip = Clip::new(rate, seconds);
    decode_track(format.as_mut(), decoder.as_mut(), &track, &mut clip, cancel)?;
    let frames = clip.frames;
    if let Some(promised) = exact_length(format.as_ref(), &track)
        && frames < promised
    {
        return Err(AudioError::Truncated { frames, promised });
    }
    if decoder.finalize().verify_ok == Some(false) {
        return Err(AudioError::Digest);
    }
    Ok(clip.finish())
}

/// What `probe` says of a file without any format that it knows is an end of the file.
fn not_audio(error: Error) -> AudioError {
    match error {
        Error::IoError(e) if e.kind() == io::ErrorKind::UnexpectedEof => AudioError::NotAudio,
        Error::IoError(e) if e.raw_os_error().is_some() => AudioError::Read(e),
        Error::Unsupported(_) => AudioError::NotAudio,
        other => AudioError::Container(other),
    }
}

fn open_decoder(parameters: &AudioCodecParameters) -> Result<Box<dyn AudioDecoder>, AudioError> {
    let registry = symphonia::default::get_codecs();
    // a file says of FLAC what its samples have to be
    let options = AudioDecoderOptions::default().verify(true);
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

/// The number of samples of each channel, where the container has an exact one.
fn exact_length(format: &dyn FormatReader, track: &Track) -> Option<u64> {
    let exact = ["wave", "flac", "aiff", "caf"];
    let is_exact = exact.contains(&format.format_info().short_name);
    track.num_frames.filter(|_| is_exact)
}

fn decode_track(
    format: &mut dyn FormatReader,
    decoder: &mut dyn AudioDecoder,
    track: &Track,
    clip: &mut Clip,
    cancel: &CancelToken,
) -> Result<(), AudioError> {
    let mut empty = 0;
    loop {
        if cancel.is_cancelled() {
            return Err(AudioError::Stopped);
        }
        let packet = match format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => return Ok(()),
            // whether that is too early is for whoever knows the length
            Err(Error::IoError(e)) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(clip.damaged(e)),
        };
        if packet.track_id != track.id {
            continue;
        }
        let before = clip.frames;
        let decoded = decoder.decode(&packet).map_err(|e| clip.damaged(e))?;
        clip.push(&decoded)?;
        empty = if clip.frames == before { empty + 1 } else { 0 };
        if empty > MAX_EMPTY_PACKETS {
            return Err(AudioError::NoSamples);
        }
    }
}

/// A clip that is being decoded.
struct Clip {
    rate: u32,
    /// Most samples of the result.
    limit: u64,
    /// Sampling rate and channels of the file, known from its first samples on.
    shape: Option<(u32, usize)>,
    /// Samples of each channel until now.
    frames: u64,
    interleaved: Vec<f32>,
    mono: Vec<f32>,
    /// `None`: the file has the rate that is wanted.
    resampler: Option<Resampler>,
    samples: Vec<f32>,
}

impl Clip {
    fn new(rate: u32, seconds: u32) -> Self {
        Self {
            rate,
            limit: u64::from(seconds) * u64::from(rate),
            shape: None,
            frames: 0,
            interleaved: Vec::new(),
            mono: Vec::new(),
            resampler: None,
            samples: Vec::new(),
        }
    }

    fn push(&mut self, decoded: &GenericAudioBufferRef<'_>) -> Result<(), AudioError> {
        if decoded.frames() == 0 {
            return Ok(());
        }
        let shape = (decoded.spec().rate(), decoded.spec().channels().count());
        self.accept(shape)?;
        let (from, channels) = shape;
        let frames = self.frames + decoded.frames() as u64;
        if resampled_length(frames, from, self.rate) > self.limit {
            return Err(AudioError::TooLong);
        }

        decoded.copy_to_vec_interleaved(&mut self.interleaved);
        let frames_now = self.interleaved.chunks_exact(channels);
        self.mono.clear();
        self.mono.extend(frames_now.map(mean));
        if let Some(place) = self.mono.iter().position(|sample| !sample.is_finite()) {
            let frame = self.frames + place as u64;
            return Err(AudioError::NotFinite { frame });
        }
        match &mut self.resampler {
            Some(resampler) => resampler.push(&self.mono, &mut self.samples),
            None => self.samples.extend_from_slice(&self.mono),
        }
        self.frames = frames;
        Ok(())
    }

    /// Compares rate and channels with those of the samples before.
    fn accept(&mut self, shape: (u32, usize)) -> Result<(), AudioError> {
        let (rate, channels) = shape;
        match self.shape {
            Some(before) if before == shape => return Ok(()),
            Some(_) => return Err(AudioError::Changes { frame: self.frames }),
            None => {}
        }
        if !RATES.contains(&rate) {
            return Err(AudioError::Rate { rate });
        }
        if channels == 0 || channels > MAX_CHANNELS {
            return Err(AudioError::Channels { channels });
        }
        self.shape = Some(shape);
        self.resampler = (rate != self.rate).then(|| Resampler::new(rate, self.rate));
        Ok(())
    }

    /// Decoders report as errors of reading what they miss in the bytes that they have; those of the
    /// system have a number.
    fn damaged(&self, source: Error) -> AudioError {
        match source {
            Error::IoError(e) if e.raw_os_error().is_some() => AudioError::Read(e),
            source => AudioError::Damaged {
                frame: self.frames,
                source,
            },
        }
    }

    fn finish(mut self) -> Vec<f32> {
        if let Some(resampler) = self.resampler.take() {
            resampler.finish(&mut self.samples);
        }
        self.samples
    }
}

/// The mean of a frame's channels as numpy computes it: in float32, from eight channels on in eight
/// partial sums.
#[expect(clippy::cast_precision_loss, reason = "a number of channels")]
fn mean(frame: &[f32]) -> f32 {
    let sum = match frame {
        [one] => return *one,
        few if few.len() < 8 => few.iter().fold(0.0, |sum, sample| sum + sample),
        many => {
            let chunks = many.chunks_exact(8);
            let rest = chunks.remainder();
            let mut r = [0.0f32; 8];
            for chunk in chunks {
                r.iter_mut().zip(chunk).for_each(|(r, sample)| *r += sample);
            }
            let sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
            rest.iter().fold(sum, |sum, sample| sum + sample)
        }
    };
    sum / frame.len() as f32
}

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
use symphonia::core::packet::Packet;

use super::AudioError;
use super::flac;
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

/// What `probe` says of a file without any format that it knows is an end of the file.
fn not_audio(error: Error) -> AudioError {
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

/// The number of samples of each channel, where the container has an exact one.
fn exact_length(format: &dyn FormatReader, track: &Track) -> Option<u64> {
    let exact = ["wave", "flac", "aiff", "caf"];
    let is_exact = exact.contains(&format.format_info().short_name);
    track.num_frames.filter(|_| is_exact)
}

/// The next packet of any track; `None`: there are no more.
pub(super) fn next_packet(format: &mut dyn FormatReader) -> Result<Option<Packet>, Error> {
    match format.next_packet() {
        // whether that is too early is for whoever knows the length
        Err(Error::IoError(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        packet => packet,
    }
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

/// A clip that is being decoded.
pub(super) struct Clip {
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
        let shape = (decoded.spec().rate(), decoded.spec().channels().count());
        self.begin_piece(decoded.frames(), shape)?;
        decoded.copy_to_vec_interleaved(&mut self.interleaved);
        self.end_piece(shape.1)
    }

    /// Takes little-endian integers; a last frame that is not whole is left out.
    fn push_16_bit(&mut self, bytes: &[u8], shape: (u32, usize)) -> Result<(), AudioError> {
        let samples = bytes.as_chunks::<2>().0;
        let frames = samples.len() / shape.1.max(1);
        self.begin_piece(frames, shape)?;
        let samples = samples[..frames * shape.1].iter();
        let samples = samples.map(|pair| f32::from(i16::from_le_bytes(*pair)) / 32768.0);
        self.interleaved.clear();
        self.interleaved.extend(samples);
        self.end_piece(shape.1)
    }

    /// Whether so many more frames can be taken.
    fn begin_piece(&mut self, frames: usize, shape: (u32, usize)) -> Result<(), AudioError> {
        if frames == 0 {
            return Ok(());
        }
        self.accept(shape)?;
        let frames = self.frames + frames as u64;
        match resampled_length(frames, shape.0, self.rate) > self.limit {
            true => Err(AudioError::TooLong),
            false => Ok(()),
        }
    }

    /// Takes what is in `interleaved`.
    fn end_piece(&mut self, channels: usize) -> Result<(), AudioError> {
        self.mono.clear();
        match channels {
            0 => {}
            // as `mean` has it; the processor takes several frames at once
            2 => {
                let pairs = self.interleaved.as_chunks::<2>().0.iter();
                self.mono
                    .extend(pairs.map(|[left, right]| (left + right) / 2.0));
            }
            _ => {
                let frames = self.interleaved.chunks_exact(channels);
                self.mono.extend(frames.map(mean));
            }
        }
        if let Some(place) = self.mono.iter().position(|sample| !sample.is_finite()) {
            let frame = self.frames + place as u64;
            return Err(AudioError::NotFinite { frame });
        }
        let mono = std::mem::take(&mut self.mono);
        self.resample(&mono);
        self.mono = mono;
        Ok(())
    }

    /// Takes the means of all channels, which are finite, of a file of this shape.
    pub(super) fn push_mono(
        &mut self,
        mono: &[f32],
        shape: (u32, usize),
    ) -> Result<(), AudioError> {
        self.begin_piece(mono.len(), shape)?;
        self.resample(mono);
        Ok(())
    }

    fn resample(&mut self, mono: &[f32]) {
        match &mut self.resampler {
            Some(resampler) => resampler.push(mono, &mut self.samples),
            None => self.samples.extend_from_slice(mono),
        }
        self.frames += mono.len() as u64;
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
    pub(super) fn damaged(&self, source: Error) -> AudioError {
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
pub(super) fn mean(frame: &[f32]) -> f32 {
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

//! The samples of a file on their way to one channel at the rate that the model takes.

use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::errors::Error;

use super::AudioError;
use super::resample::{Resampler, resampled_length};

/// Channels of a clip.
const MAX_CHANNELS: usize = 64;
/// Sampling rates of files, in samples per second.
const RATES: std::ops::RangeInclusive<u32> = 1_000..=384_000;

/// A clip that is being decoded.
pub(super) struct Clip {
    rate: u32,
    /// Most samples of the result.
    limit: u64,
    /// Sampling rate and channels of the file, known from its first samples on.
    shape: Option<(u32, usize)>,
    /// Samples of each channel until now.
    pub(super) frames: u64,
    interleaved: Vec<f32>,
    mono: Vec<f32>,
    /// `None`: the file has the rate that is wanted.
    resampler: Option<Resampler>,
    samples: Vec<f32>,
}

impl Clip {
    pub(super) fn new(rate: u32, seconds: u32) -> Self {
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

    pub(super) fn push(&mut self, decoded: &GenericAudioBufferRef<'_>) -> Result<(), AudioError> {
        let shape = (decoded.spec().rate(), decoded.spec().channels().count());
        self.begin_piece(decoded.frames(), shape)?;
        decoded.copy_to_vec_interleaved(&mut self.interleaved);
        self.end_piece(shape.1)
    }

    /// Takes little-endian integers; a last frame that is not whole is left out.
    pub(super) fn push_16_bit(
        &mut self,
        bytes: &[u8],
        shape: (u32, usize),
    ) -> Result<(), AudioError> {
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

    pub(super) fn finish(mut self) -> Vec<f32> {
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

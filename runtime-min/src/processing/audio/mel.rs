//! Log-mel spectrograms as `WhisperFeatureExtractor` makes them with `padding=True,
//! truncation=False`, which is what the processor of Qwen3-Omni asks for.

use std::f64::consts::TAU;
use std::sync::Arc;

use rayon::prelude::*;
use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};
use segpack_formats::io::CancelToken;

use super::AudioError;
use crate::processing::AudioFeatures;
use crate::processing::media::AudioSettings;

/// Below this a bin counts as silent.
const FLOOR: f64 = 1e-10;
/// Powers of ten below the loudest bin of a clip at which bins are cut off.
const RANGE: f32 = 8.0;
/// Frames that one thread computes at a time.
const BLOCK: usize = 128;

/// The spectrograms of all clips of a prompt.
///
/// All clips are padded with silence to the longest; that one is mirrored at its end. The last frame
/// of the padded clips is dropped, then each clip is cut off eight powers of ten below its loudest
/// bin.
///
/// # Errors
/// `TooShort` where the longest clip cannot be mirrored. Shorter ones may have any length, even 0.
pub fn features<C: AsRef<[f32]> + Sync>(
    clips: &[C],
    settings: &AudioSettings,
) -> Result<AudioFeatures, AudioError> {
    features_until(clips, settings, &CancelToken::default())
}

/// As [`features`]; ends soon after `cancel` is requested.
///
/// # Errors
/// As [`features`]; `Stopped`.
pub fn features_until<C: AsRef<[f32]> + Sync>(
    clips: &[C],
    settings: &AudioSettings,
    cancel: &CancelToken,
) -> Result<AudioFeatures, AudioError> {
    let longest = clips.iter().map(|c| c.as_ref().len()).max().unwrap_or(0);
    let half = settings.fft_length / 2;
    if !clips.is_empty() && longest <= half {
        return Err(AudioError::TooShort {
            clips: clips.len(),
            samples: longest,
            minimum: half + 1,
        });
    }
    let lengths: Vec<usize> = clips
        .iter()
        .map(|clip| valid_frames(clip.as_ref().len(), longest, settings.hop_length))
        .collect();
    let spectrogram = Spectrogram::new(settings);
    let total = lengths.iter().sum();
    let mut values = vec![0.0; settings.mel_bins * total];
    let mut first = 0;
    for (clip, &frames) in clips.iter().zip(&lengths) {
        let padded = Padded {
            samples: clip.as_ref(),
            length: longest,
            margin: half,
        };
        spectrogram.write_clip(&padded, frames, &mut values[first..], total, cancel)?;
        first += frames;
    }
    Ok(AudioFeatures {
        mel_bins: settings.mel_bins,
        values,
        lengths,
    })
}

/// Frames of a clip of `samples` that are padded to `longest`: rounded down for the longest clip, up
/// for others.
pub fn valid_frames(samples: usize, longest: usize, hop: usize) -> usize {
    samples.div_ceil(hop).min(longest / hop)
}

/// A clip, silence up to a length, and mirror images of `margin` samples on both sides.
struct Padded<'c> {
    samples: &'c [f32],
    length: usize,
    margin: usize,
}

impl Padded<'_> {
    fn sample(&self, place: usize) -> f32 {
        self.samples.get(place).copied().unwrap_or(0.0)
    }

    /// Copies samples from `begin` on, counted with the left mirror image.
    fn copy(&self, begin: usize, to: &mut [f64]) {
        if let Some(first) = begin.checked_sub(self.margin)
            && let Some(inner) = self.samples.get(first..first + to.len())
        {
            to.iter_mut()
                .zip(inner)
                .for_each(|(to, s)| *to = f64::from(*s));
            return;
        }
        for (place, to) in (begin..).zip(to) {
            let mirrored = match place.checked_sub(self.margin) {
                None => self.margin - place,
                Some(place) if place < self.length => place,
                Some(place) => (2 * self.length).saturating_sub(place + 2),
            };
            *to = f64::from(self.sample(mirrored));
        }
    }
}

/// What is computed once for all clips.
struct Spectrogram {
    hop: usize,
    window: Vec<f64>,
    transform: Arc<dyn RealToComplex<f64>>,
    /// Bin by bin of the mel scale.
    bank: Vec<Triangle>,
}

/// Weights of a bin of the mel scale, from the bin `first` of the transform on.
struct Triangle {
    first: usize,
    weights: Vec<f64>,
}

impl Spectrogram {
    fn new(settings: &AudioSettings) -> Self {
        let length = settings.fft_length;
        // periodic: as if the window had one sample more
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let hann = |n: usize| 0.5 - 0.5 * (TAU * n as f64 / length as f64).cos();
        Self {
            hop: settings.hop_length,
            // torch's window is of float32
            window: (0..length).map(|n| f64::from(narrow(hann(n)))).collect(),
            transform: RealFftPlanner::new().plan_fft_forward(length),
            bank: mel_bank(settings),
        }
    }

    /// Writes the first `frames` frames of a clip: `[mel_bins, frames]` in rows of `stride`.
    fn write_clip(
        &self,
        clip: &Padded<'_>,
        frames: usize,
        to: &mut [f32],
        stride: usize,
        cancel: &CancelToken,
    ) -> Result<(), AudioError> {
        if frames == 0 {
            return Ok(());
        }
        // frames after the valid ones count for the loudest bin, as far as they are not silent
        let all = clip.length / self.hop;
        let sounding = (clip.samples.len() + clip.margin).div_ceil(self.hop);
        let computed = sounding.clamp(frames, all.max(frames));
        let mut loudest = narrow(FLOOR.log10());
        let group = BLOCK * rayon::current_num_threads();
        for begin in (0..computed).step_by(group) {
            if cancel.is_cancelled() {
                return Err(AudioError::Stopped);
            }
            let end = (begin + group).min(computed);
            let blocks: Vec<Vec<f32>> = (begin..end)
                .into_par_iter()
                .step_by(BLOCK)
                .map(|first| self.block(clip, first..(first + BLOCK).min(end)))
                .collect();
            let rows = blocks.iter().flat_map(|b| b.chunks_exact(self.bank.len()));
            for (frame, row) in (begin..).zip(rows) {
                loudest = row.iter().fold(loudest, |most, value| most.max(*value));
                if frame < frames {
                    for (bin, value) in row.iter().enumerate() {
                        to[bin * stride + frame] = *value;
                    }
                }
            }
        }
        for row in to.chunks_mut(stride).take(self.bank.len()) {
            for value in &mut row[..frames] {
                *value = (value.max(loudest - RANGE) + 4.0) / 4.0;
            }
        }
        Ok(())
    }

    /// Logarithms of some frames: `[frames, mel_bins]`.
    fn block(&self, clip: &Padded<'_>, frames: std::ops::Range<usize>) -> Vec<f32> {
        let mut samples = self.transform.make_input_vec();
        let mut spectrum = self.transform.make_output_vec();
        let mut scratch = self.transform.make_scratch_vec();
        let mut powers = vec![0.0; spectrum.len()];
        let mut values = Vec::with_capacity(frames.len() * self.bank.len());
        for frame in frames {
            clip.copy(frame * self.hop, &mut samples);
            let windowed = samples.iter_mut().zip(&self.window);
            windowed.for_each(|(sample, weight)| *sample *= weight);
            let transformed =
                self.transform
                    .process_with_scratch(&mut samples, &mut spectrum, &mut scratch);
            debug_assert!(transformed.is_ok(), "the buffers are the transform's own");
            let norms = spectrum.iter().map(Complex::norm_sqr);
            powers.iter_mut().zip(norms).for_each(|(p, norm)| *p = norm);
            values.extend(self.bank.iter().map(|triangle| triangle.power(&powers)));
        }
        values.iter_mut().for_each(|value| *value = log10(*value));
        values
    }
}

impl Triangle {
    /// What is in the bin, and [`FLOOR`] at least.
    fn power(&self, powers: &[f64]) -> f32 {
        let products = self.weights.iter().zip(&powers[self.first..]);
        let power: f64 = products.map(|(weight, power)| weight * power).sum();
        narrow(power.max(FLOOR))
    }
}

/// The logarithm to base 10 of a positive normal number, within 6e-7 of it where it is below 12: in
/// operations that the compiler makes vectors of, unlike calls of the C library.
///
/// ln(m) for m in [√½, √2) is the polynomial of Cephes' `logf` (Moshier, 1992).
fn log10(x: f32) -> f32 {
    /// Bits of √½.
    const LOWEST: u32 = 0x3f35_04f3;
    const MANTISSA: u32 = 0x007f_ffff;
    const COEFFICIENTS: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_7e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let above = x.to_bits().wrapping_sub(LOWEST);
    #[expect(
        clippy::cast_possible_wrap,
        clippy::cast_precision_loss,
        reason = "-127 to 127"
    )]
    let exponent = (above as i32 >> 23) as f32;
    let m = f32::from_bits((above & MANTISSA) + LOWEST) - 1.0;
    let cube = COEFFICIENTS.iter().fold(0.0, |sum, c| sum * m + c) * m * m * m;
    let ln = m + (cube - 0.5 * m * m);
    let ten = f64::from(exponent) * std::f64::consts::LOG10_2;
    narrow(ten + f64::from(ln) * std::f64::consts::LOG10_E)
}

/// Triangles on the mel scale from 0 Hz to half the rate, each of the same area
/// (`mel_filter_bank` with `norm` and `mel_scale` "slaney").
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn mel_bank(settings: &AudioSettings) -> Vec<Triangle> {
    let nyquist = f64::from(settings.sampling_rate / 2);
    let bins = settings.fft_length / 2 + 1;
    let top = hertz_to_mel(MAX_HERTZ);
    let edges: Vec<f64> = (0..settings.mel_bins + 2)
        .map(|n| mel_to_hertz(top * n as f64 / (settings.mel_bins + 1) as f64))
        .collect();
    let frequency = |bin: usize| nyquist * bin as f64 / (bins - 1) as f64;
    let weight = |[left, centre, right]: [f64; 3], bin| {
        let rising = (frequency(bin) - left) / (centre - left);
        let falling = (right - frequency(bin)) / (right - centre);
        // the official bank is of float32
        f64::from(narrow(rising.min(falling).max(0.0) * 2.0 / (right - left)))
    };
    edges
        .windows(3)
        .map(|edges| {
            let corners = [edges[0], edges[1], edges[2]];
            let first = (0..bins).find(|bin| weight(corners, *bin) > 0.0);
            let first = first.unwrap_or(bins);
            let weights = (first..bins).map(|bin| weight(corners, bin));
            Triangle {
                first,
                weights: weights.take_while(|weight| *weight > 0.0).collect(),
            }
        })
        .collect()
}

/// Upper end of the mel scale (`WhisperFeatureExtractor.__init__`), whatever the rate.
const MAX_HERTZ: f64 = 8000.0;
/// Where the scale turns from linear to logarithmic.
const TURN_HERTZ: f64 = 1000.0;
const TURN_MEL: f64 = 15.0;

fn hertz_to_mel(hertz: f64) -> f64 {
    match hertz < TURN_HERTZ {
        true => 3.0 * hertz / 200.0,
        false => TURN_MEL + (hertz / TURN_HERTZ).ln() * 27.0 / 6.4f64.ln(),
    }
}

fn mel_to_hertz(mel: f64) -> f64 {
    match mel < TURN_MEL {
        true => 200.0 * mel / 3.0,
        false => TURN_HERTZ * ((mel - TURN_MEL) * 6.4f64.ln() / 27.0).exp(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the official extractor's results are of float32"
)]
fn narrow(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_within_their_bound() {
        let mut worst = 0.0f64;
        // all exponents that a bin can have, and steps that are no power of two
        for n in 0..4_000_000u32 {
            let x = f32::from_bits(1e-10f32.to_bits() + n * 151);
            let error = (f64::from(log10(x)) - f64::from(x).log10()).abs();
            worst = worst.max(error);
        }
        assert!(log10(f32::from_bits(1e-10f32.to_bits() + 4_000_000 * 151)) > 11.0);
        assert!(worst < 6e-7, "{worst}");
        assert_eq!(log10(1.0), 0.0);
    }
}

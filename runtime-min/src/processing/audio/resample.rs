//! From one sampling rate to another: a windowed sinc with the design figures of soxr's quality HQ,
//! which `librosa.load` uses.
//!
//! Linear phase without delay: output sample `i` is at time `i / to`. The pass band is flat up to
//! [`PASS_BAND`] of the lower Nyquist frequency, everything from that frequency on is
//! [`ATTENUATION`] dB down. Before and after the clip there is silence.

use std::f64::consts::PI;

use crate::kernels::{Dot, Kernels};

/// End of the pass band, in units of the lower Nyquist frequency.
const PASS_BAND: f64 = 0.9136;
/// Attenuation of the stop band in dB: 20 bits.
const ATTENUATION: f64 = 120.4;
/// Coefficients of exact phases that are kept; more, and they are interpolated.
const MAX_COEFFICIENTS: usize = 4 << 20;
/// Phases that are interpolated between. The error is below (π / 1024)² / 8, which is −118 dB.
const INTERPOLATED_PHASES: usize = 1024;
/// Consumed samples that are kept until they are worth moving the rest.
const HISTORY: usize = 1 << 16;

/// A resampler of one channel, fed piece by piece.
pub(super) struct Resampler {
    from: u64,
    to: u64,
    filter: Filter,
    /// Input samples that are still needed, the first of them at `begin`.
    history: Vec<f32>,
    /// Input sample that `history` begins with; negative: silence before the clip.
    begin: i64,
    input: u64,
    output: u64,
}

impl Resampler {
    /// From `from` to `to` samples per second, both greater than 0.
    pub(super) fn new(from: u32, to: u32) -> Self {
        let filter = Filter::new(from, to);
        let before = filter.half;
        let divisor = gcd(u64::from(from), u64::from(to));
        Self {
            from: u64::from(from) / divisor,
            to: u64::from(to) / divisor,
            history: vec![0.0; before],
            begin: -i64::try_from(before).unwrap_or(0),
            filter,
            input: 0,
            output: 0,
        }
    }

    /// Takes the next samples, and appends what can be computed.
    pub(super) fn push(&mut self, samples: &[f32], output: &mut Vec<f32>) {
        self.history.extend_from_slice(samples);
        self.input += samples.len() as u64;
        self.produce(u64::MAX, output);
    }

    /// Appends the rest. soxr gives `round(n · to / from)` samples, librosa adds silence up to
    /// `ceil`.
    pub(super) fn finish(mut self, output: &mut Vec<f32>) {
        let exact = u128::from(self.input) * u128::from(self.to);
        let from = u128::from(self.from);
        let rounded = narrow((2 * exact + from) / (2 * from));
        let total = narrow(exact.div_ceil(from));
        // the output's last sample may be half a filter, and a step, beyond the input
        let beyond = self.filter.half + 2 + usize::try_from(self.from / self.to).unwrap_or(0);
        self.history.resize(self.history.len() + beyond, 0.0);
        self.produce(rounded, output);
        let silence = usize::try_from(total - self.output.min(total)).unwrap_or(0);
        output.resize(output.len() + silence, 0.0);
    }

    fn produce(&mut self, end: u64, output: &mut Vec<f32>) {
        let taps = self.filter.taps();
        while self.output < end {
            let position = u128::from(self.output) * u128::from(self.from);
            let (centre, phase) = (
                narrow(position / u128::from(self.to)),
                narrow(position % u128::from(self.to)),
            );
            // `begin` is at most half a filter before the input
            let first = i64::try_from(centre).unwrap_or(i64::MAX) - self.begin;
            let first = usize::try_from(first).unwrap_or(0) - self.filter.half;
            let Some(window) = self.history.get(first..first + taps) else {
                self.forget(first);
                return;
            };
            output.push(self.filter.apply(window, phase, self.to));
            self.output += 1;
        }
    }

    /// Drops samples before `first` of the history.
    fn forget(&mut self, first: usize) {
        let used = first.min(self.history.len());
        if used >= HISTORY {
            self.history.drain(..used);
            self.begin += i64::try_from(used).unwrap_or(0);
        }
    }
}

/// Samples of one channel at another rate, `to` instead of `from` a second; both are greater than 0.
pub fn resample(samples: Vec<f32>, from: u32, to: u32) -> Vec<f32> {
    if from == to {
        return samples;
    }
    let mut output = Vec::new();
    let mut resampler = Resampler::new(from, to);
    resampler.push(&samples, &mut output);
    drop(samples);
    resampler.finish(&mut output);
    output
}

/// The length that `samples` of one rate have at the other.
pub(super) fn resampled_length(samples: u64, from: u32, to: u32) -> u64 {
    narrow((u128::from(samples) * u128::from(to)).div_ceil(u128::from(from)))
}

/// What is beyond is more than any memory.
fn narrow(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn gcd(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        b => gcd(b, a % b),
    }
}

/// The impulse response, sampled for each phase of the output between input samples.
struct Filter {
    /// Taps on each side of the centre.
    half: usize,
    /// `[phases, taps]`; one phase more than there are where they are interpolated.
    rows: Vec<f32>,
    /// Whether outputs fall between phases.
    interpolated: bool,
    kernels: Kernels,
}

impl Filter {
    fn new(from: u32, to: u32) -> Self {
        let ratio = (f64::from(to) / f64::from(from)).min(1.0);
        // in units of the input's Nyquist frequency
        let cutoff = f64::midpoint(1.0, PASS_BAND) * ratio;
        let width = (1.0 - PASS_BAND) * ratio;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive number of taps"
        )]
        let half = ((ATTENUATION - 7.95) / (2.285 * PI * width) / 2.0).ceil() as usize;
        let up = u64::from(to) / gcd(u64::from(from), u64::from(to));
        let up = usize::try_from(up).unwrap_or(usize::MAX);
        let interpolated = up.saturating_mul(2 * half + 1) > MAX_COEFFICIENTS;
        let (phases, rows) = match interpolated {
            true => (INTERPOLATED_PHASES, INTERPOLATED_PHASES + 1),
            false => (up, up),
        };
        let mut filter = Self {
            half,
            rows: Vec::with_capacity(rows * (2 * half + 1)),
            interpolated,
            kernels: Kernels::detect(),
        };
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        for row in 0..rows {
            filter.push_row(row as f64 / phases as f64, cutoff);
        }
        filter
    }

    fn taps(&self) -> usize {
        2 * self.half + 1
    }

    /// The taps of an output that lies `fraction` of a sample after its centre.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "small numbers; coefficients are computed in f64"
    )]
    fn push_row(&mut self, fraction: f64, cutoff: f64) {
        let beta = 0.1102 * (ATTENUATION - 8.7);
        let end = (self.half + 1) as f64;
        let scale = cutoff / bessel_i0(beta);
        for tap in 0..self.taps() {
            let distance = tap as f64 - self.half as f64 - fraction;
            let inside = (1.0 - (distance / end).powi(2)).max(0.0);
            let window = bessel_i0(beta * inside.sqrt());
            self.rows
                .push((scale * sinc(cutoff * distance) * window) as f32);
        }
    }

    fn apply(&self, window: &[f32], phase: u64, phases: u64) -> f32 {
        let taps = self.taps();
        let row = |n: usize| &self.rows[n * taps..(n + 1) * taps];
        if !self.interpolated {
            return self.dot(window, row(usize::try_from(phase).unwrap_or(0)));
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 up to the number of phases"
        )]
        let (number, fraction) = {
            let place = phase as f64 / phases as f64 * INTERPOLATED_PHASES as f64;
            (place as usize, place.fract() as f32)
        };
        let before = self.dot(window, row(number));
        let after = self.dot(window, row(number + 1));
        before + fraction * (after - before)
    }

    fn dot(&self, left: &[f32], right: &[f32]) -> f32 {
        self.kernels.run(Dot { left, right })
    }
}

fn sinc(x: f64) -> f64 {
    match x == 0.0 {
        true => 1.0,
        false => (PI * x).sin() / (PI * x),
    }
}

/// The modified Bessel function of the first kind and order 0, by its power series.
fn bessel_i0(x: f64) -> f64 {
    let square = x * x / 4.0;
    let (mut term, mut sum, mut k) = (1.0, 1.0, 1.0);
    while term > sum * 1e-17 {
        term *= square / (k * k);
        sum += term;
        k += 1.0;
    }
    sum
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "test data is small")]

    use super::*;

    fn tone(rate: u32, hertz: f64, samples: usize) -> Vec<f32> {
        let step = 2.0 * PI * hertz / f64::from(rate);
        (0..samples)
            .map(|n| (step * n as f64).sin() as f32)
            .collect()
    }

    fn resample(samples: &[f32], from: u32, to: u32, piece: usize) -> Vec<f32> {
        let mut resampler = Resampler::new(from, to);
        let mut output = Vec::new();
        for piece in samples.chunks(piece) {
            resampler.push(piece, &mut output);
        }
        resampler.finish(&mut output);
        output
    }

    /// Decibels between the signal and its error, away from the ends.
    fn snr(seen: &[f32], wanted: &[f32]) -> f64 {
        let inner = seen.len() / 4..seen.len() * 3 / 4;
        let (mut signal, mut noise) = (0.0, 0.0);
        for (seen, wanted) in seen[inner.clone()].iter().zip(&wanted[inner]) {
            signal += f64::from(*wanted).powi(2);
            noise += f64::from(seen - wanted).powi(2);
        }
        10.0 * (signal / noise).log10()
    }

    #[test]
    fn tones_of_the_pass_band_keep_their_phase_and_those_above_vanish() {
        // 44,099: no exact phases
        for from in [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 44_099] {
            let low = f64::from(from.min(16_000)) / 2.0;
            for part in [0.01, 0.3, 0.9] {
                let input = tone(from, part * low, from as usize / 4);
                let seen = resample(&input, from, 16_000, 1000);
                let wanted = tone(16_000, part * low, seen.len());
                let snr = snr(&seen, &wanted);
                assert!(snr > 100.0, "{from} Hz, {part}: {snr} dB");
            }
            if from > 16_000 {
                let seen = resample(&tone(from, 8_100.0, 20_000), from, 16_000, 1000);
                let inner = &seen[seen.len() / 4..seen.len() * 3 / 4];
                let max = inner.iter().fold(0.0f32, |max, s| max.max(s.abs()));
                assert!(max < 3e-6, "{from} Hz: {max}");
            }
        }
    }

    #[test]
    fn pieces_make_no_difference() {
        let input: Vec<f32> = tone(44_100, 440.0, 150_000);
        let whole = resample(&input, 44_100, 16_000, usize::MAX);
        for piece in [1, 7, 4096] {
            assert_eq!(resample(&input, 44_100, 16_000, piece), whole);
        }
    }

    #[test]
    fn the_length_is_rounded_up_and_the_sample_beyond_soxrs_is_silence() {
        // 100 · 16000 / 11025 = 145.12: soxr gives 145, librosa 146
        let output = resample(&[1.0; 100], 11_025, 16_000, 13);
        assert_eq!(output.len(), 146);
        assert!(output[144] != 0.0 && output[145] == 0.0);
        for (samples, from) in [
            (0usize, 8_000),
            (1, 48_000),
            (3, 48_000),
            (7, 11_025),
            (1, 384_000),
        ] {
            let length = resample(&vec![0.5; samples], from, 16_000, 2).len();
            assert_eq!(
                length as u64,
                resampled_length(samples as u64, from, 16_000)
            );
        }
    }

    #[test]
    fn the_bessel_function_has_its_known_values() {
        for (x, known) in [
            (0.0, 1.0),
            (1.0, 1.266_065_877_752_008_4),
            (12.0, 18_948.925_349_296_31),
        ] {
            assert!((bessel_i0(x) / known - 1.0).abs() < 1e-14);
        }
    }
}

//! From one sampling rate to another: a windowed sinc with the design figures of soxr's quality HQ,
//! which `librosa.load` uses.
//!
//! Linear phase without delay: output sample `i` is at time `i / to`. The pass band is flat up to
//! [`PASS_BAND`] of the lower Nyquist frequency, everything from that frequency on is
//! [`ATTENUATION`] dB down. Before and after the clip there is silence.

use std::f64::consts::PI;

use rayon::prelude::*;

use crate::kernels::{Dots, Kernels};

/// End of the pass band, in units of the lower Nyquist frequency.
const PASS_BAND: f64 = 0.9136;
/// Attenuation of the stop band in dB: 20 bits.
const ATTENUATION: f64 = 120.4;
/// Coefficients of exact phases that are kept; more, and they are interpolated.
const MAX_COEFFICIENTS: usize = 4 << 20;
/// Phases that are interpolated between. The error is below (π / 1024)² / 8, which is −118 dB.
const INTERPOLATED_PHASES: usize = 1024;
/// Input samples that are collected until outputs are computed, by all threads.
const BLOCK: usize = 1 << 16;
/// Outputs of one phase that are computed together.
const TOGETHER: usize = 4;
/// Values of the window that are computed together.
const SIDE_BY_SIDE: usize = 8;
/// Outputs that one thread computes at a time, at least.
const MIN_OUTPUTS: usize = 1024;

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

    /// Takes the next samples, and appends what can be computed where it is worth it.
    pub(super) fn push(&mut self, samples: &[f32], output: &mut Vec<f32>) {
        for piece in samples.chunks(BLOCK) {
            self.history.extend_from_slice(piece);
            self.input += piece.len() as u64;
            if self.history.len() >= BLOCK {
                self.produce(u64::MAX, output);
            }
        }
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

    /// Appends the outputs before `end` whose windows are there, and forgets what none needs.
    fn produce(&mut self, end: u64, output: &mut Vec<f32>) {
        let end = self.available().min(end);
        let count = usize::try_from(end.saturating_sub(self.output)).unwrap_or(usize::MAX);
        let start = output.len();
        output.resize(start + count, 0.0);
        let chunk = self.outputs_at_a_time();
        let chunks = output[start..].par_chunks_mut(chunk).enumerate();
        chunks.for_each(|(n, chunk_now)| self.fill(self.output + (n * chunk) as u64, chunk_now));
        self.output += count as u64;
        self.forget();
    }

    /// The first output whose window is not there yet.
    fn available(&self) -> u64 {
        let Some(windows) = (self.history.len() + 1).checked_sub(self.filter.taps()) else {
            return self.output;
        };
        // the centre of the first window that ends beyond the history
        let centre = self.begin + i64::try_from(self.filter.half + windows).unwrap_or(i64::MAX);
        let centre = u128::from(u64::try_from(centre).unwrap_or(0));
        narrow((centre * u128::from(self.to)).div_ceil(u128::from(self.from)))
    }

    fn outputs_at_a_time(&self) -> usize {
        let phases = usize::try_from(self.to).unwrap_or(usize::MAX);
        let rounds = MIN_OUTPUTS.div_ceil(phases).next_multiple_of(TOGETHER);
        phases.saturating_mul(rounds)
    }

    /// Where the window of an output begins in the history, and its phase.
    fn place(&self, output: u64) -> (usize, u64) {
        let position = u128::from(output) * u128::from(self.from);
        let centre = narrow(position / u128::from(self.to));
        // `begin` is at most half a filter before the input
        let first = i64::try_from(centre).unwrap_or(i64::MAX) - self.begin;
        let first = usize::try_from(first).unwrap_or(0) - self.filter.half;
        (first, narrow(position % u128::from(self.to)))
    }

    fn window(&self, first: usize) -> &[f32] {
        &self.history[first..first + self.filter.taps()]
    }

    /// Computes outputs from `first` on; those of one phase share their taps.
    fn fill(&self, first: u64, outputs: &mut [f32]) {
        if self.filter.interpolated {
            for (output, value) in (first..).zip(outputs) {
                let (begin, phase) = self.place(output);
                *value = self.filter.between(self.window(begin), phase, self.to);
            }
            return;
        }
        let phases = usize::try_from(self.to).unwrap_or(usize::MAX);
        for round in 0..phases.min(outputs.len()) {
            let (mut begin, phase) = self.place(first + round as u64);
            let taps = self.filter.row(usize::try_from(phase).unwrap_or(0));
            let step = usize::try_from(self.from).unwrap_or(usize::MAX);
            for at in (round..outputs.len()).step_by(phases.saturating_mul(TOGETHER)) {
                let left = (outputs.len() - at).div_ceil(phases).min(TOGETHER);
                // those beyond the end are the last one again
                let rows = std::array::from_fn(|n| self.window(begin + n.min(left - 1) * step));
                let dots: [f32; TOGETHER] = self.filter.kernels.run(Dots { shared: taps, rows });
                for (n, dot) in dots.iter().take(left).enumerate() {
                    outputs[at + n * phases] = *dot;
                }
                begin += left * step;
            }
        }
    }

    /// Drops samples that no output needs any more.
    fn forget(&mut self) {
        let used = self.place(self.output).0.min(self.history.len());
        self.history.drain(..used);
        self.begin += i64::try_from(used).unwrap_or(0);
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
        let window = Kaiser::new(0.1102 * (ATTENUATION - 8.7));
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        for row in 0..rows {
            filter.push_row(row as f64 / phases as f64, cutoff, &window);
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
    fn push_row(&mut self, fraction: f64, cutoff: f64, window: &Kaiser) {
        let end = (self.half + 1) as f64;
        let (half, taps) = (self.half as f64, self.taps());
        for first in (0..taps).step_by(SIDE_BY_SIDE) {
            let distance = |n| (first + n) as f64 - half - fraction;
            let distances: [f64; SIDE_BY_SIDE] = std::array::from_fn(distance);
            let windows = window.values(distances.map(|d| d / end));
            let sincs = distances.map(|d| cutoff * sinc(cutoff * d));
            let coefficients = sincs.iter().zip(&windows).map(|(s, w)| (s * w) as f32);
            self.rows.extend(coefficients.take(taps - first));
        }
    }

    /// The taps of a phase.
    fn row(&self, phase: usize) -> &[f32] {
        &self.rows[phase * self.taps()..][..self.taps()]
    }

    /// An output whose phase is between two rows.
    fn between(&self, window: &[f32], phase: u64, phases: u64) -> f32 {
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
        let [before, after] = self.kernels.run(Dots {
            shared: window,
            rows: [self.row(number), self.row(number + 1)],
        });
        before + fraction * (after - before)
    }
}

fn sinc(x: f64) -> f64 {
    match x == 0.0 {
        true => 1.0,
        false => (PI * x).sin() / (PI * x),
    }
}

/// Kaiser's window: I0(β √(1 − x²)) / I0(β), where I0 is the modified Bessel function of the first
/// kind and order 0, by its power series in (β² / 4) (1 − x²): the sum of yᵏ / k!².
struct Kaiser {
    square: f64,
    /// 1 / k!² / I0(β), from the highest power to the lowest.
    series: Vec<f64>,
}

impl Kaiser {
    fn new(beta: f64) -> Self {
        let square = beta * beta / 4.0;
        let (mut power, mut sum, mut k) = (1.0, 0.0, 0.0);
        let mut series = vec![1.0];
        while power > sum * 1e-17 {
            sum += power;
            k += 1.0;
            power *= square / (k * k);
            series.push(series[series.len() - 1] / (k * k));
        }
        series.reverse();
        series.iter_mut().for_each(|factor| *factor /= sum);
        Self { square, series }
    }

    /// At each `x` from -1 to 1; beyond, it stays what it is at the ends. One value alone would wait
    /// for each power.
    fn values(&self, x: [f64; SIDE_BY_SIDE]) -> [f64; SIDE_BY_SIDE] {
        let y = x.map(|x| self.square * (1.0 - x * x).max(0.0));
        let mut sums = [0.0; SIDE_BY_SIDE];
        for factor in &self.series {
            for (sum, y) in sums.iter_mut().zip(&y) {
                *sum = *sum * y + factor;
            }
        }
        sums
    }
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
            (1.0, 1.266_065_877_752_008_4),
            (12.0, 18_948.925_349_296_31),
        ] {
            let values = Kaiser::new(x).values([0.0, 1.0, -1.0, 1.5, 0.0, 0.0, 0.0, 0.0]);
            assert!((values[0] - 1.0).abs() < 1e-14);
            for end in &values[1..4] {
                assert!((end * known - 1.0).abs() < 1e-14);
            }
        }
    }
}

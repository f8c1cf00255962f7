//! Statistics of a tensor's values while its bytes pass: counts, extremes, mean, standard deviation,
//! rows of zeros, and how far the largest magnitudes lie above the others.
//!
//! Values are taken in blocks of a fixed number, whatever the pieces in which bytes come, and the
//! sums of blocks are joined in order: the result does not depend on who reads how.

use super::{Dtype, append_values, has_values};

/// Values of a block.
const BLOCK_VALUES: usize = 4096;
/// Sums that are taken side by side, value by value in turn.
const LANES: usize = 8;
/// Octaves of magnitude that are told apart: from 2^-96 (and below) to 2^95 (and above).
const OCTAVES: usize = 192;
/// The highest of them.
const LAST_OCTAVE: i32 = 191;
/// The octave of [1, 2).
const OCTAVE_OF_ONE: i32 = 96;
/// Empty octaves that set the largest magnitudes apart from the others.
const MIN_GAP: usize = 5;

/// What was seen of the values of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Statistics {
    /// Values; two for each complex number.
    pub values: u64,
    /// Values that are not a number.
    pub nan: u64,
    /// Values that are infinite.
    pub infinite: u64,
    /// Values that are zero.
    pub zero: u64,
    /// The smallest finite value; NaN where there is none.
    pub min: f64,
    /// The largest finite value; NaN where there is none.
    pub max: f64,
    /// Mean of the finite values; NaN where there is none.
    pub mean: f64,
    /// Standard deviation of the finite values (of the population); NaN where there is none.
    pub std: f64,
    /// Rows, of the last dimension's length, of which every value is zero.
    pub zero_rows: u64,
    /// The first of them, counted from 0.
    pub first_zero_row: Option<u64>,
    /// Magnitudes above a gap of at least 5 empty octaves that sets them apart from all others.
    pub apart: Option<Apart>,
}

/// The largest magnitudes of a tensor, where a gap sets them apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Apart {
    /// How many.
    pub values: u64,
    /// A power of two that all others are below.
    pub others_below: f64,
    /// Empty octaves between the two.
    pub octaves: u32,
}

impl Statistics {
    /// The largest magnitude of a finite value; NaN where there is none.
    #[must_use]
    pub fn max_abs(&self) -> f64 {
        self.max.abs().max(self.min.abs())
    }
}

/// Statistics that grow with every piece of a tensor.
#[derive(Debug, Clone)]
pub struct StatisticsBuilder {
    dtype: Dtype,
    block_bytes: usize,
    /// Bytes of a block that has begun.
    carry: Vec<u8>,
    /// The values of a block.
    block: Vec<f64>,
    sums: Sums,
    rows: Rows,
    octaves: [u64; OCTAVES],
    more_octaves: [u64; OCTAVES],
}

/// Counts, extremes and moments so far.
#[derive(Debug, Clone, Copy)]
struct Sums {
    values: u64,
    nan: u64,
    infinite: u64,
    zero: u64,
    min: f64,
    max: f64,
    finite: f64,
    mean: f64,
    /// Sum of the squares of the differences to the mean.
    squares: f64,
}

/// Rows of zeros so far.
#[derive(Debug, Clone, Copy)]
struct Rows {
    /// Values of a row; 0 where rows are not told apart.
    length: u64,
    row: u64,
    at: u64,
    all_zero: bool,
    zero_rows: u64,
    first: Option<u64>,
}

impl StatisticsBuilder {
    /// Nothing seen yet of a tensor; `None` where this build does not know the values of its dtype.
    /// Rows of zeros are counted in tensors of two or more dimensions.
    #[must_use]
    pub fn new(dtype: Dtype, shape: &[u64]) -> Option<Self> {
        if !has_values(dtype) {
            return None;
        }
        let per_value = if dtype == Dtype::C64 { 2 } else { 1 };
        let length = match shape {
            [_, .., last] => last.saturating_mul(per_value),
            _ => 0,
        };
        Some(Self {
            dtype,
            block_bytes: BLOCK_VALUES * dtype.bitsize() / 8,
            carry: Vec::new(),
            block: Vec::new(),
            sums: Sums {
                values: 0,
                nan: 0,
                infinite: 0,
                zero: 0,
                min: f64::INFINITY,
                max: f64::NEG_INFINITY,
                finite: 0.0,
                mean: 0.0,
                squares: 0.0,
            },
            rows: Rows {
                length,
                row: 0,
                at: 0,
                all_zero: true,
                zero_rows: 0,
                first: None,
            },
            octaves: [0; OCTAVES],
            more_octaves: [0; OCTAVES],
        })
    }

    /// Takes the next bytes, as many as there are.
    pub fn update(&mut self, mut bytes: &[u8]) {
        if !self.carry.is_empty() {
            let missing = self.block_bytes - self.carry.len();
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            self.carry.extend_from_slice(now);
            bytes = later;
            if self.carry.len() == self.block_bytes {
                let block = std::mem::take(&mut self.carry);
                self.take_block(&block);
                self.carry = block;
                self.carry.clear();
            }
        }
        let mut blocks = bytes.chunks_exact(self.block_bytes);
        for block in blocks.by_ref() {
            self.take_block(block);
        }
        self.carry.extend_from_slice(blocks.remainder());
    }

    fn take_block(&mut self, bytes: &[u8]) {
        self.block.clear();
        append_values(self.dtype, bytes, &mut self.block);
        self.sums.add(&self.block);
        self.rows.add(&self.block);
        // two tables: one is still being written to when the next value has the same octave
        let (pairs, rest) = self.block.as_chunks::<2>();
        for [a, b] in pairs {
            self.octaves[octave(*a)] += 1;
            self.more_octaves[octave(*b)] += 1;
        }
        for value in rest {
            self.octaves[octave(*value)] += 1;
        }
    }

    /// What was seen.
    #[must_use]
    pub fn finish(mut self) -> Statistics {
        let rest = std::mem::take(&mut self.carry);
        self.take_block(&rest);
        for (octave, more) in self.octaves.iter_mut().zip(self.more_octaves) {
            *octave += more;
        }
        let sums = &self.sums;
        let any = sums.finite > 0.0;
        let or_nan = |value: f64| if any { value } else { f64::NAN };
        Statistics {
            values: sums.values,
            nan: sums.nan,
            infinite: sums.infinite,
            zero: sums.zero,
            min: or_nan(sums.min),
            max: or_nan(sums.max),
            mean: or_nan(sums.mean),
            std: or_nan((sums.squares / sums.finite).sqrt()),
            zero_rows: self.rows.zero_rows,
            first_zero_row: self.rows.first,
            apart: apart(&self.octaves),
        }
    }
}

/// The octave of a magnitude: zeros in the lowest, what is not finite in the highest.
fn octave(value: f64) -> usize {
    let exponent = i32::try_from(value.to_bits() >> 52 & 0x7ff).unwrap_or(0) - 1023;
    let octave = (exponent + OCTAVE_OF_ONE).clamp(0, LAST_OCTAVE);
    usize::try_from(octave).unwrap_or(0)
}

/// What lies above the highest gap; the lowest octave (zeros) and the highest (what is not finite)
/// do not count.
fn apart(octaves: &[u64; OCTAVES]) -> Option<Apart> {
    let (mut values, mut lowest) = (0, None);
    for octave in (1..OCTAVES - 1).rev().filter(|&o| octaves[o] > 0) {
        if let Some(lowest) = lowest {
            let gap: usize = lowest - octave - 1;
            if gap >= MIN_GAP {
                let exponent = i32::try_from(octave).unwrap_or(0) + 1 - OCTAVE_OF_ONE;
                return Some(Apart {
                    values,
                    others_below: 2.0_f64.powi(exponent),
                    octaves: u32::try_from(gap).unwrap_or(u32::MAX),
                });
            }
        }
        values += octaves[octave];
        lowest = Some(octave);
    }
    None
}

impl Sums {
    /// The mean and the squares of a block are taken from the block itself, then joined (Chan,
    /// Golub, LeVeque 1979): stable, however far the mean is from zero.
    fn add(&mut self, block: &[f64]) {
        self.values += block.len() as u64;
        // nearly always all are finite, and then nothing branches
        if block.iter().fold(true, |all, v| all & v.is_finite()) {
            self.add_finite(block);
            return;
        }
        let nan = block.iter().filter(|v| v.is_nan()).count() as u64;
        let finite: Vec<f64> = block.iter().copied().filter(|v| v.is_finite()).collect();
        self.nan += nan;
        self.infinite += (block.len() - finite.len()) as u64 - nan;
        self.add_finite(&finite);
    }

    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
    fn add_finite(&mut self, block: &[f64]) {
        if block.is_empty() {
            return;
        }
        let (lanes, rest) = block.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        let mut zeros = [0_u64; LANES];
        let (mut min, mut max) = ([f64::INFINITY; LANES], [f64::NEG_INFINITY; LANES]);
        for values in lanes {
            for i in 0..LANES {
                let value = values[i];
                sums[i] += value;
                zeros[i] += u64::from(value == 0.0);
                min[i] = if value < min[i] { value } else { min[i] };
                max[i] = if value > max[i] { value } else { max[i] };
            }
        }
        for (i, value) in rest.iter().enumerate() {
            sums[i] += value;
            zeros[i] += u64::from(*value == 0.0);
            min[i] = min[i].min(*value);
            max[i] = max[i].max(*value);
        }
        self.zero += zeros.iter().sum::<u64>();
        self.min = min.iter().fold(self.min, |a, b| a.min(*b));
        self.max = max.iter().fold(self.max, |a, b| a.max(*b));
        let more = block.len() as f64;
        let mean = sums.iter().sum::<f64>() / more;

        let mut squares = [0.0; LANES];
        for values in lanes {
            for i in 0..LANES {
                let difference = values[i] - mean;
                squares[i] += difference * difference;
            }
        }
        for (i, value) in rest.iter().enumerate() {
            squares[i] += (value - mean) * (value - mean);
        }
        let squares: f64 = squares.iter().sum();
        let (before, difference) = (self.finite, mean - self.mean);
        self.finite = before + more;
        self.mean += difference * more / self.finite;
        self.squares += squares + difference * difference * before * more / self.finite;
    }
}

impl Rows {
    fn add(&mut self, mut block: &[f64]) {
        while self.length > 0 && !block.is_empty() {
            let left = usize::try_from(self.length - self.at).unwrap_or(usize::MAX);
            let (now, later) = block.split_at(left.min(block.len()));
            self.all_zero = self.all_zero && now.iter().all(|v| *v == 0.0);
            self.at += now.len() as u64;
            block = later;
            if self.at == self.length {
                self.end_row();
            }
        }
    }

    fn end_row(&mut self) {
        if self.all_zero {
            self.zero_rows += 1;
            self.first.get_or_insert(self.row);
        }
        (self.row, self.at, self.all_zero) = (self.row + 1, 0, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64], shape: &[u64]) -> Statistics {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut builder = StatisticsBuilder::new(Dtype::F64, shape).unwrap();
        builder.update(&bytes);
        builder.finish()
    }

    #[test]
    fn counts_extremes_and_moments() {
        let seen = of(&[1.0, -3.0, 0.0, -0.0, f64::NAN, f64::INFINITY, 2.0], &[7]);
        assert_eq!(
            (seen.values, seen.nan, seen.infinite, seen.zero),
            (7, 1, 1, 2)
        );
        assert_eq!((seen.min, seen.max, seen.mean), (-3.0, 2.0, 0.0));
        assert!((seen.std - (14.0_f64 / 5.0).sqrt()).abs() < 1e-15);
        assert_eq!(seen.max_abs(), 3.0);
        let none = of(&[f64::NAN], &[1]);
        assert!(none.min.is_nan() && none.mean.is_nan() && none.std.is_nan());
        assert_eq!(of(&[], &[0]).values, 0);
        assert!(StatisticsBuilder::new(Dtype::F6_E2M3, &[4]).is_none());
    }

    /// Far from zero the naive formula loses every digit.
    #[test]
    fn a_standard_deviation_far_from_zero() {
        let values: Vec<f64> = (0..100_000).map(|i| 1e9 + f64::from(i % 2)).collect();
        let seen = of(&values, &[100_000]);
        assert_eq!((seen.mean, seen.std), (1e9 + 0.5, 0.5));
    }

    fn next(state: &mut u64) -> u16 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        u16::from_le_bytes([state.to_le_bytes()[5], state.to_le_bytes()[6]])
    }

    #[test]
    fn pieces_do_not_matter() {
        let mut state = 1_u64;
        let bytes: Vec<u8> = (0..30_000)
            .flat_map(|_| (next(&mut state) & 0xbfff).to_le_bytes())
            .collect();
        let whole = |piece: usize| {
            let mut builder = StatisticsBuilder::new(Dtype::BF16, &[3, 10_000]).unwrap();
            bytes.chunks(piece).for_each(|p| builder.update(p));
            builder.finish()
        };
        let wanted = whole(bytes.len());
        assert!(wanted.std > 0.0);
        for piece in [1, 7, 4096, 8192, 8193, 65_536] {
            assert_eq!(whole(piece), wanted, "{piece}");
        }
    }

    #[test]
    fn rows_of_zeros_are_found_wherever_they_begin() {
        let mut values = vec![1.0; 5000 * 3];
        values[3000..6000].fill(0.0);
        values[8999..12_001].fill(0.0);
        let seen = of(&values, &[5, 3000]);
        assert_eq!((seen.zero_rows, seen.first_zero_row), (2, Some(1)));
        assert_eq!(of(&values, &[15_000]).zero_rows, 0, "a vector has no rows");
        assert_eq!(
            of(&[], &[2, 0]).zero_rows,
            0,
            "rows without values are none"
        );
    }

    #[test]
    fn what_a_gap_sets_apart() {
        let mut values: Vec<f64> = (0..1000).map(|i| f64::from(i) / 1000.0).collect();
        assert_eq!(
            of(&values, &[1000]).apart,
            None,
            "from 0.001 to 1 without a gap"
        );
        values.push(-1000.0);
        values.push(900.0);
        let apart = of(&values, &[1002]).apart.unwrap();
        assert_eq!(
            (apart.values, apart.others_below, apart.octaves),
            (2, 1.0, 9)
        );
        values.push(40.0);
        let apart = of(&values, &[1003]).apart.unwrap();
        assert_eq!((apart.values, apart.octaves), (3, 5));
        values.push(f64::INFINITY);
        assert_eq!(
            of(&values, &[1004]).apart,
            Some(apart),
            "infinities are counted elsewhere"
        );
        values.push(4.0);
        assert_eq!(of(&values, &[1005]).apart, None, "no gap is wide enough");
    }
}

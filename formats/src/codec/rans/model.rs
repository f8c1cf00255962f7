//! Which codes a chunk has, how frequent they are, and the tables that follow from it. Integers
//! only.

use super::{CODES, Round, SCALE};

/// Symbols that a model has at most: a byte of the decoding table names one.
pub(super) const MAX_SYMBOLS: usize = 256;
/// No symbol has all of [`SCALE`]: its frequency is kept in 12 bits.
pub(super) const MAX_FREQUENCY: u32 = SCALE - 1;

/// Chunks of fewer rounds are counted as a whole, longer ones one round in four.
const COUNT_ALL_ROUNDS: usize = 1024;
const ROUNDS_PER_SAMPLE: usize = 4;
/// A code that is rarer than one in this many is cheaper as an exception (48 bits) than as a
/// symbol, which takes at least one part of [`SCALE`] from all others.
const RAREST: u64 = 100_000;

/// The symbols of a chunk.
///
/// Symbol 0 stands for the code `special`, symbol `s` from 1 on for the code `base + s`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    /// See above.
    pub base: u16,
    /// See above.
    pub special: u16,
    /// Of each symbol, 0 to [`MAX_FREQUENCY`]; their sum is [`SCALE`].
    pub frequencies: Vec<u16>,
}

/// How often each code occurs in some of the rounds.
///
/// Which rounds are counted depends on their number alone. They are not evenly spaced: a matrix's
/// columns are.
fn count(rounds: &[Round]) -> ([u32; CODES], u64) {
    let mut counts = [[0_u32; CODES]; 4];
    let counted = if rounds.len() < COUNT_ALL_ROUNDS {
        rounds
            .iter()
            .for_each(|round| count_round(round, &mut counts));
        rounds.len()
    } else {
        for (i, four) in rounds.chunks_exact(ROUNDS_PER_SAMPLE).enumerate() {
            // Knuth's multiplicative hash; its upper bits are the good ones
            let pick = (i as u32).wrapping_mul(2_654_435_769) >> 30;
            count_round(&four[pick as usize], &mut counts);
        }
        rounds.len() / ROUNDS_PER_SAMPLE
    };
    let [mut sum, others @ ..] = counts;
    for other in others {
        sum.iter_mut().zip(other).for_each(|(sum, n)| *sum += n);
    }
    (sum, counted as u64 * super::LANES as u64)
}

/// Adds the codes of a round. Four tables, so that equal neighbours do not wait for each other.
#[inline]
fn count_round(round: &Round, counts: &mut [[u32; CODES]; 4]) {
    for four in round.as_chunks::<8>().0 {
        let four = u64::from_le_bytes(*four);
        for (i, counts) in counts.iter_mut().enumerate() {
            counts[(four >> (16 * i + 5)) as usize % CODES] += 1;
        }
    }
}

impl Model {
    /// The model of a chunk that has rounds.
    pub(super) fn of(rounds: &[Round]) -> Self {
        let (counts, total) = count(rounds);
        let frequent = counts.map(|n| if u64::from(n) * RAREST >= total { n } else { 0 });
        let window = best_window(&frequent);
        let outside = (0..CODES).filter(|c| !window.contains(c));
        // the first one among equals
        let special = outside.rev().max_by_key(|&c| frequent[c]).unwrap_or(0);
        let used: Vec<usize> = window.filter(|&c| frequent[c] > 0).collect();
        let (first, end) = match (used.first(), used.last()) {
            (Some(first), Some(last)) => (*first, last + 1),
            _ => (1, 1),
        };
        let mut symbols = vec![frequent[special]];
        symbols.extend(&frequent[first..end]);
        Self {
            base: (first - 1) as u16,
            special: special as u16,
            frequencies: normalise(&symbols),
        }
    }

    /// The code of a symbol.
    pub(super) fn code(&self, symbol: usize) -> u16 {
        if symbol == 0 {
            self.special
        } else {
            self.base + symbol as u16
        }
    }

    /// The most frequent symbol, the first one among equals.
    fn likeliest(&self) -> usize {
        let symbols = (0..self.frequencies.len()).rev();
        symbols.max_by_key(|&s| self.frequencies[s]).unwrap_or(0)
    }
}

/// The window of [`MAX_SYMBOLS`] − 1 codes that holds most, the first one among equals. It never
/// begins with code 0, which would need a negative base; as the special code it costs nothing.
fn best_window(counts: &[u32; CODES]) -> std::ops::Range<usize> {
    const WIDTH: usize = MAX_SYMBOLS - 1;
    let mut sum: u64 = counts[1..=WIDTH].iter().map(|n| u64::from(*n)).sum();
    let (mut best, mut start) = (sum, 1);
    for from in 2..=CODES - WIDTH {
        sum = sum + u64::from(counts[from + WIDTH - 1]) - u64::from(counts[from - 1]);
        if sum > best {
            (best, start) = (sum, from);
        }
    }
    start..start + WIDTH
}

/// Scales counts to frequencies whose sum is [`SCALE`]; what occurs keeps at least 1.
fn normalise(counts: &[u32]) -> Vec<u16> {
    let total: u64 = counts.iter().map(|n| u64::from(*n)).sum();
    let mut scaled: Vec<u32> = counts.iter().map(|n| scale(*n, total)).collect();
    let occurs = scaled.iter().filter(|f| **f > 0).count();
    if occurs < 2 {
        // alone it would need all of SCALE
        let only = scaled.iter().position(|f| *f > 0).unwrap_or(0);
        scaled.resize(scaled.len().max(2), 0);
        scaled[only] = MAX_FREQUENCY;
        scaled[usize::from(only == 0)] = 1;
    } else {
        settle(&mut scaled, counts);
    }
    scaled.into_iter().map(|f| f as u16).collect()
}

/// The nearest share of [`SCALE`] to `count` of `total`, at least 1 of what occurs.
fn scale(count: u32, total: u64) -> u32 {
    if count == 0 {
        return 0;
    }
    let nearest = (2 * u64::from(count) * u64::from(SCALE) + total) / (2 * total);
    (nearest as u32).clamp(1, MAX_FREQUENCY)
}

/// Moves single parts of [`SCALE`] to where they save most bits, or from where they cost least.
///
/// Going from `f` to `f + 1` saves about `n / (f + 1/2)` of `n` occurrences.
fn settle(scaled: &mut [u32], counts: &[u32]) {
    let worth = |s: usize, twice_f: u32| (u64::from(counts[s]) << 32) / u64::from(twice_f);
    let mut sum: u32 = scaled.iter().sum();
    while sum < SCALE {
        let gains = (0..counts.len()).rev().filter(|&s| counts[s] > 0);
        let Some(best) = gains.max_by_key(|&s| worth(s, 2 * scaled[s] + 1)) else {
            return;
        };
        scaled[best] += 1;
        sum += 1;
    }
    while sum > SCALE {
        let losses = (0..counts.len()).filter(|&s| scaled[s] > 1);
        let Some(cheapest) = losses.min_by_key(|&s| worth(s, 2 * scaled[s] - 1)) else {
            return;
        };
        scaled[cheapest] -= 1;
        sum -= 1;
    }
}

/// What decoding does with the low 12 bits of a state: `frequency << 20 | offset within it << 8 |
/// symbol`.
pub(super) type DecodeTable = [u32; SCALE as usize];

/// Fills the decoding table of a model whose frequencies add up to [`SCALE`].
pub(super) fn fill_decode_table(model: &Model, table: &mut DecodeTable) {
    let mut rest = &mut table[..];
    for (symbol, &frequency) in (0_u32..).zip(&model.frequencies) {
        let Some((slots, later)) = rest.split_at_mut_checked(usize::from(frequency)) else {
            return;
        };
        let first = u32::from(frequency) << 20 | symbol;
        (0_u32..)
            .zip(slots)
            .for_each(|(offset, slot)| *slot = first | offset << 8);
        rest = later;
    }
}

/// What encoding does with a code: a [`CodeStep`] packed into 64 bits.
pub(super) type EncodeTable = [u64; CODES];

/// Set in a packed step where the code has no symbol, and the step is another's.
pub(super) const EXCEPTION: u64 = 1 << 56;

/// One step of the encoder: `x / frequency` is `x * reciprocal >> shift`, and the new state is
/// `x + start + x / frequency * (SCALE - frequency)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct CodeStep {
    /// `ceil(2^shift / frequency)`, 32 bits.
    pub reciprocal: u64,
    /// Sum of the frequencies before, 12 bits.
    pub start: u32,
    /// `SCALE - frequency`, 12 bits.
    pub complement: u32,
    /// 31 to 43.
    pub shift: u32,
}

impl CodeStep {
    /// Of a symbol. Exact for every state that a step can see: those below `frequency << 19`.
    ///
    /// With `e = reciprocal * frequency - 2^shift < frequency ≤ 2^(shift - 31)`, the error of the
    /// quotient before rounding down is `x * e / (frequency * 2^shift)`; it is below `1 /
    /// frequency` where `x * e < 2^shift`, and `x * e < 2^(2 (shift - 31) + 19) ≤ 2^shift` as
    /// `shift ≤ 43`.
    fn new(frequency: u32, start: u32) -> Self {
        let shift = 31 + frequency.next_power_of_two().ilog2();
        let reciprocal = (1_u64 << shift).div_ceil(u64::from(frequency));
        Self {
            reciprocal,
            start,
            complement: SCALE - frequency,
            shift,
        }
    }

    fn pack(self) -> u64 {
        self.reciprocal
            | u64::from(self.start) << 32
            | u64::from(self.complement) << 44
            | u64::from(self.shift) << 58
    }

    /// The step without its flag.
    pub(super) fn unpack(packed: u64) -> Self {
        Self {
            reciprocal: packed & 0xffff_ffff,
            start: (packed >> 32) as u32 & 0xfff,
            complement: (packed >> 44) as u32 & 0xfff,
            shift: (packed >> 58) as u32,
        }
    }
}

/// Fills the encoding table of a model; codes without a symbol take the likeliest one's step.
pub(super) fn fill_encode_table(model: &Model, table: &mut EncodeTable) {
    let mut starts = Vec::with_capacity(model.frequencies.len());
    model.frequencies.iter().fold(0, |start, f| {
        starts.push(start);
        start + u32::from(*f)
    });
    let step = |s: usize| CodeStep::new(u32::from(model.frequencies[s]).max(1), starts[s]).pack();
    table.fill(step(model.likeliest()) | EXCEPTION);
    for s in (0..model.frequencies.len()).filter(|&s| model.frequencies[s] > 0) {
        let code = usize::from(model.code(s)) % CODES;
        // symbol 0 comes first and keeps its code
        if table[code] & EXCEPTION != 0 {
            table[code] = step(s);
        }
    }
}

/// Whether the six bits that are stored as they are seem to hold less than six bits.
pub(super) fn has_structure(rounds: &[Round]) -> bool {
    /// Rounds in the sample, evenly spaced; at most four times the even share passes as noise.
    const SAMPLE: usize = 64;
    let mut counts = [0_usize; 64];
    let step = rounds.len().div_ceil(SAMPLE).max(1);
    let mut even = 0;
    for round in rounds.iter().step_by(step) {
        for value in round.as_chunks::<2>().0 {
            counts[usize::from(super::raw_of(u16::from_le_bytes(*value)))] += 1;
        }
        even += 1;
    }
    counts.iter().any(|&n| n > 4 * even + 16)
}

#[cfg(test)]
mod tests {
    use super::super::code_of;
    use super::*;

    #[test]
    fn reciprocals_divide_exactly() {
        for frequency in 1..=MAX_FREQUENCY {
            let step = CodeStep::unpack(CodeStep::new(frequency, 0).pack() | EXCEPTION);
            assert!(
                step.reciprocal < 1 << 32
                    && step.shift < 64
                    && step.complement == SCALE - frequency
            );
            let end = frequency << 19;
            let near = |x: u32| [x.wrapping_sub(1), x, x.wrapping_add(1)];
            let multiples = (0..64).map(|i| (end / frequency / 64 * i + i) * frequency);
            for x in multiples
                .chain([0, end - frequency, end])
                .flat_map(near)
                .filter(|x| *x < end)
            {
                let quotient = (u64::from(x) * step.reciprocal) >> step.shift;
                assert_eq!(quotient, u64::from(x / frequency), "{x} / {frequency}");
            }
        }
    }

    #[test]
    fn frequencies_add_up_and_none_that_occurs_is_lost() {
        let cases: [&[u32]; 7] = [
            &[0, 1],
            &[5],
            &[0, 0, 9],
            &[1, u32::MAX],
            &[1; 256],
            &[0, 1, 1000, 1, 0, 1, 1_000_000, 3],
            &[700, 300],
        ];
        for counts in cases {
            let frequencies = normalise(counts);
            assert_eq!(
                frequencies.iter().map(|f| u32::from(*f)).sum::<u32>(),
                SCALE,
                "{counts:?}"
            );
            assert!(frequencies.iter().all(|f| u32::from(*f) <= MAX_FREQUENCY));
            for (count, frequency) in counts.iter().zip(&frequencies) {
                assert!(*count == 0 || *frequency > 0, "{counts:?}: {frequencies:?}");
            }
        }
        assert_eq!(normalise(&[700, 300]), [2867, 1229]);
    }

    fn has_symbol(model: &Model, code: u16) -> bool {
        (0..model.frequencies.len()).any(|s| model.code(s) == code && model.frequencies[s] > 0)
    }

    #[test]
    fn the_window_holds_what_is_frequent_and_one_code_more() {
        let mut round = [0_u8; 128];
        let codes = [0_u16, 300, 301, 500, 554, 555];
        for (i, value) in round.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *value = (codes[i % codes.len()] << 5).to_le_bytes();
        }
        let model = Model::of(&[round]);
        // 300 to 554 is one window; of 0 and 555 the more frequent one is special
        assert_eq!(
            codes.map(|code| has_symbol(&model, code)),
            [true, true, true, true, true, false]
        );
        assert_eq!((model.base, model.special), (299, 0));
        assert_eq!(code_of(u16::from_le_bytes([round[2], round[3]])), 300);
    }
}

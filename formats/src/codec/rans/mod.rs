//! Interleaved rANS over the upper bits of bf16 values (Duda 2013; interleaving: Giesen 2014).
//!
//! A value has a *code*, its exponent and two upper mantissa bits (bits 14 to 5), and six raw bits:
//! the sign and five lower mantissa bits. Codes are entropy coded in 64 lanes with 12-bit
//! frequencies, 32-bit states and words of 16 bits; raw bits are stored as they are. A *round* is
//! 64 consecutive values, one for each lane. FORMAT.md has the layout.
//!
//! Every path (scalar, AVX2, AVX-512, NEON) writes and reads the same bytes.

#![expect(
    clippy::cast_possible_truncation,
    reason = "bits are taken apart; all counts are of values of one chunk, at most 2^21"
)]

mod model;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(test)]
mod tests;

use std::fmt;

use super::simd::{Kind, Simd};
use crate::io::to_usize;
use model::{
    DecodeTable, EncodeTable, MAX_FREQUENCY, MAX_SYMBOLS, Model, fill_decode_table,
    fill_encode_table,
};

/// Lanes, states and values of a round.
const LANES: usize = 64;
/// Bits of a frequency.
const SCALE_BITS: u32 = 12;
/// Sum of all frequencies.
const SCALE: u32 = 1 << SCALE_BITS;
/// States are at least this and below it times 2^16; the encoder begins with it, the decoder ends
/// there.
const LOWEST: u32 = 1 << 15;
/// Codes: exponent and two mantissa bits.
const CODES: usize = 1024;
/// Raw bits of a round: six of each value, the first value's lowest.
const RAW_BYTES: usize = 48;
/// Bytes of a value.
const VALUE_BYTES: usize = 2;
/// Bytes of the values of a round.
const ROUND_BYTES: usize = LANES * VALUE_BYTES;
/// Bytes of a word of the entropy coded stream.
const WORD_BYTES: usize = 2;
/// A round takes at most one word for each lane, so no decoder reads further than this ahead.
const AHEAD_BYTES: usize = LANES * WORD_BYTES;
/// Base, special, symbols, a zero (u16 each), exceptions, words (u32 each).
const HEAD_BYTES: usize = 16;
/// Position (u32) and value (u16).
const EXCEPTION_BYTES: usize = 6;
/// Bytes of all states.
const STATES_BYTES: usize = LANES * 4;

type Round = [u8; ROUND_BYTES];
type Raw = [u8; RAW_BYTES];
type States = [u32; LANES];

/// Exponent and two upper mantissa bits of a value.
fn code_of(value: u16) -> u16 {
    value >> 5 & 0x3ff
}

/// Sign (bit 5) and five lower mantissa bits of a value.
fn raw_of(value: u16) -> u8 {
    (value & 0x1f | value >> 15 << 5) as u8
}

/// Where in its round the value of a lane stands: two neighbours are the halves of one 32-bit word,
/// and sixteen such words fill a register, so that decoded registers merge with a shift.
fn position(lane: usize) -> usize {
    lane / 32 * 32 + lane % 16 * 2 + lane / 16 % 2
}

/// The symbols' meaning.
#[derive(Debug, Clone, Copy)]
struct Codes {
    base: u16,
    special: u16,
}

/// A value that has no symbol, and where it stands in the chunk.
type Exception = (u32, u16);

/// Whether values look as if a general compressor found something in them that this one does not.
pub(super) fn has_structure(raw: &[u8]) -> bool {
    model::has_structure(raw.as_chunks().0)
}

/// Codes chunks of bf16 values.
pub(super) struct Encoder {
    simd: Simd,
    table: Box<EncodeTable>,
    /// Filled from its end.
    words: Vec<u16>,
    raw: Vec<Raw>,
    exceptions: Vec<Exception>,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder")
            .field("simd", &self.simd)
            .finish_non_exhaustive()
    }
}

/// What the rounds of a chunk are coded with and into.
struct Encoding<'a> {
    table: &'a EncodeTable,
    /// As long as all values and one more word; words are written from its end towards its
    /// start.
    words: &'a mut [u16],
    raw: &'a mut [Raw],
    states: &'a mut States,
    exceptions: &'a mut Vec<Exception>,
}

impl Encoding<'_> {
    /// Notes the exceptions of a round, last first.
    #[cold]
    fn note_exceptions(&mut self, number: usize, round: &Round) {
        for (i, value) in round.as_chunks::<VALUE_BYTES>().0.iter().enumerate().rev() {
            let value = u16::from_le_bytes(*value);
            if self.table[usize::from(code_of(value))] & model::EXCEPTION != 0 {
                self.exceptions.push(((number * LANES + i) as u32, value));
            }
        }
    }
}

impl Encoder {
    /// A coder with these instructions; its tables and buffers are reused.
    pub(super) fn new(simd: Simd) -> Self {
        let table = Box::new([0; CODES]);
        Self {
            simd,
            table,
            words: Vec::new(),
            raw: Vec::new(),
            exceptions: Vec::new(),
        }
    }

    /// Appends the coded form of a chunk's values to `out`, or gives up where it is not shorter
    /// than them.
    pub(super) fn encode(&mut self, values: &[u8], out: &mut Vec<u8>) -> bool {
        let (rounds, rest) = values.as_chunks::<ROUND_BYTES>();
        if rounds.is_empty() || !values.len().is_multiple_of(VALUE_BYTES) {
            return false;
        }
        let model = Model::of(rounds);
        let mut states = [LOWEST; LANES];
        let first = self.encode_rounds(&model, rounds, &mut states);
        let (words, raw) = (
            &self.words[first..],
            self.raw[..rounds.len()].as_flattened(),
        );
        let head = self.head(&model, words.len(), rest);
        if head.len() + raw.len() + STATES_BYTES + words.len() * WORD_BYTES >= values.len() {
            return false;
        }
        out.extend(head);
        out.extend_from_slice(raw);
        out.extend(states.iter().flat_map(|state| state.to_le_bytes()));
        out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        true
    }

    /// Leaves raw bits, words and exceptions in their buffers; returns where the words begin.
    fn encode_rounds(&mut self, model: &Model, rounds: &[Round], states: &mut States) -> usize {
        fill_encode_table(model, &mut self.table);
        self.exceptions.clear();
        if self.raw.len() < rounds.len() {
            self.raw.resize(rounds.len(), [0; RAW_BYTES]);
            self.words.resize(rounds.len() * LANES + 1, 0);
        }
        let encoding = Encoding {
            table: &self.table,
            words: &mut self.words,
            raw: &mut self.raw[..rounds.len()],
            states,
            exceptions: &mut self.exceptions,
        };
        encode_rounds(self.simd, rounds, encoding)
    }

    /// Everything before the raw bits.
    fn head(&self, model: &Model, words: usize, rest: &[u8]) -> Vec<u8> {
        let mut head = Vec::new();
        for word in [model.base, model.special, model.frequencies.len() as u16, 0] {
            head.extend(word.to_le_bytes());
        }
        head.extend((self.exceptions.len() as u32).to_le_bytes());
        head.extend((words as u32).to_le_bytes());
        head.extend(model.frequencies.iter().flat_map(|f| f.to_le_bytes()));
        for (position, value) in self.exceptions.iter().rev() {
            head.extend(position.to_le_bytes());
            head.extend(value.to_le_bytes());
        }
        head.extend(rest);
        head
    }
}

/// Codes the rounds, last first; returns where the words begin.
fn encode_rounds(simd: Simd, rounds: &[Round], encoding: Encoding<'_>) -> usize {
    match simd.0 {
        Kind::Scalar => scalar::encode(rounds, encoding),
        // the loss of a scalar encoder is a third, and there is no gather worth it
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => scalar::encode(rounds, encoding),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => avx512::encode(simd, rounds, encoding),
        // there is no gather at all
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => scalar::encode(rounds, encoding),
    }
}

/// Decodes chunks of bf16 values.
pub(super) struct Decoder {
    simd: Simd,
    table: Box<DecodeTable>,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field("simd", &self.simd)
            .finish_non_exhaustive()
    }
}

/// A coded chunk taken apart; all lengths are right.
struct Parsed<'a> {
    model: Model,
    exceptions: &'a [[u8; EXCEPTION_BYTES]],
    rest: &'a [u8],
    raw: &'a [Raw],
    states: States,
    words: &'a [u8],
}

/// How far a decoder got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    rounds: usize,
    /// Bytes of words read.
    bytes: usize,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .copied()
        .map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .copied()
        .map_or(0, u32::from_le_bytes)
}

/// Takes a coded chunk of `raw_length` decoded bytes apart.
fn parse(stored: &[u8], raw_length: usize) -> Result<Parsed<'_>, String> {
    if !raw_length.is_multiple_of(VALUE_BYTES) {
        return Err(format!(
            "{raw_length} bytes are no whole number of values of {VALUE_BYTES} bytes"
        ));
    }
    let Some((head, after)) = stored.split_at_checked(HEAD_BYTES) else {
        return Err(format!(
            "has {} bytes, its head alone takes {HEAD_BYTES}",
            stored.len()
        ));
    };
    let (symbols, zero) = (usize::from(u16_at(head, 4)), u16_at(head, 6));
    if symbols == 0 || symbols > MAX_SYMBOLS || zero != 0 {
        return Err(format!(
            "{symbols} symbols and {zero}; wanted 1 to {MAX_SYMBOLS} and zero"
        ));
    }
    let (rounds, rest) = (raw_length / ROUND_BYTES, raw_length % ROUND_BYTES);
    let (exceptions, words) = (u32_at(head, 8) as usize, u32_at(head, 12) as usize);
    // each count is below 2^32, so the sum fits 64 bits
    let lengths = [
        symbols as u64 * 2,
        exceptions as u64 * EXCEPTION_BYTES as u64,
        rest as u64,
        (rounds * RAW_BYTES) as u64,
        STATES_BYTES as u64,
        words as u64 * WORD_BYTES as u64,
    ];
    let wanted: u64 = lengths.iter().sum();
    if wanted != after.len() as u64 {
        return Err(format!(
            "{} bytes after its head, its counts ask for {wanted}",
            after.len()
        ));
    }
    let mut after = after;
    let [frequencies, exceptions, rest, raw, states, words] =
        lengths.map(|length| split_off(&mut after, length));
    let model = Model {
        base: u16_at(head, 0),
        special: u16_at(head, 2),
        frequencies: frequencies
            .as_chunks()
            .0
            .iter()
            .map(|f| u16::from_le_bytes(*f))
            .collect(),
    };
    check_model(&model)?;
    let mut parsed = Parsed {
        model,
        exceptions: exceptions.as_chunks().0,
        rest,
        raw: raw.as_chunks().0,
        states: [0; LANES],
        words,
    };
    for (state, bytes) in parsed.states.iter_mut().zip(states.as_chunks().0) {
        *state = u32::from_le_bytes(*bytes);
        if !(LOWEST..LOWEST << 16).contains(state) {
            return Err(format!(
                "state {state} is not {LOWEST} to {}",
                (LOWEST << 16) - 1
            ));
        }
    }
    Ok(parsed)
}

/// Takes the first bytes off, at most all there are.
fn split_off<'a>(bytes: &mut &'a [u8], length: u64) -> &'a [u8] {
    let (first, rest) = bytes.split_at(to_usize(length).min(bytes.len()));
    *bytes = rest;
    first
}

fn check_model(model: &Model) -> Result<(), String> {
    let last = usize::from(model.base) + model.frequencies.len() - 1;
    if last >= CODES || usize::from(model.special) >= CODES {
        return Err(format!(
            "codes {} and up to {last}; wanted less than {CODES}",
            model.special
        ));
    }
    let sum: u32 = model.frequencies.iter().map(|f| u32::from(*f)).sum();
    let max = model.frequencies.iter().copied().max().unwrap_or(0);
    if sum != SCALE || u32::from(max) > MAX_FREQUENCY {
        return Err(format!(
            "frequencies add up to {sum}, the greatest is {max}; wanted {SCALE}, {MAX_FREQUENCY}"
        ));
    }
    Ok(())
}

impl Decoder {
    /// A decoder with these instructions; its table is reused.
    pub(super) fn new(simd: Simd) -> Self {
        Self {
            simd,
            table: Box::new([0; SCALE as usize]),
        }
    }

    /// Decodes a chunk into `values`.
    ///
    /// # Errors
    /// What is wrong with the stored bytes; `values` then holds nothing of use.
    pub(super) fn decode(&mut self, stored: &[u8], values: &mut [u8]) -> Result<(), String> {
        let mut parsed = parse(stored, values.len())?;
        fill_decode_table(&parsed.model, &mut self.table);
        let (rounds, rest) = values.as_chunks_mut::<ROUND_BYTES>();
        self.decode_rounds(&mut parsed, rounds)?;
        rest.copy_from_slice(parsed.rest);
        put_exceptions(parsed.exceptions, rounds)
    }

    fn decode_rounds(&self, parsed: &mut Parsed<'_>, rounds: &mut [Round]) -> Result<(), String> {
        let words = parsed.words;
        let begun = self.decode_from(0, words, parsed, rounds);
        // the last words, with zeros behind them that a decoder may read ahead but not need
        let left = &words[begun.bytes..];
        let mut padded = [0; 2 * AHEAD_BYTES];
        let kept = left.len().min(AHEAD_BYTES);
        padded[..kept].copy_from_slice(&left[..kept]);
        let ended = self.decode_from(begun.rounds, &padded, parsed, rounds);
        if begun.rounds + ended.rounds != parsed.raw.len() || ended.bytes > left.len() {
            return Err(format!("{} words are too few", words.len() / WORD_BYTES));
        }
        if ended.bytes != left.len() || parsed.states.iter().any(|s| *s != LOWEST) {
            return Err("is damaged: it does not end where it should".to_owned());
        }
        Ok(())
    }
}

impl Decoder {
    /// Decodes the rounds from this one on with these words, as [`decode_some`] does.
    fn decode_from(
        &self,
        first: usize,
        words: &[u8],
        parsed: &mut Parsed<'_>,
        rounds: &mut [Round],
    ) -> Progress {
        let codes = Codes {
            base: parsed.model.base,
            special: parsed.model.special,
        };
        decode_some(
            self.simd,
            &self.table,
            codes,
            &mut parsed.states,
            words,
            &parsed.raw[first..],
            &mut rounds[first..],
        )
    }
}

/// Decodes rounds until all are done, or fewer than [`AHEAD_BYTES`] of words are left.
fn decode_some(
    simd: Simd,
    table: &DecodeTable,
    codes: Codes,
    states: &mut States,
    words: &[u8],
    raw: &[Raw],
    rounds: &mut [Round],
) -> Progress {
    match simd.0 {
        Kind::Scalar => scalar::decode(table, codes, states, words, raw, rounds),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => avx2::decode(simd, table, codes, states, words, raw, rounds),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => avx512::decode(simd, table, codes, states, words, raw, rounds),
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => neon::decode(simd, table, codes, states, words, raw, rounds),
    }
}

/// Puts the values that have no symbol into their places.
fn put_exceptions(
    exceptions: &[[u8; EXCEPTION_BYTES]],
    rounds: &mut [Round],
) -> Result<(), String> {
    let values = rounds.as_flattened_mut().as_chunks_mut::<VALUE_BYTES>().0;
    let mut next = 0;
    for [p0, p1, p2, p3, value @ ..] in exceptions {
        let at = u32::from_le_bytes([*p0, *p1, *p2, *p3]) as usize;
        if at < next {
            return Err(format!(
                "exception at value {at} follows one at value {}",
                next - 1
            ));
        }
        let Some(to) = values.get_mut(at) else {
            return Err(format!("exception at value {at} of {}", values.len()));
        };
        *to = *value;
        next = at + 1;
    }
    Ok(())
}

//! The coders with AVX-512: four registers of sixteen decoder states, eight of eight encoder
//! states.

#![expect(
    unsafe_code,
    reason = "gathers, loads and stores through pointers; calls that need processor features"
)]

use std::arch::x86_64::*;

use super::model::{DecodeTable, EXCEPTION, EncodeTable};
use super::{
    AHEAD_BYTES, CODES, Codes, Encoding, Kind, LANES, LOWEST, Progress, RAW_BYTES, ROUND_BYTES,
    Raw, Round, SCALE, Simd, States, WORD_BYTES,
};

/// Lanes of a register of decoder states.
const WIDTH: usize = 16;
const REGISTERS: usize = LANES / WIDTH;
/// Lanes of a register of encoder states.
const ENCODER_WIDTH: usize = 8;
const ENCODER_REGISTERS: usize = LANES / ENCODER_WIDTH;

/// As [`decode_some`](super::decode_some).
pub(super) fn decode(
    simd: Simd,
    table: &DecodeTable,
    codes: Codes,
    states: &mut States,
    words: &[u8],
    raw: &[Raw],
    rounds: &mut [Round],
) -> Progress {
    assert_eq!(simd.0, Kind::Avx512);
    // SAFETY: a `Simd` of this kind is only made where the processor has all features of the
    // function
    unsafe { decode_avx512(table, codes, states, words, raw, rounds) }
}

/// As [`encode_rounds`](super::encode_rounds).
pub(super) fn encode(simd: Simd, rounds: &[Round], to: Encoding<'_>) -> usize {
    assert_eq!(simd.0, Kind::Avx512);
    // SAFETY: a `Simd` of this kind is only made where the processor has all features of the
    // function
    unsafe { encode_avx512(rounds, to) }
}

/// Which stored byte goes where so that each 64-bit lane has the 24 bits of its four values;
/// `first` of 48.
const fn spread(first: u8) -> [u8; 64] {
    let (mut index, mut i) = ([0; 64], 0);
    while i < 64 {
        // the upper five bytes of a lane are never looked at
        index[i] = first + (i / 8 * 3) as u8 + (i % 8 % 3) as u8;
        i += 1;
    }
    index
}

/// The reverse: the lower three bytes of sixteen 64-bit lanes (two registers), adjacent.
const GATHERED: [u8; 64] = {
    let (mut index, mut i) = ([0; 64], 0);
    while i < RAW_BYTES {
        index[i] = (i / 3 * 8 + i % 3) as u8;
        i += 1;
    }
    index
};

const SPREAD: [[u8; 64]; 2] = [spread(0), spread(24)];
/// For each byte of a lane the bit that its lowest bit is: of value `j`, bits 6j on, and those that
/// end in the sign.
const SHIFTS: i64 = i64::from_le_bytes([0, 62, 6, 4, 12, 10, 18, 16]);
/// Bits of a value that are stored as they are.
const RAW_MASK: i16 = 0x801f_u16 as i16;
/// The bytes that a round's raw bits take in a register.
const RAW_BYTES_MASK: u64 = (1 << RAW_BYTES) - 1;

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn load_index(index: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are read from 64 bytes
    unsafe { _mm512_loadu_si512(index.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,bmi1,bmi2,popcnt")]
fn decode_avx512(
    table: &DecodeTable,
    codes: Codes,
    states: &mut States,
    words: &[u8],
    raw: &[Raw],
    rounds: &mut [Round],
) -> Progress {
    let mut x = [_mm512_setzero_si512(); REGISTERS];
    for (x, lanes) in x.iter_mut().zip(states.as_chunks::<WIDTH>().0) {
        // SAFETY: 64 bytes are read from sixteen 32-bit words
        *x = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
    }
    let merging = Merging::new(codes);
    let (mut number, mut bytes) = (0, 0);
    for (raw, round) in raw.iter().zip(rounds) {
        let Some(ahead) = words
            .get(bytes..)
            .and_then(|w| w.first_chunk::<AHEAD_BYTES>())
        else {
            break;
        };
        let mut entries = [_mm512_setzero_si512(); REGISTERS];
        let mut used = 0;
        for (x, entry) in x.iter_mut().zip(&mut entries) {
            let read;
            // SAFETY: before this register at most 16 words were used for each register before it,
            // so that these 16 words are among the 64 of `ahead`
            let next = unsafe { _mm256_loadu_si256(ahead.as_ptr().add(used).cast()) };
            (*x, *entry, read) = step(table, *x, next);
            used += read * WORD_BYTES;
        }
        merging.merge(entries, raw, round);
        bytes += used;
        number += 1;
    }
    for (x, lanes) in x.iter().zip(states.as_chunks_mut::<WIDTH>().0) {
        // SAFETY: 64 bytes are written to sixteen 32-bit words
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), *x) };
    }
    Progress {
        rounds: number,
        bytes,
    }
}

/// Decodes one symbol in each lane: the new states, the table's entries, and how many of the words
/// were used.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,bmi1,bmi2,popcnt")]
fn step(table: &DecodeTable, x: __m512i, next: __m256i) -> (__m512i, __m512i, usize) {
    let slot = _mm512_and_si512(x, _mm512_set1_epi32(SCALE as i32 - 1));
    // SAFETY: every index is below SCALE, the length of the table
    let entry = unsafe { _mm512_i32gather_epi32::<4>(slot, table.as_ptr().cast()) };
    let frequency = _mm512_srli_epi32::<20>(entry);
    let offset = _mm512_and_si512(_mm512_srli_epi32::<8>(entry), _mm512_set1_epi32(0xfff));
    let x = _mm512_add_epi32(
        _mm512_mullo_epi32(frequency, _mm512_srli_epi32::<12>(x)),
        offset,
    );
    let low = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(LOWEST as i32));
    let words = _mm512_maskz_expand_epi32(low, _mm512_cvtepu16_epi32(next));
    let x = _mm512_mask_or_epi32(x, low, _mm512_slli_epi32::<16>(x), words);
    (x, entry, low.count_ones() as usize)
}

/// Constants of the step from symbols and raw bits to values.
struct Merging {
    base: __m512i,
    special: __m512i,
    spread: [__m512i; 2],
}

impl Merging {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
    fn new(codes: Codes) -> Self {
        Self {
            base: _mm512_set1_epi16((codes.base << 5) as i16),
            special: _mm512_set1_epi16((codes.special << 5) as i16),
            spread: [load_index(&SPREAD[0]), load_index(&SPREAD[1])],
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
    fn merge(&self, entries: [__m512i; REGISTERS], raw: &Raw, round: &mut Round) {
        // SAFETY: the mask leaves the 48 bytes that there are
        let raw = unsafe { _mm512_maskz_loadu_epi8(RAW_BYTES_MASK, raw.as_ptr().cast()) };
        let [a, b, c, d] = entries;
        let values = [self.values(a, b, raw, 0), self.values(c, d, raw, 1)];
        for (to, values) in round
            .as_chunks_mut::<{ ROUND_BYTES / 2 }>()
            .0
            .iter_mut()
            .zip(values)
        {
            // SAFETY: 64 bytes are written to 64 bytes
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), values) };
        }
    }

    /// Symbols of `even` become the lower halves of 32-bit words, those of `odd` the upper ones.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
    fn values(&self, even: __m512i, odd: __m512i, raw: __m512i, half: usize) -> __m512i {
        /// `x | (y & z)` as a truth table of `vpternlogd`.
        const OR_AND: i32 = 0xF8;
        let both = _mm512_mask_blend_epi16(0xAAAA_AAAA, even, _mm512_slli_epi32::<16>(odd));
        let symbols = _mm512_and_si512(both, _mm512_set1_epi16(0xff));
        let is_special = _mm512_testn_epi16_mask(symbols, symbols);
        let first = _mm512_mask_blend_epi16(is_special, self.base, self.special);
        let upper = _mm512_add_epi16(_mm512_slli_epi16::<5>(symbols), first);
        let bits = _mm512_permutexvar_epi8(self.spread[half], raw);
        let bits = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(SHIFTS), bits);
        _mm512_ternarylogic_epi32::<OR_AND>(upper, bits, _mm512_set1_epi16(RAW_MASK))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,bmi1,bmi2,popcnt")]
fn encode_avx512(rounds: &[Round], mut to: Encoding<'_>) -> usize {
    let mut x = [_mm512_setzero_si512(); ENCODER_REGISTERS];
    for (x, lanes) in x.iter_mut().zip(to.states.as_chunks::<ENCODER_WIDTH>().0) {
        // SAFETY: 32 bytes are read from eight 32-bit words
        *x = _mm512_cvtepu32_epi64(unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) });
    }
    assert!(to.words.len() > rounds.len() * LANES && to.raw.len() == rounds.len());
    let mut at = to.words.len();
    for (number, round) in rounds.iter().enumerate().rev() {
        let (halves, _) = round.as_chunks::<{ ROUND_BYTES / 2 }>();
        let values = [load_half(&halves[0]), load_half(&halves[1])];
        let mut flags = _mm512_setzero_si512();
        for register in (0..REGISTERS).rev() {
            let values = values[register / 2];
            let codes = if register % 2 == 0 {
                _mm512_srli_epi32::<5>(values)
            } else {
                _mm512_srli_epi32::<21>(values)
            };
            let codes = _mm512_and_si512(codes, _mm512_set1_epi32(CODES as i32 - 1));
            let halves = [
                _mm512_castsi512_si256(codes),
                _mm512_extracti64x4_epi64::<1>(codes),
            ];
            for half in [1, 0] {
                let state = &mut x[2 * register + half];
                let (next, packed, words, count) = encode_step(to.table, *state, halves[half]);
                (*state, flags) = (next, _mm512_or_si512(flags, packed));
                at -= count;
                // SAFETY: at most one word was taken for each value so far and `words` has room for
                // one of every value, so that `at` has not passed its start; the mask leaves
                // `count` words
                unsafe {
                    let mask = _bzhi_u32(0xff, count as u32) as __mmask8;
                    _mm_mask_storeu_epi16(to.words.as_mut_ptr().add(at).cast(), mask, words);
                }
            }
        }
        put_raw(values, &mut to.raw[number]);
        if _mm512_test_epi64_mask(flags, _mm512_set1_epi64(EXCEPTION as i64)) != 0 {
            to.note_exceptions(number, round);
        }
    }
    for (x, lanes) in x.iter().zip(to.states.as_chunks_mut::<ENCODER_WIDTH>().0) {
        // SAFETY: 32 bytes are written to eight 32-bit words
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm512_cvtepi64_epi32(*x)) };
    }
    at
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_half(half: &[u8; ROUND_BYTES / 2]) -> __m512i {
    // SAFETY: 64 bytes are read from 64 bytes
    unsafe { _mm512_loadu_si512(half.as_ptr().cast()) }
}

/// Codes one symbol in each lane: the new states, the table's entries, the words that leave and
/// their number.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,bmi1,bmi2,popcnt")]
fn encode_step(
    table: &EncodeTable,
    x: __m512i,
    codes: __m256i,
) -> (__m512i, __m512i, __m128i, usize) {
    // SAFETY: every index is below CODES, the length of the table
    let packed = unsafe { _mm512_i32gather_epi64::<8>(codes, table.as_ptr().cast()) };
    let twelve = _mm512_set1_epi64(0xfff);
    let complement = _mm512_and_si512(_mm512_srli_epi64::<44>(packed), twelve);
    let start = _mm512_and_si512(_mm512_srli_epi64::<32>(packed), twelve);
    let end = _mm512_sub_epi64(
        _mm512_set1_epi64(i64::from(SCALE) << 19),
        _mm512_slli_epi64::<19>(complement),
    );
    let leaves = _mm512_cmpge_epu64_mask(x, end);
    let words = _mm512_cvtepi64_epi16(_mm512_maskz_compress_epi64(leaves, x));
    let x = _mm512_mask_srli_epi64::<16>(x, leaves, x);
    // the reciprocal is the lower half of the entry, the state that of its lane
    let quotient = _mm512_srlv_epi64(_mm512_mul_epu32(x, packed), _mm512_srli_epi64::<58>(packed));
    let x = _mm512_add_epi64(
        _mm512_add_epi64(x, start),
        _mm512_mul_epu32(quotient, complement),
    );
    (x, packed, words, leaves.count_ones() as usize)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn put_raw(values: [__m512i; 2], raw: &mut Raw) {
    let [first, second] = [join_raw(values[0]), join_raw(values[1])];
    let bytes = _mm512_permutex2var_epi8(first, load_index(&GATHERED), second);
    // SAFETY: the mask leaves the 48 bytes that there are
    unsafe { _mm512_mask_storeu_epi8(raw.as_mut_ptr().cast(), RAW_BYTES_MASK, bytes) };
}

/// The raw bits of the four values of each 64-bit lane in its lower 24 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn join_raw(values: __m512i) -> __m512i {
    /// `z ? x : y` as a truth table of `vpternlogd`.
    const SELECT: i32 = 0xE4;
    let sign = _mm512_srli_epi16::<10>(values);
    let six = _mm512_ternarylogic_epi32::<SELECT>(values, sign, _mm512_set1_epi16(0x1f));
    let six = _mm512_and_si512(six, _mm512_set1_epi16(0x3f));
    let twelve = _mm512_madd_epi16(six, _mm512_set1_epi32(64 << 16 | 1));
    _mm512_or_si512(twelve, _mm512_srli_epi64::<20>(twelve))
}

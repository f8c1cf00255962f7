//! The decoder with AVX2: eight registers of eight states.

#![expect(
    unsafe_code,
    reason = "gathers, loads and stores through pointers; calls that need processor features"
)]

use std::arch::x86_64::*;

use super::model::DecodeTable;
use super::{
    AHEAD_BYTES, Codes, Kind, LANES, LOWEST, Progress, RAW_BYTES, ROUND_BYTES, Raw, Round, SCALE,
    Simd, States, WORD_BYTES,
};

/// Lanes of a register.
const WIDTH: usize = 8;
const REGISTERS: usize = LANES / WIDTH;
/// A round is merged in this many groups of sixteen values.
const GROUPS: usize = 4;

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
    assert_eq!(simd.0, Kind::Avx2);
    // SAFETY: a `Simd` of this kind is only made where the processor has all features of the
    // function
    unsafe { decode_avx2(table, codes, states, words, raw, rounds) }
}

/// For each set of lanes that take a word: which word each lane takes.
static TAKES: [[u8; WIDTH]; 256] = {
    let (mut takes, mut set) = ([[0; WIDTH]; 256], 0);
    while set < 256 {
        let (mut lane, mut word) = (0, 0);
        while lane < WIDTH {
            takes[set][lane] = word;
            word += (set >> lane & 1) as u8;
            lane += 1;
        }
        set += 1;
    }
    takes
};

/// Which bytes of a group's twelve hold the six bits of each of its sixteen values, `first` being
/// where they begin in the loaded sixteen.
const fn picks(first: u8) -> [u8; 32] {
    /// Nothing of this byte is needed.
    const ZERO: u8 = 0x80;
    let (mut index, mut i) = ([0; 32], 0);
    while i < 16 {
        let bit = 6 * i as u8;
        index[2 * i] = first + bit / 8;
        index[2 * i + 1] = if bit % 8 > 2 {
            first + bit / 8 + 1
        } else {
            ZERO
        };
        i += 1;
    }
    index
}

const PICKS: [u8; 32] = picks(0);
const PICKS_OF_LAST: [u8; 32] = picks(4);
/// Moves the six bits of four values, which begin at bits 0, 6, 4 and 2, to the top of 16 bits.
const TO_TOP: i64 = i64::from_le_bytes([0, 4, 16, 0, 64, 0, 0, 1]);

#[inline]
#[target_feature(enable = "avx2")]
fn load_index(index: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes are read from 32 bytes
    unsafe { _mm256_loadu_si256(index.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
fn decode_avx2(
    table: &DecodeTable,
    codes: Codes,
    states: &mut States,
    words: &[u8],
    raw: &[Raw],
    rounds: &mut [Round],
) -> Progress {
    let mut x = [_mm256_setzero_si256(); REGISTERS];
    for (x, lanes) in x.iter_mut().zip(states.as_chunks::<WIDTH>().0) {
        // SAFETY: 32 bytes are read from eight 32-bit words
        *x = unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) };
    }
    let (mut number, mut bytes) = (0, 0);
    for (raw, round) in raw.iter().zip(rounds) {
        let Some(ahead) = words
            .get(bytes..)
            .and_then(|w| w.first_chunk::<AHEAD_BYTES>())
        else {
            break;
        };
        let mut entries = [_mm256_setzero_si256(); REGISTERS];
        let mut used = 0;
        for (x, entry) in x.iter_mut().zip(&mut entries) {
            let read;
            // SAFETY: before this register at most 8 words were used for each register before it,
            // so that these 8 words are among the 64 of `ahead`
            let next = unsafe { _mm_loadu_si128(ahead.as_ptr().add(used).cast()) };
            (*x, *entry, read) = step(table, *x, next);
            used += read * WORD_BYTES;
        }
        merge(codes, &entries, raw, round);
        bytes += used;
        number += 1;
    }
    for (x, lanes) in x.iter().zip(states.as_chunks_mut::<WIDTH>().0) {
        // SAFETY: 32 bytes are written to eight 32-bit words
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), *x) };
    }
    Progress {
        rounds: number,
        bytes,
    }
}

/// Decodes one symbol in each lane: the new states, the table's entries, and how many of the words
/// were used.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
fn step(table: &DecodeTable, x: __m256i, next: __m128i) -> (__m256i, __m256i, usize) {
    let slot = _mm256_and_si256(x, _mm256_set1_epi32(SCALE as i32 - 1));
    // SAFETY: every index is below SCALE, the length of the table
    let entry = unsafe { _mm256_i32gather_epi32::<4>(table.as_ptr().cast(), slot) };
    let frequency = _mm256_srli_epi32::<20>(entry);
    let offset = _mm256_and_si256(_mm256_srli_epi32::<8>(entry), _mm256_set1_epi32(0xfff));
    let x = _mm256_add_epi32(
        _mm256_mullo_epi32(frequency, _mm256_srli_epi32::<12>(x)),
        offset,
    );
    // states are below 2^31, so that a signed comparison will do
    let low = _mm256_cmpgt_epi32(_mm256_set1_epi32(LOWEST as i32), x);
    let set = _mm256_movemask_ps(_mm256_castsi256_ps(low)).cast_unsigned() as u8;
    // SAFETY: 8 bytes are read from 8 bytes
    let takes =
        _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(TAKES[usize::from(set)].as_ptr().cast()) });
    let words = _mm256_permutevar8x32_epi32(_mm256_cvtepu16_epi32(next), takes);
    let refilled = _mm256_or_si256(_mm256_slli_epi32::<16>(x), words);
    (
        _mm256_blendv_epi8(x, refilled, low),
        entry,
        set.count_ones() as usize,
    )
}

/// From symbols and raw bits to values.
#[inline]
#[target_feature(enable = "avx2")]
fn merge(codes: Codes, entries: &[__m256i; REGISTERS], raw: &Raw, round: &mut Round) {
    let base = _mm256_set1_epi16((codes.base << 5) as i16);
    let special = _mm256_set1_epi16((codes.special << 5) as i16);
    for (group, to) in round
        .as_chunks_mut::<{ ROUND_BYTES / GROUPS }>()
        .0
        .iter_mut()
        .enumerate()
    {
        // lanes of the even registers are the lower halves of 32-bit words, those of the odd ones
        // the upper
        let first = group / 2 * 4 + group % 2;
        let (even, odd) = (entries[first], entries[first + 2]);
        let both = _mm256_blend_epi16::<0xAA>(even, _mm256_slli_epi32::<16>(odd));
        let symbols = _mm256_and_si256(both, _mm256_set1_epi16(0xff));
        let is_special = _mm256_cmpeq_epi16(symbols, _mm256_setzero_si256());
        let offset = _mm256_blendv_epi8(base, special, is_special);
        let upper = _mm256_add_epi16(_mm256_slli_epi16::<5>(symbols), offset);
        let values = _mm256_or_si256(upper, raw_bits(raw, group));
        // SAFETY: 32 bytes are written to 32 bytes
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), values) };
    }
}

/// Sign and lower mantissa bits of the sixteen values of a group, in their places.
#[inline]
#[target_feature(enable = "avx2")]
fn raw_bits(raw: &Raw, group: usize) -> __m256i {
    let (at, picks) = if group + 1 < GROUPS {
        (group * RAW_BYTES / GROUPS, &PICKS)
    } else {
        (RAW_BYTES - 16, &PICKS_OF_LAST)
    };
    // SAFETY: `at` is at most 32, so that 16 of the 48 bytes are read
    let bytes = unsafe { _mm_loadu_si128(raw.as_ptr().add(at).cast()) };
    let pairs = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), load_index(picks));
    let top = _mm256_mullo_epi16(pairs, _mm256_set1_epi64x(TO_TOP));
    let sign = _mm256_and_si256(top, _mm256_set1_epi16(0x8000_u16 as i16));
    let mantissa = _mm256_and_si256(_mm256_srli_epi16::<10>(top), _mm256_set1_epi16(0x1f));
    _mm256_or_si256(sign, mantissa)
}

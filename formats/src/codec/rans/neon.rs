//! The decoder with NEON: sixteen registers of four states. There is no gather: each lane reads the
//! table by itself.

#![expect(
    unsafe_code,
    reason = "lookups, loads and stores through pointers; calls that need processor features"
)]

use std::arch::aarch64::*;

use super::model::DecodeTable;
use super::{
    AHEAD_BYTES, Codes, Kind, LANES, LOWEST, Progress, RAW_BYTES, ROUND_BYTES, Raw, Round, SCALE,
    Simd, States,
};

/// Lanes of a register.
const WIDTH: usize = 4;
/// Lanes that take their words together: two registers.
const EIGHT: usize = 2 * WIDTH;
/// Registers of half a round, whose 32 values lie next to each other.
const HALF: usize = LANES / WIDTH / 2;
/// Half a round is merged in this many groups of sixteen values.
const GROUPS: usize = 2;

/// States of half a round, or what the table has for them.
type Half = [uint32x4_t; HALF];

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
    assert_eq!(simd.0, Kind::Neon);
    // SAFETY: a `Simd` of this kind is only made where the processor has the feature of the function
    unsafe { decode_neon(table, codes, states, words, raw, rounds) }
}

/// For each set of eight lanes that take a word: which bytes of eight words each lane takes, and none
/// where it takes no word.
static TAKES: [[u8; 2 * EIGHT]; 256] = {
    let (mut takes, mut set) = ([[NONE; 2 * EIGHT]; 256], 0);
    while set < 256 {
        let (mut lane, mut byte) = (0, 0);
        while lane < EIGHT {
            if set >> lane & 1 == 1 {
                takes[set][2 * lane] = byte;
                takes[set][2 * lane + 1] = byte + 1;
                byte += 2;
            }
            lane += 1;
        }
        set += 1;
    }
    takes
};

/// A byte that no register has: zero is taken for it.
const NONE: u8 = 0xff;

/// For each of eight lanes its bit in a set, and above the set the two bytes of its word.
static BITS: [u16; EIGHT] = {
    let (mut bits, mut lane) = ([0; EIGHT], 0);
    while lane < EIGHT {
        bits[lane] = 1 << lane | 2 << 8;
        lane += 1;
    }
    bits
};

/// Which bytes of sixteen hold the six bits of each of eight values, `first` being where they begin.
const fn picks(first: u8) -> [u8; 16] {
    let (mut index, mut i) = ([0; 16], 0);
    while i < 8 {
        let bit = 6 * i as u8;
        index[2 * i] = first + bit / 8;
        index[2 * i + 1] = if bit % 8 > 2 {
            first + bit / 8 + 1
        } else {
            NONE
        };
        i += 1;
    }
    index
}

/// Of a group's sixteen values, which begin with the first byte.
static PICKS: [[u8; 16]; 2] = [picks(0), picks(6)];
/// Of the last group of a round, which begins with byte 4 of the last sixteen.
static PICKS_OF_LAST: [[u8; 16]; 2] = [picks(4), picks(10)];
/// Moves the six bits of four values, which begin at bits 0, 6, 4 and 2, to the top of 16 bits.
static TO_TOP: [i16; 8] = [10, 4, 6, 8, 10, 4, 6, 8];

#[target_feature(enable = "neon")]
fn decode_neon(
    table: &DecodeTable,
    codes: Codes,
    states: &mut States,
    words: &[u8],
    raw: &[Raw],
    rounds: &mut [Round],
) -> Progress {
    let (first, second) = states.as_chunks::<{ LANES / 2 }>().0.split_at(1);
    let mut halves = [load_half(&first[0]), load_half(&second[0])];
    let (mut number, mut bytes) = (0, 0);
    for (raw, round) in raw.iter().zip(rounds) {
        let Some(ahead) = words
            .get(bytes..)
            .and_then(|w| w.first_chunk::<AHEAD_BYTES>())
        else {
            break;
        };
        let mut used = 0;
        for (half, x) in halves.iter_mut().enumerate() {
            let entries;
            (*x, entries, used) = step(table, *x, ahead, used);
            merge(codes, &entries, half, raw, round);
        }
        bytes += used;
        number += 1;
    }
    for (half, to) in halves.iter().zip(states.as_chunks_mut::<{ LANES / 2 }>().0) {
        store_half(half, to);
    }
    Progress {
        rounds: number,
        bytes,
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_half(states: &[u32; LANES / 2]) -> Half {
    let mut half = [vdupq_n_u32(0); HALF];
    for (x, lanes) in half.iter_mut().zip(states.as_chunks::<WIDTH>().0) {
        // SAFETY: 16 bytes are read from four 32-bit words
        *x = unsafe { vld1q_u32(lanes.as_ptr()) };
    }
    half
}

#[inline]
#[target_feature(enable = "neon")]
fn store_half(half: &Half, states: &mut [u32; LANES / 2]) {
    for (x, lanes) in half.iter().zip(states.as_chunks_mut::<WIDTH>().0) {
        // SAFETY: 16 bytes are written to four 32-bit words
        unsafe { vst1q_u32(lanes.as_mut_ptr(), *x) };
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_index(index: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 bytes are read from 16 bytes
    unsafe { vld1q_u8(index.as_ptr()) }
}

/// Decodes one symbol in each lane of half a round: the new states, the table's entries, and how many
/// bytes of words were used, `used` of them before.
#[inline]
#[target_feature(enable = "neon")]
fn step(
    table: &DecodeTable,
    mut x: Half,
    ahead: &[u8; AHEAD_BYTES],
    mut used: usize,
) -> (Half, Half, usize) {
    let mut entries = [vdupq_n_u32(0); HALF];
    // SAFETY: 16 bytes are read from eight 16-bit words
    let bits = unsafe { vld1q_u16(BITS.as_ptr()) };
    for i in (0..HALF).step_by(2) {
        let mut low = [vdupq_n_u32(0); 2];
        for j in 0..2 {
            let entry = look_up(table, x[i + j]);
            let offset = vandq_u32(vshrq_n_u32::<8>(entry), vdupq_n_u32(0xfff));
            let upper = vshrq_n_u32::<12>(x[i + j]);
            x[i + j] = vmlaq_u32(offset, vshrq_n_u32::<20>(entry), upper);
            low[j] = vcltq_u32(x[i + j], vdupq_n_u32(LOWEST));
            entries[i + j] = entry;
        }
        let lanes = vuzp1q_u16(vreinterpretq_u16_u32(low[0]), vreinterpretq_u16_u32(low[1]));
        let set = usize::from(vaddvq_u16(vandq_u16(lanes, bits)));
        // SAFETY: before these lanes at most 8 words were used for each eight before them, so that
        // these 8 words are among the 64 of `ahead`
        let next = unsafe { vld1q_u8(ahead.as_ptr().add(used)) };
        let taken = vreinterpretq_u16_u8(vqtbl1q_u8(next, load_index(&TAKES[set & 0xff])));
        for j in 0..2 {
            let shift = vandq_u32(low[j], vdupq_n_u32(16));
            x[i + j] = vshlq_u32(x[i + j], vreinterpretq_s32_u32(shift));
        }
        x[i] = vaddw_u16(x[i], vget_low_u16(taken));
        x[i + 1] = vaddw_high_u16(x[i + 1], taken);
        used += set >> 8;
    }
    (x, entries, used)
}

/// What the table has for four states.
#[inline]
#[target_feature(enable = "neon")]
fn look_up(table: &DecodeTable, x: uint32x4_t) -> uint32x4_t {
    let slots = vreinterpretq_u64_u32(vandq_u32(x, vdupq_n_u32(SCALE - 1)));
    let pairs = [vgetq_lane_u64::<0>(slots), vgetq_lane_u64::<1>(slots)];
    let mut entries = vdupq_n_u32(0);
    // SAFETY: every index is below SCALE, the length of the table
    unsafe {
        let entry = |slot: u64| table.as_ptr().add(slot as u32 as usize);
        entries = vld1q_lane_u32::<0>(entry(pairs[0]), entries);
        entries = vld1q_lane_u32::<1>(entry(pairs[0] >> 32), entries);
        entries = vld1q_lane_u32::<2>(entry(pairs[1]), entries);
        vld1q_lane_u32::<3>(entry(pairs[1] >> 32), entries)
    }
}

/// From symbols and raw bits to the values of half a round.
#[inline]
#[target_feature(enable = "neon")]
fn merge(codes: Codes, entries: &Half, half: usize, raw: &Raw, round: &mut Round) {
    let base = vdupq_n_u16(codes.base << 5);
    let special = vdupq_n_u16(codes.special << 5);
    // SAFETY: 16 bytes are read from eight 16-bit numbers
    let to_top = unsafe { vld1q_s16(TO_TOP.as_ptr()) };
    let to = &mut round.as_chunks_mut::<{ ROUND_BYTES / 2 }>().0[half];
    for (group, to) in to.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let number = half * GROUPS + group;
        let (at, picks) = if number + 1 < 2 * GROUPS {
            (number * RAW_BYTES / (2 * GROUPS), &PICKS)
        } else {
            (RAW_BYTES - 16, &PICKS_OF_LAST)
        };
        // SAFETY: `at` is at most 32, so that 16 of the 48 bytes are read
        let bytes = unsafe { vld1q_u8(raw.as_ptr().add(at)) };
        for (i, to) in to.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            // lanes of the first registers are the lower halves of 32-bit words, those of the ones
            // after them the upper
            let first = 2 * group + i;
            let both = vsliq_n_u32::<16>(entries[first], entries[first + HALF / 2]);
            let symbols = vandq_u16(vreinterpretq_u16_u32(both), vdupq_n_u16(0xff));
            let offset = vbslq_u16(vceqzq_u16(symbols), special, base);
            let upper = vaddq_u16(offset, vshlq_n_u16::<5>(symbols));
            let pairs = vreinterpretq_u16_u8(vqtbl1q_u8(bytes, load_index(&picks[i])));
            let top = vshlq_u16(pairs, to_top);
            let values = vsriq_n_u16::<11>(upper, vshlq_n_u16::<1>(top));
            let values = vbslq_u16(vdupq_n_u16(0x8000), top, values);
            // SAFETY: 16 bytes are written to 16 bytes
            unsafe { vst1q_u8(to.as_mut_ptr(), vreinterpretq_u8_u16(values)) };
        }
    }
}

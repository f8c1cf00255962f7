//! The coders in plain integers: what every other path must equal.

use super::model::{CodeStep, DecodeTable, EXCEPTION};
use super::{
    AHEAD_BYTES, Codes, Encoding, LANES, LOWEST, Progress, Raw, Round, SCALE, SCALE_BITS, States,
    VALUE_BYTES, WORD_BYTES, code_of, position, raw_of, u16_at,
};

/// As [`decode_some`](super::decode_some).
pub(super) fn decode(
    table: &DecodeTable,
    codes: Codes,
    states: &mut States,
    words: &[u8],
    raw: &[Raw],
    rounds: &mut [Round],
) -> Progress {
    let mut bytes = 0;
    for (number, (raw, round)) in raw.iter().zip(rounds).enumerate() {
        let Some(ahead) = words
            .get(bytes..)
            .and_then(|w| w.first_chunk::<AHEAD_BYTES>())
        else {
            return Progress {
                rounds: number,
                bytes,
            };
        };
        let (mut upper, mut used) = ([0; LANES], 0);
        for (lane, state) in states.iter_mut().enumerate() {
            let entry = table[(*state % SCALE) as usize];
            let x = (entry >> 20) * (*state >> SCALE_BITS) + (entry >> 8 & 0xfff);
            // no branch: a processor cannot foresee it
            let low = u32::from(x < LOWEST);
            let word = u32::from(u16_at(ahead, used));
            *state = x << (16 * low) | word & low.wrapping_neg();
            used += low as usize * WORD_BYTES;
            let symbol = (entry & 0xff) as u16;
            let code = if symbol == 0 {
                codes.special
            } else {
                codes.base.wrapping_add(symbol)
            };
            upper[position(lane)] = code << 5;
        }
        bytes += used;
        merge(&upper, raw, round);
    }
    Progress {
        rounds: raw.len(),
        bytes,
    }
}

fn merge(upper: &[u16; LANES], raw: &Raw, round: &mut Round) {
    let groups = raw.as_chunks::<3>().0.iter().zip(upper.as_chunks::<4>().0);
    for ((three, upper), values) in groups.zip(round.as_chunks_mut::<{ 4 * VALUE_BYTES }>().0) {
        let bits = u32::from_le_bytes([three[0], three[1], three[2], 0]);
        for (i, value) in values
            .as_chunks_mut::<VALUE_BYTES>()
            .0
            .iter_mut()
            .enumerate()
        {
            let six = (bits >> (6 * i)) as u16 & 0x3f;
            *value = (upper[i] | six & 0x1f | six >> 5 << 15).to_le_bytes();
        }
    }
}

/// As [`encode_rounds`](super::encode_rounds).
pub(super) fn encode(rounds: &[Round], mut to: Encoding<'_>) -> usize {
    let mut at = to.words.len();
    for (number, round) in rounds.iter().enumerate().rev() {
        let values = round.as_chunks::<VALUE_BYTES>().0;
        let mut flags = 0;
        for lane in (0..LANES).rev() {
            let value = u16::from_le_bytes(values[position(lane)]);
            let packed = to.table[usize::from(code_of(value))];
            flags |= packed;
            let (step, state) = (CodeStep::unpack(packed), &mut to.states[lane]);
            // the states below this one are those that a decoder comes from; no branch, as above
            let leaves = u32::from(*state >= (SCALE - step.complement) << 19);
            to.words[at - 1] = *state as u16;
            at -= leaves as usize;
            *state >>= 16 * leaves;
            let quotient = ((u64::from(*state) * step.reciprocal) >> step.shift) as u32;
            *state += step.start + quotient * step.complement;
        }
        split_raw(values, &mut to.raw[number]);
        if flags & EXCEPTION != 0 {
            to.note_exceptions(number, round);
        }
    }
    at
}

fn split_raw(values: &[[u8; VALUE_BYTES]], raw: &mut Raw) {
    for (four, three) in values
        .as_chunks::<4>()
        .0
        .iter()
        .zip(raw.as_chunks_mut::<3>().0)
    {
        let six = four.map(|v| u32::from(raw_of(u16::from_le_bytes(v))));
        let bits = (six[0] | six[1] << 6 | six[2] << 12 | six[3] << 18).to_le_bytes();
        three.copy_from_slice(&bits[..3]);
    }
}

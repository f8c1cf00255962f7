//! Two SHA-256 streams interleaved with the SHA extensions of x86-64.
//!
//! `sha256rnds2` takes about twice as long to give its result as to make room for the next one, so
//! one stream leaves the unit idle half of the time. Two chains fill it.
//!
//! Register layout (Intel SDM, SHA256RNDS2): the eight working variables of FIPS 180-4 section
//! 6.2.2 lie in two registers, named from the highest word down: `abef` holds A, B, E, F and `cdgh`
//! C, D, G, H.

#![expect(
    unsafe_code,
    reason = "loads and stores through pointers; calls that need processor features"
)]

use std::arch::x86_64::*;

use super::{Block, K, State};

/// Proof that the processor has SHA-NI, SSSE3 and SSE4.1.
#[derive(Debug, Clone, Copy)]
pub(super) struct ShaNi(());

impl ShaNi {
    pub(super) fn detect() -> Option<Self> {
        let all = std::is_x86_feature_detected!("sha")
            && std::is_x86_feature_detected!("ssse3")
            && std::is_x86_feature_detected!("sse4.1");
        all.then_some(Self(()))
    }

    /// Compresses the same blocks into two states.
    pub(super) fn compress_same(self, first: &mut State, second: &mut State, blocks: &[Block]) {
        // SAFETY: `self` is only made by `detect`, which has seen every feature of the function
        unsafe { compress_same(first, second, blocks) }
    }

    /// Compresses each state's own blocks as far as both have some; returns that count.
    pub(super) fn compress_two(
        self,
        first: &mut State,
        first_blocks: &[Block],
        second: &mut State,
        second_blocks: &[Block],
    ) -> usize {
        // SAFETY: `self` is only made by `detect`, which has seen every feature of the function
        unsafe { compress_two(first, first_blocks, second, second_blocks) }
        first_blocks.len().min(second_blocks.len())
    }
}

/// The working variables of one message.
#[derive(Clone, Copy)]
struct Working {
    abef: __m128i,
    cdgh: __m128i,
}

#[target_feature(enable = "sha,sse4.1,ssse3")]
fn compress_same(first: &mut State, second: &mut State, blocks: &[Block]) {
    let (mut a, mut b) = (load_state(first), load_state(second));
    for block in blocks {
        let (a_before, b_before) = (a, b);
        let mut w = load_block(block);
        for (i, &words) in w.iter().enumerate() {
            let wk = _mm_add_epi32(words, constants(i));
            rounds4_two(&mut a, wk, &mut b, wk);
        }
        for row in 1..4 {
            for i in 0..4 {
                w[i] = schedule4(&w, i);
                let wk = _mm_add_epi32(w[i], constants(4 * row + i));
                rounds4_two(&mut a, wk, &mut b, wk);
            }
        }
        a = add(a, a_before);
        b = add(b, b_before);
    }
    store_state(first, a);
    store_state(second, b);
}

#[target_feature(enable = "sha,sse4.1,ssse3")]
fn compress_two(
    first: &mut State,
    first_blocks: &[Block],
    second: &mut State,
    second_blocks: &[Block],
) {
    let (mut a, mut b) = (load_state(first), load_state(second));
    for (a_block, b_block) in first_blocks.iter().zip(second_blocks) {
        let (a_before, b_before) = (a, b);
        let (mut v, mut w) = (load_block(a_block), load_block(b_block));
        for i in 0..4 {
            let k = constants(i);
            rounds4_two(
                &mut a,
                _mm_add_epi32(v[i], k),
                &mut b,
                _mm_add_epi32(w[i], k),
            );
        }
        for row in 1..4 {
            for i in 0..4 {
                v[i] = schedule4(&v, i);
                w[i] = schedule4(&w, i);
                let k = constants(4 * row + i);
                rounds4_two(
                    &mut a,
                    _mm_add_epi32(v[i], k),
                    &mut b,
                    _mm_add_epi32(w[i], k),
                );
            }
        }
        a = add(a, a_before);
        b = add(b, b_before);
    }
    store_state(first, a);
    store_state(second, b);
}

/// Rounds 4n to 4n + 3 (section 6.2.2 step 3) of two messages; `wk` is W + K of these rounds.
#[inline]
#[target_feature(enable = "sha,sse4.1,ssse3")]
fn rounds4_two(a: &mut Working, a_wk: __m128i, b: &mut Working, b_wk: __m128i) {
    // two rounds turn (C, D, G, H) into the next (A, B, E, F), and (A, B, E, F) are the next (C, D,
    // G, H)
    a.cdgh = _mm_sha256rnds2_epu32(a.cdgh, a.abef, a_wk);
    b.cdgh = _mm_sha256rnds2_epu32(b.cdgh, b.abef, b_wk);
    a.abef = _mm_sha256rnds2_epu32(a.abef, a.cdgh, _mm_shuffle_epi32::<0x0E>(a_wk));
    b.abef = _mm_sha256rnds2_epu32(b.abef, b.cdgh, _mm_shuffle_epi32::<0x0E>(b_wk));
}

/// The next four words of the message schedule (section 6.2.2 step 1), which take the place of
/// `w[i]`, the oldest four of the last sixteen.
#[inline]
#[target_feature(enable = "sha,sse4.1,ssse3")]
fn schedule4(w: &[__m128i; 4], i: usize) -> __m128i {
    let (oldest, second, third, newest) = (w[i], w[(i + 1) % 4], w[(i + 2) % 4], w[(i + 3) % 4]);
    // W(t-16) + sigma0(W(t-15)), then + W(t-7), then + sigma1(W(t-2))
    let sum = _mm_add_epi32(
        _mm_sha256msg1_epu32(oldest, second),
        _mm_alignr_epi8::<4>(newest, third),
    );
    _mm_sha256msg2_epu32(sum, newest)
}

/// K of rounds 4n to 4n + 3 (section 4.2.2), the first in the lowest word.
#[inline]
#[target_feature(enable = "sse2")]
fn constants(n: usize) -> __m128i {
    let four: &[u32; 4] = &K[n / 4].as_chunks().0[n % 4];
    // SAFETY: four words are 16 bytes, and this load asks for no alignment
    unsafe { _mm_loadu_si128(four.as_ptr().cast()) }
}

/// The sixteen words of a block, which are big-endian in memory.
#[inline]
#[target_feature(enable = "sse2,ssse3")]
fn load_block(block: &Block) -> [__m128i; 4] {
    let swap = _mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203);
    let (quarters, _) = block.as_chunks::<16>();
    // a loop: `array::from_fn` has not these instructions, so that its closure may stay a call
    let mut words = [_mm_setzero_si128(); 4];
    for (words, quarter) in words.iter_mut().zip(quarters) {
        // SAFETY: a quarter is 16 bytes long, and this load asks for no alignment
        let loaded = unsafe { _mm_loadu_si128(quarter.as_ptr().cast()) };
        *words = _mm_shuffle_epi8(loaded, swap);
    }
    words
}

/// Section 6.2.2 step 4, and the new hash value as the next step 2's working variables.
#[inline]
#[target_feature(enable = "sse2")]
fn add(now: Working, before: Working) -> Working {
    Working {
        abef: _mm_add_epi32(now.abef, before.abef),
        cdgh: _mm_add_epi32(now.cdgh, before.cdgh),
    }
}

#[inline]
#[target_feature(enable = "sse2")]
fn load_state(&[a, b, c, d, e, f, g, h]: &State) -> Working {
    Working {
        abef: from_words([a, b, e, f]),
        cdgh: from_words([c, d, g, h]),
    }
}

/// A register of these words, from the highest down.
#[inline]
#[target_feature(enable = "sse2")]
fn from_words(words: [u32; 4]) -> __m128i {
    let [highest, upper, lower, lowest] = words.map(u32::cast_signed);
    _mm_set_epi32(highest, upper, lower, lowest)
}

#[inline]
#[target_feature(enable = "sse2")]
fn store_state(state: &mut State, working: Working) {
    let ([f, e, b, a], [h, g, d, c]) = (to_words(working.abef), to_words(working.cdgh));
    *state = [a, b, c, d, e, f, g, h];
}

/// The words of a register, from the lowest up.
#[inline]
#[target_feature(enable = "sse2")]
fn to_words(register: __m128i) -> [u32; 4] {
    let mut words = [0_u32; 4];
    // SAFETY: the array is 16 bytes long, and this store asks for no alignment
    unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), register) };
    words
}

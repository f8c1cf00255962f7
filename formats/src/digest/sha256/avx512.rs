//! Sixteen SHA-256 messages at once with AVX-512: word `i` of every register belongs to message
//! `i`.
//!
//! The round functions are those of FIPS 180-4 section 4.1.2. AVX-512 has a rotate (`vprord`) and
//! any function of three bits (`vpternlogd`), so each sigma is three rotates and one operation, and
//! Ch and Maj are one operation each.

#![expect(
    unsafe_code,
    reason = "loads and stores through pointers; calls that need processor features"
)]

use std::arch::x86_64::*;

use super::{Block, K, LANES, State};

/// Proof that the processor and the operating system have AVX-512 F and BW.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let all =
            std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw");
        all.then_some(Self(()))
    }

    /// Compresses `blocks[i]` into `states[i]`, as many blocks as the shortest list has.
    pub(super) fn compress_lanes(self, states: &mut [State; LANES], blocks: [&[Block]; LANES]) {
        // SAFETY: `self` is only made by `detect`, which has seen every feature of the function
        unsafe { compress_lanes(states, blocks) }
    }
}

/// Truth tables of `vpternlogd`: bit `4x + 2y + z` is the result for the bits x, y, z.
mod table {
    /// x ^ y ^ z.
    pub(super) const XOR: i32 = 0x96;
    /// Ch(x, y, z) = (x & y) ^ (!x & z) (FIPS 180-4 formula 4.2).
    pub(super) const CH: i32 = 0xCA;
    /// Maj(x, y, z) = (x & y) ^ (x & z) ^ (y & z) (formula 4.3).
    pub(super) const MAJ: i32 = 0xE8;
}

/// Σ0(a) (formula 4.4).
#[inline]
#[target_feature(enable = "avx512f")]
fn big_sigma0(a: __m512i) -> __m512i {
    xor3(
        _mm512_ror_epi32::<2>(a),
        _mm512_ror_epi32::<13>(a),
        _mm512_ror_epi32::<22>(a),
    )
}

/// Σ1(e) (formula 4.5).
#[inline]
#[target_feature(enable = "avx512f")]
fn big_sigma1(e: __m512i) -> __m512i {
    xor3(
        _mm512_ror_epi32::<6>(e),
        _mm512_ror_epi32::<11>(e),
        _mm512_ror_epi32::<25>(e),
    )
}

/// σ0(w) (formula 4.6).
#[inline]
#[target_feature(enable = "avx512f")]
fn small_sigma0(w: __m512i) -> __m512i {
    xor3(
        _mm512_ror_epi32::<7>(w),
        _mm512_ror_epi32::<18>(w),
        _mm512_srli_epi32::<3>(w),
    )
}

/// σ1(w) (formula 4.7).
#[inline]
#[target_feature(enable = "avx512f")]
fn small_sigma1(w: __m512i) -> __m512i {
    xor3(
        _mm512_ror_epi32::<17>(w),
        _mm512_ror_epi32::<19>(w),
        _mm512_srli_epi32::<10>(w),
    )
}

#[inline]
#[target_feature(enable = "avx512f")]
fn xor3(x: __m512i, y: __m512i, z: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<{ table::XOR }>(x, y, z)
}

/// One round (section 6.2.2 step 3) with `k` = K(t) and `w` = W(t). Instead of moving every
/// variable on by one, it leaves the new `a` in `h` and the new `e` in `d`; the caller turns the
/// names.
#[inline]
#[target_feature(enable = "avx512f")]
#[expect(
    clippy::too_many_arguments,
    reason = "the eight working variables of the standard"
)]
fn round(
    a: __m512i,
    b: __m512i,
    c: __m512i,
    d: &mut __m512i,
    e: __m512i,
    f: __m512i,
    g: __m512i,
    h: &mut __m512i,
    k: u32,
    w: __m512i,
) {
    let ch = _mm512_ternarylogic_epi32::<{ table::CH }>(e, f, g);
    let maj = _mm512_ternarylogic_epi32::<{ table::MAJ }>(a, b, c);
    let hwk = _mm512_add_epi32(*h, _mm512_add_epi32(w, _mm512_set1_epi32(k.cast_signed())));
    let t1 = _mm512_add_epi32(_mm512_add_epi32(hwk, ch), big_sigma1(e));
    *d = _mm512_add_epi32(*d, t1);
    *h = _mm512_add_epi32(t1, _mm512_add_epi32(big_sigma0(a), maj));
}

/// W(t) of the first sixteen rounds: the block itself.
#[inline]
#[target_feature(enable = "avx512f")]
fn given(w: &mut [__m512i; 16], i: usize) -> __m512i {
    w[i]
}

/// W(t) of the other rounds (section 6.2.2 step 1). It takes the place of W(t - 16), `w[i]` for
/// i = t mod 16.
#[inline]
#[target_feature(enable = "avx512f")]
fn scheduled(w: &mut [__m512i; 16], i: usize) -> __m512i {
    let early = _mm512_add_epi32(w[i], small_sigma0(w[(i + 1) % 16]));
    let late = _mm512_add_epi32(w[(i + 9) % 16], small_sigma1(w[(i + 14) % 16]));
    w[i] = _mm512_add_epi32(early, late);
    w[i]
}

/// Sixteen rounds on the variables `$s` with the constants `$k`; `$word(&mut $w, t mod 16)` is
/// W(t).
///
/// Written out, since only constant indexes let the compiler keep variables and words in registers.
macro_rules! rounds16 {
    ($s:ident, $k:expr, $w:ident, $word:ident) => {
        rounds16!(@ $s, $k, $w, $word, 0 1 2 3 4 5 6 7, 0);
        rounds16!(@ $s, $k, $w, $word, 7 0 1 2 3 4 5 6, 1);
        rounds16!(@ $s, $k, $w, $word, 6 7 0 1 2 3 4 5, 2);
        rounds16!(@ $s, $k, $w, $word, 5 6 7 0 1 2 3 4, 3);
        rounds16!(@ $s, $k, $w, $word, 4 5 6 7 0 1 2 3, 4);
        rounds16!(@ $s, $k, $w, $word, 3 4 5 6 7 0 1 2, 5);
        rounds16!(@ $s, $k, $w, $word, 2 3 4 5 6 7 0 1, 6);
        rounds16!(@ $s, $k, $w, $word, 1 2 3 4 5 6 7 0, 7);
        rounds16!(@ $s, $k, $w, $word, 0 1 2 3 4 5 6 7, 8);
        rounds16!(@ $s, $k, $w, $word, 7 0 1 2 3 4 5 6, 9);
        rounds16!(@ $s, $k, $w, $word, 6 7 0 1 2 3 4 5, 10);
        rounds16!(@ $s, $k, $w, $word, 5 6 7 0 1 2 3 4, 11);
        rounds16!(@ $s, $k, $w, $word, 4 5 6 7 0 1 2 3, 12);
        rounds16!(@ $s, $k, $w, $word, 3 4 5 6 7 0 1 2, 13);
        rounds16!(@ $s, $k, $w, $word, 2 3 4 5 6 7 0 1, 14);
        rounds16!(@ $s, $k, $w, $word, 1 2 3 4 5 6 7 0, 15);
    };
    (@ $s:ident, $k:expr, $w:ident, $word:ident, $a:literal $b:literal $c:literal $d:literal
        $e:literal $f:literal $g:literal $h:literal, $i:literal) => {
        let word = $word(&mut $w, $i);
        let (mut d, mut h) = ($s[$d], $s[$h]);
        round($s[$a], $s[$b], $s[$c], &mut d, $s[$e], $s[$f], $s[$g], &mut h, $k[$i], word);
        ($s[$d], $s[$h]) = (d, h);
    };
}

#[target_feature(enable = "avx512f,avx512bw")]
fn compress_lanes(states: &mut [State; LANES], blocks: [&[Block]; LANES]) {
    // loops all along: `array::from_fn` has not these instructions, so that its closures may stay calls
    let mut hash = [_mm512_setzero_si512(); 8];
    for (word, register) in hash.iter_mut().enumerate() {
        let mut words = [0; LANES];
        for (lane, state) in words.iter_mut().zip(&*states) {
            *lane = state[word];
        }
        *register = load(&words);
    }
    let count = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
    for n in 0..count {
        let mut w = [_mm512_setzero_si512(); LANES];
        for (row, blocks) in w.iter_mut().zip(&blocks) {
            *row = load_block(&blocks[n]);
        }
        let mut w = transpose(w);
        let mut s = hash;
        // four calls and no loop: 10 % faster here, with fewer registers spilled
        rounds16!(s, K[0], w, given);
        rounds16!(s, K[1], w, scheduled);
        rounds16!(s, K[2], w, scheduled);
        rounds16!(s, K[3], w, scheduled);
        for (hash, s) in hash.iter_mut().zip(s) {
            *hash = _mm512_add_epi32(*hash, s);
        }
    }
    for (word, &register) in hash.iter().enumerate() {
        for (state, value) in states.iter_mut().zip(store(register)) {
            state[word] = value;
        }
    }
}

/// The sixteen words of a block, which are big-endian in memory.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_block(block: &Block) -> __m512i {
    let swap = _mm512_set4_epi32(0x0C0D_0E0F, 0x0809_0A0B, 0x0405_0607, 0x0001_0203);
    // SAFETY: a block is 64 bytes long, and this load asks for no alignment
    let words = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
    _mm512_shuffle_epi8(words, swap)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(words: &[u32; 16]) -> __m512i {
    // SAFETY: the array is 64 bytes long, and this load asks for no alignment
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(register: __m512i) -> [u32; 16] {
    let mut words = [0; 16];
    // SAFETY: the array is 64 bytes long, and this store asks for no alignment
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), register) };
    words
}

/// Word `j` of result `i` is word `i` of row `j`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    // within each 128-bit quarter: 4 by 4 words of rows 4n to 4n + 3
    let mut quads = rows;
    for quad in quads.as_chunks_mut::<4>().0 {
        let [r0, r1, r2, r3] = *quad;
        let (low01, high01) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
        let (low23, high23) = (_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
        *quad = [
            _mm512_unpacklo_epi64(low01, low23),
            _mm512_unpackhi_epi64(low01, low23),
            _mm512_unpacklo_epi64(high01, high23),
            _mm512_unpackhi_epi64(high01, high23),
        ];
    }
    // then 4 by 4 quarters: quarter q of quads[4n + j] holds word 4q + j of rows 4n to 4n + 3
    let mut words = rows;
    for j in 0..4 {
        let (q0, q1, q2, q3) = (quads[j], quads[4 + j], quads[8 + j], quads[12 + j]);
        let (even01, odd01) = (
            _mm512_shuffle_i32x4::<0x88>(q0, q1),
            _mm512_shuffle_i32x4::<0xDD>(q0, q1),
        );
        let (even23, odd23) = (
            _mm512_shuffle_i32x4::<0x88>(q2, q3),
            _mm512_shuffle_i32x4::<0xDD>(q2, q3),
        );
        words[j] = _mm512_shuffle_i32x4::<0x88>(even01, even23);
        words[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd01, odd23);
        words[8 + j] = _mm512_shuffle_i32x4::<0xDD>(even01, even23);
        words[12 + j] = _mm512_shuffle_i32x4::<0xDD>(odd01, odd23);
    }
    words
}

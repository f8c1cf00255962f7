//! SHA-256 (FIPS 180-4) over one stream, two streams at once, or many messages at once.
//!
//! One stream cannot keep a core busy: each SHA-NI round waits for the one before it. Two streams
//! interleaved ([`Sha256Hasher::update_pair`], [`Sha256Hasher::update_two`]) fill the gaps, and
//! sixteen ([`Sha256Lanes`]) can use AVX-512, one message to each 32-bit lane. Which instructions
//! run is decided at run time by what the processor has; every path gives the same digests.
//!
//! A single stream compresses through the `sha2` crate, which does its own run-time choice. That is
//! also the fallback of every other path, on x86-64 and elsewhere.
//!
//! All lengths are in bytes unless a name says bits or blocks; a block is 64 bytes (512 bits).
//! State words are host integers here and big-endian in message and digest (FIPS 180-4 section
//! 3.1).

use std::array;
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sha2::block_api::compress256;

use super::{Sha256, Sha256Midstate};

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod sha_ni;

#[cfg(target_arch = "x86_64")]
use {avx512::Avx512, sha_ni::ShaNi};

#[cfg(not(target_arch = "x86_64"))]
mod absent;
#[cfg(not(target_arch = "x86_64"))]
use absent::{Avx512, ShaNi};

#[cfg(test)]
mod tests;

/// Messages that one AVX-512 pass hashes together: 32-bit words in a 512-bit register.
pub const LANES: usize = 16;

/// Bytes in a block (FIPS 180-4 section 5.2.1: 512 bits).
const BLOCK_LEN: usize = 64;

/// Where the 64-bit message length starts in the last block (section 5.1.1: after 448 bits).
const LENGTH_AT: usize = 56;

/// One block of a message.
type Block = [u8; BLOCK_LEN];

/// The working hash value H0 to H7 of one message.
type State = [u32; 8];

/// The initial hash value H(0) (FIPS 180-4 section 5.3.3).
const INITIAL: State = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The round constants K0 to K63 (FIPS 180-4 section 4.2.2), sixteen rounds to a row.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const K: [[u32; 16]; 4] = [
    [
        0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
        0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    ],
    [
        0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
        0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    ],
    [
        0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
        0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    ],
    [
        0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
        0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
    ],
];

/// The words of a state, big-endian.
fn bytes_of(state: State) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    bytes
}

/// The instructions to use beside the `sha2` crate. A value of [`ShaNi`] or [`Avx512`] exists only
/// where the processor has them, so no choice made here can be unsound.
#[derive(Debug, Clone, Copy)]
struct Paths {
    /// Two streams interleaved.
    sha_ni: Option<ShaNi>,
    /// Sixteen messages transposed.
    avx512: Option<Avx512>,
    /// Fewest messages with a whole block left for which the AVX-512 path is taken.
    wide_from: usize,
}

/// [`Paths::wide_from`] without SHA-NI: portable code makes 0.4 GB/s there, two lanes 0.45.
const WIDE_FROM_ALONE: usize = 2;

impl Paths {
    /// What this processor does fastest. The features are looked up once per process by `std`.
    fn detect() -> Self {
        let (sha_ni, avx512) = (ShaNi::detect(), Avx512::detect());
        let wide_from = match (sha_ni, avx512) {
            (Some(sha_ni), Some(avx512)) => wide_from(sha_ni, avx512),
            _ => WIDE_FROM_ALONE,
        };
        Self {
            sha_ni,
            avx512,
            wide_from,
        }
    }

    /// Compresses the same blocks into two states.
    fn compress_same(self, first: &mut State, second: &mut State, blocks: &[Block]) {
        match self.sha_ni {
            Some(sha_ni) => sha_ni.compress_same(first, second, blocks),
            None => {
                compress256(first, blocks);
                compress256(second, blocks);
            }
        }
    }

    /// Compresses each state's own blocks, of any two counts.
    fn compress_two(
        self,
        first: &mut State,
        first_blocks: &[Block],
        second: &mut State,
        second_blocks: &[Block],
    ) {
        let both = match self.sha_ni {
            Some(sha_ni) => sha_ni.compress_two(first, first_blocks, second, second_blocks),
            None => 0,
        };
        compress256(first, &first_blocks[both..]);
        compress256(second, &second_blocks[both..]);
    }

    /// Compresses `blocks[i]` into `states[i]` for up to [`LANES`] messages, of any counts.
    fn compress_many(self, states: &mut [State; LANES], mut blocks: [&[Block]; LANES]) {
        loop {
            let mut active = [0; LANES];
            let mut count = 0;
            for (lane, left) in blocks.iter().enumerate() {
                if !left.is_empty() {
                    active[count] = lane;
                    count += 1;
                }
            }
            match (self.avx512, &active[..count]) {
                (_, []) => return,
                (Some(avx512), active) if count >= self.wide_from => {
                    let run = active
                        .iter()
                        .map(|&lane| blocks[lane].len())
                        .min()
                        .unwrap_or(0);
                    // a slot without a message of its own repeats the first one, and is dropped
                    let slot = |i: usize| *active.get(i).unwrap_or(&active[0]);
                    let mut wide: [State; LANES] = array::from_fn(|i| states[slot(i)]);
                    avx512.compress_lanes(&mut wide, array::from_fn(|i| &blocks[slot(i)][..run]));
                    for (state, &lane) in wide.iter().zip(active) {
                        states[lane] = *state;
                        blocks[lane] = &blocks[lane][run..];
                    }
                }
                (_, &[one]) => {
                    compress256(&mut states[one], blocks[one]);
                    blocks[one] = &[];
                }
                (_, &[first, second, ..]) => {
                    let run = blocks[first].len().min(blocks[second].len());
                    let (mut a, mut b) = (states[first], states[second]);
                    self.compress_two(
                        &mut a,
                        &blocks[first][..run],
                        &mut b,
                        &blocks[second][..run],
                    );
                    (states[first], states[second]) = (a, b);
                    blocks[first] = &blocks[first][run..];
                    blocks[second] = &blocks[second][run..];
                }
            }
        }
    }
}

/// [`Paths::wide_from`] where SHA-NI is there too, measured once per process, in some 50 µs: an
/// AVX-512 pass costs the same for any number of messages, pairs cost by the message, and the two
/// differ from processor to processor. Sixteen lanes and a pair make, in GB/s of one core, 5.4 and
/// 3.2 on Zen 5 (hence 10), 3.3 to 3.6 and 2.9 on Zen 4 (13 to 15), 4.3 and 2.0 on Sapphire Rapids
/// (8). A measurement that is disturbed costs time and nothing else.
fn wide_from(sha_ni: ShaNi, avx512: Avx512) -> usize {
    static MEASURED: OnceLock<usize> = OnceLock::new();
    *MEASURED.get_or_init(|| {
        let blocks = [[0; BLOCK_LEN]; 16];
        let mut wide = [INITIAL; LANES];
        let lanes = fastest(|| avx512.compress_lanes(&mut wide, [&blocks; LANES]));
        let [mut first, mut second] = [INITIAL; 2];
        let pair = fastest(|| {
            black_box(sha_ni.compress_two(&mut first, &blocks, &mut second, &blocks));
        });
        black_box((wide, first, second));
        fewest_messages(lanes, pair)
    })
}

/// The shortest of some runs, which others disturbed least.
fn fastest(mut run: impl FnMut()) -> Duration {
    let times = (0..8).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed()
    });
    times.min().unwrap_or_default()
}

/// From how many messages on one pass over [`LANES`] is faster than pairs of them; more than there can
/// be where it never is.
fn fewest_messages(lanes: Duration, pair: Duration) -> usize {
    let pairs = lanes.as_nanos().saturating_mul(2);
    let count = pairs.div_ceil(pair.as_nanos().max(1));
    usize::try_from(count)
        .unwrap_or(usize::MAX)
        .clamp(WIDE_FROM_ALONE, LANES + 1)
}

/// SHA-256 over bytes that come in pieces.
///
/// A message may be up to 2^61 - 1 bytes long (FIPS 180-4 section 1: under 2^64 bits).
#[derive(Debug, Clone)]
pub struct Sha256Hasher {
    state: State,
    /// The first `filled` bytes are the begun block.
    partial: Block,
    /// Always below [`BLOCK_LEN`].
    filled: usize,
    /// Bytes taken so far, those in `partial` among them.
    length: u64,
}

impl Default for Sha256Hasher {
    fn default() -> Self {
        Self {
            state: INITIAL,
            partial: [0; BLOCK_LEN],
            filled: 0,
            length: 0,
        }
    }
}

impl Sha256Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let blocks = self.take(bytes);
        compress256(&mut self.state, blocks);
    }

    /// Takes the same next bytes into two hashers in one pass, for less than two updates cost.
    ///
    /// The same as `first.update(bytes)` and `second.update(bytes)`. It is fastest where the counts
    /// of bytes that the two have taken before are equal modulo 64; else the blocks of the two lie
    /// differently and it is [`Self::update_two`] over the same bytes.
    pub fn update_pair(first: &mut Self, second: &mut Self, bytes: &[u8]) {
        Self::update_pair_on(Paths::detect(), first, second, bytes);
    }

    /// Takes each hasher's own next bytes, of any two lengths, both streams at once.
    ///
    /// The same as `first.update(first_bytes)` and `second.update(second_bytes)`. The gain is over
    /// the length that the two have in common; give pieces of about equal length.
    pub fn update_two(
        first: &mut Self,
        first_bytes: &[u8],
        second: &mut Self,
        second_bytes: &[u8],
    ) {
        Self::update_two_on(Paths::detect(), first, first_bytes, second, second_bytes);
    }

    /// The state after the whole blocks among the bytes taken, and how many bytes those are: a
    /// multiple of 64. [`Self::resume`] goes on from there.
    #[must_use]
    pub fn midstate(&self) -> (Sha256Midstate, u64) {
        (
            Sha256Midstate(bytes_of(self.state)),
            self.length - self.filled as u64,
        )
    }

    /// Goes on after the first `length` bytes of a message, a multiple of 64, which led to
    /// `midstate`. `None` where `length` is no such multiple.
    #[must_use]
    pub fn resume(midstate: Sha256Midstate, length: u64) -> Option<Self> {
        if !length.is_multiple_of(BLOCK_LEN as u64) {
            return None;
        }
        let words = midstate.0.as_chunks().0;
        Some(Self {
            state: array::from_fn(|i| u32::from_be_bytes(words[i])),
            length,
            ..Self::default()
        })
    }

    /// Takes the next bytes of several messages at once: `pieces[i]` continues `hashers[i]`.
    ///
    /// Fastest for [`LANES`] pieces of one length. Where there are fewer pieces than hashers, or the
    /// reverse, what is left over is not touched.
    pub fn update_many(hashers: &mut [Self], pieces: &[&[u8]]) {
        Self::update_many_on(Paths::detect(), hashers, pieces);
    }

    /// The digest of all bytes taken.
    #[must_use]
    pub fn finish(mut self) -> Sha256 {
        // section 5.1.1: a 1 bit, then zeros up to 448 bits modulo 512, then the length in bits
        let mut last = [[0; BLOCK_LEN]; 2];
        last[0][..self.filled].copy_from_slice(&self.partial[..self.filled]);
        last[0][self.filled] = 0x80;
        let count = if self.filled < LENGTH_AT { 1 } else { 2 };
        last[count - 1][LENGTH_AT..].copy_from_slice(&(self.length << 3).to_be_bytes());
        compress256(&mut self.state, &last[..count]);

        Sha256(bytes_of(self.state))
    }

    fn update_many_on(paths: Paths, hashers: &mut [Self], pieces: &[&[u8]]) {
        for (lanes, pieces) in hashers.chunks_mut(LANES).zip(pieces.chunks(LANES)) {
            let mut blocks: [&[Block]; LANES] = [&[]; LANES];
            for ((lane, piece), blocks) in lanes.iter_mut().zip(pieces).zip(&mut blocks) {
                *blocks = lane.take(piece);
            }
            let mut states = [INITIAL; LANES];
            for (state, lane) in states.iter_mut().zip(lanes.iter()) {
                *state = lane.state;
            }
            paths.compress_many(&mut states, blocks);
            for (lane, state) in lanes.iter_mut().zip(states) {
                lane.state = state;
            }
        }
    }

    fn update_pair_on(paths: Paths, first: &mut Self, second: &mut Self, bytes: &[u8]) {
        let aligned = first.filled == second.filled;
        let first_blocks = first.take(bytes);
        let second_blocks = second.take(bytes);
        if aligned {
            paths.compress_same(&mut first.state, &mut second.state, first_blocks);
        } else {
            paths.compress_two(
                &mut first.state,
                first_blocks,
                &mut second.state,
                second_blocks,
            );
        }
    }

    fn update_two_on(
        paths: Paths,
        first: &mut Self,
        first_bytes: &[u8],
        second: &mut Self,
        second_bytes: &[u8],
    ) {
        let first_blocks = first.take(first_bytes);
        let second_blocks = second.take(second_bytes);
        paths.compress_two(
            &mut first.state,
            first_blocks,
            &mut second.state,
            second_blocks,
        );
    }

    /// Takes in `bytes` except for the blocks that lie whole in it: the caller compresses those
    /// into `state` next. Ends the begun block first, and keeps the tail as the new one.
    #[must_use = "these blocks are not in the state yet"]
    fn take<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [Block] {
        self.length = self.length.wrapping_add(bytes.len() as u64);
        if self.filled > 0 {
            let (head, rest) = bytes.split_at(bytes.len().min(BLOCK_LEN - self.filled));
            self.keep(head);
            bytes = rest;
            if self.filled < BLOCK_LEN {
                return &[];
            }
            compress256(&mut self.state, &[self.partial]);
            self.filled = 0;
        }
        let (blocks, tail) = bytes.as_chunks();
        self.keep(tail);
        blocks
    }

    /// Appends to the begun block, into which `bytes` fit.
    fn keep(&mut self, bytes: &[u8]) {
        let end = self.filled + bytes.len();
        self.partial[self.filled..end].copy_from_slice(bytes);
        self.filled = end;
    }
}

/// SHA-256 over several messages at once, each coming in pieces.
///
/// Made for up to [`LANES`] messages that grow by pieces of one length; those run together. Any
/// other shape is only slower, never wrong: messages beyond [`LANES`] form further groups, and
/// where pieces differ in length, each group goes on with the messages that have bytes left.
#[derive(Debug, Clone, Default)]
pub struct Sha256Lanes {
    lanes: Vec<Sha256Hasher>,
}

impl Sha256Lanes {
    /// `count` messages, all empty so far.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self {
            lanes: vec![Sha256Hasher::default(); count],
        }
    }

    /// Takes the next bytes of each message: `pieces[i]` continues message `i`.
    ///
    /// A message without a piece takes nothing. A piece without a message begins one, so that no
    /// bytes are ever dropped; [`Self::finish`] then returns a digest for it too.
    pub fn update(&mut self, pieces: &[&[u8]]) {
        self.update_on(Paths::detect(), pieces);
    }

    /// The digest of each message, in their order.
    #[must_use]
    pub fn finish(self) -> Vec<Sha256> {
        self.lanes.into_iter().map(Sha256Hasher::finish).collect()
    }

    fn update_on(&mut self, paths: Paths, pieces: &[&[u8]]) {
        if self.lanes.len() < pieces.len() {
            self.lanes.resize_with(pieces.len(), Sha256Hasher::default);
        }
        Sha256Hasher::update_many_on(paths, &mut self.lanes, pieces);
    }
}

//! Products of bf16 values in the tile registers of Intel AMX, under `Compute::Bf16`.
//!
//! A tile of weights is 16 rows of 32 columns as they lie in memory, a tile of activations is 16
//! pairs of columns of up to 16 tokens, and a tile of sums is 16 rows of so many tokens.
//!
//! **The order of additions** (Intel SDM, `TDPBF16PS`) differs from that of all other kernels: of
//! every 32 columns the even ones are one chain of fused multiply-adds and the odd ones another, both
//! from zero on; the sum of the two is added to the sums before it. Columns that are missing in the
//! last 32 are zero. Values and sums below 2⁻¹²⁶ are zero. One kernel takes any number of tokens, so
//! that a value does not depend on how many there are.

#![expect(
    unsafe_code,
    reason = "instructions that were detected, for which there are no stable intrinsics"
)]

use std::arch::asm;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::OnceLock;

use super::gemv;
use super::inputs::Inputs;
use super::order::WORDS;
use super::pairs::{self, pairs};
use super::panel::Rows;
use super::product::Product;
use super::scratch::{Buffer, Key};
use super::simd::{LANES, Line, Simd, Work, bytes, values};
use super::tile::finish;
use crate::tensor::Compute;

/// Most tokens of a group: two tiles.
const GROUP: usize = 2 * LANES;
/// Chunks of 32 columns that are copied at a time: 32 KiB of 32 rows.
const CHUNKS: usize = 16;
/// Most tokens for which weights are multiplied as they lie; for more, copies of them stay in the
/// first-level cache.
const AS_THEY_LIE: usize = 4 * GROUP;
/// Rows that are copied next, of which memory is asked for after each group.
const ROWS_AHEAD: usize = 8;
/// Fewest rows of a task.
const LEAST_ROWS: usize = 64;
/// Most rows of a task.
const MOST_ROWS: usize = 256;
/// Lines of a tile.
const TILE: usize = LANES;
/// Lines of the sums of two tiles of rows and two of tokens.
const SUMS: usize = 4 * TILE;

/// AMX for bf16 was detected, and the system lets this process use its registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Amx(());

impl Amx {
    pub(super) fn detect() -> Option<Self> {
        static DETECTED: OnceLock<bool> = OnceLock::new();
        let detected = *DETECTED.get_or_init(|| has_instructions() && may_use_tiles());
        detected.then_some(Self(()))
    }

    /// Multiplies tiles that are in registers, four a step: so many multiply-adds.
    pub(super) fn multiply_registers(self, steps: usize) -> usize {
        let mut registers = Registers::new(self);
        if let Some(group) = Group::of(GROUP, WORDS).next() {
            registers.configure(LANES, group);
        }
        // SAFETY: `self` is proof of AMX, and whole tiles are configured; no memory is touched
        unsafe {
            asm!(
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps}",
                "jnz 2b",
                steps = inout(reg) steps.max(1) => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem),
            );
        }
        steps.max(1) * 4 * LANES * LANES * WORDS
    }
}

/// AMX-TILE and AMX-BF16 (Intel SDM, CPUID leaf 7, bits 24 and 22 of EDX).
fn has_instructions() -> bool {
    // under Miri there is no CPUID
    if cfg!(miri) {
        return false;
    }
    #[allow(unused_unsafe, reason = "safe since Rust 1.94")]
    // SAFETY: every x86-64 processor has CPUID; leaf 7 is asked for where leaf 0 says that it is there
    let features = unsafe {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        match __cpuid(0).eax {
            7.. => __cpuid_count(7, 0).edx,
            _ => 0,
        }
    };
    let wanted = 1 << 24 | 1 << 22;
    features & wanted == wanted
}

/// Asks Linux for the registers of this process: a thread of one that has not asked is killed at the
/// first use (Documentation/arch/x86/xstate.rst). No other system was tried.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: a call with two numbers that touches no memory of this process
    let result = unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        )
    };
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

/// Tokens that are multiplied together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    /// The first token.
    first: usize,
    tokens: usize,
    /// Tiles of tokens, 1 or 2.
    tiles: usize,
    /// Tokens of a tile; the last one of the second may be missing.
    width: usize,
    /// Packed values before it.
    at: usize,
}

impl Group {
    /// Groups of so many tokens.
    pub(super) fn of(tokens: usize, columns: usize) -> impl Iterator<Item = Self> + Clone {
        (0..tokens).step_by(GROUP).map(move |first| {
            let tokens = GROUP.min(tokens - first);
            let tiles = tokens.div_ceil(LANES);
            Self {
                first,
                tokens,
                tiles,
                width: tokens.div_ceil(tiles),
                at: first * pairs(columns),
            }
        })
    }

    /// Values that are packed.
    pub(super) fn len(self, columns: usize) -> usize {
        self.tiles * self.width * pairs(columns)
    }

    /// What packs its tokens of `x`, a tile at a time.
    pub(super) fn packs<'a>(
        self,
        x: Inputs<'a>,
        to: &'a mut [f32],
    ) -> impl Iterator<Item = pairs::Pack<'a>> {
        let tile = self.width * pairs(x.columns());
        to.chunks_exact_mut(tile).enumerate().map(move |(i, to)| {
            let first = i * self.width;
            pairs::Pack {
                x: x.part(self.first + first, self.width.min(self.tokens - first)),
                tokens: self.width,
                to,
            }
        })
    }
}

/// Rows of a task: the more, the less often activations come from memory beyond the second-level cache;
/// but some tasks for every thread.
pub(super) fn rows_of_a_task(rows: usize, tokens: usize) -> usize {
    match tokens {
        ..=AS_THEY_LIE => LEAST_ROWS,
        _ => (rows / (4 * rayon::current_num_threads()))
            .next_multiple_of(LEAST_ROWS)
            .clamp(LEAST_ROWS, MOST_ROWS),
    }
}

/// A product with activations that are packed by [`Group::packs`].
pub(super) struct Tiles<'a> {
    pub amx: Amx,
    pub product: Product<'a>,
}

impl Work for Tiles<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.product.tokens {
            ..=AS_THEY_LIE => self.as_they_lie(s),
            _ => self.copied(s),
        }
    }
}

impl Tiles<'_> {
    /// Rows of a tile.
    fn height(&self) -> usize {
        LANES.min(self.product.weight.rows)
    }

    /// The first rows of two tiles at a time: the last tiles may have rows of those before.
    fn pairs_of_tiles(&self) -> impl Iterator<Item = [usize; 2]> + Clone + use<> {
        let (rows, height) = (self.product.weight.rows, self.height());
        (0..rows)
            .step_by(2 * LANES)
            .map(move |first| [first, first + LANES].map(|row| row.min(rows - height)))
    }

    /// Weights as they lie.
    #[inline(always)]
    fn as_they_lie<S: Simd>(&mut self, s: S) {
        let mut buffers = [Key::Sums, Key::Panel].map(Buffer::take);
        let [sums, last] = &mut buffers;
        let Rows {
            columns, stride, ..
        } = self.product.weight;
        let (groups, tiles) = (
            Group::of(self.product.tokens, columns),
            self.pairs_of_tiles(),
        );
        let of_a_pair = groups.clone().count() * SUMS;
        let sums = sums.lines(tiles.clone().count() * of_a_pair);
        sums.fill(Line::ZERO);
        let last = last.lines(2 * TILE);
        let (whole, height) = (columns / WORDS, self.height());
        let ahead = gemv::Ahead::new(self.product.weight, self.product.ahead);
        let mut registers = Registers::new(self.amx);
        for (firsts, sums) in tiles.zip(sums.chunks_exact_mut(of_a_pair)) {
            let rows = firsts.map(|first| self.product.weight.part(first, height, 0, columns));
            let weights = Weights {
                tiles: rows.map(|rows| rows.bytes),
                height,
                stride,
                next: 2 * WORDS,
            };
            let next = ahead.of(rows[0].bytes.as_ptr(), 2 * LANES * stride);
            let next = Ahead::of_two_tiles(next, whole, groups.clone().count());
            let sums = sums.chunks_exact_mut(SUMS);
            for ((group, next), sums) in groups.clone().zip(next).zip(sums) {
                registers.configure(height, group);
                registers.multiply(
                    weights,
                    group.x(self.product.x, columns, 0),
                    whole,
                    sums,
                    next,
                );
                if !columns.is_multiple_of(WORDS) {
                    copy(s, rows, whole..whole + 1, last);
                    let x = group.x(self.product.x, columns, whole);
                    registers.multiply(Weights::copied(last, height), x, 1, sums, Ahead::NOTHING);
                }
            }
        }
        self.finish(s, sums);
    }

    /// Weights copied, some columns at a time for all groups.
    #[inline(always)]
    fn copied<S: Simd>(&mut self, s: S) {
        let mut buffers = [Key::Sums, Key::Panel].map(Buffer::take);
        let [sums, copies] = &mut buffers;
        let columns = self.product.weight.columns;
        let (groups, tiles) = (
            Group::of(self.product.tokens, columns),
            self.pairs_of_tiles(),
        );
        let of_a_pair = groups.clone().count() * SUMS;
        let sums = sums.lines(tiles.clone().count() * of_a_pair);
        sums.fill(Line::ZERO);
        let copies = copies.lines(2 * TILE * CHUNKS);
        let height = self.height();
        let mut registers = Registers::new(self.amx);
        let all = columns.div_ceil(WORDS);
        for from in (0..all).step_by(CHUNKS) {
            let chunks = CHUNKS.min(all - from);
            for (firsts, sums) in tiles.clone().zip(sums.chunks_exact_mut(of_a_pair)) {
                let rows = firsts.map(|first| self.product.weight.part(first, height, 0, columns));
                let copies = &mut copies[..2 * TILE * chunks];
                copy(s, rows, from..from + chunks, copies);
                let weights = Weights::copied(copies, height);
                let mut next = self.rows_after(firsts[1] + height, from);
                for (group, sums) in groups.clone().zip(sums.chunks_exact_mut(SUMS)) {
                    registers.configure(height, group);
                    let x = group.x(self.product.x, columns, from);
                    registers.multiply(weights, x, chunks, sums, Ahead::NOTHING);
                    for row in next.by_ref().take(ROWS_AHEAD) {
                        for c in 0..CHUNKS {
                            s.prefetch(row.wrapping_add(c * size_of::<Line>()));
                        }
                    }
                }
            }
        }
        self.finish(s, sums);
    }

    /// Where the chunks lie that are copied next, of one row after another: those of two tiles from `row`
    /// on, or of the first ones where these were the last rows.
    fn rows_after(&self, row: usize, chunk: usize) -> impl Iterator<Item = *const u8> + use<> {
        let (row, chunk) = match row < self.product.weight.rows {
            true => (row, chunk),
            false => (0, chunk + CHUNKS),
        };
        let (start, stride) = (
            self.product.weight.bytes.as_ptr(),
            self.product.weight.stride,
        );
        (row..row + 2 * LANES)
            .map(move |row| start.wrapping_add(row * stride + chunk * size_of::<Line>()))
    }

    /// The results of all rows for some tokens after another, from `[pairs of tiles, groups]` sums.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, sums: &[Line]) {
        let groups = Group::of(self.product.tokens, self.product.weight.columns);
        let of_a_pair = groups.clone().count() * SUMS;
        for (g, group) in groups.enumerate() {
            for tile in 0..group.tiles {
                for (firsts, sums) in self.pairs_of_tiles().zip(sums.chunks_exact(of_a_pair)) {
                    let sums = &sums[g * SUMS + tile * TILE..];
                    self.finish_tile(s, firsts[0], group, tile, &sums[..TILE]);
                    if firsts[1] != firsts[0] {
                        self.finish_tile(s, firsts[1], group, tile, &sums[2 * TILE..][..TILE]);
                    }
                }
            }
        }
    }

    /// The results of a tile of rows from `first` on and a tile of tokens.
    #[inline(always)]
    fn finish_tile<S: Simd>(
        &mut self,
        s: S,
        first: usize,
        group: Group,
        tile: usize,
        sums: &[Line],
    ) {
        let height = self.height();
        let token = tile * group.width;
        let tokens = group.width.min(group.tokens - token);
        let mut rows = [s.splat(0.0); LANES];
        for (row, line) in rows.iter_mut().zip(sums) {
            *row = s.load(&line.0);
        }
        let bias = self.product.bias.map(|b| &b[first..]);
        for (t, sums) in s.transpose(rows).iter().enumerate().take(tokens) {
            let mut line = Line::ZERO;
            s.store(*sums, &mut line.0);
            let out = &mut self.product.out.row(group.first + token + t)[first..first + height];
            finish(Compute::Bf16, &line.0, bias, out);
        }
    }
}

/// Copies chunks of columns of two tiles of rows, `[2, chunks]` tiles; columns that are missing
/// become zero.
#[inline(always)]
fn copy<S: Simd>(s: S, from: [Rows<'_>; 2], chunks: Range<usize>, to: &mut [Line]) {
    for (rows, to) in from.iter().zip(to.chunks_exact_mut(TILE * chunks.len())) {
        for r in 0..rows.rows {
            let row = &rows.row(r)[chunks.start * size_of::<Line>()..];
            let (whole, last) = row.as_chunks();
            for (c, to) in to.chunks_exact_mut(TILE).enumerate() {
                let mut rest = [0; size_of::<Line>()];
                let bits = match whole.get(c) {
                    Some(bits) => bits,
                    None => {
                        rest[..last.len()].copy_from_slice(last);
                        &rest
                    }
                };
                s.store(s.load_bits(bits), &mut to[r].0);
            }
        }
    }
}

/// Memory that is asked for while chunks of columns are gone through: an equal part for each.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    at: *const u8,
    /// Lines for a chunk, in eights.
    eights: usize,
}

impl Ahead {
    const NOTHING: Self = Self {
        at: std::ptr::null(),
        eights: 0,
    };

    /// What two tiles of weights have from `start` on, one part of it for each of some groups.
    fn of_two_tiles(start: *const u8, chunks: usize, groups: usize) -> impl Iterator<Item = Self> {
        let eights = (2 * TILE / 8).div_ceil(groups);
        (0..groups).map(move |group| Self {
            at: start.wrapping_add(group * chunks * eights * 8 * size_of::<Line>()),
            eights,
        })
    }
}

/// Two tiles of rows, one chunk of columns after another.
#[derive(Debug, Clone, Copy)]
struct Weights<'a> {
    tiles: [&'a [u8]; 2],
    /// Rows of a tile.
    height: usize,
    /// Bytes from a row to the next.
    stride: usize,
    /// Bytes from a chunk to the next.
    next: usize,
}

impl<'a> Weights<'a> {
    /// As [`copy`] leaves them.
    fn copied(lines: &'a [Line], height: usize) -> Self {
        let (first, second) = bytes(values(lines)).split_at(lines.len() / 2 * size_of::<Line>());
        Self {
            tiles: [first, second],
            height,
            stride: size_of::<Line>(),
            next: TILE * size_of::<Line>(),
        }
    }
}

/// Activations of a group from a chunk of columns on.
#[derive(Debug, Clone, Copy)]
struct Activations<'a> {
    /// Of the first tile, and whatever comes after it.
    values: &'a [f32],
    /// Values from the first tile to the second.
    apart: usize,
    group: Group,
}

impl Group {
    /// Its activations from a chunk of columns on.
    fn x(self, packed: &[f32], columns: usize, chunk: usize) -> Activations<'_> {
        Activations {
            values: &packed[self.at + chunk * LANES * self.width..self.at + self.len(columns)],
            apart: pairs(columns) * self.width,
            group: self,
        }
    }
}

/// The tile registers of this thread, given back when it is dropped.
struct Registers {
    /// Rows of tiles of weights and tokens of tiles of activations for which they are configured.
    configured: Option<(usize, usize)>,
    /// They are this thread's.
    stays: PhantomData<*const ()>,
}

/// How the registers are cut (Intel SDM, LDTILECFG, palette 1).
#[derive(Debug)]
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Registers {
    fn new(_: Amx) -> Self {
        Self {
            configured: None,
            stays: PhantomData,
        }
    }

    /// Cuts the registers for tiles of so many rows of weights and tokens of a group: 0 to 3 are sums,
    /// 4 and 5 weights, 6 and 7 activations.
    #[expect(clippy::cast_possible_truncation, reason = "at most 16 and 64")]
    fn configure(&mut self, height: usize, group: Group) {
        assert!(height <= LANES && group.width <= LANES);
        if self.configured == Some((height, group.width)) {
            return;
        }
        let (height, tokens) = (height as u8, (group.width * 4) as u16);
        let mut of = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        of.rows[..8].copy_from_slice(&[height, height, height, height, height, height, 16, 16]);
        of.row_bytes[..8]
            .copy_from_slice(&[tokens, tokens, tokens, tokens, 64, 64, tokens, tokens]);
        // SAFETY: `new` had proof of AMX; 64 bytes of a valid configuration are read, and the compiler
        // does not use tile registers
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const of, options(nostack, preserves_flags, readonly));
        }
        self.configured = Some((height.into(), group.width));
    }

    /// Adds products to `sums`, `[2 tiles of weights, 2 of activations]` tiles, for so many chunks of
    /// columns.
    ///
    /// # Panics
    /// Where an operand is too short, or the registers are configured for others.
    fn multiply(
        &mut self,
        weights: Weights<'_>,
        x: Activations<'_>,
        chunks: usize,
        sums: &mut [Line],
        ahead: Ahead,
    ) {
        let width = x.group.width;
        assert_eq!(self.configured, Some((weights.height, width)));
        if chunks == 0 {
            return;
        }
        let line = size_of::<Line>();
        let end = (weights.height - 1) * weights.stride + (chunks - 1) * weights.next + line;
        assert!(weights.tiles.iter().all(|tile| tile.len() >= end) && sums.len() >= SUMS);
        let tiles = x.group.tiles;
        let end = (tiles - 1) * x.apart + chunks * LANES * width;
        assert!(x.values.len() >= end);
        let operands = Pointers {
            sums: sums.as_mut_ptr().cast(),
            weights: weights.tiles.map(<[u8]>::as_ptr),
            stride: weights.stride,
            next: weights.next,
            x: [0, x.apart].map(|at| x.values.as_ptr().wrapping_add(at).cast()),
            row: 4 * width,
            chunks,
            ahead,
        };
        // SAFETY: the tiles are configured; all chunks of weights and activations lie in their slices,
        // and four tiles of lines in `sums`, as was asserted
        unsafe {
            match tiles {
                1 => operands.one_tile_of_tokens(),
                _ => operands.two_tiles_of_tokens(),
            }
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: `new` had proof of AMX; nothing else is in the tile registers
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
    }
}

/// What a loop over chunks of columns goes through.
struct Pointers {
    /// Four tiles.
    sums: *mut u8,
    weights: [*const u8; 2],
    /// Bytes from a row of weights to the next.
    stride: usize,
    /// Bytes from a chunk of weights to the next.
    next: usize,
    x: [*const u8; 2],
    /// Bytes of a row of activations.
    row: usize,
    /// At least one.
    chunks: usize,
    ahead: Ahead,
}

/// A loop over chunks of columns: instructions before it, for each chunk, and after it. At each it
/// asks for `eights` times eight lines of memory.
macro_rules! over_chunks {
    ($(#[$about:meta])* $name:ident, [$($before:literal),+], [$($step:literal),+], [$($after:literal),+]) => {
        $(#[$about])*
        ///
        /// # Safety
        /// AMX is there, the tiles are configured, and all chunks and sums are where the pointers say.
        unsafe fn $name(self) {
            // SAFETY: as the caller vouches
            unsafe {
                asm!(
                    $($before,)+
                    "2:",
                    $($step,)+
                    "mov {left}, {eights}",
                    "test {left}, {left}",
                    "jz 4f",
                    "3:",
                    ".irp i, 0, 1, 2, 3, 4, 5, 6, 7",
                    "prefetcht1 [{ahead} + 64 * \\i]",
                    ".endr",
                    "add {ahead}, 512",
                    "dec {left}",
                    "jnz 3b",
                    "4:",
                    "add {w0}, {next}",
                    "add {w1}, {next}",
                    "add {x0}, {x_next}",
                    "add {x1}, {x_next}",
                    "dec {chunks}",
                    "jnz 2b",
                    $($after,)+
                    sums = in(reg) self.sums,
                    line = in(reg) size_of::<Line>(),
                    w0 = inout(reg) self.weights[0] => _,
                    w1 = inout(reg) self.weights[1] => _,
                    stride = in(reg) self.stride,
                    next = in(reg) self.next,
                    x0 = inout(reg) self.x[0] => _,
                    x1 = inout(reg) self.x[1] => _,
                    row = in(reg) self.row,
                    x_next = in(reg) self.row * LANES,
                    chunks = inout(reg) self.chunks => _,
                    ahead = inout(reg) self.ahead.at => _,
                    eights = in(reg) self.ahead.eights,
                    left = out(reg) _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

impl Pointers {
    over_chunks!(
        /// Two tiles of weights times two of activations.
        two_tiles_of_tokens,
        [
            "tileloadd tmm0, [{sums} + {line}]",
            "tileloadd tmm1, [{sums} + {line} + 1024]",
            "tileloadd tmm2, [{sums} + {line} + 2048]",
            "tileloadd tmm3, [{sums} + {line} + 3072]"
        ],
        [
            "tileloadd tmm4, [{w0} + {stride}]",
            "tileloadd tmm6, [{x0} + {row}]",
            "tileloadd tmm5, [{w1} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{x1} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7"
        ],
        [
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3"
        ]
    );
    over_chunks!(
        /// Two tiles of weights times one of activations.
        one_tile_of_tokens,
        [
            "tileloadd tmm0, [{sums} + {line}]",
            "tileloadd tmm2, [{sums} + {line} + 2048]"
        ],
        [
            "tileloadd tmm4, [{w0} + {stride}]",
            "tileloadd tmm6, [{x0} + {row}]",
            "tileloadd tmm5, [{w1} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6"
        ],
        [
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 2048], tmm2"
        ]
    );
}

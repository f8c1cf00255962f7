//! The tile registers, and the loops over chunks of columns that use them.

#![expect(
    unsafe_code,
    reason = "instructions that were detected, for which there are no stable intrinsics"
)]

use std::arch::asm;
use std::marker::PhantomData;

use super::super::order::WORDS;
use super::super::simd::{LANES, Line};
use super::detect::Amx;
use super::group::{Activations, Group};
use super::pieces::PIECES;

/// Lines of a tile.
pub(super) const TILE: usize = LANES;
/// Lines of the sums of two tiles of rows and two of tokens.
pub(super) const SUMS: usize = 4 * TILE;

/// What sums begin with. Stores of zeros would be in flight while they are loaded, which waits for them.
static NO_SUMS: [Line; SUMS] = [Line::ZERO; SUMS];

/// Multiplies tiles that are in registers, four a step: so many multiply-adds.
pub(in crate::kernels) fn multiply_registers(amx: Amx, steps: usize) -> usize {
    let mut registers = Registers::new(amx);
    registers.configure(LANES, LANES);
    // SAFETY: `amx` is proof of AMX, and whole tiles are configured; no memory is touched
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

/// Memory that is asked for while chunks of columns are gone through: an equal part at each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    pub at: *const u8,
    /// Lines for a chunk, in eights.
    pub eights: usize,
}

impl Ahead {
    pub(super) const NOTHING: Self = Self {
        at: std::ptr::null(),
        eights: 0,
    };
}

/// Two tiles of rows, one chunk of columns after another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights<'a> {
    pub tiles: [&'a [u8]; 2],
    /// Rows of a tile.
    pub height: usize,
    /// Bytes from a row to the next.
    pub stride: usize,
    /// What is read after them.
    pub ahead: Ahead,
}

/// The tile registers of this thread, given back when it is dropped.
pub(super) struct Registers {
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
    pub(super) fn new(_: Amx) -> Self {
        Self {
            configured: None,
            stays: PhantomData,
        }
    }

    /// Cuts the registers for tiles of so many rows of weights and so many tokens: 0 to 3 are sums,
    /// 4 and 5 weights, 6 and 7 activations.
    #[expect(clippy::cast_possible_truncation, reason = "at most 16 and 64")]
    pub(super) fn configure(&mut self, height: usize, width: usize) {
        assert!(height <= LANES && width <= LANES);
        if self.configured == Some((height, width)) {
            return;
        }
        let (rows, tokens) = (height as u8, (width * 4) as u16);
        let mut of = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        of.rows[..8].copy_from_slice(&[rows, rows, rows, rows, rows, rows, 16, 16]);
        of.row_bytes[..8]
            .copy_from_slice(&[tokens, tokens, tokens, tokens, 64, 64, tokens, tokens]);
        // SAFETY: `new` had proof of AMX; 64 bytes of a valid configuration are read, and the compiler
        // does not use tile registers
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const of, options(nostack, preserves_flags, readonly));
        }
        self.configured = Some((height, width));
    }

    /// Products of so many chunks of columns, added to `sums` where they go on: `[2 tiles of weights, 2 of
    /// activations]` tiles.
    ///
    /// # Panics
    /// Where an operand is too short, or the registers are configured for others.
    pub(super) fn multiply(
        &mut self,
        weights: Weights<'_>,
        group: Group,
        x: Activations<'_>,
        chunks: usize,
        sums: &mut [Line],
        goes_on: bool,
    ) {
        assert_eq!(self.configured, Some((weights.height, group.width)));
        if chunks == 0 {
            if !goes_on {
                sums.fill(Line::ZERO);
            }
            return;
        }
        let line = size_of::<Line>();
        let end = (weights.height - 1) * weights.stride + chunks * line;
        assert!(weights.tiles.iter().all(|tile| tile.len() >= end) && sums.len() >= SUMS);
        let last = (group.tiles - 1) * x.apart
            + (chunks - 1) * x.next
            + (group.pieces - 1) * x.piece
            + (LANES - 1) * x.row;
        assert!(x.values.len() >= last + group.width);
        let operands = Pointers {
            before: if goes_on {
                sums.as_ptr()
            } else {
                NO_SUMS.as_ptr()
            }
            .cast(),
            sums: sums.as_mut_ptr().cast(),
            weights: weights.tiles.map(<[u8]>::as_ptr),
            stride: weights.stride,
            x: [0, x.apart].map(|at| x.values.as_ptr().wrapping_add(at).cast()),
            row: size_of_val(&x.values[..x.row]),
            piece: size_of_val(&x.values[..x.piece]),
            next: 4 * x.next,
            chunks,
            ahead: weights.ahead,
        };
        // SAFETY: the tiles are configured; all chunks of weights and activations lie in their slices,
        // and four tiles of lines in `sums`, as was asserted
        unsafe {
            match (group.tiles, group.pieces) {
                (1, 1) => operands.one_tile_of_tokens(),
                (_, 1) => operands.two_tiles_of_tokens(),
                (1, PIECES) => operands.one_tile_of_pieces(),
                (_, PIECES) => operands.two_tiles_of_pieces(),
                (_, pieces) => unreachable!("{pieces} pieces"),
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

/// What a loop over chunks of columns goes through. All distances are in bytes.
struct Pointers {
    /// Four tiles of sums that products are added to.
    before: *const u8,
    /// Four tiles.
    sums: *mut u8,
    weights: [*const u8; 2],
    /// From a row of weights to the next.
    stride: usize,
    x: [*const u8; 2],
    /// From a row of activations to the next.
    row: usize,
    /// From a piece to the next.
    piece: usize,
    /// From a chunk of activations to the next.
    next: usize,
    /// At least one.
    chunks: usize,
    ahead: Ahead,
}

/// A loop over chunks of columns, with sums of one tile of tokens or of two: the instructions for each
/// chunk, which may write to `{free}`. At each it asks for `eights` times eight lines of memory.
macro_rules! over_chunks {
    ($(#[$about:meta])* $name:ident, one, $step:tt) => {
        over_chunks!(
            $(#[$about])* $name,
            ["tileloadd tmm0, [{before} + {free}]",
             "tileloadd tmm2, [{before} + {free} + 2048]"],
            $step,
            ["tilestored [{sums} + {free}], tmm0",
             "tilestored [{sums} + {free} + 2048], tmm2"]
        );
    };
    ($(#[$about:meta])* $name:ident, two, $step:tt) => {
        over_chunks!(
            $(#[$about])* $name,
            ["tileloadd tmm0, [{before} + {free}]",
             "tileloadd tmm1, [{before} + {free} + 1024]",
             "tileloadd tmm2, [{before} + {free} + 2048]",
             "tileloadd tmm3, [{before} + {free} + 3072]"],
            $step,
            ["tilestored [{sums} + {free}], tmm0",
             "tilestored [{sums} + {free} + 1024], tmm1",
             "tilestored [{sums} + {free} + 2048], tmm2",
             "tilestored [{sums} + {free} + 3072], tmm3"]
        );
    };
    ($(#[$about:meta])* $name:ident, [$($before:literal),+], [$($step:literal),+], [$($after:literal),+]) => {
        $(#[$about])*
        ///
        /// # Safety
        /// AMX is there, the tiles are configured, and all chunks and sums are where the pointers say.
        unsafe fn $name(self) {
            // SAFETY: as the caller vouches
            unsafe {
                asm!(
                    // the length of a line; a loop without pieces does not name their distance
                    "mov {free:e}, 64 /* {piece} */",
                    $($before,)+
                    "2:",
                    $($step,)+
                    "mov {free}, {eights}",
                    "test {free}, {free}",
                    "jz 4f",
                    "3:",
                    ".irp i, 0, 1, 2, 3, 4, 5, 6, 7",
                    "prefetcht1 [{ahead} + 64 * \\i]",
                    ".endr",
                    "add {ahead}, 512",
                    "dec {free}",
                    "jnz 3b",
                    "4:",
                    "add {w0}, 64",
                    "add {w1}, 64",
                    "add {x0}, {next}",
                    "add {x1}, {next}",
                    "dec {chunks}",
                    "jnz 2b",
                    "mov {free:e}, 64",
                    $($after,)+
                    before = in(reg) self.before,
                    sums = in(reg) self.sums,
                    w0 = inout(reg) self.weights[0] => _,
                    w1 = inout(reg) self.weights[1] => _,
                    stride = in(reg) self.stride,
                    x0 = inout(reg) self.x[0] => _,
                    x1 = inout(reg) self.x[1] => _,
                    row = in(reg) self.row,
                    piece = in(reg) self.piece,
                    next = in(reg) self.next,
                    chunks = inout(reg) self.chunks => _,
                    ahead = inout(reg) self.ahead.at => _,
                    eights = in(reg) self.ahead.eights,
                    free = out(reg) _,
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
        two,
        [
            "tileloadd tmm4, [{w0} + {stride}]",
            "tileloadd tmm6, [{x0} + {row}]",
            "tileloadd tmm5, [{w1} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{x1} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7"
        ]
    );
    over_chunks!(
        /// Two tiles of weights times one of activations.
        one_tile_of_tokens,
        one,
        [
            "tileloadd tmm4, [{w0} + {stride}]",
            "tileloadd tmm6, [{x0} + {row}]",
            "tileloadd tmm5, [{w1} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6"
        ]
    );
    over_chunks!(
        /// Two tiles of weights times the three pieces of two tiles of activations.
        two_tiles_of_pieces,
        two,
        [
            "tileloadd tmm4, [{w0} + {stride}]",
            "tileloadd tmm6, [{x0} + {row}]",
            "tileloadd tmm5, [{w1} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{x1} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "lea {free}, [{x0} + {piece}]",
            "tileloadd tmm6, [{free} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "lea {free}, [{x1} + {piece}]",
            "tileloadd tmm7, [{free} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "lea {free}, [{x0} + 2 * {piece}]",
            "tileloadd tmm6, [{free} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "lea {free}, [{x1} + 2 * {piece}]",
            "tileloadd tmm7, [{free} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7"
        ]
    );
    over_chunks!(
        /// Two tiles of weights times the three pieces of one tile of activations.
        one_tile_of_pieces,
        one,
        [
            "tileloadd tmm4, [{w0} + {stride}]",
            "tileloadd tmm6, [{x0} + {row}]",
            "tileloadd tmm5, [{w1} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "lea {free}, [{x0} + {piece}]",
            "tileloadd tmm7, [{free} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "lea {free}, [{x0} + 2 * {piece}]",
            "tileloadd tmm6, [{free} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm7",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6"
        ]
    );
}

//! Kernels for the CPU, chosen at run time by what the processor has.
//!
//! * `simd`: vectors of 16 values, over `avx512`, `avx2`, `neon` and `portable`. Every kernel is written
//!   once over it.
//! * `linear`: batches of linear layers, cut into tasks; `gemv` for one token, `skinny` for a few,
//!   `gemm` for more, on `tile`s whose `panel`s of weights are widened and turned on the way. `inputs`: what they are
//!   multiplied with, rows or what lies under the kernel of a convolution. `pairs` and `bfmmla`: bf16
//!   weights under `Compute::Bf16` on processors with instructions for them; `amx`: bf16 weights under both.
//! * `attention`, `rows`, `exp`: everything else that a layer computes.
//! * `sound`: what a vocoder computes beside its products.
//! * `parallel`: tasks of a kernel on several threads; `team` keeps these awake for a forward pass.
//! * [`limits`]: the rates that kernels are measured against.
//!
//! **Determinism.** A value of a product depends on its row of the inputs and its row of the weight
//! alone, and attention of a token on its query and the positions before it alone, to the bit: not
//! on the number of threads, nor on how tokens are cut into batches. The order of additions is in
//! `tile` and `attention`. AVX2, AVX-512 and NEON give the same bits; so does `VDPBF16PS`, but for
//! values below 2⁻¹²⁶, which it takes for zero. `BFMMLA` has an order of its own under `Compute::Bf16`, AMX
//! under both.
//!
//! **Scratch** memory (`scratch`) is kept by threads, to be used again: at most 8 MiB (or 512 rows of the longest
//! input, half as much again where they are cut into pieces) of packed inputs by the thread that calls, and about 1 MiB by each thread of the pool;
//! attention under `Compute::Bf16` up to 2 MiB there, or the scores of one token.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod bfmmla;
mod exp;
mod gemm;
mod gemv;
mod inputs;
pub mod limits;
mod linear;
#[cfg(target_arch = "aarch64")]
mod neon;
mod order;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod panel;
mod parallel;
mod portable;
mod product;
mod rows;
mod scratch;
mod shared;
mod simd;
mod skinny;
mod sound;
mod taps;
mod team;
#[cfg(test)]
mod tests;
mod tile;

pub(crate) use attention::{Attention, attention, attention_within};
pub(crate) use linear::{convolution, linears};
#[cfg(feature = "audio")]
pub(crate) use rows::Dots;
pub(crate) use rows::{
    Add, AddScaled, GELU_CUBIC, Gelu, GeluTanh, LayerNorm, RmsNorm, Rope, SQRT_2_OVER_PI, SiluMul,
    Softmax,
};
pub(crate) use shared::Columns;
use simd::{Simd, Work};
pub(crate) use sound::{Depthwise, Slide, Snake, WindowAttention, below_the_highest};
pub(crate) use team::awake;

/// The environment variable that chooses the instruction set.
pub const CPU_VARIABLE: &str = "SEGPACK_CPU";

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Portable(portable::Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512<false>),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
}

/// What computes products of bf16 weights under `Compute::Bf16`; tiles do so under `Compute::F32`, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bf16Products {
    /// Multiply-adds of the values that they are widened to.
    Widened,
    /// One instruction for two products.
    #[cfg(target_arch = "x86_64")]
    Pairs(avx512::Avx512<true>),
    /// Tile registers.
    #[cfg(target_arch = "x86_64")]
    Tiles(amx::Amx),
    /// One instruction for a block of 2 x 2 sums of four products.
    #[cfg(target_arch = "aarch64")]
    Blocks(bfmmla::Bfmmla),
}

/// The kernels of one instruction set. What it names is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    path: Path,
    bf16: Bf16Products,
}

/// [`CPU_VARIABLE`] names kernels that this processor cannot run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{CPU_VARIABLE} is {seen:?}; this processor has {}; set it to one of these, or unset it", .available.join(", "))]
pub struct UnknownKernels {
    /// What it is.
    pub seen: String,
    /// What it may be here.
    pub available: Vec<&'static str>,
}

impl UnknownKernels {
    fn of(name: &str) -> Self {
        Self {
            seen: name.to_owned(),
            available: Kernels::all()
                .iter()
                .map(|kernels| kernels.name())
                .collect(),
        }
    }
}

impl Kernels {
    /// The best ones that this processor has.
    pub fn detect() -> Self {
        Self::all()
            .pop()
            .unwrap_or(Self::of(Path::Portable(portable::Portable)))
    }

    fn of(path: Path) -> Self {
        Self {
            path,
            bf16: Bf16Products::Widened,
        }
    }

    /// All that this processor has, the best last.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::of(Path::Portable(portable::Portable))];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(avx2::Avx2::detect().map(|path| Self::of(Path::Avx2(path))));
            all.extend(Self::of_avx512());
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(Self::of_neon());
        all
    }

    /// With AVX-512: without instructions for bf16, and with them.
    #[cfg(target_arch = "x86_64")]
    fn of_avx512() -> Vec<Self> {
        let Some(path) = avx512::Avx512::<false>::detect().map(Path::Avx512) else {
            return Vec::new();
        };
        let mut all = vec![Self::of(path)];
        if let Some(pairs) = avx512::Avx512::<true>::detect() {
            let bf16 = Bf16Products::Pairs(pairs);
            all.push(Self { path, bf16 });
            if !pairs.has_twice_the_rate() {
                all.reverse();
            }
        }
        let tiles = amx::Amx::detect().map(Bf16Products::Tiles);
        all.extend(tiles.map(|bf16| Self { path, bf16 }));
        all
    }

    /// With NEON: without instructions for bf16, and with them.
    #[cfg(target_arch = "aarch64")]
    fn of_neon() -> Vec<Self> {
        let Some(path) = neon::Neon::detect().map(Path::Neon) else {
            return Vec::new();
        };
        let blocks = bfmmla::Bfmmla::detect().map(Bf16Products::Blocks);
        let mut all = vec![Self::of(path)];
        all.extend(blocks.map(|bf16| Self { path, bf16 }));
        all
    }

    /// Those of this [`name`](Self::name).
    ///
    /// # Errors
    /// Where there are none of this name, or this processor lacks the instructions.
    pub fn named(name: &str) -> Result<Self, UnknownKernels> {
        Self::all()
            .into_iter()
            .find(|kernels| kernels.name() == name)
            .ok_or_else(|| UnknownKernels::of(name))
    }

    /// Those that the environment variable [`CPU_VARIABLE`] names; the best where it is not set.
    ///
    /// # Errors
    /// As [`named`](Self::named).
    pub fn from_environment() -> Result<Self, UnknownKernels> {
        match std::env::var_os(CPU_VARIABLE) {
            Some(name) => Self::named(&name.to_string_lossy()),
            None => Ok(Self::detect()),
        }
    }

    /// `portable`, `avx2`, `avx512` or `neon`; or, as `avx512` but for products of bf16 weights, `amx`;
    /// or but for those under `Compute::Bf16` alone, `avx512-bf16` (with `VDPBF16PS`) and, as `neon`,
    /// `neon-bf16` (with `BFMMLA`).
    pub fn name(self) -> &'static str {
        match (self.path, self.bf16) {
            #[cfg(target_arch = "x86_64")]
            (_, Bf16Products::Pairs(_)) => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            (_, Bf16Products::Tiles(_)) => "amx",
            #[cfg(target_arch = "aarch64")]
            (_, Bf16Products::Blocks(_)) => "neon-bf16",
            (Path::Portable(_), _) => "portable",
            #[cfg(target_arch = "x86_64")]
            (Path::Avx2(_), _) => "avx2",
            #[cfg(target_arch = "x86_64")]
            (Path::Avx512(_), _) => "avx512",
            #[cfg(target_arch = "aarch64")]
            (Path::Neon(_), _) => "neon",
        }
    }

    pub(crate) fn run<W: Work>(self, work: W) -> W::Out {
        match self.path {
            Path::Portable(path) => path.run(work),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(path) => path.run(work),
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(path) => path.run(work),
            #[cfg(target_arch = "aarch64")]
            Path::Neon(path) => path.run(work),
        }
    }

    fn tokens(self) -> Tokens {
        struct OfASet;
        impl Work for OfASet {
            type Out = Tokens;

            #[inline(always)]
            fn run<S: Simd>(self, _: S) -> Tokens {
                Tokens {
                    tile: S::TOKENS,
                    beside: S::BESIDE.1,
                    few: S::FEW,
                }
            }
        }
        self.run(OfASet)
    }
}

/// How an instruction set takes tokens.
#[derive(Debug, Clone, Copy)]
struct Tokens {
    /// Most of a tile.
    tile: usize,
    /// Most beside each other in a skinny product.
    beside: usize,
    /// Most of a skinny product.
    few: usize,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

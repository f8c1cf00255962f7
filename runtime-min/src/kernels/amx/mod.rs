//! Products of bf16 weights in the tile registers of Intel AMX.
//!
//! A tile of weights is 16 rows of 32 columns as they lie in memory, a tile of activations is 16
//! pairs of columns of up to 16 tokens, and a tile of sums is 16 rows of so many tokens.
//!
//! **f32 activations** (`pieces`). `TDPBF16PS` multiplies bf16 values alone, and under `Compute::F32`
//! activations are f32 values: 24 bits of significand, which are three bf16 values of 8 bits each. An
//! activation is cut into those three, and a weight is multiplied with each: all products are exact,
//! as 8 bits times 8 bits fit into 24, and every sum is rounded to f32, so that a result is as near to
//! the exact one as that of a chain of fused multiply-adds. On registers alone, three tile products take less than
//! a fifth of the time of the multiply-adds that they stand for. (Henry, Tang and Heinecke,
//! "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", 2019,
//! cut both factors; here one of them is a bf16 value already.)
//!
//! **The order of additions** (Intel SDM, `TDPBF16PS`) differs from that of all other kernels: of
//! every 32 columns the even ones are one chain of fused multiply-adds and the odd ones another, both
//! from zero on; the sum of the two is added to the sums before it. With pieces that is done three
//! times, for the smallest pieces first. Columns that are missing in the last 32 are zero. Values,
//! pieces and sums below 2⁻¹²⁶ are zero. One kernel takes any number of tokens, so that a value does
//! not depend on how many there are.
//!
//! A convolution (`taps`) is multiplied tap by tap, in the same order: its results are those of the
//! product with rows that have the inputs of all taps side by side.
//!
//! Under `Compute::F32` an infinite weight may give NaN where the f32 product is infinite: where a piece
//! that it is multiplied with is zero.

mod detect;
mod group;
mod multiply;
mod pieces;
mod registers;
mod taps;

pub(super) use detect::Amx;
pub(super) use group::{Group, Pack};
pub(super) use multiply::{Tiles, rows_of_a_task};
pub(super) use registers::multiply_registers;
pub(super) use taps::{Layout, Turn};

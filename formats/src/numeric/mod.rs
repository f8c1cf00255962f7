//! Numbers as they are stored: the dtypes of tensors, and one file for each number format.
//!
//! All bytes are little-endian. Every `match` over [`Dtype`] names each dtype, so that a new one is
//! one more file and the compiler lists what else it touches.
//!
//! | dtype | value | file |
//! |---|---|---|
//! | `BF16` `F16` `F32` `F64` | a float | [`bf16`], [`f16`](mod@f16), [`f32`](mod@f32), [`f64`](mod@f64) |
//! | `F8_E4M3` `F8_E5M2` `F8_E8M0` and the FNUZ ones | a float, usually with a scale | [`fp8`] |
//! | `F4` | a float of a block of 32 that share a scale | [`mxfp4`] |
//! | `F6_E2M3` `F6_E3M2` | a float of a block that shares a scale | none yet |
//! | `BOOL` `I8` … `U64` | a truth value, an integer | needs none |
//! | `C64` | two floats | as [`f32`](mod@f32) |
//!
//! Some formats are no dtypes of safetensors files: [`int4`] lies packed in `I32` or `U8` tensors,
//! [`q8_0`] and the other blocks of [`ggml`] in GGUF files.
//!
//! What is done with numbers of several formats: [`FloatDtype`] names those that are computed with
//! as they are and widens them, [`FloatConversion`] turns one into another, [`ValueCheck`] looks
//! for values that are not finite, [`append_values`] gives those of any dtype
//! as F64, [`StatisticsBuilder`] sums them up.

pub mod bf16;
mod check;
mod convert;
mod dtype;
pub mod f16;
pub mod f32;
pub mod f64;
mod float;
pub mod fp8;
pub mod ggml;
pub mod int4;
mod minifloat;
pub mod mxfp4;
pub mod q8_0;
mod statistics;
mod values;

pub use check::ValueCheck;
pub use convert::{FloatConversion, Overflow};
pub use dtype::{Dtype, UnknownDtype};
pub use float::{FloatDtype, NotFloat};
pub use statistics::{Apart, Statistics, StatisticsBuilder};
pub use values::{append_values, has_values, value_count};

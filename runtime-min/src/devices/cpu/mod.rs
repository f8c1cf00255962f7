//! The CPU: operations of one instruction set on rayon's threads; experts in slots of an arena.

mod dense;
mod executor;
pub(crate) mod experts;
mod scratch;

#[cfg(feature = "cuda")]
pub(crate) use executor::{MANIFEST_ENTRY_BYTES, PROGRAM_BYTES, heads};

//! The steps of segpack (scan, plan, pack, verify, unpack, …) and its command line.
//!
//! Steps are plain functions: inputs and options in, a document out, progress through a trait. They
//! never print.

// what only the commands that run models use is not worth a gate of its own
#![cfg_attr(not(feature = "run"), allow(dead_code, unused_imports))]

mod causes;
pub mod cli;
pub mod guide;
mod output;
mod pack_writer;
mod render;
mod source;
pub mod steps;
pub mod work;

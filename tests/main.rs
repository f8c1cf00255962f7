//! End-to-end tests: the program as a user meets it, on checkpoints that are made here.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test data is small"
)]

mod arrows;
mod bad_checkpoints;
mod bad_packs;
mod codecs;
#[cfg(target_os = "linux")]
mod cuda;
mod damage;
mod documentation;
mod export;
mod families;
mod fuzz_smoke;
mod gguf;
mod help;
mod loading;
mod old_packs;
mod pipeline;
mod resume;
mod roundtrip;
mod run;
mod scan;
mod schemas;
mod support;
mod thinker;
mod validate;

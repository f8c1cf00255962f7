//! End-to-end tests: the program as a user meets it, on checkpoints that are made here.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test data is small"
)]

mod checkpoint;
mod cli;
#[path = "../compat/mod.rs"]
mod compat;
mod export;
mod integrity;
mod pack;
mod remote;
mod run;
#[path = "../support/mod.rs"]
mod support;
mod validate;

//! What holds of the text of this repository: who depends on whom, where links lead, and what
//! packages of a release are made of.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod arrows;
mod circles;
mod documentation;
mod dtypes;
mod errors;
mod release;
mod rooms;
mod source;

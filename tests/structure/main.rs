//! What holds of the text of this repository: who depends on whom, and where links lead.

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
mod rooms;
mod source;

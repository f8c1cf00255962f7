//! Comparing with recorded traces.

mod media;
mod speech;
mod traces;

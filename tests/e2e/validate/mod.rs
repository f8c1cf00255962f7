//! Comparing with recorded traces.

mod media;
mod traces;

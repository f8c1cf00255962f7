//! Comparing with recorded traces.

mod media;
mod speech;
mod stages;
mod traces;

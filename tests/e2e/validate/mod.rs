//! Comparing with recorded traces.

mod families;
mod media;
mod speech;
mod stages;
mod traces;

//! Comparing with recorded traces.

mod families;
mod media;
mod quantised;
mod speech;
mod stages;
mod traces;

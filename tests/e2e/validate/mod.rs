//! Comparing with recorded traces.

mod families;
mod media;
mod quantised;
mod server;
mod speech;
mod stages;
mod traces;
mod vl;

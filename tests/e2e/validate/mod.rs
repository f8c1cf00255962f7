//! Comparing with recorded traces.

mod traces;

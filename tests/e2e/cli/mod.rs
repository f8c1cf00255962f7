//! What the command line says.

mod diff;
mod help;
mod living;
mod report;

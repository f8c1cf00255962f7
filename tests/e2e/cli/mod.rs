//! What the command line says.

mod help;
mod living;

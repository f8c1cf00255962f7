//! Networks, each written once in the operations of an executor.

pub mod decoder;

//! What the tests share.

pub mod checkpoint;
pub mod cli;
pub mod damage;
pub mod folders;
pub mod tiny;

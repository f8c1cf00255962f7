//! What the tests share.

pub mod checkpoint;
pub mod cli;
pub mod damage;
pub mod folders;
#[cfg(target_os = "linux")]
pub mod gpu;
pub mod liar;
pub mod packs;
pub mod tiny;

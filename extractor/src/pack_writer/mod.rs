//! From planned segments to a pack folder: for `pack` and `repack`.

mod done;
mod entries;
mod folder;

pub use done::{Done, lock, memory_of, unfinished};
pub use entries::add_pack;
pub use folder::{Target, check_ours, close, summarise, write_documents};

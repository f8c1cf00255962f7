//! From planned segments to a pack folder: for `pack`, `join` and `repack`.

mod done;
mod entries;
mod error;
mod estimate;
mod folder;
mod read_back;
mod space;

pub(crate) use done::{Done, Recorder, memory_of};
pub(crate) use entries::add_pack;
pub use error::PackWriterError;
pub(crate) use folder::{
    IN_PLACE, Target, check_ours, close, close_empty, documents, summarise, write_documents,
    write_part_documents,
};
pub(crate) use read_back::{digest_file, read_back};
pub(crate) use space::{Space, add_estimate};

//! Running a model from a pack.

mod command;
#[cfg(target_os = "linux")]
mod cuda;
mod loading;
mod thinker;

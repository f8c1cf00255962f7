//! Running a model from a pack.

mod command;
#[cfg(target_os = "linux")]
mod cuda;
#[cfg(unix)]
mod interrupt;
mod loading;
mod media;
mod not_run;
mod numbers;
#[cfg(all(unix, feature = "serve"))]
mod serve;
#[cfg(target_os = "linux")]
mod session_media;
mod speak;
mod thinker;
mod vocode;

//! Running a model from a pack.

mod bench;
#[cfg(unix)]
mod chat;
mod command;
#[cfg(target_os = "linux")]
mod cuda;
mod drafts;
mod experts;
#[cfg(unix)]
mod interrupt;
mod loading;
mod media;
mod not_run;
mod numbers;
mod prompts;
#[cfg(all(unix, feature = "serve"))]
mod serve;
#[cfg(target_os = "linux")]
mod session_media;
mod several;
mod speak;
#[cfg(target_os = "linux")]
mod speak_budgets;
mod thinker;
mod vl;
mod vocode;

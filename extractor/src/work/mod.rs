//! How a step works: a queue of tasks and its threads, batches, progress.

mod batches;
mod job;
mod progress;
mod shared;
mod tasks;

pub(crate) use batches::batches;
pub use job::Job;
pub use progress::{Progress, Silent};
pub(crate) use shared::{into_inner, lock};
pub use tasks::default_jobs;
pub(crate) use tasks::{TaskError, jobs_within_memory, run_tasks};

//! How a step works: a queue of tasks and its threads, batches, progress, memory.

mod batches;
mod job;
mod memory;
mod progress;
mod tasks;

pub(crate) use batches::batches;
pub use job::Job;
pub(crate) use memory::available_memory;
pub use progress::{Progress, Silent};
pub use tasks::default_jobs;
pub(crate) use tasks::{TaskError, jobs_within_memory, run_tasks};

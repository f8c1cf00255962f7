//! How a step works: a queue of tasks and its threads, batches, progress, memory.

mod batches;
mod memory;
mod progress;
mod tasks;

pub(crate) use batches::batches;
pub(crate) use memory::available_memory;
pub use progress::{Progress, Silent};
pub use tasks::default_jobs;
pub(crate) use tasks::{jobs_within_memory, run_tasks};

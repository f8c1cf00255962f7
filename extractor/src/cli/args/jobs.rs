use super::PERFORMANCE;
use super::values::threads;
use crate::work::default_jobs;

/// Threads that read, hash and write.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Jobs {
    /// Number of threads [default: one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = threads, help_heading = PERFORMANCE)]
    jobs: Option<usize>,
}

impl Jobs {
    /// How many.
    pub(crate) fn count(self) -> usize {
        self.jobs.unwrap_or_else(default_jobs)
    }
}

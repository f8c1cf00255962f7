use super::values::threads;
use crate::work::default_jobs;

/// Threads that read, digest and write.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Jobs {
    /// Threads [default: one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = threads)]
    jobs: Option<usize>,
}

impl Jobs {
    /// How many.
    pub fn count(self) -> usize {
        self.jobs.unwrap_or_else(default_jobs)
    }
}

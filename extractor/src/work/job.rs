//! What every long piece of work needs from whoever started it.

use std::fmt;

use segpack_formats::io::CancelToken;

use super::{Progress, Silent};

/// The threads of a piece of work, when it stops, and who hears how far it is.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// Threads, at least one.
    pub threads: usize,
    /// When to stop.
    pub stop: &'a CancelToken,
    /// Who hears how far it is.
    pub progress: &'a dyn Progress,
}

impl Job<'_> {
    /// On one thread, of which nobody hears, and which nothing stops.
    pub fn unwatched() -> Job<'static> {
        static NEVER: CancelToken = CancelToken::new();
        Job {
            threads: 1,
            stop: &NEVER,
            progress: &Silent,
        }
    }
}

impl fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Job");
        shown.field("threads", &self.threads);
        shown.finish_non_exhaustive()
    }
}

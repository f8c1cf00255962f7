//! What every long piece of work needs from whoever started it.

use segpack_formats::io::CancelToken;

use super::Progress;

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

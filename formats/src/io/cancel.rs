//! Stopping long work.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{FormatError, Result};

/// A request to stop, polled between pieces of work.
#[derive(Debug, Default)]
pub struct CancelToken(AtomicBool);

impl CancelToken {
    /// Nobody has asked yet.
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Asks everything that polls this to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Takes the request back: what was asked to stop has, and other work begins.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether [`cancel`](Self::cancel) was called, and not taken back.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error once [`cancel`](Self::cancel) was called, for `?` between pieces of work.
    ///
    /// # Errors
    /// `Interrupted` then.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(FormatError::Interrupted);
        }
        Ok(())
    }
}

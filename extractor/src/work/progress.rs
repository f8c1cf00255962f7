//! Progress as the steps report it; drawing it is the command line's business.

/// Receives the progress of a step. Called from several threads.
pub trait Progress: Sync {
    /// A phase begins that will process this many bytes: those of the tensors and files that it
    /// reads or writes, each as often as it does. The rate is then that of the work, not of a
    /// drive.
    fn start(&self, phase: &'static str, total_bytes: u64);
    /// A phase begins that will process `total` things, not bytes; `unit` names one of them in the
    /// singular, such as "layer".
    fn start_counting(&self, phase: &'static str, total: u64, unit: &'static str);
    /// `more` bytes or things of the phase are done.
    fn advance(&self, more: u64);
    /// The phase is over.
    fn finish(&self);
    /// Something worth a line.
    fn note(&self, line: &str);
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &'static str, _: u64) {}
    fn start_counting(&self, _: &'static str, _: u64, _: &'static str) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
}

impl<P: Progress + ?Sized> Progress for &P {
    fn start(&self, phase: &'static str, total_bytes: u64) {
        (**self).start(phase, total_bytes);
    }
    fn start_counting(&self, phase: &'static str, total: u64, unit: &'static str) {
        (**self).start_counting(phase, total, unit);
    }
    fn advance(&self, more: u64) {
        (**self).advance(more);
    }
    fn finish(&self) {
        (**self).finish();
    }
    fn note(&self, line: &str) {
        (**self).note(line);
    }
}

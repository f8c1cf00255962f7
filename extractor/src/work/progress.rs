//! Progress as the steps report it; drawing it is the command line's business.

/// Hears how far a step is. Called from several threads.
pub trait Progress: Sync {
    /// A phase begins that will process this many bytes.
    fn start(&self, phase: &'static str, total_bytes: u64);
    /// A phase begins that will process this many of something else, named in the singular.
    fn start_counting(&self, phase: &'static str, total: u64, unit: &'static str);
    /// So many more bytes, or of what is counted, are done.
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

//! Progress as the steps report it; drawing it is the command line's business.

/// Hears how far a step is. Called from several threads.
pub trait Progress: Sync {
    /// A phase begins that will process this many bytes.
    fn start(&self, phase: &'static str, total_bytes: u64);
    /// So many more bytes are done.
    fn advance(&self, bytes: u64);
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
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
}

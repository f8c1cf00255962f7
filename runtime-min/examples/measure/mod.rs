//! What the examples that measure have in common.

use segpack_runtime_min::session::{MemoryLimit, SessionOptions};

/// Multiply-adds of a measurement of the peak, for each thread: about half a second.
pub(crate) const STEPS: usize = 1 << 27;

/// Of a session with so many threads, and as much memory as it needs where none is given.
pub(crate) fn options(memory: Option<u64>, threads: usize) -> SessionOptions {
    let mut options = SessionOptions::default();
    options.memory = memory.map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes);
    options.threads = Some(threads);
    options
}

/// What `run` gives, and the limit: measured before and after it, as neighbours on a machine come and
/// go.
pub(crate) fn beside_limit<T, E>(
    limit: impl Fn() -> f64,
    run: impl FnOnce() -> Result<T, E>,
) -> Result<(T, f64), E> {
    let before = limit();
    let ran = run()?;
    Ok((ran, f64::midpoint(before, limit())))
}

/// A count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn real(n: usize) -> f64 {
    n as f64
}

/// The most memory that this process had, as Linux says it; nothing elsewhere.
pub(crate) fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap_or_default().trim().to_owned()
}

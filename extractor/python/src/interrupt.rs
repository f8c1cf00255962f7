//! Ctrl-C while native code is at work.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use segpack_formats::io::CancelToken;

/// How often Python is asked whether a signal came.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// Does `work` on a thread of its own, without the interpreter's lock. Where a signal handler raises
/// meanwhile (Ctrl-C: `KeyboardInterrupt`), `cancel` is requested, and once `work` has returned the
/// exception goes on.
///
/// # Errors
/// What a signal handler raised; `RuntimeError` where the thread cannot be started.
pub(crate) fn interruptible<T: Send>(
    py: Python<'_>,
    cancel: &CancelToken,
    work: impl FnOnce() -> T + Send,
) -> PyResult<T> {
    thread::scope(|scope| {
        let (done, mut finished) = mpsc::channel::<()>();
        let worker = thread::Builder::new().spawn_scoped(scope, move || {
            let result = work();
            drop(done);
            result
        });
        let worker =
            worker.map_err(|e| PyRuntimeError::new_err(format!("cannot start a thread: {e}")))?;
        let mut raised = None;
        while is_running(py, &mut finished) {
            if raised.is_none()
                && let Err(exception) = py.check_signals()
            {
                cancel.cancel();
                raised = Some(exception);
            }
        }
        let result = worker.join();
        match (raised, result) {
            (Some(exception), Ok(_)) => Err(exception),
            (None, Ok(result)) => Ok(result),
            (_, Err(panic)) => std::panic::resume_unwind(panic),
        }
    })
}

/// Waits for the end of the work, but no longer than [`POLL`]. Nothing is ever sent: its end closes
/// the channel.
fn is_running(py: Python<'_>, finished: &mut mpsc::Receiver<()>) -> bool {
    let waited = py.detach(move || finished.recv_timeout(POLL));
    matches!(waited, Err(mpsc::RecvTimeoutError::Timeout))
}

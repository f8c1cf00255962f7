//! A question before something that cannot be undone.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use segpack_formats::FormatError;
use segpack_formats::io::CancelToken;

use super::error::CliError;

/// Whether there is somebody to ask.
pub(super) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks on the terminal, and goes on only where the answer is "yes".
///
/// # Errors
/// `NotConfirmed`; `Interrupted`.
pub(super) fn confirm(question: &str, stop: &CancelToken) -> Result<(), CliError> {
    // nobody is left to ask where standard error is closed
    let _ = write!(io::stderr(), "{question}\nType yes to continue: ");
    let (sender, receiver) = channel();
    // a read cannot be interrupted, so it waits on a thread of its own
    let reading = thread::Builder::new().spawn(move || {
        let mut answer = String::new();
        let read = io::stdin().read_line(&mut answer);
        let _ = sender.send(read.map_or(String::new(), |_| answer)); // nobody waits after Ctrl-C
    });
    reading.map_err(FormatError::Thread)?;
    loop {
        stop.check()?;
        match receiver.recv_timeout(Duration::from_millis(50)) {
            Ok(answer) if is_yes(&answer) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
            Ok(_) | Err(RecvTimeoutError::Disconnected) => return Err(CliError::NotConfirmed),
        }
    }
}

fn is_yes(answer: &str) -> bool {
    answer.trim().eq_ignore_ascii_case("yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_yes_is_one() {
        assert!(is_yes("yes\n") && is_yes(" YES "));
        assert!(!is_yes("y\n") && !is_yes("") && !is_yes("no\n") && !is_yes("yes please"));
    }
}

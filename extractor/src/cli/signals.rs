//! Ctrl-C and friends: the first asks to stop, the second ends the process.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::thread;

use segpack_formats::io::CancelToken;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::steps::Exit;

static STOP: LazyLock<CancelToken> = LazyLock::new(CancelToken::default);
static SIGNAL: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Exit status of a process that a signal ended: 128 + its number.
const SIGNALLED: i32 = 128;

/// Listens for SIGINT and SIGTERM (on Unix also SIGHUP, taken as SIGTERM), but for those that are
/// ignored. The first is acknowledged with a line on standard error, unless `quiet`: until the work
/// that is under way has ended, nothing else shows that it arrived.
pub(super) fn install(quiet: bool) -> &'static CancelToken {
    let which = SIGNAL.get_or_init(Arc::default);
    let asked = Arc::new(AtomicBool::new(false));
    let ignored = ignored();
    for signal in signals() {
        if ignored & (1 << (signal - 1)) != 0 {
            continue; // `nohup`, or a shell that put the process into the background
        }
        let number = usize::try_from(signal).unwrap_or_default();
        // where a handler cannot be installed the signal keeps its default: it ends the process
        let _ = flag::register_conditional_shutdown(signal, SIGNALLED + signal, Arc::clone(&asked));
        let _ = flag::register_usize(signal, Arc::clone(which), number);
        let _ = flag::register(signal, Arc::clone(&asked));
    }
    thread::spawn(move || {
        while !asked.load(Ordering::Relaxed) {
            thread::sleep(std::time::Duration::from_millis(20));
        }
        STOP.cancel();
        if !quiet {
            acknowledge();
        }
    });
    &STOP
}

/// On a terminal in the place of a bar, which is drawn anew below.
fn acknowledge() {
    let mut out = io::stderr().lock();
    let begin = if out.is_terminal() { "\r\x1b[K" } else { "" };
    // nobody is left to tell where standard error is closed
    let _ = writeln!(out, "{begin}stopping…");
}

/// The signals that are ignored since before the program began: bit N - 1 for signal N.
#[cfg(target_os = "linux")]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// Other systems do not tell.
#[cfg(not(target_os = "linux"))]
fn ignored() -> u64 {
    0
}

#[cfg(unix)]
fn signals() -> Vec<i32> {
    vec![SIGINT, SIGTERM, signal_hook::consts::SIGHUP]
}

#[cfg(not(unix))]
fn signals() -> Vec<i32> {
    vec![SIGINT, SIGTERM]
}

/// The exit status, told apart by signal where the process was interrupted.
pub(super) fn exit_status(exit: Exit) -> u8 {
    let signal = SIGNAL.get().map_or(0, |s| s.load(Ordering::Relaxed));
    let interrupted = usize::try_from(SIGINT).unwrap_or_default();
    match exit {
        Exit::Interrupted if signal != 0 && signal != interrupted => Exit::Terminated as u8,
        exit => exit as u8,
    }
}

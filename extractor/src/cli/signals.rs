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
    let requested = Arc::new(AtomicBool::new(false));
    let ignored = ignored();
    for signal in signals() {
        if ignored & (1 << (signal - 1)) != 0 {
            continue; // `nohup`, or a shell that put the process into the background
        }
        let number = usize::try_from(signal).unwrap_or_default();
        // where a handler cannot be installed the signal keeps its default: it ends the process
        let _ =
            flag::register_conditional_shutdown(signal, SIGNALLED + signal, Arc::clone(&requested));
        let _ = flag::register_usize(signal, Arc::clone(which), number);
        let _ = flag::register(signal, Arc::clone(&requested));
    }
    thread::spawn(move || {
        while !requested.load(Ordering::Relaxed) {
            thread::sleep(std::time::Duration::from_millis(20));
        }
        STOP.cancel();
        if !quiet {
            acknowledge();
        }
    });
    &STOP
}

/// Whether an answer is under way, which Ctrl-C ends.
static IS_ANSWERING: AtomicBool = AtomicBool::new(false);
/// Whether the process was asked to end while one was.
static IS_TERMINATED: AtomicBool = AtomicBool::new(false);

/// As [`install`], for a conversation: SIGINT ends the answer that is under way, the others that and
/// the process. Where none is, each of them ends the process at once: nothing is half done.
pub(super) fn install_for_answers() -> &'static CancelToken {
    let which = SIGNAL.get_or_init(Arc::default);
    let ignored = ignored();
    for signal in signals() {
        if ignored & (1 << (signal - 1)) == 0 {
            let number = usize::try_from(signal).unwrap_or_default();
            // where a handler cannot be installed the signal keeps its default: it ends the process
            let _ = flag::register_usize(signal, Arc::clone(which), number);
        }
    }
    thread::spawn(move || {
        loop {
            thread::sleep(std::time::Duration::from_millis(20));
            let signal = i32::try_from(which.load(Ordering::Relaxed)).unwrap_or_default();
            if signal != 0 {
                end_answer(signal, which);
            }
        }
    });
    &STOP
}

fn end_answer(signal: i32, which: &AtomicUsize) {
    if !IS_ANSWERING.load(Ordering::Relaxed) {
        std::process::exit(SIGNALLED + signal);
    }
    match signal {
        SIGINT => which.store(0, Ordering::Relaxed), // the next one counts anew
        _ => IS_TERMINATED.store(true, Ordering::Relaxed),
    }
    STOP.cancel();
}

/// Work that Ctrl-C ends, and not the process.
pub(super) fn while_answering<T>(work: impl FnOnce() -> T) -> T {
    STOP.reset();
    IS_ANSWERING.store(true, Ordering::Relaxed);
    let done = work();
    IS_ANSWERING.store(false, Ordering::Relaxed);
    done
}

/// Whether the process was asked to end.
pub(super) fn is_terminated() -> bool {
    IS_TERMINATED.load(Ordering::Relaxed)
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

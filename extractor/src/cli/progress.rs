//! Progress drawn: a bar on a terminal; elsewhere a line at once, so that a log says what goes on, and
//! one every ten seconds; nothing when quiet.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::render::text::{bytes, counted};
use crate::work::{Progress, lock};

const LINE_EVERY: Duration = Duration::from_secs(10);
const BAR: &str = "{msg:>22} [{bar:30}] {decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";
const COUNTING_BAR: &str = "{msg:>22} [{bar:30}] {pos} of {len} {prefix}s  {eta} left";

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bar,
    Lines,
    Nothing,
}

/// Shows the progress of steps on standard error.
#[derive(Debug)]
pub(super) struct Reporter {
    kind: Kind,
    phase: Mutex<Option<Phase>>,
}

#[derive(Debug)]
struct Phase {
    name: &'static str,
    /// What is counted, where it is not bytes.
    unit: Option<&'static str>,
    total: u64,
    done: u64,
    began: Instant,
    next_line: Instant,
    bar: Option<ProgressBar>,
}

impl Reporter {
    pub(super) fn new(quiet: bool) -> Self {
        let kind = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Kind::Nothing,
            (false, true) => Kind::Bar,
            (false, false) => Kind::Lines,
        };
        Self {
            kind,
            phase: Mutex::new(None),
        }
    }

    fn phase(&self) -> MutexGuard<'_, Option<Phase>> {
        lock(&self.phase)
    }

    fn begin(&self, name: &'static str, unit: Option<&'static str>, total: u64) {
        let began = Instant::now();
        let bar = (self.kind == Kind::Bar).then(|| bar(total, name, unit));
        let phase = Phase {
            name,
            unit,
            total,
            done: 0,
            began,
            next_line: began + LINE_EVERY,
            bar,
        };
        if self.kind == Kind::Lines {
            // progress that cannot be written is no reason to fail
            let _ = writeln!(io::stderr(), "{}", phase.first_line());
        }
        *self.phase() = Some(phase);
    }
}

fn bar(total: u64, name: &'static str, unit: Option<&'static str>) -> ProgressBar {
    let template = if unit.is_some() { COUNTING_BAR } else { BAR };
    // the templates are constants; a test parses them
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    // whole from the first time that it is drawn
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden())
        .with_style(style)
        .with_message(name)
        .with_prefix(unit.unwrap_or_default());
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
    bar.tick();
    bar
}

impl Phase {
    /// What is going to be done.
    fn first_line(&self) -> String {
        let total = match self.unit {
            Some(unit) => counted(self.total, unit),
            None => bytes(self.total),
        };
        format!("{}: {total}", self.name)
    }

    fn line(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-9);
        #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
        let (done, total) = (self.done as f64, self.total.max(1) as f64);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate, shown with three digits"
        )]
        let rate = (done / seconds) as u64;
        let left = (total - done).max(0.0) * seconds / done.max(1.0);
        let percent = 100.0 * done / total;
        if let Some(unit) = self.unit {
            let total = counted(self.total, unit);
            return format!(
                "{}: {} of {total} ({percent:.0} %), {left:.0} s left",
                self.name, self.done
            );
        }
        let (done, total) = (bytes(self.done), bytes(self.total));
        format!(
            "{}: {done} of {total} ({percent:.0} %), {}/s, {left:.0} s left",
            self.name,
            bytes(rate)
        )
    }
}

impl Progress for Reporter {
    fn start(&self, name: &'static str, total: u64) {
        self.begin(name, None, total);
    }

    fn start_counting(&self, name: &'static str, total: u64, unit: &'static str) {
        self.begin(name, Some(unit), total);
    }

    fn advance(&self, more: u64) {
        let mut phase = self.phase();
        let Some(phase) = phase.as_mut() else { return };
        phase.done += more;
        if let Some(bar) = &phase.bar {
            bar.inc(more);
        } else if self.kind == Kind::Lines && Instant::now() >= phase.next_line {
            phase.next_line += LINE_EVERY;
            // progress that cannot be written is no reason to fail
            let _ = writeln!(io::stderr(), "{}", phase.line());
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.phase().take().and_then(|p| p.bar) {
            bar.finish_and_clear();
        }
    }

    fn note(&self, line: &str) {
        if self.kind == Kind::Nothing {
            return;
        }
        match self.phase().as_ref().and_then(|p| p.bar.as_ref()) {
            Some(bar) => bar.println(line),
            None => {
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_far_how_fast_how_long() {
        assert!(
            ProgressStyle::with_template(BAR).is_ok()
                && ProgressStyle::with_template(COUNTING_BAR).is_ok()
        );
        let began = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        let mut phase = Phase {
            name: "packing",
            unit: None,
            total: 4_000_000_000,
            done: 1_000_000_000,
            began,
            next_line: began,
            bar: None,
        };
        assert_eq!(phase.first_line(), "packing: 4.0 GB");
        assert_eq!(
            phase.line(),
            "packing: 1.0 GB of 4.0 GB (25 %), 100 MB/s, 30 s left"
        );
        (phase.unit, phase.total, phase.done) = (Some("layer"), 48, 12);
        assert_eq!(phase.first_line(), "packing: 48 layers");
        assert_eq!(phase.line(), "packing: 12 of 48 layers (25 %), 30 s left");
    }
}

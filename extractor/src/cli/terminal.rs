//! Writing results, findings and errors.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};

use clap::ColorChoice;
use comfy_table::presets;
use comfy_table::{CellAlignment, Table};
use segpack_manifests::documents::{Finding, Severity};
use segpack_manifests::json;
use serde::Serialize;

use crate::steps::{Exit, StepError};

/// Most warnings that are written one by one; errors always all are.
const MOST_WARNINGS: usize = 20;

/// Standard output and standard error.
#[derive(Debug)]
pub struct Terminal {
    color: bool,
}

impl Terminal {
    pub fn new(choice: ColorChoice) -> Self {
        let wanted =
            std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && io::stderr().is_terminal();
        let color = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => wanted,
        };
        Self { color }
    }

    /// Lets `write` write to standard output, buffered.
    pub fn stdout(
        &self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let mut out = BufWriter::new(io::stdout().lock());
        Ok(write(&mut out)
            .and_then(|()| out.flush())
            .map_err(StepError::Stdout)?)
    }

    /// A line of standard output.
    pub fn line(&self, text: impl Display) -> anyhow::Result<()> {
        self.stdout(|out| writeln!(out, "{text}"))
    }

    /// A document on standard output.
    pub fn document(&self, document: &impl Serialize) -> anyhow::Result<()> {
        self.stdout(|out| json::write_document(out, document))
    }

    /// A report as a document where `json`, otherwise as `print` prints it; the exit status says
    /// whether it is `ok`.
    pub fn report(
        &self,
        report: &impl Serialize,
        ok: bool,
        json: bool,
        print: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> anyhow::Result<Exit> {
        if json {
            self.document(report)?;
        } else {
            self.stdout(print)?;
        }
        Ok(if ok { Exit::Ok } else { Exit::Damaged })
    }

    /// The end of a printed report: its findings, then what they come to.
    pub fn verdict(
        &self,
        findings: &[Finding],
        verdict: impl Display,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        self.findings(findings, out)?;
        writeln!(out, "{verdict}")
    }

    /// Errors all, warnings up to a bound, one per line.
    pub fn findings(&self, findings: &[Finding], out: &mut dyn Write) -> io::Result<()> {
        let (errors, warnings): (Vec<_>, Vec<_>) =
            findings.iter().partition(|f| f.severity == Severity::Error);
        for finding in errors {
            writeln!(out, "  {finding}")?;
        }
        for finding in warnings.iter().take(MOST_WARNINGS) {
            writeln!(out, "  warning: {finding}")?;
        }
        if warnings.len() > MOST_WARNINGS {
            writeln!(
                out,
                "  and {} more warnings (all with --json)",
                warnings.len() - MOST_WARNINGS
            )?;
        }
        Ok(())
    }

    /// An error with its causes, on standard error; findings one by one before it.
    pub fn error(&self, error: &anyhow::Error) {
        let mut err = io::stderr().lock();
        if let Some(StepError::Findings { findings, .. }) = error.downcast_ref() {
            let _ = self.findings(findings, &mut err);
        }
        let (on, off) = if self.color {
            ("\x1b[1;31m", "\x1b[0m")
        } else {
            ("", "")
        };
        // nobody is left to tell where standard error is closed
        let _ = writeln!(err, "{on}error:{off} {error:#}");
    }
}

/// A table without lines: the first columns to the left, the others to the right.
pub fn table(left_columns: usize, header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.to_vec())
        .add_rows(rows);
    for (i, column) in table.column_iter_mut().enumerate() {
        let (alignment, padding) = if i < left_columns {
            (CellAlignment::Left, (0, 2))
        } else {
            (CellAlignment::Right, (2, 0))
        };
        column.set_padding(padding);
        column.set_cell_alignment(alignment);
    }
    table.trim_fmt()
}

/// `1234567` as `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let first = digits.len() % 3;
    let mut text = digits[..first].to_owned();
    for group in digits.as_bytes()[first..].chunks(3) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&String::from_utf8_lossy(group));
    }
    text
}

/// Bytes in decimal units, as drives and networks count: `70.5 GB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if n < 1000 {
        return format!("{n} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are printed")]
    let mut value = n as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    let decimals = usize::from(value < 99.95);
    format!("{value:.decimals$} {unit}")
}

/// `1 tensor`, `2 tensors`.
pub fn counted(n: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(n), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [0, 12, 123, 1234, 70_519_637_090].map(grouped),
            ["0", "12", "123", "1,234", "70,519,637,090"]
        );
        assert_eq!(
            [0, 999, 1000, 99_949, 99_950, 999_600, 70_519_637_090].map(bytes),
            [
                "0 B", "999 B", "1.0 kB", "99.9 kB", "100 kB", "1.0 MB", "70.5 GB"
            ]
        );
        assert_eq!(counted(1, "pack"), "1 pack");
        assert_eq!(counted(2034, "pack"), "2,034 packs");
    }
}

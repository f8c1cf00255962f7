//! Writing results, findings and errors.

use std::io::{self, BufWriter, IsTerminal, Write};

use clap::ColorChoice;
use segpack_manifests::json;
use serde::Serialize;

use crate::render::text;
use crate::steps::StepError;

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
        let written = write(&mut out).and_then(|()| out.flush());
        Ok(written.map_err(StepError::Stdout)?)
    }

    /// Text on standard output, as it is.
    pub fn text(&self, text: &str) -> anyhow::Result<()> {
        self.stdout(|out| out.write_all(text.as_bytes()))
    }

    /// A document on standard output: as JSON where `json`, otherwise as `render` has it.
    pub fn document<T: Serialize>(
        &self,
        document: &T,
        json: bool,
        render: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        if json {
            return self.stdout(|out| json::write_document(out, document));
        }
        self.text(&render(document))
    }

    /// An error with its causes, on standard error; findings one by one before it.
    pub fn error(&self, error: &anyhow::Error) {
        let mut err = io::stderr().lock();
        if let Some(StepError::Findings { findings, .. }) = error.downcast_ref() {
            let _ = write!(err, "{}", text::findings(findings));
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

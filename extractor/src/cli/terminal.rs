//! Writing results, findings and errors.

use std::io::{self, BufWriter, IsTerminal, Write};

use clap::ColorChoice;
use segpack_manifests::json;
use serde::Serialize;

use super::error::CliError;
use crate::causes::chain;
use crate::render::text;
use crate::steps::StepError;

/// Standard output and standard error.
#[derive(Debug)]
pub(super) struct Terminal {
    color: bool,
}

impl Terminal {
    pub(super) fn new(choice: ColorChoice) -> Self {
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
    pub(super) fn stdout(
        &self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), StepError> {
        let mut out = BufWriter::new(io::stdout().lock());
        let written = write(&mut out).and_then(|()| out.flush());
        written.map_err(StepError::Stdout)
    }

    /// Text on standard output, as it is.
    pub(super) fn text(&self, text: &str) -> Result<(), StepError> {
        self.stdout(|out| out.write_all(text.as_bytes()))
    }

    /// A document on standard output: as JSON where `json`, otherwise as `render` has it.
    pub(super) fn document<T: Serialize>(
        &self,
        document: &T,
        json: bool,
        render: impl FnOnce(&T) -> String,
    ) -> Result<(), StepError> {
        if json {
            return self.stdout(|out| json::write_document(out, document));
        }
        self.text(&render(document))
    }

    /// An error with its causes and advice, on standard error; findings one by one before it.
    pub(super) fn error(&self, error: &CliError, hint: Option<String>) {
        let mut err = io::stderr().lock();
        let (red, cyan, off) = if self.color {
            ("\x1b[1;31m", "\x1b[1;36m", "\x1b[0m")
        } else {
            ("", "", "")
        };
        // nobody is left to tell where standard error is closed
        if let CliError::Step(StepError::Findings { findings, .. }) = error {
            let _ = write!(err, "{}", text::findings(findings));
        }
        let _ = writeln!(err, "{red}error:{off} {}", chain(error));
        if let Some(hint) = hint {
            let _ = writeln!(err, "{cyan}hint:{off} {hint}");
        }
    }

    /// Advice on what was printed, on standard error.
    pub(super) fn hint(&self, hint: Option<String>) {
        let (cyan, off) = if self.color {
            ("\x1b[1;36m", "\x1b[0m")
        } else {
            ("", "")
        };
        if let Some(hint) = hint {
            // nobody is left to tell where standard error is closed
            let _ = writeln!(io::stderr(), "{cyan}hint:{off} {hint}");
        }
    }
}

/// A model can be made to say anything, a terminal be told anything by control characters.
#[cfg(feature = "run")]
pub(super) fn for_terminal(text: &str) -> String {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars()
        .filter(|c| *c != '\r')
        .map(|c| if harmless(c) { c } else { '\u{fffd}' })
        .collect()
}

#[cfg(all(test, feature = "run"))]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_control_characters() {
        assert_eq!(
            for_terminal("a\x1b[31m\r\n\tb\x07\u{9b}é"),
            "a\u{fffd}[31m\n\tb\u{fffd}\u{fffd}é"
        );
    }
}

//! A command that fails with `--json` prints a document, too: why it failed.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};

use clap::ArgMatches;
use segpack_manifests::documents::{ErrorKind, ErrorReport, Finding, GENERATOR};
use segpack_manifests::json;

use super::error::CliError;
use crate::steps::{Exit, StepError};

/// How a command prints JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JsonOutput {
    /// Not at all.
    None,
    /// One document.
    Document,
    /// An object per line.
    Lines,
}

/// Commands that print an object per line.
const IN_LINES: [&str; 2] = ["ls", "run"];

impl JsonOutput {
    /// Of a command line that was understood.
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let Some((name, options)) = matches.subcommand() else {
            return Self::None;
        };
        let json = options.try_get_one::<bool>("json").ok().flatten();
        Self::when(json == Some(&true), name)
    }

    /// Of one that was not.
    pub(super) fn guess(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let words: Vec<OsString> = arguments.into_iter().take_while(|a| a != "--").collect();
        let name = words.iter().find(|word| !is_option(word));
        let name = name.map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Self::when(words.iter().any(|word| word == "--json"), &name)
    }

    fn when(json: bool, command: &str) -> Self {
        match json {
            false => Self::None,
            true if IN_LINES.contains(&command) => Self::Lines,
            true => Self::Document,
        }
    }

    /// Prints why a command failed. Nobody is left to tell where standard output is closed.
    pub(super) fn print(self, report: &ErrorReport) {
        let mut out = io::stdout().lock();
        let _ = match self {
            Self::None => Ok(()),
            Self::Document => json::write_document(&mut out, report),
            Self::Lines => serde_json::to_writer(&mut out, report)
                .map_err(io::Error::from)
                .and_then(|()| writeln!(out)),
        };
        let _ = out.flush();
    }
}

fn is_option(word: &OsString) -> bool {
    word.to_string_lossy().starts_with('-')
}

/// What there is to say of an error.
pub(super) fn report(error: &CliError, hint: Option<String>, exit_status: u8) -> ErrorReport {
    let findings = match error {
        CliError::Step(StepError::Findings { findings, .. }) => findings.clone(),
        _ => Vec::new(),
    };
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    let message = error.to_string();
    new(message, causes, hint, findings, (error.exit(), exit_status))
}

/// What there is to say of a command line that clap does not take.
pub(super) fn usage(error: &clap::Error) -> ErrorReport {
    let text = error.render().to_string();
    let text = text.trim_end().trim_start_matches("error: ");
    // what follows the first paragraph is how the command is used
    let message = text.split("\n\n").next().unwrap_or(text).to_owned();
    let hint = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "));
    let exit = (Exit::Usage, Exit::Usage as u8);
    new(
        message,
        Vec::new(),
        hint.map(str::to_owned),
        Vec::new(),
        exit,
    )
}

fn new(
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
    findings: Vec<Finding>,
    (exit, exit_status): (Exit, u8),
) -> ErrorReport {
    let kind = match exit {
        Exit::Ok | Exit::Failed => ErrorKind::Environment,
        Exit::Usage => ErrorKind::Usage,
        Exit::Damaged => ErrorKind::Input,
        Exit::Interrupted | Exit::Terminated => ErrorKind::Interrupted,
    };
    ErrorReport {
        format_version: ErrorReport::VERSION,
        generator: GENERATOR.to_owned(),
        error: true,
        kind,
        exit_status,
        message,
        causes,
        hint,
        findings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_wrong_command_line_asked_for_is_guessed() {
        let guess = |words: &[&str]| JsonOutput::guess(words.iter().map(OsString::from));
        assert_eq!(guess(&["scan", "x"]), JsonOutput::None);
        assert_eq!(guess(&["scan", "--json", "--nope"]), JsonOutput::Document);
        assert_eq!(guess(&["-q", "ls", "--json", "--nope"]), JsonOutput::Lines);
        assert_eq!(guess(&["cat", "x", "--", "--json"]), JsonOutput::None);
        assert_eq!(guess(&["--json"]), JsonOutput::Document);
    }
}

//! Errors with their causes, as one line of text.

use std::error::Error;

use segpack_formats::FormatError;

/// An error and its causes, each once: libraries disagree on whether a message contains its cause.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    let mut next = error.source();
    while let Some(cause) = next {
        let message = cause.to_string();
        if !last.contains(&message) {
            text += &format!(": {message}");
            last = message;
        }
        next = cause.source();
    }
    text
}

/// What is wrong with a file, for a finding that names the file itself.
pub(crate) fn without_path(error: &FormatError) -> String {
    match error {
        FormatError::Malformed { what, .. } | FormatError::Changed { what, .. } => what.clone(),
        FormatError::Header { source, .. } => chain(source),
        FormatError::Gguf { source, .. } => chain(source),
        FormatError::Io { action, source, .. } => format!("cannot {action}: {source}"),
        other => chain(other),
    }
}

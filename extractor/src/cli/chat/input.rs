//! Lines of a conversation: edited at a terminal, read from anything else.

#[cfg(unix)]
use std::io::IsTerminal;
use std::io::{self, BufRead, Read};

#[cfg(unix)]
use rustyline::DefaultEditor;
#[cfg(unix)]
use rustyline::error::ReadlineError;

/// Bytes of a line: far more than any model has positions for.
const MAX_LINE: u64 = 16 << 20;

/// Where lines come from.
pub(super) enum Input {
    /// A person, with a history of what was typed.
    #[cfg(unix)]
    Terminal(Box<DefaultEditor>),
    /// A file or a pipe.
    Lines,
}

/// What came.
pub(super) enum Line {
    /// A line, without its end.
    Text(String),
    /// A line that was given up.
    #[cfg(unix)]
    Cleared,
    /// There are no more.
    End,
}

impl Input {
    /// Standard input; edited where that and standard output are a terminal.
    pub(super) fn open() -> io::Result<Self> {
        #[cfg(unix)]
        if io::stdin().is_terminal() && io::stdout().is_terminal() {
            let editor = DefaultEditor::new().map_err(io::Error::other)?;
            return Ok(Self::Terminal(Box::new(editor)));
        }
        Ok(Self::Lines)
    }

    pub(super) fn is_interactive(&self) -> bool {
        match self {
            #[cfg(unix)]
            Self::Terminal(_) => true,
            Self::Lines => false,
        }
    }

    pub(super) fn next(&mut self) -> io::Result<Line> {
        match self {
            #[cfg(unix)]
            Self::Terminal(editor) => typed(editor),
            Self::Lines => read_line(&mut io::stdin().lock()),
        }
    }
}

#[cfg(unix)]
fn typed(editor: &mut DefaultEditor) -> io::Result<Line> {
    match editor.readline("> ") {
        Ok(line) => {
            // a history that does not take a line has one less
            let _ = editor.add_history_entry(line.as_str());
            Ok(Line::Text(line))
        }
        Err(ReadlineError::Interrupted) => Ok(Line::Cleared),
        Err(ReadlineError::Eof) => Ok(Line::End),
        Err(ReadlineError::Io(e)) => Err(e),
        Err(e) => Err(io::Error::other(e)),
    }
}

fn read_line(input: &mut impl BufRead) -> io::Result<Line> {
    let mut line = String::new();
    let read = input.by_ref().take(MAX_LINE).read_line(&mut line)?;
    if read as u64 == MAX_LINE && !line.ends_with('\n') {
        let what = format!("a line has more than {MAX_LINE} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(match read {
        0 => Line::End,
        _ => Line::Text(line),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_until_the_end_and_none_is_endless() {
        let mut input = &b"a\n\nlast"[..];
        let mut lines = Vec::new();
        while let Line::Text(line) = read_line(&mut input).unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, ["a\n", "\n", "last"]);
        let mut endless = io::BufReader::new(io::repeat(b'a'));
        assert!(read_line(&mut endless).is_err());
        assert!(read_line(&mut &b"\xff\n"[..]).is_err());
    }
}

//! Requests of HTTP/1.1 as the servers of tests read them.

use std::io::BufRead;

/// A request but for its body.
pub struct RequestHead {
    pub method: String,
    pub path: String,
    /// Names in small letters, with their values.
    pub fields: Vec<(String, String)>,
}

impl RequestHead {
    /// `None` where the connection is over.
    pub fn read(from: &mut impl BufRead) -> Option<Self> {
        let line = line_of(from)?;
        let mut words = line.split_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut fields = Vec::new();
        while let Some((name, value)) = line_of(from)?.trim_end().split_once(": ") {
            fields.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Some(Self {
            method,
            path,
            fields,
        })
    }
}

fn line_of(from: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    from.read_line(&mut line).ok().filter(|n| *n > 0)?;
    Some(line)
}

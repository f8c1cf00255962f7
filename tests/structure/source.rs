//! Enough of Rust's grammar to tell which paths a file names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A path as it is written, segment by segment; `*` ends a glob.
pub type Names = Vec<String>;

/// The folders of all crates.
pub const PACKAGES: [&str; 5] = [
    "formats",
    "manifests",
    "runtime-min",
    "extractor",
    "extractor/python",
];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every source file below a folder but for those of tests, sorted.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && name != "tests" {
                folders.push(path);
            } else if name.ends_with(".rs") && name != "tests.rs" && name != "testing.rs" {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What a file does when the crate is used: its text without comments, the contents of literals and
/// the tests at its end.
pub fn code(path: &Path) -> String {
    let text = blank_comments_and_literals(&fs::read_to_string(path).unwrap());
    without_tests(&text)
}

/// The text with spaces in place of comments and literals; lines stay, and every byte's place.
pub fn blank_comments_and_literals(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = comment_or_literal(rest, out.chars().last());
        let taken = length.unwrap_or(first.len_utf8());
        let (piece, after) = rest.split_at(taken);
        match length {
            Some(_) => blank(piece, &mut out),
            None => out.push(first),
        }
        rest = after;
    }
    out
}

fn blank(piece: &str, out: &mut String) {
    out.extend(piece.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }));
}

/// The length of a comment or literal that the text starts with.
fn comment_or_literal(text: &str, before: Option<char>) -> Option<usize> {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return Some(text.find("*/").map_or(text.len(), |end| end + 2));
    }
    if let Some(quoted) = text.strip_prefix('"') {
        return Some(1 + end_of_quoted(quoted, '"'));
    }
    if text.starts_with('\'') {
        return char_literal(text);
    }
    if !in_word && text.starts_with('r') {
        let hashes = text[1..].chars().take_while(|c| *c == '#').count();
        let end = format!("\"{}", "#".repeat(hashes));
        let body = text[1 + hashes..].strip_prefix('"')?;
        let start = text.len() - body.len();
        return Some(
            body.find(&end)
                .map_or(text.len(), |at| start + at + end.len()),
        );
    }
    None
}

/// Bytes up to the quote that is not escaped, itself included.
fn end_of_quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if !escaped && c == quote {
            return at + 1;
        }
        escaped = !escaped && c == '\\';
    }
    text.len()
}

/// The length of a character; a lifetime is none.
fn char_literal(text: &str) -> Option<usize> {
    let mut chars = text[1..].chars();
    match (chars.next()?, chars.next()?) {
        ('\\', _) => Some(1 + end_of_quoted(&text[1..], '\'')),
        (c, '\'') => Some(2 + c.len_utf8()),
        _ => None,
    }
}

/// The text before the first inline module of tests: house style has them at the end.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let next = lines.peek().map_or("", |next| next.trim());
        if line.trim() == "#[cfg(test)]" && next.starts_with("mod ") && next.ends_with('{') {
            break;
        }
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

/// Every path that starts with this word, without it, groups taken apart: `crate::{a::b, c}` names
/// `a::b` and `c`.
pub fn paths_from(code: &str, start: &str) -> BTreeSet<Names> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(&format!("{start}::")) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let mut rest = &code[at + start.len() + 2..];
        tree(&mut rest, &[], &mut found);
    }
    found
}

/// Reads one tree of a `use`, or a path in an expression.
fn tree(rest: &mut &str, before: &[String], found: &mut BTreeSet<Names>) {
    *rest = rest.trim_start();
    if let Some(inside) = rest.strip_prefix('{') {
        *rest = inside;
        group(rest, before, found);
        return;
    }
    let length = rest
        .find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*')
        .unwrap_or(rest.len());
    let (name, after) = rest.split_at(length);
    *rest = after;
    let mut names = before.to_vec();
    names.push(name.to_owned());
    match rest.strip_prefix("::") {
        Some(after) if !after.starts_with('<') => {
            *rest = after;
            tree(rest, &names, found);
        }
        _ => {
            found.insert(names);
        }
    }
}

/// Reads what is between braces, the closing one included.
fn group(rest: &mut &str, before: &[String], found: &mut BTreeSet<Names>) {
    loop {
        *rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            *rest = after;
            return;
        }
        tree(rest, before, found);
        // another name that it goes by
        let end = rest.find([',', '}']).expect("a group ends");
        *rest = rest[end..].trim_start_matches(',');
    }
}

/// The text up to the bracket that closes the one before it.
pub fn up_to_closing(text: &str) -> &str {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' if depth == 0 => return &text[..at],
            '}' | ')' | ']' => depth -= 1,
            _ => {}
        }
    }
    text
}

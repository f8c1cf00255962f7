//! A number format that is added has to be decided about everywhere.

use std::collections::BTreeSet;

use crate::source::{PACKAGES, blank_comments_and_literals, code, files, root, up_to_closing};

/// The enums of number formats.
const ENUMS: [&str; 3] = ["Dtype::", "FloatDtype::", "TensorType::"];

/// Where one of these texts begins outside of all brackets.
fn find_outside(text: &str, wanted: &[&str]) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        if depth == 0 && wanted.iter().any(|wanted| text[at..].starts_with(wanted)) {
            return Some(at);
        }
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// The patterns of every `match` in the code, with the line that it is on.
fn matches(code: &str) -> Vec<(usize, Vec<&str>)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("match ") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let Some(open) = find_outside(&code[at..], &["{"]) else {
            continue;
        };
        let block = up_to_closing(&code[at + open + 1..]);
        found.push((code[..at].matches('\n').count() + 1, patterns(block)));
    }
    found
}

fn patterns(block: &str) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), block);
    while let Some(arrow) = find_outside(rest, &["=>"]) {
        let pattern = rest[..arrow].trim();
        let after = rest[arrow + 2..].trim_start();
        // an arm of braces needs no comma
        let length = if let Some(body) = after.strip_prefix('{') {
            up_to_closing(body).len() + 2
        } else {
            find_outside(after, &[","]).unwrap_or(after.len())
        };
        found.push(pattern);
        rest = after[length..].trim_start_matches(',');
    }
    found
}

fn names_a_dtype(pattern: &str) -> bool {
    ENUMS.iter().any(|name| pattern.contains(name))
}

/// An arm that takes whatever is left, under whatever name.
fn takes_the_rest(pattern: &str) -> bool {
    let is_open = pattern.contains('_') && pattern.chars().all(|c| "_(), ".contains(c));
    is_open || is_binding(pattern)
}

fn is_binding(pattern: &str) -> bool {
    let mut letters = pattern.chars();
    letters.next().is_some_and(|c| c.is_ascii_lowercase())
        && letters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Lines of a `match` over number formats that has an arm for the rest.
fn open_matches(code: &str) -> BTreeSet<usize> {
    let mut lines = BTreeSet::new();
    for (line, patterns) in matches(code) {
        let over_dtypes = patterns.iter().any(|pattern| names_a_dtype(pattern));
        if over_dtypes && patterns.iter().any(|pattern| takes_the_rest(pattern)) {
            lines.insert(line);
        }
    }
    lines
}

#[test]
fn no_match_over_dtypes_has_an_arm_for_the_rest() {
    let mut wrong = Vec::new();
    for package in PACKAGES {
        for path in files(&root().join(package).join("src")) {
            let lines = open_matches(&code(&path)).into_iter();
            wrong.extend(lines.map(|line| format!("{}:{line}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The check is only as good as what it sees.
#[test]
fn an_arm_for_the_rest_is_seen() {
    for (text, is_open) in [
        ("match d { Dtype::F32 => 4, Dtype::Bf16 => 2 }", false),
        ("match d { Dtype::F32 => 4, _ => 2 }", true),
        (
            "match self.dtype() {\n  Dtype::F32 => { 4 }\n  other => f(other),\n}",
            true,
        ),
        (
            "match (d, n) { (Dtype::F32, 1) => [4, 5], (_, _) => 1 }",
            true,
        ),
        (
            "match x { Some(y) => match y { Dtype::F32 => 1, Dtype::F64 => 2 }, _ => 0 }",
            false,
        ),
        ("match x { 0 => Dtype::F32, _ => Dtype::F64 }", false),
        (
            "match d { Dtype::F32 => '_', Dtype::F64 => \"_ =>\" }",
            false,
        ),
    ] {
        let code = blank_comments_and_literals(text);
        assert_eq!(!open_matches(&code).is_empty(), is_open, "{text}");
    }
}

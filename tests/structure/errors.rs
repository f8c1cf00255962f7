//! A chain of errors prints each cause once: no message says what its cause will say.

use std::fs;

use crate::source::{PACKAGES, blank_comments_and_literals, files, root, up_to_closing};

/// The places of a file whose message holds its own cause, as the name of the error or variant.
fn repeated(text: &str) -> Vec<String> {
    let blanked = blank_comments_and_literals(text);
    let mut found = Vec::new();
    for (at, start) in blanked.match_indices("#[error(") {
        let start = at + start.len();
        let length = up_to_closing(&blanked[start..]).len();
        let message = &text[start..start + length];
        let (name, causes) = item(&blanked[start + length + ")]".len()..]);
        if !message.starts_with("transparent") && causes.iter().any(|c| mentions(message, c)) {
            found.push(name);
        }
    }
    found
}

/// The name of what an attribute stands before, and its fields that are causes.
fn item(after: &str) -> (String, Vec<String>) {
    let rest = without_attributes(after);
    let end = rest.find(['{', '(', ',', ';', '}']).unwrap_or(rest.len());
    let name = rest[..end].split_whitespace().last().unwrap_or_default();
    let is_named = rest[end..].starts_with('{');
    let has_fields = is_named || rest[end..].starts_with('(');
    let fields = has_fields.then(|| up_to_closing(&rest[end + 1..]));
    let causes = fields.map_or_else(Vec::new, |fields| causes(fields, is_named));
    (name.to_owned(), causes)
}

fn causes(fields: &str, is_named: bool) -> Vec<String> {
    let mut found = Vec::new();
    for (number, field) in split_outside(fields).into_iter().enumerate() {
        let declared = without_attributes(field);
        let attributes = &field[..field.len() - declared.len()];
        let name = match is_named {
            true => declared.split(':').next().unwrap_or_default(),
            false => "",
        };
        let name = name.split_whitespace().last().unwrap_or_default();
        let is_marked = attributes.contains("#[source]") || attributes.contains("#[from]");
        match (is_marked || name == "source", is_named) {
            (true, true) => found.push(name.to_owned()),
            (true, false) => found.push(number.to_string()),
            (false, _) => {}
        }
    }
    found
}

/// The text after the attributes that it begins with.
fn without_attributes(text: &str) -> &str {
    let mut rest = text.trim_start();
    while let Some(attribute) = rest.strip_prefix("#[") {
        let length = up_to_closing(attribute).len();
        rest = attribute[length + 1..].trim_start();
    }
    rest
}

/// The pieces between commas that are outside of all brackets.
fn split_outside(fields: &str) -> Vec<&str> {
    let (mut pieces, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (at, c) in fields.char_indices() {
        match c {
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' | '>' => depth -= 1,
            ',' if depth == 0 => {
                pieces.push(&fields[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(&fields[start..]);
    pieces
}

/// Whether a message, its arguments included, prints a field.
fn mentions(message: &str, field: &str) -> bool {
    let (text, arguments) = message.rsplit_once('"').unwrap_or((message, ""));
    let in_text = ["}", ":"].map(|end| format!("{{{field}{end}"));
    let by_order = text.contains("{}") || text.contains("{:");
    let is_argument = |argument: &str| {
        let value = argument.rsplit('=').next().unwrap_or_default().trim();
        value == field || value == format!(".{field}")
    };
    in_text.iter().any(|form| text.contains(form))
        || (by_order || arguments.contains('=')) && arguments.split(',').any(is_argument)
}

#[test]
fn no_message_prints_its_cause() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for package in PACKAGES {
        for path in files(&root().join(package).join("src")) {
            let text = fs::read_to_string(&path).unwrap();
            seen += text.matches("#[error(").count();
            let names = repeated(&text).into_iter();
            wrong.extend(names.map(|name| format!("{}: {name}", path.display())));
        }
    }
    assert!(seen > 100, "{seen} messages");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The check is only as good as what it sees.
#[test]
fn a_message_that_prints_its_cause_is_seen() {
    for (text, wanted) in [
        (
            r#"#[error("no: {source}")] Read { path: PathBuf, source: io::Error }"#,
            "Read",
        ),
        (r#"#[error("no: {0}")] Read(#[from] io::Error)"#, "Read"),
        (
            r#"#[error("no {1}: {0:?}")] #[cold] Read(#[source] Box<dyn Error>, u8)"#,
            "Read",
        ),
        (
            r#"#[error("no {}: {}", .path.display(), .why)] Read { path: P, #[source] why: E }"#,
            "Read",
        ),
        (
            r#"#[error("no {p}: {s}", p = path.display(), s = source)] Read { path: P, source: E }"#,
            "Read",
        ),
        (
            r#"#[error("{source}")] pub struct Failed { /// Why.
            source: E }"#,
            "Failed",
        ),
        (
            r#"#[error("no {path}")] Read { path: PathBuf, #[source] source: io::Error }"#,
            "",
        ),
        (r#"#[error("no {1}")] Read(#[source] E, String)"#, ""),
        (
            r#"#[error("no {}", .path.display())] Read { path: P, source: E }"#,
            "",
        ),
        (r#"#[error(transparent)] Read(#[from] io::Error)"#, ""),
        (
            r#"#[error("no {name}")] Unknown { name: String }, Read { source: E }"#,
            "",
        ),
        (r#"// #[error("{0}")] Read(#[from] E)"#, ""),
    ] {
        let wanted: &[&str] = if wanted.is_empty() { &[] } else { &[wanted] };
        assert_eq!(repeated(text), wanted, "{text}");
    }
}

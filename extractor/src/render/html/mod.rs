//! The page of `report`: one file of HTML that loads nothing, draws by a script of its own, and
//! holds its document as JSON.

use segpack_manifests::documents::{GENERATOR, ReportData};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");

/// The whole page.
///
/// # Errors
/// Where the document cannot be written as JSON.
pub(crate) fn report(data: &ReportData) -> serde_json::Result<String> {
    let names: Vec<&str> = data.subjects.iter().map(|s| s.name.as_str()).collect();
    // in a script, only `</` and `<!--` mean something: JSON may write `<` otherwise
    let json = serde_json::to_string(data)?.replace('<', "\\u003c");
    let parts = [
        ("generator", escaped(GENERATOR)),
        ("title", escaped(&names.join(" and "))),
        ("style", STYLE.to_owned()),
        ("data", json),
        ("script", SCRIPT.to_owned()),
    ];
    Ok(filled(&parts))
}

/// The page with its `{{names}}` replaced, from its front to its back: what a part holds is not
/// searched.
fn filled(parts: &[(&str, String)]) -> String {
    let mut page = String::new();
    let mut rest = PAGE;
    while let Some((before, after)) = rest.split_once("{{") {
        page += before;
        let (name, behind) = after.split_once("}}").unwrap_or((after, ""));
        let part = parts.iter().find(|(known, _)| *known == name);
        page += part.map_or("", |(_, text)| text);
        rest = behind;
    }
    page + rest
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

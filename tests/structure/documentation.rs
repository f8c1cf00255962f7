//! Links between the pages of the repository, and between the guide and the pages that it shows.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The crates whose `docs/` are modules of `src/guide.rs`.
const GUIDES: [&str; 2] = ["extractor", "runtime-min"];

/// A link of a page, as it is written.
struct Link {
    /// What it leads to.
    target: String,
    /// The name of a reference, `[name]: target`; none of a link in the text.
    name: Option<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every page below a folder; what tools made is left out.
fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            pages(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// A page without its code blocks.
fn outside_blocks(page: &Path) -> String {
    let text = fs::read_to_string(page).unwrap();
    let parts: Vec<&str> = text.split("\n```").step_by(2).collect();
    parts.join("\n")
}

/// The lines of a page without code, in blocks or in the text.
fn prose(page: &Path) -> Vec<String> {
    let text = outside_blocks(page);
    let outside_code: String = text.split('`').step_by(2).collect();
    outside_code.lines().map(str::to_owned).collect()
}

/// The links in the text of a line, `[text](target)`.
fn inline_links(line: &str) -> impl Iterator<Item = Link> + '_ {
    line.split("](").skip(1).map(|rest| Link {
        target: rest.split(')').next().unwrap().to_owned(),
        name: None,
    })
}

/// The definition of a reference, `[name]: target`.
fn definition(line: &str) -> Option<Link> {
    let (name, target) = line.strip_prefix('[')?.split_once("]: ")?;
    Some(Link {
        target: target.to_owned(),
        name: Some(name.to_owned()),
    })
}

fn links(page: &Path) -> Vec<Link> {
    let lines = prose(page);
    let in_text = lines.iter().flat_map(|line| inline_links(line));
    let defined = lines.iter().filter_map(|line| definition(line));
    in_text.chain(defined).collect()
}

/// The names of references that a page uses, `[text][name]`.
fn used_references(page: &Path) -> BTreeSet<String> {
    let lines = prose(page);
    let names = lines.iter().flat_map(|line| line.split("][").skip(1));
    names
        .map(|rest| rest.split(']').next().unwrap().to_owned())
        .collect()
}

/// The anchors that a page's headings get where it is shown.
fn anchors(page: &Path) -> BTreeSet<String> {
    let text = outside_blocks(page);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|heading| anchor(heading.trim_start_matches('#').trim()))
        .collect()
}

fn anchor(heading: &str) -> String {
    let kept = heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .collect::<String>();
    kept.replace(' ', "-")
}

/// What is wrong with a link, if anything is.
fn problem(page: &Path, link: &Link) -> Option<String> {
    if link.target.starts_with("https://") {
        return None;
    }
    let (path, fragment) = link.target.split_once('#').unwrap_or((&link.target, ""));
    let place = if path.is_empty() {
        page.to_owned()
    } else {
        page.parent().unwrap().join(path)
    };
    if !place.exists() {
        return Some(format!("{} leads nowhere", link.target));
    }
    let found = fragment.is_empty() || anchors(&place).contains(fragment);
    (!found).then(|| format!("{}: there is no such heading", link.target))
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let mut all = Vec::new();
    pages(&root(), &mut all);
    assert!(all.len() > 10, "{all:?}");
    let mut problems = Vec::new();
    for page in &all {
        let links = links(page);
        let defined: BTreeSet<_> = links.iter().filter_map(|l| l.name.clone()).collect();
        for name in used_references(page).difference(&defined) {
            problems.push(format!("{}: [{name}] is not defined", page.display()));
        }
        let wrong = links.iter().filter_map(|link| problem(page, link));
        problems.extend(wrong.map(|what| format!("{}: {what}", page.display())));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Relative paths mean nothing in rustdoc: the guide leads each reference elsewhere.
#[test]
fn the_guide_shows_every_page_without_relative_links() {
    for package in GUIDES {
        let folder = root().join(package);
        let guide = fs::read_to_string(folder.join("src/guide.rs")).unwrap();
        for entry in fs::read_dir(folder.join("docs")).unwrap() {
            let page = entry.unwrap().path();
            let name = page.file_stem().unwrap().to_str().unwrap();
            let begin = format!("{} {{", name.replace('-', "_"));
            let module = guide
                .split("pub mod ")
                .find(|module| module.starts_with(&begin))
                .unwrap_or_else(|| panic!("{package}: the guide has no module {name}"));
            assert!(module.contains(&format!("include_str!(\"../docs/{name}.md\")")));
            for link in links(&page) {
                if link.target.starts_with("https://") {
                    continue;
                }
                let overridden = link
                    .name
                    .as_ref()
                    .is_some_and(|name| module.contains(&format!("\"[{name}]: ")));
                assert!(overridden, "{}: {}", page.display(), link.target);
            }
        }
    }
}

#[test]
fn readme_stays_short() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 170);
}

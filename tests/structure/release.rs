//! What packages of a release say of themselves, beside what `.ci/release` makes.

use std::fs;

use serde_json::Value;

use crate::arrows::packages;
use crate::source::root;

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// `[package.metadata.…]` of the program's crate.
fn metadata() -> Value {
    let all = packages();
    let segpack = all.iter().find(|package| package["name"] == "segpack");
    segpack.unwrap()["metadata"].clone()
}

/// The targets that `.ci/release` builds for, out of its table.
fn targets(script: &str) -> Vec<&str> {
    let table = script.split("triple_of() {").nth(1).unwrap();
    let table = table.split("\n}").next().unwrap();
    let rows = table.lines().filter_map(|line| line.split_once(") echo "));
    rows.map(|(_, rest)| rest.split(' ').next().unwrap())
        .collect()
}

#[test]
fn binstall_looks_for_the_archives_that_a_release_has() {
    let script = read(".ci/release");
    let metadata = metadata();
    let binstall = &metadata["binstall"];
    let url = binstall["pkg-url"].as_str().unwrap();
    let folder = binstall["bin-dir"].as_str().unwrap();
    let in_script = |text: &str| {
        text.replace("{ name }", "segpack")
            .replace("{ version }", "$version")
            .replace("{ target }", "$triple")
    };
    let (release, archive) = url.rsplit_once('/').unwrap();
    assert_eq!(release, "{ repo }/releases/download/v{ version }");
    let name = in_script(archive.strip_suffix(".tar.gz").unwrap());
    assert!(script.contains(&format!("name={name}\n")), "{name}");
    assert!(script.contains(r#">"$out/$name.tar.gz""#));
    let inside = in_script(folder.split('/').next().unwrap());
    assert_eq!(inside, name, "the one folder of the archive has its name");
}

#[test]
fn the_page_on_installing_names_every_target() {
    let script = read(".ci/release");
    let targets = targets(&script);
    assert_eq!(targets.len(), 3, "{targets:?}");
    let page = read("extractor/docs/installing.md");
    for target in targets {
        assert!(page.contains(&format!("`{target}`")), "{target}");
    }
}

/// What is not built is where the Debian package takes it from.
#[test]
fn the_debian_package_takes_files_that_there_are() {
    let metadata = metadata();
    let assets = metadata["deb"]["assets"].as_array().unwrap();
    let mut checked = 0;
    for asset in assets {
        let source = asset[0].as_str().unwrap();
        if !source.contains("target/") {
            let path = root().join("extractor").join(source);
            assert!(path.is_file(), "{source}");
            checked += 1;
        }
    }
    assert!(checked >= 4, "{checked} of {} assets", assets.len());
}

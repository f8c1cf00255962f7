//! Which modules of a crate may use which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::source::{Names, code, files, paths_from, root};

/// The rooms of a crate from the ground up. A room may use those of the rows above its own, not
/// those beside it. A name with `::` is a room within a room.
type Floors = &'static [&'static [&'static str]];

struct House {
    /// The folder of the crate.
    package: &'static str,
    floors: Floors,
    /// Files that reach up, with the room that they reach for, and why they may.
    exceptions: &'static [(&'static str, &'static str, &'static str)],
}

const HOUSES: [House; 4] = [
    House {
        package: "formats",
        floors: &[
            &["error"],
            &["io", "digest", "numeric", "strict_json"],
            &["codec", "gguf", "npy", "safetensors", "wav"],
            &["pack"],
        ],
        exceptions: &[
            (
                "numeric/ggml/mod.rs",
                "codec",
                "only a room of unsafe code can compile for instructions that are found at run time",
            ),
            (
                "error.rs",
                "gguf",
                "the error of the crate holds that of a header",
            ),
            (
                "error.rs",
                "safetensors",
                "the error of the crate holds that of a header",
            ),
        ],
    },
    House {
        package: "manifests",
        floors: &[
            &["json", "name_index", "names", "folder::paths"],
            &["families"],
            &["quantization"],
            &["documents"],
            &["diagnosis"],
            &["audit", "folder", "layout", "registry", "shares"],
            &["derive"],
        ],
        exceptions: &[(
            "families/mod.rs",
            "quantization",
            "what a family expects is complete with the tensors that quantisation adds",
        )],
    },
    House {
        package: "runtime-min",
        floors: &[
            &["error", "tensor"],
            &["kernels", "samples", "weights"],
            &["ops"],
            &["generate", "processing"],
            &["models"],
            &["devices", "trace"],
            &["session"],
        ],
        exceptions: &[(
            "error.rs",
            "devices",
            "the error of the crate holds the driver's",
        )],
    },
    House {
        package: "extractor",
        floors: &[
            &["causes", "work"],
            &["output", "source"],
            &["pack_writer"],
            &["steps"],
            &["render"],
            &["cli"],
        ],
        exceptions: &[],
    },
];

/// What a renderer may name of the other crates: what documents are made of.
const RENDERED: [&str; 3] = [
    "segpack_manifests::documents",
    "segpack_manifests::names",
    "segpack_formats::codec::Codec",
];

/// A use of one room by another, in a file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    file: String,
    from: String,
    to: String,
}

impl House {
    fn source(&self) -> std::path::PathBuf {
        root().join(self.package).join("src")
    }

    /// The row of a room; rows above it have lower numbers.
    fn floor(&self, room: &str) -> Option<usize> {
        self.floors.iter().position(|rooms| rooms.contains(&room))
    }

    /// The room that a path within the crate lies in: the longest that is listed.
    fn room_of(&self, path: &[String]) -> Option<String> {
        let lengths = (1..=path.len()).rev();
        let mut names = lengths.map(|length| path[..length].join("::"));
        names.find(|name| self.floor(name).is_some())
    }

    /// The rooms of the first rank, as the folder has them.
    fn built(&self) -> BTreeSet<String> {
        let mut rooms = BTreeSet::new();
        for entry in fs::read_dir(self.source()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let room = name.strip_suffix(".rs").unwrap_or(&name).to_owned();
            if !["lib", "main", "guide"].contains(&room.as_str()) {
                rooms.insert(room);
            }
        }
        rooms
    }

    /// Where the names lie that `lib.rs` hands out itself.
    fn reexports(&self) -> BTreeMap<String, Names> {
        let lib = code(&self.source().join("lib.rs"));
        let mut found = BTreeMap::new();
        for room in self.built() {
            for path in paths_from(&lib, &room) {
                let name = path.last().unwrap().clone();
                let mut whole = vec![room.clone()];
                whole.extend(path);
                found.insert(name, whole);
            }
        }
        found
    }

    fn uses(&self) -> BTreeSet<Use> {
        let (source, reexports) = (self.source(), self.reexports());
        let mut found = BTreeSet::new();
        for path in files(&source) {
            let file = path.strip_prefix(&source).unwrap();
            let module = module_of(file);
            let Some(from) = self.room_of(&module) else {
                continue; // lib.rs, main.rs
            };
            for target in targets(&code(&path), &module) {
                let target = reexports.get(&target[0]).unwrap_or(&target);
                let to = self.room_of(target).unwrap_or_else(|| {
                    panic!("{}: no room has {target:?}", path.display());
                });
                let file = file.to_str().unwrap().to_owned();
                let from = from.clone();
                found.insert(Use { file, from, to });
            }
        }
        found.retain(|found| found.from != found.to);
        found
    }

    /// The uses that point up or sideways.
    fn wrong(&self, uses: BTreeSet<Use>) -> Vec<Use> {
        let points_down = |found: &Use| self.floor(&found.to) < self.floor(&found.from);
        uses.into_iter()
            .filter(|found| !points_down(found))
            .collect()
    }
}

/// The path of the module that a file is, `lib.rs` being the crate's own.
pub fn module_of(file: &Path) -> Names {
    let mut names: Names = file
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if ["mod", "lib", "main"].contains(&names.last().unwrap().as_str()) {
        names.pop();
    }
    names
}

/// Every path of the crate that the code of a module names, from the crate's root.
pub fn targets(code: &str, module: &[String]) -> BTreeSet<Names> {
    let mut found = paths_from(code, "crate");
    for path in paths_from(code, "super") {
        let further = path.iter().take_while(|name| *name == "super").count();
        let mut whole = module[..module.len().saturating_sub(1 + further)].to_vec();
        whole.extend(path.into_iter().skip(further));
        // in a module within the file `super` is the file itself
        if whole.len() > 1 {
            found.insert(whole);
        }
    }
    found
}

#[test]
fn rooms_use_only_what_is_below_them() {
    let mut wrong = Vec::new();
    for house in &HOUSES {
        let mut unused: BTreeSet<_> = house.exceptions.iter().collect();
        for found in house.wrong(house.uses()) {
            let excepted = house.exceptions.iter();
            let mut exception = excepted.filter(|e| e.0 == found.file && e.1 == found.to);
            match exception.next_back() {
                Some(exception) => _ = unused.remove(exception),
                None => wrong.push(format!(
                    "{}/src/{}: `{}` uses `{}`",
                    house.package, found.file, found.from, found.to
                )),
            }
        }
        assert!(unused.is_empty(), "no longer needed: {unused:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A room that is not listed would not be held to anything.
#[test]
fn every_room_has_its_floor() {
    for house in &HOUSES {
        let listed = house.floors.concat().into_iter();
        let listed: BTreeSet<String> = listed
            .filter(|room| !room.contains("::"))
            .map(str::to_owned)
            .collect();
        assert_eq!(house.built(), listed, "{}", house.package);
        for room in house.floors.concat() {
            let place = house.source().join(room.replace("::", "/"));
            assert!(
                place.is_dir() || place.with_extension("rs").is_file(),
                "{room}"
            );
        }
    }
}

/// Pictures and tables are made of documents alone, and reading and writing are not their business.
#[test]
fn renderers_know_documents_only() {
    let mut wrong = Vec::new();
    for path in files(&root().join("extractor/src/render")) {
        let code = code(&path);
        for package in [
            "segpack_formats",
            "segpack_manifests",
            "segpack_runtime_min",
        ] {
            for names in paths_from(&code, package) {
                let name = format!("{package}::{}", names.join("::"));
                if !RENDERED.iter().any(|allowed| name.starts_with(allowed)) {
                    wrong.push(format!("{}: {name}", path.display()));
                }
            }
        }
        for names in paths_from(&code, "std") {
            if ["fs", "env", "process", "net"].contains(&names[0].as_str()) {
                wrong.push(format!("{}: std::{}", path.display(), names.join("::")));
            }
        }
        for names in paths_from(&code, "crate") {
            if names[0] != "render" {
                wrong.push(format!("{}: crate::{}", path.display(), names.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The check is only as good as what it sees.
#[test]
fn an_arrow_that_points_up_is_seen() {
    let house = &HOUSES[2];
    let module = |text: &str| text.split("::").map(str::to_owned).collect::<Names>();
    for (from, text, to) in [
        ("kernels::gemm", "use crate::ops::Ops;", "ops"),
        (
            "kernels::gemm",
            "use crate::{\n    models::{self, decoder as d},\n    tensor::View,\n};",
            "models",
        ),
        (
            "kernels::gemm",
            "fn f() -> super::super::devices::Cpu {}",
            "devices",
        ),
        (
            "weights::arena",
            "let x = crate::session::Session::<u8>::open();",
            "session",
        ),
        (
            "generate",
            "pub(crate) use crate::weights::*; // fine\nuse super::models::X;",
            "models",
        ),
        (
            "ops",
            "let s = \"a \\\" quote\"; let c = '\"'; crate::generate::f('a')",
            "generate",
        ),
    ] {
        let text = crate::source::blank_comments_and_literals(text);
        let from = module(from);
        let uses: BTreeSet<Use> = targets(&text, &from)
            .iter()
            .map(|target| Use {
                file: String::new(),
                from: house.room_of(&from).unwrap(),
                to: house.room_of(target).unwrap(),
            })
            .collect();
        let wrong = house.wrong(uses);
        let wrong: Vec<_> = wrong.iter().map(|found| found.to.as_str()).collect();
        assert_eq!(wrong, [to], "{text}");
    }
    // what is only said is not used
    for text in [
        "// crate::session\n",
        "/* crate::session */",
        "\"crate::session\"",
        "r#\"crate::session\"#",
    ] {
        let text = crate::source::blank_comments_and_literals(text);
        assert_eq!(targets(&text, &module("tensor")), BTreeSet::new());
    }
}

//! No two files use each other, in however many steps.

use std::collections::{BTreeMap, BTreeSet};

use crate::rooms::{module_of, targets};
use crate::source::{Names, PACKAGES, code, files, root};

/// Which files of a crate each of them names.
type Graph = BTreeMap<Names, BTreeSet<Names>>;

/// The graph of a crate. The file of a folder (`mod.rs`) hands out what is in it and is left out:
/// it names all files of the folder, and they may use what it defines.
fn graph(package: &str) -> Graph {
    let source = root().join(package).join("src");
    let mut modules = BTreeMap::new();
    for path in files(&source) {
        let file = path.strip_prefix(&source).unwrap();
        if !["mod.rs", "lib.rs", "main.rs"]
            .iter()
            .any(|name| file.ends_with(name))
        {
            modules.insert(module_of(file), code(&path));
        }
    }
    let known: BTreeSet<Names> = modules.keys().cloned().collect();
    modules
        .into_iter()
        .map(|(module, code)| {
            let named = targets(&code, &module).into_iter();
            let mut named: BTreeSet<_> = named.filter_map(|path| file_of(&path, &known)).collect();
            named.remove(&module);
            (module, named)
        })
        .collect()
}

/// The file that a path leads into.
fn file_of(path: &[String], known: &BTreeSet<Names>) -> Option<Names> {
    let mut lengths = (1..=path.len()).rev();
    lengths.find_map(|length| known.get(&path[..length]).cloned())
}

/// What is left of a graph when files that name no other, and files that no other names, are taken
/// away until there are none: circles, and what lies between two of them.
fn circles(mut graph: Graph) -> Vec<String> {
    loop {
        let before = graph.len();
        let named: BTreeSet<Names> = graph.values().flatten().cloned().collect();
        graph.retain(|module, names| !names.is_empty() && named.contains(module));
        let left: BTreeSet<Names> = graph.keys().cloned().collect();
        for names in graph.values_mut() {
            names.retain(|name| left.contains(name));
        }
        if graph.len() == before {
            return graph.keys().map(|module| module.join("::")).collect();
        }
    }
}

#[test]
fn no_two_files_use_each_other() {
    for package in PACKAGES {
        let found = circles(graph(package));
        assert!(found.is_empty(), "{package}: {}", found.join(", "));
    }
}

/// The check is only as good as what it sees.
#[test]
fn a_circle_is_seen() {
    let module = |name: &str| vec![name.to_owned()];
    let graph = |edges: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry(module(from)).or_default().insert(module(to));
            graph.entry(module(to)).or_default();
        }
        circles(graph)
    };
    assert!(graph(&[("a", "b"), ("b", "c"), ("a", "c")]).is_empty());
    assert_eq!(
        graph(&[("a", "b"), ("b", "a"), ("a", "c"), ("d", "a")]),
        ["a", "b"]
    );
    assert_eq!(
        graph(&[("a", "b"), ("b", "c"), ("c", "a")]),
        ["a", "b", "c"]
    );
}

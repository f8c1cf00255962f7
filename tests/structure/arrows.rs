//! Who may depend on whom.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Every crate of the workspace with those that it may use.
const ARROWS: [(&str, &[&str]); 5] = [
    ("segpack-formats", &[]),
    ("segpack-manifests", &["segpack-formats"]),
    (
        "segpack-runtime-min",
        &["segpack-formats", "segpack-manifests"],
    ),
    (
        "segpack",
        &[
            "segpack-formats",
            "segpack-manifests",
            "segpack-runtime-min",
        ],
    ),
    (
        "segpack-python",
        &[
            "segpack",
            "segpack-formats",
            "segpack-manifests",
            "segpack-runtime-min",
        ],
    ),
];

/// Dependencies that live in one crate.
const HOMES: [(&str, &[&str]); 2] = [
    (
        "segpack-formats",
        &["blake3", "hex", "rustix", "sha2", "zstd"],
    ),
    (
        "segpack",
        &[
            "clap",
            "comfy-table",
            "fs4",
            "indicatif",
            "signal-hook",
            "walkdir",
        ],
    ),
];

/// The crates of the workspace, as `cargo metadata` describes them.
pub(crate) fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
            "--manifest-path",
        ])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// The normal dependencies of every crate of the workspace.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let needed = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap();
        all.iter()
            .filter(|d| d["kind"].is_null())
            .map(name)
            .collect()
    };
    packages().iter().map(|p| (name(p), needed(p))).collect()
}

#[test]
fn the_arrows_point_one_way() {
    let found = dependencies();
    let ours: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    let inside: Vec<(&str, Vec<&str>)> = ARROWS
        .iter()
        .map(|(name, _)| {
            (
                *name,
                found[*name]
                    .iter()
                    .map(String::as_str)
                    .filter(|d| ours.contains(d))
                    .collect(),
            )
        })
        .collect();
    assert_eq!(inside, ARROWS.map(|(name, uses)| (name, uses.to_vec())));
    assert_eq!(
        ours,
        ARROWS.iter().map(|(name, _)| *name).collect(),
        "the workspace has four crates and the Python package"
    );
}

#[test]
fn a_dependency_has_one_home() {
    let found = dependencies();
    for (home, inhabitants) in HOMES {
        for inhabitant in inhabitants {
            let users: Vec<_> = found
                .iter()
                .filter(|(_, uses)| uses.contains(*inhabitant))
                .collect();
            assert_eq!(
                users
                    .iter()
                    .map(|(name, _)| name.as_str())
                    .collect::<Vec<_>>(),
                [home],
                "{inhabitant}"
            );
        }
    }
}

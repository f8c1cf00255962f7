//! Which pack it is: `manifest.json` against its line in SHA256SUMS and against the digest that the
//! user has from elsewhere, in every command that opens a pack.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use segpack_formats::digest::Sha256;
use serde_json::json;

use crate::support::cli::{FindingKind, Run, run, segpack};
use crate::support::damage::manifest;
use crate::support::folders::{copy, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::{tiny_text, write_file};

/// Every command that opens a pack, but for `verify`.
const COMMANDS: [&[&str]; 9] = [
    &["info", "PACK"],
    &["ls", "PACK"],
    &["cat", "PACK", "thinker.lm_head.weight"],
    &["unpack", "PACK", "-o", "OUT"],
    &["repack", "PACK", "--codec", "zstd", "-o", "OUT"],
    &["export", "PACK", "--to", "npy", "-o", "OUT"],
    &[
        "run",
        "PACK",
        "--prompt-ids",
        "1,2",
        "--max-new-tokens",
        "1",
    ],
    &["validate", "PACK", "--reference", "nothing.json"],
    &["bench", "PACK"],
];

/// Runs a command on a pack, with more options.
fn with(command: &[&str], pack: &Path, more: &[OsString]) -> Run {
    let mut arguments: Vec<OsString> = Vec::new();
    for word in command {
        arguments.push(match *word {
            "PACK" => pack.into(),
            "OUT" => pack.with_extension("out").into(),
            word => word.into(),
        });
    }
    arguments.extend_from_slice(more);
    run(&arguments)
}

#[test]
fn a_manifest_that_sha256sums_does_not_list_is_refused_by_every_command() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_text(), &pack, &[]);
    let good = Sha256::of(&fs::read(pack.join("manifest.json")).unwrap());
    // a valid manifest, but not the one that was sealed
    let mut document = manifest(&pack);
    document["generator"] = json!("segpack 9.9.9");
    write_file(
        &pack.join("manifest.json"),
        format!("{document}\n").as_bytes(),
    );
    let seen = Sha256::of(&fs::read(pack.join("manifest.json")).unwrap());
    let (good, seen) = (good.to_string(), seen.to_string());
    for command in COMMANDS {
        with(command, &pack, &[]).exits(3).says(&[
            "manifest.json",
            &seen,
            &good,
            "as SHA256SUMS says",
        ]);
        assert!(!pack.with_extension("out").exists(), "{command:?}");
    }
    let findings = segpack!["verify", &pack, "--quick", "--json"]
        .exits(3)
        .findings();
    assert!(findings.iter().any(|f| f.kind == FindingKind::WrongSums));
    // without a line for it, nothing vouches for the manifest
    write_file(&pack.join("SHA256SUMS"), b"");
    segpack!["ls", &pack]
        .exits(3)
        .says(&["SHA256SUMS", "has no line"]);
    // without the list, there is nothing to compare with
    fs::remove_file(pack.join("SHA256SUMS")).unwrap();
    segpack!["ls", &pack].ok();
    segpack!["verify", &pack, "--quick"].exits(3);
}

#[test]
fn a_pack_has_to_be_the_one_that_was_named() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_text(), &pack, &["--no-sums"]);
    let right = Sha256::of(&fs::read(pack.join("manifest.json")).unwrap()).to_string();
    let wrong = "ab".repeat(32);
    let digest = |text: &str| [OsString::from("--manifest-sha256"), text.into()];
    for command in COMMANDS {
        with(command, &pack, &digest(&wrong))
            .exits(3)
            .says(&[&right, &wrong, "as given"]);
        assert!(!pack.with_extension("out").exists(), "{command:?}");
    }
    let verify = |more: &[OsString]| with(&["verify", "PACK", "--quick", "--json"], &pack, more);
    let run = verify(&digest(&wrong)).exits(3);
    let findings = run.findings();
    assert_eq!(findings.len(), 1, "{run}");
    assert_eq!(findings[0].kind, FindingKind::WrongIdentity);
    assert!(findings[0].to_string().contains(&right) && findings[0].to_string().contains(&wrong));
    // the digest in every form in which it comes
    let file = folder.path().join("identity");
    let (file, at) = (file.display().to_string(), format!("@{}", file.display()));
    for (content, named) in [
        (format!("{right}\n"), &file),
        (
            format!("{wrong}  SHA256SUMS\n{right}  manifest.json\n"),
            &at,
        ),
        (format!("{right} *omni/manifest.json\n"), &file),
    ] {
        write_file(Path::new(&file), content.as_bytes());
        verify(&digest(named)).ok();
        with(COMMANDS[0], &pack, &digest(named)).ok();
    }
    verify(&digest(&right)).ok();
    verify(&digest(&right.to_uppercase())).ok();
    // what is no digest
    write_file(Path::new(&file), b"{}");
    verify(&digest(&file)).exits(2).says(&["holds no SHA-256"]);
    verify(&digest(&right[1..]))
        .exits(2)
        .says(&["64 hex digits"]);
    verify(&digest("nowhere/identity"))
        .exits(1)
        .says(&["nowhere/identity"]);
}

/// The same pack under another codec is another pack.
#[test]
fn identity_is_of_the_manifest_not_of_the_model() {
    let folder = temp();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    pack_into(&tiny_text(), &a, &[]);
    copy(&a, &b);
    let sums = a.join("SHA256SUMS");
    segpack!["ls", &b, "--manifest-sha256", &sums].ok();
    pack_into(&tiny_text(), &b, &["--codec", "zstd"]);
    segpack!["ls", &b, "--manifest-sha256", &sums].exits(3);
}

/// Of two packs each has to be the one that was named for it.
#[test]
fn both_packs_of_a_diff_have_to_be_those_that_were_named() {
    let folder = temp();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    pack_into(&tiny_text(), &a, &[]);
    pack_into(&tiny_text(), &b, &["--codec", "zstd"]);
    let [of_a, of_b] = [&a, &b].map(|pack| pack.join("SHA256SUMS"));
    let option = "--manifest-sha256";
    segpack!["diff", &a, &b, option, &of_a, option, &of_b].ok();
    segpack!["diff", &a, &b, option, &of_b, option, &of_a]
        .exits(3)
        .says(&["as given"]);
    segpack!["diff", &a, tiny_text(), option, &of_a].ok();
    segpack!["diff", tiny_text(), &a, option, &of_b].exits(3);
    // which of the two would it be?
    segpack!["diff", &a, &b, option, &of_a].exits(2);
    segpack!["diff", tiny_text(), tiny_text(), option, &of_a].exits(2);
}

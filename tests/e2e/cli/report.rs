//! The page of `report`: what it holds. How it looks is looked at in `tests/peers/heavy`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::cli::{Run, packed, program, segpack};
use crate::support::damage::manifest;
use crate::support::folders::{contents, copy, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::{tiny_full, tiny_text};

/// The document that a page draws.
fn document(page: &Path) -> Value {
    let page = fs::read_to_string(page).unwrap();
    let (_, rest) = page
        .split_once("<script type=\"application/json\" id=\"data\">")
        .unwrap();
    let (json, _) = rest.split_once("</script>").unwrap();
    serde_json::from_str(json).unwrap()
}

/// The names of a subject's tensors, each with its entry of a column.
fn tensors(subject: &Value, column: fn(&Value, usize) -> Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for group in subject["groups"].as_array().unwrap() {
        let pattern = group["pattern"].as_str().unwrap();
        for i in 0..usize::try_from(group["count"].as_u64().unwrap()).unwrap() {
            let mut numbers = group["numbers"].as_array().unwrap().iter();
            let words = pattern.split('.').map(|word| match word {
                "{}" => numbers.next().unwrap()[i].to_string(),
                _ => word.to_owned(),
            });
            let name = words.collect::<Vec<_>>().join(".");
            assert!(found.insert(name, column(group, i)).is_none());
        }
    }
    found
}

#[test]
fn a_page_holds_every_tensor_of_a_pack_and_loads_nothing() {
    let folder = temp();
    let (pack, page) = (folder.path().join("pack"), folder.path().join("page.html"));
    pack_into(&tiny_full(), &pack, &["--codec", "bf16-rans"]);
    segpack!["report", &pack, "-o", &page].ok();
    let data = document(&page);
    let (subject, manifest) = (&data["subjects"][0], manifest(&pack));
    assert_eq!(subject["completeness"], "complete");
    let digests = tensors(subject, |group, i| group["sha256"][i].clone());
    let listed = manifest["tensors"].as_array().unwrap();
    assert_eq!(digests.len(), listed.len());
    for tensor in listed {
        let shown = digests[tensor["name"].as_str().unwrap()].as_str().unwrap();
        assert!(tensor["sha256"].as_str().unwrap().starts_with(shown));
    }
    let stored: u64 = subject["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s[1].as_u64().unwrap())
        .sum();
    let segments = manifest["segments"].as_array().unwrap().iter();
    assert_eq!(
        stored,
        segments
            .map(|s| s["stored_length"].as_u64().unwrap())
            .sum::<u64>()
    );
    let text = fs::read_to_string(&page).unwrap();
    for loads in [
        " src=",
        "url(",
        "@import",
        "<link rel=\"stylesheet\"",
        "fetch(",
    ] {
        assert!(!text.contains(loads), "{loads}");
    }
}

#[test]
fn a_page_has_what_other_commands_reported_of_the_same_pack() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let pack = packed(&tiny_full(), folder.path());
    let report = segpack!["verify", &pack, "--values", "--json"].ok();
    fs::write(at("verify.json"), report.text()).unwrap();
    segpack![
        "report",
        &pack,
        "-o",
        at("page.html"),
        "--verification",
        at("verify.json")
    ]
    .ok();
    let data = document(&at("page.html"));
    assert_eq!(data["verification"]["ok"], true);
    assert_eq!(
        data["verification"]["values"],
        Value::Null,
        "they are with the tensors"
    );
    let shown = tensors(&data["subjects"][0], |group, i| {
        group["values"]["max_abs"][i].clone()
    });
    for values in report.json()["values"]["tensors"].as_array().unwrap() {
        let of = |key: &str| values[key].as_f64().unwrap().abs();
        let (wanted, seen) = (
            of("min").max(of("max")),
            &shown[values["name"].as_str().unwrap()],
        );
        assert!(
            (seen.as_f64().unwrap() - wanted).abs() <= 0.005 * wanted,
            "{values}: {seen}"
        );
    }

    let other = at("other");
    pack_into(&tiny_text(), &other, &[]);
    let run = segpack![
        "report",
        &other,
        "-o",
        at("other.html"),
        "--verification",
        at("verify.json")
    ];
    run.exits(3).says(&[
        "verify.json",
        "is a report about the pack",
        "not among those to show",
    ]);
    let run = segpack![
        "report",
        &other,
        "-o",
        at("other.html"),
        "--validation",
        at("verify.json")
    ];
    run.exits(3).says(&["is no validate-report of segpack"]);
    assert!(!at("other.html").exists() && !at("other.html.partial").exists());
}

#[test]
fn a_name_that_looks_like_a_script_stays_a_name() {
    let folder = temp();
    let pack = folder.path().join("a<script>alert(1)<!--");
    pack_into(&tiny_text(), &pack, &[]);
    let page = folder.path().join("page.html");
    segpack!["report", &pack, "-o", &page].ok();
    let text = fs::read_to_string(&page).unwrap();
    assert!(!text.contains("<script>alert") && !text.contains("<!--"));
    assert_eq!(
        document(&page)["subjects"][0]["name"],
        pack.display().to_string()
    );
}

#[test]
fn two_are_compared_and_a_checkpoint_is_shown_without_a_pack() {
    let folder = temp();
    let page = folder.path().join("page.html");
    let pack = packed(&tiny_full(), folder.path());
    segpack!["report", &pack, tiny_full(), "-o", &page].ok();
    let data = document(&page);
    assert_eq!(data["diff"]["equal"], true);
    let names = |i: usize| tensors(&data["subjects"][i], |group, _| group["dtype"].clone());
    assert_eq!(names(0), names(1));
    assert_eq!(data["subjects"][1]["kind"], "checkpoint");
    assert_eq!(data["subjects"][1]["info"], Value::Null);
}

/// The bill of materials of a pack.
fn bill(pack: &Path, to: &Path) -> Value {
    segpack!["report", pack, "--format", "cyclonedx", "-o", to].ok();
    serde_json::from_slice(&fs::read(to).unwrap()).unwrap()
}

#[test]
fn a_bill_of_materials_has_every_file_and_what_the_model_card_says() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let checkpoint = at("checkpoint");
    copy(&tiny_full(), &checkpoint);
    let card = "---\nlicense: apache-2.0\nbase_model:\n- Some/Base\npipeline_tag: any-to-any\n---\n# A model\n";
    fs::write(checkpoint.join("README.md"), card).unwrap();
    pack_into(&checkpoint, &at("pack"), &[]);
    let bom = bill(&at("pack"), &at("bom.json"));
    let model = &bom["metadata"]["component"];
    assert_eq!(model["licenses"][0]["license"]["id"], "Apache-2.0");
    assert_eq!(model["pedigree"]["ancestors"][0]["name"], "Some/Base");
    assert_eq!(model["modelCard"]["modelParameters"]["task"], "any-to-any");
    let identity = segpack!["info", at("pack"), "--json"].ok().json()["manifest_sha256"].clone();
    assert_eq!(model["hashes"][0]["content"], identity);
    let manifest = manifest(&at("pack"));
    let listed = |key: &str| manifest[key].as_array().unwrap().len();
    let files = bom["components"].as_array().unwrap();
    assert_eq!(files.len(), listed("packs") + listed("source_files"));
    for pack in manifest["packs"].as_array().unwrap() {
        let file = files.iter().find(|f| f["name"] == pack["path"]).unwrap();
        assert_eq!(file["hashes"][0]["content"], pack["sha256"]);
    }
    assert_eq!(bill(&at("pack"), &at("again.json")), bom, "always the same");

    let other = card.replace(
        "apache-2.0",
        "other\nlicense_name: house rules\nlicense_link: https://example.com/l",
    );
    fs::write(checkpoint.join("README.md"), other).unwrap();
    pack_into(&checkpoint, &at("other"), &[]);
    let bom = bill(&at("other"), &at("bom.json"));
    let license = &bom["metadata"]["component"]["licenses"][0]["license"];
    assert_eq!(license["name"], "house rules");
    assert_eq!(license["url"], "https://example.com/l");

    fs::write(checkpoint.join("README.md"), "---\nlicense: [\n---\n").unwrap();
    pack_into(&checkpoint, &at("broken"), &[]);
    let run = segpack![
        "report",
        at("broken"),
        "--format",
        "cyclonedx",
        "-o",
        at("no.json")
    ];
    run.exits(3)
        .says(&["README.md", "has a front matter that cannot be read"]);
    assert!(!at("no.json").exists());
    let run = segpack![
        "report",
        at("pack"),
        at("other"),
        "--format",
        "cyclonedx",
        "-o",
        at("no.json")
    ];
    run.exits(2).says(&[
        "--format cyclonedx is of one pack",
        "only -o FILE goes with it",
    ]);
}

#[test]
fn the_json_is_for_standard_output_and_no_page_is_called_so() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let page = folder.path().join("page.html");
    let run = segpack!["report", &pack, "--json", "-o", &page].ok();
    assert_eq!(run.json()["subjects"], document(&page)["subjects"]);
    let wrong = folder.path().join("data.json");
    let run = segpack!["report", &pack, "--json", "-o", &wrong].exits(2);
    run.says(&["is the page, which is HTML"]);
    assert!(!wrong.exists());
}

#[test]
fn no_file_or_folder_is_called_as_standard_output_is() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let checkpoint = tiny_text();
    let commands: [(&str, &Path, &[&str]); 9] = [
        ("pack", &checkpoint, &["-o", "-"]),
        ("pack", &checkpoint, &["-o", "x", "--spool", "-"]),
        ("unpack", &pack, &["-o", "-"]),
        ("repack", &pack, &["--codec", "zstd", "-o", "-"]),
        ("join", &pack, &["-o", "-"]),
        ("graft", &pack, &["--onto", "x", "-o", "-"]),
        ("report", &pack, &["-o", "-"]),
        ("sign", &pack, &["--key", "x", "-o", "-"]),
        ("verify", &pack, &["--receipt", "-"]),
    ];
    for (command, input, options) in commands {
        let mut program = program();
        program.current_dir(folder.path()).arg(command).arg(input);
        let run = Run::of(program.args(options)).exits(2);
        run.says(&["cannot go to standard output"]);
    }
    let mut program = program();
    program.current_dir(folder.path()).arg("export").arg(&pack);
    let run = Run::of(program.args(["--to", "gguf", "-o", "-"])).exits(2);
    run.says(&["the target gguf cannot go to standard output"]);
    assert!(!folder.path().join("-").exists());
}

#[test]
fn an_input_is_never_the_output() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let checkpoint = folder.path().join("checkpoint");
    copy(&tiny_text(), &checkpoint);
    let report = folder.path().join("verify.json");
    fs::write(&report, segpack!["verify", &pack, "--json"].ok().text()).unwrap();
    let before = [&pack, &checkpoint].map(|input| contents(input));
    for output in [pack.join("manifest.json"), pack.join("new.html")] {
        let run = segpack!["report", &pack, "-o", output];
        run.exits(1).says(&["lies inside the input"]);
        let run = segpack![
            "report",
            &pack,
            "--format",
            "cyclonedx",
            "-o",
            pack.join("bom.json")
        ];
        run.exits(1).says(&["lies inside the input"]);
    }
    segpack!["report", &checkpoint, "-o", checkpoint.join("config.json")].exits(1);
    segpack!["report", &pack, "-o", &report, "--verification", &report].exits(1);
    assert_eq!([&pack, &checkpoint].map(|input| contents(input)), before);
    assert!(fs::read_to_string(&report).unwrap().starts_with('{'));
}

#[test]
fn an_address_is_no_folder_to_write_to() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    for command in ["repack", "unpack", "export"] {
        let mut program = program();
        program.current_dir(folder.path()).arg(command).arg(&pack);
        let options: &[&str] = match command {
            "export" => &["--to", "hf"],
            "repack" => &["--codec", "zstd"],
            _ => &[],
        };
        let run = Run::of(program.args(options).args(["-o", "s3://bucket/x"]));
        run.exits(1).says(&["is on a server"]);
    }
    assert!(!folder.path().join("s3:").exists());
}

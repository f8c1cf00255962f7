//! Families that are packed and not run.

use std::fs;

use segpack_manifests::families::Family;

use crate::checkpoint::published::all;
use crate::support::checkpoint::fixtures;
use crate::support::cli::segpack;
use crate::support::folders::temp;

/// One of each kind: other attention, other layers, a tower; and one that is quantised.
const NOT_RUN: [&str; 5] = [
    "deepseek_v3-base-fp8-block",
    "kimi_k25-base-int4-packed",
    "qwen3_next-base",
    "nemotron_h-base",
    "llama4-base",
];

#[test]
fn a_family_that_is_not_run_is_refused_by_name_before_a_weight_is_read() {
    let trace = fixtures().join("traces/mixtral.float32.json");
    for checkpoint in all().iter().filter(|c| NOT_RUN.contains(&c.name.as_str())) {
        let (name, _) = checkpoint.name.split_once('-').unwrap();
        assert!(!Family::named(name).unwrap().is_run());
        let folder = temp();
        let source = checkpoint.write(&folder.path().join("checkpoint"));
        let pack = folder.path().join("pack");
        segpack!["pack", &source, "-o", &pack].ok();
        // whoever read a weight would find it damaged
        for file in fs::read_dir(pack.join("packs")).unwrap() {
            let path = file.unwrap().path();
            let length = fs::metadata(&path).unwrap().len() as usize;
            fs::write(&path, vec![0xff; length]).unwrap();
        }
        let family = format!("family \"{name}\" is not one that this build can run");
        let words = [family.as_str(), "known: ", "mixtral"];
        segpack![
            "run",
            &pack,
            "--prompt-ids",
            "1,2,3",
            "--max-new-tokens",
            "2"
        ]
        .exits(3)
        .says(&words);
        segpack!["validate", &pack, "--reference", &trace]
            .exits(3)
            .says(&words);
        segpack!["bench", &pack].exits(3).says(&words);
    }
}

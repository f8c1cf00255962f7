//! Exports: what other runtimes will read is what the pack holds, whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{Run, interruptible, packed, program, segpack};
use crate::support::damage::flip;
use crate::support::folders::{assert_same, contents, hidden_beside, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::{
    INDEX, Qwen3Moe, Tensor, Tiny, tensors_of, tiny_full, tiny_text, write_file,
};

/// A checkpoint's pack, raw and coded.
fn packs(checkpoint: &Path, folder: &TempDir) -> [PathBuf; 2] {
    ["raw", "bf16-rans"].map(|codec| {
        let pack = folder.path().join(codec);
        pack_into(checkpoint, &pack, &["--codec", codec]);
        pack
    })
}

/// All tensors of a folder's weight files, by name.
fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            for tensor in tensors_of(&fs::read(path).unwrap()) {
                assert!(
                    found.insert(tensor.name.clone(), tensor).is_none(),
                    "a tensor is there twice"
                );
            }
        }
    }
    found
}

fn by_name(tensors: impl IntoIterator<Item = Tensor>) -> BTreeMap<String, Tensor> {
    tensors.into_iter().map(|t| (t.name.clone(), t)).collect()
}

pub(super) fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_whole_model_is_the_checkpoint_again_with_other_shards() {
    let folder = temp();
    let out = folder.path().join("out");
    for pack in packs(&tiny_full(), &folder) {
        segpack![
            "export",
            &pack,
            "--to",
            "hf",
            "-o",
            &out,
            "--max-shard-size",
            "100kB"
        ]
        .ok();
        assert_eq!(tensors(&out), by_name(Tiny::full().tensors().cloned()));
        for (name, bytes) in Tiny::full().files {
            assert!(fs::read(out.join(&name)).unwrap() == bytes, "{name}");
        }
        assert!(
            fs::read(out.join("config.json")).unwrap()
                == fs::read(tiny_full().join("config.json")).unwrap()
        );
        // every shard within the size, named by the index and complete
        let index = json_of(&out.join(INDEX));
        let bytes: usize = Tiny::full().tensors().map(|t| t.bytes.len()).sum();
        assert_eq!(index["metadata"]["total_size"], json!(bytes));
        let mut shards = BTreeMap::new();
        for (tensor, file) in index["weight_map"].as_object().unwrap() {
            shards
                .entry(file.as_str().unwrap().to_owned())
                .or_insert_with(Vec::new)
                .push(tensor.clone());
        }
        assert_eq!(shards.len(), 7);
        for (file, mut named) in shards {
            let held = tensors_of(&fs::read(out.join(&file)).unwrap());
            assert!(
                held.iter().map(|t| t.bytes.len()).sum::<usize>() <= 100_000,
                "{file}"
            );
            let mut names: Vec<String> = held.into_iter().map(|t| t.name).collect();
            names.sort();
            named.sort();
            assert_eq!(names, named, "{file}");
        }
        // what was exported can be packed, and is the same model
        segpack!["scan", &out].ok();
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn shards_are_as_many_as_the_size_asks_for() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    for (size, files) in [("1B", 194), ("50kB", 13), ("100KiB", 6), ("1GB", 1)] {
        let out = folder.path().join(size);
        segpack![
            "export",
            &pack,
            "--to",
            "hf",
            "-o",
            &out,
            "--max-shard-size",
            size
        ]
        .ok();
        let names: Vec<String> = contents(&out)
            .into_keys()
            .filter(|n| n.ends_with(".safetensors"))
            .collect();
        assert_eq!(names.len(), files, "{size}");
        assert_eq!(out.join(INDEX).exists(), files > 1);
        assert_eq!(names.contains(&"model.safetensors".to_owned()), files == 1);
        segpack!["scan", &out].ok();
    }
    // the same bytes from any number of threads
    let again = folder.path().join("again");
    segpack![
        "export",
        &pack,
        "--to",
        "hf",
        "-o",
        &again,
        "--max-shard-size",
        "50kB",
        "--jobs",
        "5"
    ]
    .ok();
    assert_same(&again, &folder.path().join("50kB"));
}

#[test]
fn a_thinker_alone_promises_no_audio() {
    let folder = temp();
    for pack in packs(&tiny_full(), &folder) {
        let out = folder.path().join("out");
        let printed = segpack![
            "export",
            &pack,
            "--to",
            "hf",
            "-o",
            &out,
            "--component",
            "thinker"
        ]
        .ok();
        assert!(
            printed.text().contains("enable_audio_output: false"),
            "{printed}"
        );
        let mut config = Tiny::full().config;
        config["enable_audio_output"] = json!(false);
        config
            .as_object_mut()
            .unwrap()
            .retain(|key, _| key != "talker_config" && key != "code2wav_config");
        assert_eq!(json_of(&out.join("config.json")), config);
        let thinker = Tiny::full()
            .tensors()
            .filter(|t| t.name.starts_with("thinker."))
            .cloned()
            .collect::<Vec<_>>();
        assert_eq!(tensors(&out), by_name(thinker));
        // complete, by the audit of its own configuration
        segpack!["scan", &out].ok();
        fs::remove_dir_all(&out).unwrap();
    }
    // a part that is no model is said to be none
    let pack = folder.path().join("raw");
    let talker = segpack![
        "export",
        &pack,
        "--to",
        "hf",
        "-o",
        folder.path().join("talker"),
        "--component",
        "talker"
    ];
    assert!(talker.ok().text().contains("no whole model"));
    segpack![
        "export",
        &pack,
        "--to",
        "hf",
        "-o",
        folder.path().join("x"),
        "--component",
        "nose"
    ]
    .exits(2)
    .says(&["no component of this checkpoint is \"nose\""]);
}

#[test]
fn the_text_part_is_a_plain_qwen3_moe() {
    let folder = temp();
    for pack in packs(&tiny_full(), &folder) {
        let out = folder.path().join("out");
        let printed = segpack!["export", &pack, "--to", "qwen3-moe", "-o", &out].ok();
        assert!(
            printed
                .text()
                .contains("images, audio and video need the full thinker"),
            "{printed}"
        );
        let is_text = |t: &&Tensor| {
            t.name.starts_with("thinker.model.") || t.name.starts_with("thinker.lm_head.")
        };
        let text = Tiny::full()
            .tensors()
            .filter(is_text)
            .cloned()
            .collect::<Vec<_>>();
        let rename = |t: Tensor| Tensor {
            name: t.name.replacen("thinker.", "", 1),
            ..t
        };
        assert_eq!(tensors(&out), by_name(text.into_iter().map(rename)));
        insta::with_settings!({snapshot_path => "../../snapshots", prepend_module_to_snapshot => false, omit_expression => true}, {
            let config = fs::read_to_string(out.join("config.json")).unwrap();
            insta::assert_snapshot!("export-qwen3-moe-config", config);
        });
        let files: Vec<String> = contents(&out)
            .into_keys()
            .filter(|n| !n.ends_with('/') && !n.is_empty())
            .collect();
        let wanted = [
            "config.json",
            "generation_config.json",
            "merges.txt",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
        ];
        assert_eq!(files, wanted);
        // it runs, as what it now is, and says what the thinker says
        let again = folder.path().join("again");
        segpack!["pack", &out, "-o", &again, "-q"].ok();
        let run = |pack: &Path| {
            let run = segpack![
                "run",
                pack,
                "--prompt",
                "Hi, is the user on?",
                "--max-new-tokens",
                "12",
                "--json"
            ];
            run.ok().tokens().0
        };
        assert_eq!(run(&again), run(&pack));
        fs::remove_dir_all(&again).unwrap();
        fs::remove_dir_all(&out).unwrap();
    }
    let raw = folder.path().join("raw");
    segpack![
        "export",
        &raw,
        "--to",
        "qwen3-moe",
        "-o",
        folder.path().join("x"),
        "--component",
        "talker"
    ]
    .exits(2)
    .says(&["text decoder"]);
}

#[test]
fn a_tokenizer_is_built_where_none_ships() {
    let folder = temp();
    let mut tiny = Tiny::full();
    let (_, template) = ("", "{% for m in messages %}{{ m.content }}{% endfor %}");
    let position = tiny
        .files
        .iter()
        .position(|(name, _)| name == "tokenizer.json")
        .unwrap();
    tiny.files.remove(position);
    let (_, config) = tiny
        .files
        .iter_mut()
        .find(|(name, _)| name == "tokenizer_config.json")
        .unwrap();
    let mut parsed: Value = serde_json::from_slice(config).unwrap();
    parsed.as_object_mut().unwrap().remove("chat_template");
    *config = parsed.to_string().into_bytes();
    tiny.files.push((
        "chat_template.json".to_owned(),
        json!({"chat_template": template}).to_string().into_bytes(),
    ));
    let pack = packed(&tiny.write(&folder.path().join("bare")), folder.path());
    let out = folder.path().join("out");
    segpack!["export", &pack, "--to", "qwen3-moe", "-o", &out].ok();
    assert_eq!(
        fs::read_to_string(out.join("chat_template.jinja")).unwrap(),
        template
    );
    let built = json_of(&out.join("tokenizer.json"));
    let shipped = json_of(&tiny_full().join("tokenizer.json"));
    for part in ["/model/vocab", "/model/merges", "/added_tokens"] {
        assert_eq!(built.pointer(part), shipped.pointer(part), "{part}");
    }
    // and makes the same tokens when it is all there is
    for name in ["vocab.json", "merges.txt"] {
        fs::remove_file(out.join(name)).unwrap();
    }
    let again = folder.path().join("again");
    segpack!["pack", &out, "-o", &again, "-q"].ok();
    let ids = |pack: &Path| {
        let text = "Größe 中 7 <|im_start|>user\n  it's  <|im_end|> 12345";
        segpack!["run", pack, "--prompt", text, "--print-prompt", "--json"]
            .ok()
            .json()["ids"]
            .clone()
    };
    let seen = ids(&again);
    assert!(seen.as_array().is_some_and(|ids| ids.len() > 10), "{seen}");
    assert_eq!(seen, ids(&pack));
}

#[test]
fn stacked_experts_go_back_into_their_stacks_or_stand_alone() {
    let folder = temp();
    let stacked = Tiny::qwen3_moe(Qwen3Moe::default()).stacked();
    let checkpoint = stacked.write(&folder.path().join("stacked"));
    for pack in packs(&checkpoint, &folder) {
        let (hf, plain) = (folder.path().join("hf"), folder.path().join("plain"));
        segpack![
            "export",
            &pack,
            "--to",
            "hf",
            "-o",
            &hf,
            "--max-shard-size",
            "50kB"
        ]
        .ok();
        assert_eq!(tensors(&hf), by_name(stacked.tensors().cloned()));
        segpack!["export", &pack, "--to", "qwen3-moe", "-o", &plain].ok();
        assert_eq!(
            tensors(&plain),
            by_name(Tiny::qwen3_moe(Qwen3Moe::default()).tensors().cloned())
        );
        segpack!["scan", &plain].ok();
        for out in [hf, plain] {
            fs::remove_dir_all(out).unwrap();
        }
    }
}

#[test]
fn ranks_share_the_experts_and_nothing_else() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    for (target, ranks, component) in [("hf", 3, "thinker"), ("hf", 4, ""), ("qwen3-moe", 3, "")] {
        let whole = folder.path().join("whole");
        let mut options = vec!["--to", target];
        if !component.is_empty() {
            options.extend(["--component", component]);
        }
        let export = |out: &Path, more: &[&str]| {
            Run::of(
                program()
                    .arg("export")
                    .arg(&pack)
                    .arg("-o")
                    .arg(out)
                    .args(&options)
                    .args(more),
            )
            .ok()
        };
        export(&whole, &[]);
        let whole_tensors = tensors(&whole);
        let mut holders: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut maps = Vec::new();
        for rank in 0..ranks {
            let out = folder.path().join("rank");
            export(&out, &["--expert-parallel", &format!("{rank}/{ranks}")]);
            for (name, tensor) in tensors(&out) {
                assert_eq!(tensor, whole_tensors[&name], "rank {rank}");
                holders.entry(name).or_default().push(rank);
            }
            let mut map = json_of(&out.join("expert_parallel.json"));
            assert_eq!((&map["rank"], &map["ranks"]), (&json!(rank), &json!(ranks)));
            map["rank"] = json!(0);
            maps.push(map);
            fs::remove_dir_all(&out).unwrap();
        }
        assert!(
            holders.keys().eq(whole_tensors.keys()),
            "the shares are not the whole"
        );
        assert!(
            maps.windows(2).all(|pair| pair[0] == pair[1]),
            "ranks disagree"
        );
        for (name, holders) in holders {
            let expert = name.split_once(".mlp.experts.").map(|(component, rest)| {
                let component = if component.starts_with("talker") {
                    "talker.text"
                } else {
                    "thinker.text"
                };
                (
                    component,
                    rest.split_once('.').unwrap().0.parse::<u64>().unwrap(),
                )
            });
            let Some((component, expert)) = expert else {
                assert_eq!(holders, (0..ranks).collect::<Vec<_>>(), "{name}");
                continue;
            };
            assert_eq!(holders.len(), 1, "{name}");
            let components = maps[0]["components"].as_array().unwrap();
            let listed = components
                .iter()
                .find(|c| c["component"] == component)
                .unwrap();
            let share = &listed["ranks"][holders[0] as usize]["experts"];
            assert!(share.as_array().unwrap().contains(&json!(expert)), "{name}");
        }
        fs::remove_dir_all(&whole).unwrap();
    }
    let out = folder.path().join("x");
    for (share, status) in [("3/3", 2), ("1", 2), ("a/b", 2), ("0/9", 2), ("-1/2", 2)] {
        segpack![
            "export",
            &pack,
            "--to",
            "qwen3-moe",
            "-o",
            &out,
            format!("--expert-parallel={share}")
        ]
        .exits(status);
    }
    segpack![
        "export",
        &pack,
        "--to",
        "hf",
        "--component",
        "code2wav",
        "-o",
        &out,
        "--expert-parallel",
        "0/1"
    ]
    .exits(2)
    .says(&["no experts"]);
    assert!(!out.exists());
}

/// The values of a BF16 tensor as another dtype would have them.
fn widened(tensor: &Tensor) -> Vec<u8> {
    let values = tensor.bytes.chunks_exact(2);
    values
        .flat_map(|v| {
            f32::from_bits(u32::from(u16::from_le_bytes([v[0], v[1]])) << 16).to_le_bytes()
        })
        .collect()
}

#[test]
fn dtypes_change_and_the_configuration_says_so() {
    let folder = temp();
    for pack in packs(&tiny_text(), &folder) {
        let wide = folder.path().join("wide");
        segpack!["export", &pack, "--to", "hf", "-o", &wide, "--dtype", "f32"].ok();
        let converted = Tiny::text().converted("F32");
        assert_eq!(tensors(&wide), by_name(converted.tensors().cloned()));
        assert_eq!(json_of(&wide.join("config.json")), converted.config);
        segpack!["scan", &wide].ok();
        // narrowed again, it is what it was
        let again = folder.path().join("again");
        segpack!["pack", &wide, "-o", &again, "-q"].ok();
        let back = folder.path().join("back");
        segpack![
            "export", &again, "--to", "hf", "-o", &back, "--dtype", "bf16"
        ]
        .ok();
        assert_eq!(tensors(&back), by_name(Tiny::text().tensors().cloned()));
        assert_eq!(json_of(&back.join("config.json")), Tiny::text().config);
        let half = folder.path().join("half");
        segpack![
            "export",
            &pack,
            "--to",
            "qwen3-moe",
            "-o",
            &half,
            "--dtype",
            "f16"
        ]
        .ok();
        assert!(tensors(&half).values().all(|t| t.dtype == "F16"));
        assert_eq!(json_of(&half.join("config.json"))["torch_dtype"], "float16");
        for out in [wide, again, back, half] {
            fs::remove_dir_all(out).unwrap();
        }
    }
}

#[test]
fn a_value_that_does_not_fit_is_an_error_with_the_tensors_name() {
    let folder = temp();
    let mut tiny = Tiny::text();
    tiny.tensor("thinker.model.norm.weight").bytes[..2].copy_from_slice(&0x4780_u16.to_le_bytes()); // 65536
    let pack = packed(&tiny.write(&folder.path().join("large")), folder.path());
    let out = folder.path().join("out");
    segpack!["export", &pack, "--to", "hf", "-o", &out, "--dtype", "f16"]
        .exits(3)
        .says(&["thinker.model.norm.weight", "6.5536e4", "F16"]);
    assert!(!out.exists());
    // infinities are values too
    tiny.tensor("thinker.model.norm.weight").bytes[..2].copy_from_slice(&0x7f80_u16.to_le_bytes());
    let pack = packed(&tiny.write(&folder.path().join("infinite")), folder.path());
    segpack!["export", &pack, "--to", "hf", "-o", &out, "--dtype", "f16"].ok();
}

#[test]
fn one_safetensors_file_down_a_pipe_or_on_the_drive() {
    let folder = temp();
    for pack in packs(&tiny_full(), &folder) {
        let piped = segpack!["export", &pack, "--to", "safetensors", "-o", "-", "-q"].ok();
        assert_eq!(
            by_name(tensors_of(&piped.stdout)),
            by_name(Tiny::full().tensors().cloned())
        );
        let file = folder.path().join("all.safetensors");
        segpack!["export", &pack, "--to", "safetensors", "-o", &file].ok();
        assert!(fs::read(&file).unwrap() == piped.stdout);
        segpack!["export", &pack, "--to", "safetensors", "-o", &file]
            .exits(1)
            .says(&["exists"]);
        fs::remove_file(&file).unwrap();
        let some = segpack![
            "export",
            &pack,
            "--to",
            "safetensors",
            "-o",
            "-",
            "*.layers.1.*norm*",
            "--component",
            "thinker.text",
            "--dtype",
            "f32"
        ]
        .ok();
        let full = Tiny::full();
        let chosen = full
            .tensors()
            .filter(|t| t.name.starts_with("thinker.model.layers.1.") && t.name.contains("norm"));
        let wanted = chosen.map(|t| Tensor {
            dtype: "F32".to_owned(),
            bytes: widened(t),
            ..t.clone()
        });
        assert_eq!(by_name(tensors_of(&some.stdout)), by_name(wanted));
        segpack![
            "export",
            &pack,
            "--to",
            "safetensors",
            "-o",
            "-",
            "nothing*"
        ]
        .exits(3)
        .says(&["nothing*"]);
    }
    let leftovers: Vec<_> = contents(folder.path())
        .into_keys()
        .filter(|name| name.contains(".partial"))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

#[test]
fn a_closed_pipe_is_silent() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let mut command = program();
    command
        .arg("export")
        .arg(&pack)
        .args(["--to", "safetensors", "-o", "-", "-q"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 8]).unwrap();
    drop(stdout);
    let run = Run::from_output(
        "export | head".to_owned(),
        child.wait_with_output().unwrap(),
    )
    .ok();
    assert!(run.stderr.is_empty(), "{run}");
}

#[test]
fn arrays_for_numpy() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let (wide, kept) = (folder.path().join("wide"), folder.path().join("kept"));
    segpack![
        "export", &pack, "--to", "npy", "-o", &wide, "--dtype", "f32"
    ]
    .ok();
    let printed = segpack!["export", &pack, "--to", "npy", "-o", &kept].ok();
    assert!(printed.text().contains("ml_dtypes.bfloat16"), "{printed}");
    for tensor in Tiny::text().tensors() {
        let name = format!("{}.npy", tensor.name);
        let sides: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        let shape = if sides.len() == 1 {
            format!("({},)", sides[0])
        } else {
            format!("({})", sides.join(", "))
        };
        for (folder, descr, data) in [
            (&wide, "<f4", widened(tensor)),
            (&kept, "<V2", tensor.bytes.clone()),
        ] {
            let bytes = fs::read(folder.join(&name)).unwrap();
            let head =
                format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
            let start = bytes.len() - data.len();
            assert!(
                start % 64 == 0 && bytes[10..].starts_with(head.as_bytes()),
                "{name}"
            );
            assert!(bytes[start..] == data, "{name}");
        }
    }
    assert_eq!(
        fs::read_dir(&wide).unwrap().count(),
        Tiny::text().tensors().count()
    );
}

#[test]
fn a_damaged_pack_is_never_published() {
    let folder = temp();
    for pack in packs(&tiny_text(), &folder) {
        flip(
            &pack.join("packs/thinker.text.experts.01.safetensors"),
            -5000,
        );
        let out = folder.path().join("out");
        for options in [
            &["--to", "hf"][..],
            &["--to", "hf", "--no-check"],
            &["--to", "hf", "--dtype", "f32"],
            &[
                "--to",
                "qwen3-moe",
                "--max-shard-size",
                "20kB",
                "--jobs",
                "4",
            ],
            &["--to", "npy"],
            &["--to", "safetensors"],
            &["--to", "safetensors", "--no-check"],
        ] {
            let run = Run::of(
                program()
                    .arg("export")
                    .arg(&pack)
                    .arg("-o")
                    .arg(&out)
                    .args(options),
            );
            let run = run.exits(3);
            assert!(
                run.stdout.is_empty() && run.stderr.contains("experts"),
                "{run}"
            );
            let left: Vec<_> = contents(folder.path())
                .into_keys()
                .filter(|n| n.contains("out"))
                .collect();
            assert!(left.is_empty(), "{options:?}: {left:?}");
        }
        let pipe = segpack!["export", &pack, "--to", "safetensors", "-o", "-"].exits(3);
        assert!(!pipe.stdout.is_empty(), "the damage is in the midst");
        if pack.ends_with("raw") {
            pipe.says(&["the bytes written are wrong", "experts"]);
        }
        // what is sound can be had
        segpack![
            "export",
            &pack,
            "--to",
            "safetensors",
            "-o",
            &out,
            "*.layers.0.*"
        ]
        .ok();
        fs::remove_file(&out).unwrap();
        fs::remove_dir_all(&pack).unwrap();
    }
    let pack = packed(&tiny_full(), folder.path());
    flip(&pack.join("source/merges.txt"), 10);
    let out = folder.path().join("out");
    segpack!["export", &pack, "--to", "hf", "-o", &out]
        .exits(3)
        .says(&["source/merges.txt"]);
    fs::remove_file(pack.join("packs/code2wav.safetensors")).unwrap();
    segpack!["export", &pack, "--to", "npy", "-o", &out]
        .exits(3)
        .says(&["code2wav.safetensors"]);
    assert!(!out.exists());
}

#[test]
fn what_is_there_is_left_alone() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let out = folder.path().join("out");
    write_file(&out.join("precious"), b"mine");
    for target in ["hf", "qwen3-moe", "npy"] {
        segpack!["export", &pack, "--to", target, "-o", &out]
            .exits(1)
            .says(&["exists and is not empty"]);
    }
    assert_eq!(contents(&out)["precious"], b"mine");
    segpack!["export", &pack, "--to", "hf", "-o", pack.join("inside")]
        .exits(1)
        .says(&["lies inside the input"]);
    segpack!["export", &pack, "--to", "safetensors", "-o", &out]
        .exits(1)
        .says(&["exists"]);
    segpack![
        "export",
        &pack,
        "--to",
        "safetensors",
        "-o",
        folder.path().join("no/such")
    ]
    .exits(1);
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    segpack!["export", &pack, "--to", "hf", "-o", &empty].ok();
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    for options in [
        &["--to", "npy", "-o", "-"][..],
        &["--to", "hf", "-o", "-"],
        &["--to", "safetensors", "-o", "-", "--json"],
        &["--to", "safetensors", "-o", "x", "--max-shard-size", "1GB"],
        &["--to", "npy", "-o", "x", "--expert-parallel", "0/2"],
        &["--to", "hf", "-o", "x", "*.layers.*"],
        &["--to", "hf", "-o", "x", "--max-shard-size", "0"],
        &["--to", "hf", "-o", "x", "--max-shard-size", "large"],
        &["--to", "gguff", "-o", "x"],
        &["--to", "hf", "-o", "x", "--dtype", "f8"],
    ] {
        let run = Run::of(
            program()
                .arg("export")
                .arg(&pack)
                .args(options)
                .current_dir(folder.path()),
        );
        // with --json the error is a document
        let is_silent = run.exits(2).stdout.is_empty();
        assert_eq!(is_silent, !options.contains(&"--json"));
    }
    assert!(!folder.path().join("x").exists());
}

#[cfg(unix)]
#[test]
fn an_interrupted_export_leaves_no_name() {
    let folder = temp();
    let size = Qwen3Moe {
        layers: 13,
        experts: 6,
        hidden: 256,
        width: 384,
        shards: 4,
    };
    let pack = packed(
        &Tiny::qwen3_moe(size).write(&folder.path().join("checkpoint")),
        folder.path(),
    );
    let out = folder.path().join("out");
    let hidden = hidden_beside(&out);
    let whole = folder.path().join("whole");
    segpack![
        "export",
        &pack,
        "--to",
        "hf",
        "-o",
        &whole,
        "--max-shard-size",
        "5MB"
    ]
    .ok();
    for (name, wanted) in [("INT", 130), ("TERM", 143), ("KILL", 137)] {
        let hit = (0..20).any(|_| {
            let _ = fs::remove_dir_all(&out);
            let _ = fs::remove_dir_all(&hidden);
            let mut command = interruptible();
            command.arg("export").arg(&pack).arg("-o").arg(&out).args([
                "--to",
                "hf",
                "--max-shard-size",
                "5MB",
            ]);
            let mut child = command
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let finished = || fs::read_dir(hidden.join("new")).is_ok_and(|e| e.count() > 1);
            while !finished() && child.try_wait().unwrap().is_none() {
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
            let signalled = std::process::Command::new("kill")
                .arg(format!("-{name}"))
                .arg(child.id().to_string())
                .status();
            assert!(signalled.is_ok());
            let status = child.wait().unwrap();
            let code = std::os::unix::process::ExitStatusExt::signal(&status)
                .map_or(status.code(), |s| Some(128 + s));
            if code == Some(0) {
                return false; // it was quicker
            }
            assert_eq!(code, Some(wanted), "{name}");
            assert!(!out.exists());
            true
        });
        assert!(hit, "{name} never came in time");
        let again = |how: &str| {
            let words = ["--to", "hf", "--max-shard-size", "5MB", "--json", how];
            Run::of(
                program()
                    .arg("export")
                    .arg(&pack)
                    .arg("-o")
                    .arg(&out)
                    .args(words),
            )
        };
        again("-q").exits(1).says(&[".out.partial", "--resume"]);
        // one of the files that were finished is spoiled in between
        let built = hidden.join("new");
        let mut finished = contents(&built)
            .into_keys()
            .filter(|f| !f.starts_with(".partial"));
        flip(&built.join(finished.next().unwrap()), -1);
        let left = finished.count();
        let summary = again("--resume").ok().json();
        assert_eq!(summary["resumed_files"], left, "{summary}");
        assert_same(&out, &whole);
        assert!(!hidden.exists());
        // what is there is as good as written; what is wrong is not
        let all = again("--resume").ok().json();
        assert_eq!(all["resumed_files"], all["files"]);
        fs::remove_file(out.join("config.json")).unwrap();
        again("--resume").ok();
        flip(&out.join("config.json"), 3);
        again("--resume")
            .exits(1)
            .says(&["config.json", "is not what the pack holds"]);
        again("--force").ok();
        assert_same(&out, &whole);
    }
}

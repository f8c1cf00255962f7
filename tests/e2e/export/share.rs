//! `export --check-share`: whether a folder is the share of the experts that a rank has to serve.

use std::fs;
use std::path::{Path, PathBuf};

use segpack_manifests::documents::FindingKind;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{Run, packed, program, segpack};
use crate::support::folders::temp;
use crate::support::tiny::{Tensor, tensors_of, tiny_full};

/// Shares of a pack's experts, each in a folder of its own.
struct Scene {
    folder: TempDir,
    pack: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let folder = temp();
        let pack = packed(&tiny_full(), folder.path());
        Self { folder, pack }
    }

    /// Writes the share of rank R of N.
    fn share(&self, share: &str, more: &[&str]) -> PathBuf {
        let out = self.folder.path().join(share.replace('/', "of"));
        let mut command = program();
        command.arg("export").arg(&self.pack).arg("-o").arg(&out);
        command.args(["--expert-parallel", share, "-q"]);
        let target = match more.contains(&"--to") {
            true => &[][..],
            false => &["--to", "qwen3-moe", "--max-shard-size", "100KB"],
        };
        Run::of(command.args(target).args(more)).ok();
        out
    }

    fn check(&self, folder: &Path, rank: &str) -> Run {
        segpack!["export", "--check-share", folder, "--rank", rank, "--json"]
    }

    fn check_bytes(&self, folder: &Path, rank: &str) -> Run {
        segpack![
            "export",
            &self.pack,
            "--check-share",
            folder,
            "--rank",
            rank,
            "--json"
        ]
    }
}

/// Files of weights.
fn shards(folder: &Path) -> Vec<PathBuf> {
    let entries = folder.read_dir().unwrap().flatten().map(|e| e.path());
    let mut shards: Vec<_> = entries
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    shards.sort();
    shards
}

/// Rewrites the file that holds a tensor, with other tensors or another metadata; the index follows.
fn bend(folder: &Path, tensor: &str, edit: impl FnOnce(&mut Vec<Tensor>, &mut Value)) {
    let path = shards(folder)
        .into_iter()
        .find(|path| {
            tensors_of(&fs::read(path).unwrap())
                .iter()
                .any(|t| t.name.contains(tensor))
        })
        .unwrap();
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let (mut tensors, mut metadata) = (tensors_of(&bytes), header["__metadata__"].clone());
    let before: Vec<String> = tensors.iter().map(|t| t.name.clone()).collect();
    edit(&mut tensors, &mut metadata);
    let (mut header, mut data) = (json!({"__metadata__": metadata}), Vec::new());
    for t in &tensors {
        let offsets = [data.len(), data.len() + t.bytes.len()];
        header[&t.name] = json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": offsets});
        data.extend_from_slice(&t.bytes);
    }
    let text = header.to_string();
    let length = (text.len() as u64).to_le_bytes();
    fs::write(&path, [&length[..], text.as_bytes(), &data].concat()).unwrap();
    let index_path = folder.join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&index_path).unwrap()).unwrap();
    let map = index["weight_map"].as_object_mut().unwrap();
    before.iter().for_each(|name| drop(map.remove(name)));
    let file = path.file_name().unwrap().to_str().unwrap();
    map.extend(tensors.iter().map(|t| (t.name.clone(), json!(file))));
    index["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("total_size");
    fs::write(index_path, index.to_string()).unwrap();
}

fn kinds(run: &Run) -> Vec<FindingKind> {
    run.findings().into_iter().map(|f| f.kind).collect()
}

#[test]
fn the_share_of_each_rank_is_sound_and_no_other_ranks() {
    let scene = Scene::new();
    for more in [
        &[][..],
        &["--to", "hf"],
        &["--to", "hf", "--component", "thinker"],
        &["--dtype", "f32"],
    ] {
        for rank in ["0/3", "1/3", "2/3"] {
            let out = scene.share(rank, &[more, &["--force"]].concat());
            let report = scene.check(&out, rank).ok().json();
            assert_eq!(
                (&report["ok"], &report["compared"]),
                (&json!(true), &json!(0))
            );
            let report = scene.check_bytes(&out, rank).ok().json();
            let (compared, converted) = (&report["compared"], &report["converted"]);
            let is_converted = more.contains(&"f32");
            let counts = match is_converted {
                true => (converted, compared),
                false => (compared, converted),
            };
            assert_eq!(counts, (&report["tensors"], &json!(0)), "{more:?}");
            for other in ["0/3", "1/3", "2/3", "0/2", "0/1"] {
                if other != rank {
                    let run = scene.check(&out, other).exits(3);
                    assert!(kinds(&run).contains(&FindingKind::OtherShare), "{run}");
                }
            }
        }
    }
    let out = scene.folder.path().join("0of3");
    let run = segpack!["export", "--check-share", &out, "--rank", "0/3"].ok();
    assert!(
        run.text().contains("ok, the share of rank 0 of 3; "),
        "{run}"
    );
    let run = segpack!["export", "--check-share", &out, "--rank", "1/3"].exits(3);
    assert!(
        run.text().contains("NOT ok, not the share of rank 1 of 3"),
        "{run}"
    );
}

#[test]
fn a_missing_a_foreign_and_a_misshapen_expert_are_named() {
    let scene = Scene::new();
    let fresh = || scene.share("1/4", &["--force"]);
    // rank 1 of 4 has experts 2 and 3 of 8
    let missing = fresh();
    bend(&missing, "layers.0.mlp.experts.2.up_proj", |tensors, _| {
        tensors.retain(|t| !t.name.ends_with("layers.0.mlp.experts.2.up_proj.weight"));
    });
    let run = scene.check(&missing, "1/4").exits(3);
    assert_eq!(kinds(&run), [FindingKind::MissingTensor], "{run}");
    // under the number of an expert of another rank
    let foreign = fresh();
    bend(
        &foreign,
        "layers.1.mlp.experts.3.down_proj",
        |tensors, _| {
            let tensor = tensors
                .iter_mut()
                .find(|t| t.name.contains("layers.1.mlp.experts.3.down_proj"));
            let tensor = tensor.unwrap();
            tensor.name = tensor.name.replace("experts.3", "experts.5");
        },
    );
    let run = scene.check(&foreign, "1/4").exits(3);
    assert_eq!(
        kinds(&run),
        [FindingKind::MissingTensor, FindingKind::OtherShare],
        "{run}"
    );
    assert_eq!(
        run.findings()[1].seen.as_deref(),
        Some("an expert of rank 2")
    );
    let misshapen = fresh();
    bend(
        &misshapen,
        "layers.1.mlp.experts.3.down_proj",
        |tensors, _| {
            let tensor = tensors
                .iter_mut()
                .find(|t| t.name.contains("layers.1.mlp.experts.3.down_proj"));
            tensor.unwrap().shape.reverse();
        },
    );
    let run = scene.check(&misshapen, "1/4").exits(3);
    assert_eq!(kinds(&run), [FindingKind::MisshapedTensor], "{run}");
}

#[test]
fn experts_that_were_exchanged_are_seen_where_there_is_a_pack() {
    let scene = Scene::new();
    let out = scene.share("1/4", &["--max-shard-size", "50MB", "--to", "hf"]);
    let path = shards(&out).remove(0);
    let bytes = fs::read(&path).unwrap();
    let tensors = tensors_of(&bytes);
    let of = |expert: u32| {
        let name = format!("thinker.model.layers.0.mlp.experts.{expert}.up_proj.weight");
        tensors
            .iter()
            .find(|t| t.name == name)
            .unwrap()
            .bytes
            .clone()
    };
    let (two, three) = (of(2), of(3));
    let at = |wanted: &[u8]| {
        bytes
            .windows(wanted.len())
            .position(|w| w == wanted)
            .unwrap()
    };
    let mut exchanged = bytes.clone();
    exchanged[at(&two)..][..two.len()].copy_from_slice(&three);
    exchanged[at(&three)..][..three.len()].copy_from_slice(&two);
    fs::write(&path, exchanged).unwrap();
    // nothing in a header says so
    scene.check(&out, "1/4").ok();
    let run = scene.check_bytes(&out, "1/4").exits(3);
    assert_eq!(kinds(&run), [FindingKind::DamagedTensor; 2], "{run}");
}

#[test]
fn files_that_say_something_else_of_themselves_are_named() {
    let scene = Scene::new();
    let fresh = || scene.share("1/4", &["--force"]);
    let edit = |key: &'static str, value: Value| {
        let out = fresh();
        bend(&out, "layers.0.mlp.experts.2.up_proj", |_, metadata| {
            match value {
                Value::Null => drop(metadata.as_object_mut().unwrap().remove(key)),
                value => metadata[key] = value,
            };
        });
        scene.check(&out, "1/4").exits(3)
    };
    let all = [
        (
            "segpack.expert_parallel_rank",
            json!("2"),
            "its metadata says rank 2 of 4",
        ),
        (
            "segpack.expert_parallel_ranks",
            json!("8"),
            "its metadata says rank 1 of 8",
        ),
        (
            "segpack.expert_parallel_rank",
            Value::Null,
            "a number without a rank",
        ),
        ("segpack.manifest_sha256", json!("00"), "exported from"),
    ];
    for (key, value, words) in all {
        let run = edit(key, value);
        assert!(
            kinds(&run)
                .iter()
                .all(|kind| *kind == FindingKind::OtherShare),
            "{run}"
        );
        assert!(
            run.findings()
                .iter()
                .any(|f| f.seen.as_ref().unwrap().contains(words)),
            "{run}"
        );
    }
    // the map beside them
    let out = fresh();
    let map = out.join("expert_parallel.json");
    let text = fs::read_to_string(&map).unwrap();
    for (before, after) in [
        ("\"rank\": 1", "\"rank\": 2"),
        ("\"experts\": 8", "\"experts\": 9"),
    ] {
        let bent = text.replace(before, after);
        assert_ne!(bent, text);
        fs::write(&map, bent).unwrap();
        assert_eq!(
            kinds(&scene.check(&out, "1/4").exits(3)),
            [FindingKind::OtherShare]
        );
    }
    fs::write(&map, "{}").unwrap();
    assert_eq!(
        kinds(&scene.check(&out, "1/4").exits(3)),
        [FindingKind::OtherShare]
    );
    fs::remove_file(&map).unwrap();
    assert_eq!(
        kinds(&scene.check(&out, "1/4").exits(3)),
        [FindingKind::MissingFile]
    );
    // a whole model is no share
    let whole = scene.folder.path().join("whole");
    segpack![
        "export",
        &scene.pack,
        "--to",
        "qwen3-moe",
        "-o",
        &whole,
        "-q"
    ]
    .ok();
    let run = scene.check(&whole, "0/2").exits(3);
    assert!(
        run.findings()
            .iter()
            .any(|f| f.seen.as_deref() == Some("its metadata names no rank")),
        "{run}"
    );
}

#[test]
fn the_command_line_of_a_check_is_one_of_a_check() {
    let scene = Scene::new();
    let out = scene.share("0/2", &[]);
    segpack!["export", "--check-share", &out]
        .exits(2)
        .says(&["--rank"]);
    segpack!["export", "--rank", "0/2", &scene.pack].exits(2);
    segpack!["export", "--check-share", &out, "--rank", "2/2"].exits(2);
    segpack![
        "export",
        "--check-share",
        &out,
        "--rank",
        "0/2",
        "--to",
        "hf"
    ]
    .exits(2);
    segpack!["export", &scene.pack].exits(2).says(&["--to"]);
    segpack!["export", "--to", "hf", "-o", "x"]
        .exits(2)
        .says(&["PACK"]);
    segpack![
        "export",
        "--check-share",
        scene.folder.path().join("none"),
        "--rank",
        "0/2"
    ]
    .exits(1);
}

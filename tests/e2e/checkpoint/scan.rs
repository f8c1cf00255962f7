//! `scan`: what is in a checkpoint, and whether all of it is there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use segpack_manifests::registry::known_checkpoints;
use serde_json::{Value, json};

use crate::support::checkpoint::{self, Options, fixtures};
use crate::support::cli::{Finding, FindingKind, Run, program, segpack};
use crate::support::folders::temp;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full, tiny_text, write_file};

fn scan(checkpoint: &Path) -> Run {
    segpack!["scan", checkpoint, "--json"]
}

/// Stored tensors, logical parameters, parameters, bytes.
fn counts(inventory: &Value) -> [u64; 4] {
    [
        "stored_tensors",
        "logical_parameters",
        "parameters",
        "tensor_bytes",
    ]
    .map(|key| inventory["counts"][key].as_u64().unwrap())
}

/// Tensors and bytes of each component.
fn components(inventory: &Value) -> BTreeMap<String, (u64, u64)> {
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for class in inventory["classes"].as_array().unwrap() {
        let sum = sums
            .entry(class["component"].as_str().unwrap().to_owned())
            .or_default();
        *sum = (
            sum.0 + class["tensors"].as_u64().unwrap(),
            sum.1 + class["bytes"].as_u64().unwrap(),
        );
    }
    sums
}

#[test]
fn the_real_checkpoint_ties_out() {
    let folder = temp();
    let totals = checkpoint::write(folder.path(), &Options::default()).unwrap();
    assert_eq!(
        (totals.tensors, totals.shards, totals.bytes),
        (28_010, 15, 70_519_637_090)
    );
    // the headers are as long as the published ones, so every offset is too
    for shard in &known_checkpoints().unwrap()[0].shards {
        assert_eq!(
            fs::metadata(folder.path().join(&shard.file)).unwrap().len(),
            shard.bytes,
            "{}",
            shard.file
        );
    }

    let inventory = scan(folder.path()).ok().json();
    assert_eq!(
        counts(&inventory),
        [28_010, 2_034, 35_259_818_545, 70_519_637_090]
    );
    assert_eq!(
        (&inventory["audited"], &inventory["findings"]),
        (&json!(true), &json!([]))
    );
    assert_eq!(inventory["tensors"].as_array().unwrap().len(), 28_010);

    let classes: Value =
        serde_json::from_slice(&fs::read(fixtures().join("qwen3-omni/classes.json")).unwrap())
            .unwrap();
    let mut published: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (module, sums) in classes["modules"].as_object().unwrap() {
        let component = match module.as_str() {
            "thinker.audio_tower" => "thinker.audio",
            "thinker.visual" => "thinker.vision",
            "talker.model" | "talker.other" => "talker.text",
            same => same,
        };
        let sum = published.entry(component.to_owned()).or_default();
        *sum = (
            sum.0 + sums["tensors"].as_u64().unwrap(),
            sum.1 + sums["bytes"].as_u64().unwrap(),
        );
    }
    assert_eq!(components(&inventory), published);

    // the text decoders, row by row
    let rows = inventory["classes"].as_array().unwrap();
    let published = classes["classes"].as_array().unwrap();
    for (component, prefix) in [
        ("thinker.text", "thinker.model."),
        ("talker.text", "talker.model."),
    ] {
        for (class, part) in [
            ("experts", "experts."),
            ("router", "router"),
            ("final_norm", "norm"),
        ] {
            let inside = |c: &&Value| {
                c["class"]
                    .as_str()
                    .unwrap()
                    .strip_prefix(prefix)
                    .is_some_and(|p| p.starts_with(part))
            };
            let add = |sum: (u64, u64), c: &Value| {
                (
                    sum.0 + c["tensors"].as_u64().unwrap(),
                    sum.1 + c["bytes"].as_u64().unwrap(),
                )
            };
            let wanted = published.iter().filter(inside).fold((0, 0), add);
            let row = rows
                .iter()
                .find(|r| r["component"] == component && r["class"] == class)
                .unwrap();
            assert_eq!(add((0, 0), row), wanted, "{component} {class}");
        }
    }

    let text = segpack!["scan", folder.path(), "--bytes"].ok();
    for number in ["28,010", "2,034", "35,259,818,545", "70,519,637,090"] {
        assert!(text.text().contains(number), "{text}");
    }
}

#[test]
fn fewer_layers_are_complete_as_their_config_says() {
    let folder = temp();
    let options = Options {
        layers: Some(2),
        talker_layers: Some(1),
        tower_layers: Some(3),
        limit: 1_000_000_000,
        ..Options::default()
    };
    checkpoint::write(&folder.path().join("a"), &options).unwrap();
    let inventory = scan(&folder.path().join("a")).ok().json();
    assert_eq!(inventory["audited"], json!(true));
    let options = Options {
        thinker_only: true,
        ..options
    };
    checkpoint::write(&folder.path().join("b"), &options).unwrap();
    let alone = scan(&folder.path().join("b")).ok().json();
    let only: Vec<_> = components(&alone).into_keys().collect();
    assert_eq!(only, ["thinker.audio", "thinker.text", "thinker.vision"]);
    assert!(counts(&alone)[0] < counts(&inventory)[0]);
}

/// Scans what became of a tiny checkpoint.
fn scan_bent(tiny: &Tiny) -> Run {
    let folder = temp();
    scan(&tiny.write(folder.path()))
}

fn only(run: &Run) -> Finding {
    let mut findings = run.findings();
    assert_eq!(findings.len(), 1, "{run}");
    findings.remove(0)
}

#[test]
fn one_tensor_that_is_gone_is_named() {
    let whole = Tiny::full();
    let names: Vec<String> = whole.tensors().map(|t| t.name.clone()).collect();
    for name in names.iter().step_by(17) {
        let mut tiny = whole.clone();
        tiny.remove(name);
        let run = scan_bent(&tiny).exits(3);
        let finding = only(&run);
        assert_eq!(
            (finding.kind, finding.tensor.as_ref()),
            (FindingKind::MissingTensor, Some(name)),
            "{run}"
        );
    }
}

#[test]
fn one_tensor_of_another_name_is_two_findings() {
    let mut tiny = Tiny::text();
    let name = "thinker.model.layers.1.mlp.experts.11.up_proj.weight";
    let other = "thinker.model.layers.1.mlp.experts.12.up_proj.weight";
    tiny.tensor(name).name = other.to_owned();
    let run = scan_bent(&tiny).exits(3);
    let found: Vec<_> = run
        .findings()
        .into_iter()
        .map(|f| (f.kind, f.tensor.unwrap()))
        .collect();
    assert_eq!(
        found,
        [
            (FindingKind::MissingTensor, name.to_owned()),
            (FindingKind::ExtraTensor, other.to_owned())
        ]
    );

    tiny.tensor(other).name = "thinker.model.layers.1.mlp.experts.x".to_owned();
    let run = scan_bent(&tiny).exits(3);
    let kinds: Vec<_> = run.findings().into_iter().map(|f| f.kind).collect();
    assert!(kinds.contains(&FindingKind::UnclassifiedTensor), "{run}");
}

#[test]
fn one_tensor_of_another_shape_or_dtype_is_named() {
    let name = "thinker.model.layers.2.self_attn.q_proj.weight";
    let mut tiny = Tiny::text();
    tiny.tensor(name).shape.reverse();
    let finding = only(&scan_bent(&tiny).exits(3));
    assert_eq!(
        (finding.kind, finding.tensor.as_deref()),
        (FindingKind::MisshapedTensor, Some(name))
    );
    assert_eq!(finding.wanted.as_deref(), Some("[128, 64]"));

    let mut tiny = Tiny::text();
    let tensor = tiny.tensor(name);
    tensor.dtype = "F16".to_owned();
    let finding = only(&scan_bent(&tiny).exits(3));
    assert_eq!(
        (finding.kind, finding.tensor.as_deref()),
        (FindingKind::WrongDtype, Some(name))
    );
}

#[test]
fn every_spelling_of_the_config_is_understood() {
    let whole = Tiny::full();
    let wanted = counts(&scan(&tiny_full()).ok().json());

    // transformers 5
    let mut new = whole.clone();
    for pointer in ["/thinker_config/text_config", "/talker_config/text_config"] {
        let text = new
            .config
            .pointer_mut(pointer)
            .unwrap()
            .as_object_mut()
            .unwrap();
        let experts = text.remove("num_experts").unwrap();
        text.insert("num_local_experts".to_owned(), experts);
        let mut rope = text
            .remove("rope_scaling")
            .filter(Value::is_object)
            .unwrap_or_else(|| json!({}));
        if let Some(theta) = text.remove("rope_theta") {
            rope["rope_theta"] = theta;
        }
        text.insert("rope_parameters".to_owned(), rope);
    }
    // transformers 4
    let mut old = whole.clone();
    let keys = old.config.as_object_mut().unwrap();
    let dtype = keys.remove("dtype").unwrap();
    keys.insert("torch_dtype".to_owned(), dtype);
    // by architecture alone
    let mut by_architecture = whole.clone();
    by_architecture
        .config
        .as_object_mut()
        .unwrap()
        .remove("model_type");
    for tiny in [new, old, by_architecture] {
        let inventory = scan_bent(&tiny).ok().json();
        assert_eq!(
            (counts(&inventory), &inventory["audited"]),
            (wanted, &json!(true))
        );
    }

    // a thinker saved on its own has its config at the top
    let mut alone = Tiny::text();
    alone.config = alone.config["thinker_config"].take();
    let inventory = scan_bent(&alone).ok().json();
    assert_eq!(counts(&inventory), counts(&scan(&tiny_text()).ok().json()));
}

#[test]
fn plain_moe_with_dense_layer_biases_and_tied_head() {
    let tiny = Tiny::qwen3_moe(Qwen3Moe::default());
    let inventory = scan_bent(&tiny).ok().json();
    assert_eq!(
        (&inventory["family"], &inventory["audited"]),
        (&json!("qwen3_moe"), &json!(true))
    );
    // each of three layers: 6 experts x 3 matrices become 2
    let stored = tiny.tensors().count() as u64;
    assert_eq!(counts(&inventory)[..2], [stored, stored - 3 * 16]);

    // a tied head may be there
    let mut with_head = tiny.clone();
    let mut head = with_head.tensor("model.embed_tokens.weight").clone();
    head.name = "lm_head.weight".to_owned();
    with_head.shards[0].1.push(head);
    scan_bent(&with_head).ok();
    // an untied one must be
    let mut untied = tiny;
    untied.config["tie_word_embeddings"] = json!(false);
    let finding = only(&scan_bent(&untied).exits(3));
    assert_eq!(finding.tensor.as_deref(), Some("lm_head.weight"));
}

#[test]
fn stacked_experts_are_the_same_parameters() {
    for tiny in [
        Tiny::full(),
        Tiny::text(),
        Tiny::qwen3_moe(Qwen3Moe::default()),
    ] {
        let single = counts(&scan_bent(&tiny).ok().json());
        let stacked = counts(&scan_bent(&tiny.stacked()).ok().json());
        assert_eq!(single[1..], stacked[1..]);
        // all of it is what a loader prints then
        assert_eq!(stacked[0], stacked[1]);
        assert!(stacked[0] < single[0]);
    }
}

#[test]
fn other_dtypes_follow_the_config() {
    for dtype in ["F32", "F16"] {
        let inventory = scan_bent(&Tiny::text().converted(dtype)).ok().json();
        assert_eq!(inventory["tensors"][0]["dtype"], dtype);
    }
}

#[test]
fn a_single_file_is_a_checkpoint() {
    let (folder, tiny) = (temp(), Tiny::text().single());
    let wanted = counts(&scan(&tiny_text()).ok().json());
    tiny.write(folder.path());
    for place in [
        folder.path().to_owned(),
        folder.path().join("model.safetensors"),
    ] {
        let inventory = scan(&place).ok().json();
        assert_eq!(
            (counts(&inventory), &inventory["audited"]),
            (wanted, &json!(true))
        );
    }
    // without config.json the names tell the family, but not whether all are there
    fs::remove_file(folder.path().join("config.json")).unwrap();
    let inventory = scan(&folder.path().join("model.safetensors"))
        .exits(3)
        .json();
    assert_eq!(
        (counts(&inventory), &inventory["audited"]),
        (wanted, &json!(false))
    );
    assert_eq!(inventory["family"], "qwen3_omni_moe");
    assert_eq!(inventory["findings"][0]["kind"], "not_audited");
}

#[cfg(unix)]
#[test]
fn the_hub_cache_is_found_wherever_it_is() {
    let (folder, revision) = (temp(), "0123456789abcdef0123456789abcdef01234567");
    let cache = folder.path().join("hf/hub");
    let snapshot = Tiny::text().write_hub(&cache, "Qwen/Tiny-Omni", revision);
    let with = |name: &str, value: &Path, argument: &str| {
        Run::of(
            program()
                .env(name, value)
                .args(["scan", argument, "--json"])
                .current_dir(folder.path()),
        )
    };
    let by_repo = with("HF_HUB_CACHE", &cache, "Qwen/Tiny-Omni").ok().json();
    assert_eq!(
        by_repo["provenance"],
        json!({"repo": "Qwen/Tiny-Omni", "revision": revision})
    );
    assert_eq!(by_repo["audited"], json!(true));
    for shard in by_repo["shards"].as_array().unwrap() {
        let path = shard["path"].as_str().unwrap();
        let blob = fs::canonicalize(snapshot.join(path)).unwrap();
        assert_eq!(
            shard["hub_sha256"],
            blob.file_name().unwrap().to_string_lossy().as_ref()
        );
    }
    assert_eq!(
        with("HF_HOME", &folder.path().join("hf"), "Qwen/Tiny-Omni")
            .ok()
            .json(),
        by_repo
    );
    let home = folder.path().join("home");
    fs::create_dir_all(home.join(".cache")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("hf"), home.join(".cache/huggingface")).unwrap();
    assert_eq!(with("HOME", &home, "Qwen/Tiny-Omni").ok().json(), by_repo);
    let with_revision = format!("Qwen/Tiny-Omni@{revision}");
    assert_eq!(
        with("HF_HUB_CACHE", &cache, &with_revision).ok().json(),
        by_repo
    );
    assert_eq!(scan(&snapshot).ok().json(), by_repo);

    // the only snapshot serves where nothing names another
    let reference = cache.join("models--Qwen--Tiny-Omni/refs/main");
    fs::write(&reference, "89abcdef").unwrap();
    with("HF_HUB_CACHE", &cache, "Qwen/Tiny-Omni")
        .exits(3)
        .says(&["refs/main", "89abcdef", revision]);
    fs::remove_file(&reference).unwrap();
    assert_eq!(
        with("HF_HUB_CACHE", &cache, "Qwen/Tiny-Omni").ok().json(),
        by_repo
    );

    with("HF_HUB_CACHE", &cache, "Qwen/Other")
        .exits(3)
        .says(&["Qwen/Other", "hf download"]);
    with("HF_HUB_CACHE", &cache, "Qwen/Tiny-Omni@v2")
        .exits(3)
        .says(&["v2", revision]);
}

/// As under `nohup`: nothing changes, not even at the second one.
#[cfg(target_os = "linux")]
#[test]
fn ignored_signals_stay_ignored() {
    use std::io::Read;
    use std::process::{Command, Stdio};
    for (trap, status) in [("trap '' TERM; ", Some(0)), ("", Some(143))] {
        let program = program();
        let mut child = Command::new("env")
            .args(["--default-signal=TERM", "sh", "-c"])
            .arg(format!("{trap}exec \"$0\" scan \"$1\" --json"))
            .arg(program.get_program())
            .arg(tiny_full())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // its report is longer than a pipe holds, so now it waits
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut [0]).unwrap();
        for _ in 0..2 {
            let kill = Command::new("kill")
                .args(["-TERM", &child.id().to_string()])
                .status()
                .unwrap();
            assert!(kill.success());
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        out.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(child.wait().unwrap().code(), status, "{trap:?}");
    }
}

#[test]
fn a_download_folder_tells_its_origin() {
    let (folder, revision) = (temp(), "0123456789abcdef0123456789abcdef01234567");
    Tiny::text().write_download(folder.path(), revision);
    write_file(&folder.path().join(".git/HEAD"), b"ref: refs/heads/main\n");
    let inventory = scan(folder.path()).ok().json();
    assert_eq!(inventory["provenance"], json!({"revision": revision}));
    let shards = inventory["shards"].as_array().unwrap();
    assert!(shards.iter().all(|s| s["hub_sha256"].is_string()));
    let left: Vec<_> = inventory["left_out"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| &l["path"])
        .collect();
    assert_eq!(left, [".cache", ".git"]);
}

/// Nothing says which dtype is right, but several are worth a look.
#[test]
fn several_dtypes_are_a_warning_where_the_config_names_none() {
    let folder = temp();
    let mut tiny = Tiny::qwen3_moe(Qwen3Moe::default());
    tiny.config.as_object_mut().unwrap().remove("torch_dtype");
    let one = tiny.write(&folder.path().join("one"));
    assert_eq!(segpack!["scan", &one, "--json"].ok().findings(), []);
    let tensors = tiny.tensors().count();
    let norm = tiny.tensor("model.norm.weight");
    norm.bytes = norm.bytes.repeat(2);
    norm.dtype = "F32".to_owned();
    let two = tiny.write(&folder.path().join("two"));
    let findings = segpack!["scan", &two, "--json"].ok().findings();
    let [finding] = &findings[..] else {
        panic!("{findings:?}")
    };
    assert_eq!(finding.kind, FindingKind::WrongDtype);
    let seen = finding.seen.as_deref().unwrap();
    let counts = format!("\"BF16\": {}, \"F32\": 1", tensors - 1);
    assert!(seen.contains(&counts), "{seen}");
}

#[test]
fn roles_are_counted_by_component() {
    let folder = temp();
    let size = Qwen3Moe::default();
    let checkpoint = Tiny::qwen3_moe(size).write(&folder.path().join("checkpoint"));
    let inventory = segpack!["scan", &checkpoint, "--json"].ok().json();
    let roles = inventory["roles"].as_array().unwrap();
    let of = |role: &str| roles.iter().find(|r| r["role"] == role).unwrap();
    // all layers but the first are sparse
    let experts = (size.layers - 1) * size.experts;
    for role in ["expert_gate", "expert_up", "expert_down"] {
        let parameters = experts * size.hidden * size.width;
        assert_eq!(of(role)["tensors"], experts, "{role}");
        assert_eq!(of(role)["parameters"], parameters, "{role}");
        assert_eq!(of(role)["bytes"], 2 * parameters, "{role}");
    }
    let all: u64 = roles.iter().map(|r| r["tensors"].as_u64().unwrap()).sum();
    assert_eq!(inventory["counts"]["stored_tensors"], all);
}

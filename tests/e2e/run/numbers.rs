//! Numbers that no model has: in a checkpoint before it is packed, in a pack's `config.json`, in
//! its manifest. Each is one clear error, never a panic, an abort, a huge allocation or nonsense at
//! exit status 0.

use std::fs;
use std::path::{Path, PathBuf};

use segpack_manifests::Pack;
use segpack_manifests::folder::PackModel;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{Run, program, segpack};
use crate::support::damage::{edit_manifest, list, reseal};
use crate::support::folders::{copy, temp};
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full};

/// Values that no number of a model has, as JSON.
fn hostile() -> Vec<Value> {
    vec![
        json!(0),
        json!(-1),
        json!(1e308),
        json!(-1e308),
        json!(1e-320),
        json!(2.5),
        json!(3.0),
        json!(u64::MAX),
        json!(1_u64 << 63),
        json!(1_u64 << 32),
        json!(i64::MIN),
        json!("NaN"),
        json!("12"),
        json!(true),
        json!([1]),
        json!({"a": 1}),
    ]
}

/// The counts and sizes of a text decoder: of none may any hostile value be believed.
const SIZES: [&str; 10] = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "vocab_size",
    "max_position_embeddings",
];

fn model() -> Tiny {
    let mut tiny = Tiny::qwen3_moe(Qwen3Moe::default());
    tiny.config["max_position_embeddings"] = json!(4096);
    tiny
}

/// A pack of [`model`] and the folder that holds it.
fn sound() -> (TempDir, PathBuf) {
    let folder = temp();
    let checkpoint = model().write(&folder.path().join("checkpoint"));
    let pack = folder.path().join("pack");
    segpack!["pack", &checkpoint, "-o", &pack].ok();
    (folder, pack)
}

/// Changes the pack's `config.json`, and every digest above it.
fn edit_config(pack: &Path, edit: impl FnOnce(&mut Value)) {
    let path = pack.join("source/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    reseal_verbatim(pack);
}

/// As [`reseal`], also what the manifest says of the files as they were in the checkpoint.
fn reseal_verbatim(pack: &Path) {
    reseal(pack);
    edit_manifest(pack, |document| {
        let files = list(document, "source_files").iter_mut();
        for file in files.filter(|f| f["kind"] == "file") {
            file["length"] = file["stored_length"].clone();
            file["sha256"] = file["stored_sha256"].clone();
        }
    });
}

fn restore(sound: &Path, pack: &Path) {
    for file in ["manifest.json", "SHA256SUMS", "source/config.json"] {
        fs::copy(sound.join(file), pack.join(file)).unwrap();
    }
}

/// Runs with little address space, so that an allocation by a hostile number would fail loudly.
fn limited(arguments: &[&str], pack: &Path) -> Run {
    let mut command = program();
    let mut arguments = arguments.iter();
    command.args(arguments.next()).arg(pack).args(arguments);
    command.env("RAYON_NUM_THREADS", "1");
    Run::of(&mut command)
}

/// Exit status 3, and an error that has all these words: nothing of a panic.
fn refused(run: Run, words: &[&str]) {
    let run = run.exits(3).says(words);
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
}

#[test]
fn no_hostile_size_is_believed_in_a_packs_config() {
    let (_folder, pack) = sound();
    let work = temp();
    let bent = work.path().join("pack");
    copy(&pack, &bent);
    for key in SIZES {
        for value in hostile() {
            let is_null_meant = value.is_null();
            assert!(!is_null_meant);
            restore(&pack, &bent);
            edit_config(&bent, |config| config[key] = value.clone());
            let opened = Pack::open(&bent).unwrap();
            let decoder = PackModel::read(&opened).and_then(|model| model.text_decoder());
            let error = decoder.expect_err(&format!("{key} = {value}")).to_string();
            assert!(error.contains("config.json"), "{key} = {value}: {error}");
        }
    }
}

#[test]
fn each_number_is_bounded_by_what_a_model_can_have() {
    let (_folder, pack) = sound();
    let work = temp();
    let bent = work.path().join("pack");
    copy(&pack, &bent);
    for (key, value, wanted) in [
        ("rms_norm_eps", json!(0), "rms_norm_eps is 0, wanted"),
        (
            "rms_norm_eps",
            json!(-1e-6),
            "rms_norm_eps is -1e-6, wanted",
        ),
        (
            "rms_norm_eps",
            json!(1e308),
            "rms_norm_eps is 1e+308, wanted",
        ),
        (
            "rms_norm_eps",
            json!(1e-320),
            "rms_norm_eps is 1e-320, wanted",
        ),
        (
            "rms_norm_eps",
            json!("NaN"),
            "rms_norm_eps is \"NaN\", wanted",
        ),
        ("rope_theta", json!(0), "rope_theta is 0, wanted"),
        ("rope_theta", json!(-10000), "rope_theta is -10000, wanted"),
        ("rope_theta", json!(1e308), "rope_theta is 1e+308, wanted"),
        ("rope_theta", json!(0.5), "rope_theta is 0.5, wanted"),
        (
            "rope_theta",
            json!([1]),
            "rope_theta is a list of 1, wanted",
        ),
        (
            "num_experts_per_tok",
            json!(7),
            "wanted from 1 to the 6 experts",
        ),
        ("num_key_value_heads", json!(3), "a divisor of the 4 heads"),
        (
            "head_dim",
            json!(15),
            "head_dim is 15, wanted an even number",
        ),
        ("decoder_sparse_step", json!(0), "decoder_sparse_step is 0"),
        ("mlp_only_layers", json!([-1]), "mlp_only_layers is a list"),
        (
            "attention_bias",
            json!(1),
            "attention_bias is 1, wanted true or false",
        ),
        ("norm_topk_prob", json!("yes"), "norm_topk_prob is \"yes\""),
        (
            "hidden_act",
            json!("gelu"),
            "hidden_act is \"gelu\", wanted \"silu\"",
        ),
        (
            "use_sliding_window",
            json!(true),
            "use_sliding_window is true",
        ),
        (
            "partial_rotary_factor",
            json!(0.5),
            "partial_rotary_factor is 0.5",
        ),
        (
            "eos_token_id",
            json!(100),
            "eos_token_id is 100, wanted token ids below the vocabulary of 100",
        ),
        ("eos_token_id", json!(-1), "eos_token_id is -1"),
        (
            "bos_token_id",
            json!([0, 2.5]),
            "bos_token_id is a list of 2",
        ),
        (
            "rope_scaling",
            json!({"factor": 0, "rope_type": "default"}),
            "rope_scaling.factor is 0",
        ),
        (
            "rope_scaling",
            json!({"mrope_section": [4, 4, 0]}),
            "rope_scaling.mrope_section",
        ),
        (
            "rope_scaling",
            json!({"mrope_section": [4, 4]}),
            "rope_scaling.mrope_section",
        ),
        (
            "rope_scaling",
            json!({"mrope_section": [u64::MAX, 1, 8]}),
            "rope_scaling.mrope_section",
        ),
        (
            "rope_scaling",
            json!(7),
            "rope_scaling is 7, wanted an object",
        ),
        (
            "rope_scaling",
            json!({"rope_type": 1}),
            "rope_scaling.rope_type is 1, wanted a text",
        ),
    ] {
        restore(&pack, &bent);
        edit_config(&bent, |config| config[key] = value.clone());
        let run = ["run", "--prompt-ids", "1,2", "--max-new-tokens", "1"];
        refused(limited(&run, &bent), &["config.json", wanted]);
    }
    // as does what is not there: no class of transformers has these numbers in a default
    restore(&pack, &bent);
    segpack!["run", &bent, "--prompt-ids", "1,2", "--max-new-tokens", "1"].ok();
}

#[test]
fn a_hostile_checkpoint_is_refused_before_it_is_packed() {
    let folder = temp();
    let out = folder.path().join("pack");
    for (number, (key, value)) in [
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(u64::MAX)),
        ("num_experts", json!(1e308)),
        ("num_experts_per_tok", json!(0)),
        ("num_experts_per_tok", json!(1_000_000)),
        ("hidden_size", json!(-48)),
        ("head_dim", json!(16.0)),
        ("vocab_size", json!(null)),
        ("rms_norm_eps", json!(0.0)),
        ("rms_norm_eps", json!(1e308)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!("inf")),
    ]
    .into_iter()
    .enumerate()
    {
        let mut tiny = model();
        tiny.config[key] = value;
        let checkpoint = tiny.write(&folder.path().join(format!("checkpoint-{number}")));
        // a vocabulary that is not given is the class's, which the tensors do not have
        segpack!["pack", &checkpoint, "-o", &out].exits(3);
        assert!(!out.exists());
    }
}

#[test]
fn all_who_use_numbers_refuse_a_manifest_of_another_model() {
    let (_folder, pack) = sound();
    let work = temp();
    let bent = work.path().join("pack");
    copy(&pack, &bent);
    let out = work.path().join("out");
    let out = out.to_str().unwrap();
    let trace = tiny_full()
        .parent()
        .unwrap()
        .join("trace/tiny-full.float32.safetensors");
    let trace = trace.to_str().unwrap();
    let users: [&[&str]; 8] = [
        &["run", "--prompt-ids", "1"],
        &["validate", "--reference", trace],
        &["bench", "--prompt", "2", "--tokens", "1"],
        &["export", "--to", "hf", "-o", out],
        &["export", "--to", "qwen3-moe", "-o", out],
        &["export", "--to", "npy", "-o", out],
        &["export", "--to", "safetensors", "-o", "out.safetensors"],
        &["export", "--to", "gguf", "-o", "out.gguf"],
    ];
    for user in users {
        edit_manifest(&bent, |m| {
            m["model"]["text"]["experts_per_token"] = json!(3);
        });
        let words = ["model.text.experts_per_token is 3", "config.json"];
        refused(limited(user, &bent), &words);
        restore(&pack, &bent);
    }
    assert!(!Path::new(out).exists());
    for (key, value) in [
        ("hidden_size", json!(49)),
        ("layers", json!(3)),
        ("moe_layers", json!(4)),
        ("experts", json!(5)),
        ("moe_intermediate", json!(21)),
        ("intermediate", json!(41)),
        ("heads", json!(8)),
        ("kv_heads", json!(4)),
        ("head_dim", json!(8)),
        ("vocab", json!(99)),
        ("rms_norm_eps", json!(1e-5)),
        ("rope_theta", json!(10001.0)),
        ("rope_type", json!("yarn")),
        ("attention_bias", json!(false)),
        ("norm_topk_prob", json!(false)),
        ("tie_word_embeddings", json!(false)),
    ] {
        edit_manifest(&bent, |m| m["model"]["text"][key] = value.clone());
        let field = format!("model.text.{key} is {value} in the manifest");
        refused(limited(users[0], &bent), &["config.json", &field]);
        restore(&pack, &bent);
    }
    // another family, and numbers that are gone
    edit_manifest(&bent, |m| m["model"]["family"] = json!("qwen3_omni_moe"));
    let words = ["model.family", "qwen3_omni_moe", "config.json"];
    refused(limited(users[0], &bent), &words);
    restore(&pack, &bent);
    edit_manifest(&bent, |m| m["model"]["text"] = json!(null));
    refused(limited(users[0], &bent), &["model.text", "config.json"]);
}

#[test]
fn tensors_of_other_shapes_than_the_numbers_are_refused_before_anything_is_allocated() {
    let (_folder, pack) = sound();
    let work = temp();
    let bent = work.path().join("pack");
    copy(&pack, &bent);
    // numbers that agree with each other, and with no tensor
    for (key, name, value) in [
        ("hidden_size", "hidden_size", 4_294_967_294_u64),
        ("vocab_size", "vocab", 4_294_967_295),
        ("moe_intermediate_size", "moe_intermediate", 4_294_967_295),
        ("intermediate_size", "intermediate", 1),
        ("num_attention_heads", "heads", 1_048_576),
        ("num_hidden_layers", "layers", 3),
        ("num_experts", "experts", 5),
        ("head_dim", "head_dim", 32),
    ] {
        restore(&pack, &bent);
        edit_config(&bent, |config| config[key] = json!(value));
        edit_manifest(&bent, |m| {
            m["model"]["text"][name] = json!(value);
            if key == "num_hidden_layers" {
                m["model"]["text"]["moe_layers"] = json!(2);
            }
        });
        let run = ["run", "--prompt-ids", "1,2", "--max-new-tokens", "1"];
        refused(limited(&run, &bent), &["the pack cannot be run"]);
    }
    // flags that tensors show
    restore(&pack, &bent);
    edit_config(&bent, |config| config["attention_bias"] = json!(false));
    edit_manifest(&bent, |m| {
        m["model"]["text"]["attention_bias"] = json!(false);
    });
    let run = ["run", "--prompt-ids", "1,2"];
    refused(
        limited(&run, &bent),
        &["q projection of layer 0 has a bias; the config gives none"],
    );
    restore(&pack, &bent);
    edit_config(&bent, |config| config["mlp_only_layers"] = json!([]));
    edit_manifest(&bent, |m| m["model"]["text"]["moe_layers"] = json!(4));
    refused(
        limited(&run, &bent),
        &["layer 0 has a dense MLP; the config gives it experts"],
    );
    // as many as before, others
    restore(&pack, &bent);
    edit_config(&bent, |config| config["mlp_only_layers"] = json!([1]));
    refused(
        limited(&run, &bent),
        &["layer 0 has a dense MLP; the config gives it experts"],
    );
}

#[test]
fn numbers_of_generation_and_tokenizer_configs_are_bounded_too() {
    let folder = temp();
    let checkpoint = Tiny::full().write(&folder.path().join("checkpoint"));
    let pack = folder.path().join("pack");
    segpack!["pack", &checkpoint, "-o", &pack].ok();
    let bend = |name: &str, text: &str| {
        let path = pack.join("source").join(name);
        let before = fs::read(&path).unwrap();
        fs::write(&path, text).unwrap();
        reseal_verbatim(&pack);
        (path, before)
    };
    for (text, word) in [
        (r#"{"eos_token_id": -1}"#, "eos_token_id"),
        (r#"{"eos_token_id": 1e308}"#, "eos_token_id"),
        (r#"{"eos_token_id": 4294967296}"#, "eos_token_id"),
        (r#"{"eos_token_id": "NaN"}"#, "eos_token_id"),
        (r#"{"eos_token_id": [1, null]}"#, "eos_token_id"),
        (r#"{"eos_token_id": 1000000}"#, "outside the embedding"),
        (r#"{"eos_token_id": NaN}"#, "generation_config.json"),
    ] {
        let (path, before) = bend("generation_config.json", text);
        let run = ["run", "--prompt", "Hi", "--max-new-tokens", "1"];
        refused(limited(&run, &pack), &[word]);
        fs::write(path, before).unwrap();
    }
    for id in ["-1", "1e308", "4294967296", "2.5", "many", ""] {
        let text = format!(r#"{{"added_tokens_decoder": {{"{id}": {{"content": "<x>"}}}}}}"#);
        let (path, before) = bend("tokenizer_config.json", &text);
        let run = ["run", "--prompt", "Hi", "--max-new-tokens", "1"];
        refused(limited(&run, &pack), &["tokenizer_config.json"]);
        fs::write(path, before).unwrap();
    }
    reseal_verbatim(&pack);
    segpack!["run", &pack, "--prompt", "Hi", "--max-new-tokens", "1"].ok();
}

//! GGUF files: what llama.cpp will read is what the pack holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::gguf::{Array, Header, TensorType, Value};
use segpack_formats::numeric::ggml::BlockType;
use serde_json::json;
use tempfile::TempDir;

use crate::support::cli::{Run, packed, segpack};
use crate::support::damage::flip;
use crate::support::folders::{contents, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::{Qwen3Moe, Tensor, Tiny, tiny_full, tiny_text};

/// A file as its reader has it.
pub(super) struct Gguf {
    pub(super) header: Header,
    bytes: Vec<u8>,
}

impl Gguf {
    pub(super) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let header = Header::read(&mut &bytes[..], bytes.len() as u64).unwrap();
        Self { header, bytes }
    }

    pub(super) fn data(&self, name: &str) -> &[u8] {
        let tensor = self
            .header
            .tensor(name)
            .unwrap_or_else(|| panic!("no tensor {name}"));
        let start = (self.header.data_start + tensor.offset) as usize;
        &self.bytes[start..start + tensor.length as usize]
    }

    fn kind(&self, name: &str) -> TensorType {
        self.header.tensor(name).unwrap().kind
    }

    fn keys(&self) -> Vec<&str> {
        self.header
            .metadata
            .iter()
            .map(|(key, _)| key.as_str())
            .collect()
    }

    fn texts(&self, key: &str) -> &[String] {
        match self.header.get(key) {
            Some(Value::Array(Array::Text(texts))) => texts,
            other => panic!("{key} is {other:?}"),
        }
    }
}

/// The bytes of a file without the name of the pack that it is of.
fn anonymous(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    let key = b"segpack.manifest_sha256";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap();
    let value = at + key.len() + 4 + 8; // behind its type and its length
    bytes[value..value + 64].fill(b'0');
    bytes
}

pub(super) fn export(pack: &Path, out: &Path, options: &[&str]) -> Run {
    let mut arguments = vec![
        "export".into(),
        pack.into(),
        "--to".into(),
        "gguf".into(),
        "-o".into(),
        out.into(),
    ];
    arguments.extend(options.iter().map(Into::into));
    crate::support::cli::run(&arguments)
}

/// Asserts that it went well and said all of this.
#[track_caller]
pub(super) fn printed(run: Run, words: &[&str]) {
    let run = run.ok();
    for word in words {
        assert!(
            run.text().contains(word),
            "stdout does not say {word:?}\n{run}"
        );
    }
}

/// Packs, exports and reads.
fn exported(checkpoint: &Path, options: &[&str]) -> Gguf {
    let folder = temp();
    let out = folder.path().join("model.gguf");
    export(&packed(checkpoint, folder.path()), &out, options).ok();
    Gguf::read(&out)
}

/// A checkpoint in memory, written, packed, and what its export said.
fn attempt(tiny: &Tiny, options: &[&str]) -> (Run, TempDir) {
    let folder = temp();
    let checkpoint = tiny.write(&folder.path().join("checkpoint"));
    let pack = packed(&checkpoint, folder.path());
    (
        export(&pack, &folder.path().join("model.gguf"), options),
        folder,
    )
}

fn widened(bf16: &[u8]) -> Vec<u8> {
    bf16.chunks_exact(2)
        .flat_map(|v| [0, 0, v[0], v[1]])
        .collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

/// Where each tensor of a file comes from: the names of its parts, and whether it is always F32.
fn sources(layers: u64, experts: u64) -> BTreeMap<String, (Vec<String>, bool)> {
    let mut all = BTreeMap::new();
    let mut add =
        |to: String, from: Vec<String>, f32| all.insert(format!("{to}.weight"), (from, f32));
    add(
        "token_embd".to_owned(),
        vec!["thinker.model.embed_tokens.weight".to_owned()],
        false,
    );
    add(
        "output_norm".to_owned(),
        vec!["thinker.model.norm.weight".to_owned()],
        true,
    );
    add(
        "output".to_owned(),
        vec!["thinker.lm_head.weight".to_owned()],
        false,
    );
    for layer in 0..layers {
        let from = format!("thinker.model.layers.{layer}");
        for (to, part, f32) in [
            ("attn_norm", "input_layernorm", true),
            ("attn_q", "self_attn.q_proj", false),
            ("attn_k", "self_attn.k_proj", false),
            ("attn_v", "self_attn.v_proj", false),
            ("attn_output", "self_attn.o_proj", false),
            ("attn_q_norm", "self_attn.q_norm", true),
            ("attn_k_norm", "self_attn.k_norm", true),
            ("ffn_norm", "post_attention_layernorm", true),
            ("ffn_gate_inp", "mlp.gate", true),
        ] {
            add(
                format!("blk.{layer}.{to}"),
                vec![format!("{from}.{part}.weight")],
                f32,
            );
        }
        for (to, part) in [
            ("ffn_gate_exps", "gate"),
            ("ffn_up_exps", "up"),
            ("ffn_down_exps", "down"),
        ] {
            let parts = (0..experts).map(|e| format!("{from}.mlp.experts.{e}.{part}_proj.weight"));
            add(format!("blk.{layer}.{to}"), parts.collect(), false);
        }
    }
    all
}

#[test]
fn every_tensor_is_the_sources_and_experts_are_stacked_in_order() {
    for (checkpoint, tiny, experts) in [
        (tiny_full(), Tiny::full(), 8),
        (tiny_text(), Tiny::text(), 12),
    ] {
        let gguf = exported(&checkpoint, &[]);
        let (wanted, source) = (sources(3, experts), tiny.by_name());
        let names: Vec<&str> = gguf
            .header
            .tensors
            .iter()
            .map(|t| t.name.as_str())
            .collect();
        assert_eq!(names.len(), wanted.len());
        assert_eq!(
            (names[0], names[1]),
            ("token_embd.weight", "blk.0.attn_norm.weight")
        );
        for (name, (parts, f32)) in wanted {
            let parts: Vec<&Tensor> = parts.iter().map(|part| source[part.as_str()]).collect();
            let mut shape = parts[0].shape.clone();
            if parts.len() > 1 {
                shape.insert(0, experts);
            }
            let mut bytes: Vec<u8> = parts.iter().flat_map(|t| t.bytes.clone()).collect();
            if f32 {
                bytes = widened(&bytes);
            }
            assert_eq!(
                gguf.kind(&name),
                if f32 {
                    TensorType::F32
                } else {
                    TensorType::Bf16
                },
                "{name}"
            );
            assert_eq!(gguf.header.tensor(&name).unwrap().shape, shape, "{name}");
            assert!(gguf.data(&name) == bytes, "{name}");
        }
        for tensor in &gguf.header.tensors {
            assert_eq!(
                (gguf.header.data_start + tensor.offset) % 32,
                0,
                "{}",
                tensor.name
            );
        }
        assert_eq!(gguf.bytes.len() as u64, gguf.header.file_length());
    }
}

#[test]
fn raw_and_coded_packs_and_any_number_of_threads_give_the_same_file() {
    let folder = temp();
    let mut files = Vec::new();
    for (codec, jobs) in [("raw", "1"), ("bf16-rans", "4"), ("zstd", "2")] {
        let (pack, out) = (
            folder.path().join(codec),
            folder.path().join(format!("{codec}.gguf")),
        );
        pack_into(&tiny_full(), &pack, &["--codec", codec]);
        for dtype in ["keep", "q8_0"] {
            printed(
                export(&pack, &out, &["--dtype", dtype, "-j", jobs]),
                &["read back and equal"],
            );
            files.push(anonymous(&out));
            fs::remove_file(&out).unwrap();
        }
    }
    assert!(files[0] == files[2] && files[0] == files[4]);
    assert!(files[1] == files[3] && files[1] == files[5]);
    assert!(files[0] != files[1]);
}

#[test]
fn a_plain_checkpoint_of_the_same_model_gives_the_same_file() {
    let folder = temp();
    let (plain, direct, again) = (
        folder.path().join("plain"),
        folder.path().join("a.gguf"),
        folder.path().join("b.gguf"),
    );
    let pack = packed(&tiny_full(), folder.path());
    printed(
        export(&pack, &direct, &[]),
        &["images, audio and video need the full thinker"],
    );
    segpack!["export", &pack, "--to", "qwen3-moe", "-o", &plain].ok();
    export(&packed(&plain, &folder.path().join("other")), &again, &[]).ok();
    assert!(anonymous(&direct) == anonymous(&again));

    // a tied head is left out: llama.cpp takes the embedding
    let mut tied = Tiny::read(&plain);
    tied.config["tie_word_embeddings"] = json!(true);
    tied.remove("lm_head.weight");
    let (run, folder) = attempt(&tied, &[]);
    run.ok();
    assert!(
        Gguf::read(&folder.path().join("model.gguf"))
            .header
            .tensor("output.weight")
            .is_none()
    );
}

#[test]
fn stacked_experts_of_the_source_come_apart_and_together_again() {
    let folder = temp();
    let stacked = Tiny::text().stacked().write(&folder.path().join("stacked"));
    let out = folder.path().join("model.gguf");
    export(&packed(&stacked, folder.path()), &out, &[]).ok();
    let plain = folder.path().join("plain.gguf");
    export(&packed(&tiny_text(), folder.path()), &plain, &[]).ok();
    assert!(anonymous(&out) == anonymous(&plain));
}

#[test]
fn dtypes_are_as_asked_but_for_norms_routers_and_rows_without_blocks() {
    let tiny = Tiny::text();
    let source = tiny.by_name();
    let gate = &source["thinker.model.layers.1.mlp.experts.3.gate_proj.weight"].bytes;
    for (dtype, kind, file_type) in [
        ("f32", TensorType::F32, 0),
        ("f16", TensorType::F16, 1),
        ("q8_0", TensorType::Blocks(BlockType::Q8_0), 7),
        ("bf16", TensorType::Bf16, 32),
    ] {
        let gguf = exported(&tiny_text(), &["--dtype", dtype]);
        assert_eq!(
            gguf.header.get("general.file_type"),
            Some(&Value::U32(file_type))
        );
        for tensor in &gguf.header.tensors {
            let always = tensor.name.contains("norm") || tensor.name.contains("gate_inp");
            // an expert is 24 wide
            let fallback = dtype == "q8_0" && tensor.name.contains("down_exps");
            let wanted = match () {
                () if always => TensorType::F32,
                () if fallback => TensorType::F16,
                () => kind,
            };
            assert_eq!(tensor.kind, wanted, "{}", tensor.name);
        }
        let stack = gguf.data("blk.1.ffn_gate_exps.weight");
        let third = &stack[stack.len() / 12 * 3..stack.len() / 12 * 4];
        let values = floats(&widened(gate));
        match dtype {
            "bf16" => assert!(third == gate),
            "f32" => assert!(third == widened(gate)),
            "q8_0" => {
                for (block, values) in third.chunks_exact(34).zip(values.chunks(32)) {
                    let step = values.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0;
                    for (q, x) in block[2..].iter().zip(values) {
                        assert_eq!(f32::from(q.cast_signed()), (x * (1.0 / step)).round());
                    }
                }
            }
            // made-up weights have no subnormals of f16: exact
            _ => {
                let wide = |b: &[u8; 2]| {
                    let bits = u32::from(u16::from_le_bytes(*b));
                    f32::from_bits(
                        ((bits & 0x8000) << 16) | (((bits & 0x7fff) << 13) + (112 << 23)),
                    )
                };
                let halves: Vec<f32> = third.as_chunks::<2>().0.iter().map(wide).collect();
                let near = halves
                    .iter()
                    .zip(&values)
                    .all(|(h, x)| x.abs() < 1e-4 || h == x);
                assert!(near);
            }
        }
    }
    let (run, _folder) = attempt(&Tiny::text(), &["--dtype", "q8_0"]);
    printed(
        run,
        &[
            "3 tensors have rows that are no multiple of 32 and are F16",
            "blk.0.ffn_down_exps.weight",
        ],
    );
}

/// How often a type is there, and the layers whose `ffn_down_exps` has it.
fn kinds(gguf: &Gguf) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for tensor in &gguf.header.tensors {
        *kinds.entry(tensor.kind.to_string()).or_default() += 1;
    }
    kinds
}

#[test]
fn quantized_files_have_the_mix_of_types_of_llama_cpps_quantizer() {
    // counted in files that llama.cpp's own quantizer made of the same BF16 exports
    let folder = temp();
    for (width, dtype, file_type, wanted) in [
        (256, "q4_0", 2, &[("Q4_0", 15), ("Q6_K", 1)][..]),
        (256, "q5_0", 8, &[("Q5_0", 15), ("Q6_K", 1)]),
        (256, "q4_k_s", 14, &[("Q4_K", 13), ("Q5_K", 2), ("Q6_K", 1)]),
        (256, "q4_k_m", 15, &[("Q4_K", 13), ("Q6_K", 3)]),
        (256, "q5_k_s", 16, &[("Q5_K", 15), ("Q6_K", 1)]),
        (256, "q5_k_m", 17, &[("Q5_K", 13), ("Q6_K", 3)]),
        (256, "q6_k", 18, &[("Q6_K", 16)]),
        (256, "q8_0", 7, &[("Q8_0", 16)]),
        // rows of 96: a Q6_K is Q8_0 then, a Q4_K is Q5_0, a Q5_K is Q5_1
        (
            96,
            "q4_k_m",
            15,
            &[("Q4_K", 12), ("Q5_0", 1), ("Q6_K", 2), ("Q8_0", 1)],
        ),
        (96, "q5_k_s", 16, &[("Q5_1", 2), ("Q5_K", 13), ("Q6_K", 1)]),
        (40, "q6_k", 18, &[("F16", 2), ("Q6_K", 14)]),
    ] {
        let at = folder.path().join(format!("{width}.{dtype}"));
        let checkpoint = Tiny::blocks(2, width).write(&at.join("checkpoint"));
        let out = at.join("model.gguf");
        export(&packed(&checkpoint, &at), &out, &["--dtype", dtype]).ok();
        let gguf = Gguf::read(&out);
        let mut seen = kinds(&gguf);
        assert_eq!(seen.remove("F32"), Some(11), "{dtype}");
        let wanted = wanted
            .iter()
            .map(|(kind, count)| ((*kind).to_owned(), *count));
        assert_eq!(seen, wanted.collect(), "{width}, {dtype}");
        assert_eq!(
            gguf.header.get("general.file_type"),
            Some(&Value::U32(file_type))
        );
    }
}

#[test]
fn quantized_values_are_near_the_packs_and_the_same_from_any_pack_and_threads() {
    let folder = temp();
    let tiny = Tiny::blocks(1, 256);
    let checkpoint = tiny.write(&folder.path().join("checkpoint"));
    let mut files = Vec::new();
    for (codec, jobs) in [("raw", "1"), ("bf16-rans", "4"), ("zstd", "3")] {
        let (pack, out) = (
            folder.path().join(codec),
            folder.path().join(format!("{codec}.gguf")),
        );
        pack_into(&checkpoint, &pack, &["--codec", codec]);
        let options = ["--dtype", "q4_k_m", "-j", jobs];
        printed(export(&pack, &out, &options), &["read back and equal"]);
        files.push(anonymous(&out));
    }
    assert!(files[0] == files[1] && files[0] == files[2]);
    let gguf = Gguf::read(&folder.path().join("raw.gguf"));
    let source = tiny.by_name();
    let wanted: Vec<f32> = (0..4)
        .flat_map(|e| {
            let name = format!("model.layers.0.mlp.experts.{e}.up_proj.weight");
            floats(&widened(&source[name.as_str()].bytes))
        })
        .collect();
    let mut seen = Vec::new();
    BlockType::Q4K.dequantize(gguf.data("blk.0.ffn_up_exps.weight"), &mut seen);
    assert_eq!(seen.len(), wanted.len());
    let spread = wanted.iter().fold(0.0, |sum, x| sum + x * x);
    let error = seen
        .iter()
        .zip(&wanted)
        .fold(0.0, |sum, (a, b)| sum + (a - b) * (a - b));
    assert!(error < spread * 0.01, "{error} of {spread}");
}

#[test]
fn metadata_is_that_of_llama_cpps_converter() {
    let gguf = exported(&tiny_full(), &[]);
    assert_eq!(
        gguf.keys(),
        [
            "general.architecture",
            "general.type",
            "general.size_label",
            "qwen3moe.block_count",
            "qwen3moe.context_length",
            "qwen3moe.embedding_length",
            "qwen3moe.feed_forward_length",
            "qwen3moe.attention.head_count",
            "qwen3moe.attention.head_count_kv",
            "qwen3moe.rope.freq_base",
            "qwen3moe.attention.layer_norm_rms_epsilon",
            "qwen3moe.expert_count",
            "qwen3moe.expert_used_count",
            "qwen3moe.attention.key_length",
            "qwen3moe.attention.value_length",
            "qwen3moe.expert_feed_forward_length",
            "general.file_type",
            "general.quantization_version",
            "segpack.manifest_sha256",
            "tokenizer.ggml.model",
            "tokenizer.ggml.pre",
            "tokenizer.ggml.tokens",
            "tokenizer.ggml.token_type",
            "tokenizer.ggml.merges",
            "tokenizer.ggml.eos_token_id",
            "tokenizer.ggml.padding_token_id",
            "tokenizer.ggml.add_bos_token",
            "tokenizer.chat_template",
        ]
    );
    let is = |key: &str, value: Value| assert_eq!(gguf.header.get(key), Some(&value), "{key}");
    is("general.architecture", "qwen3moe".into());
    is("qwen3moe.block_count", Value::U32(3));
    is("qwen3moe.context_length", Value::U32(65_536));
    is("qwen3moe.embedding_length", Value::U32(48));
    is("qwen3moe.attention.key_length", Value::U32(32));
    is("qwen3moe.rope.freq_base", Value::F32(1e6));
    is(
        "qwen3moe.attention.layer_norm_rms_epsilon",
        Value::F32(1e-6),
    );
    is("qwen3moe.expert_used_count", Value::U32(3));
    is("qwen3moe.expert_feed_forward_length", Value::U32(24));
    is("tokenizer.ggml.model", "gpt2".into());
    is("tokenizer.ggml.pre", "qwen2".into());
    is("tokenizer.ggml.eos_token_id", Value::U32(287));
    is("tokenizer.ggml.padding_token_id", Value::U32(285));
    is("tokenizer.ggml.add_bos_token", Value::Bool(false));

    let (tokens, Some(Value::Array(Array::I32(types)))) = (
        gguf.texts("tokenizer.ggml.tokens"),
        gguf.header.get("tokenizer.ggml.token_type"),
    ) else {
        panic!("no token types")
    };
    assert_eq!(
        (tokens.len(), types.len()),
        (320, 320),
        "as many as the embedding has rows"
    );
    assert_eq!((tokens[286].as_str(), types[286]), ("<|im_start|>", 3));
    assert_eq!((tokens[319].as_str(), types[319]), ("[PAD319]", 5));
    assert_eq!(types[0], 1);
    let merges = fs::read_to_string(tiny_full().join("merges.txt")).unwrap();
    let lines: Vec<&str> = merges
        .lines()
        .filter(|l| !l.starts_with("#version") && !l.is_empty())
        .collect();
    assert_eq!(gguf.texts("tokenizer.ggml.merges"), lines);
}

#[test]
fn a_checkpoint_without_a_tokenizer_says_so() {
    let gguf = exported(&tiny_text(), &[]);
    assert_eq!(
        gguf.header.get("tokenizer.ggml.model"),
        Some(&"none".into())
    );
    assert_eq!(
        gguf.header.get("qwen3moe.vocab_size"),
        Some(&Value::U32(320))
    );
    assert!(!gguf.keys().contains(&"tokenizer.ggml.tokens"));
    let left_out = exported(&tiny_full(), &["--tokenizer-pre", "none"]);
    assert_eq!(
        left_out.header.get("tokenizer.ggml.model"),
        Some(&"none".into())
    );
}

/// tiny-full without `tokenizer.json`, which then is made of the other files, or with another one.
fn with_tokenizer(edit: impl FnOnce(&mut serde_json::Value)) -> Tiny {
    let mut tiny = Tiny::full();
    let file = tiny
        .files
        .iter_mut()
        .find(|(name, _)| name == "tokenizer.json")
        .unwrap();
    let mut json = serde_json::from_slice(&file.1).unwrap();
    edit(&mut json);
    file.1 = json.to_string().into_bytes();
    tiny
}

#[test]
fn an_unknown_pre_tokenizer_is_no_guess() {
    let split = |json: &mut serde_json::Value| {
        json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(r"\p{L}+|\s+|.");
    };
    let (run, folder) = attempt(&with_tokenizer(split), &[]);
    run.exits(3)
        .says(&["does not split text as those do", "--tokenizer-pre"]);
    assert!(!folder.path().join("model.gguf").exists());
    let (run, folder) = attempt(&with_tokenizer(split), &["--tokenizer-pre", "gpt-4o"]);
    run.ok();
    let gguf = Gguf::read(&folder.path().join("model.gguf"));
    assert_eq!(
        gguf.header.get("tokenizer.ggml.pre"),
        Some(&"gpt-4o".into())
    );
    let lower = |json: &mut serde_json::Value| json["normalizer"] = json!({"type": "Lowercase"});
    attempt(&with_tokenizer(lower), &[])
        .0
        .exits(3)
        .says(&["Lowercase"]);
    let around = |json: &mut serde_json::Value| {
        json["post_processor"] = json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [286], "tokens": ["<|im_start|>"]}}});
    };
    attempt(&with_tokenizer(around), &[])
        .0
        .exits(3)
        .says(&["post-processor \"TemplateProcessing\""]);
}

#[test]
fn a_tokenizer_of_older_files_is_the_same_one() {
    let mut old = Tiny::full();
    old.files.retain(|(name, _)| name != "tokenizer.json");
    let (run, folder) = attempt(&old, &[]);
    run.ok();
    let plain = folder.path().join("plain.gguf");
    export(
        &packed(&tiny_full(), &folder.path().join("plain")),
        &plain,
        &[],
    )
    .ok();
    assert!(anonymous(&folder.path().join("model.gguf")) == anonymous(&plain));
}

#[test]
fn a_size_splits_the_model_into_files_that_name_one_another() {
    let folder = temp();
    let whole = exported(&tiny_full(), &[]);
    let out = folder.path().join("m.gguf");
    let pack = packed(&tiny_full(), folder.path());
    printed(
        export(&pack, &out, &["--max-shard-size", "60kB"]),
        &["7 files"],
    );
    assert!(!out.exists());
    let parts: Vec<Gguf> = (1..=7)
        .map(|n| Gguf::read(&folder.path().join(format!("m-{n:05}-of-00007.gguf"))))
        .collect();
    let mut seen = 0;
    for (number, part) in (0..).zip(&parts) {
        let is = |key: &str, value: Value| assert_eq!(part.header.get(key), Some(&value), "{key}");
        is("split.no", Value::U16(number));
        is("split.count", Value::U16(7));
        is(
            "split.tensors.count",
            Value::I32(whole.header.tensors.len() as i32),
        );
        assert!(part.header.tensors.iter().map(|t| t.length).sum::<u64>() <= 60_000);
        assert_eq!(
            part.keys().len(),
            3 + if number == 0 { whole.keys().len() } else { 0 }
        );
        for tensor in &part.header.tensors {
            assert_eq!(tensor.name, whole.header.tensors[seen].name);
            assert!(
                part.data(&tensor.name) == whole.data(&tensor.name),
                "{}",
                tensor.name
            );
            seen += 1;
        }
    }
    assert_eq!(seen, whole.header.tensors.len());
    // none of them is overwritten
    fs::remove_file(folder.path().join("m-00001-of-00007.gguf")).unwrap();
    export(&pack, &out, &["--max-shard-size", "60kB"])
        .exits(1)
        .says(&["m-00002-of-00007.gguf exists"]);
    assert!(!folder.path().join("m-00001-of-00007.gguf").exists());
}

#[test]
fn what_llama_cpp_cannot_hold_is_refused_and_nothing_is_left() {
    let refused = |tiny: &Tiny, options: &[&str], status: i32, words: &[&str]| {
        let (run, folder) = attempt(tiny, options);
        run.exits(status).says(words);
        let left = contents(folder.path());
        assert!(
            !left.keys().any(|name| name.contains("gguf")),
            "{:?}",
            left.keys()
        );
    };
    let moe = Tiny::qwen3_moe(Qwen3Moe::default());
    refused(
        &moe,
        &[],
        3,
        &[
            "experts in every layer, this model in 3 of 4",
            "--to hf or qwen3-moe",
        ],
    );
    let mut large = Tiny::text();
    large
        .tensor("thinker.model.layers.1.self_attn.q_proj.weight")
        .bytes[..2]
        .copy_from_slice(&[0x80, 0x47]);
    refused(
        &large,
        &["--dtype", "f16"],
        3,
        &["blk.1.attn_q.weight", "beyond what F16 can hold"],
    );
    let mut infinite = Tiny::text();
    infinite
        .tensor("thinker.model.layers.1.self_attn.q_proj.weight")
        .bytes[..2]
        .copy_from_slice(&[0x80, 0x7f]);
    refused(
        &infinite,
        &["--dtype", "q8_0"],
        3,
        &["blk.1.attn_q.weight", "cannot be Q8_0: one is not finite"],
    );
    let mut long = Tiny::full();
    let config = &mut long.config["thinker_config"]["text_config"];
    config["norm_topk_prob"] = json!(false);
    refused(&long, &[], 3, &["norm_topk_prob is false"]);
}

#[test]
fn options_of_other_targets_and_bad_names_are_wrong_command_lines() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let out = folder.path().join("model.gguf");
    let usage = |run: Run, words: &[&str]| run.exits(2).says(words);
    usage(
        export(&pack, &folder.path().join("model.bin"), &[]),
        &["must end in .gguf"],
    );
    usage(
        export(&pack, &out, &["--expert-parallel", "0/2"]),
        &["--expert-parallel is for"],
    );
    usage(export(&pack, &out, &["thinker.*"]), &["GLOB is for"]);
    usage(
        export(&pack, &out, &["--tokenizer-pre", "a b"]),
        &["expected a name"],
    );
    usage(
        export(&pack, &out, &["--component", "thinker.audio"]),
        &["text decoder"],
    );
    usage(
        export(&pack, Path::new("-"), &[]),
        &["only --to safetensors"],
    );
    let hf = |option: &str, value: &str| {
        segpack![
            "export",
            &pack,
            "--to",
            "hf",
            "-o",
            folder.path().join("hf"),
            option,
            value
        ]
    };
    usage(
        hf("--dtype", "q8_0"),
        &["--dtype q4_0 to q8_0 is for --to gguf"],
    );
    usage(
        hf("--tokenizer-pre", "qwen2"),
        &["--tokenizer-pre is for --to gguf"],
    );
    fs::write(&out, b"mine").unwrap();
    export(&pack, &out, &[]).exits(1).says(&["exists"]);
    assert_eq!(fs::read(&out).unwrap(), b"mine");
}

#[test]
fn damage_of_the_pack_is_found_and_nothing_is_published() {
    for (options, checked) in [
        (&[][..], true),
        (&["--dtype", "q8_0"][..], true),
        (&["--no-check"][..], false),
    ] {
        let folder = temp();
        let pack = packed(&tiny_text(), folder.path());
        let file: PathBuf = pack.join("packs/thinker.text.experts.01.safetensors");
        flip(&file, -5000);
        let run = export(&pack, &folder.path().join("model.gguf"), options);
        run.exits(3).says(&["thinker.model.layers.1.mlp.experts."]);
        let left: Vec<_> = contents(folder.path())
            .into_keys()
            .filter(|name| name.contains("gguf"))
            .collect();
        assert!(left.is_empty(), "{left:?}, checked {checked}");
    }
}

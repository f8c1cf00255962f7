//! GGUF files that are quantized with an importance matrix.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::gguf::{
    ActivationSums, Header, ImportanceMatrix, TensorType, Value, write_imatrix,
};
use segpack_formats::numeric::FloatDtype;
use segpack_formats::numeric::ggml::BlockType;
use serde_json::json;
use tempfile::TempDir;

use crate::support::checkpoint::fixtures;
use crate::support::cli::{Run, packed, program};
use crate::support::folders::temp;
use crate::support::packs::pack_into;
use crate::support::tiny::Tiny;

const UP: &str = "blk.0.ffn_up_exps.weight";
/// Experts and columns of the tiny model's `UP`.
const SIZE: (usize, usize) = (4, 256);

/// A model of one layer whose rows are whole blocks.
struct Scene {
    folder: TempDir,
    tiny: Tiny,
    pack: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let folder = temp();
        let tiny = Tiny::blocks(1, 256);
        let checkpoint = tiny.write(&folder.path().join("checkpoint"));
        let pack = folder.path().join("pack");
        pack_into(&checkpoint, &pack, &["--no-sums"]);
        Self { folder, tiny, pack }
    }

    fn export(&self, pack: &Path, name: &str, options: &[&str]) -> Run {
        let mut command = program();
        command
            .arg("export")
            .arg(pack)
            .args(["--to", "gguf", "--tokenizer-pre", "none"]);
        command.arg("-o").arg(self.folder.path().join(name));
        Run::of(command.args(options))
    }

    fn file(&self, name: &str) -> (Header, Vec<u8>) {
        let bytes = fs::read(self.folder.path().join(name)).unwrap();
        let header = Header::read(&mut &bytes[..], bytes.len() as u64).unwrap();
        (header, bytes)
    }

    /// Writes a matrix of these sums.
    fn matrix(&self, entries: &[(&str, ActivationSums)]) -> String {
        let entries: BTreeMap<_, _> = entries
            .iter()
            .map(|(name, sums)| ((*name).to_owned(), sums.clone()))
            .collect();
        let bytes = write_imatrix(&entries, &["text.txt".to_owned()], (3, 512)).unwrap();
        let path = self.folder.path().join("imatrix.gguf");
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The values of `UP` in a file.
    fn up(&self, name: &str) -> Vec<f32> {
        let (header, bytes) = self.file(name);
        let tensor = header.tensor(UP).unwrap();
        let start = (header.data_start + tensor.offset) as usize;
        let mut values = Vec::new();
        BlockType::Q4K.dequantize(&bytes[start..][..tensor.length as usize], &mut values);
        values
    }

    /// Those of the pack.
    fn wanted(&self) -> Vec<f32> {
        let by_name = self.tiny.by_name();
        let of = |expert| {
            let name = format!("model.layers.0.mlp.experts.{expert}.up_proj.weight");
            let bytes = &by_name[&*name].bytes;
            let mut values = vec![0.0; bytes.len() / 2];
            FloatDtype::BF16.widen(bytes, &mut values);
            values
        };
        (0..SIZE.0).flat_map(of).collect()
    }
}

/// Column `i` of expert `e` counts `(37 i + 11 e) mod 101 + 1`; no token reached the last expert.
fn sums() -> ActivationSums {
    let (experts, columns) = SIZE;
    let one = |n: usize| (37 * (n % columns) + 11 * (n / columns)) % 101 + 1;
    let is_reached = |n: usize| n / columns < experts - 1;
    let sum = |n: usize| {
        if is_reached(n) {
            5.0 * one(n) as f32
        } else {
            0.0
        }
    };
    ActivationSums {
        sums: (0..experts * columns).map(sum).collect(),
        counts: vec![5, 5, 5, 0],
    }
}

fn importance() -> Vec<f32> {
    let sums = sums();
    let columns = SIZE.1;
    let mean = |(n, sum): (usize, &f32)| match sums.counts[n / columns] {
        0 => 1.0,
        count => sum / count as f32,
    };
    sums.sums.iter().enumerate().map(mean).collect()
}

/// Of each expert, the squares of the differences times the importance of their columns.
fn errors(seen: &[f32], wanted: &[f32]) -> Vec<f64> {
    let importance = importance();
    let (experts, columns) = SIZE;
    let size = wanted.len() / experts;
    let squares = |expert: usize| {
        let part = expert * size..(expert + 1) * size;
        let weights = importance[expert * columns..][..columns].iter().cycle();
        let pairs = seen[part.clone()].iter().zip(&wanted[part]).zip(weights);
        pairs
            .map(|((a, b), w)| f64::from(w * (a - b) * (a - b)))
            .sum()
    };
    (0..experts).map(squares).collect()
}

#[test]
fn columns_that_matter_more_are_nearer_to_the_packs() {
    let scene = Scene::new();
    let matrix = scene.matrix(&[(UP, sums())]);
    scene
        .export(&scene.pack, "plain.gguf", &["--dtype", "q4_k_m"])
        .ok();
    let run = scene.export(
        &scene.pack,
        "model.gguf",
        &["--dtype", "q4_k_m", "--imatrix", &matrix],
    );
    let run = run.ok();
    assert!(run.text().contains("read back and equal"), "{run}");
    assert!(
        run.text().contains("the importance matrix says nothing of"),
        "{run}"
    );
    let wanted = scene.wanted();
    let plain = errors(&scene.up("plain.gguf"), &wanted);
    let weighted = errors(&scene.up("model.gguf"), &wanted);
    for expert in 0..3 {
        assert!(
            weighted[expert] < 0.95 * plain[expert],
            "{weighted:?}, {plain:?}"
        );
    }
    // the types are the same, and so is what the matrix says nothing of
    let ((with, bytes), (without, other)) = (scene.file("model.gguf"), scene.file("plain.gguf"));
    for (a, b) in with.tensors.iter().zip(&without.tensors) {
        assert_eq!(a, b);
        let of = |header: &Header, bytes: &[u8]| {
            let start = (header.data_start + a.offset) as usize;
            bytes[start..start + a.length as usize].to_vec()
        };
        assert_eq!(
            of(&with, &bytes) == of(&without, &other),
            a.name != UP,
            "{}",
            a.name
        );
    }
    for (key, value) in [
        ("file", Value::Text("imatrix.gguf".to_owned())),
        ("dataset", Value::Text("text.txt".to_owned())),
        ("entries_count", Value::U32(1)),
        ("chunks_count", Value::U32(3)),
    ] {
        assert_eq!(with.get(&format!("quantize.imatrix.{key}")), Some(&value));
    }
}

#[test]
fn any_pack_and_number_of_threads_gives_the_same_weighted_file() {
    let scene = Scene::new();
    let matrix = scene.matrix(&[(UP, sums())]);
    let mut files = Vec::new();
    for (codec, jobs) in [("raw", "1"), ("bf16-rans", "4"), ("zstd", "3")] {
        let pack = scene.folder.path().join(codec);
        pack_into(
            &scene.folder.path().join("checkpoint"),
            &pack,
            &["--codec", codec],
        );
        let options = ["--dtype", "q5_k_s", "--imatrix", &matrix, "-j", jobs];
        let name = format!("{codec}.gguf");
        scene.export(&pack, &name, &options).ok();
        let (header, bytes) = scene.file(&name);
        files.push(bytes[header.data_start as usize..].to_vec());
    }
    assert!(files[0] == files[1] && files[0] == files[2]);
}

#[test]
fn a_matrix_of_no_use_is_refused() {
    let scene = Scene::new();
    let refused = |options: &[&str], status: i32, words: &[&str]| {
        scene
            .export(&scene.pack, "model.gguf", options)
            .exits(status)
            .says(words);
        assert!(!scene.folder.path().join("model.gguf").exists());
    };
    let good = scene.matrix(&[(UP, sums())]);
    for dtype in ["q8_0", "q4_0", "q5_0", "bf16"] {
        refused(
            &["--dtype", dtype, "--imatrix", &good],
            2,
            &["of no use", "--imatrix is for"],
        );
    }
    let other = scene.matrix(&[("blk.9.other.weight", sums())]);
    refused(
        &["--dtype", "q6_k", "--imatrix", &other],
        2,
        &["says nothing of any tensor"],
    );
    let mut short = sums();
    short.sums.truncate(3 * SIZE.1);
    short.counts.truncate(3);
    let short = scene.matrix(&[(UP, short)]);
    refused(
        &["--dtype", "q6_k", "--imatrix", &short],
        2,
        &["768 values", "4 x 256 columns"],
    );
    let damaged = scene.folder.path().join("damaged");
    fs::write(&damaged, b"nothing of the kind").unwrap();
    refused(
        &["--dtype", "q6_k", "--imatrix", damaged.to_str().unwrap()],
        3,
        &["is no importance matrix"],
    );
    refused(&["--dtype", "q6_k", "--imatrix", "none"], 1, &["none"]);
    let mut hf = program();
    hf.arg("export")
        .arg(&scene.pack)
        .args(["--to", "hf", "-o", "x", "--imatrix", &good]);
    Run::of(&mut hf)
        .exits(2)
        .says(&["--imatrix is for --to gguf"]);
}

/// Some tokens of the tiny model's vocabulary.
const IDS: [u32; 6] = [5, 17, 9, 30, 21, 8];

impl Scene {
    /// Records a matrix of these tokens.
    fn record(&self, name: &str, ids: &[u32], options: &[&str]) -> (Run, PathBuf) {
        let path = self.folder.path().join(name);
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let mut command = program();
        command.arg("run").arg(&self.pack).args([
            "--compute",
            "f32",
            "--prompt-ids",
            &ids.join(","),
        ]);
        command.arg("--imatrix-out").arg(&path).args(options);
        (Run::of(&mut command), path)
    }

    /// Sums and counts of a file, by name.
    fn recorded(path: &Path) -> BTreeMap<String, Vec<f32>> {
        let bytes = fs::read(path).unwrap();
        let header = Header::read(&mut &bytes[..], bytes.len() as u64).unwrap();
        let values = |start: u64, length: u64| {
            let start = (header.data_start + start) as usize;
            let bytes = bytes[start..start + length as usize].as_chunks::<4>().0;
            bytes.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let tensors = header.tensors.iter();
        tensors
            .inspect(|t| assert_eq!(t.kind, TensorType::F32))
            .map(|t| (t.name.clone(), values(t.offset, t.length)))
            .collect()
    }

    /// Values of a BF16 tensor of the checkpoint.
    fn floats(&self, name: &str) -> Vec<f32> {
        let by_name = self.tiny.by_name();
        let bytes = &by_name[name].bytes;
        let mut values = vec![0.0; bytes.len() / 2];
        FloatDtype::BF16.widen(bytes, &mut values);
        values
    }

    /// What queries, keys and values of the first layer are multiplied with: the squares of the
    /// normed embeddings, added up.
    fn squares(&self, ids: &[u32]) -> Vec<f64> {
        let table = self.floats("model.embed_tokens.weight");
        let weight = self.floats("model.layers.0.input_layernorm.weight");
        let mut sums = vec![0.0; weight.len()];
        for id in ids {
            let row = &table[*id as usize * weight.len()..][..weight.len()];
            let mean: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
            let scale = 1.0 / (mean / weight.len() as f64 + 1e-6);
            for ((sum, x), w) in sums.iter_mut().zip(row).zip(&weight) {
                *sum += (f64::from(*x) * f64::from(*w)).powi(2) * scale;
            }
        }
        sums
    }
}

#[test]
fn a_recorded_matrix_holds_the_squares_of_what_matrices_are_multiplied_with() {
    let scene = Scene::new();
    let (run, path) = scene.record("imatrix.gguf", &IDS, &[]);
    let run = run.ok();
    assert!(
        run.text().contains("6 tokens in 1 chunk, 8 tensors"),
        "{run}"
    );
    let recorded = Scene::recorded(&path);
    let sums = |name: &str| &recorded[&format!("blk.0.{name}.weight.in_sum2")];
    let counts = |name: &str| &recorded[&format!("blk.0.{name}.weight.counts")];
    // of attention, by hand
    for name in ["attn_q", "attn_k", "attn_v"] {
        assert_eq!(counts(name), &[6.0], "{name}");
        for (seen, wanted) in sums(name).iter().zip(scene.squares(&IDS)) {
            let difference = (f64::from(*seen) - wanted).abs();
            assert!(
                difference < 1e-4 * wanted.max(1e-3),
                "{name}: {seen}, {wanted}"
            );
        }
    }
    assert_eq!(counts("attn_output"), &[6.0]);
    // the router sees each token once, experts those that it sends to them: two of four for each
    assert_eq!(counts("ffn_gate_inp"), &[6.0]);
    let (experts, columns) = SIZE;
    for name in ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
        assert_eq!(counts(name).iter().sum::<f32>(), 12.0, "{name}");
        assert_eq!(counts(name), counts("ffn_gate_exps"));
        assert_eq!(sums(name).len(), experts * columns);
        for (of_expert, count) in sums(name).chunks(columns).zip(counts(name)) {
            assert_eq!(of_expert.iter().any(|x| *x > 0.0), *count > 0.0, "{name}");
        }
    }
    for column in 0..columns {
        let of_experts = sums("ffn_gate_exps")
            .chunks(columns)
            .map(|sums| sums[column]);
        let (of_experts, of_all) = (of_experts.sum::<f32>(), 2.0 * sums("ffn_gate_inp")[column]);
        assert!(
            (of_experts - of_all).abs() < 1e-4 * of_all.max(1e-3),
            "{column}"
        );
    }
    assert_ne!(sums("ffn_down_exps"), sums("ffn_gate_exps"));
}

#[test]
fn each_chunk_begins_anew_and_both_formats_say_the_same_to_an_export() {
    let scene = Scene::new();
    let (_, once) = scene.record("once.gguf", &IDS, &[]);
    let twice = [IDS, IDS].concat();
    let (run, path) = scene.record("twice.gguf", &twice, &["--imatrix-chunk", "6"]);
    assert!(run.ok().text().contains("12 tokens in 2 chunks"));
    let (once, twofold) = (Scene::recorded(&once), Scene::recorded(&path));
    for (name, values) in &once {
        let doubled: Vec<f32> = values.iter().map(|x| 2.0 * x).collect();
        assert_eq!(&twofold[name], &doubled, "{name}");
    }
    // in one chunk the second half sees the first
    let (_, whole) = scene.record("whole.gguf", &twice, &[]);
    assert_ne!(Scene::recorded(&whole), twofold);
    let (run, list) = scene.record("imatrix.dat", &twice, &["--imatrix-chunk", "6"]);
    run.ok();
    let [newer, older] = [&path, &list].map(|path| ImportanceMatrix::read(path).unwrap());
    assert_eq!(
        (newer.chunks, &newer.datasets),
        (2, &vec!["prompt".to_owned()])
    );
    assert_eq!(
        (older.chunks, &older.datasets),
        (newer.chunks, &newer.datasets)
    );
    assert_eq!(older.len(), newer.len());
    for name in ["blk.0.attn_q.weight", UP] {
        let pairs = older
            .get(name)
            .unwrap()
            .iter()
            .zip(newer.get(name).unwrap());
        for (a, b) in pairs {
            assert!((a - b).abs() <= 1e-6 * b.abs(), "{name}: {a}, {b}");
        }
    }
    let options = ["--dtype", "q4_k_m", "--imatrix", path.to_str().unwrap()];
    let run = scene.export(&scene.pack, "model.gguf", &options).ok();
    // all but the embedding and the head, of which llama.cpp's says nothing either
    assert!(
        run.text().contains("says nothing of 2 quantized tensors"),
        "{run}"
    );
}

#[test]
fn nothing_to_record_and_options_of_generation_are_refused() {
    let scene = Scene::new();
    for options in [
        &["--max-new-tokens", "3"][..],
        &["--json"],
        &["--rank", "x"],
        &["--imatrix-chunk", "0"],
    ] {
        let (run, path) = scene.record("imatrix.gguf", &IDS, options);
        run.exits(2);
        assert!(!path.exists());
    }
    let (run, path) = scene.record("imatrix.gguf", &[5, 4000], &[]);
    run.exits(1).says(&["4000"]);
    assert!(!path.exists());
}

#[test]
fn a_chat_with_an_image_is_refused_as_its_rows_are_no_tokens() {
    let folder = temp();
    let pack = packed(&fixtures().join("tiny-omni"), folder.path());
    let image = fixtures().join("media/alpha.png");
    let content =
        json!([{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]);
    let chat = folder.path().join("chat.json");
    fs::write(
        &chat,
        json!({"messages": [{"role": "user", "content": content}]}).to_string(),
    )
    .unwrap();
    let out = folder.path().join("imatrix.gguf");
    let mut command = program();
    command.arg("run").arg(&pack).arg("--messages").arg(&chat);
    command.arg("--imatrix-out").arg(&out);
    Run::of(&mut command)
        .exits(2)
        .says(&["is recorded of text alone"]);
    assert!(!out.exists());
}

//! GGUF files that are quantized with an importance matrix.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::gguf::{ActivationSums, Header, Value, write_imatrix};
use segpack_formats::numeric::FloatDtype;
use segpack_formats::numeric::ggml::BlockType;
use tempfile::TempDir;

use crate::support::cli::{Run, program};
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

//! Small checkpoints: read from fixtures, made up, bent into other shapes, laid out as the hub's
//! tools lay them out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::digest::Sha256;
use serde_json::{Value, json};

use super::checkpoint::{Noise, Random, bf16, fixtures, header};

pub const INDEX: &str = "model.safetensors.index.json";

/// A tensor in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Made-up BF16 values that depend on the name alone.
    pub fn noise(name: &str, shape: &[u64]) -> Self {
        let mut bytes = Vec::new();
        Noise::shared()
            .write(name, shape.iter().product(), &mut bytes)
            .expect("write to memory");
        Self {
            name: name.to_owned(),
            dtype: "BF16".to_owned(),
            shape: shape.to_vec(),
            bytes,
        }
    }

    fn map16(&mut self, dtype: &str, convert: impl Fn(u16) -> Vec<u8>) {
        let values = self.bytes.chunks_exact(2);
        self.bytes = values
            .flat_map(|v| convert(u16::from_le_bytes([v[0], v[1]])))
            .collect();
        dtype.clone_into(&mut self.dtype);
    }
}

/// A checkpoint in memory.
#[derive(Debug, Clone)]
pub struct Tiny {
    pub config: Value,
    /// Weight files in order, with their tensors in order of their bytes.
    pub shards: Vec<(String, Vec<Tensor>)>,
    /// All other files but the index and `config.json`.
    pub files: Vec<(String, Vec<u8>)>,
    pub index: bool,
}

/// A plain Qwen3-MoE checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Qwen3Moe {
    pub layers: u64,
    pub experts: u64,
    pub hidden: u64,
    pub width: u64,
    pub shards: usize,
}

impl Default for Qwen3Moe {
    fn default() -> Self {
        Self {
            layers: 4,
            experts: 6,
            hidden: 48,
            width: 20,
            shards: 3,
        }
    }
}

impl Tiny {
    /// The official tiny checkpoint of thinker, talker and code2wav.
    pub fn full() -> Self {
        Self::read(&tiny_full())
    }

    /// The official tiny checkpoint of a thinker alone.
    pub fn text() -> Self {
        Self::read(&tiny_text())
    }

    /// Reads the files of a folder, weights with the stock reader; folders in it are left out.
    pub fn read(folder: &Path) -> Self {
        let mut tiny = Self {
            config: Value::Null,
            shards: Vec::new(),
            files: Vec::new(),
            index: false,
        };
        let mut entries: Vec<PathBuf> = fs::read_dir(folder)
            .expect("list a fixture")
            .map(|e| e.expect("list").path())
            .collect();
        entries.retain(|path| path.is_file());
        entries.sort();
        for path in entries {
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let bytes = fs::read(&path).expect("read a fixture");
            if name.ends_with(".safetensors") {
                tiny.shards.push((name, tensors_of(&bytes)));
            } else if name == "config.json" {
                tiny.config = serde_json::from_slice(&bytes).expect("config.json");
            } else if name == INDEX {
                tiny.index = true;
            } else {
                tiny.files.push((name, bytes));
            }
        }
        tiny
    }

    /// With a dense first layer, biases and a tied head that is left out.
    pub fn qwen3_moe(size: Qwen3Moe) -> Self {
        let Qwen3Moe {
            layers,
            experts,
            hidden,
            width,
            shards,
        } = size;
        let (vocabulary, dense) = (100, 2 * width);
        let mut tensors = vec![Tensor::noise(
            "model.embed_tokens.weight",
            &[vocabulary, hidden],
        )];
        let mut add = |name: String, shape: &[u64]| tensors.push(Tensor::noise(&name, shape));
        for layer in 0..layers {
            let at = format!("model.layers.{layer}");
            for (part, rows, columns) in [
                ("q", 64, hidden),
                ("k", 32, hidden),
                ("v", 32, hidden),
                ("o", hidden, 64),
            ] {
                add(
                    format!("{at}.self_attn.{part}_proj.weight"),
                    &[rows, columns],
                );
                add(format!("{at}.self_attn.{part}_proj.bias"), &[rows]);
            }
            for part in ["q", "k"] {
                add(format!("{at}.self_attn.{part}_norm.weight"), &[16]);
            }
            for part in ["input", "post_attention"] {
                add(format!("{at}.{part}_layernorm.weight"), &[hidden]);
            }
            let blocks: Vec<(String, u64)> = if layer == 0 {
                vec![(format!("{at}.mlp"), dense)]
            } else {
                add(format!("{at}.mlp.gate.weight"), &[experts, hidden]);
                (0..experts)
                    .map(|e| (format!("{at}.mlp.experts.{e}"), width))
                    .collect()
            };
            for (block, width) in blocks {
                add(format!("{block}.gate_proj.weight"), &[width, hidden]);
                add(format!("{block}.up_proj.weight"), &[width, hidden]);
                add(format!("{block}.down_proj.weight"), &[hidden, width]);
            }
        }
        add("model.norm.weight".to_owned(), &[hidden]);
        let config = json!({
            "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16",
            "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": dense,
            "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": width,
            "mlp_only_layers": [0], "decoder_sparse_step": 1, "norm_topk_prob": true,
            "attention_bias": true, "tie_word_embeddings": true, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
        });
        let files = vec![
            ("merges.txt".to_owned(), b"#version: 0.2\n".to_vec()),
            (
                "deep/er/notes.txt".to_owned(),
                b"kept as it is\r\n".to_vec(),
            ),
            ("empty".to_owned(), Vec::new()),
        ];
        Self {
            config,
            shards: vec![(String::new(), tensors)],
            files,
            index: true,
        }
        .cut(shards)
    }

    /// A `Qwen3MoeForCausalLM` whose rows are whole blocks of 256, but for those of experts' down
    /// projections in odd ones.
    pub fn blocks(layers: u64, width: u64) -> Self {
        let (vocabulary, hidden, experts) = (96, 256, 4);
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[u64]| tensors.push(Tensor::noise(&name, shape));
        add(
            "model.embed_tokens.weight".to_owned(),
            &[vocabulary, hidden],
        );
        for layer in 0..layers {
            let at = format!("model.layers.{layer}");
            for (part, rows, columns) in [
                ("q", 256, hidden),
                ("k", 64, hidden),
                ("v", 64, hidden),
                ("o", hidden, 256),
            ] {
                add(
                    format!("{at}.self_attn.{part}_proj.weight"),
                    &[rows, columns],
                );
            }
            for part in ["q", "k"] {
                add(format!("{at}.self_attn.{part}_norm.weight"), &[64]);
            }
            for part in ["input", "post_attention"] {
                add(format!("{at}.{part}_layernorm.weight"), &[hidden]);
            }
            add(format!("{at}.mlp.gate.weight"), &[experts, hidden]);
            for expert in 0..experts {
                let expert = format!("{at}.mlp.experts.{expert}");
                add(format!("{expert}.gate_proj.weight"), &[width, hidden]);
                add(format!("{expert}.up_proj.weight"), &[width, hidden]);
                add(format!("{expert}.down_proj.weight"), &[hidden, width]);
            }
        }
        add("model.norm.weight".to_owned(), &[hidden]);
        add("lm_head.weight".to_owned(), &[vocabulary, hidden]);
        let config = json!({
            "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16",
            "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": 2 * width,
            "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64,
            "num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": width,
            "mlp_only_layers": [], "decoder_sparse_step": 1, "norm_topk_prob": true,
            "attention_bias": false, "tie_word_embeddings": false, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
        });
        Self {
            config,
            shards: vec![(String::new(), tensors)],
            files: Vec::new(),
            index: true,
        }
        .cut(1)
    }

    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.shards.iter().flat_map(|(_, tensors)| tensors)
    }

    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.shards.iter_mut().flat_map(|(_, tensors)| tensors)
    }

    /// Every tensor by its name.
    pub fn by_name(&self) -> BTreeMap<&str, &Tensor> {
        self.tensors().map(|t| (t.name.as_str(), t)).collect()
    }

    /// One tensor, to bend.
    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        let all = self.shards.iter_mut().flat_map(|(_, tensors)| tensors);
        all.into_iter()
            .find(|t| t.name == name)
            .unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// Takes a tensor out, and says in which shard it was.
    pub fn remove(&mut self, name: &str) -> (usize, Tensor) {
        for (shard, (_, tensors)) in self.shards.iter_mut().enumerate() {
            if let Some(at) = tensors.iter().position(|t| t.name == name) {
                return (shard, tensors.remove(at));
            }
        }
        panic!("no tensor {name}");
    }

    /// Spreads the tensors over so many weight files, in the order of their names, cut in the
    /// middle of layers.
    #[must_use]
    pub fn cut(mut self, shards: usize) -> Self {
        let mut tensors: Vec<Tensor> = self.tensors().cloned().collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let each = tensors.len().div_ceil(shards);
        let name = |i: usize| format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        self.shards = tensors
            .chunks(each)
            .enumerate()
            .map(|(i, part)| (name(i), part.to_vec()))
            .collect();
        self.index = true;
        self
    }

    /// One weight file, no index.
    #[must_use]
    pub fn single(self) -> Self {
        let mut one = self.cut(1);
        one.shards[0].0 = "model.safetensors".to_owned();
        one.index = false;
        one
    }

    /// Each layer's experts in two tensors, as transformers 5 holds them in memory: `[experts, 2 x
    /// width, hidden]` with gate rows before up rows, and `[experts, hidden, width]`.
    #[must_use]
    pub fn stacked(mut self) -> Self {
        let mut layers: BTreeMap<String, BTreeMap<u64, [Option<Tensor>; 3]>> = BTreeMap::new();
        let mut others = Vec::new();
        for tensor in self.tensors() {
            let parsed = tensor
                .name
                .split_once(".mlp.experts.")
                .and_then(|(layer, rest)| {
                    let (expert, matrix) = rest.split_once('.')?;
                    let place = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"];
                    Some((
                        layer,
                        expert.parse().ok()?,
                        place.iter().position(|p| *p == matrix)?,
                    ))
                });
            match parsed {
                None => others.push(tensor.clone()),
                Some((layer, expert, place)) => {
                    let experts = layers.entry(layer.to_owned()).or_default();
                    experts.entry(expert).or_default()[place] = Some(tensor.clone());
                }
            }
        }
        for (layer, experts) in layers {
            let count = experts.len() as u64;
            let mut stacks = [
                ("gate_up_proj", vec![], vec![]),
                ("down_proj", vec![], vec![]),
            ];
            for [gate, up, down] in experts.into_values() {
                let [gate, up, down] = [gate, up, down].map(|t| t.expect("all three matrices"));
                stacks[0].1 = vec![count, gate.shape[0] + up.shape[0], gate.shape[1]];
                stacks[0].2.extend([gate.bytes, up.bytes].concat());
                stacks[1].1 = vec![count, down.shape[0], down.shape[1]];
                stacks[1].2.extend(down.bytes);
            }
            for (matrix, shape, bytes) in stacks {
                let name = format!("{layer}.mlp.experts.{matrix}");
                others.push(Tensor {
                    name,
                    dtype: "BF16".to_owned(),
                    shape,
                    bytes,
                });
            }
        }
        let shards = self.shards.len();
        self.shards = vec![(String::new(), others)];
        self.cut(shards)
    }

    /// As FP8 with a scale for each block of so many rows and columns, the way Qwen publishes it:
    /// made-up values, F32 scales; the router, the head and `kept` stay as they are.
    #[must_use]
    pub fn fp8(mut self, block: [u64; 2], kept: &[&str]) -> Self {
        let mut tensors = Vec::new();
        for mut tensor in self.tensors().cloned().collect::<Vec<_>>() {
            let module = tensor.name.strip_suffix(".weight").unwrap_or_default();
            let linear = module.ends_with("_proj") && !kept.iter().any(|k| module.contains(k));
            if !linear {
                tensors.push(tensor);
                continue;
            }
            let scales = [
                tensor.shape[0].div_ceil(block[0]),
                tensor.shape[1].div_ceil(block[1]),
            ];
            let mut scale = Tensor::noise(&format!("{module}.weight_scale_inv"), &scales);
            scale.map16("F32", |v| {
                f32::from_bits(u32::from(v) << 16).to_le_bytes().to_vec()
            });
            // 0x7f and 0xff are not numbers
            tensor.map16("F8_E4M3", |v| vec![(v & 0xfe) as u8]);
            tensors.extend([tensor, scale]);
        }
        let kept = [&["lm_head", "mlp.gate"], kept].concat();
        self.config["quantization_config"] = json!({
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
            "weight_block_size": block, "modules_to_not_convert": kept,
        });
        let shards = self.shards.len();
        self.shards = vec![(String::new(), tensors)];
        self.cut(shards)
    }

    /// All values widened to F32 or rounded to F16.
    #[must_use]
    pub fn converted(mut self, dtype: &str) -> Self {
        let wide = |v: u16| f32::from_bits(u32::from(v) << 16);
        for tensor in self.shards.iter_mut().flat_map(|(_, tensors)| tensors) {
            match dtype {
                "F32" => tensor.map16(dtype, |v| wide(v).to_le_bytes().to_vec()),
                "F16" => tensor.map16(dtype, |v| f16(wide(v)).to_le_bytes().to_vec()),
                other => panic!("cannot convert to {other}"),
            }
        }
        let name = if dtype == "F32" { "float32" } else { "float16" };
        set_dtype(&mut self.config, name);
        self
    }

    pub fn index_document(&self) -> Value {
        let map: BTreeMap<&str, &str> = self
            .shards
            .iter()
            .flat_map(|(file, tensors)| tensors.iter().map(|t| (t.name.as_str(), file.as_str())))
            .collect();
        let bytes: usize = self.tensors().map(|t| t.bytes.len()).sum();
        json!({"metadata": {"total_size": bytes}, "weight_map": map})
    }

    /// Every file with its content.
    pub fn all_files(&self) -> Vec<(String, Vec<u8>)> {
        let mut files = self.files.clone();
        files.extend(
            self.shards
                .iter()
                .map(|(file, tensors)| (file.clone(), shard_bytes(tensors))),
        );
        if !self.config.is_null() {
            files.push((
                "config.json".to_owned(),
                format!("{:#}\n", self.config).into_bytes(),
            ));
        }
        if self.index {
            files.push((
                INDEX.to_owned(),
                format!("{:#}\n", self.index_document()).into_bytes(),
            ));
        }
        files
    }

    /// Writes it into a folder.
    pub fn write(&self, folder: &Path) -> PathBuf {
        for (path, bytes) in self.all_files() {
            write_file(&folder.join(path), &bytes);
        }
        folder.to_owned()
    }

    /// As in the hub's cache: blobs named by their SHA-256 (or a git hash, for small files), links
    /// to them in a snapshot, and its name in `refs/main`. Returns the snapshot.
    #[cfg(unix)]
    pub fn write_hub(&self, cache: &Path, repo: &str, revision: &str) -> PathBuf {
        let folder = cache.join(format!("models--{}", repo.replace('/', "--")));
        let snapshot = folder.join("snapshots").join(revision);
        for (path, bytes) in self.all_files() {
            let digest = Sha256::of(&bytes).to_string();
            let is_large = path.ends_with(".safetensors");
            let blob = if is_large { &digest[..] } else { &digest[..40] };
            write_file(&folder.join("blobs").join(blob), &bytes);
            let link = snapshot.join(&path);
            fs::create_dir_all(link.parent().expect("a parent")).expect("make a folder");
            let up = "../".repeat(2 + path.matches('/').count());
            std::os::unix::fs::symlink(format!("{up}blobs/{blob}"), link).expect("make a link");
        }
        write_file(&folder.join("refs/main"), revision.as_bytes());
        snapshot
    }

    /// As `hf download --local-dir` leaves it: a record with commit and etag beside each file.
    pub fn write_download(&self, folder: &Path, revision: &str) {
        for (path, bytes) in self.all_files() {
            write_file(&folder.join(&path), &bytes);
            let record = format!("{revision}\n{}\n1700000000.5\n", Sha256::of(&bytes));
            let place = folder
                .join(".cache/huggingface/download")
                .join(format!("{path}.metadata"));
            write_file(&place, record.as_bytes());
        }
    }
}

impl Noise {
    fn shared() -> &'static Self {
        static NOISE: std::sync::LazyLock<Noise> = std::sync::LazyLock::new(|| Noise::new(7));
        &NOISE
    }
}

pub fn tiny_full() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/tiny-full")
}

pub fn tiny_text() -> PathBuf {
    fixtures().join("tiny-text")
}

/// Text, audio and pictures, with a processor.
pub fn tiny_omni() -> PathBuf {
    fixtures().join("tiny-omni")
}

/// Qwen3-VL-MoE: text and images, with a processor.
pub fn tiny_vl() -> PathBuf {
    fixtures().join("tiny-vl")
}

/// A weight file of these tensors, in this order.
pub fn shard_bytes(tensors: &[Tensor]) -> Vec<u8> {
    let entries = tensors.iter().map(|t| {
        (
            &t.name[..],
            &t.dtype[..],
            &t.shape[..],
            t.bytes.len() as u64,
        )
    });
    let mut bytes = header(entries);
    tensors.iter().for_each(|t| bytes.extend(&t.bytes));
    bytes
}

/// A weight file with any header text, well-formed or not, and this many bytes after it.
pub fn shard_with_header(text: &[u8], data: usize) -> Vec<u8> {
    let mut random = Random(data as u64);
    let data = (0..data).map(|_| random.next().to_le_bytes()[0]);
    (text.len() as u64)
        .to_le_bytes()
        .into_iter()
        .chain(text.iter().copied())
        .chain(data)
        .collect()
}

/// The tensors of a weight file as the stock reader sees them, in order of their bytes.
pub fn tensors_of(bytes: &[u8]) -> Vec<Tensor> {
    let stock = safetensors::SafeTensors::deserialize(bytes).expect("the stock reader opens it");
    let mut tensors: Vec<(usize, Tensor)> = stock
        .iter()
        .map(|(name, view)| {
            let tensor = Tensor {
                name: name.to_owned(),
                dtype: view.dtype().to_string(),
                shape: view.shape().iter().map(|&side| side as u64).collect(),
                bytes: view.data().to_vec(),
            };
            (view.data().as_ptr().addr(), tensor)
        })
        .collect();
    tensors.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    tensors.into_iter().map(|(_, tensor)| tensor).collect()
}

pub fn write_file(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("make a folder");
    fs::write(path, bytes).expect("write a file");
}

/// Sets `dtype` and `torch_dtype` wherever they are.
fn set_dtype(config: &mut Value, name: &str) {
    match config {
        Value::Object(keys) => {
            for (key, value) in keys {
                if key == "dtype" || key == "torch_dtype" {
                    *value = json!(name);
                } else {
                    set_dtype(value, name);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| set_dtype(item, name)),
        _ => {}
    }
}

/// Rounded towards zero; subnormals become zero. Good enough for made-up values.
fn f16(value: f32) -> u16 {
    let (bits, sign) = (value.to_bits(), (value.to_bits() >> 16) as u16 & 0x8000);
    let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
    match exponent {
        ..=0 => sign,
        31.. => sign | 0x7bff,
        _ => sign | (exponent as u16) << 10 | ((bits >> 13) & 0x3ff) as u16,
    }
}

/// A BF16 value as bytes.
pub fn bf16_bytes(value: f64) -> [u8; 2] {
    bf16(value).to_le_bytes()
}

//! Writes `corpus/` again: small inputs that each target accepts, and some that it must not.

use std::fs;
use std::path::Path;

use segpack_formats::codec::{ChunkEncoder, Codec, Coding};
use segpack_formats::digest::{Blake3, Sha256};
use segpack_formats::gguf;
use segpack_formats::io::CancelToken;
use segpack_formats::numeric::Dtype;
use segpack_formats::pack::{
    SegmentSpec, StoredSegment, TensorSource, PackTensor, WrittenPack, write_pack,
};
use segpack_fuzz::bodies::{
    PLACE_REPAIR, PLACE_ZSTD, REPAIR_FREQUENCIES, REPAIR_STATES, REPAIR_WORDS,
};
use serde_json::{Value, json};

fn main() {
    for (name, json, data) in headers() {
        save("shard_header", name, &shard(&json, data));
    }
    for (name, text) in indexes() {
        save("shard_index", name, text.as_bytes());
    }
    let (image, written) = pack_image(Coding::Zstd { level: 3 });
    // segment 1 was stored raw in a coded pack
    for (i, segment) in written.segments.iter().enumerate().filter(|(i, _)| *i < 2) {
        save(
            "pack_reader",
            &format!("zstd-pack-segment-{i}"),
            &placed(&image, segment, PLACE_ZSTD | PLACE_REPAIR),
        );
        let range = usize::try_from(segment.offset).unwrap()..;
        let stored = &image[range][..usize::try_from(segment.stored_length).unwrap()];
        if segment.codec == Codec::Zstd {
            save("chunk_table", &format!("segment-{i}"), stored);
        }
    }
    let first = written.segments[0];
    save(
        "pack_reader",
        "zstd-pack-lying-length",
        &placed(
            &image,
            &StoredSegment {
                raw_length: 1 << 40,
                ..first
            },
            PLACE_ZSTD,
        ),
    );
    let (image, written) = pack_image(Coding::Raw);
    save(
        "pack_reader",
        "raw-pack-segment-0",
        &placed(&image, &written.segments[0], 0),
    );
    save("chunk_table", "no-chunks", &no_chunks());
    chunks();
    for (name, image) in ggufs() {
        save("gguf_header", name, &image);
    }
    for (name, document) in manifests() {
        save("manifest", name, format!("{document:#}\n").as_bytes());
    }
}

fn save(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), bytes).unwrap();
}

fn shard(json: &str, data: usize) -> Vec<u8> {
    let mut image = (json.len() as u64).to_le_bytes().to_vec();
    image.extend(json.as_bytes());
    image.resize(image.len() + data, 7);
    image
}

/// A tensor's entry in a header.
fn entry(dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn headers() -> Vec<(&'static str, String, usize)> {
    let two = format!(
        r#"{{"a":{},"b":{}}}"#,
        entry("BF16", "[2,3]", 0, 12),
        entry("F32", "[]", 12, 16)
    );
    let all: Vec<(&str, u64)> = vec![
        ("BOOL", 1),
        ("U8", 1),
        ("I8", 1),
        ("F8_E4M3", 1),
        ("I16", 2),
        ("F16", 2),
        ("I64", 8),
        ("F64", 8),
    ];
    let (mut at, mut entries) = (
        0,
        vec![r#""__metadata__":{"format":"pt","note":"a \"quoted\" one"}"#.to_owned()],
    );
    for (dtype, bytes) in &all {
        entries.push(format!(
            r#""model.layers.0.{dtype}":{}"#,
            entry(dtype, "[3]", at, at + 3 * bytes)
        ));
        at += 3 * bytes;
    }
    vec![
        ("no-tensors", "{}".to_owned(), 0),
        ("two-tensors-padded", format!("{two}     "), 16),
        (
            "empty-tensor-between",
            format!(
                r#"{{"z":{},"e":{},"a":{}}}"#,
                entry("U8", "[4]", 4, 8),
                entry("F16", "[0,7]", 4, 4),
                entry("U8", "[4]", 0, 4)
            ),
            8,
        ),
        (
            "all-dtypes",
            format!("{{{}}}", entries.join(",")),
            usize::try_from(at).unwrap(),
        ),
        (
            "sub-byte",
            format!(r#"{{"t":{}}}"#, entry("F4", "[2,3]", 0, 3)),
            3,
        ),
        (
            "overflowing-shape",
            format!(
                r#"{{"t":{}}}"#,
                entry("U8", "[0,9223372036854775808]", 0, 0)
            ),
            0,
        ),
        (
            "duplicate-key",
            format!(
                r#"{{"a":{},"\u0061":{}}}"#,
                entry("U8", "[4]", 0, 4),
                entry("U8", "[4]", 4, 8)
            ),
            8,
        ),
    ]
}

fn indexes() -> [(&'static str, &'static str); 4] {
    [
        (
            "two-shards",
            r#"{"metadata":{"total_size":28},
"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors","c":"sub/x.safetensors"}}"#,
        ),
        (
            "float-size",
            r#"{"metadata":{"total_size":1.2e3,"other":[1,{"x":null}]},"weight_map":{"a":"m.safetensors"}}"#,
        ),
        ("no-size", "{\n  \"weight_map\": {}\n}\n"),
        (
            "leaves-its-folder",
            r#"{"weight_map":{"a":"../m.safetensors","b":"/etc/passwd","c":"x\\y","d":"C:x"}}"#,
        ),
    ]
}

/// Tensors of a segment that shrinks, of one that does not, and of one that is empty.
struct Bytes(Vec<Vec<Vec<u8>>>);

impl TensorSource for Bytes {
    fn read(
        &mut self,
        segment: usize,
        tensor: usize,
        take: &mut dyn FnMut(&[u8]) -> segpack_formats::Result<()>,
    ) -> segpack_formats::Result<()> {
        take(&self.0[segment][tensor])
    }
}

fn segment_of(s: usize, tensors: &[Vec<u8>]) -> SegmentSpec {
    let tensor = tensors.iter().enumerate().map(|(t, bytes)| PackTensor {
        name: format!("t.{s}.{t}"),
        dtype: Dtype::U8,
        shape: vec![bytes.len() as u64],
        length: bytes.len() as u64,
    });
    SegmentSpec {
        id: format!("s.{s}"),
        tensors: tensor.collect(),
    }
}

fn pack_image(coding: Coding) -> (Vec<u8>, WrittenPack) {
    let repeated: Vec<u8> = (0..4500_u32).map(|i| (i % 7).to_le_bytes()[0]).collect();
    let mut bytes = Bytes(vec![
        vec![repeated, vec![9; 1000]],
        vec![b"incompressible".to_vec()],
        vec![Vec::new()],
        vec![vec![0; 5000]],
    ]);
    let specs: Vec<SegmentSpec> = bytes
        .0
        .iter()
        .enumerate()
        .map(|(s, tensors)| segment_of(s, tensors))
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    let written = write_pack(
        file.as_file(),
        file.path(),
        &specs,
        coding,
        &mut bytes,
        &CancelToken::default(),
        &|_| {},
    )
    .unwrap();
    (fs::read(file.path()).unwrap(), written)
}

fn placed(image: &[u8], segment: &StoredSegment, flags: u8) -> Vec<u8> {
    let mut input = Vec::new();
    for word in [segment.offset, segment.stored_length, segment.raw_length] {
        input.extend(word.to_le_bytes());
    }
    input.push(if segment.codec == Codec::Zstd {
        flags
    } else {
        0
    });
    input.extend(image);
    input
}

/// Weights, about, and what does not look like them.
fn values(name: &str, count: u32) -> Vec<u8> {
    let mut state = 1_u64;
    (0..count)
        .flat_map(|i| value(name, i, next(&mut state)).to_le_bytes())
        .collect()
}

/// Marsaglia's xorshift64.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Value number `i`, of these random bits.
fn value(name: &str, i: u32, bits: u64) -> u16 {
    // far from a power of two, so that Huffman codes lose to it even in a short chunk
    let exponent = if (bits >> 8).is_multiple_of(10) {
        118
    } else {
        120
    };
    let weight = (bits as u16 & 0x80) << 8 | exponent << 7 | (bits >> 16) as u16 & 0x7f;
    match name {
        "zeros-between" if i % 3 == 0 => 0,
        "exceptions" if i % 997 == 0 => 0x7f80 | i as u16,
        "constant" => 0x3f80,
        _ => weight,
    }
}

fn chunks() {
    for (name, count) in [
        ("weights", 6000),
        ("zeros-between", 1000),
        ("exceptions", 5555),
        ("constant", 640),
    ] {
        let raw = values(name, count);
        save("chunk_encoder", name, &[&[0], &raw[..]].concat());
        save(
            "chunk_encoder",
            &format!("{name}-f32"),
            &[&[6], &raw[..]].concat(),
        );
        if name == "constant" {
            continue; // zstd alone does better
        }
        for (target, coding, dtype, suffix) in [
            ("rans_chunk", Coding::Bf16Rans, Dtype::BF16, ""),
            ("planes_chunk", Coding::Bf16Zstd, Dtype::BF16, ""),
            ("planes_chunk", Coding::Bf16Zstd, Dtype::F32, "-f32"),
        ] {
            let mut encoder = ChunkEncoder::new(coding).unwrap();
            let (_, stored) = encoder.encode(dtype, &raw, 0, 0).unwrap();
            let mut input = u16::try_from(raw.len()).unwrap().to_le_bytes().to_vec();
            input.push(REPAIR_WORDS | REPAIR_FREQUENCIES | REPAIR_STATES);
            input.extend(stored);
            save(target, &format!("{name}{suffix}"), &input);
        }
    }
}

fn no_chunks() -> Vec<u8> {
    let mut head = b"SEGCHNK\x01".to_vec();
    head.resize(24, 0);
    let check = Blake3::of(&head).0;
    head.extend(&check[..8]);
    head
}

fn manifests() -> Vec<(&'static str, Value)> {
    let whole = manifest();
    let mut empty = whole.clone();
    for list in [
        "packs",
        "segments",
        "tensors",
        "source_files",
        "excluded",
        "left_out",
    ] {
        empty[list] = json!([]);
    }
    for (_, count) in empty["counts"].as_object_mut().unwrap() {
        *count = json!(0);
    }
    let mut optional = whole.clone();
    for key in ["provenance", "known"] {
        optional.as_object_mut().unwrap().remove(key);
    }
    optional["model"] = json!({"family": null});
    optional["options"] = json!({"codec": "raw", "source_digests": false, "sums": false});
    let newer = json!({"format_version": "2.0"});
    vec![
        ("every-key", whole),
        ("no-optional-key", optional),
        ("empty", empty),
        ("newer", newer),
    ]
}

fn digest() -> String {
    Sha256::of(b"").to_string()
}

/// A tensor of the manifest; `at` is its offset in the shard.
fn listed_tensor(
    name: &str,
    segment: &str,
    shape: &Value,
    (offset, length): (u64, u64),
    at: u64,
) -> Value {
    json!({
        "name": name, "dtype": "BF16", "shape": shape, "segment": segment, "offset": offset,
        "length": length, "sha256": digest(), "component": "text", "role": "expert_gate", "layer": 0,
        "expert": 1,
        "source": {"file": "model.safetensors", "tensor": "x", "offset": at, "length": length},
    })
}

/// A segment of the manifest.
fn listed_segment(
    id: &str,
    pack: &str,
    offset: u64,
    (stored, raw): (u64, u64),
    codec: &str,
) -> Value {
    json!({
        "id": id, "pack": pack, "offset": offset, "stored_length": stored, "raw_length": raw,
        "codec": codec, "layout": "row_major", "blake3": digest(),
    })
}

/// A pack of the manifest.
fn listed_pack(path: &str, length: u64) -> Value {
    json!({
        "path": path, "component": "text", "data_offset": 4096, "length": length, "sha256": digest(),
    })
}

fn manifest() -> Value {
    let digest = digest();
    let (experts, rest) = (
        "packs/text.experts.00.safetensors",
        "packs/text.safetensors",
    );
    json!({
        "format_version": "1.0",
        "generator": "segpack 0.1.0",
        "provenance": {"repo": "owner/name", "revision": "main"},
        "known": {"repo": "owner/name", "revision": "0", "identical": false, "differs": ["a: length"]},
        "model": {"family": "qwen3_moe", "text": {
            "hidden_size": 48, "layers": 3, "moe_layers": 3, "experts": 8, "experts_per_token": 3,
            "moe_intermediate": 24, "intermediate": 40, "heads": 4, "kv_heads": 2, "head_dim": 32,
            "vocab": 320, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "rope_type": "default",
            "attention_bias": false, "norm_topk_prob": true, "tie_word_embeddings": false,
        }},
        "options": {
            "codec": "zstd", "level": 3, "include": ["text"], "exclude": ["code2wav"],
            "source_digests": true, "sums": true,
        },
        "counts": {
            "packs": 2, "segments": 3, "tensors": 4, "parameters": 8212, "tensor_bytes": 16424,
            "experts": 3,
        },
        "excluded": [{"component": "code2wav", "tensors": 1, "bytes": 6}],
        "left_out": [{"path": ".git", "why": "version control"}],
        "source_files": [
            {
                "path": "config.json", "kind": "file", "length": 3, "sha256": digest,
                "stored_as": "source/config.json", "stored_length": 3, "stored_sha256": digest,
                "excluded_bytes": 0,
            },
            {
                "path": "model.safetensors", "kind": "shard", "length": 16530, "sha256": null,
                "stored_as": "source/.shard-headers/model.safetensors.header", "stored_length": 100,
                "stored_sha256": digest, "excluded_bytes": 6,
            },
        ],
        "packs": [listed_pack(experts, 4136), listed_pack(rest, 8192)],
        "segments": [
            listed_segment("a", experts, 4096, (16, 16), "raw"),
            listed_segment("b", experts, 4112, (24, 24), "raw"),
            listed_segment("c", rest, 4096, (4096, 16384), "zstd"),
        ],
        "tensors": [
            listed_tensor("a.0", "a", &json!([2, 3]), (0, 12), 100),
            listed_tensor("a.1", "a", &json!([2]), (12, 4), 112),
            listed_tensor("b.0", "b", &json!([3, 4]), (0, 24), 116),
            listed_tensor("c.0", "c", &json!([8192]), (0, 16384), 146),
        ],
    })
}

fn gguf_spec(name: &str, kind: gguf::TensorType, shape: &[u64]) -> gguf::PackTensor {
    gguf::PackTensor {
        name: name.to_owned(),
        kind,
        shape: shape.to_vec(),
    }
}

fn gguf_image(metadata: Vec<(&str, gguf::Value)>, tensors: Vec<gguf::PackTensor>) -> Vec<u8> {
    let metadata = metadata
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let header = gguf::Header::place(metadata, tensors).unwrap();
    let mut bytes = header.to_bytes();
    bytes.resize(usize::try_from(header.file_length()).unwrap(), 7);
    bytes
}

fn ggufs() -> [(&'static str, Vec<u8>); 3] {
    use gguf::{Array, TensorType, Value};
    let numbers = vec![
        ("u8", Value::U8(1)),
        ("i16", Value::I16(-1)),
        ("f32", Value::F32(1.5)),
        ("bool", Value::Bool(true)),
        ("u64", Value::U64(1 << 40)),
        ("f64", Value::F64(0.1)),
    ];
    let texts = vec![
        ("general.architecture", Value::from("qwen3moe")),
        ("general.alignment", Value::U32(64)),
        (
            "tokenizer.ggml.tokens",
            Value::Array(Array::Text(
                ["a", "", "\u{120}the"].map(str::to_owned).to_vec(),
            )),
        ),
        (
            "tokenizer.ggml.token_type",
            Value::Array(Array::I32(vec![1, 3, 1])),
        ),
    ];
    let tensors = vec![
        gguf_spec("output_norm.weight", TensorType::F32, &[3]),
        gguf_spec("blk.0.ffn_up_exps.weight", TensorType::Blocks(segpack_formats::numeric::ggml::BlockType::Q8_0), &[2, 3, 32]),
        gguf_spec("token_embd.weight", TensorType::Bf16, &[5, 3]),
    ];
    [
        ("no-tensors", gguf_image(numbers, vec![])),
        ("tensors", gguf_image(texts, tensors)),
        (
            "one-tensor",
            gguf_image(vec![], vec![gguf_spec("t", TensorType::F16, &[2, 1, 1, 3])]),
        ),
    ]
}

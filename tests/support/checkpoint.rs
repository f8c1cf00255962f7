//! Makes checkpoints of the shape of Qwen3-Omni-30B-A3B without its weights: the whole of it as
//! sparse files, or full-width subsets with fewer layers, filled with noise that has the statistics
//! of real weights.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::{Value, json};

/// Tensor bytes of a shard, as the publisher cut them.
pub const SHARD_LIMIT: u64 = 5_000_000_000;

/// One tensor of the published checkpoint, in the order in which it was saved.
#[derive(Debug, Clone, Deserialize)]
pub struct Row {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    pub shard: String,
}

impl Row {
    pub fn values(&self) -> u64 {
        self.shape.iter().product()
    }

    /// All of them are BF16.
    pub fn bytes(&self) -> u64 {
        2 * self.values()
    }
}

/// Which part of the model, and what its tensors hold.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decoder layers of the thinker.
    pub layers: Option<u64>,
    /// Decoder layers of the talker.
    pub talker_layers: Option<u64>,
    /// Blocks of the audio and the vision tower each, at least 3.
    pub tower_layers: Option<u64>,
    /// As in Thinking and Captioner: no talker, no code2wav.
    pub thinker_only: bool,
    /// Noise of this seed; holes, which read as zeros, where there is none.
    pub noise: Option<u64>,
    /// Tensor bytes of a shard, where the checkpoint is not the whole.
    pub limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            layers: None,
            talker_layers: None,
            tower_layers: None,
            thinker_only: false,
            noise: None,
            limit: SHARD_LIMIT,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    pub tensors: usize,
    pub shards: usize,
    pub bytes: u64,
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// The 28,010 tensors of Qwen3-Omni-30B-A3B-Instruct.
pub fn published_rows() -> Vec<Row> {
    let file =
        File::open(fixtures().join("qwen3-omni/tensors.json.gz")).expect("open the tensor list");
    serde_json::from_reader(io::BufReader::new(GzDecoder::new(file)))
        .expect("parse the tensor list")
}

pub fn published_config() -> Value {
    let text = fs::read(fixtures().join("qwen3-omni/config.json")).expect("read config.json");
    serde_json::from_slice(&text).expect("parse config.json")
}

/// Writes a checkpoint into `out`: shards, index and `config.json`.
pub fn write(out: &Path, options: &Options) -> io::Result<Totals> {
    let all = published_rows();
    let published = all.len();
    let rows: Vec<Row> = all
        .into_iter()
        .filter(|row| is_wanted(&row.name, options))
        .collect();
    let whole = rows.len() == published && options.limit == SHARD_LIMIT;
    let (config, shards) = if whole {
        (published_config(), as_published(rows))
    } else {
        (smaller_config(options), cut(rows, options.limit))
    };
    fs::create_dir_all(out)?;
    let mut noise = options.noise.map(Noise::new);
    for (file, rows) in &shards {
        write_shard(&out.join(file), rows, noise.as_mut())?;
    }
    let bytes = shards.values().flatten().map(Row::bytes).sum();
    let weight_map: BTreeMap<&str, &str> = shards
        .iter()
        .flat_map(|(file, rows)| rows.iter().map(|row| (row.name.as_str(), file.as_str())))
        .collect();
    let index = json!({"metadata": {"total_size": bytes}, "weight_map": weight_map});
    fs::write(
        out.join("model.safetensors.index.json"),
        format!("{index:#}\n"),
    )?;
    fs::write(out.join("config.json"), format!("{config:#}\n"))?;
    Ok(Totals {
        tensors: weight_map.len(),
        shards: shards.len(),
        bytes,
    })
}

/// Whether a tensor stays where layers are left out.
fn is_wanted(name: &str, options: &Options) -> bool {
    let stacks = [
        ("thinker.model.layers.", options.layers),
        ("talker.model.layers.", options.talker_layers),
        ("thinker.audio_tower.layers.", options.tower_layers),
        ("thinker.visual.blocks.", options.tower_layers),
    ];
    let layer_below = |prefix, limit: u64| {
        let rest = name.strip_prefix(prefix)?;
        let layer: u64 = rest.split('.').next()?.parse().ok()?;
        Some(layer < limit)
    };
    (!options.thinker_only || name.starts_with("thinker."))
        && stacks
            .iter()
            .all(|(prefix, limit)| limit.is_none_or(|l| layer_below(prefix, l).unwrap_or(true)))
}

/// Lowers a count, if it is given and higher.
fn lower(object: &mut Value, key: &str, limit: u64) {
    if let Some(count) = object
        .get_mut(key)
        .filter(|count| count.as_u64().is_some_and(|c| c > limit))
    {
        *count = json!(limit);
    }
}

/// `config.json` of what is left.
fn smaller_config(options: &Options) -> Value {
    let mut config = published_config();
    if let Some(layers) = options.layers {
        lower(
            &mut config["thinker_config"]["text_config"],
            "num_hidden_layers",
            layers,
        );
        // a place in the thinker's hidden states
        lower(&mut config["talker_config"], "accept_hidden_layer", layers);
    }
    if let Some(layers) = options.talker_layers {
        lower(
            &mut config["talker_config"]["text_config"],
            "num_hidden_layers",
            layers,
        );
    }
    if let Some(blocks) = options.tower_layers {
        let audio = &mut config["thinker_config"]["audio_config"];
        lower(audio, "encoder_layers", blocks);
        lower(audio, "num_hidden_layers", blocks);
        let vision = &mut config["thinker_config"]["vision_config"];
        lower(vision, "depth", blocks);
        let taps = vision["deepstack_visual_indexes"]
            .as_array()
            .map_or(0, Vec::len);
        vision["deepstack_visual_indexes"] = (0..taps).collect();
    }
    if options.thinker_only
        && let Some(keys) = config.as_object_mut()
    {
        keys.remove("talker_config");
        keys.remove("code2wav_config");
        keys.insert("enable_audio_output".to_owned(), json!(false));
    }
    config
}

fn as_published(rows: Vec<Row>) -> BTreeMap<String, Vec<Row>> {
    let mut shards: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for row in rows {
        shards.entry(row.shard.clone()).or_default().push(row);
    }
    shards
}

/// As transformers saves: a shard is full when the next tensor would not fit.
fn cut(rows: Vec<Row>, limit: u64) -> BTreeMap<String, Vec<Row>> {
    let (mut parts, mut full) = (vec![Vec::new()], 0);
    for row in rows {
        if full > 0 && full + row.bytes() > limit {
            parts.push(Vec::new());
            full = 0;
        }
        full += row.bytes();
        parts.last_mut().expect("there is a part").push(row);
    }
    let count = parts.len();
    let name = |i: usize| format!("model-{:05}-of-{count:05}.safetensors", i + 1);
    parts
        .into_iter()
        .enumerate()
        .map(|(i, rows)| (name(i), rows))
        .collect()
}

/// Length field and JSON of a shard, padded to 8 bytes, in the order given. The JSON is written by
/// hand: its keys keep their order.
pub fn header<'a>(tensors: impl Iterator<Item = (&'a str, &'a str, &'a [u64], u64)>) -> Vec<u8> {
    let (mut text, mut at) = (r#"{"__metadata__":{"format":"pt"}"#.to_owned(), 0);
    for (name, dtype, shape, length) in tensors {
        let (name, shape, end) = (Value::from(name), json!(shape), at + length);
        text.push_str(&format!(
            r#",{name}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{at},{end}]}}"#
        ));
        at += length;
    }
    text.push('}');
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes
}

fn write_shard(path: &Path, rows: &[Row], noise: Option<&mut Noise>) -> io::Result<()> {
    let mut sorted: Vec<&Row> = rows.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let entries = sorted
        .iter()
        .map(|r| (r.name.as_str(), r.dtype.as_str(), &r.shape[..], r.bytes()));
    let head = header(entries);
    let mut file = File::create(path)?;
    file.write_all(&head)?;
    match noise {
        // a hole: takes no room, reads as zeros
        None => file.set_len(head.len() as u64 + rows.iter().map(Row::bytes).sum::<u64>()),
        Some(noise) => {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            sorted
                .iter()
                .try_for_each(|row| noise.write(&row.name, row.values(), &mut out))?;
            out.flush()
        }
    }
}

/// Deterministic bf16 noise, normally distributed: 16 random bits choose one of 65,536 quantiles.
#[derive(Debug)]
pub struct Noise {
    seed: u64,
    quantiles: Vec<f64>,
}

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            quantiles: (0..65_536)
                .map(|i| quantile((f64::from(i) + 0.5) / 65_536.0))
                .collect(),
        }
    }

    /// Writes this many values of the tensor of this name.
    pub fn write(&self, name: &str, mut values: u64, out: &mut impl Write) -> io::Result<()> {
        const PIECE: usize = 1 << 18;
        let mut random = Random(hash(name) ^ self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (mean, std) = moments(name);
        let value =
            |bits: u16| bf16(self.quantiles[usize::from(bits)].mul_add(std, mean)).to_le_bytes();
        if values < 65_536 {
            let bytes: Vec<u8> = (0..values).flat_map(|_| value(random.bits16())).collect();
            return out.write_all(&bytes);
        }
        let table: Vec<[u8; 2]> = (0..=u16::MAX).map(value).collect();
        let mut piece = vec![0; PIECE];
        while values > 0 {
            let now = values.min(PIECE as u64 / 2);
            let bytes = &mut piece[..now as usize * 2];
            for eight in bytes.chunks_mut(8) {
                let mut bits = random.next();
                for pair in eight.chunks_exact_mut(2) {
                    pair.copy_from_slice(&table[(bits & 0xffff) as usize]);
                    bits >>= 16;
                }
            }
            out.write_all(bytes)?;
            values -= now;
        }
        Ok(())
    }
}

/// Mean and standard deviation by the kind of tensor; matrices differ from one another by up to a
/// third.
fn moments(name: &str) -> (f64, f64) {
    let (stem, leaf) = name.rsplit_once('.').unwrap_or(("", name));
    let module = stem.rsplit('.').next().unwrap_or_default();
    let is_norm = module.contains("norm") || matches!(module, "ln_q" | "ln_post");
    match leaf {
        "bias" => (0.0, 0.01),
        "weight" if is_norm => (1.0, 0.1),
        "scale" | "gamma" => (0.01, 0.003),
        "alpha" | "beta" => (0.0, 0.5),
        _ => (
            0.0,
            0.015
                * (0.02_f64 / 0.015 / 0.75)
                    .powf((hash(name) >> 11) as f64 / 9_007_199_254_740_992.0),
        ),
    }
}

/// FNV-1a, then mixed.
fn hash(text: &str) -> u64 {
    let fnv = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    Random(text.bytes().fold(0xcbf2_9ce4_8422_2325, fnv)).next()
}

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn bits16(&mut self) -> u16 {
        (self.next() >> 48) as u16
    }
}

/// Rounded to the nearest even.
pub fn bf16(value: f64) -> u16 {
    let bits = (value as f32).to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The inverse of the normal distribution (Acklam's rational approximation, relative error below
/// 1.2e-9).
fn quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e1,
        2.209460984245205e2,
        -2.759285104469687e2,
        1.38357751867269e2,
        -3.066479806614716e1,
        2.506628277459239,
    ];
    const B: [f64; 5] = [
        -5.447609879822406e1,
        1.615858368580409e2,
        -1.556989798598866e2,
        6.680131188771972e1,
        -1.328068155288572e1,
    ];
    const C: [f64; 6] = [
        -7.784894002430293e-3,
        -3.223964580411365e-1,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    ];
    const D: [f64; 4] = [
        7.784695709041462e-3,
        3.224671290700398e-1,
        2.445134137142996,
        3.754408661907416,
    ];
    let polynomial =
        |factors: &[f64], x: f64| factors.iter().fold(0.0, |sum, factor| sum * x + factor);
    if p > 0.5 {
        return -quantile(1.0 - p);
    }
    if p < 0.02425 {
        let q = (-2.0 * p.ln()).sqrt();
        return polynomial(&C, q) / (polynomial(&D, q) * q + 1.0);
    }
    let (q, r) = (p - 0.5, (p - 0.5) * (p - 0.5));
    polynomial(&A, r) * q / (polynomial(&B, r) * r + 1.0)
}

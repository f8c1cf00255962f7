//! Codes to sound: the official waves of recorded codes, what faults do to them, and the command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use safetensors::SafeTensors;
use segpack_manifests::Pack;
use segpack_runtime_min::models::code2wav::{Chunks, VocoderObserver, WaveStage};
use segpack_runtime_min::session::{MemoryLimit, Session, SessionError, SessionOptions};
use serde_json::Value;

use crate::support::checkpoint::fixtures;
use crate::support::cli::{packed, program, segpack};
use crate::support::folders::{copy, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::{Tensor, shard_bytes, tensors_of, tiny_full};

/// Signal to noise that every case has to reach, in decibels.
const SNR: f64 = 92.0;
/// Difference of a stage that is allowed, in standard deviations of the stage.
const STAGE: f64 = 1e-3;

/// A checkpoint with its trace, and the difference of a sample that is allowed.
struct Case {
    checkpoint: PathBuf,
    trace: &'static str,
    max_abs: f64,
}

fn cases() -> [Case; 2] {
    [
        Case {
            checkpoint: tiny_full(),
            trace: "tiny-full.wav",
            max_abs: 2e-5,
        },
        Case {
            checkpoint: fixtures().join("tiny-speech"),
            trace: "tiny-speech.wav",
            max_abs: 3e-4,
        },
    ]
}

/// A trace in memory.
struct Recorded(Vec<u8>);

impl Recorded {
    fn open(name: &str) -> Self {
        let path = fixtures().join(format!("traces/{name}.float32.safetensors"));
        Self(fs::read(path).unwrap())
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let tensors = self.tensors();
        let mut names: Vec<String> = tensors
            .names()
            .into_iter()
            .map(ToString::to_string)
            .collect();
        names.sort();
        names
    }

    /// Prefixes of the cases.
    fn prefixes(&self) -> Vec<String> {
        let names = self.names();
        let prefixes = names.iter().filter_map(|name| name.strip_suffix(".codes"));
        prefixes.map(ToOwned::to_owned).collect()
    }

    fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap();
        let values = view.data().as_chunks::<4>().0;
        let values = values.iter().map(|b| f32::from_le_bytes(*b));
        (view.shape().to_vec(), values.collect())
    }

    /// `[frames, groups]`
    fn codes(&self, prefix: &str) -> (Vec<u32>, usize) {
        let tensors = self.tensors();
        let view = tensors.tensor(&format!("{prefix}.codes")).unwrap();
        let [groups, frames] = view.shape() else {
            panic!("{:?}", view.shape())
        };
        let values = view.data().as_chunks::<8>().0;
        let code = |at: usize| u32::try_from(i64::from_le_bytes(values[at])).unwrap();
        let frame = |f: usize| (0..*groups).map(move |g| code(g * frames + f));
        ((0..*frames).flat_map(frame).collect(), *groups)
    }
}

/// Keeps all stages.
#[derive(Default)]
struct Kept(Vec<(WaveStage, usize, Vec<f32>)>);

impl VocoderObserver for Kept {
    fn stage(&mut self, stage: WaveStage, rows: &[f32], width: usize) {
        match self.0.iter_mut().find(|(known, _, _)| *known == stage) {
            Some((_, _, values)) => values.extend(rows),
            None => self.0.push((stage, width, rows.to_vec())),
        }
    }
}

fn name_of(stage: WaveStage) -> String {
    match stage {
        WaveStage::Embed => "embed".to_owned(),
        WaveStage::Layer(n) => format!("layer.{n}"),
        WaveStage::Norm => "norm".to_owned(),
        WaveStage::UpConv(n) => format!("up.{n}.conv"),
        WaveStage::Up(n) => format!("up.{n}"),
        WaveStage::First => "dec.0".to_owned(),
        WaveStage::Transposed(n) => format!("dec.{n}.tconv"),
        WaveStage::Block(n) => format!("dec.{n}"),
        WaveStage::Raw => "raw".to_owned(),
    }
}

fn options(threads: usize) -> SessionOptions {
    let mut options = SessionOptions::default();
    options.threads = Some(threads);
    options.memory = MemoryLimit::Unlimited;
    options
}

fn decode(
    pack: &Path,
    codes: &[u32],
    chunks: Chunks,
    threads: usize,
    observer: &mut (dyn VocoderObserver + Send),
) -> Vec<f32> {
    let pack = Pack::open(pack).unwrap();
    let session = Session::open(&pack, &options(threads)).unwrap();
    let vocoder = session.vocoder(0).unwrap();
    let mut wave = Vec::new();
    let mut sink = |piece: &[f32]| {
        wave.extend_from_slice(piece);
        Ok::<_, SessionError>(())
    };
    session
        .vocode(&vocoder, codes, chunks, observer, &mut sink)
        .unwrap();
    assert_eq!(
        wave.len(),
        vocoder.samples(codes.len() / vocoder.groups(), chunks)
    );
    wave
}

/// Largest difference, and signal to noise in decibels.
fn differences(seen: &[f32], wanted: &[f32]) -> (f64, f64) {
    assert_eq!(seen.len(), wanted.len());
    let (mut max_abs, mut noise, mut signal) = (0.0_f64, 0.0_f64, 0.0_f64);
    for (seen, wanted) in seen.iter().zip(wanted) {
        let difference = f64::from(*seen) - f64::from(*wanted);
        max_abs = max_abs.max(difference.abs());
        noise += difference * difference;
        signal += f64::from(*wanted).powi(2);
        assert!(seen.is_finite());
    }
    (max_abs, 10.0 * (signal / noise).log10())
}

fn is_within(case: &Case, seen: &[f32], wanted: &[f32]) -> bool {
    if seen.len() != wanted.len() {
        return false;
    }
    let (max_abs, snr) = differences(seen, wanted);
    max_abs <= case.max_abs && snr >= SNR
}

/// The chunks of a recorded name: `w02.chunked.300_25`.
fn chunks_of(name: &str) -> Chunks {
    let (frames, context) = name.rsplit_once('.').unwrap().1.split_once('_').unwrap();
    Chunks {
        frames: frames.parse().unwrap(),
        context: context.parse().unwrap(),
        gapless: false,
    }
}

#[test]
fn recorded_codes_become_the_official_sound() {
    for case in cases() {
        let folder = temp();
        let pack = packed(&case.checkpoint, folder.path());
        let recorded = Recorded::open(case.trace);
        for prefix in recorded.prefixes() {
            let (codes, _) = recorded.codes(&prefix);
            let mut kept = Kept::default();
            let seen = decode(&pack, &codes, Chunks::whole(), 2, &mut kept);
            let (_, wanted) = recorded.floats(&format!("{prefix}.wave"));
            let (max_abs, snr) = differences(&seen, &wanted);
            println!(
                "{} {prefix}: max {max_abs:.1e}, SNR {snr:.1} dB",
                case.trace
            );
            assert!(is_within(&case, &seen, &wanted), "{} {prefix}", case.trace);
            compare_stages(&recorded, &prefix, &kept);
            for name in recorded.names() {
                if name.starts_with(&format!("{prefix}.chunked.")) {
                    let seen = decode(&pack, &codes, chunks_of(&name), 2, &mut ());
                    let (_, wanted) = recorded.floats(&name);
                    assert!(is_within(&case, &seen, &wanted), "{} {name}", case.trace);
                }
            }
        }
    }
}

fn compare_stages(recorded: &Recorded, prefix: &str, kept: &Kept) {
    let names = recorded.names();
    let stages = names
        .iter()
        .filter(|n| n.starts_with(&format!("{prefix}.wav.")));
    let mut compared = 0;
    for (stage, width, seen) in &kept.0 {
        let name = format!("{prefix}.wav.{}", name_of(*stage));
        if !names.contains(&name) {
            continue;
        }
        compared += 1;
        let (_, wanted) = recorded.floats(&name);
        assert_eq!(seen.len(), wanted.len(), "{name}");
        let is_by_channel = *stage > WaveStage::Norm;
        let rows = seen.len() / width;
        let count = wanted.len() as f64;
        let mean = wanted.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let variance = wanted
            .iter()
            .map(|x| (f64::from(*x) - mean).powi(2))
            .sum::<f64>()
            / count;
        let at = |i: usize| match is_by_channel {
            true => seen[i % rows * width + i / rows],
            false => seen[i],
        };
        let worst = (0..wanted.len()).map(|i| f64::from((at(i) - wanted[i]).abs()));
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= STAGE * variance.sqrt(), "{name}: {worst:.1e}");
    }
    assert_eq!(
        compared,
        stages.count(),
        "{prefix}: all stages are compared"
    );
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_codec() {
    let [_, case] = cases();
    let folder = temp();
    let pack = packed(&case.checkpoint, folder.path());
    let coded = folder.path().join("coded");
    pack_into(&case.checkpoint, &coded, &["--codec", "bf16-rans"]);
    let (codes, _) = Recorded::open(case.trace).codes("w01");
    let once = decode(&pack, &codes, Chunks::default(), 1, &mut ());
    for (pack, threads) in [(&pack, 2), (&pack, 3), (&coded, 1), (&coded, 2)] {
        let again = decode(pack, &codes, Chunks::default(), threads, &mut ());
        assert!(
            once.iter()
                .map(|x| x.to_bits())
                .eq(again.iter().map(|x| x.to_bits()))
        );
    }
}

#[test]
fn gapless_chunks_that_see_everything_before_them_are_the_whole() {
    let [_, case] = cases();
    let folder = temp();
    let pack = packed(&case.checkpoint, folder.path());
    let (codes, groups) = Recorded::open(case.trace).codes("w01");
    let whole = decode(&pack, &codes, Chunks::whole(), 1, &mut ());
    let chunks = Chunks {
        frames: 25,
        context: 25,
        gapless: true,
    };
    assert!(codes.len() / groups > 25);
    let joined = decode(&pack, &codes, chunks, 1, &mut ());
    assert!(
        whole
            .iter()
            .map(|x| x.to_bits())
            .eq(joined.iter().map(|x| x.to_bits()))
    );
}

/// A copy of a checkpoint with another vocoder, packed.
fn bent(
    case: &Case,
    folder: &Path,
    config: &dyn Fn(&mut Value),
    tensor: &dyn Fn(&mut Tensor),
) -> PathBuf {
    let root = folder.join("bent");
    copy(&case.checkpoint, &root);
    let path = root.join("config.json");
    let mut document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config(&mut document["code2wav_config"]);
    fs::write(&path, document.to_string()).unwrap();
    for entry in fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let mut tensors = tensors_of(&fs::read(&path).unwrap());
            tensors.iter_mut().for_each(tensor);
            fs::write(&path, shard_bytes(&tensors)).unwrap();
        }
    }
    packed(&root, folder)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.dtype, "BF16");
    let pairs = tensor.bytes.as_chunks::<2>().0.iter();
    let bits = pairs.map(|b| u32::from(u16::from_le_bytes(*b)) << 16);
    bits.map(f32::from_bits).collect()
}

/// Rounds towards zero.
fn store(tensor: &mut Tensor, values: &[f32]) {
    let halves = values
        .iter()
        .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes());
    tensor.bytes = halves.collect();
}

fn map(tensor: &mut Tensor, change: impl Fn(f32) -> f32) {
    let changed: Vec<f32> = values(tensor).into_iter().map(change).collect();
    store(tensor, &changed);
}

/// Rows of the last dimension, each changed.
fn map_kernels(tensor: &mut Tensor, change: impl Fn(&mut [f32])) {
    let mut all = values(tensor);
    let length = usize::try_from(*tensor.shape.last().unwrap()).unwrap();
    all.chunks_exact_mut(length).for_each(change);
    store(tensor, &all);
}

type Config = fn(&mut Value);
type Change = fn(&mut Tensor);

/// A fault, made in a checkpoint so that it computes what a faulty program would of the right one;
/// and whether it shows in a wave of 14 frames or more of `tiny-full`, and of `tiny-speech`.
struct Fault(&'static str, Config, Change, [bool; 2]);

fn same(_: &mut Value) {}
fn keep(_: &mut Tensor) {}

/// Whether it is a tensor of the vocoder with this end.
fn is(tensor: &Tensor, end: &str) -> bool {
    tensor.name.starts_with("code2wav.") && tensor.name.ends_with(end)
}

fn shrink(config: &mut Value, key: &str, factor: f64) {
    config[key] = (config[key].as_f64().unwrap() * factor).into();
}

fn window(config: &mut Value, by: i64) {
    config["sliding_window"] = (config["sliding_window"].as_i64().unwrap() + by).into();
}

const FAULTS: [Fault; 20] = [
    Fault(
        "a window that is one shorter",
        |c| window(c, -1),
        keep,
        [true; 2],
    ),
    Fault(
        "a window that is one longer",
        |c| window(c, 1),
        keep,
        [true; 2],
    ),
    Fault("no window", |c| window(c, 10_000), keep, [true; 2]),
    Fault(
        "RMS eps 1e-6",
        |c| shrink(c, "rms_norm_eps", 0.1),
        keep,
        [true; 2],
    ),
    Fault(
        "RMS eps 1e-4",
        |c| shrink(c, "rms_norm_eps", 10.0),
        keep,
        [true; 2],
    ),
    Fault(
        "rope theta 1e6",
        |c| shrink(c, "rope_theta", 100.0),
        keep,
        [true; 2],
    ),
    Fault("the sum of the groups", same, sum_of_groups, [true; 2]),
    Fault(
        "all groups read the first table",
        same,
        first_table,
        [true; 2],
    ),
    Fault("no layer scale", same, no_layer_scale, [true; 2]),
    Fault("no gamma", same, no_gamma, [true; 2]),
    Fault("transposed kernels flipped", same, flipped, [true; 2]),
    Fault("causal padding off by one", same, shifted, [true; 2]),
    Fault("divided by e^alpha", same, alpha_for_beta, [true; 2]),
    Fault("no snake before a block", same, no_first_snake, [true; 2]),
    Fault("snake without exponents", same, no_exponents, [true; 2]),
    Fault("LayerNorm eps 1.6e-5", same, quiet_depthwise, [false, true]),
    Fault("SnakeBeta without 1e-9", same, no_epsilon, [false, true]),
    Fault(
        "no bias in depthwise convolutions",
        same,
        no_depthwise_bias,
        [true; 2],
    ),
    Fault(
        "queries and keys exchanged in halves",
        same,
        halves_of_keys,
        [true; 2],
    ),
    Fault("silence of the last unit", same, last_unit, [true; 2]),
];

fn sum_of_groups(tensor: &mut Tensor) {
    if is(tensor, "code_embedding.weight") {
        map(tensor, |x| x * 4.0);
    }
}

fn first_table(tensor: &mut Tensor) {
    if is(tensor, "code_embedding.weight") {
        // 4 groups of 64 codes, or 8 of 96
        let groups = if tensor.shape[0] == 256 { 4 } else { 8 };
        let first = tensor.bytes[..tensor.bytes.len() / groups].to_vec();
        tensor.bytes = first.repeat(groups);
    }
}

fn no_layer_scale(tensor: &mut Tensor) {
    if is(tensor, "layer_scale.scale") {
        map(tensor, |_| 1.0);
    }
}

fn no_gamma(tensor: &mut Tensor) {
    if is(tensor, ".gamma") {
        map(tensor, |_| 1.0);
    }
}

fn flipped(tensor: &mut Tensor) {
    if is(tensor, ".block.1.conv.weight") {
        map_kernels(tensor, <[f32]>::reverse);
    }
}

fn shifted(tensor: &mut Tensor) {
    if is(tensor, "conv1.conv.weight") {
        map_kernels(tensor, |kernel| {
            kernel.rotate_left(1);
            kernel[kernel.len() - 1] = 0.0;
        });
    }
}

/// Names sort so that alphas come before betas: the test looks at tensors one by one, so all become
/// the same.
fn alpha_for_beta(tensor: &mut Tensor) {
    if is(tensor, ".beta") && tensor.name.contains(".block.") {
        map(tensor, |_| 0.25);
    }
}

fn no_first_snake(tensor: &mut Tensor) {
    if is(tensor, ".block.0.alpha") {
        map(tensor, |_| -1e30);
    }
}

fn no_exponents(tensor: &mut Tensor) {
    if is(tensor, ".alpha") {
        map(tensor, |x| x.abs().max(1e-3).ln());
    }
}

/// What is normed is 4 times smaller, so what is added to its variance weighs 16 times as much.
fn quiet_depthwise(tensor: &mut Tensor) {
    if is(tensor, "dwconv.conv.weight") || is(tensor, "dwconv.conv.bias") {
        map(tensor, |x| x / 4.0);
    }
}

/// What would be added to e^-20 is missing there.
fn no_epsilon(tensor: &mut Tensor) {
    if is(tensor, ".beta") {
        map(tensor, |x| match x < -19.5 && x > -20.5 {
            true => (x.exp() - 1e-9).ln(),
            false => x,
        });
    }
}

fn no_depthwise_bias(tensor: &mut Tensor) {
    if is(tensor, "dwconv.conv.bias") {
        map(tensor, |_| 0.0);
    }
}

fn halves_of_keys(tensor: &mut Tensor) {
    if is(tensor, "k_proj.weight") {
        let half = tensor.bytes.len() / 2;
        tensor.bytes.rotate_left(half);
    }
}

fn last_unit(tensor: &mut Tensor) {
    if is(tensor, ".block.4.conv2.conv.weight") {
        map(tensor, |_| 0.0);
    }
}

#[test]
fn faults_are_outside_the_gate() {
    for (number, case) in cases().iter().enumerate() {
        let recorded = Recorded::open(case.trace);
        let (codes, _) = recorded.codes("w01");
        let (_, wanted) = recorded.floats("w01.wave");
        for Fault(what, config, tensor, shows) in &FAULTS {
            let folder = temp();
            let pack = bent(case, folder.path(), config, tensor);
            let seen = decode(&pack, &codes, Chunks::whole(), 1, &mut ());
            let is_caught = !is_within(case, &seen, &wanted);
            assert_eq!(is_caught, shows[number], "{}: {what}", case.trace);
        }
        // of chunks, and of the clamp
        let folder = temp();
        let pack = packed(&case.checkpoint, folder.path());
        let names = recorded.names();
        let small = names.iter().filter(|n| n.starts_with("w01.chunked."));
        let mut caught = 0;
        for name in small {
            let (_, wanted) = recorded.floats(name);
            let right = chunks_of(name);
            if right.frames >= codes.len() / 4 {
                continue;
            }
            for context in [right.context - 1, right.context + 1] {
                let wrong = Chunks { context, ..right };
                let seen = decode(&pack, &codes, wrong, 1, &mut ());
                caught += usize::from(!is_within(case, &seen, &wanted));
            }
            let gapless = Chunks {
                gapless: true,
                ..right
            };
            assert_ne!(
                decode(&pack, &codes, gapless, 1, &mut ()).len(),
                wanted.len()
            );
        }
        assert!(number == 1 || caught >= 2, "left context: {caught}");
        let mut kept = Kept::default();
        decode(&pack, &codes, Chunks::whole(), 1, &mut kept);
        let (_, _, raw) = kept
            .0
            .iter()
            .find(|(stage, _, _)| *stage == WaveStage::Raw)
            .unwrap();
        assert_eq!(!is_within(case, raw, &wanted), number == 1, "no clamp");
    }
}

/// A `.npy` file of a recorded case, `[groups, frames]` or the other way round.
fn npy(recorded: &Recorded, prefix: &str, by_group: bool, descr: &str) -> Vec<u8> {
    let (codes, groups) = recorded.codes(prefix);
    let frames = codes.len() / groups;
    let shape = match by_group {
        true => [groups, frames],
        false => [frames, groups],
    };
    let mut bytes = segpack_formats::npy::header(descr, &shape.map(|n| n as u64));
    for i in 0..codes.len() {
        let at = match by_group {
            true => i % frames * groups + i / frames,
            false => i,
        };
        match descr {
            "<i8" => bytes.extend(i64::from(codes[at]).to_le_bytes()),
            _ => bytes.extend(u16::try_from(codes[at]).unwrap().to_le_bytes()),
        }
    }
    bytes
}

#[test]
fn the_command_writes_wav() {
    let [case, _] = cases();
    let folder = temp();
    let pack = packed(&case.checkpoint, folder.path());
    let recorded = Recorded::open(case.trace);
    let at = |name: &str| folder.path().join(name);
    fs::write(at("codes.npy"), npy(&recorded, "w02", true, "<i8")).unwrap();
    fs::write(at("turned.npy"), npy(&recorded, "w02", false, "<u2")).unwrap();
    let (_, wanted) = recorded.floats("w02.chunked.300_25");
    let summary = segpack![
        "vocode",
        &pack,
        at("codes.npy"),
        "-o",
        at("a.wav"),
        "--json"
    ]
    .ok();
    assert_eq!(summary.json()["samples"], wanted.len());
    segpack![
        "vocode",
        &pack,
        at("turned.npy"),
        "-o",
        at("f.wav"),
        "--wav-format",
        "float32"
    ]
    .ok();
    let float = fs::read(at("f.wav")).unwrap();
    let samples = float[58..].as_chunks::<4>().0.iter();
    let samples: Vec<f32> = samples.map(|b| f32::from_le_bytes(*b)).collect();
    assert!(is_within(&case, &samples, &wanted));
    // integers are those of the floats, in a file, down a pipe, without a header
    let file = fs::read(at("a.wav")).unwrap();
    let integers: Vec<u8> = samples
        .iter()
        .flat_map(|x| segpack_formats::wav::pcm16(*x).to_le_bytes())
        .collect();
    assert!(file.len() == 44 + integers.len() && file.ends_with(&integers));
    let piped = segpack!["vocode", &pack, at("codes.npy"), "-o", "-"].ok();
    assert_eq!(piped.stdout, file);
    let bare = segpack![
        "vocode",
        &pack,
        at("codes.npy"),
        "-o",
        "-",
        "--wav-format",
        "s16le"
    ]
    .ok();
    assert_eq!(bare.stdout, integers);
    let gapless = segpack![
        "vocode",
        &pack,
        at("codes.npy"),
        "-o",
        at("g.wav"),
        "--gapless",
        "--json"
    ];
    assert_eq!(
        gapless.ok().json()["samples"],
        recorded.floats("w02.wave").1.len()
    );
}

#[test]
fn codes_that_are_none_leave_nothing() {
    let [case, _] = cases();
    let folder = temp();
    let pack = packed(&case.checkpoint, folder.path());
    let at = |name: &str| folder.path().join(name);
    let header = segpack_formats::npy::header;
    let of =
        |descr: &str, shape: &[u64], data: &[u8]| [header(descr, shape), data.to_vec()].concat();
    for (what, bytes, words) in [
        ("empty", Vec::new(), "does not begin with"),
        (
            "float",
            of("<f4", &[4, 1], &[0; 16]),
            "wanted whole numbers",
        ),
        ("groups", of("|u1", &[3, 5], &[0; 15]), "has shape [3, 5]"),
        ("flat", of("|u1", &[4], &[0; 4]), "has shape [4]"),
        (
            "short",
            of("<i8", &[4, 2], &[0; 63]),
            "holds 63 bytes of data",
        ),
        ("huge", of("<i8", &[4, 1 << 62], &[0; 64]), "holds 64 bytes"),
        (
            "negative",
            of("|i1", &[4, 1], &[0, 0, 0xff, 0]),
            "code -1 of group 2, frame 0",
        ),
        (
            "range",
            of("|u1", &[4, 2], &[0, 1, 2, 3, 4, 64, 5, 6]),
            "code 64 of group 2, frame 1",
        ),
        ("none", of("|u1", &[4, 0], &[]), "there is no frame"),
    ] {
        fs::write(at("codes.npy"), bytes).unwrap();
        let run = segpack!["vocode", &pack, at("codes.npy"), "-o", at("out.wav")].exits(3);
        assert!(run.stderr.contains(words), "{what}: {}", run.stderr);
        assert!(
            !at("out.wav").exists() && !at("out.wav.partial").exists(),
            "{what}"
        );
    }
    fs::write(at("codes.npy"), of("|u1", &[4, 2], &[0; 8])).unwrap();
    segpack!["vocode", &pack, at("codes.npy"), "-o", at("none/out.wav")].exits(1);
    let run = segpack![
        "vocode",
        &pack,
        at("codes.npy"),
        "-o",
        at("out.wav"),
        "--memory",
        "1MB"
    ];
    assert!(run.exits(1).stderr.contains("hint: --memory"));
}

#[test]
fn a_reader_that_has_enough_ends_it_quietly() {
    let [case, _] = cases();
    let folder = temp();
    let pack = packed(&case.checkpoint, folder.path());
    let codes = folder.path().join("codes.npy");
    fs::write(&codes, npy(&Recorded::open(case.trace), "w04", true, "<i8")).unwrap();
    let mut command = program();
    command
        .arg("vocode")
        .arg(&pack)
        .arg(&codes)
        .args(["-o", "-"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

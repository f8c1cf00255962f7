//! The forward pass against the official traces: the strict gate in f32, greedy tokens in bf16.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use segpack::steps::pack::{FetchSettings, PackSettings, pack};
use segpack::steps::scan::ScanOptions;
use segpack::work::Silent;
use segpack_formats::codec::Coding;
use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::PackReader;
use segpack_manifests::layout::Selection;
use segpack_runtime_min::models::decoder::{Decoder, Logits, RunSettings};
use segpack_runtime_min::ops::{Compute, CpuOps, Ops, ScalarOps};
use segpack_runtime_min::{Kernels, Observer, Routing, Unobserved};

use crate::support::folders::temp;

pub(super) fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    match name {
        "tiny-full" => root.join("demo/tiny-full"),
        name => root.join("../tests/fixtures").join(name),
    }
}

pub(super) fn packed(checkpoint: &Path, coding: Coding) -> (tempfile::TempDir, Pack) {
    let folder = temp();
    let settings = PackSettings {
        selection: Selection::default(),
        coding,
        part: None,
        jobs: 1,
        resume: false,
        force: false,
        space_check: true,
        consume: false,
        in_place: false,
        source_digests: true,
        sums: true,
        provenance: false,
        fetch: FetchSettings::default(),
        scan: ScanOptions::default(),
    };
    pack(
        checkpoint,
        &folder.path().join("pack"),
        &settings,
        &CancelToken::default(),
        &Silent,
    )
    .unwrap();
    let pack = Pack::open(&folder.path().join("pack")).unwrap();
    (folder, pack)
}

/// One recorded prompt.
struct Recorded {
    ids: Vec<u32>,
    generated: Vec<u32>,
    bf16_stable: bool,
    logits: Vec<f32>,
    /// Per layer: chosen experts of every token, and the router's logits.
    experts: Vec<(Vec<u32>, Vec<f32>)>,
}

fn numbers(tensors: &SafeTensors<'_>, name: &str) -> Vec<i64> {
    let data = tensors.tensor(name).unwrap();
    data.data()
        .as_chunks::<8>()
        .0
        .iter()
        .map(|b| i64::from_le_bytes(*b))
        .collect()
}

fn values(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = tensors.tensor(name).unwrap();
    match view.dtype() {
        safetensors::Dtype::F32 => view
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect(),
        _ => {
            let widen = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            view.data().as_chunks::<2>().0.iter().map(widen).collect()
        }
    }
}

fn recorded(name: &str) -> Vec<Recorded> {
    let base = fixture("traces").join(name);
    let bytes = std::fs::read(base.with_extension(format!(
        "{}.safetensors",
        base.extension().unwrap().to_str().unwrap()
    )))
    .unwrap();
    let json = std::fs::read(base.with_extension(format!(
        "{}.json",
        base.extension().unwrap().to_str().unwrap()
    )))
    .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let layers = json["model"]["num_hidden_layers"].as_u64().unwrap();
    let ids = |name: String| {
        numbers(&tensors, &name)
            .into_iter()
            .map(|i| u32::try_from(i).unwrap())
            .collect::<Vec<_>>()
    };
    let prompts = json["prompts"].as_array().unwrap();
    prompts
        .iter()
        .enumerate()
        .map(|(p, prompt)| Recorded {
            ids: ids(format!("p{p:02}.input_ids")),
            generated: ids(format!("p{p:02}.gen.ids")),
            bf16_stable: prompt["bf16_stable"].as_bool().unwrap_or(false),
            logits: values(&tensors, &format!("p{p:02}.logits")),
            experts: (0..layers)
                .map(|l| {
                    (
                        ids(format!("p{p:02}.layer.{l}.topk_ids")),
                        values(&tensors, &format!("p{p:02}.layer.{l}.router_logits")),
                    )
                })
                .collect(),
        })
        .collect()
}

#[derive(Default)]
struct Routings(Vec<Routing>);

impl Observer for Routings {
    fn router(&mut self, _: usize, routing: &Routing) {
        self.0.push(routing.clone());
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)))
        .unwrap()
        .0;
    u32::try_from(best).unwrap()
}

fn settings(prompt: &Recorded, slots: Option<u64>) -> RunSettings {
    let positions = prompt.ids.len() + prompt.generated.len();
    let mut settings = RunSettings::new(positions, prompt.ids.len());
    settings.expert_slots = slots;
    settings
}

/// Logits of every prompt position, expert choices, and the greedy continuation.
fn run<O: Ops>(
    pack: &Pack,
    ops: O,
    prompt: &Recorded,
    settings: RunSettings,
) -> (Vec<f32>, Vec<Routing>, Vec<u32>) {
    let (source, stop) = (PackReader::new(pack), CancelToken::default());
    let mut thinker = Decoder::new(&source, ops, settings, &stop).unwrap();
    let mut routings = Routings::default();
    let logits = thinker
        .forward(&prompt.ids, Logits::All, &mut routings)
        .unwrap();
    let vocab = usize::try_from(thinker.facts().vocab).unwrap();
    let mut next = argmax(&logits[logits.len() - vocab..]);
    let mut generated = vec![next];
    while generated.len() < prompt.generated.len() {
        next = argmax(
            &thinker
                .forward(&[next], Logits::Last, &mut Unobserved)
                .unwrap(),
        );
        generated.push(next);
    }
    (logits, routings.0, generated)
}

fn check_strict(
    prompt: &Recorded,
    layers: usize,
    logits: &[f32],
    routings: &[Routing],
    generated: &[u32],
    what: &str,
) {
    let tolerance = f32::max(3e-4, 4.5e-5 * f32::from(u16::try_from(layers).unwrap()));
    let worst = logits
        .iter()
        .zip(&prompt.logits)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(
        logits.len() == prompt.logits.len() && worst <= tolerance,
        "{what}: max |dlogit| {worst}"
    );
    assert_eq!(generated, prompt.generated, "{what}");
    for (layer, (routing, (ids, _))) in routings.iter().zip(&prompt.experts).enumerate() {
        let best = ids.len() / prompt.ids.len();
        for (t, (seen, wanted)) in routing.ids.chunks(best).zip(ids.chunks(best)).enumerate() {
            let set = |ids: &[u32]| ids.iter().copied().collect::<BTreeSet<_>>();
            assert_eq!(set(seen), set(wanted), "{what}: layer {layer}, token {t}");
        }
    }
}

#[test]
fn f32_traces_are_inside_the_strict_gate() {
    for name in ["tiny-text", "tiny-full"] {
        let (_folder, pack) = packed(&fixture(name), Coding::Raw);
        for (p, prompt) in recorded(&format!("{name}.float32")).iter().enumerate() {
            let layers = prompt.experts.len();
            let (logits, routings, generated) =
                run(&pack, ScalarOps::default(), prompt, settings(prompt, None));
            check_strict(
                prompt,
                layers,
                &logits,
                &routings,
                &generated,
                &format!("{name} {p} scalar"),
            );
            for kernels in Kernels::all() {
                let ops = CpuOps::with_kernels(Compute::F32, kernels);
                let (logits, routings, generated) = run(&pack, ops, prompt, settings(prompt, None));
                check_strict(
                    prompt,
                    layers,
                    &logits,
                    &routings,
                    &generated,
                    &format!("{name} {p} {kernels:?}"),
                );
            }
        }
    }
}

#[test]
fn bf16_stable_prompts_continue_alike() {
    let mut stable = 0;
    for name in ["tiny-text", "tiny-full"] {
        let (_folder, pack) = packed(&fixture(name), Coding::Raw);
        for prompt in recorded(&format!("{name}.bfloat16"))
            .iter()
            .filter(|p| p.bf16_stable)
        {
            for kernels in Kernels::all() {
                let ops = CpuOps::with_kernels(Compute::Bf16, kernels);
                let (_, _, generated) = run(&pack, ops, prompt, settings(prompt, None));
                assert_eq!(generated, prompt.generated, "{name} {kernels:?}");
            }
            stable += 1;
        }
    }
    assert!(stable >= 4, "{stable} prompts were compared");
}

#[test]
fn logits_are_the_same_bits_whatever_is_resident_coded_or_threaded() {
    let ops = CpuOps::new(Compute::F32);
    let pools = [1, 2, 4].map(|n| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .build()
            .unwrap()
    });
    let codings = [
        Coding::Raw,
        Coding::Zstd { level: 3 },
        Coding::Bf16Zstd,
        Coding::Bf16Rans,
    ];
    for name in ["tiny-text", "tiny-full"] {
        let packs = codings.map(|coding| packed(&fixture(name), coding));
        for (p, prompt) in recorded(&format!("{name}.float32")).iter().enumerate() {
            let wanted = run(&packs[0].1, ops, prompt, settings(prompt, None));
            for (coding, (_, pack)) in codings.iter().zip(&packs) {
                let least = {
                    let (source, stop) = (PackReader::new(pack), CancelToken::default());
                    Decoder::new(&source, ops, settings(prompt, Some(1)), &stop)
                        .unwrap()
                        .demand()
                        .min()
                };
                let mut streamed = settings(prompt, None);
                streamed.memory = Some(least);
                for settings in [
                    settings(prompt, None),
                    settings(prompt, Some(1)),
                    settings(prompt, Some(5)),
                    streamed,
                ] {
                    for pool in &pools {
                        let seen = pool.install(|| run(pack, ops, prompt, settings));
                        let threads = pool.current_num_threads();
                        assert!(
                            seen.0 == wanted.0 && seen.2 == wanted.2,
                            "{name} {p} {coding:?} {settings:?} at {threads} threads"
                        );
                    }
                }
            }
        }
    }
}

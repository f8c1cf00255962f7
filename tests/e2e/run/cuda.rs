//! Models on a GPU, which here is the host shim: the official traces, the same bits whatever is
//! resident, and what happens where there is no GPU, too little memory, or a call that fails.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use segpack_formats::FormatError;
use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::PackReader;
use segpack_runtime_min::devices::cuda::Cuda;
use segpack_runtime_min::generate::ArgMax;
use segpack_runtime_min::models::decoder::{Decoder, Logits, RunSettings};
use segpack_runtime_min::session::{
    DeviceChoice, GenerationSettings, MemoryLimit, Session, SessionError, SessionOptions, Token,
};
use segpack_runtime_min::tensor::Compute;
use segpack_runtime_min::{RunError, Unobserved};
use serde_json::Value;

use crate::support::checkpoint::fixtures;
use crate::support::cli::{Run, packed, program, segpack};
use crate::support::damage::flip;
use crate::support::folders::{copy, temp};
use crate::support::gpu::{load, with_gpu};
use crate::support::packs::pack_into;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full, tiny_text};

fn trace_of(name: &str) -> PathBuf {
    fixtures()
        .join("traces")
        .join(format!("{name}.safetensors"))
}

fn validated(pack: &Path, trace: &str, more: &str) -> Value {
    let trace = trace_of(trace);
    let arguments = format!(
        "validate {} --reference {} --device cuda -q --json {more}",
        pack.display(),
        trace.display()
    );
    with_gpu(&arguments, &[]).ok().json()
}

/// Ids and all logits that are shown, which are the whole vocabulary's.
fn generated(pack: &Path, more: &str, settings: &[(&str, &str)]) -> (Vec<Value>, Value) {
    let arguments = format!(
        "run {} --prompt-ids 5,9,77,200,31,8 --max-new-tokens 7 --top-k-logits 320 --json --device cuda {more}",
        pack.display()
    );
    with_gpu(&arguments, settings).ok().tokens()
}

/// Precision of a trace, and more options.
type Precise = (&'static str, &'static str);

fn assert_inside_on_a_gpu(name: &str, checkpoint: &Path, cases: &[Precise]) {
    let folder = temp();
    let pack = packed(checkpoint, folder.path());
    for (precision, more) in cases {
        let report = validated(&pack, &format!("{name}.{precision}"), more);
        let seen = &report["verdict"];
        assert_eq!(seen, "inside", "{name} {precision} {more}: {report}");
    }
}

#[test]
fn the_official_traces_are_inside_the_gate_on_a_gpu() {
    let text = [("float32", ""), ("bfloat16", "--expert-cache 5")];
    assert_inside_on_a_gpu("tiny-text", &tiny_text(), &text);
    let full = [("float32", "--expert-cache 2"), ("bfloat16", "")];
    assert_inside_on_a_gpu("tiny-full", &tiny_full(), &full);
}

#[test]
#[ignore = "takes half a minute"]
fn the_official_traces_are_inside_the_gate_on_a_gpu_with_all_experts_and_with_few() {
    for (name, checkpoint) in [("tiny-text", tiny_text()), ("tiny-full", tiny_full())] {
        for precision in ["float32", "bfloat16"] {
            let cases = ["", "--expert-cache 2", "--expert-cache 5"].map(|more| (precision, more));
            assert_inside_on_a_gpu(name, &checkpoint, &cases);
        }
    }
}

#[test]
fn other_models_agree_with_their_checkpoints_on_a_gpu() {
    let folder = temp();
    let stacked = Tiny::qwen3_moe(Qwen3Moe::default()).stacked();
    for (name, checkpoint) in [
        ("plain", Tiny::qwen3_moe(Qwen3Moe::default())),
        ("stacked", stacked),
    ] {
        for dtype in ["BF16", "F16", "F32"] {
            let at = folder.path().join(format!("{name}-{dtype}"));
            let checkpoint = if dtype == "BF16" {
                checkpoint.clone()
            } else {
                checkpoint.clone().converted(dtype)
            };
            let checkpoint = checkpoint.write(&at);
            let pack = at.with_extension("pack");
            segpack!["pack", &checkpoint, "-o", &pack, "-q", "--no-sums"].ok();
            let arguments = format!(
                "validate {} --against {} --device cuda -q",
                pack.display(),
                checkpoint.display()
            );
            with_gpu(&arguments, &[]).ok();
        }
    }
}

#[test]
fn the_same_bits_whatever_is_resident_coded_or_in_whatever_order() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let coded = folder.path().join("coded");
    pack_into(&tiny_text(), &coded, &["--no-sums", "--codec", "bf16-rans"]);
    for compute in ["f32", "bf16"] {
        let run = |pack: &Path, more: &str, settings: &[(&str, &str)]| {
            generated(pack, &format!("--compute {compute} {more}"), settings)
        };
        let all = run(&pack, "", &[]);
        assert_eq!(all.1["dense_resident"], true);
        let uses = |summary: &Value| {
            summary["experts"]
                .as_array()
                .unwrap()
                .iter()
                .map(|l| l["uses"].clone())
                .collect::<Vec<_>>()
        };
        let least = least_memory(&pack);
        let host = "--memory 80000000";
        for (pack, more, settings) in [
            (&pack, "--expert-cache 1".to_owned(), &[][..]),
            (&pack, "--expert-cache 5".to_owned(), &[][..]),
            (&pack, format!("--device-memory {least}"), &[][..]),
            (&pack, format!("--expert-cache 3 {host}"), &[][..]),
            (&pack, String::new(), &[("ORDER", "reverse")][..]),
            (&pack, "--expert-cache 2".to_owned(), &[("EAGER", "1")][..]),
            (&pack, "--expert-cache 2".to_owned(), &[("EAGER", "2")][..]),
            (
                &pack,
                format!("--expert-cache 1 {host}"),
                &[("EAGER", "2")][..],
            ),
            (&coded, String::new(), &[][..]),
            (&coded, "--expert-cache 4".to_owned(), &[][..]),
        ] {
            let some = run(pack, &more, settings);
            assert_eq!(some.0, all.0, "{compute} {more} {settings:?}");
            assert_eq!(
                uses(&some.1),
                uses(&all.1),
                "{compute} {more}: how often each expert was used"
            );
        }
        let streamed = run(&pack, &format!("--device-memory {least}"), &[]);
        assert_eq!(streamed.1["dense_resident"], false);
        assert!(
            streamed.1["costs"]["bytes_copied"].as_u64() > all.1["costs"]["bytes_copied"].as_u64()
        );
    }
}

/// The smallest budget of GPU memory that works for [`PROMPT`], in bytes: messages round it, the
/// error does not.
fn least_memory(pack: &Path) -> u64 {
    let mut options = SessionOptions::default();
    options.device_memory = Some(1000);
    match refusal(pack, options) {
        RunError::DeviceMemory { minimum, .. } => minimum,
        other => panic!("{other:?}"),
    }
}

/// The smallest budget of host memory that works for [`PROMPT`], in bytes.
fn least_host_memory(pack: &Path) -> u64 {
    let mut options = SessionOptions::default();
    options.memory = MemoryLimit::Bytes(1000);
    match refusal(pack, options) {
        RunError::Memory { minimum, .. } => minimum,
        other => panic!("{other:?}"),
    }
}

/// Why a session on the GPU does not run [`PROMPT`].
fn refusal(pack: &Path, mut options: SessionOptions) -> RunError {
    load();
    options.device = DeviceChoice::Cuda(0);
    let pack = Pack::open(pack).unwrap();
    let session = Session::open(&pack, &options).unwrap();
    let mut settings = GenerationSettings::default();
    settings.max_new_tokens = NEW_TOKENS;
    let mut ignore = |_: &Token<'_>| ControlFlow::Continue(());
    let text = session.text().unwrap();
    match session.generate(&text, &PROMPT, &settings, &mut ignore) {
        Err(SessionError::Run(refused)) => refused,
        other => panic!("{other:?}"),
    }
}

/// What [`arguments`] asks for.
const PROMPT: [u32; 6] = [5, 9, 77, 200, 31, 8];
const NEW_TOKENS: usize = 7;

fn arguments(pack: &Path, more: &str) -> String {
    format!(
        "run {} --prompt-ids {} --max-new-tokens {NEW_TOKENS} {more}",
        pack.display(),
        PROMPT.map(|id| id.to_string()).join(",")
    )
}

/// The shim is only as good as what it notices.
#[test]
fn a_wait_that_is_left_out_shows() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let least = least_host_memory(&pack); // one expert in host memory
    let run = |settings: &[(&str, &str)]| {
        let more = format!("--device cuda --expert-cache 1 --memory {least} --top-k-logits 320 -q");
        with_gpu(&arguments(&pack, &more), settings)
    };
    let right = run(&[]).ok().stdout;
    for settings in [
        // kernels that do not wait for the copy of their expert
        [("DROP", "cuStreamWaitEvent"), ("EAGER", "1")],
        // a copy that does not wait for the last kernel that reads its slot
        [("DROP", "cuStreamWaitEvent"), ("EAGER", "2")],
        // a host slot that is filled anew before it was copied
        [("DROP", "cuEventSynchronize"), ("EAGER", "0")],
        // results that are read before they are there
        [("DROP", "cuStreamSynchronize"), ("EAGER", "0")],
    ] {
        assert!(run(&settings).stdout != right, "{settings:?}");
    }
}

#[test]
fn too_little_memory_is_a_clear_error_and_the_least_works() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let least = least_memory(&pack);
    let of = |memory: u64, settings: &[(&str, &str)]| {
        with_gpu(
            &arguments(&pack, &format!("--device cuda --device-memory {memory}")),
            settings,
        )
    };
    of(least - 1, &[])
        .exits(1)
        .says(&["GPU memory budget of", "the minimum is"]);
    of(least, &[]).ok();
    // the budget is all that is taken, whatever the driver rounds allocations up to
    of(least, &[("MEMORY", &least.to_string())]).ok();
    // more than there is: the driver says it, the program names it
    let small = (4 << 20).to_string(); // two pages
    of(1 << 30, &[("MEMORY", &small)])
        .exits(1)
        .says(&["the GPU cannot allocate"]);
    // what is free is the budget where none is given
    with_gpu(&arguments(&pack, "--device cuda"), &[("MEMORY", "1000")])
        .exits(1)
        .says(&["is too small"]);
    let host = with_gpu(&arguments(&pack, "--device cuda --memory 1000"), &[]).exits(1);
    host.says(&["memory budget of 1.0 kB is too small"]);
}

#[test]
fn every_call_that_fails_is_named_and_no_token_is_wrong() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let wanted = with_gpu(&arguments(&pack, "--device cuda --expert-cache 3 -q"), &[])
        .ok()
        .text()
        .to_owned();
    for (call, numbers) in [
        ("cuDeviceGetCount", &[1][..]),
        ("cuDevicePrimaryCtxRetain", &[1]),
        ("cuCtxSetCurrent", &[1, 100]),
        ("cuModuleLoadDataEx", &[1]),
        ("cuModuleGetFunction", &[7]),
        ("cuStreamCreate", &[2]),
        ("cuMemGetInfo_v2", &[1]),
        ("cuMemAlloc_v2", &[1, 4]),
        ("cuMemHostAlloc", &[1, 6]),
        ("cuMemcpyHtoDAsync_v2", &[1, 20, 60]),
        ("cuMemcpyDtoHAsync_v2", &[1, 5]),
        ("cuStreamSynchronize", &[1, 9, 30]),
        ("cuLaunchKernel", &[1, 40, 90]),
        ("cuEventRecord", &[1, 12]),
        ("cuStreamWaitEvent", &[2]),
    ] {
        for number in numbers {
            let run = with_gpu(
                &arguments(&pack, "--device cuda --expert-cache 3 -q"),
                &[("FAIL", &format!("{call}:{number}"))],
            );
            let printed = if call == "cuMemAlloc_v2" {
                "cannot allocate"
            } else {
                call
            };
            let run = run.exits(1).says(&[printed]);
            let text = run.text().trim_end();
            assert!(
                wanted.starts_with(text),
                "{call}:{number} printed {text:?}, wanted the start of {wanted:?}"
            );
        }
    }
    // what the driver's compiler says about the kernels is told
    let refused = with_gpu(
        &arguments(&pack, "--device cuda"),
        &[("FAIL", "cuModuleLoadDataEx:1")],
    );
    refused
        .exits(1)
        .says(&["cuModuleLoadDataEx failed", "ptxas fatal: the shim's log"]);
}

#[test]
fn a_step_of_resident_weights_is_one_graph() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    // the first experts come on demand; once all of a small model were seen, steps are recorded,
    // then replayed
    let arguments = |more: &str| {
        let ids: Vec<String> = (1..24).map(|i| (i * 13).to_string()).collect();
        format!(
            "run {} --prompt-ids {} --max-new-tokens 20 --json {more}",
            pack.display(),
            ids.join(",")
        )
    };
    let ids = |run: Run| run.ok().tokens().1["ids"].clone();
    // sampled tokens are not those that the device would take
    for sampling in ["--greedy", "--temperature 2 --seed 1"] {
        let gpu = with_gpu(&arguments(&format!("--device cuda {sampling}")), &[]);
        assert_eq!(
            ids(gpu),
            ids(with_gpu(&arguments(sampling), &[])),
            "{sampling}"
        );
    }
    for call in [
        "cuStreamBeginCapture_v2:1",
        "cuStreamEndCapture:1",
        "cuGraphInstantiateWithFlags:1",
        "cuGraphLaunch:5",
    ] {
        let run = with_gpu(&arguments("--device cuda"), &[("FAIL", call)]).exits(1);
        run.says(&[call.split(':').next().unwrap()]);
    }
}

/// A copy of tiny-text with another value in one of its JSON files.
fn changed(folder: &Path, file: &str, at: &str, value: u64) -> PathBuf {
    let (pointer, at) = (at, folder.join(at.rsplit('/').next().unwrap()));
    copy(&tiny_text(), &at);
    let mut json: Value = serde_json::from_slice(&std::fs::read(at.join(file)).unwrap()).unwrap();
    *json.pointer_mut(pointer).unwrap() = value.into();
    std::fs::write(at.join(file), json.to_string()).unwrap();
    let pack = at.with_extension("pack");
    segpack!["pack", &at, "-o", &pack, "-q", "--no-sums"].ok();
    pack
}

/// What the shim counted; it tells it whenever it is unloaded, which a first look for a driver does
/// too.
fn calls(run: &Run) -> usize {
    let lines = run
        .stderr
        .lines()
        .filter_map(|l| l.strip_prefix("host shim: "));
    let counts: Vec<usize> = lines
        .map(|l| l.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(!counts.is_empty(), "{run}");
    counts.iter().sum()
}

/// A run of weights that are preloaded, and how often it called a function of the driver.
fn preloaded(pack: &Path, tokens: usize, more: &str, counted: &str) -> (Vec<Value>, Value, usize) {
    let arguments = format!(
        "run {} --prompt-ids 5,9,77,200,31,8 --max-new-tokens {tokens} --json --device cuda --preload {more}",
        pack.display()
    );
    let run = with_gpu(&arguments, &[("COUNT", counted)]).ok();
    let count = calls(&run);
    let (mut tokens, summary) = run.tokens();
    tokens.iter_mut().for_each(|t| t["top"] = Value::Null);
    (tokens, summary, count)
}

#[test]
fn the_device_chooses_what_the_host_would_choose() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let (wanted, _, waits) = preloaded(&pack, 24, "--top-k-logits 1", "cuStreamSynchronize");
    let (seen, summary, few_waits) = preloaded(&pack, 24, "", "cuStreamSynchronize");
    assert_eq!(seen, wanted);
    assert!(
        summary["costs"]["forward"].as_f64() > summary["costs"]["waiting"].as_f64(),
        "{summary}"
    );
    // of 21 tokens the host waits for 8 at a time, not for each and its logits; and twice where
    // their memory is freed
    assert_eq!(waits - few_waits, 2 * 21 - 3 - 2);
    // two steps one by one, then graphs, as many as there are tokens, whatever is asked for at a
    // time
    for tokens in [1, 2, 3, 4, 10, 11, 12, 19, 20, 24] {
        let (seen, _, graphs) = preloaded(&pack, tokens, "", "cuGraphLaunch");
        assert_eq!(seen, wanted[..tokens], "{tokens}");
        assert_eq!(graphs, tokens.saturating_sub(2), "{tokens}");
    }
    let by_host = preloaded(
        &pack,
        12,
        "--compute bf16 --top-k-logits 1",
        "cuGraphLaunch",
    );
    let by_device = preloaded(&pack, 12, "--compute bf16", "cuGraphLaunch");
    assert_eq!((&by_device.0, by_device.2), (&by_host.0, by_host.2));
    // an end in the middle of what is asked for at a time
    let ids: Vec<u64> = wanted.iter().map(|t| t["id"].as_u64().unwrap()).collect();
    let first = |at: usize| !ids[..at].contains(&ids[at]);
    let at = (4..10).find(|at| first(*at)).unwrap();
    let pack = changed(
        folder.path(),
        "generation_config.json",
        "/eos_token_id",
        ids[at],
    );
    let (seen, summary, _) = preloaded(&pack, 24, "", "cuGraphLaunch");
    assert_eq!(
        (seen.len(), &summary["stop_reason"]),
        (at + 1, &"stop_id".into())
    );
    assert_eq!(
        seen,
        preloaded(&pack, 24, "--top-k-logits 1", "cuGraphLaunch").0
    );
    // no position left: 6 of the prompt and 13 tokens, and one that is not run
    let pack = changed(
        folder.path(),
        "config.json",
        "/thinker_config/text_config/max_position_embeddings",
        19,
    );
    let (seen, summary, graphs) = preloaded(&pack, 24, "", "cuGraphLaunch");
    assert_eq!(
        (seen, &summary["stop_reason"]),
        (wanted[..14].to_vec(), &"context_full".into())
    );
    assert_eq!(graphs, 12);
}

#[test]
fn drafts_are_refused_on_a_gpu() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let arguments = format!(
        "run {} --prompt-ids 5,9,5,9 --max-new-tokens 4 --device cuda --draft-lookup 4",
        pack.display()
    );
    let words = ["drafts are checked on the CPU alone", "--device cpu"];
    with_gpu(&arguments, &[]).exits(2).says(&words);
}

#[test]
fn what_is_preloaded_is_what_there_is_room_for() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let ids = |run: (Vec<Value>, Value, usize)| (run.1["ids"].clone(), run.2);
    let (wanted, graphs) = ids(preloaded(&pack, 6, "", "cuGraphLaunch"));
    assert_eq!(graphs, 4);
    let least = format!("--device-memory {}", least_memory(&pack));
    for more in ["--expert-cache 3", "--expert-cache 17", &least] {
        assert_eq!(
            ids(preloaded(&pack, 6, more, "cuGraphLaunch")),
            (wanted.clone(), 0),
            "{more}"
        );
    }
    let on_demand = with_gpu(
        &arguments(&pack, "--device cuda --json"),
        &[("COUNT", "cuGraphLaunch")],
    )
    .ok();
    assert_eq!(calls(&on_demand), 0);
    // a prompt misses what was not preloaded, and only that
    let misses = |more: &str| {
        let run = with_gpu(&arguments(&pack, &format!("--json {more}")), &[]).ok();
        run.tokens().1["expert_misses"].as_u64().unwrap()
    };
    for device in ["cpu", "cuda"] {
        let of = |more: &str| misses(&format!("--device {device} {more}"));
        assert_eq!(of("--preload"), 0, "{device}");
        let (some, all) = (of("--preload --expert-cache 17"), of("--expert-cache 17"));
        assert!(0 < some && some < all, "{device}: {some} {all}");
    }
    // damage is found before the first token
    let opened = Pack::open(&pack).unwrap();
    let mut segments = opened.manifest().segments.iter();
    let last = segments
        .rfind(|s| s.id.contains(".layers.2.experts."))
        .unwrap();
    flip(
        &opened.path(&last.pack),
        i64::try_from(last.offset).unwrap() + 100,
    );
    for device in ["cpu", "cuda"] {
        let damaged = with_gpu(
            &arguments(&pack, &format!("--device {device} --preload -q")),
            &[],
        )
        .exits(3);
        assert_eq!(
            damaged
                .says(&["is damaged: BLAKE3", &last.id])
                .text()
                .trim(),
            "",
            "{device}"
        );
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

#[test]
fn tokens_that_the_device_chooses_are_those_of_its_logits() {
    load();
    let folder = temp();
    let pack = Pack::open(&packed(&tiny_text(), folder.path())).unwrap();
    let source = PackReader::new(&pack);
    let run = |by_device: bool, positions: usize, compute: Compute| {
        let stop = CancelToken::default();
        let settings = RunSettings::new(positions, 1);
        let cuda = Cuda::open(0, compute, None).unwrap();
        let mut thinker = Decoder::new(&source, cuda, settings, &stop).unwrap();
        let mut ids = vec![5];
        let forward = |thinker: &mut Decoder<'_, Cuda>, ids: &mut Vec<u32>, count: usize| {
            let mut logits = Vec::new();
            for _ in 0..count {
                logits = thinker
                    .forward(&ids[ids.len() - 1..], Logits::Last, &mut Unobserved)
                    .unwrap();
                ids.push(argmax(&logits));
            }
            logits
        };
        let greedy = |thinker: &mut Decoder<'_, Cuda>, ids: &mut Vec<u32>, count: usize| {
            let mut next = vec![ArgMax::default(); count];
            assert!(thinker.greedy(ids[ids.len() - 1], &mut next).unwrap());
            ids.extend(next.iter().map(|g| g.token().unwrap()));
        };
        assert!(
            !thinker.greedy(5, &mut [ArgMax::default()]).unwrap(),
            "no step was recorded yet"
        );
        assert_eq!(thinker.positions(), 0);
        thinker.preload(&mut |_| ()).unwrap();
        forward(&mut thinker, &mut ids, 4);
        if by_device {
            greedy(&mut thinker, &mut ids, 5);
            greedy(&mut thinker, &mut ids, 7);
        } else {
            forward(&mut thinker, &mut ids, 12);
        }
        assert_eq!(thinker.positions(), 16);
        let uses = thinker.stats().expert_uses;
        // back where a text ended, and on from there
        thinker.truncate(11);
        ids.truncate(12);
        let logits = forward(&mut thinker, &mut ids, 2);
        if by_device {
            greedy(&mut thinker, &mut ids, 1);
        } else {
            forward(&mut thinker, &mut ids, 1);
        }
        assert_eq!((thinker.positions(), ids.len()), (14, 15));
        let mut room = vec![ArgMax::default(); positions - 13];
        let too_long = thinker.greedy(5, &mut room);
        let is_told = |e: &RunError| matches!(e, RunError::TooLong { wanted, reserved } if (*wanted, *reserved) == (positions + 1, positions));
        assert!(too_long.as_ref().is_err_and(is_told), "{too_long:?}");
        let unknown = thinker.greedy(320, &mut room[..1]);
        assert!(
            matches!(unknown, Err(RunError::TokenId { id: 320, rows: 320 })),
            "{unknown:?}"
        );
        stop.cancel();
        for stopped in [
            thinker.greedy(5, &mut room[..1]).unwrap_err(),
            thinker
                .forward(&[5], Logits::Last, &mut Unobserved)
                .unwrap_err(),
        ] {
            assert!(
                matches!(stopped, RunError::Format(FormatError::Interrupted)),
                "{stopped}"
            );
        }
        (ids, logits, uses)
    };
    // with room for many, attention is cut into parts
    for (positions, compute) in [
        (24, Compute::F32),
        (1100, Compute::F32),
        (1100, Compute::Bf16),
    ] {
        assert_eq!(
            run(true, positions, compute),
            run(false, positions, compute),
            "{positions} {compute:?}"
        );
    }
}

#[test]
fn devices_are_listed_and_auto_takes_the_first() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let two = with_gpu("devices --json", &[("DEVICES", "2")]).ok().json();
    assert_eq!(two["auto"], "cuda:0");
    assert_eq!(two["driver_cuda_version"], "12.8");
    assert_eq!(two["devices"][1]["name"], "segpack host shim");
    let text = with_gpu("devices", &[]).ok();
    assert!(
        text.text().contains("cuda:0") && text.text().contains("--device auto selects cuda:0"),
        "{text}"
    );
    let on = |device: &str, settings: &[(&str, &str)]| {
        with_gpu(
            &arguments(&pack, &format!("--json --device {device}")),
            settings,
        )
    };
    assert_eq!(
        on("auto", &[]).ok().tokens().1["device"],
        "cuda:0 segpack host shim"
    );
    assert_eq!(
        on("cuda:1", &[("DEVICES", "2")]).ok().tokens().1["device"],
        "cuda:1 segpack host shim"
    );
    on("cuda:3", &[])
        .exits(1)
        .says(&["there is no CUDA device 3: the driver knows 1"]);
    on("cuda:x", &[]).exits(2);
    // what is too old is named, and not taken by itself
    let old = [("DRIVER", "11040")];
    on("cuda", &old)
        .exits(1)
        .says(&["the NVIDIA driver has CUDA 11.4", "11.8"]);
    assert_eq!(on("auto", &old).ok().tokens().1["device"], "cpu");
    let old = [("CAPABILITY", "7")];
    on("cuda", &old)
        .exits(1)
        .says(&["compute capability 7.0", "8.0"]);
    assert_eq!(on("auto", &old).ok().tokens().1["device"], "cpu");
    with_gpu(&arguments(&pack, "--device-memory 1GB"), &[])
        .exits(2)
        .says(&["--device cuda"]);
}

#[test]
fn without_a_gpu_auto_is_the_cpu_and_cuda_an_error() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let none = [("DEVICES", "0")];
    assert_eq!(with_gpu("devices --json", &none).ok().json()["auto"], "cpu");
    let auto = with_gpu(&arguments(&pack, "--json --device auto"), &none)
        .ok()
        .tokens();
    assert_eq!(auto.1["device"], "cpu");
    with_gpu(&arguments(&pack, "--device cuda"), &none)
        .exits(1)
        .says(&["there is no CUDA device 0"]);
    // and without any driver, on a machine that has none
    let devices = Run::of(program().args(["devices", "--json"])).ok().json();
    if devices["devices"].as_array().unwrap().is_empty() {
        let refused = segpack!["run", &pack, "--prompt-ids", "5", "--device", "cuda"].exits(1);
        refused.says(&["NVIDIA driver"]);
    }
}

#[test]
fn a_bench_of_a_gpu_is_what_its_schema_says() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let least = least_memory(&pack);
    let arguments = format!(
        "bench {} --device cuda --tokens 3 --repeats 1 --prompt 5 --device-memory {} --json",
        pack.display(),
        least + 100_000
    );
    let report = with_gpu(&arguments, &[]).ok().json();
    let schema =
        std::fs::read(fixtures().join("../../schemas/gpu-bench-report.schema.json")).unwrap();
    let validator =
        jsonschema::validator_for(&serde_json::from_slice::<Value>(&schema).unwrap()).unwrap();
    assert!(validator.is_valid(&report), "{report}");
    assert_eq!(
        (&report["device"], &report["compute"]),
        (&"cuda:0 segpack host shim".into(), &"bfloat16".into())
    );
    assert!(report["resident"]["greedy_tokens_per_second"].as_f64() > Some(0.0));
    assert!(
        report["on_demand"][0]["bytes_copied_per_token"].as_f64() > Some(0.0),
        "{report}"
    );
    // experts that host memory has room for are copied from there, not read again
    let host = with_gpu(&format!("{arguments} --no-resident --memory 80000000"), &[])
        .ok()
        .json();
    let of = |report: &Value, key: &str| report["on_demand"][0][key].as_f64().unwrap();
    assert_eq!(host["host_memory"], 80_000_000);
    assert_eq!(
        of(&host, "bytes_copied_per_token"),
        of(&report, "bytes_copied_per_token")
    );
    assert!(
        of(&host, "bytes_read_per_token") < of(&report, "bytes_read_per_token"),
        "{host} {report}"
    );
    with_gpu(&format!("{arguments} --memory 1GB --memory 2GB"), &[])
        .exits(2)
        .says(&["one memory budget"]);
    with_gpu(&format!("bench {} --device auto", pack.display()), &[])
        .exits(2)
        .says(&["cuda or cuda:N"]);
}

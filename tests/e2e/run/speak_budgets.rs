//! Speech within budgets, on the CPU and on a GPU (the host shim): networks give memory back to each
//! other, the least that is told works, and the codes stay the same.

use std::ffi::OsStr;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use segpack_manifests::Pack;
use segpack_runtime_min::RunError;
use segpack_runtime_min::processing::MediaFeatures;
use segpack_runtime_min::session::{
    AcceptedStates, DeviceChoice, MemoryLimit, Session, SessionError, SessionOptions, SpeechScript,
    SpeechSettings,
};
use segpack_runtime_min::trace::SpeechTrace;

use crate::support::checkpoint::fixtures;
use crate::support::cli::{Run, packed, peak_memory, program};
use crate::support::folders::temp;
use crate::support::gpu::{load, with_gpu};
use crate::support::tiny::{Tensor, Tiny, tiny_full};

/// Frames that are spoken, and codes of a frame of `tiny-speech`.
const FRAMES: usize = 4;
const GROUPS: usize = 8;

fn trace() -> PathBuf {
    fixtures().join("traces/tiny-speech.speech.float32.safetensors")
}

fn tiny_speech(folder: &Path) -> PathBuf {
    packed(&fixtures().join("tiny-speech"), folder)
}

/// The codes of the first spoken answer.
fn codes(pack: &Pack, options: &SessionOptions) -> Result<Vec<u32>, SessionError> {
    let trace = SpeechTrace::open(&trace()).unwrap().unwrap();
    let case = &trace.cases()[0];
    let script = SpeechScript {
        prompt: case.tensors.ids(),
        answer: &case.answer,
        media: &MediaFeatures::default(),
        states: &AcceptedStates::default(),
    };
    let mut settings = SpeechSettings::default();
    settings.max_codes = FRAMES + 1;
    settings.sampling = None;
    let session = Session::open(pack, options).unwrap();
    let mut ignore = |_: &[u32]| ControlFlow::Continue(());
    let speech = session.speak(script, &settings, &mut ignore)?;
    Ok(speech.codes.to_rows())
}

/// The least budget, which errors tell, as a function of it runs.
fn least(run: impl Fn(u64) -> Result<Vec<u32>, SessionError>) -> u64 {
    let mut memory = 1000;
    // one after the other is asked for its least
    for _ in 0..8 {
        memory = match run(memory) {
            Ok(_) => return memory,
            Err(SessionError::Run(
                RunError::Memory { minimum, .. } | RunError::DeviceMemory { minimum, .. },
            )) => minimum,
            Err(other) => panic!("{other}"),
        };
    }
    panic!("{memory} bytes are not enough");
}

/// Neither a smaller budget works than the one that is told, nor does a larger one fail.
fn assert_same_codes_of_any_budget(run: impl Fn(Option<u64>) -> Result<Vec<u32>, SessionError>) {
    let wanted = run(None).unwrap();
    let least = least(|memory| run(Some(memory)));
    assert!(run(Some(least - 1)).is_err());
    for more in [0, 1 << 10, 16 << 10, 40 << 10, 100 << 10, 1 << 20, 1 << 30] {
        let seen = run(Some(least + more)).unwrap();
        assert_eq!(seen, wanted, "{least} + {more}");
    }
}

#[test]
fn the_least_memory_that_is_told_speaks_the_same_codes() {
    let folder = temp();
    let pack = Pack::open(&tiny_speech(folder.path())).unwrap();
    assert_same_codes_of_any_budget(|memory| {
        let mut options = SessionOptions::default();
        options.memory = memory.map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes);
        codes(&pack, &options)
    });
}

#[test]
fn the_least_gpu_memory_that_is_told_speaks_the_same_codes() {
    load();
    let folder = temp();
    let pack = Pack::open(&tiny_speech(folder.path())).unwrap();
    assert_same_codes_of_any_budget(|memory| {
        let mut options = SessionOptions::default();
        options.device = DeviceChoice::Cuda(0);
        options.device_memory = memory;
        codes(&pack, &options)
    });
}

/// What the shim counted, in all the times that it was unloaded.
fn calls(run: &Run) -> usize {
    let lines = run.stderr.lines();
    let counts = lines.filter_map(|line| line.strip_prefix("host shim: "));
    counts
        .map(|line| line.split(' ').next().unwrap().parse::<usize>().unwrap())
        .sum()
}

/// What is spoken in the tests of graphs: the run, and the bytes of the file of codes.
fn spoken(pack: &Path, more: &str, settings: &[(&str, &str)]) -> (Run, Vec<u8>) {
    let folder = temp();
    let (sound, file) = (folder.path().join("a.wav"), folder.path().join("a.npy"));
    let arguments = format!(
        "speak {} --prompt-ids 286,258,198,31,77,287,198,286,266,198 --text-ids 5,9,200,31,8,287 \
         -o {} --codes {} --speak-max-frames {FRAMES} {more}",
        pack.display(),
        sound.display(),
        file.display()
    );
    let run = with_gpu(&arguments, settings).ok();
    (run, fs::read(&file).unwrap())
}

/// Graphs that are launched where all weights are loaded first, and the codes.
fn launched(pack: &Path, more: &str) -> (usize, Vec<u8>) {
    let more = format!("{more} --device cuda --preload");
    let (run, seen) = spoken(pack, &more, &[("COUNT", "cuGraphLaunch")]);
    (calls(&run), seen)
}

#[test]
fn a_frame_is_one_graph_once_it_was_queued_and_has_the_same_codes() {
    for checkpoint in [fixtures().join("tiny-speech"), tiny_full()] {
        let folder = temp();
        let pack = packed(&checkpoint, folder.path());
        for how in ["--speak-greedy", "--speak-seed 3"] {
            let (_, wanted) = spoken(&pack, how, &[]);
            // experts come one by one, so that frames become graphs late or never
            let (_, seen) = spoken(&pack, &format!("{how} --device cuda"), &[]);
            assert!(seen == wanted, "{how}");
            // the first frame is queued kernel by kernel
            assert_eq!(launched(&pack, how), (FRAMES - 1, wanted), "{how}");
        }
    }
}

#[test]
fn a_frame_has_the_same_codes_whenever_its_work_runs() {
    let folder = temp();
    let pack = tiny_speech(folder.path());
    let (_, wanted) = spoken(&pack, "--speak-seed 4", &[]);
    for settings in [("ORDER", "reverse"), ("EAGER", "1")] {
        let (_, seen) = spoken(&pack, "--speak-seed 4 --device cuda --preload", &[settings]);
        assert!(seen == wanted, "{settings:?}");
    }
}

#[test]
fn each_pass_is_a_graph_where_experts_are_evicted_and_the_codes_are_the_same() {
    let folder = temp();
    let pack = tiny_speech(folder.path());
    for how in [
        "--speak-greedy",
        "--speak-seed 3",
        "--speak-seed 3 --compute bf16",
    ] {
        let (whole, wanted) = launched(&pack, how);
        let (passes, seen) = launched(&pack, &format!("{how} --expert-cache 3"));
        assert!(seen == wanted, "{how}");
        // those of the predictor
        assert_eq!(
            (whole, passes),
            (FRAMES - 1, (FRAMES - 1) * (GROUPS - 1)),
            "{how}"
        );
    }
}

#[test]
fn each_pass_is_a_graph_where_memory_is_too_small_for_embeddings() {
    let folder = temp();
    let pack = tiny_speech(folder.path());
    let with = |memory: u64| launched(&pack, &format!("--speak-seed 3 --device-memory {memory}"));
    // the least memory for whole frames
    let (mut less, mut enough) = (21_000_000, 24_000_000);
    while enough - less > 4096 {
        let between = u64::midpoint(less, enough);
        match with(between).0 < FRAMES {
            true => enough = between,
            false => less = between,
        }
    }
    let (whole, wanted) = with(enough);
    let (passes, seen) = with(less);
    assert!(seen == wanted);
    assert_eq!(
        (whole, passes),
        (FRAMES - 1, (FRAMES - 1) * GROUPS),
        "{enough}"
    );
}

#[test]
fn a_residual_logit_that_is_no_number_is_the_error_of_the_cpu() {
    let folder = temp();
    let mut tiny = Tiny::full();
    let head = tiny.tensor("talker.code_predictor.lm_head.1.weight");
    let width = usize::try_from(head.shape[1]).unwrap();
    // all of code 5
    let row = &mut head.bytes.as_chunks_mut::<2>().0[5 * width..6 * width];
    row.fill([0xc0, 0x7f]);
    let checkpoint = folder.path().join("checkpoint");
    fs::create_dir(&checkpoint).unwrap();
    let pack = packed(&tiny.write(&checkpoint), folder.path());
    for more in ["", "--device cuda", "--device cuda --preload"] {
        let arguments = format!(
            "speak {} --prompt-ids 286,258,31,287,286,266,198 --text-ids 5,9,287 -o {} {more}",
            pack.display(),
            folder.path().join("a.wav").display()
        );
        let run = with_gpu(&arguments, &[]).exits(3);
        run.says(&["the logit of token 5 is NaN"]);
    }
}

/// The thinker takes 10.6 MB of the GPU, talker and predictor 21.2 MB: most of it the driver's pages.
#[test]
fn a_gpu_that_holds_one_network_at_a_time_speaks_an_answer() {
    let folder = temp();
    let pack = tiny_speech(folder.path());
    let sound = folder.path().join("a.wav");
    let spoken = |more: &str, settings: &[(&str, &str)]| {
        let arguments = format!(
            "run {} --prompt-ids 286,258,31,77,287,286,266,198 --max-new-tokens 3 --speak {} \
             --speak-greedy --speak-max-frames 2 {more}",
            pack.display(),
            sound.display()
        );
        with_gpu(&arguments, settings).ok();
        fs::read(&sound).unwrap()
    };
    let on_cpu = spoken("", &[]);
    // a sixteenth is left to the driver
    let on_gpu = spoken("--device cuda", &[("MEMORY", "24000000")]);
    assert_eq!(on_gpu.len(), on_cpu.len());
    // samples of 16 bits, a rounding apart
    let samples = |sound: &[u8]| -> Vec<i16> {
        let (samples, _) = sound[44..].as_chunks::<2>();
        samples.iter().map(|b| i16::from_le_bytes(*b)).collect()
    };
    let pairs = samples(&on_gpu).into_iter().zip(samples(&on_cpu));
    pairs.for_each(|(a, b)| assert!(a.abs_diff(b) <= 1));
}

#[test]
fn a_graph_that_fails_is_named_and_nothing_is_written() {
    let folder = temp();
    let pack = tiny_speech(folder.path());
    let sound = folder.path().join("a.wav");
    let speak = |more: &str, setting| {
        let arguments = format!(
            "speak {} --prompt-ids 286,258,31,287,286,266,198 --text-ids 5,9,287 -o {} \
             --speak-max-frames 4 --device cuda --preload {more}",
            pack.display(),
            sound.display()
        );
        with_gpu(&arguments, &[setting])
    };
    // the last kernel that is queued belongs to the frame that is recorded
    let kernels = calls(&speak("", ("COUNT", "cuLaunchKernel")).ok());
    fs::remove_file(&sound).unwrap();
    let in_recording = format!("cuLaunchKernel:{kernels}");
    for (more, call) in [
        ("", "cuStreamBeginCapture_v2:1"),
        ("", &in_recording),
        ("", "cuStreamEndCapture:1"),
        ("", "cuGraphInstantiateWithFlags:1"),
        ("", "cuGraphLaunch:2"),
        // pass by pass
        ("--expert-cache 3", "cuStreamBeginCapture_v2:3"),
        ("--expert-cache 3", "cuStreamEndCapture:1"),
        ("--expert-cache 3", "cuGraphInstantiateWithFlags:2"),
        ("--expert-cache 3", "cuGraphLaunch:11"),
    ] {
        let run = speak(more, ("FAIL", call)).exits(1);
        run.says(&[call.split(':').next().unwrap()]);
        assert!(!sound.exists());
    }
}

/// Some 110 MB of experts in the thinker, as many in the talker, and a wide vocoder: all of it
/// together is more than the budget.
fn heavy(folder: &Path) -> PathBuf {
    const THINKER: u64 = 16_384;
    const TALKER: u64 = 98_304;
    const VOCODER: u64 = 200_000;
    let mut tiny = Tiny::full();
    for (name, old, new) in [
        ("thinker.model.layers.", 24, THINKER),
        ("talker.model.layers.", 8, TALKER),
    ] {
        let is_of_experts =
            |t: &&mut Tensor| t.name.starts_with(name) && t.name.contains(".experts.");
        tiny.tensors_mut()
            .filter(is_of_experts)
            .for_each(|tensor| widen(tensor, old, new));
    }
    tiny.tensors_mut()
        .filter(|t| {
            t.name.starts_with("code2wav.pre_transformer.layers.") && t.name.contains(".mlp.")
        })
        .for_each(|tensor| widen(tensor, 24, VOCODER));
    tiny.config["thinker_config"]["text_config"]["moe_intermediate_size"] = THINKER.into();
    tiny.config["talker_config"]["text_config"]["moe_intermediate_size"] = TALKER.into();
    tiny.config["code2wav_config"]["intermediate_size"] = VOCODER.into();
    let checkpoint = folder.join("checkpoint");
    fs::create_dir(&checkpoint).unwrap();
    packed(&tiny.write(&checkpoint), folder)
}

/// A tensor with another side, and other values.
fn widen(tensor: &mut Tensor, old: u64, new: u64) {
    let side = |side: &u64| if *side == old { new } else { *side };
    let shape: Vec<u64> = tensor.shape.iter().map(side).collect();
    *tensor = Tensor::noise(&tensor.name, &shape);
}

/// The thinker's memory is given back before the talker's is taken, and that before the vocoder's.
#[test]
fn a_spoken_answer_stays_within_one_budget_and_is_the_same() {
    let folder = temp();
    let pack = heavy(folder.path());
    let sound = folder.path().join("a.wav");
    let command = |memory: &[&str]| {
        let mut command = program();
        let prompt = "286,258,5,6,287,7,286,266,7";
        command.args(["run", "--prompt-ids", prompt, "--max-new-tokens", "3"]);
        command.args(["--speak-greedy", "--speak-max-frames", "3", "-q"]);
        command.args([OsStr::new("--speak"), sound.as_os_str(), pack.as_os_str()]);
        command.args(memory);
        command
    };
    Run::of(&mut command(&[])).ok();
    let wanted = fs::read(&sound).unwrap();
    for budget in [210_000_000, 140_000_000] {
        let memory = budget.to_string();
        let peak = peak_memory(&mut command(&["--memory", &memory]));
        assert!(fs::read(&sound).unwrap() == wanted, "{budget}");
        assert!(peak <= budget, "{peak} bytes of {budget}");
    }
}

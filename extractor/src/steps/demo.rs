//! `demo`: everything once, on the tiny official Qwen3-Omni checkpoint that is built into the
//! program.

use std::fs;
use std::path::Path;

use segpack_formats::codec::Coding;
use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    DemoReport, DemoStep, FindingKind, GENERATOR, Quantity, Stage, ValidateReport, VerifyMode,
};
use segpack_manifests::layout::Selection;
#[cfg(feature = "run")]
use segpack_runtime_min::session::SessionOptions;
#[cfg(feature = "run")]
use segpack_runtime_min::trace::SpeechTrace;

use super::StepError;
use super::cat::CatError;
use super::pack::{FetchSettings, PackSettings, pack};
#[cfg(feature = "run")]
use super::run::{RunOptions, run};
use super::scan::{ScanOptions, scan};
#[cfg(feature = "run")]
use super::speak::{SpokenText, VoiceOptions, speak};
use super::unpack::{UnpackSettings, unpack};
#[cfg(feature = "run")]
use super::validate::{Against, ValidateSettings, validate};
use super::verify::{VerifySettings, verify};
use crate::work::{Job, Silent};

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../demo/tiny-full/", $name)) as &[u8])),*]
    };
}

/// Random weights, real architecture, real layout on disk: made by the official classes.
const CHECKPOINT: &[(&str, &[u8])] = files![
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model-00001-of-00004.safetensors",
    "model-00002-of-00004.safetensors",
    "model-00003-of-00004.safetensors",
    "model-00004-of-00004.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];

/// What the official classes computed from it, in f32.
const TRACE: &[(&str, &[u8])] = &[
    (
        "trace.json",
        include_bytes!("../../demo/trace/tiny-full.float32.json"),
    ),
    (
        "trace.safetensors",
        include_bytes!("../../demo/trace/tiny-full.float32.safetensors"),
    ),
];

/// A spoken answer of the official classes: the first case of their trace of speech, with nothing of
/// what lies between prompt and codes.
const SPEECH: &[(&str, &[u8])] = &[
    (
        "speech.json",
        include_bytes!("../../demo/trace/tiny-full.speech.float32.json"),
    ),
    (
        "speech.safetensors",
        include_bytes!("../../demo/trace/tiny-full.speech.float32.safetensors"),
    ),
];

/// A prompt of that trace.
const PROMPT: &str = "Hi, is the user on?";

/// The segment that gets a wrong bit.
const VICTIM: &str = "thinker.text.layers.1.experts.5";

fn no_victim() -> CatError {
    CatError::NoSuchName {
        name: VICTIM.to_owned(),
    }
}

/// Runs the demonstration in the empty folder `folder`; calls `tell` after every step.
///
/// # Errors
/// Where a step that has to succeed does not.
pub(crate) fn demo(
    folder: &Path,
    stop: &CancelToken,
    tell: &mut dyn FnMut(&DemoStep) -> Result<(), StepError>,
) -> Result<DemoReport, StepError> {
    let mut demo = Demo {
        folder,
        stop,
        tell,
        steps: Vec::new(),
    };
    demo.write_checkpoint()?;
    demo.scan()?;
    demo.pack()?;
    demo.verify()?;
    demo.damage()?;
    demo.verify_damaged()?;
    demo.repair()?;
    demo.unpack()?;
    demo.run()?;
    demo.validate()?;
    demo.speak()?;
    demo.validate_speech()?;
    let ok = demo.steps.iter().all(|s| s.ok);
    Ok(DemoReport {
        format_version: DemoReport::VERSION,
        generator: GENERATOR.to_owned(),
        ok,
        steps: demo.steps,
    })
}

struct Demo<'a> {
    folder: &'a Path,
    stop: &'a CancelToken,
    tell: &'a mut dyn FnMut(&DemoStep) -> Result<(), StepError>,
    steps: Vec<DemoStep>,
}

impl Demo<'_> {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.join(name)
    }

    fn step(&mut self, command: &str, outcome: String, ok: bool) -> Result<(), StepError> {
        self.tell(DemoStep {
            command: command.to_owned(),
            outcome,
            ok,
            validation: None,
        })
    }

    fn tell(&mut self, step: DemoStep) -> Result<(), StepError> {
        (self.tell)(&step)?;
        self.steps.push(step);
        Ok(())
    }

    fn write_checkpoint(&mut self) -> Result<(), StepError> {
        let root = self.path("checkpoint");
        fs::create_dir_all(&root).map_err(StepError::io("create", &root))?;
        write_files(&root, CHECKPOINT)?;
        let what = format!(
            "{} files of a tiny Qwen3-Omni checkpoint, created with the official classes",
            CHECKPOINT.len()
        );
        self.step("(write the built-in checkpoint)", what, true)
    }

    fn job(&self) -> Job<'_> {
        Job {
            threads: 1,
            stop: self.stop,
            progress: &Silent,
        }
    }

    fn scan(&mut self) -> Result<(), StepError> {
        let (_, inventory) = scan(&self.path("checkpoint"), ScanOptions::default(), self.job())?;
        let complete = inventory.audited && inventory.findings.is_empty();
        let outcome = format!(
            "{} tensors ({} logical parameters); {}",
            inventory.counts.stored_tensors,
            inventory.counts.logical_parameters,
            if complete { "complete" } else { "NOT complete" }
        );
        self.step("segpack scan checkpoint", outcome, complete)
    }

    fn pack(&mut self) -> Result<(), StepError> {
        let settings = PackSettings {
            selection: Selection::default(),
            coding: Coding::Raw,
            part: None,
            jobs: 1,
            resume: false,
            force: false,
            space_check: true,
            consume: false,
            in_place: false,
            source_digests: true,
            sums: true,
            provenance: true,
            fetch: FetchSettings::default(),
            scan: ScanOptions::default(),
        };
        let summary = pack(
            &self.path("checkpoint"),
            &self.path("packs"),
            &settings,
            self.stop,
            &Silent,
        )?;
        let outcome = format!(
            "{} packs, {} segments, {} tensors; manifest SHA-256 {}",
            summary.packs, summary.segments, summary.tensors, summary.manifest_sha256
        );
        self.step("segpack pack checkpoint -o packs", outcome, true)
    }

    fn run_verify(&self) -> Result<segpack_manifests::documents::VerifyReport, StepError> {
        let settings = VerifySettings {
            against: Some(self.path("checkpoint")),
            ..VerifySettings::new(VerifyMode::Full, 1)
        };
        verify(&self.path("packs"), &settings, self.stop, &Silent)
    }

    fn verify(&mut self) -> Result<(), StepError> {
        let report = self.run_verify()?;
        let tensors = report.checked.tensors;
        let outcome = format!("all {tensors} tensors match the manifest and the checkpoint");
        self.step(
            "segpack verify packs --against checkpoint",
            outcome,
            report.ok,
        )
    }

    /// Flips one bit in the middle of an expert.
    fn damage(&mut self) -> Result<(), StepError> {
        let (path, at) = self.victim()?;
        flip(&path, at)?;
        let outcome = format!("byte {at} of {}, in segment {VICTIM}", name(&path));
        self.step("(flip one bit)", outcome, true)
    }

    fn victim(&self) -> Result<(std::path::PathBuf, usize), StepError> {
        let pack = Pack::open(&self.path("packs"))?;
        let segment = pack.segment(VICTIM).ok_or_else(no_victim)?;
        let at =
            usize::try_from(segment.offset + segment.stored_length / 2).map_err(|_| no_victim())?;
        Ok((pack.path(&segment.pack), at))
    }

    fn verify_damaged(&mut self) -> Result<(), StepError> {
        let report = self.run_verify()?;
        let found: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        let ok = report.findings.len() == 1
            && report.findings[0].kind == FindingKind::DamagedTensor
            && report.findings[0].segment.as_deref() == Some(VICTIM);
        self.step(
            "segpack verify packs",
            format!("exit status 3, as expected: {}", found.join("; ")),
            ok,
        )
    }

    fn repair(&mut self) -> Result<(), StepError> {
        let (path, at) = self.victim()?;
        flip(&path, at)?;
        let report = self.run_verify()?;
        self.step(
            "(flip it back)",
            format!("verify reports {} problems", report.findings.len()),
            report.ok,
        )
    }

    fn unpack(&mut self) -> Result<(), StepError> {
        let restored = self.path("restored");
        let settings = UnpackSettings {
            include: Vec::new(),
            resume: false,
            force: false,
            jobs: 1,
        };
        let summary = unpack(
            &Pack::open(&self.path("packs"))?,
            &restored,
            &settings,
            self.stop,
            &Silent,
        )?;
        self.step(
            "segpack unpack packs -o restored",
            format!("{} files restored", summary.files),
            true,
        )?;
        let same = CHECKPOINT
            .iter()
            .filter(|(name, bytes)| fs::read(restored.join(name)).is_ok_and(|b| b == *bytes))
            .count();
        let extra = fs::read_dir(&restored)
            .map_err(StepError::io("list", &restored))?
            .count()
            - same;
        let outcome = format!("{same} of {} files are identical", CHECKPOINT.len());
        self.step(
            "diff -r checkpoint restored",
            outcome,
            same == CHECKPOINT.len() && extra == 0,
        )
    }

    /// Random weights generate nonsense; the next step shows that it is the right nonsense.
    #[cfg(feature = "run")]
    fn run(&mut self) -> Result<(), StepError> {
        let pack = Pack::open(&self.path("packs"))?;
        let mut options = RunOptions::new(PROMPT.into());
        options.session.threads = Some(1);
        options.generation.max_new_tokens = 12;
        let summary = run(&pack, &options, self.stop, &Silent, &mut |_| Ok(()))?;
        let uses = summary.experts.iter().flat_map(|layer| &layer.uses);
        let (all, used) = (uses.clone().count(), uses.filter(|n| **n > 0).count());
        let outcome = format!(
            "{} prompt tokens, {} generated tokens {:?}; {used} of {all} experts loaded",
            summary.prompt_tokens,
            summary.ids.len(),
            summary.ids,
        );
        self.step(
            &format!("segpack run packs --prompt {PROMPT:?} --max-new-tokens 12"),
            outcome,
            true,
        )
    }

    #[cfg(feature = "run")]
    fn validate(&mut self) -> Result<(), StepError> {
        write_files(self.folder, TRACE)?;
        let mut settings = ValidateSettings::new(Against::Trace(self.path("trace.json")));
        settings.session.threads = Some(1);
        let report = validate(
            &Pack::open(&self.path("packs"))?,
            &settings,
            self.stop,
            &Silent,
        )?;
        self.tell(DemoStep {
            command: "segpack validate packs --reference trace.json".to_owned(),
            outcome: validated(&report),
            ok: report.ok,
            validation: Some(Box::new(report)),
        })
    }

    /// Speaks the answer of the trace, which is next compared with the official sound.
    #[cfg(feature = "run")]
    fn speak(&mut self) -> Result<(), StepError> {
        write_files(self.folder, SPEECH)?;
        let trace = SpeechTrace::open(&self.path("speech.json"))?;
        let Some(case) = trace.as_ref().and_then(|trace| trace.cases().first()) else {
            return self.step("segpack speak packs", "there is no trace".to_owned(), false);
        };
        let spoken = SpokenText::Ids {
            prompt: case.tensors.ids().to_vec(),
            answer: case.answer.clone(),
        };
        let mut voice = VoiceOptions::new(self.path("answer.wav"));
        voice.speech.speaker.clone_from(&case.speaker);
        voice.speech.sampling = None;
        voice.speech.max_codes = trace.as_ref().map_or(0, SpeechTrace::talker_tokens);
        let mut session = SessionOptions::default();
        session.threads = Some(1);
        let pack = Pack::open(&self.path("packs"))?;
        let summary = speak(&pack, &spoken, &session, &voice, self.stop)?;
        let outcome = format!(
            "{} frames of {} codes, {} samples in {}'s voice",
            summary.frames, summary.groups, summary.samples, summary.speaker
        );
        let command =
            "segpack speak packs --prompt-ids … --text-ids … --speak-greedy -o answer.wav";
        self.step(command, outcome, true)
    }

    #[cfg(feature = "run")]
    fn validate_speech(&mut self) -> Result<(), StepError> {
        let mut settings = ValidateSettings::new(Against::Trace(self.path("speech.json")));
        settings.session.threads = Some(1);
        let pack = Pack::open(&self.path("packs"))?;
        let report = validate(&pack, &settings, self.stop, &Silent)?;
        let command = "segpack validate packs --reference speech.json";
        self.step(command, spoken(&report), report.ok)
    }

    #[cfg(not(feature = "run"))]
    fn run(&mut self) -> Result<(), StepError> {
        self.left_out("segpack run packs")
    }

    #[cfg(not(feature = "run"))]
    fn validate(&mut self) -> Result<(), StepError> {
        self.left_out("segpack validate packs --reference trace.json")
    }

    #[cfg(not(feature = "run"))]
    fn speak(&mut self) -> Result<(), StepError> {
        self.left_out("segpack speak packs")
    }

    #[cfg(not(feature = "run"))]
    fn validate_speech(&mut self) -> Result<(), StepError> {
        self.left_out("segpack validate packs --reference speech.json")
    }

    #[cfg(not(feature = "run"))]
    fn left_out(&mut self, command: &str) -> Result<(), StepError> {
        let why = "left out: built without the feature `run`".to_owned();
        self.step(command, why, true)
    }
}

#[cfg(feature = "run")]
fn validated(report: &ValidateReport) -> String {
    let logits = report
        .values
        .iter()
        .find(|row| row.quantity == Quantity::Logits);
    format!(
        "{}: logits differ by at most {:.1e} from the official model's (tolerance {:.1e})",
        if report.ok {
            "within tolerance"
        } else {
            "NOT within tolerance"
        },
        logits.map_or(f64::NAN, |row| row.max_abs),
        report.tolerance.unwrap_or(f64::NAN)
    )
}

/// What the comparison of the spoken answer found, from the prompt on.
#[cfg(feature = "run")]
fn spoken(report: &ValidateReport) -> String {
    let of = |stage: Stage| report.stages.iter().find(|row| row.stage == stage);
    let codes = of(Stage::SpeechCodes);
    format!(
        "{}: {} of {} codes differ from the official model's, its sound by at most {:.1e}",
        if report.ok {
            "within tolerance"
        } else {
            "NOT within tolerance"
        },
        codes.map_or(0, |row| row.unequal),
        codes.map_or(0, |row| row.values),
        of(Stage::SpeechWave).map_or(f64::NAN, |row| row.max_abs)
    )
}

fn write_files(folder: &Path, files: &[(&str, &[u8])]) -> Result<(), StepError> {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(StepError::io("write", &path))?;
    }
    Ok(())
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn flip(path: &Path, at: usize) -> Result<(), StepError> {
    let mut bytes = fs::read(path).map_err(StepError::io("read", path))?;
    bytes[at] ^= 1;
    fs::write(path, bytes).map_err(StepError::io("write", path))
}

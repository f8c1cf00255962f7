//! `unpack`, `export` and `repack`: whatever ends a run, at its place is what was there before or
//! all that is new, and the next run goes on.

#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use crate::support::cli::Run;
use crate::support::damage::flip;
use crate::support::faults::{Fault, count_writes, faulty};
use crate::support::folders::{contents, temp, write_contents};
use crate::support::packs::pack_into;
use crate::support::tiny::tiny_text;

type Files = BTreeMap<String, Vec<u8>>;

/// What is at the place of the output before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    /// An empty folder.
    Empty,
    /// The output of an earlier run of the same command with other options or another pack.
    Old(&'static [&'static str]),
}

/// A command that writes, its output, and what is there before.
#[derive(Debug, Clone, Copy)]
struct Writer {
    words: &'static [&'static str],
    out: &'static str,
    before: Before,
}

impl Writer {
    const fn new(words: &'static [&'static str], out: &'static str) -> Self {
        Self {
            words,
            out,
            before: Before::Nothing,
        }
    }

    const fn over(self, before: Before) -> Self {
        Self { before, ..self }
    }

    /// Whether its files are moved one after the other into a folder that stays.
    fn moves_files(&self) -> bool {
        self.words.contains(&"--max-shard-size") && self.words.contains(&"gguf")
    }
}

const UNPACK: Writer = Writer::new(&["unpack", "PACK"], "out");
const HF: Writer = Writer::new(
    &["export", "PACK", "--to", "hf", "--max-shard-size", "200KB"],
    "out",
);
const QWEN: Writer = Writer::new(&["export", "PACK", "--to", "qwen3-moe"], "out");
const NPY: Writer = Writer::new(
    &["export", "PACK", "--to", "npy", "*.layers.0.self_attn.*"],
    "out",
);
const ONE: Writer = Writer::new(
    &["export", "PACK", "--to", "safetensors"],
    "out.safetensors",
);
const GGUF: Writer = Writer::new(&["export", "PACK", "--to", "gguf"], "out.gguf");
const PARTS: Writer = Writer::new(
    &[
        "export",
        "PACK",
        "--to",
        "gguf",
        "--max-shard-size",
        "200KB",
    ],
    "out.gguf",
);
const REPACK: Writer = Writer::new(&["repack", "PACK", "--codec", "zstd"], "out");

const WRITERS: [Writer; 17] = [
    UNPACK,
    UNPACK.over(Before::Empty),
    UNPACK.over(Before::Old(&["unpack", "OTHER"])),
    HF,
    HF.over(Before::Old(&["export", "OTHER", "--to", "hf"])),
    QWEN,
    QWEN.over(Before::Old(&["export", "OTHER", "--to", "hf"])),
    NPY,
    NPY.over(Before::Old(&["export", "OTHER", "--to", "npy", "*norm*"])),
    ONE,
    ONE.over(Before::Old(&["export", "OTHER", "--to", "safetensors"])),
    GGUF,
    GGUF.over(Before::Old(&["export", "OTHER", "--to", "gguf"])),
    PARTS,
    PARTS.over(Before::Old(&[
        "export",
        "OTHER",
        "--to",
        "gguf",
        "--max-shard-size",
        "200KB",
    ])),
    REPACK,
    REPACK.over(Before::Old(&["repack", "PACK", "--codec", "bf16-rans"])),
];

/// A place for outputs, and two packs: of a checkpoint, and of one with the same names and other
/// values.
struct Scene {
    folder: tempfile::TempDir,
    writer: Writer,
    before: Files,
    after: Files,
}

impl Scene {
    fn make(writer: Writer) -> Self {
        let folder = temp();
        pack_into(&tiny_text(), &folder.path().join("pack"), &[]);
        let other = folder.path().join("other-checkpoint");
        write_contents(&other, &contents(&tiny_text()));
        for shard in 1..=4 {
            flip(
                &other.join(format!("model-0000{shard}-of-00004.safetensors")),
                -1,
            );
        }
        pack_into(&other, &folder.path().join("other"), &[]);
        fs::create_dir(folder.path().join("at")).unwrap();
        let mut scene = Self {
            folder,
            writer,
            before: Files::new(),
            after: Files::new(),
        };
        match writer.before {
            Before::Nothing => {}
            Before::Empty => fs::create_dir(scene.out()).unwrap(),
            Before::Old(words) => {
                scene.run(words, &[]).ok();
            }
        }
        scene.before = scene.seen();
        scene.clear();
        scene.run(writer.words, &[]).ok();
        scene.after = scene.seen();
        assert!(scene.before != scene.after, "{writer:?}");
        scene
    }

    fn at(&self) -> PathBuf {
        self.folder.path().join("at")
    }

    fn out(&self) -> PathBuf {
        self.at().join(self.writer.out)
    }

    fn clear(&self) {
        fs::remove_dir_all(self.at()).unwrap();
        fs::create_dir(self.at()).unwrap();
    }

    /// What was there before, and nothing else.
    fn reset(&self) {
        self.clear();
        write_contents(&self.at(), &self.before);
    }

    /// Everything at the place of the output, but for what is hidden beside it.
    fn seen(&self) -> Files {
        let mut files = contents(&self.at());
        files.retain(|name, _| !name.is_empty() && !name.starts_with(".out"));
        files
    }

    fn hidden(&self) -> Vec<String> {
        let entries = fs::read_dir(self.at()).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with('.')).collect()
    }

    fn arguments(&self, words: &[&str], more: &[&str]) -> Vec<OsString> {
        let path = |name: &str| self.folder.path().join(name).into();
        let mut arguments: Vec<OsString> = words
            .iter()
            .map(|word| match *word {
                "PACK" => path("pack"),
                "OTHER" => path("other"),
                word => word.into(),
            })
            .collect();
        arguments.extend(["-o".into(), self.out().into()]);
        arguments.extend(["--jobs", "2"].map(OsString::from));
        arguments.extend(more.iter().map(OsString::from));
        arguments
    }

    fn run(&self, words: &[&str], more: &[&str]) -> Run {
        crate::support::cli::run(&self.arguments(words, more))
    }

    /// The options that the command needs because of what is there.
    fn how(&self) -> &'static [&'static str] {
        match self.writer.before {
            Before::Old(_) => &["--force"],
            Before::Nothing | Before::Empty => &[],
        }
    }

    fn faulty(&self, fault: Fault<'_>, never: Option<&str>) -> Run {
        let mut command = faulty(fault);
        if let Some(never) = never {
            command.env("FAULT_NEVER", never);
        }
        Run::of(command.args(self.arguments(self.writer.words, self.how())))
    }

    fn count(&self) -> u64 {
        self.reset();
        let count = count_writes(&self.arguments(self.writer.words, self.how()));
        self.check_after("without a fault");
        count
    }

    /// What was there before, or all that is new. Where that cannot be, a run says how to go on.
    fn check_between(&self, what: &str) {
        let seen = self.seen();
        if seen == self.before || seen == self.after {
            return;
        }
        let is_pack = self.writer.words[0] == "repack";
        if is_pack && self.before.is_empty() {
            // the manifest comes last, and what is hidden goes after it
            let mut whole = seen;
            whole.retain(|name, _| !name.contains("/.partial/"));
            let is_complete = whole.keys().any(|name| name.ends_with("/manifest.json"));
            assert!(
                !is_complete || whole == self.after,
                "{what}: looks complete"
            );
            return;
        }
        // between two renames or moves
        let printed = self.run(self.writer.words, &[]);
        assert_eq!(printed.status, Some(1), "{what}: {printed}");
        if is_pack {
            // any run ends what was begun
            assert!(self.seen() == self.after, "{what}: {printed}");
            return;
        }
        assert!(printed.stderr.contains("--resume"), "{what}: {printed}");
        assert!(
            self.writer.moves_files() || !self.out().exists(),
            "{what}: {:?}",
            seen.keys()
        );
    }

    fn check_after(&self, what: &str) {
        let seen = self.seen();
        let names = || seen.keys().collect::<Vec<_>>();
        assert!(seen == self.after, "{what}: not what is new: {:?}", names());
        assert_eq!(self.hidden(), [""; 0], "{what}");
    }

    /// Goes on after a run that did not end well, in one of the ways that there are.
    fn go_on(&self, n: u64, what: &str) {
        let old = !self.how().is_empty();
        let more: &[&str] = match (n % 3, old) {
            (0, true) => &["--force", "--resume"],
            (0, false) => &["--resume"],
            (1, _) => &["--force"],
            (_, true) => &["--resume", "--force"],
            (_, false) => &[],
        };
        let mut done = self.run(self.writer.words, more);
        if more.is_empty() && done.status == Some(1) {
            // everything was finished, or something; where only a hidden folder has not gone, either
            let is_done = self.seen() == self.after;
            let is_left = is_done && !self.hidden().is_empty() && done.stderr.contains("--resume");
            let how = if is_done && !is_left {
                "exist"
            } else {
                "--resume"
            };
            done.says(&[how]);
            done = self.run(self.writer.words, &["--resume"]);
        }
        assert_eq!(done.status, Some(0), "{what}, then {more:?}: {done}");
        self.check_after(&format!("{what}, then {more:?}"));
    }
}

/// ENOSYS and EINVAL: a kernel, and a file system, that cannot exchange two folders.
const NO_EXCHANGE: [Option<&str>; 3] = [None, Some("renameat2:22"), Some("renameat2:38")];

/// Kills every writer before one of `step` of its writing calls, and more often near the end, where
/// the output is put in its place.
fn kill(step: u64, ways: &[Option<&str>]) -> u64 {
    let mut tried = 0;
    for (number, writer) in (0..).zip(WRITERS) {
        let scene = Scene::make(writer);
        let count = scene.count();
        // only what is there already is exchanged
        let exchanges = writer.before != Before::Nothing && scene.out().is_dir();
        let ways = if exchanges { ways } else { &ways[..1] };
        for never in ways {
            let is_tried = |n: &u64| {
                let near_end = n + 20 > count && (n + number).is_multiple_of(4);
                step == 1 || (n + number).is_multiple_of(step) || near_end
            };
            for n in (1..=count).filter(is_tried) {
                scene.reset();
                let what = format!("{writer:?}, {never:?}: killed before call {n} of {count}");
                let done = scene.faulty(Fault::Kill(n), *never);
                // two threads do not always make the same number of calls
                if done.status.is_some() {
                    assert!(n + 6 > count && done.status == Some(0), "{what}: {done}");
                    scene.check_after(&what);
                    continue;
                }
                scene.check_between(&what);
                scene.go_on(n, &what);
                tried += 1;
            }
        }
    }
    tried
}

#[test]
fn a_run_that_is_killed_leaves_the_old_or_the_new() {
    assert!(kill(89, &NO_EXCHANGE[..1]) > 60);
}

#[test]
fn without_an_exchange_too() {
    for writer in [WRITERS[2], WRITERS[4]] {
        let scene = Scene::make(writer);
        let count = scene.count();
        for n in count - 14..=count {
            scene.reset();
            let what = format!("{writer:?}: killed before call {n} of {count}");
            if scene
                .faulty(Fault::Kill(n), NO_EXCHANGE[1])
                .status
                .is_none()
            {
                scene.check_between(&what);
                scene.go_on(n, &what);
            }
        }
    }
}

#[test]
#[ignore = "takes minutes"]
fn a_run_that_is_killed_anywhere_leaves_the_old_or_the_new() {
    let tried = kill(1, &NO_EXCHANGE);
    eprintln!("{tried} kills");
}

/// Fails every writer at one of `step` of its writing calls.
fn fail(step: u64) -> u64 {
    let (no_space, io, access) = (28, 5, 13);
    let mut tried = 0;
    for (number, writer) in (0..).zip(WRITERS) {
        let scene = Scene::make(writer);
        let count = scene.count();
        for n in (1..=count).filter(|n| (n + number).is_multiple_of(step)) {
            for error in [no_space, io, access] {
                if step > 1 && (n / step + number) % 3 != u64::from(error == io) {
                    continue;
                }
                // of those that last, a full disk is the one that happens
                let lasts = (error == no_space).then_some(Fault::Full(n, error));
                for fault in [Some(Fault::Fails(n, error)), lasts].into_iter().flatten() {
                    scene.reset();
                    let what = format!("{writer:?}: {fault:?} of {count}");
                    let done = scene.faulty(fault, None);
                    scene.check_failed(&done, fault, &what);
                    scene.go_on(n, &what);
                    tried += 1;
                }
            }
        }
    }
    tried
}

impl Scene {
    /// A failure is the output's, it is explained, and nothing hidden stays that is of no use.
    fn check_failed(&self, done: &Run, fault: Fault<'_>, what: &str) {
        if done.status == Some(0) {
            // what failed was of no importance
            self.check_after(what);
            self.reset();
            return;
        }
        assert_eq!(done.status, Some(1), "{what}: {done}");
        self.check_between(what);
        let cleaned = matches!(fault, Fault::Fails(..));
        if cleaned && !self.hidden().is_empty() {
            assert!(done.stderr.contains("--resume"), "{what}: {done}");
        }
    }
}

#[test]
fn a_run_that_fails_leaves_the_old_or_the_new() {
    assert!(fail(31) > 40);
}

/// The hidden folder beside an empty one can be made, but not written to: what is built inside
/// leaves nothing beside.
#[test]
fn what_was_begun_beside_an_empty_folder_does_not_stay() {
    let scene = Scene::make(UNPACK.over(Before::Empty));
    for n in 1..10 {
        let fault = Fault::Fails(n, 13);
        scene.reset();
        let what = format!("{fault:?}");
        let done = scene.faulty(fault, None);
        scene.check_failed(&done, fault, &what);
        scene.go_on(n, &what);
    }
}

#[test]
#[ignore = "takes minutes"]
fn a_run_that_fails_anywhere_leaves_the_old_or_the_new() {
    let tried = fail(1);
    eprintln!("{tried} failures");
}

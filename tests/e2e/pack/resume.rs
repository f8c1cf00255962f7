//! Interruptions: whatever happens to a run, nothing is half-named, and the next run goes on from
//! there.

#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::cli::{Run, interruptible, program, segpack};
use crate::support::damage::{flip, resize};
use crate::support::folders::{assert_same, contents, copy, hidden_beside, temp};
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full, write_file};

/// A checkpoint that takes long enough to be interrupted, and its pack.
struct Slow {
    checkpoint: PathBuf,
    whole: PathBuf,
    packs: usize,
}

impl Slow {
    fn make(folder: &TempDir) -> Self {
        let size = Qwen3Moe {
            layers: 13,
            experts: 6,
            hidden: 256,
            width: 384,
            shards: 4,
        };
        let checkpoint = Tiny::qwen3_moe(size).write(&folder.path().join("checkpoint"));
        let whole = folder.path().join("whole");
        segpack!["pack", &checkpoint, "-o", &whole].ok();
        let packs = files_in(&whole.join("packs"));
        assert_eq!(packs, 13);
        Self {
            checkpoint,
            whole,
            packs,
        }
    }

    fn start(&self, out: &Path, jobs: &str) -> Child {
        let mut command = interruptible();
        command
            .arg("pack")
            .arg(&self.checkpoint)
            .arg("-o")
            .arg(out)
            .args(["--jobs", jobs]);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn resume(&self, out: &Path) -> Run {
        segpack!["pack", &self.checkpoint, "-o", out, "--resume", "--json"]
    }

    /// Everything but `.partial` is a whole file of the whole pack.
    fn assert_nothing_half_named(&self, out: &Path) {
        if !out.exists() {
            return;
        }
        let whole = contents(&self.whole);
        for (name, bytes) in contents(out) {
            let is_empty_folder = name.ends_with('/') || name.is_empty();
            assert!(
                name.starts_with(".partial/")
                    || is_empty_folder
                    || whole.get(&name) == Some(&bytes),
                "{name} is half-named"
            );
        }
    }

    /// Resumes, and compares with the pack that was never interrupted.
    fn assert_resumes(&self, out: &Path) -> u64 {
        self.assert_nothing_half_named(out);
        let summary = self.resume(out).ok().json();
        assert_same(out, &self.whole);
        summary["resumed_packs"].as_u64().unwrap()
    }
}

fn files_in(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(child.id().to_string())
        .status()
        .unwrap();
    assert!(status.success());
}

/// Waits until so many packs are in place; `false` where the program ended before.
fn wait_for_packs(child: &mut Child, out: &Path, packs: usize) -> bool {
    let start = Instant::now();
    loop {
        if files_in(&out.join("packs")) >= packs && out.join(".partial").exists() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{packs} packs never appeared"
        );
        sleep(Duration::from_micros(100));
    }
}

/// The exit status as a shell reports it, and what was said.
fn end(child: Child) -> (i32, String) {
    use std::os::unix::process::ExitStatusExt;
    let output = child.wait_with_output().unwrap();
    let status = output
        .status
        .code()
        .or_else(|| output.status.signal().map(|s| 128 + s))
        .unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(!printed.contains("panicked at"), "{printed}");
    (status, printed)
}

fn interrupt_at(slow: &Slow, folder: &Path, name: &str, packs: usize, jobs: &str) {
    let out = folder.join(format!("{name}-{packs}"));
    let mut child = slow.start(&out, jobs);
    let in_time = wait_for_packs(&mut child, &out, packs);
    if in_time {
        signal(&child, name);
    }
    let (status, printed) = end(child);
    let wanted = match name {
        "INT" => 130,
        "TERM" => 143,
        _ => 137,
    };
    // near the end it may be quicker than the signal
    assert!(
        status == wanted || status == 0 && packs > 6,
        "{name} after {packs} packs: status {status}\n{printed}"
    );
    if status == wanted && name != "KILL" {
        assert!(printed.contains("interrupted"), "{printed}");
    }
    let whole = out.join("manifest.json").exists();
    let resumed = slow.assert_resumes(&out);
    assert!(
        whole || resumed + 2 >= packs as u64,
        "only {resumed} of {packs} packs were kept"
    );
    fs::remove_dir_all(&out).unwrap();
}

#[test]
fn a_pack_goes_on_after_any_signal_at_any_time() {
    let folder = temp();
    let slow = Slow::make(&folder);
    for packs in [0, 1, 4, 9, slow.packs] {
        interrupt_at(&slow, folder.path(), "KILL", packs, "2");
    }
    for (name, packs) in [("INT", 2), ("TERM", 3), ("INT", 6), ("TERM", 0)] {
        interrupt_at(&slow, folder.path(), name, packs, "1");
    }
}

/// All moments, by time.
#[test]
#[ignore = "takes a minute"]
fn a_pack_goes_on_after_a_kill_at_every_millisecond() {
    let folder = temp();
    let slow = Slow::make(&folder);
    for delay in 0..150 {
        let out = folder.path().join("out");
        let mut child = slow.start(&out, if delay % 2 == 0 { "1" } else { "3" });
        sleep(Duration::from_micros(1500 * delay));
        child.kill().unwrap();
        end(child);
        slow.assert_resumes(&out);
        fs::remove_dir_all(&out).unwrap();
    }
}

/// A run that was killed after some packs, to do things to.
struct Killed {
    _folder: TempDir,
    slow: Slow,
    state: PathBuf,
}

fn killed() -> Killed {
    let folder = temp();
    let slow = Slow::make(&folder);
    let state = folder.path().join("state");
    let mut child = slow.start(&state, "1");
    assert!(wait_for_packs(&mut child, &state, 4));
    child.kill().unwrap();
    end(child);
    assert!(!state.join("manifest.json").exists());
    Killed {
        _folder: folder,
        slow,
        state,
    }
}

impl Killed {
    /// A copy of the state.
    fn copy(&self, name: &str) -> PathBuf {
        let to = self.state.with_file_name(name);
        copy(&self.state, &to);
        to
    }
}

#[test]
fn whatever_an_interrupted_run_left_is_mended_or_refused() {
    let killed = killed();
    let slow = &killed.slow;
    let first = |out: &Path| -> PathBuf {
        let mut packs: Vec<_> = fs::read_dir(out.join("packs"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        packs.sort();
        packs.remove(0)
    };

    // a journal that was cut off anywhere
    let journal = killed.state.join(".partial/journal.jsonl");
    let length = fs::metadata(&journal).unwrap().len() as i64;
    for cut in [1, length / 3, length / 2, length - 1, length] {
        let out = killed.copy("cut");
        resize(&out.join(".partial/journal.jsonl"), -cut);
        slow.assert_resumes(&out);
        fs::remove_dir_all(&out).unwrap();
    }
    // none at all, or one that is nonsense
    let out = killed.copy("none");
    fs::remove_file(out.join(".partial/journal.jsonl")).unwrap();
    assert_eq!(slow.assert_resumes(&out), 0);
    let out = killed.copy("nonsense");
    write_file(&out.join(".partial/journal.jsonl"), b"{\"begun\":1}\n");
    assert_eq!(slow.assert_resumes(&out), 0);

    // one of a version without checksums: what it says is done again, and that is said
    let out = killed.copy("old");
    let old = "{\"begun\":{\"fingerprint\":\"00\"}}\n{\"pack\":{\"path\":\"packs/x\"}}\n";
    write_file(&out.join(".partial/journal.jsonl"), old.as_bytes());
    slow.resume(&out)
        .ok()
        .says(&["journal.jsonl: 2 lines", "done again"]);
    assert_same(&out, &slow.whole);
    // a line that was damaged costs no more than what it said
    let out = killed.copy("line");
    let packs = fs::read_to_string(&journal).unwrap();
    let packs = packs.matches("\"record\":{\"pack\":").count() as u64;
    let damaged = fs::read_to_string(&journal).unwrap();
    let damaged = damaged.replacen("\"warnings\"", "\"warnixgs\"", 1);
    write_file(&out.join(".partial/journal.jsonl"), damaged.as_bytes());
    assert_eq!(slow.assert_resumes(&out), packs - 1);
    // the lock went with the folder it was in, or was never made
    for gone in [&["lock"] as &[&str], &["lock", "journal.jsonl"]] {
        let out = killed.copy(&format!("without-{}", gone.len()));
        for name in gone {
            fs::remove_file(out.join(".partial").join(name)).unwrap();
        }
        segpack!["pack", &slow.checkpoint, "-o", &out]
            .exits(1)
            .says(&["--resume", "--force"]);
        let kept = if gone.len() == 1 { packs } else { 0 };
        assert_eq!(slow.assert_resumes(&out), kept);
    }
    let out = killed.state.with_file_name("only-partial");
    fs::create_dir_all(out.join(".partial")).unwrap();
    assert_eq!(slow.assert_resumes(&out), 0);
    let out = killed.state.with_file_name("only-partial-forced");
    fs::create_dir_all(out.join(".partial")).unwrap();
    segpack!["pack", &slow.checkpoint, "-o", &out, "--force"].ok();
    assert_same(&out, &slow.whole);

    // a finished pack that was damaged, cut, or removed is written again, and that is said
    for (name, harm) in [
        ("flipped", (|path| flip(path, -1)) as fn(&Path)),
        ("short", |path| resize(path, -1)),
        ("gone", |path| fs::remove_file(path).unwrap()),
    ] {
        let out = killed.copy(name);
        let victim = first(&out);
        harm(&victim);
        let pack = victim.file_name().unwrap().to_string_lossy().into_owned();
        let loud = slow.resume(&out).ok().says(&[&pack, "writing it again"]);
        assert!(!loud.text().contains("writing it again"), "{loud}");
        assert_same(&out, &slow.whole);
    }
    let out = killed.copy("quiet");
    flip(&first(&out), -1);
    let quiet = segpack!["pack", &slow.checkpoint, "-o", &out, "--resume", "--quiet"].ok();
    assert!(quiet.stderr.is_empty(), "{quiet}");

    // it is no pack, and no place for another one
    segpack!["verify", &killed.state].exits(3).says(&[]);
    segpack!["ls", &killed.state]
        .exits(3)
        .says(&["unfinished", "--resume"]);
    let before = contents(&killed.state);
    segpack!["pack", &slow.checkpoint, "-o", &killed.state]
        .exits(1)
        .says(&["--resume", "--force"]);
    for options in [
        ["--codec", "zstd"],
        ["--no-source-digests", "-q"],
        ["--no-sums", "-q"],
        ["--no-provenance", "-q"],
    ] {
        segpack![
            "pack",
            &slow.checkpoint,
            "-o",
            &killed.state,
            "--resume",
            options[0],
            options[1]
        ]
        .exits(1)
        .says(&["other options", "--force"]);
    }
    segpack![
        "pack",
        &slow.checkpoint,
        "-o",
        &killed.state,
        "--resume",
        "--exclude",
        "text"
    ]
    .exits(2);
    segpack!["pack", tiny_full(), "-o", &killed.state, "--resume"]
        .exits(1)
        .says(&["another source"]);
    assert!(
        contents(&killed.state) == before,
        "a refusal changed something"
    );

    // a source that was touched since is another source
    let shard = slow.checkpoint.join("model-00001-of-00004.safetensors");
    let length = fs::metadata(&shard).unwrap().len() as i64;
    flip(&shard, length / 2);
    slow.resume(&killed.state)
        .exits(1)
        .says(&["the source may have changed"]);
    flip(&shard, length / 2);
    slow.resume(&killed.state).exits(1);
    // what is left is to start anew
    segpack!["pack", &slow.checkpoint, "-o", &killed.state, "--force"].ok();
    assert_same(&killed.state, &slow.whole);
}

/// A finished pack of a tiny checkpoint.
fn finished() -> (TempDir, PathBuf) {
    let folder = temp();
    let out = folder.path().join("pack");
    segpack!["pack", tiny_full(), "-o", &out].ok();
    (folder, out)
}

#[test]
fn a_finished_pack_is_not_made_again() {
    let (folder, out) = finished();
    let before = contents(&out);
    let again = segpack!["pack", tiny_full(), "-o", &out, "--resume", "--json"]
        .ok()
        .json();
    assert_eq!(again["resumed_packs"], again["packs"]);
    // killed after the manifest was written, before `.partial` went away
    write_file(&out.join(".partial/lock"), b"");
    write_file(&out.join(".partial/journal.jsonl"), b"{}\n");
    segpack!["verify", &out].exits(3);
    segpack!["pack", tiny_full(), "-o", &out, "--resume"].ok();
    assert!(contents(&out) == before);
    segpack!["verify", &out].ok();

    segpack!["pack", tiny_full(), "-o", &out]
        .exits(1)
        .says(&["exists", "--force"]);
    segpack![
        "pack",
        tiny_full(),
        "-o",
        &out,
        "--resume",
        "--codec",
        "zstd"
    ]
    .exits(1)
    .says(&["--force"]);
    assert!(contents(&out) == before);
    segpack![
        "pack",
        tiny_full(),
        "-o",
        &out,
        "--force",
        "--codec",
        "zstd"
    ]
    .ok();
    segpack!["verify", &out].ok();
    assert!(contents(&out) != before);

    // force is for packs alone
    write_file(&out.join("packs/thesis.txt"), b"years of work");
    let before = contents(&out);
    segpack!["pack", tiny_full(), "-o", &out, "--force"]
        .exits(1)
        .says(&["thesis.txt"]);
    assert!(contents(&out) == before);
    let other = folder.path().join("other");
    write_file(&other.join("thesis.txt"), b"years of work");
    segpack!["pack", tiny_full(), "-o", &other, "--force"]
        .exits(1)
        .says(&["thesis.txt"]);
    segpack!["pack", tiny_full(), "-o", &other]
        .exits(1)
        .says(&["not empty"]);
    segpack!["pack", tiny_full(), "-o", &other, "--resume"].exits(1);
    assert_eq!(contents(&other).len(), 1);
    // an empty folder is a good place
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    segpack!["pack", tiny_full(), "-o", &empty].ok();
}

#[test]
fn two_do_not_write_to_one_place() {
    let folder = temp();
    let slow = Slow::make(&folder);
    let out = folder.path().join("out");
    let mut child = slow.start(&out, "1");
    assert!(wait_for_packs(&mut child, &out, 1));
    signal(&child, "STOP");
    for how in ["--resume", "--force", "--quiet"] {
        segpack!["pack", &slow.checkpoint, "-o", &out, how]
            .exits(1)
            .says(&["another segpack is writing to"]);
        segpack!["unpack", &slow.whole, "-o", &out]
            .exits(1)
            .says(&["another segpack is writing to"]);
    }
    signal(&child, "CONT");
    assert_eq!(end(child).0, 0);
    assert_same(&out, &slow.whole);
}

#[test]
#[ignore = "takes ten seconds"]
fn a_long_run_says_how_far_it_is() {
    let folder = temp();
    let slow = Slow::make(&folder);
    let out = folder.path().join("out");
    let mut child = slow.start(&out, "1");
    assert!(wait_for_packs(&mut child, &out, 1));
    signal(&child, "STOP");
    sleep(Duration::from_millis(10_500));
    signal(&child, "CONT");
    let (status, printed) = end(child);
    assert!(
        status == 0 && printed.contains("packing: ") && printed.contains("left"),
        "{status}: {printed}"
    );
}

#[test]
fn a_source_that_changes_while_it_is_read_is_noticed() {
    let folder = temp();
    let slow = Slow::make(&folder);
    let last = slow.checkpoint.join("model-00004-of-00004.safetensors");
    let good = fs::read(&last).unwrap();
    let harms: [fn(&Path); 4] = [
        |path| flip(path, -1),
        |path| {
            // as `rsync --inplace --times` does
            let modified = fs::metadata(path).unwrap().modified().unwrap();
            flip(path, -1);
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(modified).unwrap();
        },
        |path| resize(path, -1000),
        |path| resize(path, 8),
    ];
    for harm in harms {
        let out = folder.path().join("out");
        let mut child = slow.start(&out, "1");
        assert!(wait_for_packs(&mut child, &out, 1));
        signal(&child, "STOP");
        harm(&last);
        signal(&child, "CONT");
        let (status, printed) = end(child);
        assert!(
            status == 3 && printed.contains("changed while"),
            "{status}: {printed}"
        );
        assert!(printed.contains("model-00004"), "{printed}");
        assert!(!out.exists(), "something was left");
        fs::write(&last, &good).unwrap();
    }
}

/// Begins to unpack into an empty place, sends the signal once files appear, and returns the exit
/// status.
fn interrupt_unpack(slow: &Slow, out: &Path, name: &str) -> i32 {
    let _ = fs::remove_dir_all(out);
    let _ = fs::remove_dir_all(hidden_beside(out));
    let mut command = interruptible();
    command
        .arg("unpack")
        .arg(&slow.whole)
        .arg("-o")
        .arg(out)
        .args(["--jobs", "1"]);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // what is unfinished is one more
    let built = hidden_beside(out).join("new");
    while files_in(&built) < 2 && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_micros(100));
    }
    signal(&child, name);
    let (status, printed) = end(child);
    assert!(
        matches!(
            (name, status),
            (_, 0) | ("KILL", 137) | ("INT", 130) | ("TERM", 143)
        ),
        "{name}: {printed}"
    );
    status
}

#[test]
fn unpacking_goes_on_too() {
    let folder = temp();
    let slow = Slow::make(&folder);
    for (name, wanted) in [("KILL", 137), ("INT", 130), ("TERM", 143)] {
        let out = folder.path().join(name);
        // now and then it is quicker than the signal
        let hit = (0..20).any(|_| interrupt_unpack(&slow, &out, name) == wanted);
        assert!(hit, "{name} never came in time");
        let originals = contents(&slow.checkpoint);
        assert!(!out.exists());
        for (file, bytes) in contents(&hidden_beside(&out).join("new")) {
            assert!(
                file.starts_with(".partial/") || originals.get(&file) == Some(&bytes),
                "{file}"
            );
        }
        segpack!["unpack", &slow.whole, "-o", &out].exits(1).says(&[
            &format!(".{name}.partial"),
            "--resume",
            "--force",
        ]);
        // of other files, or of another command, nothing is continued
        segpack![
            "unpack",
            &slow.whole,
            "-o",
            &out,
            "--resume",
            "--include",
            "*.json"
        ]
        .exits(1)
        .says(&["of other options", "--force"]);
        segpack!["pack", &slow.checkpoint, "-o", &out, "--resume"]
            .exits(1)
            .says(&["another interrupted command"]);
        let summary = segpack!["unpack", &slow.whole, "-o", &out, "--resume", "--json"]
            .ok()
            .json();
        assert!(summary["resumed_files"].as_u64().unwrap() >= 1);
        assert_same(&out, &slow.checkpoint);
        assert!(!hidden_beside(&out).exists());
        // a file that is another one now is nobody's to overwrite; one that is gone is restored,
        // the rest is kept
        let shard = out.join("model-00002-of-00004.safetensors");
        flip(&shard, -1);
        let refused = segpack!["unpack", &slow.whole, "-o", &out, "--resume"].exits(1);
        refused.says(&[
            "model-00002-of-00004.safetensors",
            "is not what the pack holds",
        ]);
        fs::remove_file(&shard).unwrap();
        let summary = segpack!["unpack", &slow.whole, "-o", &out, "--resume", "--json"]
            .ok()
            .json();
        assert_eq!(summary["resumed_files"], originals.len() - 1);
        assert_same(&out, &slow.checkpoint);
    }
}

/// A file may grow to this many blocks of the shell; the signal that goes with it is ignored.
fn with_file_limit(blocks: u32, command: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!(
        "trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\""
    ));
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

#[test]
fn a_write_that_fails_says_so_and_can_be_resumed() {
    let folder = temp();
    let slow = Slow::make(&folder);
    let out = folder.path().join("out");
    let mut command = program();
    command
        .arg("pack")
        .arg(&slow.checkpoint)
        .arg("-o")
        .arg(&out);
    Run::of(&mut with_file_limit(2000, &command))
        .exits(1)
        .says(&["cannot write", "packs/", "File too large"]);
    slow.assert_resumes(&out);

    let back = folder.path().join("back");
    let mut command = program();
    command.arg("unpack").arg(&slow.whole).arg("-o").arg(&back);
    Run::of(&mut with_file_limit(2000, &command))
        .exits(1)
        .says(&["cannot write", "File too large"]);
    segpack!["unpack", &slow.whole, "-o", &back, "--resume"].ok();
    assert_same(&back, &slow.checkpoint);
}

/// A small drive in memory, for root.
struct Drive(TempDir);

impl Drive {
    /// None where this user may not mount.
    fn mount(options: &str) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "segpack-test"])
            .arg(folder.path());
        let done = mount
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success());
        if !done {
            eprintln!("not tested: mount -t tmpfs is not allowed here");
        }
        done.then_some(Self(folder))
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        assert!(
            Command::new("mount")
                .args(["-o", &options])
                .arg(self.0.path())
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_drive_is_seen_before_and_survived_when_it_happens() {
    let folder = temp();
    let slow = Slow::make(&folder);
    let Some(drive) = Drive::mount("size=30m") else {
        return;
    };
    let out = drive.0.path().join("out");
    // beforehand, with both figures
    segpack!["pack", &slow.checkpoint, "-o", &out]
        .exits(1)
        .says(&["needs", "free"]);
    assert_eq!(
        contents(drive.0.path())
            .keys()
            .filter(|k| k.contains("safetensors"))
            .count(),
        0
    );
    segpack!["unpack", &slow.whole, "-o", &drive.0.path().join("back")]
        .exits(1)
        .says(&["needs", "free"]);
    // by surprise: room enough, but no more files
    drive.remount("size=200m,nr_inodes=24");
    segpack!["pack", &slow.checkpoint, "-o", &out, "--resume"]
        .exits(1)
        .says(&["No space left on device"]);
    slow.assert_nothing_half_named(&out);
    drive.remount("size=200m,nr_inodes=0");
    slow.assert_resumes(&out);
}

#[test]
fn a_finished_pack_passes_for_done_only_if_it_is_intact_and_of_this_source() {
    let folder = temp();
    let (checkpoint, out) = (folder.path().join("checkpoint"), folder.path().join("pack"));
    copy(&tiny_full(), &checkpoint);
    segpack!["pack", &checkpoint, "-o", &out].ok();
    let resume = || segpack!["pack", &checkpoint, "-o", &out, "--resume"];
    resume().ok();
    let shard = checkpoint.join("model-00002-of-00004.safetensors");
    flip(&shard, -1);
    resume().exits(1).says(&["another checkpoint", "--force"]);
    flip(&shard, -1);
    write_file(&checkpoint.join("more.txt"), b"more");
    resume().exits(1).says(&["another checkpoint"]);
    fs::remove_file(checkpoint.join("more.txt")).unwrap();
    fs::remove_file(out.join("packs/code2wav.safetensors")).unwrap();
    resume().exits(1).says(&["damaged"]);
}

#[test]
fn outputs_and_inputs_never_destroy_one_another() {
    let folder = temp();
    let (checkpoint, out) = (folder.path().join("checkpoint"), folder.path().join("pack"));
    copy(&tiny_full(), &checkpoint);
    segpack!["pack", &checkpoint, "-o", &out].ok();
    let before = contents(&out);
    // a pack is a checkpoint of sorts, but not one to be replaced by its own pack
    let own = out.join("packs/thinker.text.safetensors");
    segpack!["pack", own, "-o", &out, "--allow-unclassified", "--force"]
        .exits(1)
        .says(&["lies inside the output"]);
    // `..` after a folder that does not exist yet
    let around = folder.path().join("none/../checkpoint/out");
    segpack!["pack", &checkpoint, "-o", around]
        .exits(1)
        .says(&["lies inside the input"]);
    // files of somebody else, beside what looks like an unfinished pack
    let mine = folder.path().join("mine");
    write_file(&mine.join(".partial/lock"), b"");
    write_file(&mine.join("source/mine"), b"mine");
    for how in ["--force", "--resume"] {
        segpack!["pack", &checkpoint, "-o", &mine, how]
            .exits(1)
            .says(&["source/mine"]);
    }
    assert_eq!(fs::read(mine.join("source/mine")).unwrap(), b"mine");
    let home = folder.path().join("home");
    write_file(&home.join("config.json"), b"mine");
    segpack!["unpack", &out, "-o", &home, "--resume"]
        .exits(1)
        .says(&["is not what the pack holds"]);
    assert_eq!(fs::read(home.join("config.json")).unwrap(), b"mine");
    assert!(contents(&out) == before);
}

#[test]
fn a_pack_that_lost_a_file_is_damaged_not_the_disk() {
    let folder = temp();
    let (out, to) = (folder.path().join("pack"), folder.path().join("to"));
    segpack!["pack", tiny_full(), "-o", &out].ok();
    fs::remove_file(out.join("packs/code2wav.safetensors")).unwrap();
    segpack!["unpack", &out, "-o", &to]
        .exits(3)
        .says(&["code2wav.safetensors"]);
    assert!(!to.join(".partial").exists());
}

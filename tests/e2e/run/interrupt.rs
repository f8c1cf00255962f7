//! Ctrl-C during a long prompt: acknowledged at once, over within a second.

use std::io::{BufRead, BufReader};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::cli::{interruptible, packed, press_ctrl_c};
use crate::support::folders::temp;
use crate::support::tiny::{Qwen3Moe, Tiny};

/// Longest that an acknowledgement and an end may take.
const ACKNOWLEDGED: Duration = Duration::from_millis(200);
const ENDED: Duration = Duration::from_secs(1);

/// Interrupts a prompt of 4,000 tokens while its first layer is computed, whose dense MLP alone
/// takes seconds on one thread. Returns when the interruption was acknowledged, and when the
/// process was gone.
fn interrupt(pack: &std::path::Path) -> (Duration, Duration) {
    let ids: Vec<String> = (0..4000).map(|i| (i % 100).to_string()).collect();
    let mut command = interruptible();
    command
        .args([
            "run",
            "--max-new-tokens",
            "1",
            "--threads",
            "1",
            "--prompt-ids",
        ])
        .arg(ids.join(","))
        .arg(pack)
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let (send, receive) = mpsc::channel();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let reader = thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            // nobody listens after the acknowledgement
            let _ = send.send((Instant::now(), line));
        }
    });
    thread::sleep(Duration::from_millis(700));
    assert!(child.try_wait().unwrap().is_none(), "it was over too soon");
    let began = Instant::now();
    press_ctrl_c(&child);
    let status = child.wait().unwrap();
    let ended = began.elapsed();
    assert_eq!(status.code(), Some(130));
    reader.join().unwrap();
    let lines: Vec<(Instant, String)> = receive.iter().collect();
    let reported: Vec<_> = lines
        .iter()
        .filter(|(_, line)| line == "stopping…")
        .collect();
    assert_eq!(reported.len(), 1, "{lines:?}");
    assert!(lines.iter().any(|(_, line)| line == "error: interrupted"));
    (reported[0].0.duration_since(began), ended)
}

#[test]
fn a_long_prompt_ends_within_a_second() {
    let folder = temp();
    let size = Qwen3Moe {
        layers: 2,
        experts: 2,
        hidden: 512,
        width: 4096,
        shards: 1,
    };
    let checkpoint = Tiny::qwen3_moe(size).write(&folder.path().join("checkpoint"));
    let pack = packed(&checkpoint, folder.path());
    // on a machine that does much else at once, one of a few attempts has to be in time
    let attempts: Vec<_> = (0..4).map(|_| interrupt(&pack)).collect();
    let in_time =
        |(reported, ended): &(Duration, Duration)| *reported <= ACKNOWLEDGED && *ended <= ENDED;
    assert!(attempts.iter().any(in_time), "{attempts:?}");
}

//! Runs the program as a user would, and looks at everything that it leaves behind.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::packs::pack_into;

/// What came of a run.
pub struct Run {
    command: String,
    pub status: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// Runs `segpack` with arguments of any string or path type.
macro_rules! segpack {
    ($($argument:expr),* $(,)?) => {
        $crate::support::cli::run(&[$(std::ffi::OsString::from(&$argument)),*])
    };
}
pub(crate) use segpack;

/// The program, with nothing of the tester's environment that it looks at.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segpack"));
    for (name, _) in std::env::vars_os() {
        let prefixes = [
            "HF_",
            "HUGGINGFACE_",
            "AWS_",
            "AZURE_",
            "GOOGLE_",
            "SSL_CERT_",
        ];
        let of_servers = |n: &str| {
            let is_proxy = n.to_ascii_uppercase().ends_with("_PROXY");
            is_proxy || prefixes.iter().any(|prefix| n.starts_with(prefix))
        };
        if name.to_str().is_some_and(of_servers) {
            command.env_remove(name);
        }
    }
    let none = std::env::temp_dir().join("segpack-tests-have-no-home");
    command
        .env("HOME", none)
        .env_remove("XDG_CACHE_HOME")
        .env_remove("NO_COLOR")
        .env_remove("COLUMNS");
    command
        .env_remove("CLICOLOR_FORCE")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    command
}

/// [`program`], as a shell in the foreground starts it: whoever runs the tests may ignore SIGINT (a shell's `&`) or
/// SIGHUP (`nohup`), and what is ignored is inherited.
#[cfg(unix)]
pub fn interruptible() -> Command {
    let program = program();
    if !cfg!(target_os = "linux") {
        return program; // their `env` cannot
    }
    let mut command = Command::new("env");
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .arg("--default-signal=HUP,INT,PIPE,TERM")
        .arg(program.get_program())
        .stdin(Stdio::null());
    command
}

/// Sends a program what Ctrl-C sends.
pub fn press_ctrl_c(child: &Child) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &id]).status();
    assert!(sent.unwrap().success());
}

pub fn run(arguments: &[OsString]) -> Run {
    let mut command = program();
    command.args(arguments);
    Run::of(&mut command)
}

/// Packs a checkpoint into `pack` of a folder, without sums.
pub fn packed(checkpoint: &Path, folder: &Path) -> PathBuf {
    let pack = folder.join("pack");
    pack_into(checkpoint, &pack, &["--no-sums"]);
    pack
}

/// Starts the program with its input and outputs in the tester's hands.
pub fn start(arguments: &[OsString]) -> Child {
    #[cfg(unix)]
    let mut command = interruptible();
    #[cfg(not(unix))]
    let mut command = program();
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("start the program")
}

impl Run {
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().expect("start the program");
        let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        Self::from_output(arguments.join(" "), output)
    }

    pub fn from_output(command: String, output: Output) -> Self {
        let run = Self {
            command,
            status: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
        };
        assert!(!run.stderr.contains("panicked at"), "{run}");
        run
    }

    /// Asserts that it went well.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    #[track_caller]
    pub fn exits(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "{self}");
        self
    }

    /// Asserts that stderr says all of this.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.stderr.contains(word),
                "stderr does not say {word:?}\n{self}"
            );
        }
        self
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("stdout is UTF-8")
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("stdout is not JSON: {e}\n{self}"))
    }

    /// The objects of `run --json`: one per token, and the summary.
    #[track_caller]
    pub fn tokens(&self) -> (Vec<Value>, Value) {
        let parsed = self
            .text()
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<Value>, _>>();
        let mut objects =
            parsed.unwrap_or_else(|e| panic!("not a JSON object per line: {e}\n{self}"));
        let summary = objects
            .pop()
            .unwrap_or_else(|| panic!("no summary\n{self}"));
        (objects, summary)
    }

    /// The kinds, files and tensors of the findings in a report on stdout.
    #[track_caller]
    pub fn findings(&self) -> Vec<Finding> {
        serde_json::from_value(self.json()["findings"].clone())
            .unwrap_or_else(|e| panic!("{e}\n{self}"))
    }
}

/// As in reports.
pub use segpack_manifests::documents::{Finding, FindingKind};

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(4000)]);
        writeln!(
            f,
            "$ segpack {}\nexit status {:?}",
            self.command, self.status
        )?;
        write!(
            f,
            "--- stdout, {} bytes\n{shown}\n--- stderr\n{}",
            self.stdout.len(),
            self.stderr
        )
    }
}

/// Peak RSS of a program that ends well, in bytes.
#[cfg(target_os = "linux")]
pub fn peak_memory(command: &mut Command) -> u64 {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (status, mut peak) = (format!("/proc/{}/status", child.id()), 0);
    while child.try_wait().unwrap().is_none() {
        let mut text = String::new();
        if std::fs::File::open(&status)
            .and_then(|mut f| std::io::Read::read_to_string(&mut f, &mut text))
            .is_ok()
            && let Some(line) = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))
        {
            peak = peak.max(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024);
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    peak
}

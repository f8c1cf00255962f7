//! `ffmpeg` and `ffprobe` as child processes: started without a shell, killed when nobody waits for
//! them, what they write taken piece by piece.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use segpack_formats::io::CancelToken;

use super::VideoError;
use crate::processing::image::MAX_PIXELS;

pub(super) const FFMPEG: &str = "ffmpeg";
pub(super) const FFPROBE: &str = "ffprobe";

/// Containers that are opened. Play lists and scripts, which name other files, are not among them.
const FORMATS: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,apng,h264,hevc,ivf,yuv4mpegpipe,nut,dv,wtv";
/// Largest block of memory that the programs may allocate.
const MAX_ALLOCATION: u64 = 1 << 30;
/// How much of what a program says is kept.
const MAX_MESSAGE: usize = 2_000;
/// How often it is looked whether somebody still waits.
const POLL: Duration = Duration::from_millis(50);

/// The programs' version, as `ffmpeg -version` begins with.
///
/// # Errors
/// `NoProgram` where one of the two cannot be started.
pub fn version() -> Result<&'static str, VideoError> {
    static VERSION: OnceLock<String> = OnceLock::new();
    if let Some(version) = VERSION.get() {
        return Ok(version);
    }
    let version = first_line(FFMPEG)?;
    first_line(FFPROBE)?;
    Ok(VERSION.get_or_init(|| version))
}

fn first_line(program: &'static str) -> Result<String, VideoError> {
    let output = Command::new(program)
        .arg("-version")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| VideoError::NoProgram { program, source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    let version = line.split(" Copyright").next().unwrap_or_default();
    Ok(version.chars().take(80).collect())
}

/// Whether `ffmpeg` has a decoder of this name.
#[cfg(feature = "audio")]
pub(super) fn has_decoder(name: &str) -> bool {
    let listed = Command::new(FFMPEG)
        .args(["-v", "error", "-decoders"])
        .stdin(Stdio::null())
        .output();
    // where the program is not there the next call says so
    let listed = listed.map(|output| output.stdout).unwrap_or_default();
    let listed = String::from_utf8_lossy(&listed);
    let mut names = listed
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    names.any(|seen| seen == name)
}

/// How frames are passed on as they are: the option's name changed with version 5.1.
pub(super) fn passthrough() -> [&'static str; 2] {
    let version = version().unwrap_or_default();
    let number = version.split("version ").nth(1).unwrap_or_default();
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    let mut part = || parts.next().and_then(|digits| digits.parse::<u32>().ok());
    match (part(), part()) {
        (Some(major), minor) if (major, minor.unwrap_or(0)) < (5, 1) => ["-vsync", "passthrough"],
        _ => ["-fps_mode", "passthrough"],
    }
}

/// Arguments that both programs begin with, up to the file.
pub(super) fn input_arguments(program: &'static str, path: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
    add(&["-v", "error", "-max_alloc", &MAX_ALLOCATION.to_string()]);
    if program == FFMPEG {
        add(&["-nostdin", "-max_pixels", &MAX_PIXELS.to_string()]);
    }
    add(&["-protocol_whitelist", "file", "-format_whitelist", FORMATS]);
    add(&["-i"]);
    // a name can look like an option, or like the address of something else
    let mut file = OsString::from("file:");
    file.push(path);
    arguments.push(file);
    arguments
}

/// A program that is running.
pub(super) struct Running {
    program: &'static str,
    child: Child,
    messages: Option<JoinHandle<String>>,
}

impl Running {
    pub(super) fn start(
        program: &'static str,
        arguments: &[OsString],
    ) -> Result<(Self, BufReader<ChildStdout>), VideoError> {
        version()?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| VideoError::NoProgram { program, source })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let messages = stderr.map(|stderr| thread::spawn(|| last_of(stderr)));
        let running = Self {
            program,
            child,
            messages,
        };
        match stdout {
            Some(stdout) => Ok((running, BufReader::with_capacity(1 << 16, stdout))),
            None => Err(VideoError::Read(io::ErrorKind::BrokenPipe.into())),
        }
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end; `Program` with what it says where it failed.
    pub(super) fn finish(mut self) -> Result<String, VideoError> {
        let status = self.child.wait().map_err(VideoError::Read)?;
        let message = self.message();
        if status.success() {
            return Ok(message);
        }
        // `[concat] Format not on whitelist '…'`
        if message.contains("not on whitelist") {
            let format = message.split(']').next().unwrap_or_default();
            return Err(VideoError::Format {
                format: format.trim_start_matches('[').to_owned(),
            });
        }
        Err(VideoError::Program {
            program: self.program,
            message: match message.is_empty() {
                true => status.to_string(),
                false => message,
            },
        })
    }

    fn message(&mut self) -> String {
        let messages = self.messages.take().map(JoinHandle::join);
        messages.and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // it may have ended already
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.message();
    }
}

/// The last lines of what a program says; all of it is read, so that it never waits.
fn last_of(mut stderr: impl Read) -> String {
    let mut kept: Vec<u8> = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(read @ 1..) = stderr.read(&mut piece) {
        kept.extend_from_slice(&piece[..read]);
        let excess = kept.len().saturating_sub(MAX_MESSAGE);
        kept.drain(..excess);
    }
    let text = String::from_utf8_lossy(&kept);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<String> = lines.map(without_address).collect();
    let last = &lines[lines.len().saturating_sub(3)..];
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    last.join("; ").chars().map(printable).collect()
}

/// `[mov @ 0x55d3b0] no header` is said by `mov`, wherever that is in memory.
fn without_address(line: &str) -> String {
    match line.split_once(" @ 0x") {
        Some((before, after)) => {
            let after = after.trim_start_matches(|c: char| c.is_ascii_hexdigit());
            format!("{before}{after}")
        }
        None => line.to_owned(),
    }
}

/// What a thread reads from a program, a few pieces ahead.
pub(super) struct Pieces<T>(Receiver<T>);

impl<T: Send + 'static> Pieces<T> {
    /// `read` gives the next piece, `None` at the end.
    pub(super) fn of(
        mut stdout: BufReader<ChildStdout>,
        mut read: impl FnMut(&mut BufReader<ChildStdout>) -> Option<T> + Send + 'static,
    ) -> Self {
        let (send, receive) = sync_channel(2);
        // ends with the program, or when nobody receives
        thread::spawn(move || {
            while let Some(piece) = read(&mut stdout) {
                if send.send(piece).is_err() {
                    break;
                }
            }
        });
        Self(receive)
    }

    /// The next piece, `None` at the end.
    pub(super) fn next(&self, cancel: &CancelToken) -> Result<Option<T>, VideoError> {
        loop {
            match self.0.recv_timeout(POLL) {
                Ok(piece) => return Ok(Some(piece)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if cancel.is_cancelled() => {
                    return Err(VideoError::Stopped);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// One line, at most this long.
pub(super) fn read_line(reader: &mut BufReader<ChildStdout>, limit: u64) -> Option<String> {
    let mut line = Vec::new();
    let read = reader.take(limit).read_until(b'\n', &mut line).ok()?;
    (read > 0).then(|| String::from_utf8_lossy(&line).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_their_last_lines_without_addresses() {
        let text = "first\n[mov,mp4 @ 0x55f3fddd92c0] no header\n\n\x1b[31mred\nfile:a: bad\n";
        let seen = last_of(text.as_bytes());
        assert_eq!(seen, "[mov,mp4] no header;  [31mred; file:a: bad");
        let long = "x".repeat(100_000);
        assert_eq!(last_of(long.as_bytes()).len(), MAX_MESSAGE);
    }
}

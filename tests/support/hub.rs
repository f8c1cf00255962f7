//! A server as the Hugging Face hub and its content network are, on this machine, with faults on
//! demand. One thread for each connection; it ends with the test.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use segpack_formats::digest::Sha256;
use serde_json::json;

use super::cli::program;
use super::folders::contents;
use super::request::RequestHead;

/// The only repository.
pub const REPO: &str = "owner/model";
/// The token that a private hub wants.
pub const TOKEN: &str = "hf_secret";

/// What goes wrong; of shards alone, as are all counts.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The connection ends after so many bytes of a body, so often.
    pub drop_after: Option<(usize, usize)>,
    /// Each Nth request of a shard gets this status, with `Retry-After: 0`.
    pub fail_every: Option<(usize, u16)>,
    /// `Range` is ignored.
    pub no_range: bool,
    /// This byte of this file has one bit flipped, so often.
    pub corrupt: Option<(&'static str, usize, usize)>,
    /// One byte less of this file than announced.
    pub short: Option<&'static str>,
    /// Nothing comes for so long, so often, but for a file's first bytes.
    pub stall: Option<(Duration, usize)>,
    /// After so many bytes of a body nothing more comes, and the connection stays, but for a file's
    /// first bytes.
    pub hang_after: Option<usize>,
    /// A link works so often, then 403.
    pub expire: Option<usize>,
    /// After so many requests of shards there is a new commit.
    pub change_after: Option<usize>,
    /// Only who has the token is answered.
    pub private: bool,
    /// Parts are said to be of a file of another length.
    pub other_length: bool,
    /// A redirect leads back to itself.
    pub circle: bool,
    /// Nothing is ever answered to requests whose path has this in it.
    pub silent: Option<&'static str>,
}

struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    faults: Faults,
    /// Of the hub, and of its content network.
    addresses: [String; 2],
    shard_requests: AtomicUsize,
    drops: AtomicUsize,
    stalls: AtomicUsize,
    flips: AtomicUsize,
    links: Mutex<HashMap<String, usize>>,
    log: Mutex<Vec<String>>,
    /// Requests of the content network that came with a token.
    leaked: AtomicBool,
    /// Bytes of bodies sent, by file.
    sent: Mutex<HashMap<String, u64>>,
}

/// The server.
pub struct Hub(Arc<Shared>);

/// One request.
struct Request {
    method: String,
    path: String,
    range: Option<(usize, Option<usize>)>,
    token: Option<String>,
}

impl Hub {
    /// Serves the files of a folder.
    pub fn of(folder: &Path, faults: Faults) -> Self {
        // the content network is another host
        let listen = |host| TcpListener::bind((host, 0)).unwrap();
        let listeners = [listen("127.0.0.1"), listen("127.0.0.2")];
        let addresses = listeners.each_ref().map(|listener| {
            let address = listener.local_addr().unwrap();
            format!("http://{address}")
        });
        let shared = Arc::new(Shared {
            files: contents(folder),
            faults,
            addresses,
            shard_requests: AtomicUsize::new(0),
            drops: AtomicUsize::new(0),
            stalls: AtomicUsize::new(0),
            flips: AtomicUsize::new(0),
            links: Mutex::default(),
            log: Mutex::default(),
            leaked: AtomicBool::new(false),
            sent: Mutex::default(),
        });
        for (number, listener) in listeners.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || shared.serve(&stream, number == 1));
                }
            });
        }
        Self(shared)
    }

    /// What `HF_ENDPOINT` has to be.
    pub fn endpoint(&self) -> &str {
        &self.0.addresses[0]
    }

    /// The same files as a plain folder of a web server.
    pub fn folder(&self) -> String {
        format!("{}/plain/", self.endpoint())
    }

    /// The program, with this hub as the only one, and no patience.
    pub fn program(&self) -> std::process::Command {
        let mut command = program();
        command
            .env("HF_ENDPOINT", self.endpoint())
            .env("SEGPACK_RETRY_PAUSE", "0.005")
            .env("NO_PROXY", "*");
        command
    }

    /// Requests so far: method, path, range.
    pub fn log(&self) -> Vec<String> {
        self.0.log.lock().unwrap().clone()
    }

    /// Whether the content network was sent a token.
    pub fn has_leaked(&self) -> bool {
        self.0.leaked.load(Ordering::Relaxed)
    }

    /// Its host and port.
    pub fn address(&self) -> &str {
        self.endpoint().trim_start_matches("http://")
    }

    /// Whether a request has been kept waiting.
    pub fn is_stalled(&self) -> bool {
        self.0.stalls.load(Ordering::Relaxed) > 0
    }

    /// Bytes that were sent of files with this ending.
    pub fn sent(&self, ending: &str) -> u64 {
        let sent = self.0.sent.lock().unwrap();
        let files = sent.iter().filter(|(path, _)| path.ends_with(ending));
        files.map(|(_, bytes)| bytes).sum()
    }

    /// The commit before anything changes.
    pub fn commit() -> String {
        "1".repeat(40)
    }
}

fn is_shard(path: &str) -> bool {
    path.ends_with(".safetensors")
}

impl Shared {
    fn commit(&self) -> String {
        let count = self.shard_requests.load(Ordering::Relaxed);
        let moved = self.faults.change_after.is_some_and(|after| count > after);
        if moved { "2".repeat(40) } else { Hub::commit() }
    }

    fn serve(&self, stream: &TcpStream, is_network: bool) {
        let mut reader = BufReader::new(stream);
        while let Some(request) = read_request(&mut reader) {
            let range = request.range.map_or("-".to_owned(), |r| format!("{r:?}"));
            let line = format!("{} {} {range}", request.method, request.path);
            self.log.lock().unwrap().push(line);
            if self
                .faults
                .silent
                .is_some_and(|part| request.path.contains(part))
            {
                self.stalls.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_secs(600)); // the test ends before
            }
            let answered = if is_network {
                if request.token.is_some() {
                    self.leaked.store(true, Ordering::Relaxed);
                }
                self.network(&request, stream)
            } else {
                self.hub(&request, stream)
            };
            if !answered {
                return;
            }
        }
    }

    fn hub(&self, request: &Request, to: &TcpStream) -> bool {
        let bearer = format!("Bearer {TOKEN}");
        if self.faults.private && request.token.as_deref() != Some(&*bearer) {
            return answer(to, request, 401, &[("X-Error-Code", "GatedRepo")], b"{}");
        }
        let path = request.path.split('?').next().unwrap().to_owned();
        if let Some(file) = path.strip_prefix("/plain/") {
            return self.data(file, request, to, &[("ETag", "\"v1\"")]);
        }
        let api = format!("/api/models/{REPO}/revision/");
        if let Some(revision) = path.strip_prefix(&api) {
            return self.list(revision, request, to);
        }
        let resolve = format!("/{REPO}/resolve/");
        let Some((revision, file)) = path
            .strip_prefix(&resolve)
            .and_then(|rest| rest.split_once('/'))
        else {
            return answer(to, request, 404, &[("X-Error-Code", "RepoNotFound")], b"");
        };
        self.resolve(revision, file, request, to)
    }

    fn list(&self, revision: &str, request: &Request, to: &TcpStream) -> bool {
        if revision != "main" && revision != self.commit() {
            return answer(
                to,
                request,
                404,
                &[("X-Error-Code", "RevisionNotFound")],
                b"",
            );
        }
        let siblings: Vec<_> = self
            .files
            .iter()
            .map(|(path, bytes)| {
                let mut entry = json!({"rfilename": path, "size": bytes.len()});
                if is_shard(path) {
                    let sha256 = Sha256::of(bytes).to_string();
                    entry["lfs"] = json!({"sha256": sha256, "size": bytes.len()});
                }
                entry
            })
            .collect();
        let body = json!({"sha": self.commit(), "siblings": siblings}).to_string();
        answer(to, request, 200, &[], body.as_bytes())
    }

    fn resolve(&self, revision: &str, file: &str, request: &Request, to: &TcpStream) -> bool {
        let is_shard = is_shard(file);
        let count = match is_shard {
            true => self.shard_requests.fetch_add(1, Ordering::Relaxed) + 1,
            false => 0,
        };
        let commit = self.commit();
        if revision != "main" && revision != commit {
            return answer(
                to,
                request,
                404,
                &[("X-Error-Code", "RevisionNotFound")],
                b"",
            );
        }
        let Some(bytes) = self.files.get(file) else {
            return answer(to, request, 404, &[("X-Error-Code", "EntryNotFound")], b"");
        };
        if !is_shard {
            return self.data(file, request, to, &[("X-Repo-Commit", &commit)]);
        }
        if let Some((every, status)) = self.faults.fail_every
            && count.is_multiple_of(every)
        {
            return answer(to, request, status, &[("Retry-After", "0")], b"busy");
        }
        let network = &self.addresses[1];
        let link = match self.faults.circle {
            true => format!("{}{}", self.addresses[0], request.path),
            false => format!("{network}/cdn/{count}/{file}?Signature=key"),
        };
        let (etag, size) = (
            format!("\"{}\"", Sha256::of(bytes)),
            bytes.len().to_string(),
        );
        let headers = [
            ("Location", &*link),
            ("X-Repo-Commit", &commit),
            ("X-Linked-Etag", &etag),
            ("X-Linked-Size", &size),
        ];
        answer(to, request, 302, &headers, b"")
    }

    fn network(&self, request: &Request, to: &TcpStream) -> bool {
        let path = request.path.strip_prefix("/cdn/").unwrap_or_default();
        let path = path.split('?').next().unwrap();
        let (link, file) = path.split_once('/').unwrap_or_default();
        if let Some(times) = self.faults.expire {
            let mut links = self.links.lock().unwrap();
            let used = links.entry(link.to_owned()).or_default();
            *used += 1;
            if *used > times {
                drop(links);
                return answer(to, request, 403, &[], b"expired");
            }
        }
        self.data(file, request, to, &[])
    }

    /// The bytes of a file, or of a range of it.
    fn data(
        &self,
        file: &str,
        request: &Request,
        to: &TcpStream,
        headers: &[(&str, &str)],
    ) -> bool {
        let Some(bytes) = self.files.get(file) else {
            return answer(to, request, 404, &[], b"");
        };
        let (is_shard, faults) = (is_shard(file), &self.faults);
        let range = request.range.filter(|_| !(is_shard && faults.no_range));
        let (start, end) = match range {
            Some((start, last)) => (start, last.map_or(bytes.len(), |l| bytes.len().min(l + 1))),
            None => (0, bytes.len()),
        };
        if start > end {
            return answer(to, request, 416, &[], b"");
        }
        let mut body = bytes[start..end].to_vec();
        let mut place = String::new();
        let mut headers = headers.to_vec();
        if range.is_some() {
            let total = bytes.len() + usize::from(is_shard && faults.other_length);
            write!(place, "bytes {start}-{}/{total}", end.saturating_sub(1)).unwrap();
            headers.push(("Content-Range", &place));
        }
        let announced = body.len();
        if let Some((name, at, times)) = faults.corrupt
            && name == file
            && (start..end).contains(&at)
            && self.flips.fetch_add(1, Ordering::Relaxed) < times
        {
            body[at - start] ^= 1;
        }
        if faults.short == Some(file) {
            body.pop();
        }
        if let Some((time, times)) = faults.stall
            && is_shard
            && start > 0
            && self.stalls.fetch_add(1, Ordering::Relaxed) < times
        {
            thread::sleep(time);
        }
        if let Some((after, times)) = faults.drop_after
            && is_shard
            && body.len() > after
            && self.drops.fetch_add(1, Ordering::Relaxed) < times
        {
            body.truncate(after);
        }
        // what is read first of a shard, its header, is whole
        let is_header = start == 0 && end < bytes.len();
        let hangs = faults.hang_after.filter(|_| is_shard && !is_header);
        body.truncate(hangs.unwrap_or(announced));
        let status = if range.is_some() { 206 } else { 200 };
        let head = head(status, &headers, announced);
        if request.method == "HEAD" {
            return send(to, head.as_bytes());
        }
        *self
            .sent
            .lock()
            .unwrap()
            .entry(file.to_owned())
            .or_default() += body.len() as u64;
        let sent = send(to, head.as_bytes()) && send(to, &body);
        if hangs.is_some() {
            self.stalls.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_secs(600)); // the test ends before
        }
        sent && body.len() == announced
    }
}

fn read_request(from: &mut BufReader<&TcpStream>) -> Option<Request> {
    let head = RequestHead::read(from)?;
    let (mut range, mut token) = (None, None);
    for (name, value) in head.fields {
        match &*name {
            "range" => {
                let (start, last) = value.strip_prefix("bytes=")?.split_once('-')?;
                range = Some((start.parse().ok()?, last.parse().ok()));
            }
            "authorization" => token = Some(value),
            _ => {}
        }
    }
    Some(Request {
        method: head.method,
        path: head.path,
        range,
        token,
    })
}

fn head(status: u16, headers: &[(&str, &str)], length: usize) -> String {
    let mut head = format!("HTTP/1.1 {status} .\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    head + "\r\n"
}

/// Whether the connection goes on.
fn answer(
    to: &TcpStream,
    request: &Request,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
) -> bool {
    let sent = send(to, head(status, headers, body.len()).as_bytes());
    sent && (request.method == "HEAD" || send(to, body))
}

fn send(mut to: &TcpStream, bytes: &[u8]) -> bool {
    to.write_all(bytes).is_ok()
}

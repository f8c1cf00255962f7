//! A client of HTTP/1.1 that knows just enough to talk to `segpack serve`, and that server.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Child;

use serde_json::Value;

use super::cli::{press_ctrl_c, start};

/// A running server; ended with the test.
pub struct Server {
    child: Child,
    /// What it said when it began.
    pub started: Value,
    address: SocketAddr,
}

impl Server {
    /// Serves a pack at a port that is free.
    pub fn start(pack: &Path, options: &[&str]) -> Self {
        let mut arguments: Vec<OsString> = vec!["serve".into(), pack.into()];
        arguments.extend(["--port", "0", "--json", "-q"].map(OsString::from));
        arguments.extend(options.iter().map(OsString::from));
        let mut child = start(&arguments);
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let Ok(started) = serde_json::from_str::<Value>(&line) else {
            let output = child.wait_with_output().unwrap();
            panic!(
                "no server: {line:?} {}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        let address = started["address"].as_str().unwrap();
        let address = address.strip_prefix("http://").unwrap().parse().unwrap();
        Self {
            child,
            started,
            address,
        }
    }

    /// Sends the head of a request, and its body; returns the connection.
    pub fn send(&self, head: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let host = self.address;
        let length = body.len();
        let text = format!(
            "{head}\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        // a server that refuses may have closed already
        let _ = stream.write_all(text.as_bytes());
        stream
    }

    /// Bytes as they are, with nothing added.
    pub fn raw(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> Reply {
        Reply::read(self.send(&format!("GET {path} HTTP/1.1"), ""))
    }

    /// Posts a JSON document and returns the connection.
    pub fn begin(&self, path: &str, body: &Value) -> TcpStream {
        let head = format!("POST {path} HTTP/1.1\r\nContent-Type: application/json");
        self.send(&head, &body.to_string())
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        Reply::read(self.begin(path, body))
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics");
        assert_eq!(page.status, 200);
        let line = page
            .body
            .lines()
            .find_map(|line| line.strip_prefix(&format!("segpack_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {}", page.body))
            .parse()
            .unwrap()
    }

    /// Waits until a metric has a value.
    pub fn wait_for(&self, name: &str, wanted: f64) {
        for _ in 0..3000 {
            if self.metric(name) == wanted {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!(
            "{name} does not become {wanted}: {}",
            self.get("/metrics").body
        );
    }

    /// What Ctrl-C does.
    pub fn interrupt(&self) {
        press_ctrl_c(&self.child);
    }

    /// Waits for its end; its exit status and standard error.
    pub fn end(mut self) -> (Option<i32>, String) {
        let mut stderr = String::new();
        let mut err = self.child.stderr.take().unwrap();
        err.read_to_string(&mut stderr).unwrap();
        let status = self.child.wait().unwrap();
        assert!(!stderr.contains("panicked at"), "{stderr}");
        (status.code(), stderr)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // it may have ended
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    /// Reads a response until the connection is closed.
    pub fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, rest) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{text:?}"));
        let mut lines = head.lines();
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers: Vec<_> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let is_chunked = headers.iter().any(|(name, _)| name == "transfer-encoding");
        let body = match is_chunked {
            true => unchunked(rest),
            false => rest.to_owned(),
        };
        Self {
            status,
            headers,
            body,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(seen, _)| seen == name);
        found.map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Asserts that it went well.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }

    /// The chunks of server-sent events, and whether the last one says that it is.
    #[track_caller]
    pub fn events(&self) -> (Vec<Value>, bool) {
        assert_eq!(self.status, 200, "{self:?}");
        let events = self.body.split("\n\n").filter(|event| !event.is_empty());
        let mut events: Vec<&str> = events.map(|e| e.strip_prefix("data: ").unwrap()).collect();
        let is_done = events.last() == Some(&"[DONE]");
        if is_done {
            events.pop();
        }
        let parsed = events
            .into_iter()
            .map(|event| serde_json::from_str(event).unwrap());
        (parsed.collect(), is_done)
    }
}

/// The text of chunks, as far as there are any.
fn unchunked(text: &str) -> String {
    let (mut body, mut rest) = (String::new(), text);
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 || after.len() < length {
            break;
        }
        body += &after[..length];
        rest = after[length..].strip_prefix("\r\n").unwrap_or_default();
    }
    body
}

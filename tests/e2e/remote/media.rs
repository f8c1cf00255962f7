//! Media of prompts that a web server has: fetched where the user lets anybody, and only then.

use std::fs;
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use crate::support::checkpoint::fixtures;
use crate::support::cli::{Run, interruptible, packed, press_ctrl_c, program};
use crate::support::folders::temp;
use crate::support::request::RequestHead;
use crate::support::tiny::tiny_omni;

/// A web server with media, and paths that misbehave.
struct Web {
    address: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Web {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&log);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                thread::spawn(move || serve(&stream, &seen));
            }
        });
        Self { address, log }
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

fn serve(stream: &TcpStream, log: &Mutex<Vec<String>>) {
    let Some(head) = RequestHead::read(&mut BufReader::new(stream)) else {
        return;
    };
    let mut words = head.fields.iter().map(|(name, _)| &**name);
    let has_key = words.any(|name| ["authorization", "cookie"].contains(&name));
    let key = if has_key { " with a key" } else { "" };
    log.lock().unwrap().push(format!("{}{key}", head.path));
    let mut to = stream;
    let path = head.path.split('?').next().unwrap();
    // whoever asked may have gone
    let _ = match path.strip_prefix("/media/") {
        Some(file) => {
            let bytes = fs::read(fixtures().join("media").join(file)).unwrap();
            let length = bytes.len();
            write!(
                to,
                "HTTP/1.1 200 .\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            )
            .and_then(|()| to.write_all(&bytes))
        }
        None if path.starts_with("/moved/") => {
            let file = path.trim_start_matches("/moved");
            write!(
                to,
                "HTTP/1.1 302 .\r\nLocation: /media{file}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
        }
        None if path == "/circle" => {
            write!(
                to,
                "HTTP/1.1 302 .\r\nLocation: /circle\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
        }
        None if path == "/stall" => {
            let begun = write!(to, "HTTP/1.1 200 .\r\nContent-Length: 1000\r\n\r\nbegin");
            thread::sleep(Duration::from_secs(600)); // the test ends before
            begun
        }
        None => write!(
            to,
            "HTTP/1.1 404 .\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ),
    };
}

struct Scene {
    folder: TempDir,
    pack: PathBuf,
    web: Web,
}

impl Scene {
    fn new() -> Self {
        let folder = temp();
        let pack = packed(&tiny_omni(), folder.path());
        let web = Web::start();
        Self { folder, pack, web }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.web.address)
    }

    /// `run --print-prompt` of a chat with one picture.
    fn command(&self, mut command: Command, picture: &str, options: &[&str]) -> Command {
        let chat = self.folder.path().join("chat.json");
        let content = json!([
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": "What is this?"},
        ]);
        fs::write(
            &chat,
            json!([{"role": "user", "content": content}]).to_string(),
        )
        .unwrap();
        command
            .arg("run")
            .arg(&self.pack)
            .arg("--messages")
            .arg(chat);
        command.args(["--print-prompt", "--json"]).args(options);
        command
            .env("SEGPACK_RETRY_PAUSE", "0.005")
            .env("NO_PROXY", "*");
        command
    }

    fn run(&self, picture: &str, options: &[&str]) -> Run {
        Run::of(&mut self.command(program(), picture, options))
    }
}

const ALLOWED: &[&str] = &["--allow-network"];

/// Any picture of the fixtures.
fn picture() -> String {
    let mut names: Vec<String> = fs::read_dir(fixtures().join("media"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".png"))
        .collect();
    names.sort();
    names.remove(0)
}

#[test]
fn a_picture_of_a_server_gives_the_prompt_of_the_same_file() {
    let scene = Scene::new();
    let name = picture();
    let local = fixtures().join("media").join(&name);
    let wanted = scene.run(&local.display().to_string(), &[]).ok().json();
    for path in ["/media/", "/moved/"] {
        let url = scene.url(&format!("{path}{name}?key=secret"));
        let run = scene.run(&url, ALLOWED).ok();
        let seen = run.json();
        assert_eq!(seen["ids"], wanted["ids"]);
        assert!(!run.text().contains("secret"), "{run}");
    }
    let log = scene.web.log();
    assert!(
        log.iter().all(|line| !line.contains("with a key")),
        "{log:?}"
    );
    // on the command line, too
    let mut command = program();
    command
        .arg("run")
        .arg(&scene.pack)
        .args(["--chat", "--prompt", "What is this?"]);
    command.args(["--print-prompt", "--json", "--allow-network", "--image"]);
    let run = Run::of(
        command
            .arg(scene.url(&format!("/media/{name}")))
            .env("NO_PROXY", "*"),
    );
    assert_eq!(run.ok().json()["ids"], wanted["ids"]);
}

#[test]
fn nothing_is_fetched_that_nobody_allowed() {
    let scene = Scene::new();
    let url = scene.url("/media/a.png");
    let run = scene.run(&url, &[]).exits(3);
    run.says(&["was not allowed", "--allow-network"]);
    let mut offline = scene.command(program(), &url, ALLOWED);
    Run::of(offline.env("HF_HUB_OFFLINE", "1"))
        .exits(1)
        .says(&["HF_HUB_OFFLINE"]);
    scene
        .run("s3://bucket/a.png", ALLOWED)
        .exits(3)
        .says(&["wanted http:"]);
    let named = url.replace("http://", "http://name:secret@");
    let run = scene.run(&named, ALLOWED).exits(3);
    assert!(!run.stderr.contains("secret"), "{run}");
    assert_eq!(scene.web.log(), [""; 0]);
}

#[test]
fn what_a_server_does_not_give_is_an_error_with_its_address() {
    let scene = Scene::new();
    let run = scene.run(&scene.url("/nothing"), ALLOWED).exits(3);
    run.says(&["/nothing", "404"]);
    let run = scene.run(&scene.url("/circle"), ALLOWED).exits(3);
    run.says(&["/circle", "redirects"]);
    let mut stalled = scene.command(program(), &scene.url("/stall"), ALLOWED);
    stalled
        .env("HF_HUB_DOWNLOAD_TIMEOUT", "0.2")
        .env("SEGPACK_RETRIES", "1");
    let run = Run::of(&mut stalled).exits(1);
    run.says(&["/stall", "trying again", "2 times in a row"]);
}

#[test]
fn ctrl_c_ends_a_fetch() {
    let scene = Scene::new();
    let mut command = scene.command(interruptible(), &scene.url("/stall"), ALLOWED);
    let mut child = command.spawn().unwrap();
    while scene.web.log().is_empty() {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    press_ctrl_c(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}

//! A server that runs a model, on this machine: llama.cpp's, vLLM's or any other with OpenAI's
//! interface, with faults on demand. It answers what llama.cpp answered when the trace of the tiny
//! checkpoint was recorded. One thread for each connection; it ends with the test.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::checkpoint::fixtures;
use super::request::RequestHead;
use super::tiny::{Tensor, tensors_of, tiny_text};

/// Which interface it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    LlamaCpp,
    Vllm,
    OpenAi,
}

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// This status and body instead of an answer.
    pub refuses: Option<(u16, &'static str)>,
    /// Status 503 so often before there is an answer.
    pub busy: usize,
    /// Answers have no log-probabilities.
    pub without_logprobs: bool,
    /// Every step has the token that is second in the list, as another model or a sampler would.
    pub samples: bool,
    /// llama.cpp's way with tokens that are no whole characters: of each third step there is no list.
    pub leaves_out: bool,
    /// The two most likely tokens of every step are exchanged.
    pub other_model: bool,
    /// So much is added to the log-probability of the most likely token.
    pub drift: f64,
    /// An answer takes so long.
    pub slow: Option<Duration>,
    /// Bodies end in the middle.
    pub cut: bool,
    /// Answers are no JSON.
    pub garbled: bool,
    /// It counts one token more in the prompt.
    pub counts_more: bool,
    /// What it says that it serves; one model where that is nothing.
    pub models: Option<Value>,
    /// Only who has the key is answered; who has not is told what was sent.
    pub key: Option<&'static str>,
    /// Requests are answered somewhere else.
    pub moved: bool,
}

/// A prompt and what was generated after it.
struct Recorded {
    text: String,
    ids: Vec<u32>,
    generated: Vec<u32>,
    /// For each step the best tokens.
    steps: Vec<Vec<(u32, f64)>>,
}

struct Shared {
    speaks: Speaks,
    faults: Faults,
    address: String,
    recorded: Vec<Recorded>,
    words: Vec<String>,
    refusals: AtomicUsize,
    requests: Mutex<Vec<Value>>,
}

/// The server.
pub struct ModelServer(Arc<Shared>);

/// The words of a byte-level BPE of ASCII, as byte-level tokenizers write them: each token is
/// another word, so that words tell tokens. It is the one that the trace was recorded with.
fn words() -> Vec<String> {
    let letters = || 'a'..='z';
    let pairs = letters().flat_map(|a| letters().map(move |b| format!("{a}{b}")));
    let characters = ('!'..='~').chain(['\u{120}']).map(String::from);
    characters.chain(pairs).take(320).collect()
}

/// The tiny checkpoint with a tokenizer and a chat template that is the message alone.
pub fn checkpoint_with_words(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for entry in tiny_text().read_dir().unwrap().flatten() {
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let words = words();
    let vocab: Map<String, Value> = words.iter().cloned().zip((0..).map(|i| json!(i))).collect();
    let pairs = words.iter().skip(95);
    let merges: Vec<_> = pairs.map(|pair| [&pair[..1], &pair[1..]]).collect();
    let pattern =
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": false},
    });
    let write = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
    write("tokenizer.json", tokenizer.to_string());
    let config = json!({"tokenizer_class": "Qwen2TokenizerFast", "add_bos_token": false});
    write("tokenizer_config.json", config.to_string());
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    write("chat_template.jinja", template.to_owned());
}

fn numbers<T>(tensors: &[Tensor], name: &str, number: impl Fn(&[u8]) -> T, size: usize) -> Vec<T> {
    let tensor = tensors.iter().find(|t| t.name == name).unwrap();
    tensor.bytes.chunks_exact(size).map(number).collect()
}

fn recorded() -> Vec<Recorded> {
    let file = fixtures().join("traces/tiny-text.llama-cpp.float32.safetensors");
    let tensors = tensors_of(&fs::read(&file).unwrap());
    let document = fs::read(file.with_extension("json")).unwrap();
    let document: Value = serde_json::from_slice(&document).unwrap();
    let ids_of = |value: &Value| serde_json::from_value(value.clone()).unwrap();
    let one = |(number, prompt): (usize, &Value)| {
        let id = |b: &[u8]| i64::from_le_bytes(b.try_into().unwrap()) as u32;
        let logprob = |b: &[u8]| f64::from(f32::from_le_bytes(b.try_into().unwrap()));
        let ids = numbers(&tensors, &format!("p{number:02}.gen.top_ids"), id, 8);
        let name = format!("p{number:02}.gen.top_logprobs");
        let pairs: Vec<_> = ids
            .into_iter()
            .zip(numbers(&tensors, &name, logprob, 4))
            .collect();
        Recorded {
            text: prompt["text"].as_str().unwrap().to_owned(),
            ids: ids_of(&prompt["input_ids"]),
            generated: ids_of(&prompt["generated"]),
            steps: pairs.chunks_exact(5).map(<[_]>::to_vec).collect(),
        }
    };
    document["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(one)
        .collect()
}

impl ModelServer {
    pub fn start(speaks: Speaks, faults: Faults) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            speaks,
            faults,
            address,
            recorded: recorded(),
            words: words(),
            refusals: AtomicUsize::new(0),
            requests: Mutex::default(),
        });
        let server = Self(Arc::clone(&shared));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.serve(&stream));
            }
        });
        server
    }

    pub fn url(&self) -> &str {
        &self.0.address
    }

    /// The texts of the prompts that it knows, and their ids.
    pub fn prompts(&self) -> Vec<(String, String)> {
        let ids = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        self.0
            .recorded
            .iter()
            .map(|r| (r.text.clone(), ids(&r.ids)))
            .collect()
    }

    /// The documents that were sent so far.
    pub fn requests(&self) -> Vec<Value> {
        self.0.requests.lock().unwrap().clone()
    }
}

/// One request.
struct Request {
    path: String,
    key: Option<String>,
    body: Value,
}

fn read_request(from: &mut BufReader<&TcpStream>) -> Option<Request> {
    let head = RequestHead::read(from)?;
    let (mut key, mut length) = (None, 0);
    for (name, value) in head.fields {
        match &*name {
            "content-length" => length = value.parse().ok()?,
            "authorization" => key = value.strip_prefix("Bearer ").map(ToOwned::to_owned),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let path = head.path;
    Some(Request { path, key, body })
}

impl Shared {
    fn serve(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some(request) = read_request(&mut reader) {
            let (status, headers, body) = self.answer(&request);
            let mut head = format!("HTTP/1.1 {status} .\r\nContent-Length: {}\r\n", body.len());
            write!(head, "{headers}\r\n").unwrap();
            let sent = match self.faults.cut && status == 200 {
                true => &body.as_bytes()[..body.len() / 2],
                false => body.as_bytes(),
            };
            let mut to = stream;
            let is_sent = to
                .write_all(head.as_bytes())
                .and_then(|()| to.write_all(sent));
            if is_sent.is_err() || sent.len() < body.len() {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> (u16, String, String) {
        let faults = &self.faults;
        let refused = |status: u16, body: String| (status, String::new(), body);
        if faults.key.is_some() && request.key.as_deref() != faults.key {
            let sent = request.key.as_deref().unwrap_or("none");
            let message = format!("the key {sent} does not open this");
            return refused(401, json!({"error": {"message": message}}).to_string());
        }
        if faults.moved {
            let to = format!("Location: {}/elsewhere\r\n", self.address);
            return (307, to, String::new());
        }
        if request.path == "/v1/models" {
            let one = json!([{"id": "tiny"}]);
            let models = faults.models.clone().unwrap_or(one);
            return refused(200, json!({"object": "list", "data": models}).to_string());
        }
        self.requests.lock().unwrap().push(request.body.clone());
        if let Some((status, body)) = faults.refuses {
            return refused(status, body.to_owned());
        }
        if self.refusals.fetch_add(1, Ordering::Relaxed) < faults.busy {
            return (503, "Retry-After: 0\r\n".to_owned(), "busy".to_owned());
        }
        if let Some(time) = faults.slow {
            thread::sleep(time);
        }
        if faults.garbled {
            return refused(200, "<html>welcome</html>".to_owned());
        }
        let expected = match (self.speaks, &request.body["messages"]) {
            (Speaks::LlamaCpp, _) => "/completion",
            (_, Value::Null) => "/v1/completions",
            (_, _) => "/v1/chat/completions",
        };
        match self.find(&request.body) {
            Some(recorded) if request.path == expected => {
                let body = self.body(recorded, &request.body, expected);
                refused(200, body.to_string())
            }
            _ => refused(404, json!({"detail": "Not Found"}).to_string()),
        }
    }

    /// What was recorded after the prompt of a request.
    fn find(&self, body: &Value) -> Option<&Recorded> {
        let messages = body["messages"].as_array().into_iter().flatten();
        let text: String = messages.filter_map(|m| m["content"].as_str()).collect();
        self.recorded.iter().find(|r| {
            body["prompt"] == json!(r.ids)
                || body["prompt"] == json!(r.text)
                || !text.is_empty() && text == r.text
        })
    }

    /// The steps that were asked for, with what is wrong with them.
    fn steps(&self, recorded: &Recorded, requested: &Value) -> Vec<(u32, Vec<(u32, f64)>)> {
        let count = requested["max_tokens"]
            .as_u64()
            .or(requested["n_predict"].as_u64());
        let chosen = recorded.generated.iter().copied().zip(&recorded.steps);
        let bend = |(chosen, row): (u32, &Vec<(u32, f64)>)| {
            let (mut chosen, mut row) = (chosen, row.clone());
            row[0].1 += self.faults.drift;
            if self.faults.other_model {
                (row[0].0, row[1].0) = (row[1].0, row[0].0);
                chosen = row[0].0;
            }
            if self.faults.samples {
                chosen = row[1].0;
            }
            (chosen, row)
        };
        chosen.take(count.unwrap() as usize).map(bend).collect()
    }

    fn body(&self, recorded: &Recorded, requested: &Value, path: &str) -> Value {
        let steps = self.steps(recorded, requested);
        let count = recorded.ids.len() + usize::from(self.faults.counts_more);
        let has = !self.faults.without_logprobs;
        if self.speaks == Speaks::LlamaCpp {
            let of =
                |(id, logprob): &(u32, f64)| json!({"id": id, "token": "", "logprob": logprob});
            let step = |(id, row): &(u32, Vec<(u32, f64)>)| {
                let own = row.iter().find(|(one, _)| one == id).unwrap();
                let mut step = of(own);
                step["top_logprobs"] = row.iter().map(of).collect();
                step
            };
            let mut body = json!({"tokens_evaluated": count, "stop_type": "limit"});
            if has {
                let is_listed = |(n, _): &(usize, _)| !self.faults.leaves_out || n % 3 != 1;
                let listed = steps.iter().enumerate().filter(is_listed);
                body["completion_probabilities"] = listed.map(|(_, s)| step(s)).collect();
            }
            body["tokens"] = steps.iter().map(|(id, _)| *id).collect();
            return body;
        }
        let mut choice = json!({"index": 0, "finish_reason": "length", "text": "…"});
        choice["logprobs"] = match (has, path.ends_with("/chat/completions")) {
            (false, _) => Value::Null,
            (true, true) => self.chat(&steps),
            (true, false) => self.completions(&steps),
        };
        if self.speaks == Speaks::Vllm {
            choice["token_ids"] = steps.iter().map(|(id, _)| *id).collect();
            choice["prompt_token_ids"] = json!(recorded.ids);
        }
        let usage = json!({"prompt_tokens": count, "completion_tokens": steps.len()});
        json!({"model": "tiny", "choices": [choice], "usage": usage})
    }

    /// As the server writes a token.
    fn word(&self, id: u32) -> String {
        match self.speaks {
            Speaks::Vllm => format!("token_id:{id}"),
            Speaks::OpenAi | Speaks::LlamaCpp => self.words[id as usize].replace('\u{120}', " "),
        }
    }

    fn completions(&self, steps: &[(u32, Vec<(u32, f64)>)]) -> Value {
        let own = |(id, row): &(u32, Vec<(u32, f64)>)| row.iter().find(|r| r.0 == *id).unwrap().1;
        let top = |(_, row): &(u32, Vec<(u32, f64)>)| -> Map<String, Value> {
            row.iter()
                .map(|(id, x)| (self.word(*id), json!(x)))
                .collect()
        };
        json!({
            "tokens": steps.iter().map(|(id, _)| self.word(*id)).collect::<Vec<_>>(),
            "token_logprobs": steps.iter().map(own).collect::<Vec<_>>(),
            "top_logprobs": steps.iter().map(top).collect::<Vec<_>>(),
        })
    }

    fn chat(&self, steps: &[(u32, Vec<(u32, f64)>)]) -> Value {
        let of = |(id, logprob): &(u32, f64)| {
            let word = self.word(*id);
            json!({"token": word, "logprob": logprob, "bytes": word.as_bytes()})
        };
        let step = |(id, row): &(u32, Vec<(u32, f64)>)| {
            let mut step = of(row.iter().find(|(one, _)| one == id).unwrap());
            step["top_logprobs"] = row.iter().map(of).collect();
            step
        };
        json!({"content": steps.iter().map(step).collect::<Vec<_>>()})
    }
}

//! A server that answers JSON with JSON: one that runs a model.
//!
//! Its answers take long, so that who waits is told of it. A key goes to this server alone: no
//! redirect is followed, and no message shows it, even where the server repeats it.

use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::http::{Request, header};

use super::RemoteError;
use super::client::{Answer, Client, Trouble, answer, asked_pause, shown};
use crate::work::Job;

/// Bytes of an answer: log-probabilities of a few tokens of each step, as text.
const MAX_ANSWER_BYTES: u64 = 256 << 20;
/// Bytes that are read of an answer that refuses.
const MAX_REFUSAL_BYTES: u64 = 64 << 10;
/// Characters of it that are shown.
const MAX_SHOWN: usize = 300;
/// How often a wait looks whether it should end.
const TICK: Duration = Duration::from_millis(20);
/// After so long the first note says that a server is slow; the next ones come after twice as long
/// each.
const FIRST_NOTE: Duration = Duration::from_secs(2);

/// A server that answers JSON with JSON.
pub(crate) struct JsonServer {
    client: Client,
    key: Option<String>,
}

impl fmt::Debug for JsonServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonServer").finish_non_exhaustive() // no key in any log
    }
}

impl JsonServer {
    /// Of an answer the first byte may take so long. A key is sent with every request.
    ///
    /// # Errors
    /// `Environment`.
    pub(crate) fn new(key: Option<String>, patience: Duration) -> Result<Self, RemoteError> {
        let client = Client::patient(patience)?;
        Ok(Self { client, key })
    }

    /// Asks for what is at an address.
    ///
    /// # Errors
    /// As [`post`](Self::post).
    pub(crate) fn get(&self, url: &str, job: Job<'_>) -> Result<Value, RemoteError> {
        self.watched(url, None, job)
    }

    /// Sends a document and waits for the one that comes back. Where the server is busy (429, 503),
    /// it is asked again as often as `SEGPACK_RETRIES` says; what breaks off is not, since every
    /// request costs the server a calculation.
    ///
    /// # Errors
    /// `Refused`; `Connection` where no answer comes or it breaks off; `Answer` where it is no JSON;
    /// `Interrupted`.
    pub(crate) fn post(&self, url: &str, body: &Value, job: Job<'_>) -> Result<Value, RemoteError> {
        self.watched(url, Some(body), job)
    }

    /// The exchange happens on a thread of its own: a read would not notice Ctrl-C.
    fn watched(&self, url: &str, body: Option<&Value>, job: Job<'_>) -> Result<Value, RemoteError> {
        thread::scope(|scope| {
            let (send, receive) = mpsc::channel();
            scope.spawn(move || {
                let exchanged = self
                    .client
                    .until(&shown(url), job, || self.exchange(url, body));
                // nobody listens any more after an interruption
                let _ = send.send(exchanged);
            });
            self.wait(url, &receive, job)
        })
    }

    fn wait(
        &self,
        url: &str,
        receive: &Receiver<Result<Value, RemoteError>>,
        job: Job<'_>,
    ) -> Result<Value, RemoteError> {
        let (began, mut note_after) = (Instant::now(), FIRST_NOTE);
        loop {
            match receive.recv_timeout(TICK) {
                Ok(exchanged) => return exchanged,
                Err(RecvTimeoutError::Timeout) => {}
                // it panicked, which goes on when the scope ends
                Err(RecvTimeoutError::Disconnected) => return Err(RemoteError::Interrupted),
            }
            if job.stop.is_cancelled() {
                self.client.shut_down();
                return Err(RemoteError::Interrupted);
            }
            let waited = began.elapsed();
            if waited >= note_after {
                let (url, seconds) = (shown(url), waited.as_secs());
                let note = format!("{url}: no answer yet, after {seconds} s");
                job.progress.note(&note);
                note_after *= 2;
            }
        }
    }

    fn exchange(&self, url: &str, body: Option<&Value>) -> Result<Value, Trouble> {
        let request = match body {
            Some(_) => Request::post(url),
            None => Request::get(url),
        };
        let mut request = request
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request
            .body(())
            .map_err(|e| answer(url, format!("is no address: {e}")))?;
        let bytes = body.map(Value::to_string).unwrap_or_default();
        let sent = self
            .client
            .send_signed(request.into_parts().0, bytes.into_bytes());
        let mut from = sent.map_err(once)?;
        if from.status != 200 {
            return Err(self.refused(from));
        }
        let bytes = self
            .client
            .take_body(&mut from, MAX_ANSWER_BYTES)
            .map_err(once)?;
        serde_json::from_slice(&bytes).map_err(|e| {
            let begins = one_line(&String::from_utf8_lossy(&bytes[..bytes.len().min(200)]));
            let begins = self.without_key(&begins);
            answer(
                url,
                format!("the answer is no JSON ({e}); it begins {begins:?}"),
            )
            .into()
        })
    }

    /// A server that is busy may be asked again.
    fn refused(&self, mut from: Answer) -> Trouble {
        let (url, status) = (shown(&from.url), from.status);
        let location = from.headers.get(header::LOCATION);
        let location = location.and_then(|to| to.to_str().ok()).map(shown);
        let printed = match self.client.take_body(&mut from, MAX_REFUSAL_BYTES) {
            Ok(bytes) => self.without_key(&reason(&bytes)),
            Err(_) => String::new(), // the status alone is told, then
        };
        let printed = match (status, location) {
            (300..400, Some(to)) => format!("what is asked for is at {}", self.without_key(&to)),
            _ => printed,
        };
        let error = RemoteError::Refused {
            url,
            status,
            printed,
        };
        match status {
            429 | 503 => Trouble::Again(error, asked_pause(&from.headers)),
            _ => error.into(),
        }
    }

    fn without_key(&self, text: &str) -> String {
        match &self.key {
            Some(key) => text.replace(key.as_str(), "***"),
            None => text.to_owned(),
        }
    }
}

/// Trouble that is not worth a second calculation.
fn once(trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Again(error, _) | Trouble::Final(error) => Trouble::Final(error),
    }
}

/// The sentence in an answer that refuses: OpenAI's `error.message`, `message` and FastAPI's
/// `detail`, or what else it holds.
fn reason(bytes: &[u8]) -> String {
    let reported: Option<Value> = serde_json::from_slice(bytes).ok();
    let sentence = reported.as_ref().and_then(|reported| {
        let pointers = ["/error/message", "/error", "/message", "/detail"];
        let mut texts = pointers
            .iter()
            .filter_map(|p| reported.pointer(p)?.as_str());
        texts.next()
    });
    one_line(sentence.unwrap_or(&String::from_utf8_lossy(bytes)))
}

/// Text of a server in one line of bounded length, without control characters.
fn one_line(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let words: Vec<_> = plain.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_refusal_is_one_line() {
        let reasons = [
            (
                r#"{"error": {"message": "no\nsuch model", "code": 404}}"#,
                "no such model",
            ),
            (r#"{"error": "busy"}"#, "busy"),
            (r#"{"object": "error", "message": "too long"}"#, "too long"),
            (r#"{"detail": "Not Found"}"#, "Not Found"),
            (r#"{"detail": [1]}"#, r#"{"detail": [1]}"#),
            ("<html>\u{1b}[31m\r\n</html>", "<html> [31m </html>"),
            ("", ""),
        ];
        for (body, wanted) in reasons {
            assert_eq!(reason(body.as_bytes()), wanted);
        }
        assert_eq!(one_line(&"x".repeat(400)).chars().count(), MAX_SHOWN + 1);
    }
}

//! Requests over HTTP: redirects, tokens, and what to do when they fail.
//!
//! A token goes to the hub that it is for, and to no other host. A request that fails is sent again
//! after a pause that doubles, with jitter, or as long as the server asks; a file is given up after
//! some failures in a row without a byte in between.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant, SystemTime};

use segpack_formats::FormatError;
use segpack_formats::io::CancelToken;
use ureq::http::request::Parts;
use ureq::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, SendBody};

use super::RemoteError;
use super::environment::{self, Patience};
use super::proxy::{NamedProxy, bare_host};
use super::rate::{Limit, Paced};
use crate::work::{Job, Progress, lock};

/// Redirects that one request follows.
const MAX_REDIRECTS: usize = 8;
/// The longest pause before a request is sent again, but for one that the server asks for.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause that a server gets by asking.
const MAX_ASKED_PAUSE: Duration = Duration::from_secs(600);
/// Answers in a row that end early without a byte, after which a file is given up.
const SHORT_TRIES: u32 = 3;
/// Times in a row that nothing comes for as long as a connection may be silent, after which a file is given
/// up: each takes long by itself.
const SILENT_TRIES: u32 = 3;
/// How often a pause looks whether it should end.
const TICK: Duration = Duration::from_millis(20);
/// How long a service of the machine itself may take to say something.
const NEAR_STALL: Duration = Duration::from_secs(2);
/// Bytes that are taken from a connection at a time.
const PIECE_BYTES: usize = 256 << 10;

/// What was asked for and received so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Requests sent, redirects among them.
    pub requests: AtomicU64,
    /// Those that were sent because one before failed.
    pub retries: AtomicU64,
    /// Bytes of bodies received.
    pub bytes: AtomicU64,
    /// Bytes of bodies that were to be sent, those of requests that failed among them.
    pub sent: AtomicU64,
}

/// What comes of a request.
type Sent = Result<Response<Body>, ureq::Error>;

/// Where connections lead.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    is_tls: bool,
    /// What they go through.
    proxy: Option<NamedProxy>,
    /// Whether to a service of the machine itself: they give up soon.
    is_near: bool,
}

/// Sends requests.
pub(super) struct Client {
    patience: Patience,
    agents: Mutex<Vec<(Way, Agent)>>,
    /// The token, and the only origin that gets it.
    token: Option<(String, String)>,
    pub(super) counts: Counts,
    /// For bodies that are sent.
    limit: Arc<Limit>,
    /// Cancelled once nothing more may be asked.
    ended: Arc<CancelToken>,
    notes: Notes,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive() // no token in any log
    }
}

/// A response whose body is still to be read.
pub(super) struct Answer {
    /// Where it came from, after all redirects.
    pub url: String,
    /// Whether there were any.
    pub redirected: bool,
    pub status: u16,
    pub headers: HeaderMap,
    /// The headers of the host that was asked first.
    pub first: HeaderMap,
    body: Body,
}

/// Why a request has no answer that goes on.
pub(super) enum Trouble {
    /// Another try may help; after this pause, if the server said so.
    Again(RemoteError, Option<Duration>),
    /// No other try helps.
    Final(RemoteError),
}

impl From<RemoteError> for Trouble {
    fn from(error: RemoteError) -> Self {
        Self::Final(error)
    }
}

/// Notes of reads of headers and of small files, until somebody who watches takes them.
#[derive(Debug, Default)]
struct Notes(Mutex<Vec<String>>);

impl Progress for Notes {
    fn start(&self, _: &'static str, _: u64) {}
    fn start_counting(&self, _: &'static str, _: u64, _: &'static str) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, line: &str) {
        lock(&self.0).push(line.to_owned());
    }
}

impl Client {
    /// `token` goes to `origin` alone.
    ///
    /// # Errors
    /// `Environment`.
    pub(super) fn new(token: Option<(String, String)>) -> Result<Self, RemoteError> {
        Ok(Self {
            patience: environment::patience()?,
            agents: Mutex::default(),
            token,
            counts: Counts::default(),
            limit: Arc::new(Limit::new(None)),
            ended: Arc::default(),
            notes: Notes::default(),
        })
    }

    /// The job of reads whose callers pass none: whoever [watches](Self::watched) stops it, and hears of
    /// requests that are sent again.
    pub(super) fn own_job(&self) -> Job<'_> {
        Job {
            threads: 1,
            stop: &self.ended,
            progress: &self.notes,
        }
    }

    /// Says what was to be said of [its own job](Self::own_job).
    pub(super) fn tell(&self, progress: &dyn Progress) {
        let notes = std::mem::take(&mut *lock(&self.notes.0));
        notes.iter().for_each(|note| progress.note(note));
    }

    /// For a server that thinks before it answers, for so long; it gets no token by itself.
    ///
    /// # Errors
    /// `Environment`.
    pub(super) fn patient(answer: Duration) -> Result<Self, RemoteError> {
        let mut client = Self::new(None)?;
        client.patience.answer = answer;
        Ok(client)
    }

    /// The same, which gives up a server that says nothing for so long.
    pub(super) fn giving_up_after(mut self, time: Duration) -> Self {
        self.patience.stall = self.patience.stall.min(time);
        self.patience.answer = self.patience.answer.min(time);
        self
    }

    /// The same, which sends at most so many bytes a second.
    pub(super) fn with_rate(self, rate: Option<u64>) -> Self {
        let limit = Arc::new(Limit::new(rate));
        Self { limit, ..self }
    }

    /// Bytes of a shard that one request asks for.
    pub(super) fn part_bytes(&self) -> u64 {
        self.patience.part
    }

    /// Ends what other threads are waiting for. Nothing can be asked afterwards.
    pub(super) fn shut_down(&self) {
        self.ended.cancel();
        for (_, agent) in &*lock(&self.agents) {
            agent.clone().shutdown();
        }
    }

    /// Does something that asks. Once `job` is to stop nobody waits for an answer any more, and `halt` is
    /// cancelled, too.
    ///
    /// # Errors
    /// `Interrupted`.
    pub(super) fn watched<T>(
        &self,
        job: Job<'_>,
        halt: &CancelToken,
        work: impl FnOnce() -> T,
    ) -> Result<T, FormatError> {
        let done = self.ended_after(Duration::ZERO, job, halt, work);
        job.stop.check()?; // what the end of the connections broke is no error
        Ok(done)
    }

    /// Does something that asks. So long after `job` is to stop nobody waits for an answer any more, and
    /// `halt` is cancelled, too.
    pub(super) fn ended_after<T>(
        &self,
        grace: Duration,
        job: Job<'_>,
        halt: &CancelToken,
        work: impl FnOnce() -> T,
    ) -> T {
        let over = CancelToken::new();
        let watch = || self.watch(grace, job, halt, &over);
        let done = thread::scope(|scope| {
            // where there are no more threads, stopping takes until the next bytes
            let watcher = thread::Builder::new().spawn_scoped(scope, watch).ok();
            let _at_the_end = EndWatch(&over, watcher);
            work()
        });
        self.tell(job.progress);
        done
    }

    fn watch(&self, grace: Duration, job: Job<'_>, halt: &CancelToken, over: &CancelToken) {
        let mut since = None;
        while !over.is_cancelled() {
            self.tell(job.progress);
            if job.stop.is_cancelled() && since.get_or_insert_with(Instant::now).elapsed() >= grace
            {
                halt.cancel();
                self.shut_down();
                return;
            }
            thread::park_timeout(TICK);
        }
    }

    /// The way to an address. Machines' own services are asked without a proxy, and not for long:
    /// most machines have none.
    fn way(uri: &Uri) -> Result<Way, RemoteError> {
        let is_near = is_of_machine(bare_host(uri));
        let proxy = if is_near { None } else { NamedProxy::of(uri)? };
        Ok(Way {
            is_tls: uri.scheme_str() == Some("https"),
            proxy,
            is_near,
        })
    }

    /// The agent for a way.
    fn agent(&self, way: &Way) -> Result<Agent, RemoteError> {
        let mut agents = lock(&self.agents);
        // under the lock: `shut_down` does not see one that is made after it
        if self.ended.is_cancelled() {
            return Err(RemoteError::Interrupted);
        }
        if let Some((_, agent)) = agents.iter().find(|(of, _)| of == way) {
            return Ok(agent.clone());
        }
        let stall = self.patience.stall;
        let stall = Some(if way.is_near {
            stall.min(NEAR_STALL)
        } else {
            stall
        });
        let answer = self.patience.answer;
        let answer = Some(if way.is_near {
            answer.min(NEAR_STALL)
        } else {
            answer
        });
        let uses_tls = way.is_tls || way.proxy.as_ref().is_some_and(NamedProxy::uses_tls);
        let config = Agent::config_builder()
            .proxy(None)
            .tls_config(if uses_tls {
                tls()?
            } else {
                TlsConfig::default()
            })
            .user_agent(concat!("segpack/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(stall)
            .timeout_connect(stall)
            .timeout_recv_response(answer)
            .timeout_per_read(stall)
            .timeout_per_write(stall);
        let agent = match &way.proxy {
            Some(proxy) => proxy.agent(config, way.is_tls),
            None => config.build().into(),
        };
        agents.push((way.clone(), agent.clone()));
        Ok(agent)
    }

    /// Sends a request on a thread of its own, so that nobody has to wait for it: neither a name
    /// that is looked up nor a connection that is being made can be ended.
    fn answered(
        &self,
        url: &str,
        way: &Way,
        request: impl FnOnce(&Agent) -> Sent + Send + 'static,
    ) -> Result<Response<Body>, Trouble> {
        let agent = self.agent(way)?;
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        let (to, from) = mpsc::sync_channel(1);
        let ask = move || {
            let _ = to.send(request(&agent)); // nobody may be waiting any more
        };
        let requested = thread::Builder::new().spawn(ask);
        requested.map_err(|e| broken(url, "there is no thread to ask on", e))?;
        loop {
            match from.recv_timeout(TICK) {
                Ok(answered) => return answered.map_err(|e| not_answered(url, way, e)),
                Err(_) if self.ended.is_cancelled() => return Err(RemoteError::Interrupted.into()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let died = io::Error::other("the thread that asked has died");
                    return Err(broken(url, "no answer", died));
                }
            }
        }
    }

    /// Sends one request and follows its redirects. Answers of every status are returned.
    pub(super) fn ask(
        &self,
        url: &str,
        head: bool,
        range: Option<(u64, u64)>,
    ) -> Result<Answer, Trouble> {
        let (mut url, mut first) = (url.to_owned(), None);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(&url, head, range)?;
            let status = response.status().as_u16();
            let (parts, body) = response.into_parts();
            let redirected = first.is_some();
            let first_headers = first.get_or_insert_with(|| parts.headers.clone());
            let is_redirect = matches!(status, 301 | 302 | 303 | 307 | 308);
            if !is_redirect {
                return Ok(Answer {
                    redirected,
                    status,
                    first: first_headers.clone(),
                    headers: parts.headers,
                    body,
                    url,
                });
            }
            let location = text_of(&parts.headers, header::LOCATION.as_str());
            let location = location.ok_or_else(|| answer(&url, "a redirect to nowhere"))?;
            url = join(&url, location)?;
        }
        let what = format!("more than {MAX_REDIRECTS} redirects");
        Err(answer(&url, what).into())
    }

    fn send(
        &self,
        url: &str,
        head: bool,
        range: Option<(u64, u64)>,
    ) -> Result<Response<Body>, Trouble> {
        let uri: Uri = url
            .parse()
            .map_err(|e| answer(url, format!("is no address: {e}")))?;
        let way = Self::way(&uri)?;
        let method = if head { Method::HEAD } else { Method::GET };
        let mut request = Request::builder().method(method).uri(uri);
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some((start, end)) = range {
            let last = end.saturating_sub(1);
            request = request.header(header::RANGE, format!("bytes={start}-{last}"));
        }
        if let Some((origin, token)) = &self.token
            && origin_of(url) == *origin
        {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(())
            .map_err(|e| answer(url, format!("cannot be asked for: {e}")))?;
        let response = self.answered(url, &way, move |agent| agent.run(request))?;
        refused_by_proxy(url, &way, response.status())?;
        Ok(response)
    }

    /// Sends one request that bears its own signature or key, and follows no redirect.
    ///
    /// # Errors
    /// Where no answer comes; those of every status are returned.
    pub(super) fn send_signed(&self, parts: Parts, body: Vec<u8>) -> Result<Answer, Trouble> {
        let url = parts.uri.to_string();
        let way = Self::way(&parts.uri)?;
        let response = if matches!(parts.method, Method::POST | Method::PUT) {
            let (limit, ended) = (Arc::clone(&self.limit), Arc::clone(&self.ended));
            self.counts
                .sent
                .fetch_add(body.len() as u64, Ordering::Relaxed);
            self.answered(&url, &way, move |agent| {
                send_paced(agent, parts, &body, &limit, &ended)
            })?
        } else {
            let request = Request::from_parts(parts, ());
            self.answered(&url, &way, move |agent| agent.run(request))?
        };
        refused_by_proxy(&url, &way, response.status())?;
        let (parts, body) = response.into_parts();
        Ok(Answer {
            url,
            redirected: false,
            status: parts.status.as_u16(),
            first: parts.headers.clone(),
            headers: parts.headers,
            body,
        })
    }

    /// Asks until there is an answer that `look` takes, or none is to be had.
    ///
    /// # Errors
    /// That of the last try.
    pub(super) fn until<T>(
        &self,
        what: &str,
        job: Job<'_>,
        mut look: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<T, RemoteError> {
        let mut patience = Tries::new(self, what, job);
        loop {
            match look() {
                Ok(done) => return Ok(done),
                Err(trouble) => patience.wait(trouble)?,
            }
        }
    }

    /// A small file as a whole.
    ///
    /// # Errors
    /// `NoFile`, `NotAllowed`, `Answer` where it has more than `limit` bytes; what ended the last
    /// try.
    pub(super) fn small(
        &self,
        url: &str,
        limit: u64,
        job: Job<'_>,
    ) -> Result<Vec<u8>, RemoteError> {
        self.until(url, job, || {
            let answer = self.ask(url, false, None)?;
            self.take_body(&mut answer.expect(&[200])?, limit)
        })
    }

    /// The body of an answer, which has none afterwards.
    ///
    /// # Errors
    /// `Again` where it breaks off; `Answer` where it has more than `limit` bytes.
    pub(super) fn take_body(&self, from: &mut Answer, limit: u64) -> Result<Vec<u8>, Trouble> {
        let mut bytes = Vec::new();
        let url = from.url.clone();
        let mut body = from.body.as_reader().take(limit.saturating_add(1));
        let read = body.read_to_end(&mut bytes);
        read.map_err(|e| broken(&url, "the answer broke off", e))?;
        let received = bytes.len() as u64;
        self.counts.bytes.fetch_add(received, Ordering::Relaxed);
        if received > limit {
            let what = format!("has more than the {limit} bytes that are read of such a file");
            return Err(answer(&url, what).into());
        }
        Ok(bytes)
    }
}

impl Answer {
    /// Its status as a type.
    pub(super) fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The answer, where it has one of these statuses.
    pub(super) fn expect(self, wanted: &[u16]) -> Result<Self, Trouble> {
        if wanted.contains(&self.status) {
            return Ok(self);
        }
        Err(self.refused())
    }

    /// What an answer of another status than the wanted ones says.
    pub(super) fn refused(&self) -> Trouble {
        let url = shown(&self.url);
        let status = self.status;
        match status {
            401 | 403 => RemoteError::NotAllowed {
                host: host_of(&self.url),
                what: path_of(&self.url),
                status,
            }
            .into(),
            404 | 410 => RemoteError::NoFile { url }.into(),
            408 | 425 | 429 | 500.. => {
                let tries = 1;
                let error = RemoteError::Status { url, status, tries };
                Trouble::Again(error, asked_pause(&self.headers))
            }
            _ => {
                let tries = 1;
                RemoteError::Status { url, status, tries }.into()
            }
        }
    }

    /// Passes the body to `take` until it ends or `length` bytes have come, from its byte `skip` on.
    ///
    /// # Errors
    /// `Again` where it breaks off; what `take` returned is in the inner result.
    pub(super) fn pass<E>(
        &mut self,
        (skip, length): (u64, u64),
        counts: &Counts,
        stop: &CancelToken,
        take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>, Trouble> {
        let url = self.url.clone();
        let (mut buffer, mut skip, mut left) = (vec![0; PIECE_BYTES], skip, length);
        let mut body = self.body.as_reader();
        while left > 0 {
            if stop.is_cancelled() {
                return Err(RemoteError::Interrupted.into());
            }
            let read = body.read(&mut buffer);
            let read = match read {
                Ok(0) => return Err(ended_early(&url, left)),
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(ended_early(&url, left));
                }
                Err(e) => {
                    let how = if is_timeout(&e) {
                        "fell silent"
                    } else {
                        "broke off"
                    };
                    let what = format!("the connection {how}, {left} bytes before the end");
                    return Err(broken(&url, &what, e));
                }
                Ok(read) => read,
            };
            counts.bytes.fetch_add(read as u64, Ordering::Relaxed);
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(read);
            skip -= skipped as u64;
            let piece = &buffer[skipped..read];
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            if let Err(e) = take(&piece[..wanted]) {
                return Ok(Err(e));
            }
            left -= wanted as u64;
        }
        Ok(Ok(()))
    }
}

/// Failures in a row, and the pauses between them.
pub(super) struct Tries<'a> {
    client: &'a Client,
    /// What is fetched, for notes.
    what: &'a str,
    job: Job<'a>,
    failed: u32,
}

impl<'a> Tries<'a> {
    pub(super) fn new(client: &'a Client, what: &'a str, job: Job<'a>) -> Self {
        Self {
            client,
            what,
            job,
            failed: 0,
        }
    }

    /// Bytes have come: failures before do not count any more.
    pub(super) fn went_on(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// Where there is none: the trouble is final, there were too many, or the user asked to stop.
    pub(super) fn wait(&mut self, trouble: Trouble) -> Result<(), RemoteError> {
        self.stopped()?;
        let (error, requested) = match trouble {
            Trouble::Final(error) => return Err(error),
            Trouble::Again(error, requested) => (error, requested),
        };
        self.failed += 1;
        let patience = self.client.patience;
        let most = most_tries(&error, patience);
        if self.failed >= most {
            return Err(with_tries(error, self.failed));
        }
        self.client.counts.retries.fetch_add(1, Ordering::Relaxed);
        let pause = requested.map_or_else(
            || jittered(patience.pause, self.failed - 1),
            |requested| requested.min(MAX_ASKED_PAUSE),
        );
        let (what, next) = (self.what, self.failed + 1);
        let (seconds, tries) = (pause.as_secs_f64(), most);
        let why = crate::causes::chain(&error);
        self.job.progress.note(&format!(
            "{what}: {why}; trying again in {seconds:.1} s (try {next} of {tries})"
        ));
        self.sleep(pause)
    }

    fn sleep(&self, pause: Duration) -> Result<(), RemoteError> {
        let end = Instant::now() + pause;
        loop {
            self.stopped()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(TICK));
        }
    }

    fn stopped(&self) -> Result<(), RemoteError> {
        if self.job.stop.is_cancelled() || self.client.ended.is_cancelled() {
            return Err(RemoteError::Interrupted);
        }
        Ok(())
    }
}

/// Sends a body of known length as fast as the limit allows.
fn send_paced(
    agent: &Agent,
    mut parts: Parts,
    body: &[u8],
    limit: &Limit,
    ended: &CancelToken,
) -> Sent {
    let length = HeaderValue::from(body.len());
    parts.headers.insert(header::CONTENT_LENGTH, length);
    let mut body = Paced::new(body, limit, ended);
    agent.run(Request::from_parts(parts, SendBody::from_reader(&mut body)))
}

/// Ends a watch, whatever happens to what it watches.
struct EndWatch<'a>(&'a CancelToken, Option<ScopedJoinHandle<'a, ()>>);

impl Drop for EndWatch<'_> {
    fn drop(&mut self) {
        self.0.cancel();
        if let Some(watcher) = &self.1 {
            watcher.thread().unpark();
        }
    }
}

/// How often something is tried that failed like this: an answer that ends early, at the same byte
/// each time, is how the server has the file, and no accident of the network.
fn most_tries(error: &RemoteError, patience: Patience) -> u32 {
    match error {
        RemoteError::Short { .. } => patience.tries.min(SHORT_TRIES),
        RemoteError::Connection { source, .. } if is_timeout(source) && !patience.is_given => {
            patience.tries.min(SILENT_TRIES)
        }
        _ => patience.tries,
    }
}

/// Whether nothing came for too long.
fn is_timeout(error: &io::Error) -> bool {
    let inner = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<ureq::Error>());
    matches!(inner, Some(ureq::Error::Timeout(_))) || error.kind() == io::ErrorKind::TimedOut
}

/// A pause that doubles with each failure, between half of it and all of it: what failed for many
/// at once does not come back for all of them at once.
fn jittered(pause: Duration, failures: u32) -> Duration {
    let whole = pause
        .saturating_mul(1 << failures.min(16))
        .min(MAX_PAUSE)
        .as_secs_f64();
    // hash maps get other random keys in every state
    let random = RandomState::new().build_hasher().finish() >> 40;
    #[expect(clippy::cast_precision_loss, reason = "24 bits")]
    let part = random as f64 / f64::from(1 << 24);
    Duration::from_secs_f64(whole * (0.5 + 0.5 * part))
}

/// The pause that `Retry-After` asks for: seconds, or a date.
pub(super) fn asked_pause(headers: &HeaderMap) -> Option<Duration> {
    let text = text_of(headers, header::RETRY_AFTER.as_str())?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    let until = SystemTime::from(date.timestamp());
    Some(until.duration_since(SystemTime::now()).unwrap_or_default())
}

fn with_tries(error: RemoteError, failed: u32) -> RemoteError {
    match error {
        RemoteError::Status { url, status, .. } => RemoteError::Status {
            url,
            status,
            tries: failed,
        },
        RemoteError::Short { url, left, .. } => RemoteError::Short {
            url,
            left,
            tries: failed,
        },
        RemoteError::Connection {
            url, what, source, ..
        } => RemoteError::Connection {
            url,
            what,
            source,
            tries: failed,
        },
        other => other,
    }
}

/// Servers are trusted by the certificates of the system.
///
/// # Errors
/// `Certificates` where there are none.
fn tls() -> Result<TlsConfig, RemoteError> {
    let found = rustls_native_certs::load_native_certs();
    let roots: Vec<Certificate<'static>> = found
        .certs
        .iter()
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    // one that cannot be read only trusts fewer servers
    if roots.is_empty() {
        let first = found.errors.first().map(ToString::to_string);
        let why = first.unwrap_or_else(|| "none are there".to_owned());
        return Err(RemoteError::Certificates { why });
    }
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

fn not_answered(url: &str, way: &Way, error: ureq::Error) -> Trouble {
    let what = match &way.proxy {
        Some(proxy) => {
            let (variable, address) = (proxy.variable, proxy.address());
            format!("no answer through the proxy {address}, which {variable} names")
        }
        None => "no answer".to_owned(),
    };
    match error {
        ureq::Error::ConnectProxyFailed(reason) => {
            let proxy = way.proxy.as_ref();
            match proxy.and_then(|proxy| proxy.refusal(&shown(url), &reason)) {
                Some(refusal) => refusal.into(),
                None => broken(url, &what, io::Error::other(reason)),
            }
        }
        ureq::Error::BadUri(why) => answer(url, format!("is no address: {why}")).into(),
        // a server that is not trusted is not trusted the next time either
        ureq::Error::Rustls(e) => refused_tls(url, io::Error::other(e)),
        ureq::Error::Io(e) if e.kind() == io::ErrorKind::InvalidData => refused_tls(url, e),
        ureq::Error::Io(e) => broken(url, &what, e),
        other => broken(url, &what, io::Error::other(other)),
    }
}

/// A proxy that wants a name and a password says so in the place of the server; what else it
/// answers cannot be told from the server's own words.
fn refused_by_proxy(url: &str, way: &Way, status: StatusCode) -> Result<(), RemoteError> {
    let is_refusal = status == StatusCode::PROXY_AUTHENTICATION_REQUIRED;
    let proxy = way.proxy.as_ref().filter(|_| is_refusal);
    match proxy.and_then(|proxy| proxy.refused(&shown(url), status.as_u16())) {
        Some(refusal) => Err(refusal),
        None => Ok(()),
    }
}

fn refused_tls(url: &str, source: io::Error) -> Trouble {
    Trouble::Final(RemoteError::Connection {
        url: shown(url),
        what: "no connection that can be trusted".to_owned(),
        tries: 1,
        source,
    })
}

fn broken(url: &str, what: &str, source: io::Error) -> Trouble {
    let error = RemoteError::Connection {
        url: shown(url),
        what: what.to_owned(),
        tries: 1,
        source,
    };
    Trouble::Again(error, None)
}

/// An answer that ended, without an error, before all its bytes had come.
fn ended_early(url: &str, left: u64) -> Trouble {
    let (url, tries) = (shown(url), 1);
    Trouble::Again(RemoteError::Short { url, left, tries }, None)
}

/// An answer that is not what the protocol says.
pub(super) fn answer(url: &str, what: impl Into<String>) -> RemoteError {
    RemoteError::Answer {
        url: shown(url),
        what: what.into(),
    }
}

/// A header that is text.
pub(super) fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A header that is a number.
pub(super) fn number_of(headers: &HeaderMap, name: &str) -> Option<u64> {
    text_of(headers, name)?.trim().parse().ok()
}

/// An address without its query: that of a content network is a key to the file.
pub(super) fn shown(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// Scheme, host and port.
pub(super) fn origin_of(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return String::new();
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    format!("{scheme}://{}", authority.to_ascii_lowercase())
}

/// The host and port of an address.
pub(super) fn host_of(url: &str) -> String {
    let origin = origin_of(url);
    origin.split("://").nth(1).unwrap_or_default().to_owned()
}

/// Whether a host is a service of the machine itself, such as the one that gives out credentials.
pub(super) fn is_of_machine(host: &str) -> bool {
    host.starts_with("169.254.") || matches!(host, "metadata.google.internal" | "fd00:ec2::254")
}

pub(super) fn path_of(url: &str) -> String {
    let shown = shown(url);
    shown[origin_of(url).len().min(shown.len())..].to_owned()
}

/// Where a redirect leads.
///
/// # Errors
/// `Answer` where it leads from TLS to the open, or to no server at all.
fn join(from: &str, location: &str) -> Result<String, RemoteError> {
    let location = location.trim();
    let scheme = from.split("://").next().unwrap_or_default();
    let to = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{}{location}", origin_of(from))
    } else if location.contains("://") {
        return Err(answer(from, "a redirect to something else than HTTP"));
    } else {
        let from = shown(from);
        let folder = from.rsplit_once('/').map_or(&*from, |(folder, _)| folder);
        format!("{folder}/{location}")
    };
    if scheme == "https" && !to.starts_with("https://") {
        return Err(answer(from, "a redirect away from TLS is not followed"));
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say_but_not_out_of_tls() {
        let joined = |from, to| join(from, to).map_err(|e| e.to_string());
        assert_eq!(
            joined("http://a:1/x/y?q", "/z").as_deref(),
            Ok("http://a:1/z")
        );
        assert_eq!(
            joined("https://a/x/y", "z?k=1").as_deref(),
            Ok("https://a/x/z?k=1")
        );
        assert_eq!(joined("https://a/x", "//b/z").as_deref(), Ok("https://b/z"));
        assert_eq!(
            joined("http://a/x", "https://b/z").as_deref(),
            Ok("https://b/z")
        );
        assert!(joined("https://a/x", "http://b/z").is_err());
        assert!(joined("https://a/x", "ftp://b/z").is_err());
    }

    #[test]
    fn addresses_are_shown_without_their_keys() {
        assert_eq!(shown("https://h/a/b?Signature=x#y"), "https://h/a/b");
        assert_eq!(origin_of("https://H:1/a"), "https://h:1");
        assert_eq!(path_of("https://h/a/b?c"), "/a/b");
    }

    #[test]
    fn a_server_says_when_to_come_back() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            asked_pause(&headers)
        };
        assert_eq!(with("7"), Some(Duration::from_secs(7)));
        let past = with("Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(past, Some(Duration::ZERO));
        let far = with("Mon, 21 Oct 2165 07:28:00 GMT").unwrap();
        assert!(far > MAX_ASKED_PAUSE);
        assert_eq!(with("soon"), None);
    }

    #[test]
    fn pauses_double_and_are_never_less_than_half() {
        for failures in 0..40 {
            let whole = Duration::from_secs(1 << failures.min(6)).min(MAX_PAUSE);
            let pause = jittered(Duration::from_secs(1), failures);
            assert!(
                pause >= whole / 2 && pause <= whole,
                "{failures}: {pause:?}"
            );
        }
    }
}

//! An object store on this machine: `s3s` and `s3s-fs` over a folder, with credentials, and faults on
//! demand. What `s3s-fs` leaves out, real stores have and is added here: entity tags in lists and of
//! HEAD requests, and lists that come in pages.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{ETAG, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::host::{S3Host, VirtualHost};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;

use super::cli::program;

/// The bucket that [`Store::of`] makes.
pub const BUCKET: &str = "models";
/// The only user.
pub const KEY_ID: &str = "AKIDEXAMPLE";
/// The secret of that user, which nothing may print.
pub const SECRET: &str = "wJalrXUtnFEMISECRET";
/// Objects in one page of a list.
const PAGE: usize = 5;

/// Writing requests that are kept waiting: before anything is done, and before the answer.
#[derive(Debug, Clone, Copy)]
pub struct Slow {
    /// What their path and query have in them.
    pub part: &'static str,
    pub before: Duration,
    pub after: Duration,
}

/// What goes wrong; of shards and packs alone, as are all counts.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Each Nth request gets this status.
    pub fail_every: Option<(usize, u16)>,
    /// The connection ends after so many bytes of a body, so often.
    pub drop_after: Option<(usize, usize)>,
    /// Nothing comes for so long, so often, but for a file's first bytes.
    pub stall: Option<(Duration, usize)>,
    /// After so many requests the objects are others.
    pub change_after: Option<usize>,
    /// After so many requests each gets status 503, until [`Store::recover`].
    pub refuse_after: Option<usize>,
    /// Writing requests wait.
    pub slow: Option<Slow>,
    /// The name of the host has the bucket, not the path.
    pub virtual_host: bool,
}

struct Shared {
    s3: S3Service,
    faults: Faults,
    requests: AtomicUsize,
    drops: AtomicUsize,
    stalls: AtomicUsize,
    is_well: AtomicBool,
    log: Mutex<Vec<String>>,
    sent: Mutex<HashMap<String, u64>>,
}

/// The server; it ends with the test.
pub struct Store {
    address: SocketAddr,
    shared: Arc<Shared>,
    root: PathBuf,
}

/// Every host is that of the bucket.
struct OneBucket;

impl S3Host for OneBucket {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> s3s::S3Result<VirtualHost<'a>> {
        Ok(VirtualHost::with_bucket(host, BUCKET))
    }
}

impl Store {
    /// A store whose buckets are the folders of `root`; [`BUCKET`] is there.
    pub fn of(root: &Path, faults: Faults) -> Self {
        std::fs::create_dir_all(root.join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(root).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        if faults.virtual_host {
            builder.set_host(OneBucket);
        }
        let shared = Arc::new(Shared {
            s3: builder.build(),
            faults,
            requests: AtomicUsize::new(0),
            drops: AtomicUsize::new(0),
            stalls: AtomicUsize::new(0),
            is_well: AtomicBool::new(false),
            log: Mutex::default(),
            sent: Mutex::default(),
        });
        let (to, from) = mpsc::channel();
        let serving = Arc::clone(&shared);
        thread::spawn(move || serve(&serving, &to));
        Self {
            address: from.recv().unwrap(),
            shared,
            root: root.to_owned(),
        }
    }

    /// The program, with the credentials of this store, and no patience.
    pub fn program(&self) -> Command {
        // a number has no bucket in front of it
        let endpoint = match self.shared.faults.virtual_host {
            true => format!("http://localhost:{}", self.address.port()),
            false => format!("http://{}", self.address),
        };
        let mut command = program();
        command
            .env("AWS_ENDPOINT_URL", endpoint)
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_ACCESS_KEY_ID", KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("AWS_REGION", "eu-west-1")
            .env("SEGPACK_RETRY_PAUSE", "0.005")
            .env("NO_PROXY", "*");
        if self.shared.faults.virtual_host {
            command.env("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true");
        }
        command
    }

    /// Where the objects of the bucket lie.
    pub fn folder(&self) -> PathBuf {
        self.root.join(BUCKET)
    }

    /// Refuses nothing from here on.
    pub fn recover(&self) {
        self.shared.is_well.store(true, Ordering::Relaxed);
    }

    /// Requests so far: method, path and query.
    pub fn log(&self) -> Vec<String> {
        self.shared.log.lock().unwrap().clone()
    }

    /// Whether a request has been kept waiting.
    pub fn is_stalled(&self) -> bool {
        self.shared.stalls.load(Ordering::Relaxed) > 0
    }

    /// Bytes that were sent of objects with this ending.
    pub fn sent(&self, ending: &str) -> u64 {
        let sent = self.shared.sent.lock().unwrap();
        let files = sent.iter().filter(|(path, _)| path.ends_with(ending));
        files.map(|(_, bytes)| bytes).sum()
    }
}

fn serve(shared: &Arc<Shared>, ready: &mpsc::Sender<SocketAddr>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        ready.send(listener.local_addr().unwrap()).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(TokioIo::new(stream), Arc::clone(shared)));
        }
    });
}

async fn connection(stream: TokioIo<tokio::net::TcpStream>, shared: Arc<Shared>) {
    let service = hyper::service::service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { shared.answer(request).await }
    });
    let http = hyper::server::conn::http1::Builder::new();
    let _ = http.serve_connection(stream, service).await;
}

/// Whether an object is large: a shard of a checkpoint, or a pack.
fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(".segpack")
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> io::Result<Response<Piece>> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        self.log.lock().unwrap().push(format!("{method} {uri}"));
        let path = uri.path().to_owned();
        let is_first = request.headers().get("range").is_none_or(|range| {
            let text = range.to_str().unwrap_or_default();
            text.starts_with("bytes=0-")
        });
        let count = if is_large(&path) {
            self.requests.fetch_add(1, Ordering::Relaxed) + 1
        } else {
            0
        };
        let fails = self
            .faults
            .fail_every
            .filter(|(every, _)| count > 0 && count % every == 0);
        // the one that takes parts back comes through
        let is_down = self.faults.refuse_after.is_some_and(|after| count > after)
            && method != Method::DELETE
            && !self.is_well.load(Ordering::Relaxed);
        if let Some((_, status)) = fails.or(is_down.then_some((1, 503))) {
            // what is sent in the meantime is read, as servers do
            let _ = request.into_body().collect().await;
            let body = "<Error><Code>SlowDown</Code></Error>";
            let mut response = Response::new(Piece::whole(body.into()));
            *response.status_mut() = status.try_into().unwrap();
            return Ok(response);
        }
        if let Some((time, times)) = self.faults.stall
            && count > 0
            && !is_first
            && self.stalls.fetch_add(1, Ordering::Relaxed) < times
        {
            tokio::time::sleep(time).await;
        }
        let writes = method == Method::PUT || method == Method::DELETE;
        let is_slow = |slow: &Slow| writes && uri.to_string().contains(slow.part);
        let slow = self.faults.slow.filter(is_slow);
        if let Some(slow) = slow {
            self.stalls.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(slow.before).await;
        }
        let answered = self.s3.call(request.map(s3s::Body::from)).await;
        let (mut parts, body) = answered.map_err(io::Error::other)?.into_parts();
        let mut bytes = body.collect().await.map_err(io::Error::other)?.to_bytes();
        if let Some(slow) = slow {
            tokio::time::sleep(slow.after).await;
        }
        if method == Method::GET || method == Method::HEAD {
            parts.headers.insert(ETAG, self.tag(count));
        }
        if uri.query().is_some_and(|q| q.contains("list-type=2")) && parts.status.is_success() {
            bytes = page(&String::from_utf8_lossy(&bytes), uri.query().unwrap()).into();
            parts.headers.remove("content-length");
        }
        let mut piece = Piece::whole(bytes);
        if let Some((after, times)) = self.faults.drop_after
            && count > 0
            && piece.bytes.len() > after
            && self.drops.fetch_add(1, Ordering::Relaxed) < times
        {
            parts
                .headers
                .insert("content-length", piece.bytes.len().into());
            piece.bytes.truncate(after);
            piece.breaks = true;
        }
        let sent = piece.bytes.len() as u64;
        *self.sent.lock().unwrap().entry(path).or_default() += sent;
        Ok(Response::from_parts(parts, piece))
    }

    fn tag(&self, count: usize) -> HeaderValue {
        let changed = self.faults.change_after.is_some_and(|after| count > after);
        HeaderValue::from_static(if changed { "\"v2\"" } else { "\"v1\"" })
    }
}

/// A page of the list of all objects, and a token for the next.
fn page(all: &str, query: &str) -> String {
    let token = query
        .split('&')
        .find_map(|p| p.strip_prefix("continuation-token="));
    let start: usize = token.map_or(0, |token| token.parse().unwrap());
    let mut pieces: Vec<&str> = all.split("<Contents>").collect();
    let head = pieces.remove(0);
    let last = pieces
        .pop()
        .map(|last| last.split_once("</Contents>").unwrap());
    let objects: Vec<String> = pieces
        .iter()
        .map(|piece| piece.trim_end_matches("</Contents>"))
        .chain(last.map(|(object, _)| object))
        .map(|object| format!("<Contents>{object}<ETag>&quot;v1&quot;</ETag></Contents>"))
        .collect();
    let (head, tail) = match last {
        Some((_, tail)) => (head, tail),
        None => head.split_at(head.find("</ListBucketResult>").unwrap()),
    };
    let end = (start + PAGE).min(objects.len());
    let next = if end < objects.len() {
        format!(
            "<IsTruncated>true</IsTruncated><NextContinuationToken>{end}</NextContinuationToken>"
        )
    } else {
        String::new()
    };
    format!(
        "{head}{}{next}{tail}",
        objects[start.min(end)..end].concat()
    )
}

/// A body in one piece, after which the connection may break.
struct Piece {
    bytes: Bytes,
    is_sent: bool,
    breaks: bool,
    has_waited: bool,
}

impl Piece {
    fn whole(bytes: Bytes) -> Self {
        Self {
            bytes,
            is_sent: false,
            breaks: false,
            has_waited: false,
        }
    }
}

impl Body for Piece {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if !self.is_sent {
            self.is_sent = true;
            return Poll::Ready(Some(Ok(Frame::data(self.bytes.clone()))));
        }
        if !self.breaks {
            return Poll::Ready(None);
        }
        if !self.has_waited {
            // what came before is on its way then
            self.has_waited = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())))
    }

    fn is_end_stream(&self) -> bool {
        !self.breaks && (self.is_sent || self.bytes.is_empty())
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        if self.breaks {
            hyper::body::SizeHint::default()
        } else {
            hyper::body::SizeHint::with_exact(self.bytes.len() as u64)
        }
    }
}

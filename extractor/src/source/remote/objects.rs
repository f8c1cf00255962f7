//! Objects of object stores: `s3://`, `gs://`, `az://`.
//!
//! The crate `object_store` knows their protocols: it finds credentials, names, signs and parses. Its
//! requests are sent by [`Client`], as all others are, with the same certificates, proxies, timeouts
//! and counts; bodies of objects do not pass through it. Its futures wait for nothing but those
//! requests, which block, so that each is driven to its end on the thread that asks.

use std::cell::RefCell;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http_body::Body as _;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as ObjectPath;
use object_store::{
    ClientConfigKey, ClientOptions, GetOptions, GetRange, MultipartId, ObjectStore, PutOptions,
    PutPayload, RetryConfig,
};

use super::RemoteError;
use super::client::{
    Answer, Client, Trouble, answer, host_of, is_of_machine, path_of, shown, text_of,
};
use crate::causes::chain;
use crate::source::place::{ObjectPlace, StoreKind};

/// More than a page of a list takes, or a credential.
const MAX_DOCUMENT_BYTES: u64 = 16 << 20;
/// More than a store says of an error.
const MAX_ERROR_BYTES: u64 = 64 << 10;

/// A bucket of an object store, or a container.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) place: ObjectPlace,
    cloud: Cloud,
    /// Whether requests are signed: public buckets need no credentials.
    is_signed: bool,
}

#[derive(Debug)]
enum Cloud {
    S3(AmazonS3),
    Google(GoogleCloudStorage),
    Azure(MicrosoftAzure),
}

impl Cloud {
    fn objects(&self) -> &dyn ObjectStore {
        match self {
            Self::S3(store) => store,
            Self::Google(store) => store,
            Self::Azure(store) => store,
        }
    }

    fn pages(&self) -> &dyn PaginatedListStore {
        match self {
            Self::S3(store) => store,
            Self::Google(store) => store,
            Self::Azure(store) => store,
        }
    }

    fn uploads(&self) -> &dyn MultipartStore {
        match self {
            Self::S3(store) => store,
            Self::Google(store) => store,
            Self::Azure(store) => store,
        }
    }

    /// Gets credentials, if there are none yet or they have expired.
    async fn credentials(&self) -> object_store::Result<()> {
        match self {
            Self::S3(store) => store.credentials().get_credential().await.map(drop),
            Self::Google(store) => store.credentials().get_credential().await.map(drop),
            Self::Azure(store) => store.credentials().get_credential().await.map(drop),
        }
    }
}

impl Bucket {
    /// Reads the environment; asks nothing yet.
    ///
    /// # Errors
    /// `NoCredentials` where a part of what is needed is missing or wrong.
    pub(super) fn open(place: &ObjectPlace, client: &Arc<Client>) -> Result<Self, RemoteError> {
        let wires = Wires {
            client: Arc::clone(client),
            kind: place.kind,
        };
        check_environment(place.kind).map_err(|why| no_credentials(place, &why))?;
        let (cloud, is_signed) =
            cloud(place, wires).map_err(|e| no_credentials(place, &chain(&e)))?;
        Ok(Self {
            place: place.clone(),
            cloud,
            is_signed,
        })
    }

    /// Sends a request for an object, or for a range of it: the first byte, and the one after the
    /// last. Answers of every status are returned that a reader of files knows to read.
    ///
    /// # Errors
    /// Where no answer comes, or it says what only an object store says.
    pub(super) fn ask(
        &self,
        path: &ObjectPath,
        head: bool,
        range: Option<(u64, u64)>,
    ) -> Result<Answer, Trouble> {
        self.credentials()?;
        let options = GetOptions {
            head,
            range: range.map(|(start, end)| GetRange::Bounded(start..end)),
            ..GetOptions::default()
        };
        let got = self.cloud.objects().get_opts(path, options);
        let (got, exchanged) = drive(Bodies::Kept, got);
        match (exchanged, got) {
            // what the crate made of its headers is of no interest
            (Some(exchanged), _) => self.known(exchanged?),
            (None, Err(e)) => Err(no_credentials(&self.place, &chain(&e)).into()),
            (None, Ok(_)) => Err(answer(&self.place.to_string(), "was not asked").into()),
        }
    }

    /// Writes an object in one request.
    pub(super) fn put(&self, path: &ObjectPath, bytes: PutPayload) -> Result<(), Trouble> {
        let put = self
            .cloud
            .objects()
            .put_opts(path, bytes, PutOptions::default());
        self.passed(put, "it cannot be written").map(drop)
    }

    /// Begins an object that comes in parts.
    pub(super) fn begin(&self, path: &ObjectPath) -> Result<MultipartId, Trouble> {
        let begun = self.cloud.uploads().create_multipart(path);
        self.passed(begun, "no upload can be begun")
    }

    /// Sends a part; numbers begin at 0.
    pub(super) fn put_part(
        &self,
        path: &ObjectPath,
        id: &MultipartId,
        number: usize,
        bytes: PutPayload,
    ) -> Result<PartId, Trouble> {
        let put = self.cloud.uploads().put_part(path, id, number, bytes);
        self.passed(put, "a part cannot be written")
    }

    /// Makes an object of its parts, in this order.
    pub(super) fn complete(
        &self,
        path: &ObjectPath,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<(), Trouble> {
        let completed = self.cloud.uploads().complete_multipart(path, id, parts);
        self.passed(completed, "its upload cannot be completed")
            .map(drop)
    }

    /// Takes back the parts of an object that will not be.
    pub(super) fn abort(&self, path: &ObjectPath, id: &MultipartId) -> Result<(), Trouble> {
        let aborted = self.cloud.uploads().abort_multipart(path, id);
        self.passed(aborted, "its upload cannot be taken back")
    }

    /// Does something of which the crate reads the answers.
    fn passed<T>(
        &self,
        future: impl Future<Output = object_store::Result<T>>,
        what: &str,
    ) -> Result<T, Trouble> {
        self.credentials()?;
        let (done, exchanged) = drive(Bodies::Passed, future);
        done.map_err(|e| self.why(&e, exchanged, what))
    }

    /// A page of the list.
    pub(super) fn page(&self, token: Option<String>) -> Result<PaginatedListResult, Trouble> {
        let options = PaginatedListOptions {
            page_token: token,
            ..PaginatedListOptions::default()
        };
        let prefix = &self.place.prefix;
        let prefix = (!prefix.is_empty()).then(|| format!("{prefix}/"));
        let listed = self
            .cloud
            .pages()
            .list_paginated(prefix.as_deref(), options);
        self.passed(listed, "its list cannot be read")
    }

    /// Gets credentials, where requests are signed. They are kept until they expire.
    fn credentials(&self) -> Result<(), Trouble> {
        if !self.is_signed {
            return Ok(());
        }
        let (got, exchanged) = drive(Bodies::Passed, self.cloud.credentials());
        let Err(error) = got else { return Ok(()) };
        let why = match exchanged {
            Some(Ok(Exchange { answer, .. })) if answer.status < 500 => {
                let (url, status) = (shown(&answer.url), answer.status);
                format!("{url} answered with status {status}")
            }
            Some(Ok(Exchange { answer, .. })) => return Err(answer.refused()),
            Some(Err(Trouble::Again(RemoteError::Connection { url, .. }, _)))
                if is_of_machine(&host_of(&url)) =>
            {
                "the environment names none, and this machine has no service that gives them out"
                    .to_owned()
            }
            Some(Err(trouble)) => return Err(trouble),
            None => chain(&error),
        };
        Err(no_credentials(&self.place, &why).into())
    }

    /// Sorts out what only object stores say.
    fn known(&self, exchange: Exchange) -> Result<Answer, Trouble> {
        let Exchange { answer, code } = exchange;
        let code = code.unwrap_or_default();
        let bucket = || format!("{}{}", self.place.kind.scheme(), self.place.bucket);
        let region = text_of(&answer.headers, "x-amz-bucket-region");
        Err(match (answer.status, &*code) {
            (404, "NoSuchBucket" | "ContainerNotFound") => {
                RemoteError::NoBucket { bucket: bucket() }.into()
            }
            (301 | 307 | 400, "" | "PermanentRedirect" | "AuthorizationHeaderMalformed")
                if region.is_some() || answer.status != 400 =>
            {
                let region = region.unwrap_or("another one").to_owned();
                let bucket = bucket();
                RemoteError::OtherRegion { bucket, region }.into()
            }
            // S3's way to say that the body of a request came too slowly
            (400, "RequestTimeout") => {
                let (url, status, tries) = (shown(&answer.url), answer.status, 1);
                Trouble::Again(RemoteError::Status { url, status, tries }, None)
            }
            (status @ (400 | 401 | 403 | 409), _) => RemoteError::Denied {
                bucket: bucket(),
                what: path_of(&answer.url),
                status,
                code,
            }
            .into(),
            _ => return Ok(answer),
        })
    }

    /// Why something that the crate did as a whole has failed.
    fn why(&self, error: &object_store::Error, exchanged: Exchanged, what: &str) -> Trouble {
        match exchanged {
            Some(Err(trouble)) => trouble,
            Some(Ok(exchange)) => match self.known(exchange) {
                Err(trouble) => trouble,
                Ok(answer) if answer.status >= 300 => answer.refused(),
                Ok(answer) => {
                    let what = format!("{what}: {}", hidden(&chain(error)));
                    super::client::answer(&answer.url, what).into()
                }
            },
            None => no_credentials(&self.place, &chain(error)).into(),
        }
    }
}

/// An answer, and what it says of an error: a word of the protocol, such as `NoSuchKey`.
struct Exchange {
    answer: Answer,
    code: Option<String>,
}

/// The last exchange; none where nothing was sent.
type Exchanged = Option<Result<Exchange, Trouble>>;

/// Who reads the bodies of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bodies {
    /// The crate, which parses them.
    Passed,
    /// Whoever takes the exchange; the crate sees none.
    Kept,
}

thread_local! {
    /// What the future that this thread drives has sent and received.
    static WIRE: RefCell<(Option<Bodies>, Exchanged)> = const { RefCell::new((None, None)) };
}

/// Drives a future of the crate to its end on this thread. Also returns its last exchange.
fn drive<T>(
    bodies: Bodies,
    future: impl Future<Output = object_store::Result<T>>,
) -> (object_store::Result<T>, Exchanged) {
    WIRE.set((Some(bodies), None));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(future),
        Err(e) => Err(object_store::Error::Generic {
            store: "tokio",
            source: e.into(),
        }),
    };
    let (_, exchanged) = WIRE.take();
    (done, exchanged)
}

/// Gives the crate its connections.
#[derive(Debug)]
struct Wires {
    client: Arc<Client>,
    kind: StoreKind,
}

impl HttpConnector for Wires {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let http = options.get_config_value(&ClientConfigKey::AllowHttp);
        Ok(HttpClient::new(Wire {
            client: Arc::clone(&self.client),
            kind: self.kind,
            is_open: http.is_some_and(|value| is_true(&value)),
        }))
    }
}

/// A way to send requests of the crate.
#[derive(Debug)]
struct Wire {
    client: Arc<Client>,
    kind: StoreKind,
    /// Whether requests may go without TLS.
    is_open: bool,
}

impl HttpService for Wire {
    fn call<'s, 'f>(
        &'s self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(ready(self.exchange(request)))
    }
}

impl Wire {
    /// Sends a request, and keeps what came of it for whoever drives this future.
    fn exchange(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let kept = WIRE.with_borrow(|(bodies, _)| *bodies == Some(Bodies::Kept));
        let (exchanged, response) = match self.send(request, kept) {
            Ok((exchange, response)) => (Ok(exchange), Ok(response)),
            Err(trouble) => (Err(trouble), Err(no_answer())),
        };
        WIRE.with_borrow_mut(|(_, last)| *last = Some(exchanged));
        response
    }

    fn send(&self, request: HttpRequest, kept: bool) -> Result<(Exchange, HttpResponse), Trouble> {
        let (parts, body) = request.into_parts();
        if parts.uri.scheme_str() != Some("https") && !self.is_open {
            let variable = match self.kind {
                StoreKind::S3 => "AWS_ALLOW_HTTP",
                StoreKind::Google => "GOOGLE_ALLOW_HTTP",
                StoreKind::Azure => "AZURE_ALLOW_HTTP",
            };
            let why = "is not true, and the endpoint is one without TLS".to_owned();
            return Err(RemoteError::Environment { variable, why }.into());
        }
        let mut answer = self.client.send_signed(parts, bytes_of(body))?;
        let is_good = answer.status < 300;
        let (bytes, code) = if is_good && kept {
            (Vec::new(), None)
        } else if is_good {
            let bytes = self.client.take_body(&mut answer, MAX_DOCUMENT_BYTES)?;
            (bytes, None)
        } else {
            let bytes = self.client.take_body(&mut answer, MAX_ERROR_BYTES)?;
            let code = code_of(&answer, &bytes);
            (bytes, code)
        };
        let response = response(&answer, bytes);
        Ok((Exchange { answer, code }, response))
    }
}

/// The same answer for the crate.
fn response(answer: &Answer, body: Vec<u8>) -> HttpResponse {
    let mut response = HttpResponse::new(HttpResponseBody::from(body));
    *response.status_mut() = answer.status_code();
    *response.headers_mut() = answer.headers.clone();
    response
}

/// For the crate; the reason is kept for whoever drives its future.
fn no_answer() -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, std::io::Error::other("no answer"))
}

/// A body as one piece. Those of the crate are in memory, and never wait.
fn bytes_of(mut body: HttpRequestBody) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.content_length());
    let mut context = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) {
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| &data[..]));
    }
    bytes
}

/// The word of the protocol for an error: `<Code>` of the document, or Azure's header.
fn code_of(answer: &Answer, body: &[u8]) -> Option<String> {
    if let Some(code) = text_of(&answer.headers, "x-ms-error-code") {
        return Some(code.to_owned());
    }
    let text = String::from_utf8_lossy(body);
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_word = code.len() < 64 && code.bytes().all(|b| b.is_ascii_alphanumeric());
    is_word.then(|| code.to_owned())
}

/// An entity tag as answers have it; lists of some stores leave out the quotes. A weak one says
/// nothing of the bytes.
pub(super) fn strong(tag: &str) -> Option<String> {
    let bare = tag.trim_matches('"');
    (!tag.starts_with("W/") && !bare.is_empty()).then(|| format!("\"{bare}\""))
}

/// The store as the environment describes it, and whether requests to it are signed.
/// Refuses what the crate would make requests of that cannot be sent; it takes them for valid.
fn check_environment(kind: StoreKind) -> Result<(), String> {
    let prefix = match kind {
        StoreKind::S3 => "AWS_",
        StoreKind::Google => "GOOGLE_",
        StoreKind::Azure => "AZURE_",
    };
    for (name, value) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if !name.starts_with(prefix) {
            continue;
        }
        let value = value
            .into_string()
            .map_err(|_| format!("{name} is not UTF-8"))?;
        check_variable(&name, &value)?;
    }
    Ok(())
}

/// The value itself is never shown: it may be a secret.
fn check_variable(name: &str, value: &str) -> Result<(), String> {
    if !value.chars().all(|c| matches!(c, ' '..='~')) {
        return Err(format!(
            "{name} holds a line break or another character that is not printable ASCII"
        ));
    }
    if name.starts_with("AWS_ENDPOINT") && !value.is_empty() && !is_address(value) {
        return Err(format!(
            "{name} is no address: wanted http://HOST or https://HOST"
        ));
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if name.ends_with("_REGION") && !value.chars().all(is_plain) {
        return Err(format!(
            "{name} is no region: wanted letters, digits and dashes"
        ));
    }
    Ok(())
}

fn is_address(text: &str) -> bool {
    let uri: Result<ureq::http::Uri, _> = text.parse();
    uri.is_ok_and(|uri| {
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        // a port that is none is left for later by the parser
        let port = uri.authority().and_then(|a| a.as_str().rsplit_once(':'));
        let port = port.filter(|(_, digits)| !digits.ends_with(']'));
        let has_port = port.is_none_or(|(_, digits)| digits.parse::<u16>().is_ok());
        is_web && has_port && uri.host().is_some_and(|host| !host.is_empty())
    })
}

fn cloud(place: &ObjectPlace, wires: Wires) -> object_store::Result<(Cloud, bool)> {
    // whoever asks tries again, and knows how long
    let retry = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    let bucket = &place.bucket;
    let skips = |value: Option<String>| value.is_some_and(|value| is_true(&value));
    Ok(match place.kind {
        StoreKind::S3 => {
            let builder = AmazonS3Builder::from_env()
                .with_bucket_name(bucket)
                .with_retry(retry)
                .with_http_connector(wires);
            let skips = skips(builder.get_config_value(&AmazonS3ConfigKey::SkipSignature));
            (Cloud::S3(builder.build()?), !skips)
        }
        StoreKind::Google => {
            let builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(bucket)
                .with_retry(retry)
                .with_http_connector(wires);
            let skips = skips(builder.get_config_value(&GoogleConfigKey::SkipSignature));
            (Cloud::Google(builder.build()?), !skips)
        }
        StoreKind::Azure => {
            let builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(bucket)
                .with_retry(retry)
                .with_http_connector(wires);
            let skips = skips(builder.get_config_value(&AzureConfigKey::SkipSignature));
            (Cloud::Azure(builder.build()?), !skips)
        }
    })
}

fn is_true(value: &str) -> bool {
    ["1", "on", "true", "y", "yes"].contains(&value.to_ascii_lowercase().as_str())
}

fn no_credentials(place: &ObjectPlace, why: &str) -> RemoteError {
    RemoteError::NoCredentials {
        place: place.to_string(),
        why: hidden(why),
    }
}

/// A message without what it quotes: parsers of keys and of documents with keys quote them.
fn hidden(text: &str) -> String {
    let pieces = text.split('"').enumerate();
    let shown: Vec<&str> = pieces
        .map(|(n, piece)| if n % 2 == 0 { piece } else { "…" })
        .collect();
    shown.join("\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_make_no_request_are_refused_by_name() {
        for good in [
            "",
            "http://127.0.0.1:9000",
            "https://s3.example.com/base",
            "http://[::1]:80",
        ] {
            assert_eq!(check_variable("AWS_ENDPOINT_URL", good), Ok(()), "{good}");
        }
        for bad in [
            "nonsense",
            "http://",
            "https://",
            "https://h:99999",
            "https://[::",
            "/x",
            "https://h/a b",
            "ftp://h",
        ] {
            let why = check_variable("AWS_ENDPOINT_URL", bad).unwrap_err();
            assert!(why.contains("AWS_ENDPOINT_URL"), "{bad}: {why}");
        }
        for (name, value) in [
            ("AWS_REGION", "a b"),
            ("AWS_REGION", "eu\n"),
            ("AWS_SECRET_ACCESS_KEY", "SECRET\n"),
            ("AWS_SESSION_TOKEN", "é"),
        ] {
            let why = check_variable(name, value).unwrap_err();
            assert!(why.contains(name) && !why.contains("SECRET\n"), "{why}");
        }
    }

    #[test]
    fn versions_have_quotes_and_weak_ones_are_none() {
        assert_eq!(strong("\"a\"").as_deref(), Some("\"a\""));
        assert_eq!(strong("0x8D").as_deref(), Some("\"0x8D\""));
        assert_eq!(strong("W/\"a\""), None);
        assert_eq!(strong(""), None);
    }

    #[test]
    fn messages_do_not_show_what_they_quote() {
        let text = "invalid type: string \"secret\", wanted \"map\" at 1";
        assert_eq!(
            hidden(text),
            "invalid type: string \"…\", wanted \"…\" at 1"
        );
        assert_eq!(hidden("cut \"off"), "cut \"…");
    }
}

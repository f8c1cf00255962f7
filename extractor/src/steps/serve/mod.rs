//! `serve`: a pack's model behind OpenAI's interface.
//!
//! The thread of the command runs the model ([`worker`]); another one talks HTTP ([`http`]). Between
//! them stand a queue of requests, and for each request a channel of [`event::Event`]s. What
//! requests and answers look like is the business of [`api`] alone.

mod api;
mod error;
mod event;
mod facts;
mod http;
mod key;
mod metrics;
mod naming;
mod queue;
mod refusal;
mod room;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::documents::{GENERATOR, ServeStarted};
use segpack_runtime_min::RunError;
use segpack_runtime_min::session::{
    DeviceChoice, MemoryLimit, Session, SessionError, SessionOptions, available_memory,
};

use super::StepError;
use crate::work::Progress;
use facts::{Fixed, Shared};
use worker::{End, Worker};

pub use error::ServeError;
pub(crate) use key::ApiKey;

/// Positions that are reserved where nobody says how many.
const DEFAULT_CONTEXT: usize = 4096;

/// How a pack is served.
#[derive(Debug)]
pub(crate) struct ServeOptions {
    /// Where to listen; port 0 is any that is free.
    pub(crate) address: SocketAddr,
    /// The address may be one that other machines reach.
    pub(crate) allow_remote: bool,
    /// What requests have to show.
    pub(crate) key: Option<ApiKey>,
    /// What clients call the model.
    pub(crate) model: String,
    /// Positions of a prompt and its answer. `None`: 4,096, or what the model was made for.
    pub(crate) context: Option<usize>,
    /// Requests that wait beside the one that is answered.
    pub(crate) queue: usize,
    /// Bytes of the largest request.
    pub(crate) max_body: u64,
    /// How long the request that is answered may go on when the server is told to stop.
    pub(crate) grace: Duration,
    /// Where the model runs, and what it may use.
    pub(crate) session: SessionOptions,
    /// Load as many weights as fit before the first request.
    pub(crate) preload: bool,
}

/// Hears that requests are answered from now on.
pub(crate) type Announce<'a> = dyn FnMut(&ServeStarted) -> Result<(), StepError> + Send + 'a;

/// Serves a pack until `stop` is requested.
///
/// # Errors
/// An address that cannot be had or is not allowed; a pack that cannot be run; too little memory;
/// whatever `announce` returns.
pub(crate) fn serve(
    pack: &Pack,
    mut options: ServeOptions,
    stop: &CancelToken,
    progress: &dyn Progress,
    announce: &mut Announce<'_>,
) -> Result<(), StepError> {
    let listener = http::listen(options.address, options.allow_remote)?;
    let reserved = facts::request_memory(options.max_body);
    options.session.memory = without(options.session.memory, reserved, &options.session);
    let session = Session::open_cancellable(pack, &options.session, stop)?;
    let longest = session.context_length()?.positions();
    let context = context(options.context, longest)?;
    let device = session.device_name();
    drop(session);
    let local = listener.local_addr().map_err(ServeError::Server)?;
    let started = ServeStarted {
        format_version: ServeStarted::VERSION,
        generator: GENERATOR.to_owned(),
        address: format!("http://{local}"),
        model: options.model.clone(),
        manifest_sha256: pack.manifest_sha256(),
        device,
        context: context as u64,
        queue: options.queue as u64,
        needs_key: options.key.is_some(),
    };
    let shared = Arc::new(Shared::new(
        pack,
        Fixed {
            key: options.key.take(),
            max_body: options.max_body,
            queue: options.queue,
            model: options.model.clone(),
            context,
            is_local: local.ip().is_loopback(),
        },
    ));
    thread::scope(|scope| {
        // whatever becomes of the model, nobody is left waiting
        let closing = CloseOnDrop(&shared);
        let (talking, grace) = (Arc::clone(&shared), options.grace);
        let server = thread::Builder::new()
            .name("http".to_owned())
            .spawn_scoped(scope, move || http::serve(listener, &talking, stop, grace))
            .map_err(ServeError::Server)?;
        let work = Work {
            pack,
            options: &options,
            shared: &shared,
            progress,
            reserved,
        };
        let worked = work.run(&mut || announce(&started));
        drop(closing);
        let served = server.join().unwrap_or_else(|_| {
            let panicked = std::io::Error::other("the thread of the server panicked");
            Err(ServeError::Server(panicked))
        });
        worked.and(served.map_err(StepError::from))
    })
}

/// Closes the queue, also after a panic: the thread that talks HTTP ends by it.
struct CloseOnDrop<'s>(&'s Shared);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.queue.close();
    }
}

/// What the model may use beside requests.
fn without(memory: MemoryLimit, reserved: u64, session: &SessionOptions) -> MemoryLimit {
    let is_cpu = session.device == DeviceChoice::Cpu;
    match memory {
        MemoryLimit::Bytes(bytes) => MemoryLimit::Bytes(bytes.saturating_sub(reserved)),
        MemoryLimit::Available if is_cpu => match available_memory() {
            Some(bytes) => MemoryLimit::Bytes(bytes.saturating_sub(reserved)),
            None => MemoryLimit::Available,
        },
        MemoryLimit::Available | MemoryLimit::Unlimited => memory,
    }
}

/// Positions to reserve.
fn context(wanted: Option<usize>, longest: usize) -> Result<usize, ServeError> {
    match wanted {
        None => Ok(DEFAULT_CONTEXT.min(longest)),
        Some(wanted) if (1..=longest).contains(&wanted) => Ok(wanted),
        Some(wanted) => Err(ServeError::Context { wanted, longest }),
    }
}

/// What the thread of the model needs.
struct Work<'w> {
    pack: &'w Pack,
    options: &'w ServeOptions,
    shared: &'w Shared,
    progress: &'w dyn Progress,
    /// Bytes of the memory budget that requests take.
    reserved: u64,
}

impl Work<'_> {
    /// Answers requests; a session that was cut is followed by another. `ready` is called once the
    /// first model is open.
    fn run(
        &self,
        ready: &mut (dyn FnMut() -> Result<(), StepError> + Send),
    ) -> Result<(), StepError> {
        let mut is_ready = false;
        loop {
            let cut = Arc::new(CancelToken::new());
            let session = Session::open_cancellable(self.pack, &self.options.session, &cut)?;
            let text = session.text()?;
            if let (false, Some(note)) = (is_ready, text.stop_ids().notice()) {
                self.progress.note(&format!("note: {note}"));
            }
            let end = session.install(|| {
                let shared = self.shared;
                let mut worker = Worker::new(&session, &text, shared, self.progress, &cut)?;
                if !is_ready {
                    shared.queue.opening(&cut);
                    let opened = worker.open(self.options.preload);
                    shared.queue.done();
                    opened.map_err(|e| self.with_requests(e))?;
                    ready()?;
                }
                Ok::<_, StepError>(worker.work())
            })?;
            is_ready = true;
            if end == End::Closed || self.shared.queue.is_closed() {
                return Ok(());
            }
        }
    }

    /// A budget that is too small, as the command line has it.
    fn with_requests(&self, error: SessionError) -> SessionError {
        match error {
            SessionError::Run(RunError::Memory { memory, minimum }) => RunError::Memory {
                memory: memory.saturating_add(self.reserved),
                minimum: minimum.saturating_add(self.reserved),
            }
            .into(),
            other => other,
        }
    }
}

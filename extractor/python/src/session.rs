//! Sessions: a model that stays loaded on a thread of its own, and the streams of tokens that come
//! from it.

mod request;
mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use segpack_formats::io::CancelToken;
use segpack_runtime_min::session::SessionOptions;

use crate::error::{exception, parsed, usage};
use crate::interrupt::POLL;
use crate::pack::Pack;
use request::{Event, Request};
use worker::{Reserve, Setup};

/// A model on a thread of its own. Requests are answered one after the other.
#[pyclass(module = "segpack._native", frozen)]
pub(crate) struct Session {
    requests: Mutex<Option<Sender<Request>>>,
    cancel: Arc<Stop>,
    device: String,
    context: usize,
}

/// How the work of a session is stopped in the middle. Once that was requested the session is opened
/// anew, with a token of its own.
#[derive(Default)]
pub(crate) struct Stop(Mutex<Arc<CancelToken>>);

impl Stop {
    pub(crate) fn request(&self) {
        self.current().cancel();
    }

    pub(crate) fn current(&self) -> Arc<CancelToken> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A token that nobody has used.
    pub(crate) fn renew(&self) -> Arc<CancelToken> {
        let fresh = Arc::new(CancelToken::new());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&fresh);
        fresh
    }
}

#[pymethods]
impl Session {
    #[new]
    fn new<'py>(py: Python<'py>, pack: &Pack, settings: &Bound<'py, PyDict>) -> PyResult<Self> {
        let (options, reserve) = self::settings(py, settings)?;
        let (send, requests) = mpsc::channel();
        let (ready, opened) = mpsc::channel();
        let cancel = Arc::new(Stop::default());
        let setup = Setup {
            pack: Arc::clone(&pack.pack),
            options,
            reserve,
            stop: Arc::clone(&cancel),
            requests: Mutex::new(requests),
        };
        let named = thread::Builder::new().name("segpack session".to_owned());
        let spawned = named.spawn(move || worker::work(&setup, ready));
        spawned.map_err(|e| PyRuntimeError::new_err(format!("cannot start a thread: {e}")))?;
        let opened = Mutex::new(opened);
        let (device, context) = match receive(py, &opened, &cancel)? {
            Some(Ok(opened)) => opened,
            Some(Err(e)) => return Err(exception(py, &e, None)),
            None => return Err(died()),
        };
        Ok(Self {
            requests: Mutex::new(Some(send)),
            cancel,
            device,
            context,
        })
    }

    /// What reports call the device.
    #[getter]
    fn device(&self) -> &str {
        &self.device
    }

    /// Positions that the model was made for.
    #[getter]
    fn context_length(&self) -> usize {
        self.context
    }

    /// Begins to continue a prompt.
    fn stream(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        settings: &Bound<'_, PyDict>,
    ) -> PyResult<Stream> {
        let prompt = request::prompt(py, prompt, settings)?;
        let settings = request::settings(settings)?;
        let (events, received) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let request = Request {
            prompt,
            settings,
            events,
            stop: Arc::clone(&stop),
        };
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(requests) = requests.as_ref() else {
            return Err(usage(py, "the session is closed", None));
        };
        requests.send(request).map_err(|_| died())?;
        Ok(Stream {
            events: Mutex::new(received),
            stop,
            cancel: Arc::clone(&self.cancel),
        })
    }

    /// Ends what is under way and gives the memory back, soon.
    fn close(&self) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.take().is_some() {
            self.cancel.request();
        }
    }
}

/// A text that is being generated.
#[pyclass(module = "segpack._native", frozen)]
pub(crate) struct Stream {
    events: Mutex<Receiver<Event>>,
    stop: Arc<AtomicBool>,
    cancel: Arc<Stop>,
}

#[pymethods]
impl Stream {
    /// What comes next: a token, or the summary, after which nothing comes.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<(&'static str, Bound<'py, PyAny>)> {
        let event = match receive(py, &self.events, &self.cancel) {
            Ok(event) => event,
            Err(raised) => {
                self.stop.store(true, Ordering::Relaxed);
                return Err(raised);
            }
        };
        match event {
            Some(Event::Token(token)) => Ok(("token", parsed(py, &token)?)),
            Some(Event::Done(summary)) => Ok(("summary", parsed(py, &*summary)?)),
            Some(Event::Failed(e)) => Err(exception(py, &e, None)),
            None => Err(died()),
        }
    }

    /// Ends the text after the token that is under way.
    fn close(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Waits for a message; `None` where whoever sends them is gone. Signals are looked for meanwhile: what
/// their handlers raise stops the session's work.
fn receive<T: Send>(
    py: Python<'_>,
    messages: &Mutex<Receiver<T>>,
    cancel: &Stop,
) -> PyResult<Option<T>> {
    loop {
        let received = py.detach(|| {
            let messages = messages.lock().unwrap_or_else(PoisonError::into_inner);
            messages.recv_timeout(POLL)
        });
        match received {
            Ok(message) => return Ok(Some(message)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Err(raised) = py.check_signals() {
            cancel.request();
            return Err(raised);
        }
    }
}

/// The thread of a session ended while it was needed.
fn died() -> PyErr {
    PyRuntimeError::new_err("the thread of the session died; this is a bug in segpack")
}

/// The options of a session, from the keywords of Python's.
fn settings<'py>(
    py: Python<'py>,
    given: &Bound<'py, PyDict>,
) -> PyResult<(SessionOptions, Reserve)> {
    let keywords = request::Keywords(given);
    let mut options = SessionOptions::default();
    options.device = keywords.choice(py, "device", str::parse)?;
    options.device_memory = keywords.get("device_memory")?;
    options.memory = request::memory(py, &keywords)?;
    options.expert_cache = request::expert_cache(&keywords)?;
    options.compute = keywords.choice(py, "compute", request::compute)?;
    options.check = keywords.choice(py, "check", request::checksums)?;
    let threads: Option<usize> = keywords.get("threads")?;
    if threads == Some(0) {
        return Err(usage(py, "threads is 0: at least one is needed", None));
    }
    options.threads = Some(threads.unwrap_or_else(segpack::work::default_jobs));
    let reserve = Reserve {
        positions: keywords.get("positions")?.unwrap_or(0),
        longest_prompt: keywords.get("longest_prompt")?.unwrap_or(0),
    };
    Ok((options, reserve))
}

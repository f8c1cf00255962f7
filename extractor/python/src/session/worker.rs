//! The thread of a session. It owns the model, so that weights stay loaded from one prompt to the next.

use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use segpack::steps::StepError;
use segpack::steps::run::summarize;
use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_runtime_min::processing::media::MediaOptions;
use segpack_runtime_min::processing::{TextFrontend, TokenizedPrompt};
use segpack_runtime_min::session::{
    Generation, Hooks, Model, Reservation, Session, SessionError, SessionOptions,
};

use super::Stop;
use super::request::{Event, Request};

/// What a session is made of.
pub(super) struct Setup {
    pub(super) pack: Arc<Pack>,
    pub(super) options: SessionOptions,
    pub(super) reserve: Reserve,
    pub(super) stop: Arc<Stop>,
    /// Locked by the thread of the session alone.
    pub(super) requests: Mutex<Receiver<Request>>,
}

/// What is reserved at least, so that prompts that grow find the model still open.
#[derive(Clone, Copy)]
pub(super) struct Reserve {
    pub(super) positions: usize,
    pub(super) longest_prompt: usize,
}

/// The device and the context length, once the session is open.
type Ready = Sender<Result<(String, usize), Box<StepError>>>;

/// A request that waits, with its prompt as token ids where they are known.
struct Pending {
    request: Request,
    prompt: Option<TokenizedPrompt>,
}

/// A request with its prompt as token ids.
struct Tokenized {
    request: Request,
    prompt: TokenizedPrompt,
}

/// Answers requests until nobody can ask any more.
pub(super) fn work(setup: &Setup, ready: Ready) {
    let mut ready = Some(ready);
    let mut pending = None;
    loop {
        let cancel = match &ready {
            Some(_) => setup.stop.current(),
            None => setup.stop.renew(),
        };
        let served = match open(setup, &cancel) {
            Ok((session, text)) => {
                if !ready
                    .take()
                    .is_none_or(|ready| tell_ready(&session, &ready))
                {
                    return;
                }
                serve(setup, &session, &text, (pending.take(), &*cancel))
            }
            Err(e) => match ready.take() {
                Some(ready) => {
                    // who waits for it may have been interrupted
                    let _ = ready.send(Err(Box::new(StepError::from(e))));
                    return;
                }
                // after an interruption; what was possible once may be again
                None => fail_next(setup, pending.take(), e),
            },
        };
        match served {
            Some(next) => pending = next,
            None => return,
        }
    }
}

/// Says that the session is open, or why its model cannot be run. False where the session is over.
fn tell_ready(session: &Session<'_>, ready: &Ready) -> bool {
    let context = session.context_length().map_err(StepError::from);
    let opened = context.map(|context| (session.device_name(), context.positions()));
    let is_open = opened.is_ok();
    ready.send(opened.map_err(Box::new)).is_ok() && is_open
}

/// Fails the request that waits, or the next that comes; `None` where nobody can ask any more.
fn fail_next(
    setup: &Setup,
    pending: Option<Pending>,
    error: SessionError,
) -> Option<Option<Pending>> {
    let request = pending.map(|pending| pending.request);
    request.or_else(|| setup.next())?.fail(error);
    Some(None)
}

fn open<'s>(
    setup: &'s Setup,
    cancel: &'s CancelToken,
) -> Result<(Session<'s>, TextFrontend<'s>), SessionError> {
    let session = Session::open_cancellable(&setup.pack, &setup.options, cancel)?;
    let text = session.text()?;
    Ok((session, text))
}

/// Answers requests with one session until it is stopped; returns the request that is left then, and
/// `None` where nobody can ask any more.
fn serve(
    setup: &Setup,
    session: &Session<'_>,
    text: &TextFrontend<'_>,
    (mut pending, cancel): (Option<Pending>, &CancelToken),
) -> Option<Option<Pending>> {
    while !cancel.is_cancelled() {
        let next = match pending.take() {
            Some(next) => next,
            None => setup.next()?.into(),
        };
        if cancel.is_cancelled() {
            return Some(Some(next)); // it came after the interruption
        }
        let Some(tokenized) = tokenize(session, text, next, cancel) else {
            continue;
        };
        pending = match tokenized.prompt.media.is_empty() {
            true => answer(setup, session, text, (tokenized, cancel))?,
            false => {
                answer_media(session, text, tokenized);
                None
            }
        };
    }
    Some(pending)
}

impl From<Request> for Pending {
    fn from(request: Request) -> Self {
        Self {
            request,
            prompt: None,
        }
    }
}

impl From<Tokenized> for Pending {
    fn from(Tokenized { request, prompt }: Tokenized) -> Self {
        Self {
            request,
            prompt: Some(prompt),
        }
    }
}

impl Setup {
    /// The next request; `None` where nobody can ask any more.
    fn next(&self) -> Option<Request> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.recv().ok()
    }

    /// What a model for this prompt reserves.
    fn reservation(&self, session: &Session<'_>, wanted: &Tokenized) -> Reservation {
        let Tokenized { request, prompt } = wanted;
        let context = session.context_length().map_or(0, |c| c.positions());
        let positions = prompt
            .ids
            .len()
            .saturating_add(request.settings.max_new_tokens);
        Reservation {
            // a prompt beyond the model's context is run all the same
            positions: positions
                .max(self.reserve.positions)
                .min(context.max(prompt.ids.len())),
            longest_pass: prompt.ids.len().max(self.reserve.longest_prompt),
        }
    }

    /// Whether a model that is open has room for another prompt.
    fn has_room(&self, session: &Session<'_>, open: Reservation, next: &Tokenized) -> bool {
        let wanted = self.reservation(session, next);
        next.prompt.media.is_empty()
            && wanted.positions <= open.positions
            && wanted.longest_pass <= open.longest_pass
    }
}

/// The request with its token ids; `None` where it failed, which it was told.
fn tokenize(
    session: &Session<'_>,
    text: &TextFrontend<'_>,
    Pending { request, prompt }: Pending,
    cancel: &CancelToken,
) -> Option<Tokenized> {
    if request.is_stopped() {
        return None; // nobody wants it any more
    }
    if let Some(prompt) = prompt {
        return Some(Tokenized { request, prompt });
    }
    let media = MediaOptions::default();
    let prompt = session.install(|| text.tokenize_with(&request.prompt, &media, cancel));
    match prompt {
        Ok(prompt) => Some(Tokenized { request, prompt }),
        Err(e) => {
            request.fail(SessionError::from(e));
            None
        }
    }
}

/// Answers a request, and those that follow as long as the model that it opens has room for them. Returns
/// the first that needs another model or another session; `None` where nobody can ask any more.
fn answer(
    setup: &Setup,
    session: &Session<'_>,
    text: &TextFrontend<'_>,
    (first, cancel): (Tokenized, &CancelToken),
) -> Option<Option<Pending>> {
    let reservation = setup.reservation(session, &first);
    // left there where the model cannot be opened
    let first = Mutex::new(Some(first));
    let served = session.with_model(reservation, |model| {
        let mut tokenized = take(&first);
        loop {
            if let Some(tokenized) = tokenized.take() {
                generate(session, text, model, tokenized);
            }
            if cancel.is_cancelled() {
                return Ok(Some(None));
            }
            let Some(request) = setup.next() else {
                return Ok::<_, SessionError>(None);
            };
            if cancel.is_cancelled() {
                return Ok(Some(Some(request.into()))); // it came after the interruption
            }
            tokenized = tokenize(session, text, request.into(), cancel);
            if let Some(next) =
                tokenized.take_if(|next| !setup.has_room(session, reservation, next))
            {
                return Ok(Some(Some(next.into())));
            }
        }
    });
    match served {
        Ok(next) => next,
        Err(e) => {
            if let Some(Tokenized { request, .. }) = take(&first) {
                request.fail(e);
            }
            Some(None)
        }
    }
}

fn take<T>(place: &Mutex<Option<T>>) -> Option<T> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Answers a request with an open model, which forgets the tokens of earlier ones and keeps weights.
fn generate(
    session: &Session<'_>,
    text: &TextFrontend<'_>,
    model: &mut Model<'_>,
    tokenized: Tokenized,
) {
    let Tokenized { request, prompt } = tokenized;
    model.reset();
    let generated = generate_with(text, model, &request, &prompt);
    tell(session, &request, prompt, generated);
}

fn generate_with(
    text: &TextFrontend<'_>,
    model: &mut Model<'_>,
    request: &Request,
    prompt: &TokenizedPrompt,
) -> Result<Generation, SessionError> {
    if request.settings.preload {
        model.preload()?;
    }
    let mut sink = request.sink();
    model.generate(text, &prompt.ids, &request.settings, Hooks::new(&mut sink))
}

/// Answers a request with audio, images or videos, whose encoders take the memory first.
fn answer_media(session: &Session<'_>, text: &TextFrontend<'_>, tokenized: Tokenized) {
    let Tokenized { request, prompt } = tokenized;
    let mut sink = request.sink();
    let hooks = Hooks::new(&mut sink);
    let (ids, media) = (&prompt.ids, &prompt.media);
    let generated = session.generate_media(text, ids, media, &request.settings, hooks);
    tell(session, &request, prompt, generated);
}

fn tell(
    session: &Session<'_>,
    request: &Request,
    prompt: TokenizedPrompt,
    generated: Result<Generation, SessionError>,
) {
    match generated {
        Ok(generation) => {
            let summary = summarize(session, prompt.ids, generation);
            request.end(Event::Done(Box::new(summary)));
        }
        Err(e) => request.fail(e),
    }
}

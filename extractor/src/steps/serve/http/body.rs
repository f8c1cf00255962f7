//! Bodies: of requests, read within limits, and of answers.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::CONTENT_LENGTH;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use crate::steps::serve::api::{Answer, ApiError};
use crate::steps::serve::event::Event;
use crate::steps::serve::facts::Shared;
use crate::steps::serve::queue::Ticket;
use crate::steps::serve::room::Held;

/// How long a body may take to come.
const BODY_TIME: Duration = Duration::from_secs(60);

/// The body of a request, and the room that it takes.
///
/// # Errors
/// 413 where it is larger than is taken, 503 where others take the room, 408 where it does not come.
pub(super) async fn read(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
) -> Result<(Vec<u8>, Held), ApiError> {
    let announced = request.headers().get(CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let is_too_large = announced.is_some_and(|length| length > shared.max_body);
    let mut body = request.into_body();
    let read = async {
        let read = match is_too_large {
            true => Err(too_large(shared)),
            false => collect(shared, &mut body).await,
        };
        if read.is_err() {
            discard(&mut body, shared.max_body).await;
        }
        read
    };
    timeout(BODY_TIME, read)
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// Reads on for a while without keeping it: clients that are still sending would not see the answer.
async fn discard(body: &mut Incoming, max_body: u64) {
    let mut left = max_body.saturating_mul(4);
    while let (true, Some(Ok(frame))) = (left > 0, body.frame().await) {
        let length = frame.data_ref().map_or(0, Bytes::len);
        left = left.saturating_sub(length as u64);
    }
}

fn late() -> ApiError {
    let seconds = BODY_TIME.as_secs();
    let message = format!("the body did not come within {seconds} seconds");
    ApiError::coded(408, "request_timeout", message)
}

fn no_room(shared: &Shared) -> ApiError {
    let message = "other requests take all the memory that there is for requests";
    ApiError::busy(message, shared.metrics.wait(1))
}

async fn collect(shared: &Arc<Shared>, body: &mut Incoming) -> Result<(Vec<u8>, Held), ApiError> {
    let held = shared.room.hold(0);
    let mut held = held.ok_or_else(|| no_room(shared))?;
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let broken = |e: hyper::Error| ApiError::request(format!("the body broke off: {e}"));
        let Ok(data) = frame.map_err(broken)?.into_data() else {
            continue; // trailers
        };
        if (bytes.len() + data.len()) as u64 > shared.max_body {
            return Err(too_large(shared));
        }
        if !held.grow(data.len() as u64) {
            return Err(no_room(shared));
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, held))
}

fn too_large(shared: &Shared) -> ApiError {
    let message = format!("the body is larger than {} bytes", shared.max_body);
    ApiError::coded(413, "request_too_large", message)
}

/// The body of an answer.
pub(super) enum Reply {
    /// All of it.
    Whole(Option<Bytes>),
    /// Server-sent events, as they come.
    Stream(Box<EventStream>),
}

/// The events of an answer.
pub(super) struct EventStream {
    pub(super) answer: Answer,
    pub(super) events: UnboundedReceiver<Event>,
    pub(super) shared: Arc<Shared>,
    /// The place of the request; dropped with the body, which a client that leaves causes.
    pub(super) ticket: Option<Ticket>,
    pub(super) is_over: bool,
}

impl EventStream {
    /// The text of an event, empty where there is nothing to send for it.
    fn text(&mut self, event: Event) -> String {
        let mut text = String::new();
        let (error, is_done) = match &event {
            Event::Failed(error) => (Some(error.body()), false),
            Event::Done => (None, true),
            Event::Begun | Event::Prompt { .. } | Event::Token { .. } | Event::End { .. } => {
                (None, false)
            }
        };
        self.is_over = is_done || error.is_some();
        for chunk in self.answer.take(event).iter().chain(&error) {
            text += &event_of(chunk);
        }
        if is_done {
            text += "data: [DONE]\n\n";
        }
        text
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if !self.is_over {
            self.shared.metrics.abandoned();
        }
        self.ticket = None;
    }
}

/// A server-sent event.
fn event_of(chunk: &Value) -> String {
    format!("data: {chunk}\n\n")
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let stream = match &mut *self {
            Self::Whole(bytes) => return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Stream(stream) => stream,
        };
        while !stream.is_over {
            let Some(event) = std::task::ready!(stream.events.poll_recv(context)) else {
                stream.is_over = true; // the model is gone
                break;
            };
            let text = stream.text(event);
            if !text.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(text.into()))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream(stream) => stream.is_over,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                let length = bytes.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(length as u64)
            }
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

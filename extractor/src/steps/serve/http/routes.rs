//! Which request is answered with what.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::body::{EventStream, Reply, read};
use super::reply;
use crate::steps::serve::api::{Answer, ApiError, Ask, Endpoint, parse};
use crate::steps::serve::event::Event;
use crate::steps::serve::facts::Shared;
use crate::steps::serve::queue::Refusal;

/// The paths that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route<'p> {
    Health,
    Metrics,
    Models,
    /// One model, by its name.
    Model(&'p str),
    Generate(Endpoint),
}

impl<'p> Route<'p> {
    fn of(path: &'p str) -> Option<Self> {
        match path {
            "/health" => Some(Self::Health),
            "/metrics" => Some(Self::Metrics),
            "/v1/models" => Some(Self::Models),
            "/v1/completions" => Some(Self::Generate(Endpoint::Completions)),
            "/v1/chat/completions" => Some(Self::Generate(Endpoint::Chat)),
            _ => path.strip_prefix("/v1/models/").map(Self::Model),
        }
    }

    fn method(self) -> (Method, &'static str) {
        match self {
            Self::Health | Self::Metrics | Self::Models | Self::Model(_) => (Method::GET, "GET"),
            Self::Generate(_) => (Method::POST, "POST"),
        }
    }

    /// What metrics call it.
    fn name(self) -> &'static str {
        match self {
            Self::Health => "/health",
            Self::Metrics => "/metrics",
            Self::Models | Self::Model(_) => "/v1/models",
            Self::Generate(Endpoint::Completions) => "/v1/completions",
            Self::Generate(Endpoint::Chat) => "/v1/chat/completions",
        }
    }
}

/// Answers a request, whatever it is.
pub(super) async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Reply> {
    let path = request.uri().path().to_owned();
    let route = Route::of(&path);
    let response = match respond(shared, request, route).await {
        Ok(response) => response,
        Err(error) => reply::error(&error),
    };
    let name = route.map_or("other", Route::name);
    shared.metrics.responded(name, response.status().as_u16());
    response
}

async fn respond(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    route: Option<Route<'_>>,
) -> Result<Response<Reply>, ApiError> {
    check_host(shared, &request)?;
    if route != Some(Route::Health) {
        check_key(shared, &request)?;
    }
    let Some(route) = route else {
        let path = request.uri().path();
        return Err(ApiError::coded(
            404,
            "not_found",
            format!("there is no {path}"),
        ));
    };
    let (method, name) = route.method();
    if *request.method() != method {
        return Ok(reply::wrong_method(name));
    }
    match route {
        Route::Health if shared.queue.is_closed() => Err(ApiError::stopping()),
        Route::Health => Ok(reply::json(200, &json!({"status": "ok"}))),
        Route::Metrics => Ok(metrics(shared)),
        Route::Models => {
            let list = json!({"object": "list", "data": [model(shared)]});
            Ok(reply::json(200, &list))
        }
        Route::Model(name) => {
            check_model(shared, name)?;
            Ok(reply::json(200, &model(shared)))
        }
        Route::Generate(endpoint) => generate(shared, request, endpoint).await,
    }
}

/// A web page that a browser of this machine shows could reach a server of this machine under a name
/// of its own.
fn check_host(shared: &Shared, request: &Request<Incoming>) -> Result<(), ApiError> {
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    match host {
        _ if !shared.is_local => Ok(()),
        Some(host) if is_of_this_machine(host) => Ok(()),
        _ => {
            let message = "the Host of the request is not this machine's own: localhost, or a \
                           loopback address";
            Err(ApiError::coded(403, "wrong_host", message))
        }
    }
}

/// `localhost`, `127.0.0.1` or `[::1]`, with or without a port.
fn is_of_this_machine(host: &str) -> bool {
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = without_port.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse::<std::net::IpAddr>();
    bare.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

fn check_key(shared: &Shared, request: &Request<Incoming>) -> Result<(), ApiError> {
    let Some(key) = &shared.key else {
        return Ok(());
    };
    let shown = request
        .headers()
        .get(AUTHORIZATION)
        .map(|value| value.as_bytes());
    let shown = shown.and_then(|value| value.split_at_checked("Bearer ".len()));
    match shown {
        Some((scheme, shown)) if scheme.eq_ignore_ascii_case(b"Bearer ") && key.is(shown) => Ok(()),
        _ => {
            let message = "the request does not show this server's key: wanted it in the header \
                           Authorization, as Bearer KEY";
            Err(ApiError::coded(401, "invalid_api_key", message))
        }
    }
}

fn check_model(shared: &Shared, name: &str) -> Result<(), ApiError> {
    if name == shared.model {
        return Ok(());
    }
    let message = format!(
        "there is no model {name:?} here; this server has {:?}",
        shared.model
    );
    Err(ApiError::coded(404, "model_not_found", message).of_param("model"))
}

fn metrics(shared: &Shared) -> Response<Reply> {
    let page = shared
        .metrics
        .text(shared.queue.lengths(), shared.room.held());
    reply::text(200, "text/plain; version=0.0.4; charset=utf-8", page)
}

fn model(shared: &Shared) -> Value {
    json!({
        "id": shared.model,
        "object": "model",
        "created": shared.began(),
        "owned_by": "segpack",
        "max_model_len": shared.context,
    })
}

async fn generate(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    endpoint: Endpoint,
) -> Result<Response<Reply>, ApiError> {
    check_type(&request)?;
    let (body, held) = read(shared, request).await?;
    let ask = parse(endpoint, &body)?;
    drop(body);
    if let Some(name) = &ask.model {
        check_model(shared, name)?;
    }
    let kind = match endpoint {
        Endpoint::Completions => "cmpl",
        Endpoint::Chat => "chatcmpl",
    };
    let answer = Answer::new(shared.origin(kind), &ask);
    let Ask {
        question, stream, ..
    } = ask;
    let (send, events) = unbounded_channel();
    let ticket = shared.queue.submit(question, send, held);
    let ticket = ticket.map_err(|refusal| refused(shared, refusal))?;
    let mut waiting = EventStream {
        answer,
        events,
        shared: Arc::clone(shared),
        ticket: Some(ticket),
        is_over: false,
    };
    // until the model begins, an error has a status of its own
    let first = next(&mut waiting.events).await;
    match first {
        Event::Failed(error) => {
            waiting.is_over = true;
            Err(error)
        }
        Event::Begun if stream => Ok(reply::stream(waiting)),
        other => whole(waiting, other).await,
    }
}

/// Web pages can send other types without asking whether they may.
fn check_type(request: &Request<Incoming>) -> Result<(), ApiError> {
    let kind = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    match kind {
        Some(kind) if kind.eq_ignore_ascii_case("application/json") => Ok(()),
        _ => {
            let message = "the Content-Type of the request is not application/json";
            Err(ApiError::coded(415, "unsupported_media_type", message))
        }
    }
}

fn refused(shared: &Shared, refusal: Refusal) -> ApiError {
    let (waiting, running) = shared.queue.lengths();
    match refusal {
        Refusal::Closed => ApiError::stopping(),
        Refusal::Full => {
            let message = format!("{waiting} requests wait already, as many as may");
            ApiError::busy(message, shared.metrics.wait(waiting + running))
        }
    }
}

/// Collects an answer.
async fn whole(mut waiting: EventStream, first: Event) -> Result<Response<Reply>, ApiError> {
    let mut event = first;
    loop {
        match event {
            Event::Failed(error) => {
                waiting.is_over = true;
                return Err(error);
            }
            Event::Done => {
                waiting.is_over = true;
                return Ok(reply::json(200, &waiting.answer.whole()));
            }
            part => {
                waiting.answer.take(part);
            }
        }
        event = next(&mut waiting.events).await;
    }
}

/// The next event; a model that is gone has failed.
async fn next(events: &mut UnboundedReceiver<Event>) -> Event {
    let gone = || Event::Failed(ApiError::failed());
    events.recv().await.unwrap_or_else(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_its_own() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8000",
            "[::1]:8000",
            "127.9.9.9",
        ] {
            assert!(is_of_this_machine(host), "{host}");
        }
        for host in [
            "example.org",
            "example.org:8000",
            "localhost.example.org",
            "10.0.0.1",
            "",
        ] {
            assert!(!is_of_this_machine(host), "{host}");
        }
    }

    #[test]
    fn paths_lead_where_they_say() {
        assert_eq!(Route::of("/v1/models/a/b"), Some(Route::Model("a/b")));
        assert_eq!(
            Route::of("/v1/chat/completions"),
            Some(Route::Generate(Endpoint::Chat))
        );
        assert_eq!(Route::of("/v1/completions/"), None);
    }
}

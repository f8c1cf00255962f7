//! Responses.

use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::Value;

use super::body::{EventStream, Reply};
use crate::steps::serve::api::ApiError;

/// A JSON document.
pub(super) fn json(status: u16, document: &Value) -> Response<Reply> {
    text(status, "application/json", document.to_string())
}

/// A text of this type.
pub(super) fn text(status: u16, kind: &'static str, text: String) -> Response<Reply> {
    let mut response = Response::new(Reply::Whole(Some(text.into())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    set(&mut response, CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// An error, with what goes along with its status.
pub(super) fn error(error: &ApiError) -> Response<Reply> {
    let mut response = json(error.status, &error.body());
    if let Some(seconds) = error.retry_after {
        set(&mut response, RETRY_AFTER, HeaderValue::from(seconds));
    }
    if error.status == 401 {
        let scheme = HeaderValue::from_static("Bearer");
        set(&mut response, hyper::header::WWW_AUTHENTICATE, scheme);
    }
    response
}

/// The wrong method of a path that has this one.
pub(super) fn wrong_method(allowed: &'static str) -> Response<Reply> {
    let message = format!("this path takes {allowed}");
    let mut response = error(&ApiError::coded(405, "method_not_allowed", message));
    set(&mut response, ALLOW, HeaderValue::from_static(allowed));
    response
}

/// Server-sent events.
pub(super) fn stream(events: EventStream) -> Response<Reply> {
    let mut response = Response::new(Reply::Stream(Box::new(events)));
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    set(&mut response, CONTENT_TYPE, kind);
    set(
        &mut response,
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache"),
    );
    response
}

fn set(response: &mut Response<Reply>, name: HeaderName, value: HeaderValue) {
    response.headers_mut().insert(name, value);
}

//! What requests ask for, and how answers are written, apart from how they travel.

mod answer;
mod error;
mod fields;
mod logprobs;
mod messages;
mod request;
mod unsupported;

pub(super) use answer::{Answer, Origin};
pub(super) use error::ApiError;
pub(super) use request::{Ask, Endpoint, Question, parse};

/// Most tokens that a request may have listed beside each chosen one.
pub(super) const MAX_LOGPROBS: u64 = 20;

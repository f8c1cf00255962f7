//! Errors as OpenAI's interface has them.

use serde_json::{Value, json};

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    /// The HTTP status.
    pub(crate) status: u16,
    message: String,
    /// The key of the request that is wrong.
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which another attempt makes sense.
    pub(crate) retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: u16, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// The request as a whole cannot be understood.
    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    /// A key of the request has a value that is not taken.
    pub(crate) fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::new(400, message)
        }
    }

    /// A status of its own, with the word that clients tell it by.
    pub(crate) fn coded(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code: Some(code),
            ..Self::new(status, message)
        }
    }

    /// The same with the key that is wrong.
    #[must_use]
    pub(crate) fn of_param(self, param: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..self
        }
    }

    /// There is no room for this request now; after so many seconds there may be.
    pub(crate) fn busy(message: impl Into<String>, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds),
            ..Self::coded(503, "server_busy", message)
        }
    }

    /// The server ends.
    pub(crate) fn stopping() -> Self {
        Self::coded(
            503,
            "server_stopping",
            "the server is stopping; the request was not answered",
        )
    }

    /// The model failed; why is told where the server runs.
    pub(crate) fn failed() -> Self {
        Self::coded(
            500,
            "model_failed",
            "the model could not answer; the server's own messages say why",
        )
    }

    /// The word for whose fault it is.
    fn kind(&self) -> &'static str {
        match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            400..=499 => "invalid_request_error",
            503 => "overloaded_error",
            _ => "server_error",
        }
    }

    /// The body of the answer.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        }})
    }
}

//! Why a server cannot be judged.

use crate::source::RemoteError;

/// Why what a server generates cannot be compared with the model in a pack.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// It does not answer, or refuses.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// It serves several models, or none that it names.
    #[error("{url}: serves {}; which one is meant?", listed(names))]
    WhichModel {
        /// The address that was asked.
        url: String,
        /// What it serves.
        names: Vec<String>,
    },
    /// An answer is not what the interface's documentation says.
    #[error("{url}: the answer to prompt {prompt} is not what this kind of server documents")]
    NotAsDocumented {
        /// The address.
        url: String,
        /// Number of the prompt.
        prompt: usize,
        /// What was seen and wanted.
        source: serde_json::Error,
    },
    /// An answer tells no log-probabilities.
    #[error(
        "{url}: the answer to prompt {prompt} has no log-probabilities; they are what is compared"
    )]
    NoLogProbabilities {
        /// The address.
        url: String,
        /// Number of the prompt.
        prompt: usize,
    },
    /// The server chose a token that its words do not identify.
    #[error("{url}: prompt {prompt}, step {step}: the server chose {text:?}, which {why}")]
    Unidentified {
        /// The address.
        url: String,
        /// Number of the prompt.
        prompt: usize,
        /// Number of the step.
        step: usize,
        /// How the server writes it.
        text: String,
        /// Whether it is no token, or could be several.
        why: &'static str,
    },
    /// An answer does not fit what was asked for, or contradicts itself.
    #[error("{url}: prompt {prompt}: {what}")]
    Answer {
        /// The address.
        url: String,
        /// Number of the prompt.
        prompt: usize,
        /// What was seen and what was wanted.
        what: String,
    },
    /// A prompt is no text of this model.
    #[error("prompt {prompt}: {what}")]
    Prompt {
        /// Its number.
        prompt: usize,
        /// What is wrong with it.
        what: String,
    },
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "no model that it names".to_owned(),
        names => names.join(", "),
    }
}

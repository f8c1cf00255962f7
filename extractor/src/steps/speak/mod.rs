//! `speak`: a given text becomes speech, without the thinker; and the speech of `run`.

mod error;
mod voice;

use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::documents::SpeakSummary;
use segpack_manifests::families::SpeechFacts;
use segpack_runtime_min::processing::{MediaFeatures, Prompt, TextFrontend};
use segpack_runtime_min::session::{
    AcceptedStates, Session, SessionError, SessionOptions, SpeechScript,
};

use super::StepError;
pub use error::SpeakError;
pub(crate) use voice::{Voice, VoiceOptions};

/// What is spoken.
#[derive(Debug, Clone)]
pub(crate) enum SpokenText {
    /// A text, as the answer to what a user said.
    Text {
        /// The answer.
        text: String,
        /// What the user said.
        prompt: String,
    },
    /// A prompt in ChatML and the answer's tokens, the last of which is not spoken.
    Ids {
        /// The prompt.
        prompt: Vec<u32>,
        /// The answer.
        answer: Vec<u32>,
    },
}

/// Speaks a text. Of the thinker nothing but the embedding rows of its tokens is read.
///
/// # Errors
/// A pack that does not speak or is damaged; a text that is empty; too little memory; a file that
/// cannot be written.
pub(crate) fn speak(
    pack: &Pack,
    spoken: &SpokenText,
    session: &SessionOptions,
    voice: &VoiceOptions,
    stop: &CancelToken,
) -> Result<SpeakSummary, StepError> {
    let session = Session::open_cancellable(pack, session, stop)?;
    let facts = session.speech_facts()?;
    let (prompt, answer) = ids(&session, &facts, spoken)?;
    // what cannot be written is better found before the work than after it
    let voice = Voice::create(&session, voice)?;
    voice.speak(
        &session,
        SpeechScript {
            prompt: &prompt,
            answer: &answer,
            media: &MediaFeatures::default(),
            states: &AcceptedStates::default(),
        },
    )
}

/// One turn of the user and the answer, in ChatML: speech goes by the ids of the configuration, not
/// by a template.
fn ids(
    session: &Session<'_>,
    facts: &SpeechFacts,
    spoken: &SpokenText,
) -> Result<(Vec<u32>, Vec<u32>), StepError> {
    let (text, prompt) = match spoken {
        SpokenText::Ids { prompt, answer } => return Ok((prompt.clone(), answer.clone())),
        SpokenText::Text { text, prompt } => (text, prompt),
    };
    let frontend = session.text()?;
    let tokens = &facts.tokens;
    let line_end = tokenized(&frontend, "\n")?;
    if line_end.len() != 1 {
        let seen = line_end.len();
        return Err(SpeakError::LineEnd { seen }.into());
    }
    let mut ids = vec![tokens.im_start, tokens.user];
    ids.extend(tokenized(&frontend, &format!("\n{prompt}"))?);
    ids.push(tokens.im_end);
    ids.extend(&line_end);
    ids.extend([tokens.im_start, tokens.assistant]);
    ids.extend(&line_end);
    let mut answer = match text.is_empty() {
        true => Vec::new(),
        false => tokenized(&frontend, text)?,
    };
    answer.push(tokens.im_end);
    Ok((ids, answer))
}

fn tokenized(frontend: &TextFrontend<'_>, text: &str) -> Result<Vec<u32>, StepError> {
    let prompt = Prompt::Text(text.to_owned());
    let tokenized = frontend.tokenize(&prompt).map_err(SessionError::from)?;
    Ok(tokenized.ids)
}

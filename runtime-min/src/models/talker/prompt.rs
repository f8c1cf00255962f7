//! What the talker's prompt is made of: turns of the user, nine rows before the first code, and the
//! text that is spoken meanwhile.

use segpack_manifests::families::{MediaFacts, SpeechFacts};

use crate::error::SpeechError;

/// Rows between the turns of the user and the first code.
pub(crate) const ASSISTANT_ROWS: usize = 9;

/// What a row of the talker's prompt comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// The word embedding of a token, through the text projection.
    Word(u32),
    /// The thinker's state of the token of this number in the prompt, through the hidden projection.
    State(usize),
}

/// States of the thinker that feed the talker: those of media, after the layer that the
/// configuration names.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct AcceptedStates {
    /// Numbers of the tokens in the prompt, ascending.
    pub tokens: Vec<usize>,
    /// `[tokens, thinker hidden]`.
    pub rows: Vec<f32>,
}

/// A prompt of the thinker and its answer as the talker sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TalkerScript {
    /// Of every row of the turns of the user.
    pub user: Vec<Row>,
    /// The ids that positions go by: those of the user's turns, then nine times the padding.
    pub ids: Vec<u32>,
    /// The tokens from the model's own turn on: its start, its role, a line end, the spoken text. The
    /// last one that was generated has no state and is not among them.
    pub spoken: Vec<u32>,
    /// The entry of the text after its first token that becomes the end marker, and all after it
    /// padding, where the text is that long.
    pub ends_at: usize,
}

impl TalkerScript {
    /// Of a prompt in ChatML and the tokens that the thinker generated, with the one that ended them.
    ///
    /// # Errors
    /// What upstream crashes over: no turn of the user or the assistant, an answer without text.
    pub fn of(
        facts: &SpeechFacts,
        media: Option<&MediaFacts>,
        prompt: &[u32],
        answer: &[u32],
    ) -> Result<Self, SpeechError> {
        let tokens = &facts.tokens;
        let is_medium = |id: u32| media.is_some_and(|media| media.tokens.is_placeholder(id));
        // turns: from a start to the next; the token behind it is the role
        let starts: Vec<usize> = (0..prompt.len())
            .filter(|at| prompt[*at] == tokens.im_start)
            .collect();
        let ends = starts.iter().skip(1).copied().chain([prompt.len()]);
        let (mut user, mut ids, mut assistant) = (Vec::new(), Vec::new(), None);
        for (start, end) in starts.iter().copied().zip(ends) {
            let role = prompt.get(start + 1).copied();
            if role == Some(tokens.user) {
                for (at, &id) in prompt.iter().enumerate().take(end).skip(start) {
                    ids.push(id);
                    user.push(if is_medium(id) {
                        Row::State(at)
                    } else {
                        Row::Word(id)
                    });
                }
            } else if role == Some(tokens.assistant) {
                assistant = Some(start);
            }
        }
        let assistant = assistant.ok_or(SpeechError::NoAssistantTurn)?;
        if user.is_empty() {
            return Err(SpeechError::NoUserTurn);
        }
        let seen = ids.iter().filter(|id| is_medium(**id)).count();
        let wanted = prompt.iter().filter(|id| is_medium(**id)).count();
        if seen != wanted {
            return Err(SpeechError::DroppedMedia { seen, wanted });
        }
        // the last generated token was never fed back
        let states = answer.len().saturating_sub(1);
        let mut spoken = prompt[assistant..].to_vec();
        spoken.extend_from_slice(&answer[..states]);
        if spoken.len() < 4 {
            return Err(SpeechError::NoText);
        }
        ids.extend([tokens.tts_pad; ASSISTANT_ROWS]);
        let end = answer.iter().position(|id| *id == tokens.im_end);
        Ok(Self {
            user,
            ids,
            spoken,
            ends_at: end.unwrap_or(answer.len()),
        })
    }

    /// The words in the turns of the user, in order.
    #[must_use]
    pub fn words(&self) -> Vec<u32> {
        let word = |row: &Row| match row {
            Row::Word(id) => Some(*id),
            Row::State(_) => None,
        };
        self.user.iter().filter_map(word).collect()
    }

    /// Tokens of media in the turns of the user.
    #[must_use]
    pub fn states(&self) -> usize {
        let is_state = |row: &&Row| matches!(row, Row::State(_));
        self.user.iter().filter(is_state).count()
    }

    /// Rows of the talker's prompt.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.ids.len()
    }
}

#[cfg(test)]
mod tests {
    use segpack_manifests::families::Family;

    use super::*;

    /// Of `tiny-speech`.
    fn facts() -> (SpeechFacts, MediaFacts) {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/tiny-speech/config.json"
        );
        let config = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let family = Family::of_config(&config).unwrap();
        let speech = family.speech_facts(&config).unwrap().unwrap();
        (speech, family.media_facts(&config).unwrap().unwrap())
    }

    const START: u32 = 286;
    const END: u32 = 287;
    const USER: u32 = 258;
    const MODEL: u32 = 266;
    const SYSTEM: u32 = 271;
    const IMAGE: u32 = 291;
    const PAD: u32 = 295;

    fn script(prompt: &[u32], answer: &[u32]) -> Result<TalkerScript, SpeechError> {
        let (speech, media) = facts();
        TalkerScript::of(&speech, Some(&media), prompt, answer)
    }

    #[test]
    fn turns_of_the_user_are_kept_and_the_last_token_is_not_spoken() {
        let prompt = [
            START, SYSTEM, 9, 1, END, 9, // dropped
            START, USER, 9, 2, IMAGE, END, 9, // kept
            START, MODEL, 9, 3, END, 9, // an earlier answer, dropped
            START, USER, 9, 4, END, 9, // kept
            START, MODEL, 9,
        ];
        let script = script(&prompt, &[5, 6, END]).unwrap();
        let words = [START, USER, 9, 4, END, 9].map(Row::Word);
        assert_eq!(script.user[7..], words);
        assert_eq!(script.user[4], Row::State(10));
        assert_eq!(script.states(), 1);
        assert_eq!(script.ids[..7], [START, USER, 9, 2, IMAGE, END, 9]);
        assert_eq!(script.ids[13..], [PAD; 9]);
        assert_eq!(script.spoken, [START, MODEL, 9, 5, 6]);
        assert_eq!((script.rows(), script.ends_at), (22, 2));
    }

    /// Upstream raises tensor errors for all of them, or goes by the grid of another picture.
    #[test]
    fn what_cannot_be_spoken_is_told_before_anything_is_computed() {
        let user = [START, USER, 9, 2, END, 9];
        let model = [START, MODEL, 9];
        let both = [&user[..], &model].concat();
        assert_eq!(script(&both, &[END]), Err(SpeechError::NoText));
        assert_eq!(script(&both, &[]), Err(SpeechError::NoText));
        assert_eq!(script(&model, &[5, END]), Err(SpeechError::NoUserTurn));
        assert_eq!(script(&user, &[5, END]), Err(SpeechError::NoAssistantTurn));
        let system = [&[START, SYSTEM, 9, IMAGE, END, 9][..], &both].concat();
        let dropped = SpeechError::DroppedMedia { seen: 0, wanted: 1 };
        assert_eq!(script(&system, &[5, END]), Err(dropped));
        // a prefilled answer is spoken, though its first new token ends it
        let prefilled = [&both[..], &[7]].concat();
        assert_eq!(script(&prefilled, &[END]).unwrap().ends_at, 0);
    }
}

//! Log probabilities, as the two interfaces write them.

use serde_json::{Map, Value, json};

use crate::steps::serve::event::{NamedToken, ScoredToken};

/// What stands for minus infinity, which JSON does not have; OpenAI's interface has it, too.
const RULED_OUT: f64 = -9999.0;

/// How tokens are spelled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spelling {
    /// `token_id:N`.
    pub(super) as_ids: bool,
}

impl Spelling {
    fn of(self, token: &NamedToken) -> String {
        match self.as_ids {
            true => format!("token_id:{}", token.id),
            false => token.text.clone(),
        }
    }
}

fn finite(logprob: f64) -> f64 {
    logprob.max(RULED_OUT)
}

/// `logprobs` of a completion: four lists of the same length. `offset` is the number of characters
/// before the first token.
pub(super) fn of_completion(spelling: Spelling, tokens: &[ScoredToken], offset: usize) -> Value {
    let mut offsets = Vec::with_capacity(tokens.len());
    let mut next = offset;
    for token in tokens {
        offsets.push(next);
        next += token.token.text.chars().count();
    }
    let spelled: Vec<String> = tokens.iter().map(|t| spelling.of(&t.token)).collect();
    let own: Vec<_> = tokens.iter().map(|t| t.logprob.map(finite)).collect();
    let top: Vec<_> = tokens.iter().map(|t| candidates(spelling, t)).collect();
    json!({
        "tokens": spelled,
        "token_logprobs": own,
        "top_logprobs": top,
        "text_offset": offsets,
    })
}

/// The candidates by their spelling, the token itself among them; of several with one spelling the
/// most likely. Nothing of a token that nothing precedes.
fn candidates(spelling: Spelling, token: &ScoredToken) -> Value {
    let Some(own) = token.logprob else {
        return Value::Null;
    };
    let mut map = Map::new();
    let top = token.top.iter().map(|(token, logprob)| (token, *logprob));
    for (token, logprob) in top.chain([(&token.token, own)]) {
        map.entry(spelling.of(token))
            .or_insert_with(|| finite(logprob).into());
    }
    map.into()
}

/// `logprobs` of a chat: a list of tokens, each with its candidates.
pub(super) fn of_chat(spelling: Spelling, tokens: &[ScoredToken]) -> Value {
    let content: Vec<Value> = tokens.iter().map(|t| chat_token(spelling, t)).collect();
    json!({ "content": content, "refusal": null })
}

fn chat_token(spelling: Spelling, token: &ScoredToken) -> Value {
    let top = token.top.iter();
    let top: Vec<Value> = top
        .map(|(t, logprob)| named(spelling, t, *logprob))
        .collect();
    let mut value = named(spelling, &token.token, token.logprob.unwrap_or(0.0));
    value["top_logprobs"] = top.into();
    value
}

fn named(spelling: Spelling, token: &NamedToken, logprob: f64) -> Value {
    json!({
        "token": spelling.of(token),
        "logprob": finite(logprob),
        "bytes": token.bytes,
    })
}

//! Answers, whole or as the chunks of a stream.

use serde_json::{Value, json};

use super::logprobs::{Spelling, of_chat, of_completion};
use super::request::{Ask, Endpoint};
use crate::steps::serve::event::{Echo, Event, Finish, ScoredToken};

/// What all chunks of an answer have.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// Of this answer alone.
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// The model's name.
    pub(crate) model: String,
    /// Which pack: the first digits of its manifest's SHA-256.
    pub(crate) fingerprint: String,
}

/// Puts an answer together from its events.
#[derive(Debug)]
pub(crate) struct Answer {
    origin: Origin,
    endpoint: Endpoint,
    stream: bool,
    include_usage: bool,
    return_token_ids: bool,
    spelling: Spelling,
    has_logprobs: bool,
    /// One for each prompt.
    choices: Vec<Choice>,
}

/// A prompt and its continuation.
#[derive(Debug, Default)]
struct Choice {
    prompt_ids: Vec<u32>,
    /// Of a whole answer: its text so far, and its tokens.
    text: String,
    ids: Vec<u32>,
    tokens: Vec<ScoredToken>,
    finish: Option<Finish>,
    /// Characters of the tokens of a stream so far.
    offset: usize,
    /// Tokens that were generated.
    generated: usize,
    /// The stream has a chunk of it.
    is_begun: bool,
}

/// What a chunk adds to a choice.
#[derive(Debug, Default)]
struct Piece<'p> {
    text: &'p str,
    ids: &'p [u32],
    tokens: &'p [ScoredToken],
    finish: Option<&'p Finish>,
}

impl Answer {
    pub(crate) fn new(origin: Origin, ask: &Ask) -> Self {
        Self {
            origin,
            endpoint: ask.endpoint,
            stream: ask.stream,
            include_usage: ask.include_usage,
            return_token_ids: ask.return_token_ids,
            spelling: Spelling {
                as_ids: ask.tokens_as_ids,
            },
            has_logprobs: ask.question.logprobs.is_some(),
            choices: ask
                .question
                .prompts
                .iter()
                .map(|_| Choice::default())
                .collect(),
        }
    }

    /// Takes an event; returns the chunks that a stream has for it, none where the answer is to be
    /// whole.
    pub(crate) fn take(&mut self, event: Event) -> Vec<Value> {
        match event {
            Event::Prompt { choice, ids, echo } => {
                self.choices[choice].prompt_ids = ids;
                let Echo { text, tokens } = echo.unwrap_or(Echo {
                    text: String::new(),
                    tokens: None,
                });
                self.add(choice, &text, None, tokens.unwrap_or_default())
            }
            Event::Token {
                choice,
                id,
                text,
                scored,
            } => {
                self.choices[choice].generated += 1;
                self.add(choice, &text, Some(id), scored.into_iter().collect())
            }
            Event::End {
                choice,
                text,
                finish,
            } => self.end(choice, &text, finish),
            Event::Done if self.stream && self.include_usage => vec![self.usage_chunk()],
            Event::Begun | Event::Done | Event::Failed(_) => Vec::new(),
        }
    }

    fn add(
        &mut self,
        number: usize,
        text: &str,
        id: Option<u32>,
        tokens: Vec<ScoredToken>,
    ) -> Vec<Value> {
        let choice = &mut self.choices[number];
        if !self.stream {
            choice.text += text;
            choice.ids.extend(id);
            choice.tokens.extend(tokens);
            return Vec::new();
        }
        let is_first = !choice.is_begun;
        let is_silent = text.is_empty() && tokens.is_empty() && !self.return_token_ids;
        if is_silent && !is_first {
            return Vec::new(); // half a character, or what may begin a stop string
        }
        let piece = Piece {
            text,
            ids: id.as_slice(),
            tokens: &tokens,
            finish: None,
        };
        let chunk = self.chunk(number, &piece);
        let choice = &mut self.choices[number];
        choice.is_begun = true;
        choice.offset += characters(&tokens);
        vec![chunk]
    }

    fn end(&mut self, number: usize, text: &str, finish: Finish) -> Vec<Value> {
        if !self.stream {
            let choice = &mut self.choices[number];
            choice.text += text;
            choice.finish = Some(finish);
            return Vec::new();
        }
        let piece = Piece {
            text,
            finish: Some(&finish),
            ..Piece::default()
        };
        vec![self.chunk(number, &piece)]
    }

    /// The whole answer.
    pub(crate) fn whole(&self) -> Value {
        let choices: Vec<Value> = (0..self.choices.len()).map(|n| self.choice(n)).collect();
        let object = match self.endpoint {
            Endpoint::Completions => "text_completion",
            Endpoint::Chat => "chat.completion",
        };
        let mut answer = self.envelope(object);
        answer["choices"] = choices.into();
        answer["usage"] = self.usage();
        if let (Endpoint::Chat, true, Some(choice)) =
            (self.endpoint, self.return_token_ids, self.choices.first())
        {
            answer["prompt_token_ids"] = choice.prompt_ids.as_slice().into();
        }
        answer
    }

    fn choice(&self, number: usize) -> Value {
        let choice = &self.choices[number];
        let logprobs = self.logprobs(&choice.tokens, 0);
        let mut value = json!({ "index": number, "logprobs": logprobs });
        match self.endpoint {
            Endpoint::Completions => value["text"] = choice.text.as_str().into(),
            Endpoint::Chat => {
                value["message"] =
                    json!({"role": "assistant", "content": choice.text, "refusal": null});
            }
        }
        self.set_finish(&mut value, choice.finish.as_ref());
        if self.return_token_ids {
            value["token_ids"] = choice.ids.as_slice().into();
            if self.endpoint == Endpoint::Completions {
                value["prompt_token_ids"] = choice.prompt_ids.as_slice().into();
            }
        }
        value
    }

    fn chunk(&self, number: usize, piece: &Piece<'_>) -> Value {
        let choice = &self.choices[number];
        let logprobs = self.logprobs(piece.tokens, choice.offset);
        let mut value = json!({ "index": number, "logprobs": logprobs });
        match self.endpoint {
            Endpoint::Completions => value["text"] = piece.text.into(),
            Endpoint::Chat => value["delta"] = self.delta(choice, piece),
        }
        self.set_finish(&mut value, piece.finish);
        let mut chunk = self.envelope(match self.endpoint {
            Endpoint::Completions => "text_completion",
            Endpoint::Chat => "chat.completion.chunk",
        });
        if self.return_token_ids {
            value["token_ids"] = piece.ids.into();
            let prompt = || Value::from(choice.prompt_ids.as_slice());
            match self.endpoint {
                _ if choice.is_begun => {}
                Endpoint::Completions => value["prompt_token_ids"] = prompt(),
                Endpoint::Chat => chunk["prompt_token_ids"] = prompt(),
            }
        }
        chunk["choices"] = json!([value]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// The first says who speaks, the last nothing more.
    fn delta(&self, choice: &Choice, piece: &Piece<'_>) -> Value {
        match (choice.is_begun, piece.text) {
            (false, text) => json!({"role": "assistant", "content": text}),
            (true, "") => json!({}),
            (true, text) => json!({ "content": text }),
        }
    }

    fn logprobs(&self, tokens: &[ScoredToken], offset: usize) -> Value {
        match self.endpoint {
            _ if !self.has_logprobs => Value::Null,
            Endpoint::Completions => of_completion(self.spelling, tokens, offset),
            Endpoint::Chat => of_chat(self.spelling, tokens),
        }
    }

    /// Why it ended, in OpenAI's word and, in vLLM's key, by what.
    fn set_finish(&self, value: &mut Value, finish: Option<&Finish>) {
        let (reason, by) = match finish {
            None => (Value::Null, Value::Null),
            Some(Finish::EndOfText) => ("stop".into(), Value::Null),
            Some(Finish::StopId(id)) => ("stop".into(), (*id).into()),
            Some(Finish::StopString(text)) => ("stop".into(), text.as_str().into()),
            Some(Finish::Length) => ("length".into(), Value::Null),
        };
        value["finish_reason"] = reason;
        value["stop_reason"] = by;
    }

    fn usage_chunk(&self) -> Value {
        let mut chunk = self.envelope(match self.endpoint {
            Endpoint::Completions => "text_completion",
            Endpoint::Chat => "chat.completion.chunk",
        });
        chunk["choices"] = json!([]);
        chunk["usage"] = self.usage();
        chunk
    }

    fn usage(&self) -> Value {
        let prompt: usize = self.choices.iter().map(|c| c.prompt_ids.len()).sum();
        let completion: usize = self.choices.iter().map(|c| c.generated).sum();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        })
    }

    fn envelope(&self, object: &str) -> Value {
        json!({
            "id": self.origin.id,
            "object": object,
            "created": self.origin.created,
            "model": self.origin.model,
            "system_fingerprint": self.origin.fingerprint,
        })
    }
}

fn characters(tokens: &[ScoredToken]) -> usize {
    tokens.iter().map(|t| t.token.text.chars().count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::serve::api::parse;
    use crate::steps::serve::event::NamedToken;

    fn answer(endpoint: Endpoint, body: &Value) -> Answer {
        let ask = parse(endpoint, body.to_string().as_bytes()).unwrap();
        let origin = Origin {
            id: "id".to_owned(),
            created: 5,
            model: "m".to_owned(),
            fingerprint: "f".to_owned(),
        };
        Answer::new(origin, &ask)
    }

    fn scored(id: u32, text: &str, logprob: Option<f64>) -> ScoredToken {
        let token = NamedToken {
            id,
            text: text.to_owned(),
            bytes: Some(text.as_bytes().to_vec()),
        };
        let best = NamedToken {
            id: 9,
            text: "é".to_owned(),
            bytes: None,
        };
        ScoredToken {
            token,
            logprob,
            top: vec![(best, -0.5)],
        }
    }

    fn events() -> [Event; 6] {
        let prompt = vec![scored(1, "é", None), scored(2, "b", Some(-1.0))];
        let token = |id, text: &str, scored| Event::Token {
            choice: 0,
            id,
            text: text.to_owned(),
            scored: Some(scored),
        };
        [
            Event::Begun,
            Event::Prompt {
                choice: 0,
                ids: vec![1, 2],
                echo: Some(Echo {
                    text: "éb".to_owned(),
                    tokens: Some(prompt),
                }),
            },
            token(3, "c", scored(3, "c", Some(f64::NEG_INFINITY))),
            token(4, "", scored(4, "d", Some(-2.0))),
            Event::End {
                choice: 0,
                text: "d".to_owned(),
                finish: Finish::Length,
            },
            Event::Done,
        ]
    }

    #[test]
    fn a_whole_completion_has_its_prompt_and_all_lists_of_the_same_length() {
        let body = json!({
            "prompt": "éb", "echo": true, "logprobs": 1, "return_token_ids": true
        });
        let mut answer = answer(Endpoint::Completions, &body);
        let chunks: Vec<Value> = events().into_iter().flat_map(|e| answer.take(e)).collect();
        assert_eq!(chunks, [] as [Value; 0]);
        let whole = answer.whole();
        let choice = &whole["choices"][0];
        assert_eq!(choice["text"], "ébcd");
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!(choice["prompt_token_ids"], json!([1, 2]));
        assert_eq!(choice["token_ids"], json!([3, 4]));
        assert_eq!(
            choice["logprobs"],
            json!({
                "tokens": ["é", "b", "c", "d"],
                "token_logprobs": [null, -1.0, -9999.0, -2.0],
                "top_logprobs": [
                    null, {"é": -0.5, "b": -1.0}, {"é": -0.5, "c": -9999.0}, {"é": -0.5, "d": -2.0}
                ],
                "text_offset": [0, 1, 2, 3],
            })
        );
        let usage = json!({"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4});
        assert_eq!(whole["usage"], usage);
    }

    #[test]
    fn the_chunks_of_a_stream_add_up_to_the_whole() {
        let body = json!({
            "prompt": "éb", "echo": true, "logprobs": 1, "stream": true,
            "stream_options": {"include_usage": true}
        });
        let mut answer = answer(Endpoint::Completions, &body);
        let chunks: Vec<Value> = events().into_iter().flat_map(|e| answer.take(e)).collect();
        assert_eq!(chunks.len(), 5);
        let texts: String = chunks
            .iter()
            .filter_map(|c| c["choices"][0]["text"].as_str())
            .collect();
        assert_eq!(texts, "ébcd");
        assert_eq!(
            chunks[2]["choices"][0]["logprobs"]["text_offset"],
            json!([3])
        );
        assert_eq!(chunks[3]["choices"][0]["finish_reason"], "length");
        assert_eq!(chunks[4]["choices"], json!([]));
        assert_eq!(chunks[4]["usage"]["total_tokens"], 4);
        assert!(chunks[..4].iter().all(|c| c["usage"].is_null()));
    }

    #[test]
    fn a_chat_says_who_speaks_once() {
        let body = json!({
            "messages": [{"role": "user", "content": "Hi"}], "stream": true, "logprobs": true
        });
        let mut answer = answer(Endpoint::Chat, &body);
        let events = events().into_iter().map(|event| match event {
            Event::Prompt { choice, ids, .. } => Event::Prompt {
                choice,
                ids,
                echo: None,
            },
            other => other,
        });
        let chunks: Vec<Value> = events.flat_map(|e| answer.take(e)).collect();
        let deltas: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["delta"]).collect();
        assert_eq!(
            deltas,
            [
                &json!({"role": "assistant", "content": ""}),
                &json!({"content": "c"}),
                &json!({}),
                &json!({"content": "d"})
            ]
        );
        let token = &chunks[1]["choices"][0]["logprobs"]["content"][0];
        assert_eq!(
            (&token["token"], &token["bytes"]),
            (&json!("c"), &json!([99]))
        );
        assert_eq!(
            token["top_logprobs"][0],
            json!({"token": "é", "logprob": -0.5, "bytes": null})
        );
    }
}

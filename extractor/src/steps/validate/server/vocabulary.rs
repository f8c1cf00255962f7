//! Which token a server's words stand for. Never a guess: what two tokens could be is none.

use std::collections::HashMap;

use segpack_runtime_min::processing::text::tokenizer::Tokenizer;

/// How vLLM writes a token by its number.
const BY_ID: &str = "token_id:";
/// How OpenAI writes bytes that are no UTF-8, in place of words.
const BY_BYTES: &str = "bytes:";

/// A token, as far as words tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Token(u32),
    /// No token is written so.
    None,
    /// Several are.
    Several,
}

impl Known {
    fn and(self, id: u32) -> Self {
        match self {
            Self::None => Self::Token(id),
            Self::Token(other) if other == id => self,
            Self::Token(_) | Self::Several => Self::Several,
        }
    }

    /// The token, where it is one.
    pub(super) fn id(self) -> Option<u32> {
        match self {
            Self::Token(id) => Some(id),
            Self::None | Self::Several => None,
        }
    }
}

/// All tokens of a model by the ways in which servers write them.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    by_bytes: HashMap<Vec<u8>, Known>,
    by_text: HashMap<String, Known>,
}

impl Vocabulary {
    /// That of a tokenizer. Of bytes that are no UTF-8, servers write replacement characters, or
    /// leave them out.
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let mut vocabulary = Self::default();
        for id in 0..tokenizer.vocab_size() {
            if let Some(bytes) = tokenizer.token_bytes(id) {
                vocabulary.add(id, bytes);
            }
        }
        vocabulary
    }

    fn add(&mut self, id: u32, bytes: Vec<u8>) {
        let replaced = String::from_utf8_lossy(&bytes).into_owned();
        let left_out: String = bytes.utf8_chunks().map(|chunk| chunk.valid()).collect();
        for text in [replaced, left_out] {
            let known = self.by_text.entry(text).or_insert(Known::None);
            *known = known.and(id);
        }
        let known = self.by_bytes.entry(bytes).or_insert(Known::None);
        *known = known.and(id);
    }

    /// The token that a server writes like this; its bytes say more than its text, if they are
    /// told.
    pub(super) fn find(&self, text: &str, bytes: Option<&[u8]>) -> Known {
        if let Some(number) = text.strip_prefix(BY_ID) {
            return number.parse().map_or(Known::None, Known::Token);
        }
        let escaped = text.strip_prefix(BY_BYTES).and_then(unescaped);
        let bytes = bytes
            .filter(|bytes| !bytes.is_empty())
            .or(escaped.as_deref());
        let found = match bytes {
            Some(bytes) => self.by_bytes.get(bytes),
            None => self.by_text.get(text),
        };
        found.copied().unwrap_or(Known::None)
    }
}

/// The bytes of `\xe2\x80`.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut pairs = text.split("\\x");
    let digits = pairs.next().filter(|before| before.is_empty());
    digits?;
    let byte = |pair: &str| match pair.len() {
        2 => u8::from_str_radix(pair, 16).ok(),
        _ => None,
    };
    pairs.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tokens: &[&[u8]]) -> Vocabulary {
        let mut vocabulary = Vocabulary::default();
        for (id, bytes) in (0..).zip(tokens) {
            vocabulary.add(id, bytes.to_vec());
        }
        vocabulary
    }

    #[test]
    fn words_are_tokens_where_only_one_is_written_so() {
        let vocabulary = of(&[b"a", b" the", b"\xe2\x80", b"\xe2\x81", b" the"]);
        assert_eq!(vocabulary.find("a", None), Known::Token(0));
        assert_eq!(vocabulary.find(" the", None), Known::Several);
        assert_eq!(vocabulary.find("b", None), Known::None);
        // both halves of a character are written with one replacement character, or as nothing
        assert_eq!(vocabulary.find("\u{fffd}", None), Known::Several);
        assert_eq!(vocabulary.find("", None), Known::Several);
        assert_eq!(
            vocabulary.find("\u{fffd}", Some(b"\xe2\x81")),
            Known::Token(3)
        );
        assert_eq!(vocabulary.find("bytes:\\xe2\\x80", None), Known::Token(2));
        assert_eq!(vocabulary.find("bytes:\\xe2\\x8", None), Known::None);
    }

    #[test]
    fn a_number_is_its_token() {
        let vocabulary = Vocabulary::default();
        assert_eq!(vocabulary.find("token_id:7", None), Known::Token(7));
        assert_eq!(vocabulary.find("token_id:x", None), Known::None);
    }
}

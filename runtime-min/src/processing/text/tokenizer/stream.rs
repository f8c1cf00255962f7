//! Text from ids that come one at a time.

use super::Tokenizer;

/// Whether special tokens appear in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// Written out, as in `<|im_end|>`.
    Keep,
    /// Left out (`skip_special_tokens=True` in transformers).
    Skip,
}

/// Decodes ids one at a time and never gives out a part of a character. All it gives out, with what
/// [`finish`](Self::finish) adds, equals [`Tokenizer::decode`] of all ids.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    special: SpecialTokens,
    held: Vec<u8>,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, special: SpecialTokens) -> Self {
        Self {
            tokenizer,
            special,
            held: Vec::new(),
        }
    }

    /// Takes an id and returns the text that is complete now: nothing while a character lacks
    /// bytes. Bytes that no further byte can turn into a character become U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        self.held
            .extend(self.tokenizer.shown_bytes(id, self.special));
        let complete = complete_length(&self.held);
        let rest = self.held.split_off(complete);
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held = rest;
        text
    }

    /// The end: bytes still held become U+FFFD.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.held).into_owned()
    }
}

/// The bytes before an unfinished character at the end.
fn complete_length(bytes: &[u8]) -> usize {
    let unfinished = bytes
        .utf8_chunks()
        .last()
        .map_or(&[][..], |chunk| chunk.invalid());
    match std::str::from_utf8(unfinished) {
        Err(error) if error.error_len().is_none() => bytes.len() - unfinished.len(),
        _ => bytes.len(),
    }
}

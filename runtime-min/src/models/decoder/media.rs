//! What takes the place of embeddings, and where tokens are when not only text is before them.

use std::ops::Range;

/// What a decoder takes for a prompt beside its token ids, all by the number of the token in the
/// prompt, ascending.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct MediaInputs {
    /// Time, height and width of every token.
    pub positions: Vec<[f32; 3]>,
    /// Tokens whose embedding is replaced.
    pub replaced: Vec<usize>,
    /// `[replaced tokens, hidden]`: by what.
    pub rows: Vec<f32>,
    /// Tokens of images and videos.
    pub visual: Vec<usize>,
    /// `[visual tokens, hidden]` of each of the first layers: what is added to the residual stream
    /// after it.
    pub deepstack: Vec<Vec<f32>>,
}

impl MediaInputs {
    /// Bytes that it holds.
    pub fn bytes(&self) -> u64 {
        let deepstack = self.deepstack.iter().map(Vec::len).sum::<usize>();
        4 * (self.rows.len() + deepstack + 3 * self.positions.len()) as u64
    }

    /// Puts the rows in the place of embeddings, `[tokens, hidden]`.
    pub(super) fn replace(&self, embedded: &mut [f32], hidden: usize) {
        for (token, row) in self.replaced.iter().zip(self.rows.chunks_exact(hidden)) {
            embedded[token * hidden..(token + 1) * hidden].copy_from_slice(row);
        }
    }

    /// Whether the numbers are those of a prompt of so many tokens.
    pub(super) fn fits(&self, tokens: usize, hidden: usize) -> bool {
        let inside = |of: &[usize]| {
            of.is_sorted_by(|a, b| a < b) && of.last().is_none_or(|last| *last < tokens)
        };
        let visual = self.visual.len() * hidden;
        self.positions.len() == tokens
            && inside(&self.replaced)
            && inside(&self.visual)
            && self.rows.len() == self.replaced.len() * hidden
            && self.deepstack.iter().all(|rows| rows.len() == visual)
    }
}

/// Where the tokens so far are, and those that follow.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Places {
    /// Of the tokens of a prompt with media, from the first on; empty where there is text alone.
    prompt: Vec<[f32; 3]>,
    /// What is added to the number of a token after them.
    delta: f32,
}

impl Places {
    /// After a prompt with media, which is at the start.
    pub(super) fn of(prompt: Vec<[f32; 3]>) -> Self {
        let mut places = Self { prompt, delta: 0.0 };
        places.set_delta();
        places
    }

    /// Forgets those from this token on; true where others follow now.
    pub(super) fn truncate(&mut self, tokens: usize) -> bool {
        if tokens >= self.prompt.len() {
            return false;
        }
        self.prompt.truncate(tokens);
        self.set_delta();
        true
    }

    /// What follows is behind the highest of all axes.
    fn set_delta(&mut self) {
        #[expect(clippy::cast_precision_loss, reason = "positions are f32, as in torch")]
        let tokens = self.prompt.len() as f32;
        let highest = self.prompt.iter().flatten().copied().reduce(f32::max);
        self.delta = highest.map_or(0.0, |highest| highest + 1.0 - tokens);
    }

    /// Time, height and width of these tokens.
    #[expect(clippy::cast_precision_loss, reason = "positions are f32, as in torch")]
    pub(super) fn of_tokens(&self, tokens: Range<usize>) -> impl Iterator<Item = [f32; 3]> {
        tokens.map(|token| match self.prompt.get(token) {
            Some(place) => *place,
            None => [token as f32 + self.delta; 3],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_picture_is_behind_its_highest_place() {
        // one token of text, a picture of 2 x 2, whose positions are fewer than its tokens
        let prompt = vec![
            [0.0; 3],
            [1.0; 3],
            [1.0, 1.0, 2.0],
            [1.0, 2.0, 1.0],
            [1.0, 2.0, 2.0],
        ];
        let mut places = Places::of(prompt);
        let after: Vec<_> = places.of_tokens(4..7).collect();
        assert_eq!(after, [[1.0, 2.0, 2.0], [3.0; 3], [4.0; 3]]);
        assert!(!places.truncate(5) && places.truncate(3));
        assert_eq!(places.of_tokens(3..4).next(), Some([3.0; 3]));
        assert!(places.truncate(0));
        assert_eq!(places, Places::default());
    }
}

//! Drafts of the next tokens, looked up in the text so far, and how many of them came true.
//!
//! Where a text quotes itself (code, lists, answers about a document), what followed the same words
//! before is likely to follow again. One forward pass of a draft gives the logits of each of its
//! tokens, and each is chosen from its logits as if it had been run alone: a draft changes how many
//! forward passes a text takes, and nothing of the text. The method is that of transformers'
//! `prompt_lookup_num_tokens` and of llama.cpp's `lookup` ("prompt lookup decoding", Saxena 2023).

use std::num::NonZeroUsize;

/// Most last tokens that are looked up together, and fewest.
const ALIKE: [usize; 2] = [4, 2];

/// How drafts are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftLookup {
    /// Tokens of a draft at most. It has fewer after drafts that came true in part.
    pub most: NonZeroUsize,
    /// Tokens before those of the prompt, where drafts are looked up as well.
    pub before: Vec<u32>,
}

impl DraftLookup {
    /// So many tokens at most, looked up in the prompt and what follows it.
    pub fn new(most: NonZeroUsize) -> Self {
        let before = Vec::new();
        Self { most, before }
    }
}

/// What came of the drafts of a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DraftCounts {
    /// Forward passes of a draft.
    pub passes: u64,
    /// Tokens of drafts.
    pub drafted: u64,
    /// Those of them that the model chose as well.
    pub accepted: u64,
}

/// The drafts of one text.
#[derive(Debug)]
pub(super) struct Drafts {
    /// Empty where there are none.
    text: Vec<u32>,
    most: usize,
    /// Tokens of the next draft at most.
    length: usize,
    counts: DraftCounts,
}

impl Drafts {
    /// Of a text that begins with these tokens.
    pub(super) fn new(lookup: Option<&DraftLookup>, prompt: &[u32]) -> Self {
        let text = lookup.map(|lookup| [&lookup.before, prompt].concat());
        let most = lookup.map_or(0, |lookup| lookup.most.get());
        Self {
            text: text.unwrap_or_default(),
            most,
            length: most,
            counts: DraftCounts::default(),
        }
    }

    /// What may follow, at most `room` tokens; empty where nothing is known.
    pub(super) fn next(&self, room: usize) -> Vec<u32> {
        match self.length.min(room) {
            0 => Vec::new(),
            length => lookup(&self.text, length),
        }
    }

    /// These tokens followed.
    pub(super) fn extend(&mut self, ids: &[u32]) {
        if self.most > 0 {
            self.text.extend(ids);
        }
    }

    /// So many of a draft's tokens were what the model chose. The next draft is twice as long where
    /// all were, and otherwise one token longer than what came true: a token that does not costs as
    /// much as one that does, where its experts have to be loaded.
    pub(super) fn judged(&mut self, drafted: usize, accepted: usize) {
        self.counts.passes += 1;
        self.counts.drafted += drafted as u64;
        self.counts.accepted += accepted as u64;
        let next = match accepted == drafted {
            true => self.length * 2,
            false => accepted + 1,
        };
        self.length = next.min(self.most);
    }

    pub(super) fn counts(&self) -> DraftCounts {
        self.counts
    }
}

/// What followed the last tokens where they came before: of the longest such piece the last place.
/// A draft that reaches the end of the text goes on with its own beginning.
fn lookup(text: &[u32], length: usize) -> Vec<u32> {
    let [most, fewest] = ALIKE;
    for alike in (fewest..=most).rev() {
        let Some(before) = text.len().checked_sub(alike) else {
            continue;
        };
        let last = &text[before..];
        let found = (0..before).rev().find(|at| text[*at..].starts_with(last));
        if let Some(at) = found {
            let followed = &text[at + alike..];
            return followed.iter().copied().cycle().take(length).collect();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_what_followed_the_longest_piece_that_came_before() {
        // 1 2 came twice, 9 1 2 once
        let text = [9, 1, 2, 5, 6, 7, 1, 2, 8, 9, 1, 2];
        assert_eq!(lookup(&text, 3), [5, 6, 7]);
        assert_eq!(lookup(&text[1..], 3), [8, 9, 1], "the last place");
        assert_eq!(lookup(&[1, 2, 3, 4, 3], 3), [0; 0], "one token is too few");
        assert_eq!(lookup(&[7], 3), [0; 0]);
        assert_eq!(lookup(&[], 3), [0; 0]);
    }

    #[test]
    fn a_draft_that_reaches_the_end_of_the_text_repeats_what_it_has() {
        assert_eq!(
            lookup(&[0, 4, 5, 6, 4, 5, 6, 4, 5], 7),
            [6, 4, 5, 6, 4, 5, 6]
        );
        assert_eq!(lookup(&[3, 3, 3], 4), [3; 4]);
    }

    #[test]
    fn drafts_grow_while_they_come_true_and_shrink_where_they_do_not() {
        let lookup = DraftLookup::new(NonZeroUsize::new(8).unwrap());
        let mut drafts = Drafts::new(Some(&lookup), &[1, 1, 1]);
        let mut lengths = vec![drafts.next(99).len()];
        for accepted in [0, 1, 2, 4, 8, 5, 6] {
            drafts.judged(lengths[lengths.len() - 1], accepted);
            lengths.push(drafts.next(99).len());
        }
        assert_eq!(lengths, [8, 1, 2, 4, 8, 8, 6, 8]);
        assert_eq!(drafts.next(3).len(), 3, "the room that there is");
        let [passes, drafted, accepted] = [7, 37, 26];
        let wanted = DraftCounts {
            passes,
            drafted,
            accepted,
        };
        assert_eq!(drafts.counts(), wanted);
    }

    #[test]
    fn drafts_are_looked_up_before_the_prompt_too_and_nowhere_unless_wanted() {
        let mut lookup = DraftLookup::new(NonZeroUsize::MIN);
        lookup.before = vec![1, 2, 3];
        let mut drafts = Drafts::new(Some(&lookup), &[1]);
        assert_eq!(drafts.next(9), [0; 0]);
        drafts.extend(&[2]);
        assert_eq!(drafts.next(9), [3]);
        let mut none = Drafts::new(None, &[1, 1, 1]);
        none.extend(&[1]);
        assert_eq!(none.next(9), [0; 0]);
    }
}

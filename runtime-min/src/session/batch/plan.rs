//! How much room a batch takes of a memory budget.
//!
//! Each further sequence takes memory that could hold experts, and saves reading them once more: a
//! quarter of the budget at most goes to keys and values, a sixteenth to the activations of a forward
//! pass, a sixteenth to logits. Where that is too little for the longest prompt, or the rest is too
//! little for the weights, there is less room.

use crate::models::decoder::{DecoderSpec, Logits};

/// What share of a budget keys and values may take.
const POSITIONS_SHARE: u64 = 4;
/// What share activations may take, and logits.
const PASS_SHARE: u64 = 16;
/// Most tokens of a forward pass, unless one prompt has more: each expert gets many of them already.
const MAX_TOKENS: usize = 4096;
/// Most sequences at a time.
const MAX_SEQUENCES: usize = 256;

/// What one sequence needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceNeed {
    /// Tokens of its longest forward pass: its prompt.
    pub tokens: usize,
    /// Positions of it and its continuation.
    pub positions: usize,
}

/// Room for some sequences at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchRoom {
    /// Sequences at a time.
    pub sequences: usize,
    /// Positions of all of them.
    pub positions: usize,
    /// Tokens of a forward pass.
    pub tokens: usize,
}

impl BatchRoom {
    /// For each of these by itself.
    pub(super) fn alone(needs: &[SequenceNeed]) -> Self {
        let most = |of: fn(&SequenceNeed) -> usize| needs.iter().map(of).max().unwrap_or(0).max(1);
        Self {
            sequences: 1,
            positions: most(|need| need.positions),
            tokens: most(|need| need.tokens),
        }
    }

    /// Whether there is room for one more sequence beside those that have so many positions, whose
    /// next tokens are so many.
    pub fn has_room(&self, running: &[SequenceNeed], next: SequenceNeed) -> bool {
        let sum = |of: fn(&SequenceNeed) -> usize| running.iter().map(of).sum::<usize>();
        running.len() < self.sequences
            && sum(|one| one.positions) + next.positions <= self.positions
            && sum(|one| one.tokens) + next.tokens <= self.tokens
    }

    /// Rows of logits of a forward pass.
    pub(super) fn logit_rows(&self, want: Logits) -> usize {
        match want {
            Logits::Last => self.sequences,
            Logits::All => self.tokens,
            Logits::Some { count, .. } => self.sequences.saturating_mul(count).min(self.tokens),
        }
    }

    /// At least for the longest prompt, while the others go on with a token of each.
    fn at_least(self, least: Self) -> Self {
        let others = self.sequences.saturating_sub(1);
        Self {
            sequences: self.sequences,
            positions: self.positions.max(least.positions),
            tokens: self.tokens.max(least.tokens + others),
        }
    }
}

/// Room for these sequences, two of them or more at a time: the most that is of use first.
pub(super) fn rooms(
    needs: &[SequenceNeed],
    want: Logits,
    memory: Option<u64>,
    spec: &DecoderSpec,
) -> Vec<BatchRoom> {
    let sum = |of: fn(&SequenceNeed) -> usize| needs.iter().map(of).fold(0, usize::saturating_add);
    let least = BatchRoom::alone(needs);
    let affordable = |share: u64, bytes: u64| match memory {
        Some(memory) => usize::try_from(memory / share / bytes.max(1)).unwrap_or(usize::MAX),
        None => usize::MAX,
    };
    let logits = affordable(PASS_SHARE, spec.logit_bytes());
    let [sequences, tokens] = match want {
        Logits::Last => [logits, usize::MAX],
        Logits::All => [usize::MAX, logits],
        Logits::Some { count, .. } => [logits / count.max(1), usize::MAX],
    };
    // a sequence that goes on has one token in each pass
    let all_tokens = sum(|need| need.tokens).saturating_add(needs.len());
    let mut room = BatchRoom {
        sequences: sequences.min(needs.len()).min(MAX_SEQUENCES),
        positions: affordable(POSITIONS_SHARE, spec.position_bytes())
            .min(sum(|need| need.positions)),
        tokens: affordable(PASS_SHARE, spec.token_bytes())
            .min(tokens)
            .min(MAX_TOKENS)
            .min(all_tokens),
    };
    let mut rooms = Vec::new();
    while room.sequences > 1 {
        rooms.push(room.at_least(least));
        room = BatchRoom {
            sequences: room.sequences / 2,
            positions: room.positions / 2,
            tokens: room.tokens / 2,
        };
    }
    rooms
}

#[cfg(test)]
mod tests {
    use segpack_manifests::families::TextFacts;

    use super::*;

    fn spec() -> DecoderSpec {
        let facts = TextFacts {
            hidden_size: 8,
            layers: 2,
            moe_layers: 2,
            experts: 4,
            experts_per_token: 2,
            moe_intermediate: 8,
            intermediate: 16,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            vocab: 100,
            rms_norm_eps: 1e-6,
            rope_theta: 1e4,
            rope_type: "default".to_owned(),
            attention_bias: false,
            norm_topk_prob: true,
            tie_word_embeddings: false,
        };
        DecoderSpec::from_facts(&facts).unwrap()
    }

    fn need(tokens: usize, positions: usize) -> SequenceNeed {
        SequenceNeed { tokens, positions }
    }

    #[test]
    fn without_a_limit_all_run_together_and_one_alone_is_no_batch() {
        let needs = [need(3, 10), need(7, 9)];
        let rooms = rooms(&needs, Logits::Last, None, &spec());
        let all = BatchRoom {
            sequences: 2,
            positions: 19,
            tokens: 12,
        };
        assert_eq!(rooms, [all]);
        assert!(super::rooms(&needs[..1], Logits::Last, None, &spec()).is_empty());
    }

    #[test]
    fn each_room_is_smaller_has_two_sequences_and_takes_the_longest_prompt() {
        let spec = spec();
        let needs = vec![need(30, 50); 16];
        for memory in [1, 1 << 12, 1 << 16, 1 << 20] {
            let rooms = rooms(&needs, Logits::Last, Some(memory), &spec);
            for room in &rooms {
                assert!(
                    room.sequences >= 2 && room.has_room(&[], needs[0]),
                    "{room:?}"
                );
                let others = vec![need(1, 0); room.sequences - 1];
                assert!(room.has_room(&others, need(30, 50)), "{room:?}");
            }
            assert!(rooms.is_sorted_by(|a, b| a.sequences > b.sequences));
            if let Some(first) = rooms.first() {
                let state = first.positions as u64 * spec.position_bytes();
                assert!(state <= (memory / 4).max(50 * spec.position_bytes()));
            }
        }
    }
}

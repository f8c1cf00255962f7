//! How to run a decoder, and what a run did.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::weights::{CacheStats, ChecksumPolicy, LoadStats};

/// How to run a model.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct RunSettings {
    /// Memory budget of the process, in bytes. `None`: as much as the model needs.
    pub memory: Option<u64>,
    /// Maximum number of slots for experts.
    pub expert_slots: Option<u64>,
    /// Positions to reserve: prompt and generated tokens.
    pub positions: usize,
    /// Maximum number of tokens of a forward pass: the prompt.
    pub longest_pass: usize,
    /// Maximum number of sequences that are open at the same time and share the positions. 0: there
    /// is one, which has all of them.
    pub sequences: usize,
    /// Maximum number of rows of logits of a forward pass of several sequences.
    pub logit_rows: usize,
    /// When digests are compared.
    pub check: ChecksumPolicy,
}

impl RunSettings {
    /// As much memory as the model needs for so many positions, and at most `longest_pass` tokens
    /// of a forward pass.
    pub fn new(positions: usize, longest_pass: usize) -> Self {
        Self {
            positions,
            longest_pass,
            ..Self::default()
        }
    }
}

/// Which positions' logits a forward pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// The last one's.
    Last,
    /// Every one's.
    All,
    /// Those of some tokens of the pass: the first, counted from 0, and how many.
    Some {
        /// The first token.
        first: usize,
        /// How many.
        count: usize,
    },
}

impl Logits {
    /// The tokens of a pass of so many.
    pub(crate) fn of(self, tokens: usize) -> Range<usize> {
        match self {
            Self::Last => tokens.saturating_sub(1)..tokens,
            Self::All => 0..tokens,
            Self::Some { first, count } => {
                first.min(tokens)..first.saturating_add(count).min(tokens)
            }
        }
    }
}

/// What a run did so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunStats {
    /// Stored bytes of segments and rows read.
    pub bytes_read: u64,
    /// Bytes copied to a GPU.
    pub bytes_copied: u64,
    /// How segments were read, and how long that took.
    pub load: LoadStats,
    /// The expert cache.
    pub cache: CacheStats,
    /// Uses of experts of each layer that were in memory, and that were not.
    pub layers: Vec<LayerUses>,
    /// How often each (layer, expert) was used, per forward pass that used it.
    pub expert_uses: BTreeMap<(u32, u32), u64>,
    /// Time in forward passes.
    pub forward: Duration,
    /// Of it, time in which nothing could be computed, because weights were still loading.
    pub waited: Duration,
}

/// Uses of the experts of a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerUses {
    /// Those that were in memory.
    pub hits: u64,
    /// Those that had to be loaded.
    pub misses: u64,
}

impl RunStats {
    /// Counts one forward pass's uses of a layer's experts: which, and whether each was in memory.
    pub(super) fn count(&mut self, layer: usize, uses: &[(u32, bool)]) {
        let number = u32::try_from(layer).unwrap_or(u32::MAX);
        for (expert, is_hit) in uses {
            let counts = &mut self.layers[layer];
            *(if *is_hit {
                &mut counts.hits
            } else {
                &mut counts.misses
            }) += 1;
            *self.expert_uses.entry((number, *expert)).or_default() += 1;
        }
    }

    /// Adds the uses that a device counted, all of them hits: of every layer those of each expert.
    pub(super) fn add_resident_uses(&mut self, layers: &[Vec<u32>]) {
        for (layer, uses) in (0..).zip(layers) {
            for (expert, n) in (0..).zip(uses).filter(|(_, n)| **n > 0) {
                *self.expert_uses.entry((layer, expert)).or_default() += u64::from(*n);
                self.layers[layer as usize].hits += u64::from(*n);
            }
        }
    }
}

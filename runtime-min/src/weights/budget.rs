//! How a memory budget is shared out.
//!
//! `budget ≥ overhead + manifest + kv + pass + batch × per_token + dense + slots × expert`, where
//! `dense` is all dense layers and the head if they fit together with one token's experts of a
//! layer, and otherwise the largest layer and a block of the head, streamed. A batch is what goes
//! through a layer's products at a time: [`MOST_BATCH`] tokens, fewer where that would take more
//! than a sixteenth of the budget.

/// Tokens in a batch: products of this many reach the processor's full rate.
pub(super) const MOST_BATCH: u64 = 512;
/// Tokens in the batch of the smallest budget.
pub(super) const LEAST_BATCH: u64 = 16;
/// What share of a budget a batch may take.
const BATCH_SHARE: u64 = 16;

/// What a model and a prompt need, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The program, its buffers and the tokenizer.
    pub overhead: u64,
    /// The manifest, once it is parsed.
    pub manifest: u64,
    /// Keys and values of all layers for prompt and generated tokens.
    pub kv: u64,
    /// Tokens of the longest forward pass.
    pub tokens: u64,
    /// Activations of the longest forward pass that all its tokens have at once.
    pub pass: u64,
    /// Activations of one token of a batch.
    pub per_token: u64,
    /// All dense layers and the head.
    pub dense: u64,
    /// The largest dense layer plus one block of the head: what streaming keeps at a time.
    pub dense_streamed: u64,
    /// One expert; 0 where there are none.
    pub expert: u64,
    /// Experts of the whole model.
    pub experts: u64,
    /// Experts that one token visits in one layer.
    pub experts_per_token: u64,
}

/// Where dense weights live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// Loaded once, never evicted.
    Resident,
    /// Read again for every forward pass, layer by layer.
    Streamed,
}

/// How a budget is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Where dense weights live.
    pub residency: Residency,
    /// Slots for experts.
    pub slots: u64,
    /// Tokens that go through a layer's products at a time.
    pub batch: u64,
}

impl Demand {
    fn fixed(&self, batch: u64) -> u64 {
        self.overhead + self.manifest + self.kv + self.pass + batch * self.per_token
    }

    fn least_batch(&self) -> u64 {
        self.tokens.clamp(1, LEAST_BATCH)
    }

    fn batch(&self, memory: u64) -> u64 {
        let affordable = (memory / BATCH_SHARE)
            .checked_div(self.per_token)
            .unwrap_or(MOST_BATCH);
        affordable
            .min(MOST_BATCH)
            .min(self.tokens)
            .max(self.least_batch())
    }

    /// The least budget that works: everything streamed, one expert at a time.
    pub fn least(&self) -> u64 {
        self.fixed(self.least_batch()) + self.dense_streamed + self.expert
    }

    /// All that a model can use.
    pub fn most(&self) -> u64 {
        self.fixed(self.batch(u64::MAX)) + self.dense + self.experts * self.expert
    }

    /// Shares out `memory` (all that is needed where it is none), with at most `most_slots` for
    /// experts.
    ///
    /// # Errors
    /// The least budget that works.
    pub fn share(&self, memory: Option<u64>, most_slots: Option<u64>) -> Result<Budget, u64> {
        let most = most_slots
            .unwrap_or(u64::MAX)
            .min(self.experts)
            .max(u64::from(self.experts > 0));
        let Some(memory) = memory else {
            let batch = self.batch(u64::MAX);
            return Ok(Budget {
                residency: Residency::Resident,
                slots: most,
                batch,
            });
        };
        let slots_in = |left: u64| left.checked_div(self.expert).unwrap_or(0).min(most);
        // with fewer slots asked for, fewer have to fit
        let one_token = self.experts_per_token.min(most) * self.expert;
        // in a small budget weights count for more than a large batch
        for batch in [self.batch(memory), self.least_batch()] {
            let resident = self.fixed(batch) + self.dense;
            if memory >= resident + one_token {
                return Ok(Budget {
                    residency: Residency::Resident,
                    slots: slots_in(memory - resident),
                    batch,
                });
            }
        }
        for batch in [self.batch(memory), self.least_batch()] {
            let streamed = self.fixed(batch) + self.dense_streamed;
            if memory >= streamed + self.expert {
                return Ok(Budget {
                    residency: Residency::Streamed,
                    slots: slots_in(memory - streamed),
                    batch,
                });
            }
        }
        Err(self.least())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand {
        overhead: 7,
        manifest: 3,
        kv: 5,
        tokens: 3,
        pass: 2,
        per_token: 1,
        dense: 100,
        dense_streamed: 20,
        expert: 7,
        experts: 64,
        experts_per_token: 4,
    };

    #[test]
    fn a_budget_is_shared_out_and_never_exceeded() {
        for memory in 0..800 {
            match DEMAND.share(Some(memory), None) {
                Err(least) => assert!(memory < least && least == 47),
                Ok(Budget {
                    residency,
                    slots,
                    batch,
                }) => {
                    let dense = if residency == Residency::Resident {
                        100
                    } else {
                        20
                    };
                    assert!(
                        slots >= 1 && 17 + batch + dense + slots * 7 <= memory,
                        "{memory}"
                    );
                    assert_eq!(residency == Residency::Resident, memory >= 148);
                }
            }
        }
        let all = Budget {
            residency: Residency::Resident,
            slots: 64,
            batch: 3,
        };
        assert_eq!(DEMAND.share(None, None), Ok(all));
        assert_eq!(DEMAND.share(Some(DEMAND.most()), None), Ok(all));
        assert_eq!(DEMAND.share(None, Some(1)), Ok(Budget { slots: 1, ..all }));
        assert_eq!(
            DEMAND.share(Some(127), Some(1)),
            Ok(Budget { slots: 1, ..all })
        );
    }

    #[test]
    fn a_dense_model_needs_no_slots() {
        let dense = Demand {
            expert: 0,
            experts: 0,
            experts_per_token: 0,
            ..DEMAND
        };
        let all = Budget {
            residency: Residency::Resident,
            slots: 0,
            batch: 3,
        };
        assert_eq!(dense.share(Some(120), None), Ok(all));
        assert_eq!(dense.share(Some(39), None), Err(40));
    }

    #[test]
    fn a_small_budget_gets_a_small_batch() {
        let long = Demand {
            tokens: 4096,
            per_token: 10,
            ..DEMAND
        };
        let batch = |memory| long.share(Some(memory), None).unwrap().batch;
        assert_eq!(
            (batch(100_000), batch(48_000), batch(300)),
            (MOST_BATCH, 300, LEAST_BATCH)
        );
        assert_eq!(long.share(None, None).unwrap().batch, MOST_BATCH);
    }
}

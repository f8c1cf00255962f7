//! How a memory budget is shared out.
//!
//! `budget ≥ overhead + kv + scratch + dense + slots × expert`, where `dense` is all dense layers and the head if
//! they fit together with one token's experts of a layer, and otherwise the largest layer and a block of the head,
//! streamed.

/// What a model and a prompt need, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The program, its buffers, the manifest and the tokenizer.
    pub overhead: u64,
    /// Keys and values of all layers for prompt and generated tokens.
    pub kv: u64,
    /// Activations of the longest forward pass.
    pub scratch: u64,
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
}

impl Demand {
    fn fixed(&self) -> u64 {
        self.overhead + self.kv + self.scratch
    }

    /// The least budget that works: everything streamed, one expert at a time.
    pub fn least(&self) -> u64 {
        self.fixed() + self.dense_streamed + self.expert
    }

    /// Shares out `memory` (all that is needed where it is none), with at most `most_slots` for experts.
    ///
    /// # Errors
    /// The least budget that works.
    pub fn share(&self, memory: Option<u64>, most_slots: Option<u64>) -> Result<Budget, u64> {
        let most = most_slots.unwrap_or(u64::MAX).min(self.experts).max(u64::from(self.experts > 0));
        let Some(memory) = memory else {
            return Ok(Budget { residency: Residency::Resident, slots: most });
        };
        let slots_in = |left: u64| left.checked_div(self.expert).unwrap_or(0).min(most);
        let resident = self.fixed() + self.dense;
        // with fewer slots asked for, fewer have to fit
        let one_token = self.experts_per_token.min(most) * self.expert;
        if memory >= resident + one_token {
            return Ok(Budget { residency: Residency::Resident, slots: slots_in(memory - resident) });
        }
        if memory < self.least() {
            return Err(self.least());
        }
        let left = memory - self.fixed() - self.dense_streamed;
        Ok(Budget { residency: Residency::Streamed, slots: slots_in(left) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand {
        overhead: 10,
        kv: 5,
        scratch: 5,
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
                Ok(Budget { residency, slots }) => {
                    let dense = if residency == Residency::Resident { 100 } else { 20 };
                    assert!(slots >= 1 && 20 + dense + slots * 7 <= memory, "{memory}");
                    assert_eq!(residency == Residency::Resident, memory >= 148);
                }
            }
        }
        assert_eq!(DEMAND.share(None, None), Ok(Budget { residency: Residency::Resident, slots: 64 }));
        assert_eq!(DEMAND.share(None, Some(1)), Ok(Budget { residency: Residency::Resident, slots: 1 }));
        assert_eq!(DEMAND.share(Some(127), Some(1)), Ok(Budget { residency: Residency::Resident, slots: 1 }));
    }

    #[test]
    fn a_dense_model_needs_no_slots() {
        let dense = Demand { expert: 0, experts: 0, experts_per_token: 0, ..DEMAND };
        assert_eq!(dense.share(Some(120), None), Ok(Budget { residency: Residency::Resident, slots: 0 }));
        assert_eq!(dense.share(Some(39), None), Err(40));
    }
}

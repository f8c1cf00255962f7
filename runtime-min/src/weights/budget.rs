//! How a memory budget is shared out.
//!
//! `budget ≥ overhead + manifest + state + activations + batch × per_token + dense + slots ×
//! expert`, where `dense` is all dense layers and the head if they fit together with one token's
//! experts of a layer, and otherwise the largest layer and a block of the head, streamed. A batch is
//! what goes through a layer's linear layers at a time: [`MAX_BATCH`] tokens, fewer where that would
//! take more than a sixteenth of the budget.

use segpack_manifests::PackReader;

use super::loader::scratch_bytes;

/// Tokens in a batch: matrix products of this many reach the processor's full rate.
const MAX_BATCH: u64 = 512;
/// Tokens in the batch of the smallest budget.
const MIN_BATCH: u64 = 16;
/// What share of a budget a batch may take.
const BATCH_SHARE: u64 = 16;

/// Memory of the program itself, its buffers and threads, in bytes; the manifest's share comes on
/// top.
const PROGRAM_BYTES: u64 = 64 << 20;
/// Memory that one tensor of the manifest takes once it is parsed, in bytes (measured: about
/// 1,000).
const MANIFEST_ENTRY_BYTES: u64 = 1500;

/// Bytes of the program with what loading needs, and of the manifest.
pub(crate) fn program_bytes(source: &PackReader<'_>, is_any_coded: bool) -> (u64, u64) {
    let tensors = source.pack().manifest().tensors.len() as u64;
    let overhead = PROGRAM_BYTES + scratch_bytes(is_any_coded);
    (overhead, tensors * MANIFEST_ENTRY_BYTES)
}

/// What a process that runs one network needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The program, its buffers and the tokenizer.
    pub overhead: u64,
    /// The manifest, once it is parsed.
    pub manifest: u64,
    /// The network.
    pub network: NetworkDemand,
}

/// What one network and its longest input need, in bytes: the part of a [`Demand`] that each
/// network of a process has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkDemand {
    /// State that lives as long as the sequence: keys and values of all layers for prompt and
    /// generated tokens.
    pub state: u64,
    /// Tokens of the longest forward pass.
    pub tokens: u64,
    /// Activations of the longest forward pass that all its tokens have at once.
    pub activations: u64,
    /// Activations of one token of a batch.
    pub per_token: u64,
    /// All dense weights.
    pub dense: u64,
    /// What streaming the dense weights keeps at a time: the largest group, and one block of the
    /// head.
    pub dense_streamed: u64,
    /// One expert; 0 where there are none.
    pub expert: u64,
    /// Experts of the whole network.
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
    /// Tokens that go through a layer's linear layers at a time.
    pub batch: u64,
}

impl Demand {
    /// What is taken before the network gets anything.
    fn shared(&self) -> u64 {
        self.overhead.saturating_add(self.manifest)
    }

    /// The smallest budget that works: everything streamed, one expert at a time.
    pub fn min(&self) -> u64 {
        self.shared().saturating_add(self.network.min())
    }

    /// The largest budget that is of use.
    pub fn max(&self) -> u64 {
        self.shared().saturating_add(self.network.max())
    }

    /// Shares out `memory` (`None`: as much as the network can use), with at most `max_slots` for
    /// experts.
    ///
    /// # Errors
    /// The smallest budget that works.
    pub fn share(&self, memory: Option<u64>, max_slots: Option<u64>) -> Result<Budget, u64> {
        self.network
            .share(memory, self.shared(), max_slots)
            .ok_or_else(|| self.min())
    }
}

/// More than can be counted is too much for every budget.
fn sum<const N: usize>(parts: [u64; N]) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}

impl NetworkDemand {
    /// All but the weights.
    fn fixed(&self, batch: u64) -> u64 {
        sum([
            self.state,
            self.activations,
            batch.saturating_mul(self.per_token),
        ])
    }

    fn min_batch(&self) -> u64 {
        self.tokens.clamp(1, MIN_BATCH)
    }

    /// Tokens of a batch that takes no more than its share of `memory`.
    fn batch(&self, memory: u64) -> u64 {
        let affordable = (memory / BATCH_SHARE)
            .checked_div(self.per_token)
            .unwrap_or(MAX_BATCH);
        affordable
            .min(MAX_BATCH)
            .min(self.tokens)
            .max(self.min_batch())
    }

    /// The least that works: everything streamed, one expert at a time.
    pub fn min(&self) -> u64 {
        sum([
            self.fixed(self.min_batch()),
            self.dense_streamed,
            self.expert,
        ])
    }

    /// The most that is of use.
    pub fn max(&self) -> u64 {
        sum([
            self.fixed(self.batch(u64::MAX)),
            self.dense,
            self.experts.saturating_mul(self.expert),
        ])
    }

    /// What networks beside it leave to it: all that is of use where its dense weights stay, the
    /// least that works where they are streamed.
    pub(crate) fn held(&self, residency: Residency) -> u64 {
        match residency {
            Residency::Resident => self.max(),
            Residency::Streamed => self.min(),
        }
    }

    /// Shares out what `memory` leaves after the `taken` bytes of others. `None` where it is too
    /// little.
    pub fn share(&self, memory: Option<u64>, taken: u64, max_slots: Option<u64>) -> Option<Budget> {
        let max_slots = max_slots
            .unwrap_or(u64::MAX)
            .min(self.experts)
            .max(u64::from(self.experts > 0));
        let Some(memory) = memory else {
            return Some(Budget {
                residency: Residency::Resident,
                slots: max_slots,
                batch: self.batch(u64::MAX),
            });
        };
        // with fewer slots asked for, fewer have to fit
        let one_token = self
            .experts_per_token
            .min(max_slots)
            .saturating_mul(self.expert);
        // in a small budget weights count for more than a large batch
        let batches = [self.batch(memory), self.min_batch()];
        for (residency, dense, experts) in [
            (Residency::Resident, self.dense, one_token),
            (Residency::Streamed, self.dense_streamed, self.expert),
        ] {
            for batch in batches {
                let before_experts = sum([taken, self.fixed(batch), dense]);
                if memory >= before_experts.saturating_add(experts) {
                    let left = memory - before_experts;
                    let slots = left.checked_div(self.expert).unwrap_or(0).min(max_slots);
                    return Some(Budget {
                        residency,
                        slots,
                        batch,
                    });
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: NetworkDemand = NetworkDemand {
        state: 5,
        tokens: 3,
        activations: 2,
        per_token: 1,
        dense: 100,
        dense_streamed: 20,
        expert: 7,
        experts: 64,
        experts_per_token: 4,
    };

    const DEMAND: Demand = of(NETWORK);

    const fn of(network: NetworkDemand) -> Demand {
        Demand {
            overhead: 7,
            manifest: 3,
            network,
        }
    }

    #[test]
    fn a_budget_is_shared_out_and_never_exceeded() {
        for memory in 0..800 {
            match DEMAND.share(Some(memory), None) {
                Err(min) => assert!(memory < min && min == 47),
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
        assert_eq!(DEMAND.share(Some(DEMAND.max()), None), Ok(all));
        assert_eq!(DEMAND.share(None, Some(1)), Ok(Budget { slots: 1, ..all }));
        assert_eq!(
            DEMAND.share(Some(127), Some(1)),
            Ok(Budget { slots: 1, ..all })
        );
    }

    #[test]
    fn a_dense_model_needs_no_slots() {
        let dense = of(NetworkDemand {
            expert: 0,
            experts: 0,
            experts_per_token: 0,
            ..NETWORK
        });
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
        let long = of(NetworkDemand {
            tokens: 4096,
            per_token: 10,
            ..NETWORK
        });
        let batch = |memory| long.share(Some(memory), None).unwrap().batch;
        assert_eq!(
            (batch(100_000), batch(48_000), batch(300)),
            (MAX_BATCH, 300, MIN_BATCH)
        );
        assert_eq!(long.share(None, None).unwrap().batch, MAX_BATCH);
    }
}

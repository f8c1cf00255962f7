//! How a model's activations, tables and counts lie in the memory of a GPU, and how much a model
//! needs of it.

use std::sync::Arc;

use segpack_manifests::families::TextFacts;

use super::dense::room_of;
use super::driver::{CudaError, Gpu, HostMemory, Memory, Place};
use super::launch::{
    ARGMAX_BYTES, Choice, FEW_TOKENS, MOST_PARTS, Values as View, WHOLE_POSITIONS,
    activation_bytes, counters, partial_values, tiles_bytes,
};
use crate::devices::cpu::{MANIFEST_ENTRY_BYTES, PROGRAM_BYTES, heads};
use crate::error::RunError;
use crate::models::decoder::bind::TextModel;
use crate::models::decoder::executor::{Setup, Values};
use crate::models::decoder::index;
use crate::tensor::{Compute, Heads};
use crate::weights::Demand;
use crate::weights::{room_for, scratch_bytes};

/// Slots in host memory where no budget gives more: as many reads in flight as the CPU has.
pub(super) const LEAST_HOST_SLOTS: u64 = 16;
/// Tokens whose logits are in memory at a time.
pub(super) const LOGIT_ROWS: usize = 64;
/// Positions of a part of decoding's attention.
const PART_POSITIONS: usize = 64;
/// Every buffer begins at a multiple of this.
pub(super) const ALIGNMENT: usize = 512;
/// The driver gives memory in pages of this size (cuMemGetAllocationGranularity says so of all
/// devices up to now).
const PAGE: usize = 2 << 20;
/// Allocations of a model: activations, keys and values, dense weights, experts, the embedding.
const ALLOCATIONS: usize = 5;

/// Activations and what kernels keep in between, all in one piece of memory.
pub(super) struct Buffers {
    pub(super) _memory: Memory,
    pub(super) values: [View; Values::COUNT],
    /// A second place for X of few tokens.
    pub(super) other_x: View,
    /// Blocks of each of few tokens that arrived; 0 between launches.
    pub(super) arrived: Place,
    /// cos, then sin, of every position.
    pub(super) turns: [View; 2],
    pub(super) turns_there: bool,
    pub(super) choice: Choice,
    pub(super) inner: View,
    pub(super) y: View,
    pub(super) partial: View,
    pub(super) parts: usize,
    pub(super) logits: View,
    pub(super) ids: Place,
    /// Of the parts of the logits the greatest.
    pub(super) greatest: Place,
    /// Cached positions before each batch.
    pub(super) positions: Place,
    /// One layer's table of experts that are there now; then of every layer the table of all its
    /// experts.
    pub(super) table: Place,
    pub(super) tables: Place,
    /// Uses of every expert of every layer, u32.
    pub(super) uses: Place,
    /// What is copied from here while the device works: ids and positions, tables, uses.
    pub(super) host_ids: HostMemory,
    pub(super) host_positions: HostMemory,
    pub(super) host_tables: HostMemory,
    pub(super) host_uses: HostMemory,
}

/// Cuts memory into buffers.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) bytes: usize,
}

impl Plan {
    fn take(&mut self, bytes: usize) -> usize {
        let at = self.bytes;
        self.bytes += bytes.next_multiple_of(ALIGNMENT);
        at
    }
}

/// Sizes that memory depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) query: usize,
    pub(super) key: usize,
    pub(super) inner: usize,
    pub(super) moe: usize,
    pub(super) experts: usize,
    pub(super) best: usize,
    pub(super) vocab: usize,
    pub(super) layers: usize,
    pub(super) half: usize,
    pub(super) positions: usize,
    pub(super) tokens: usize,
    pub(super) heads: Heads,
    pub(super) compute: Compute,
}

impl Sizes {
    pub(super) fn of(facts: &TextFacts, setup: &Setup<'_, '_>, compute: Compute) -> Self {
        let heads = heads(facts);
        let experts = facts.experts as usize;
        Self {
            hidden: index(facts.hidden_size),
            query: heads.query * heads.width,
            key: heads.key_value * heads.width,
            inner: index(facts.intermediate),
            moe: index(facts.moe_intermediate),
            experts,
            best: (facts.experts_per_token as usize).min(experts),
            vocab: index(facts.vocab),
            layers: setup.model.layers.len(),
            half: heads.width / 2,
            positions: setup.settings.positions.max(1),
            tokens: setup.settings.longest_pass.max(1),
            heads,
            compute,
        }
    }

    /// Bytes of so many activations.
    fn bytes(&self, values: usize) -> usize {
        values * activation_bytes(self.compute)
    }

    /// Parts of the positions in decoding's attention. One is a kernel less.
    pub(super) fn parts(&self) -> usize {
        if self.positions <= WHOLE_POSITIONS {
            return 1;
        }
        self.positions.div_ceil(PART_POSITIONS).clamp(1, MOST_PARTS)
    }

    fn partial(&self) -> usize {
        partial_values(
            FEW_TOKENS,
            self.heads,
            self.compute,
            self.parts(),
            self.positions,
        )
    }

    /// Values of a row.
    pub(super) fn width(&self, values: Values) -> usize {
        match values {
            Values::X | Values::Normed | Values::Added => self.hidden,
            Values::Router => self.experts,
            Values::Q | Values::Attended => self.query,
            Values::K | Values::V => self.key,
            Values::Gate | Values::Up => self.inner,
        }
    }

    /// Where every buffer lies, for batches of so many tokens.
    pub(super) fn plan(&self, batch: usize) -> (Plan, Offsets) {
        let mut plan = Plan::default();
        let pairs = self.tokens * self.best;
        let all = [
            Values::X,
            Values::Normed,
            Values::Added,
            Values::Router,
            Values::Q,
            Values::K,
            Values::V,
            Values::Attended,
            Values::Gate,
            Values::Up,
        ];
        let values = all.map(|v| {
            let rows = if v.of_pass() {
                self.tokens
            } else {
                batch.min(self.tokens)
            };
            let len = rows * self.width(v);
            (plan.take(self.bytes(len)), len)
        });
        let other_x = plan.take(self.bytes(FEW_TOKENS * self.hidden));
        let arrived = plan.take(FEW_TOKENS * 4);
        let turns = [(); 2].map(|()| plan.take(self.positions * self.half * 4));
        let choice = [
            self.tokens * self.experts * 4,
            pairs * 4,
            pairs * 4,
            pairs * 4,
            self.experts * 4,
            pairs * 4,
            tiles_bytes(pairs, self.experts),
        ]
        .map(|bytes| plan.take(bytes));
        let [inner, y] = [self.moe, self.hidden].map(|n| plan.take(self.bytes(pairs * n)));
        let partial = plan.take(self.partial() * 4);
        let logits = plan.take(self.bytes(self.logit_rows() * self.vocab));
        let ids = plan.take(self.tokens.max(2) * 4);
        let greatest = plan.take(ARGMAX_BYTES);
        let positions = plan.take(self.tokens * 4);
        let table = plan.take(self.experts * 24);
        let tables = plan.take(self.layers * self.experts * 24);
        let uses = plan.take(self.layers * self.experts * 4);
        let offsets = Offsets {
            values,
            other_x,
            arrived,
            turns,
            choice,
            inner,
            y,
            partial,
            logits,
            ids,
            greatest,
            positions,
            table,
            tables,
            uses,
        };
        (plan, offsets)
    }

    /// Keys and values of a layer.
    pub(super) fn cache_bytes(&self) -> usize {
        2 * self.bytes(self.positions * self.key)
    }

    pub(super) fn logit_rows(&self) -> usize {
        self.tokens.min(LOGIT_ROWS)
    }
}

/// Byte offsets of the buffers.
pub(super) struct Offsets {
    pub(super) values: [(usize, usize); Values::COUNT],
    pub(super) other_x: usize,
    pub(super) arrived: usize,
    pub(super) turns: [usize; 2],
    pub(super) choice: [usize; 7],
    pub(super) inner: usize,
    pub(super) y: usize,
    pub(super) partial: usize,
    pub(super) logits: usize,
    pub(super) ids: usize,
    pub(super) greatest: usize,
    pub(super) positions: usize,
    pub(super) table: usize,
    pub(super) tables: usize,
    pub(super) uses: usize,
}

impl Buffers {
    pub(super) fn new(gpu: &Arc<Gpu>, sizes: &Sizes, batch: usize) -> Result<Self, CudaError> {
        let (plan, at) = sizes.plan(batch);
        let memory = gpu.alloc(plan.bytes, "activations")?;
        let start = memory.place();
        let f32s = |bytes: usize, len: usize| View::f32(start.byte(bytes), len);
        let view =
            |bytes: usize, len: usize| View::activations(sizes.compute, start.byte(bytes), len);
        let pairs = sizes.tokens * sizes.best;
        let [probabilities, ids, weights, order, counts, sorted, tiles] =
            at.choice.map(|at| start.byte(at));
        let uses = sizes.layers * sizes.experts * 4;
        gpu.upload_now(start.byte(at.uses), &vec![0; uses])?;
        gpu.upload_now(start.byte(at.arrived), &[0; FEW_TOKENS * 4])?;
        if sizes.partial() > 0 {
            gpu.upload_now(start.byte(at.partial), &vec![0; counters(sizes.heads) * 4])?;
        }
        Ok(Self {
            values: at.values.map(|(at, len)| view(at, len)),
            other_x: view(at.other_x, FEW_TOKENS * sizes.hidden),
            arrived: start.byte(at.arrived),
            turns: at.turns.map(|at| f32s(at, sizes.positions * sizes.half)),
            turns_there: false,
            choice: Choice {
                probabilities,
                ids,
                weights,
                order,
                counts,
                sorted,
                tiles,
                uses: Place::NULL,
            },
            inner: view(at.inner, pairs * sizes.moe),
            y: view(at.y, pairs * sizes.hidden),
            partial: f32s(at.partial, sizes.partial()),
            parts: sizes.parts(),
            logits: view(at.logits, sizes.logit_rows() * sizes.vocab),
            ids: start.byte(at.ids),
            greatest: start.byte(at.greatest),
            positions: start.byte(at.positions),
            table: start.byte(at.table),
            tables: start.byte(at.tables),
            uses: start.byte(at.uses),
            host_ids: gpu.alloc_host(sizes.tokens * 4)?,
            host_positions: gpu.alloc_host(sizes.tokens * 4)?,
            host_tables: gpu.alloc_host(sizes.experts * sizes.experts * 24)?,
            host_uses: gpu.alloc_host(uses)?,
            _memory: memory,
        })
    }
}

/// Bytes of the GPU that a model and its settings need.
pub(super) fn demand(model: &TextModel<'_>, sizes: &Sizes, facts: &TextFacts) -> Demand {
    let groups = || model.groups.iter().map(|g| room_of(g) as u64);
    let fixed = |batch| sizes.plan(batch).0.bytes as u64;
    let (none, one) = (fixed(0), fixed(1));
    Demand {
        // every allocation begins a page, and leaves some of its last one
        overhead: none + (ALLOCATIONS * PAGE) as u64,
        manifest: 0,
        kv: (sizes.layers * sizes.cache_bytes()) as u64,
        tokens: sizes.tokens as u64,
        pass: 0,
        per_token: one - none,
        dense: groups().sum(),
        dense_streamed: groups().max().unwrap_or(0),
        expert: model
            .experts()
            .map(|e| room_for(e.segment))
            .max()
            .unwrap_or(0),
        experts: model.experts().count() as u64,
        experts_per_token: u64::from(facts.experts_per_token),
    }
}

/// Bytes of host memory that are needed at least: the program, the largest segment that passes
/// through, one expert.
fn host_demand(setup: &Setup<'_, '_>, expert: u64) -> u64 {
    let segments = setup.model.groups.iter().flat_map(|g| &g.segments);
    let staging = segments.map(|s| room_for(s)).max().unwrap_or(0);
    let tensors = setup.source.pack().manifest().tensors.len() as u64;
    let program =
        PROGRAM_BYTES + tensors * MANIFEST_ENTRY_BYTES + scratch_bytes(setup.model.any_coded());
    program + staging + expert
}

/// Slots in host memory: what its budget leaves, and at least one.
pub(super) fn host_slots(setup: &Setup<'_, '_>, demand: &Demand) -> Result<u64, RunError> {
    let least = host_demand(setup, demand.expert);
    let most = demand.experts;
    let Some(memory) = setup.settings.memory else {
        return Ok(LEAST_HOST_SLOTS.min(most));
    };
    if memory < least {
        return Err(RunError::Memory {
            memory,
            minimum: least,
        });
    }
    let more = (memory - least).checked_div(demand.expert).unwrap_or(0);
    Ok(more.saturating_add(1).min(most))
}

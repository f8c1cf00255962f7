//! How a model's activations, tables and counts lie in the memory of a GPU, and how much a model
//! needs of it.

use std::sync::Arc;

use super::dense::{ALIGNMENT, group_bytes};
use super::driver::{CudaError, DeviceMemory, DevicePtr, Gpu, HostMemory};
use super::launch::{
    ARGMAX_BYTES, FEW_TOKENS, MAX_PARTS, RouterBuffers, View, WHOLE_POSITIONS, activation_bytes,
    counters, partial_values, tiles_bytes,
};
use super::slots::ENTRY_BYTES;
use crate::error::RunError;
use crate::models::decoder::bind::DecoderWeights;
use crate::models::decoder::executor::{Activation, DecoderSetup};
use crate::models::decoder::{DecoderSpec, RunSettings};
use crate::tensor::{Compute, Heads};
use crate::weights::{Demand, NetworkDemand, SegmentLoad, program_bytes};

/// Slots in host memory where no budget gives more: as many reads in flight as the CPU has.
pub(super) const MIN_HOST_SLOTS: u64 = 16;
/// Tokens whose logits are in memory at a time.
pub(super) const LOGIT_ROWS: usize = 64;
/// Positions of a part of decoding's attention.
const PART_POSITIONS: usize = 64;
/// The driver gives memory in pages of this size (cuMemGetAllocationGranularity says so of all
/// devices up to now).
const PAGE: usize = 2 << 20;
/// Allocations of a model: activations, keys and values, dense weights, experts, the embedding or
/// those of codes.
const ALLOCATIONS: usize = 5;

/// Activations and what kernels keep in between, all in one piece of memory.
pub(super) struct Buffers {
    pub(super) _memory: DeviceMemory,
    pub(super) activations: [View; Activation::ALL.len()],
    /// A second buffer for Residual of few tokens.
    pub(super) other_residual: View,
    /// Blocks of each of few tokens that arrived; 0 between launches.
    pub(super) arrived: DevicePtr,
    /// cos, then sin, of every position.
    pub(super) rotary: [View; 2],
    pub(super) has_rotary: bool,
    pub(super) router: RouterBuffers,
    pub(super) inner: View,
    pub(super) y: View,
    /// Of the expert that every token visits; empty where there is none.
    pub(super) shared: SharedBuffers,
    pub(super) partial: View,
    pub(super) parts: usize,
    pub(super) logits: View,
    pub(super) ids: DevicePtr,
    /// Of the parts of the logits the highest.
    pub(super) argmax: DevicePtr,
    /// Cached positions before each batch.
    pub(super) positions: DevicePtr,
    /// One layer's table of experts that are on the device now; then of every layer the table of all its
    /// experts.
    pub(super) table: DevicePtr,
    pub(super) tables: DevicePtr,
    /// Uses of every expert of every layer, u32.
    pub(super) uses: DevicePtr,
    /// What is copied from here while the device works: ids and positions, tables, uses.
    pub(super) host_ids: HostMemory,
    pub(super) host_positions: HostMemory,
    pub(super) host_tables: HostMemory,
    pub(super) host_uses: HostMemory,
}

/// What the shared expert computes of all tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharedBuffers {
    /// `[tokens, intermediate]` each.
    pub(super) gate: View,
    pub(super) up: View,
    /// `[tokens, hidden]`
    pub(super) out: View,
    /// `[tokens]`: what the sigmoid is of.
    pub(super) router: View,
}

/// Cuts memory into buffers.
#[derive(Default)]
pub(super) struct BufferPlan {
    pub(super) bytes: usize,
}

impl BufferPlan {
    pub(super) fn take(&mut self, bytes: usize) -> usize {
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
    /// Width of the expert that every token visits.
    pub(super) shared: Option<usize>,
    pub(super) experts: usize,
    pub(super) top_k: usize,
    pub(super) vocab: usize,
    pub(super) layers: usize,
    pub(super) half: usize,
    pub(super) positions: usize,
    pub(super) tokens: usize,
    pub(super) heads: Heads,
    pub(super) compute: Compute,
}

impl Sizes {
    pub(super) fn of(spec: &DecoderSpec, settings: &RunSettings, compute: Compute) -> Self {
        Self {
            hidden: spec.hidden,
            query: spec.query_width(),
            key: spec.key_width(),
            inner: spec.intermediate,
            moe: spec.moe_intermediate,
            shared: spec.shared_intermediate(),
            experts: spec.experts,
            top_k: spec.experts_per_token.min(spec.experts),
            vocab: spec.vocab,
            layers: spec.layers,
            half: spec.heads.width / 2,
            positions: settings.positions.max(1),
            tokens: settings.longest_pass.max(1),
            heads: spec.heads,
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
        self.positions.div_ceil(PART_POSITIONS).clamp(1, MAX_PARTS)
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
    fn width(&self, activation: Activation) -> usize {
        match activation {
            Activation::Residual | Activation::Normed | Activation::Added => self.hidden,
            Activation::Router => self.experts,
            Activation::Q | Activation::Attended => self.query,
            Activation::K | Activation::V => self.key,
            Activation::Gate | Activation::Up => self.inner,
        }
    }

    /// Values of the buffers of the shared expert, in the order of [`SharedBuffers`].
    fn shared_values(&self) -> [usize; 4] {
        let of_token = self.shared.map_or([0; 4], |n| [n, n, self.hidden, 1]);
        of_token.map(|values| values * self.tokens)
    }

    /// Where every buffer lies, for batches of so many tokens.
    pub(super) fn plan(&self, batch: usize) -> (BufferPlan, Offsets) {
        let mut plan = BufferPlan::default();
        let pairs = self.tokens * self.top_k;
        let activations = Activation::ALL.map(|activation| {
            let rows = if activation.is_of_all_tokens() {
                self.tokens
            } else {
                batch.min(self.tokens)
            };
            let len = rows * self.width(activation);
            (plan.take(self.bytes(len)), len)
        });
        let other_residual = plan.take(self.bytes(FEW_TOKENS * self.hidden));
        let arrived = plan.take(FEW_TOKENS * 4);
        let rotary = [(); 2].map(|()| plan.take(self.positions * self.half * 4));
        let router = [
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
        let shared = self.shared_values().map(|n| plan.take(self.bytes(n)));
        let partial = plan.take(self.partial() * 4);
        let logits = plan.take(self.bytes(self.logit_rows() * self.vocab));
        let ids = plan.take(self.tokens.max(2) * 4);
        let argmax = plan.take(ARGMAX_BYTES);
        let positions = plan.take(self.tokens * 4);
        let table = plan.take(self.experts * ENTRY_BYTES);
        let tables = plan.take(self.layers * self.experts * ENTRY_BYTES);
        let uses = plan.take(self.layers * self.experts * 4);
        let offsets = Offsets {
            activations,
            other_residual,
            arrived,
            rotary,
            router,
            inner,
            y,
            shared,
            partial,
            logits,
            ids,
            argmax,
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
    pub(super) activations: [(usize, usize); Activation::ALL.len()],
    pub(super) other_residual: usize,
    pub(super) arrived: usize,
    pub(super) rotary: [usize; 2],
    pub(super) router: [usize; 7],
    pub(super) inner: usize,
    pub(super) y: usize,
    pub(super) shared: [usize; 4],
    pub(super) partial: usize,
    pub(super) logits: usize,
    pub(super) ids: usize,
    pub(super) argmax: usize,
    pub(super) positions: usize,
    pub(super) table: usize,
    pub(super) tables: usize,
    pub(super) uses: usize,
}

impl Buffers {
    pub(super) fn new(gpu: &Arc<Gpu>, sizes: &Sizes, batch: usize) -> Result<Self, CudaError> {
        let (plan, at) = sizes.plan(batch);
        let memory = gpu.alloc(plan.bytes, "activations")?;
        let start = memory.start();
        let view =
            |offset: usize, len: usize| View::activations(sizes.compute, start.offset(offset), len);
        let pairs = sizes.tokens * sizes.top_k;
        let [probabilities, ids, weights, order, counts, sorted, tiles] =
            at.router.map(|offset| start.offset(offset));
        let values = sizes.shared_values();
        let [gate, up, out, router] = [0, 1, 2, 3].map(|i| view(at.shared[i], values[i]));
        // what kernels expect to be 0
        let uses = sizes.layers * sizes.experts * 4;
        gpu.upload_now(start.offset(at.uses), &vec![0; uses])?;
        gpu.upload_now(start.offset(at.arrived), &[0; FEW_TOKENS * 4])?;
        if sizes.partial() > 0 {
            gpu.upload_now(
                start.offset(at.partial),
                &vec![0; counters(sizes.heads) * 4],
            )?;
        }
        Ok(Self {
            activations: at.activations.map(|(offset, len)| view(offset, len)),
            other_residual: view(at.other_residual, FEW_TOKENS * sizes.hidden),
            arrived: start.offset(at.arrived),
            rotary: at
                .rotary
                .map(|offset| View::f32(start.offset(offset), sizes.positions * sizes.half)),
            has_rotary: false,
            router: RouterBuffers {
                probabilities,
                ids,
                weights,
                order,
                counts,
                sorted,
                tiles,
                uses: DevicePtr::NULL,
            },
            inner: view(at.inner, pairs * sizes.moe),
            y: view(at.y, pairs * sizes.hidden),
            shared: SharedBuffers {
                gate,
                up,
                out,
                router,
            },
            partial: View::f32(start.offset(at.partial), sizes.partial()),
            parts: sizes.parts(),
            logits: view(at.logits, sizes.logit_rows() * sizes.vocab),
            ids: start.offset(at.ids),
            argmax: start.offset(at.argmax),
            positions: start.offset(at.positions),
            table: start.offset(at.table),
            tables: start.offset(at.tables),
            uses: start.offset(at.uses),
            host_ids: gpu.alloc_host(sizes.tokens * 4)?,
            host_positions: gpu.alloc_host(sizes.tokens * 4)?,
            host_tables: gpu.alloc_host(sizes.experts * sizes.experts * ENTRY_BYTES)?,
            host_uses: gpu.alloc_host(uses)?,
            _memory: memory,
        })
    }
}

/// Bytes of the GPU that a decoder and its settings need.
pub(super) fn demand(weights: &DecoderWeights<'_>, sizes: &Sizes, spec: &DecoderSpec) -> Demand {
    let groups = || weights.groups.iter().map(|g| group_bytes(g) as u64);
    let [none, one] = [0, 1].map(|batch| sizes.plan(batch).0.bytes as u64);
    Demand {
        // every allocation begins a page, and leaves some of its last one
        overhead: none + (ALLOCATIONS * PAGE) as u64,
        manifest: 0,
        network: NetworkDemand {
            state: (sizes.layers * sizes.cache_bytes()) as u64,
            tokens: sizes.tokens as u64,
            activations: 0,
            per_token: one - none,
            dense: groups().sum(),
            dense_streamed: groups().max().unwrap_or(0),
            expert: weights.slot_bytes(),
            experts: weights.experts().count() as u64,
            experts_per_token: spec.experts_per_token as u64,
        },
    }
}

/// Bytes of host memory that are needed at least: the program, the largest segment that passes
/// through, one expert.
fn min_host_memory(setup: &DecoderSetup<'_, '_>, expert: u64) -> u64 {
    let segments = setup.weights.groups.iter().flat_map(|g| g.segments());
    let staging = segments.map(SegmentLoad::buffer_len).max().unwrap_or(0);
    let (overhead, manifest) = program_bytes(setup.source, setup.weights.is_any_coded());
    overhead + manifest + staging + setup.weights.staging_bytes() + expert
}

/// Slots in host memory: what its budget leaves, and at least one.
pub(super) fn host_slots(setup: &DecoderSetup<'_, '_>, demand: &Demand) -> Result<u64, RunError> {
    let NetworkDemand {
        expert, experts, ..
    } = demand.network;
    let minimum = min_host_memory(setup, expert);
    let Some(memory) = setup.settings.memory else {
        return Ok(MIN_HOST_SLOTS.min(experts));
    };
    if memory < minimum {
        return Err(RunError::Memory { memory, minimum });
    }
    let more = (memory - minimum).checked_div(expert).unwrap_or(0);
    Ok(more.saturating_add(1).min(experts))
}

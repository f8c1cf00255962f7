//! The experts of a layer: each loaded at most once for all tokens, those that are there computed
//! while others load.
//!
//! Outputs are added in ascending order of experts, the order of the eager code, whatever was in
//! memory.

use std::time::{Duration, Instant};

use segpack_manifests::families::ExpertActivation;

use super::scratch::MlpScratch;
use crate::error::RunError;
use crate::models::decoder::bind::ExpertWeights;
use crate::models::decoder::{LinearInput, Observer, Routing};
use crate::ops::Ops;
use crate::tensor::Linear;
use crate::weights::{Block, ExpertKey, ExpertStore, Load, MAX_LOADS, PlacedTensor};

/// The tokens that go to one expert.
#[derive(Debug, Default)]
struct Visits {
    expert: u32,
    /// Token and weight.
    tokens: Vec<(usize, f32)>,
}

/// Experts that are in memory at the same time; `visits` are consecutive, with at most a batch of
/// tokens in all unless it is one expert.
struct ExpertGroup<'v> {
    visits: &'v [Visits],
}

impl ExpertGroup<'_> {
    fn tokens(&self) -> usize {
        self.visits.iter().map(|v| v.tokens.len()).sum()
    }
}

/// What computing a layer's experts takes.
pub(super) struct ExpertForward<'a, 'p, O> {
    pub(super) ops: &'p O,
    pub(super) layer: u32,
    pub(super) experts: &'p [ExpertWeights<'a>],
    pub(super) store: ExpertStore<'p, 'a>,
    /// `[tokens, hidden]`.
    pub(super) x: &'p [f32],
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    /// What is made of gate and up.
    pub(super) activation: ExpertActivation,
    /// Maximum number of tokens of a linear layer.
    pub(super) max_batch: usize,
    pub(super) scratch: &'p mut MlpScratch,
    /// Time in which nothing could be computed, because experts were still loading.
    pub(super) waited: &'p mut Duration,
    /// `[tokens, hidden]`, zeros at first.
    pub(super) out: &'p mut [f32],
    /// Sees what down projections get.
    pub(super) observer: &'p mut dyn Observer,
}

/// Which experts are visited by which tokens, in ascending order of experts, then of tokens.
fn visits(routing: &Routing, top_k: usize) -> Vec<Visits> {
    let mut visits: Vec<Visits> = Vec::new();
    for (i, (expert, weight)) in routing.ids.iter().zip(&routing.weights).enumerate() {
        let at = *expert as usize;
        if visits.len() <= at {
            visits.resize_with(at + 1, Visits::default);
        }
        visits[at].expert = *expert;
        visits[at].tokens.push((i / top_k, *weight));
    }
    visits.retain(|v| !v.tokens.is_empty());
    visits
}

/// Cuts visits into groups of at most so many experts, and tokens.
fn groups(visits: &[Visits], max_experts: usize, max_tokens: usize) -> Vec<ExpertGroup<'_>> {
    let (mut groups, mut first, mut tokens) = (Vec::new(), 0, 0);
    for (i, visit) in visits.iter().enumerate() {
        if i > first && (i - first >= max_experts || tokens + visit.tokens.len() > max_tokens) {
            groups.push(ExpertGroup {
                visits: &visits[first..i],
            });
            (first, tokens) = (i, 0);
        }
        tokens += visit.tokens.len();
    }
    groups.push(ExpertGroup {
        visits: &visits[first..],
    });
    groups
}

/// Slots on their way: filled, or about to be.
type Loading = Vec<(u32, Block)>;

impl<O: Ops> ExpertForward<'_, '_, O> {
    /// Adds every expert's part to `out`. Returns the experts that were visited, and whether each
    /// was in memory.
    pub(super) fn run(
        mut self,
        routing: &Routing,
        top_k: usize,
    ) -> Result<Vec<(u32, bool)>, RunError> {
        let visits = visits(routing, top_k);
        let slots = self.store.cache.slots();
        // half of the slots at a time, so that the next group can load while this one is computed
        let max_experts = if slots >= 2 * visits.len() {
            MAX_LOADS
        } else {
            (slots / 2).clamp(1, MAX_LOADS)
        };
        let experts: Vec<u32> = visits.iter().map(|visit| visit.expert).collect();
        self.store.cache.visit(self.layer, &experts);
        let groups = groups(&visits, max_experts, self.max_batch);
        let (mut uses, mut loaded) = (Vec::new(), false);
        for i in 0..groups.len() {
            let groups = &groups[i..];
            let done = if loaded {
                Vec::new()
            } else {
                self.load_group(groups, &mut uses)?
            };
            loaded = self.compute_while_loading(groups, &done, &mut uses)?;
        }
        Ok(uses)
    }

    /// Counts the use of a group's experts; returns those that are not there.
    fn touch(&mut self, group: &ExpertGroup<'_>, uses: &mut Vec<(u32, bool)>) -> Vec<u32> {
        let mut missing = Vec::new();
        for visit in group.visits {
            let there = self.store.cache.touch((self.layer, visit.expert));
            uses.push((visit.expert, there));
            if !there {
                missing.push(visit.expert);
            }
        }
        missing
    }

    /// Slots for these experts, if there are enough beside those of the first `in_use` groups.
    /// Experts of the later groups make room only where nothing else can.
    fn slots_for(
        &mut self,
        missing: &[u32],
        groups: &[ExpertGroup<'_>],
        in_use: usize,
    ) -> Option<Loading> {
        let layer = self.layer;
        let mut loading = Loading::new();
        for expert in missing {
            let cache = &mut self.store.cache;
            let slot = cache.take(|key| is_of(key, layer, groups));
            let slot = slot.or_else(|| cache.take(|key| is_of(key, layer, &groups[..in_use])));
            let Some(slot) = slot else {
                loading
                    .into_iter()
                    .for_each(|(_, slot)| self.store.cache.put_empty(slot));
                return None;
            };
            loading.push((*expert, slot));
        }
        Some(loading)
    }

    /// Loads what the first group lacks while those that are there are computed; returns those.
    fn load_group(
        &mut self,
        groups: &[ExpertGroup<'_>],
        uses: &mut Vec<(u32, bool)>,
    ) -> Result<Vec<u32>, RunError> {
        let group = &groups[0];
        let missing = self.touch(group, uses);
        let loading = self.slots_for(&missing, groups, 1);
        let loading = loading.ok_or(RunError::Internal("too few expert slots"))?;
        if missing.is_empty() || group.tokens() > self.max_batch {
            self.load(loading, |_| ())?;
            return Ok(Vec::new());
        }
        let there: Vec<u32> = group
            .visits
            .iter()
            .map(|v| v.expert)
            .filter(|e| !missing.contains(e))
            .collect();
        self.load(loading, |forward| {
            forward.compute(group, &|e| there.contains(&e))
        })??;
        Ok(there)
    }

    /// Loads while `work` is done.
    fn load<R>(
        &mut self,
        mut loading: Loading,
        work: impl FnOnce(&mut Self) -> R,
    ) -> Result<R, RunError> {
        let (experts, loader, stop) = (self.experts, self.store.loader, self.store.stop);
        let mut loads: Vec<Load<'_, '_>> = Vec::new();
        for (expert, slot) in &mut loading {
            let load = &experts[*expert as usize].load;
            loads.push(Load::new(load, &mut slot[..]));
        }
        let began = Instant::now();
        let (loaded, (done, worked)) = loader.load_while(&mut loads, stop, || {
            let done = work(self);
            (done, began.elapsed())
        });
        drop(loads);
        *self.waited += began.elapsed().saturating_sub(worked);
        for (expert, slot) in loading {
            match loaded {
                Ok(()) => self.store.cache.put((self.layer, expert), slot),
                Err(_) => self.store.cache.put_empty(slot),
            }
        }
        loaded?;
        Ok(done)
    }

    /// Computes what is left of the first group, all of which is there, and adds it. Meanwhile
    /// loads the next group, if there are slots for it; returns whether it did.
    fn compute_while_loading(
        &mut self,
        groups: &[ExpertGroup<'_>],
        done: &[u32],
        uses: &mut Vec<(u32, bool)>,
    ) -> Result<bool, RunError> {
        self.store.stop.check()?;
        let (group, next) = (&groups[0], groups.get(1));
        let loading = next.and_then(|next| {
            let there = |e: u32| self.store.cache.get((self.layer, e)).is_some();
            let missing: Vec<u32> = next
                .visits
                .iter()
                .map(|v| v.expert)
                .filter(|e| !there(*e))
                .collect();
            self.slots_for(&missing, groups, 2)
        });
        let (Some(loading), Some(next)) = (loading, next) else {
            self.compute_and_add(group, done)?;
            return Ok(false);
        };
        self.touch(next, uses);
        self.load(loading, |forward| forward.compute_and_add(group, done))??;
        Ok(true)
    }

    fn compute_and_add(&mut self, group: &ExpertGroup<'_>, done: &[u32]) -> Result<(), RunError> {
        if group.tokens() <= self.max_batch {
            self.compute(group, &|e| !done.contains(&e))?;
            self.add(group);
            return Ok(());
        }
        // one expert with more tokens than a batch
        for visit in group.visits {
            for tokens in visit.tokens.chunks(self.max_batch) {
                let part = [Visits {
                    expert: visit.expert,
                    tokens: tokens.to_vec(),
                }];
                self.compute(&ExpertGroup { visits: &part }, &|_| true)?;
                self.add(&ExpertGroup { visits: &part });
            }
        }
        Ok(())
    }

    /// `y = down(silu(gate(x)) · up(x))`, or what another activation makes of gate and up, for all
    /// tokens of the wanted experts, each at its place in the group.
    fn compute(
        &mut self,
        group: &ExpertGroup<'_>,
        wanted: &dyn Fn(u32) -> bool,
    ) -> Result<(), RunError> {
        let (hidden, inner, total) = (self.hidden, self.intermediate, group.tokens());
        let layer = self.layer as usize;
        let MlpScratch { x, gate, up, y } = &mut *self.scratch;
        let mut x = x.of(total * hidden);
        let (mut gate, mut up) = (gate.of(total * inner), up.of(total * inner));
        let mut y = y.of(total * hidden);
        let mut parts = Vec::new();
        for visit in group.visits {
            let n = visit.tokens.len();
            let part = Part {
                number: visit.expert,
                expert: &self.experts[visit.expert as usize],
                memory: self
                    .store
                    .cache
                    .get((self.layer, visit.expert))
                    .map_or(&[][..], |slot| slot),
                x: x.split_off_mut(..n * hidden).unwrap_or_default(),
                gate: gate.split_off_mut(..n * inner).unwrap_or_default(),
                up: up.split_off_mut(..n * inner).unwrap_or_default(),
                y: y.split_off_mut(..n * hidden).unwrap_or_default(),
            };
            if wanted(visit.expert) {
                self.ops.gather(self.x, hidden, &visit.tokens, part.x);
                let of = LinearInput::Expert(visit.expert);
                self.observer.linear_input(layer, of, hidden, part.x);
                parts.push(part);
            }
        }
        let mut linears = Vec::new();
        for Part {
            expert,
            memory,
            x,
            gate,
            up,
            ..
        } in &mut parts
        {
            linears.push(Linear {
                x,
                weight: expert.gate.weight.matrix(memory),
                bias: None,
                out: gate,
            });
            linears.push(Linear {
                x,
                weight: expert.up.weight.matrix(memory),
                bias: None,
                out: up,
            });
        }
        self.ops.linears_until(&mut linears, self.store.stop)?;
        drop(linears);
        for part in &mut parts {
            let Part { expert, memory, .. } = part;
            add_bias(self.ops, part.gate, expert.gate.bias, memory);
            add_bias(self.ops, part.up, expert.up.bias, memory);
            activate(self.ops, self.activation, part.gate, part.up);
            let of = LinearInput::ExpertDown(part.number);
            self.observer.linear_input(layer, of, inner, part.gate);
        }
        let mut linears = Vec::new();
        for Part {
            expert,
            memory,
            gate,
            y,
            ..
        } in &mut parts
        {
            linears.push(Linear {
                x: gate,
                weight: expert.down.weight.matrix(memory),
                bias: None,
                out: y,
            });
        }
        self.ops.linears_until(&mut linears, self.store.stop)?;
        drop(linears);
        for Part {
            expert, memory, y, ..
        } in &mut parts
        {
            add_bias(self.ops, y, expert.down.bias, memory);
        }
        Ok(())
    }

    /// Adds a computed group to `out`, expert by expert.
    fn add(&mut self, group: &ExpertGroup<'_>) {
        let visits: Vec<(usize, f32)> = group
            .visits
            .iter()
            .flat_map(|v| &v.tokens)
            .copied()
            .collect();
        let y = self.scratch.y.of(visits.len() * self.hidden);
        self.ops.scatter_add(y, self.hidden, &visits, self.out);
    }
}

/// One expert's share of the buffers.
struct Part<'m, 'e> {
    number: u32,
    expert: &'m ExpertWeights<'e>,
    memory: &'m [u8],
    x: &'m mut [f32],
    gate: &'m mut [f32],
    up: &'m mut [f32],
    y: &'m mut [f32],
}

/// `gate` = what is made of gate and up.
#[expect(
    clippy::cast_possible_truncation,
    reason = "constants are applied in f32, as torch does"
)]
fn activate(ops: &impl Ops, activation: ExpertActivation, gate: &mut [f32], up: &[f32]) {
    match activation {
        ExpertActivation::ClampedSwiglu { alpha, limit } => {
            ops.clamped_swiglu(gate, up, alpha as f32, limit as f32);
        }
        ExpertActivation::SiluMul => ops.silu_mul(gate, up),
    }
}

/// Adds a bias to every row, which was rounded before: experts with biases are no linear layers to
/// the official class, but a product and a sum.
fn add_bias(ops: &impl Ops, rows: &mut [f32], bias: Option<PlacedTensor>, memory: &[u8]) {
    if let Some(bias) = bias {
        let bias = bias.values(memory);
        let rows = rows.chunks_exact_mut(bias.len().max(1));
        rows.for_each(|row| ops.add(row, &bias));
    }
}

/// Whether one of these groups of a layer needs this expert.
fn is_of((l, e): ExpertKey, layer: u32, groups: &[ExpertGroup<'_>]) -> bool {
    let mut visits = groups.iter().flat_map(|group| group.visits);
    l == layer && visits.any(|visit| visit.expert == e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keep_the_order_and_the_limits() {
        let visits: Vec<Visits> = [1, 2, 9, 1, 1, 1, 3]
            .iter()
            .enumerate()
            .map(|(i, n)| Visits {
                expert: u32::try_from(i).unwrap(),
                tokens: vec![(0, 1.0); *n],
            })
            .collect();
        let sizes = |max_experts, max_tokens| -> Vec<Vec<u32>> {
            groups(&visits, max_experts, max_tokens)
                .iter()
                .map(|g| g.visits.iter().map(|v| v.expert).collect())
                .collect()
        };
        assert_eq!(sizes(16, 100), [vec![0, 1, 2, 3, 4, 5, 6]]);
        assert_eq!(sizes(2, 100), [vec![0, 1], vec![2, 3], vec![4, 5], vec![6]]);
        assert_eq!(sizes(16, 4), [vec![0, 1], vec![2], vec![3, 4, 5], vec![6]]);
        assert_eq!(sizes(1, 1).len(), 7);
    }

    #[test]
    fn visits_are_sorted_by_expert_then_token() {
        let routing = Routing {
            ids: vec![3, 0, 0, 2, 3, 2],
            weights: vec![0.5; 6],
            ..Routing::default()
        };
        let seen: Vec<(u32, Vec<usize>)> = visits(&routing, 2)
            .into_iter()
            .map(|v| (v.expert, v.tokens.iter().map(|t| t.0).collect()))
            .collect();
        assert_eq!(seen, [(0, vec![0, 1]), (2, vec![1, 2]), (3, vec![0, 2])]);
    }
}

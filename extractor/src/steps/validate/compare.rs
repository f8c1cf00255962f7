//! Compares what a model computes with a reference while it runs.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use segpack_manifests::documents::{Choice, ChoiceRow, Quantity, ValueRow};
use segpack_manifests::families::TextFacts;
use segpack_runtime_min::trace::Ranked;
use segpack_runtime_min::{Observer, Routing};

use super::ranks::Distribution;
use crate::steps::StepError;

/// Router-logit gap at the cut up to which two implementations may choose different experts.
const ROUTER_GAP: f64 = 1e-3;

/// What a run of one prompt is compared with. Positions count from the first token of the prompt.
pub(super) trait Reference {
    /// Some rows of a quantity (of a layer, where it belongs to one), `[rows, columns]`; none where
    /// they are not there.
    fn floats(
        &self,
        quantity: Quantity,
        layer: usize,
        rows: Range<usize>,
        columns: usize,
    ) -> Result<Option<Vec<f32>>, StepError>;

    /// The chosen experts of some positions, best first; they may be more or fewer than the model
    /// chooses.
    fn experts(&self, layer: usize, rows: Range<usize>)
    -> Result<Option<Vec<Vec<u32>>>, StepError>;

    /// The greedy token after this position, if one was generated there.
    fn step(&self, position: usize) -> Result<Option<ReferenceStep>, StepError>;

    /// The best tokens after this position, of a reference that has log-probabilities and no
    /// logits; empty where it tells none.
    fn ranked(&self, _position: usize) -> Result<Option<Vec<Ranked>>, StepError> {
        Ok(None)
    }

    /// Smallest gap at the cut of any router at any token, where only that is known.
    fn router_margin(&self) -> Option<f64>;
}

/// One step of the reference's generation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ReferenceStep {
    /// The token it chose.
    pub token: u32,
    /// Its best tokens and their logits, best first; empty where they are not known.
    pub top: Vec<(u32, f32)>,
}

/// Differences of one quantity.
#[derive(Debug, Clone, Default)]
pub(super) struct Differences {
    values: u64,
    not_finite: u64,
    max_abs: f64,
    sum_abs: f64,
    dot: f64,
    seen_squares: f64,
    wanted_squares: f64,
    worst: Option<[u64; 2]>,
}

impl Differences {
    fn add(&mut self, seen: f32, wanted: f32, place: [u64; 2]) {
        self.values += 1;
        let (a, b) = (f64::from(seen), f64::from(wanted));
        if !(a.is_finite() && b.is_finite()) {
            self.not_finite += 1; // also where both are: nothing was compared
            return;
        }
        let difference = (a - b).abs();
        if difference > self.max_abs {
            (self.max_abs, self.worst) = (difference, Some(place));
        }
        self.sum_abs += difference;
        self.dot += a * b;
        self.seen_squares += a * a;
        self.wanted_squares += b * b;
    }

    /// Adds those of other layers or prompts.
    pub(super) fn merge(&mut self, other: &Self) {
        if other.max_abs > self.max_abs {
            (self.max_abs, self.worst) = (other.max_abs, other.worst);
        }
        self.values += other.values;
        self.not_finite += other.not_finite;
        self.sum_abs += other.sum_abs;
        self.dot += other.dot;
        self.seen_squares += other.seen_squares;
        self.wanted_squares += other.wanted_squares;
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of values")]
    fn count(&self) -> f64 {
        self.values.max(1) as f64
    }

    fn relative(&self) -> Option<f64> {
        let rms = (self.wanted_squares / self.count()).sqrt();
        (rms > 0.0).then(|| self.max_abs / rms)
    }

    fn cosine(&self) -> Option<f64> {
        let norms = (self.seen_squares * self.wanted_squares).sqrt();
        (norms > 0.0).then(|| self.dot / norms)
    }

    /// As a row of the report. More than `bound`, relative to the RMS, is wrong.
    pub(super) fn row(&self, quantity: Quantity, layer: Option<u32>, bound: f64) -> ValueRow {
        let relative = self.relative();
        let is_off = relative.map_or(self.max_abs > 0.0, |r| r > bound);
        ValueRow {
            quantity,
            layer,
            values: self.values,
            not_finite: self.not_finite,
            max_abs: self.max_abs,
            mean_abs: self.sum_abs / self.count(),
            relative,
            cosine: self.cosine(),
            worst: self.worst,
            wrong: is_off || self.not_finite > 0,
        }
    }
}

/// Values that are not finite, of one quantity and layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotFinite {
    /// Of the run.
    pub seen: u64,
    /// Of the reference.
    pub wanted: u64,
    /// Prompt and position of the first.
    pub first: [u64; 2],
}

/// Whose values are looked at.
#[derive(Clone, Copy)]
enum Side {
    Run,
    Reference,
}

/// A choice that differs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Disagreement {
    pub choice: Choice,
    pub prompt: usize,
    pub position: usize,
    pub layer: Option<usize>,
    /// What was chosen here and there.
    pub seen: Vec<u32>,
    pub wanted: Vec<u32>,
    /// The reference's gap, where it is known.
    pub gap: Option<f64>,
}

/// All comparisons of all prompts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// By stage (0 before the layers, then the layers from 1, then what follows them) and quantity.
    pub values: BTreeMap<(usize, Quantity), Differences>,
    /// By choice and layer.
    pub choices: BTreeMap<(Choice, Option<usize>), ChoiceRow>,
    /// Choices that differ and are not excused.
    pub disagreements: Vec<Disagreement>,
    /// What is not finite, by stage and quantity, also where there is nothing to compare it with.
    pub not_finite: BTreeMap<(usize, Quantity), NotFinite>,
    /// ArgMax difference of logits or log-probabilities, by prompt.
    pub logits: BTreeMap<usize, Differences>,
}

impl Tally {
    /// Adds the comparisons of a later prompt.
    pub(super) fn merge(&mut self, other: Self) {
        for (key, differences) in other.values {
            self.values.entry(key).or_default().merge(&differences);
        }
        for (key, row) in other.choices {
            match self.choices.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(row);
                }
                Entry::Occupied(mut entry) => add_choices(entry.get_mut(), &row),
            }
        }
        self.disagreements.extend(other.disagreements);
        for (key, found) in other.not_finite {
            match self.not_finite.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(found);
                }
                Entry::Occupied(mut entry) => {
                    entry.get_mut().seen += found.seen;
                    entry.get_mut().wanted += found.wanted;
                }
            }
        }
        for (prompt, differences) in other.logits {
            self.logits.entry(prompt).or_default().merge(&differences);
        }
    }

    fn choose(&mut self, made: Disagreement, is_excused: bool) {
        let layer = made.layer.and_then(|l| u32::try_from(l).ok());
        let row = self
            .choices
            .entry((made.choice, made.layer))
            .or_insert(ChoiceRow {
                choice: made.choice,
                layer,
                compared: 0,
                equal: 0,
                excused: 0,
                first: None,
            });
        row.compared += 1;
        if made.seen == made.wanted {
            row.equal += 1;
        } else if is_excused {
            row.excused += 1;
        } else {
            row.first = row
                .first
                .or(Some([made.prompt as u64, made.position as u64]));
            self.disagreements.push(made);
        }
    }
}

/// Adds the choices of a later prompt.
fn add_choices(row: &mut ChoiceRow, other: &ChoiceRow) {
    row.compared += other.compared;
    row.equal += other.equal;
    row.excused += other.excused;
    row.first = row.first.or(other.first);
}

/// Compares the forward passes of one prompt; hand it to them as their observer.
pub(super) struct Comparer<'r> {
    pub reference: &'r dyn Reference,
    pub facts: &'r TextFacts,
    pub tally: &'r mut Tally,
    pub prompt: usize,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// The first position of this forward pass.
    pub position: usize,
    /// Tokens and ranks count as different where the reference's gap is more than this.
    pub tolerance: f64,
    /// What went wrong with the reference; an observer cannot fail.
    pub failure: Option<StepError>,
    /// Where the embeddings are kept, if they are compared by another.
    pub embedded: Option<&'r mut Vec<f32>>,
}

impl Comparer<'_> {
    fn width(&self) -> usize {
        usize::try_from(self.facts.hidden_size).unwrap_or(usize::MAX)
    }

    fn vocab(&self) -> usize {
        usize::try_from(self.facts.vocab).unwrap_or(usize::MAX)
    }

    fn place(&self, row: usize) -> [u64; 2] {
        [self.prompt as u64, (self.position + row) as u64]
    }

    /// Remembers the first failure of a comparison.
    fn attempt(&mut self, compare: impl FnOnce(&mut Self) -> Result<(), StepError>) {
        if self.failure.is_none() {
            self.failure = compare(self).err();
        }
    }

    fn values(
        &mut self,
        stage: usize,
        quantity: Quantity,
        seen: &[f32],
        columns: usize,
    ) -> Result<(), StepError> {
        let rows = self.position..self.position + seen.len() / columns.max(1);
        let layer = stage.saturating_sub(1);
        self.inspect((stage, quantity), Side::Run, seen, columns);
        let Some(wanted) = self.reference.floats(quantity, layer, rows, columns)? else {
            return Ok(());
        };
        self.inspect((stage, quantity), Side::Reference, &wanted, columns);
        let mut differences = Differences::default();
        for (i, (seen, wanted)) in seen.iter().zip(&wanted).enumerate() {
            differences.add(*seen, *wanted, self.place(i / columns));
        }
        self.note(stage, quantity, &differences);
        Ok(())
    }

    /// Counts what is not finite in rows of so many columns.
    fn inspect(&mut self, key: (usize, Quantity), side: Side, values: &[f32], columns: usize) {
        if values.iter().all(|x| x.is_finite()) {
            return;
        }
        for (row, values) in values.chunks(columns.max(1)).enumerate() {
            self.inspect_row(key, side, values, row);
        }
    }

    /// Counts what is not finite in a row of this forward pass.
    fn inspect_row(&mut self, key: (usize, Quantity), side: Side, values: &[f32], row: usize) {
        let count = values.iter().filter(|x| !x.is_finite()).count() as u64;
        if count == 0 {
            return;
        }
        let first = self.place(row);
        let entry = self.tally.not_finite.entry(key).or_insert(NotFinite {
            seen: 0,
            wanted: 0,
            first,
        });
        match side {
            Side::Run => entry.seen += count,
            Side::Reference => entry.wanted += count,
        }
    }

    fn note(&mut self, stage: usize, quantity: Quantity, differences: &Differences) {
        self.tally
            .values
            .entry((stage, quantity))
            .or_default()
            .merge(differences);
        if matches!(quantity, Quantity::Logits | Quantity::LogProbabilities) {
            self.tally
                .logits
                .entry(self.prompt)
                .or_default()
                .merge(differences);
        }
    }

    /// Experts, set by set; their weights where the sets are equal.
    fn experts(&mut self, layer: usize, routing: &Routing) -> Result<(), StepError> {
        let (best, experts) = (
            self.facts.experts_per_token as usize,
            self.facts.experts as usize,
        );
        let rows = self.position..self.position + routing.ids.len() / best;
        let key = (layer + 1, Quantity::ExpertWeights);
        self.inspect(key, Side::Run, &routing.weights, best);
        let Some(wanted) = self.reference.experts(layer, rows.clone())? else {
            return Ok(());
        };
        let wanted_best = wanted.first().map_or(0, Vec::len);
        let logits = self
            .reference
            .floats(Quantity::RouterLogits, layer, rows.clone(), experts)?;
        let weights =
            self.reference
                .floats(Quantity::ExpertWeights, layer, rows.clone(), wanted_best)?;
        if let Some(weights) = &weights {
            self.inspect(key, Side::Reference, weights, wanted_best);
        }
        let mut differences = Differences::default();
        for (row, wanted) in wanted.iter().enumerate() {
            let at = row * best..(row + 1) * best;
            let (seen_ids, wanted_ids) = (sorted(&routing.ids[at.clone()]), sorted(wanted));
            if let Some(weights) = weights.as_ref().filter(|_| seen_ids == wanted_ids) {
                let seen = by_id(&routing.ids[at.clone()], &routing.weights[at.clone()]);
                let wanted = by_id(wanted, &weights[at.clone()]);
                let pairs = seen.values().zip(wanted.values());
                pairs.for_each(|(seen, wanted)| differences.add(*seen, *wanted, self.place(row)));
            }
            let cut = row * experts..(row + 1) * experts;
            let gap = match &logits {
                Some(logits) => Some(gap_at(&logits[cut], wanted_best)),
                // a smaller gap somewhere, and a small one here, make it probable that it is here
                None => {
                    let here = gap_at(&routing.logits[cut], best);
                    self.reference
                        .router_margin()
                        .map(|least| if here <= ROUTER_GAP { least } else { here })
                }
            };
            let made = Disagreement {
                choice: Choice::ExpertSets,
                prompt: self.prompt,
                position: self.position + row,
                layer: Some(layer),
                seen: seen_ids,
                wanted: wanted_ids,
                gap,
            };
            self.tally
                .choose(made, gap.is_some_and(|gap| gap <= ROUTER_GAP));
        }
        if differences.values > 0 {
            self.note(layer + 1, Quantity::ExpertWeights, &differences);
        }
        Ok(())
    }

    /// The logits of the positions of this pass, and the tokens that follow from them.
    pub(super) fn logits(&mut self, seen: &[f32]) -> Result<(), StepError> {
        let (vocab, stage) = (self.vocab(), self.facts.layers as usize + 1);
        for (row, seen) in seen.chunks_exact(vocab).enumerate() {
            let position = self.position + row;
            let rows = position..position + 1;
            let wanted = self
                .reference
                .floats(Quantity::Logits, stage, rows, vocab)?;
            let key = (stage, Quantity::Logits);
            self.inspect_row(key, Side::Run, seen, row);
            if let Some(wanted) = &wanted {
                self.inspect_row(key, Side::Reference, wanted, row);
            }
            let mut differences = Differences::default();
            let best = wanted.as_ref().map(|wanted| {
                let pairs = seen.iter().zip(wanted);
                pairs.for_each(|(seen, wanted)| differences.add(*seen, *wanted, self.place(row)));
                let best = argmax(wanted);
                (best, wanted[best as usize] - second(wanted, best))
            });
            if let Some((best, gap)) = best.filter(|_| position < self.tokens) {
                self.token(
                    Choice::TopTokens,
                    position,
                    argmax(seen),
                    best,
                    Some(f64::from(gap)),
                );
            }
            let ranked = self.reference.ranked(position)?;
            if let Some(ranked) = ranked.as_ref().filter(|ranked| !ranked.is_empty()) {
                self.ranked(stage, position, seen, ranked);
            }
            if let Some(step) = self.reference.step(position)? {
                let top: Vec<f32> = step.top.iter().map(|(_, logit)| *logit).collect();
                self.inspect_row(key, Side::Reference, &top, row);
                let gap = match (&step.top[..], &ranked) {
                    ([(_, first), (_, second), ..], _) => Some(f64::from(first - second)),
                    (_, Some(ranked)) => {
                        Some(Distribution::new(seen).gap(ranked, step.token, argmax(seen)))
                    }
                    _ => best.map(|(_, gap)| f64::from(gap)),
                };
                self.token(
                    Choice::GreedyTokens,
                    position,
                    argmax(seen),
                    step.token,
                    gap,
                );
                // where all logits are there, the best are among them
                for (id, wanted) in step.top.iter().filter(|_| best.is_none()) {
                    differences.add(
                        seen.get(*id as usize).copied().unwrap_or(f32::NAN),
                        *wanted,
                        self.place(row),
                    );
                }
            }
            if differences.values > 0 {
                self.note(stage, Quantity::Logits, &differences);
            }
        }
        Ok(())
    }

    /// The best tokens that a server lists at a position: their log-probabilities, and their order.
    fn ranked(&mut self, stage: usize, position: usize, seen: &[f32], ranked: &[Ranked]) {
        let distribution = Distribution::new(seen);
        let listed: Vec<f32> = ranked.iter().map(|r| r.log_probability).collect();
        let row = position - self.position;
        let key = (stage, Quantity::LogProbabilities);
        self.inspect_row(key, Side::Reference, &listed, row);
        let mut differences = Differences::default();
        for (id, wanted) in ranked
            .iter()
            .filter_map(|r| Some((r.id?, r.log_probability)))
        {
            #[expect(clippy::cast_possible_truncation, reason = "differences are of f32")]
            let seen = distribution.log_probability(id) as f32;
            differences.add(seen, wanted, [self.prompt as u64, position as u64]);
        }
        if differences.values > 0 {
            self.note(stage, Quantity::LogProbabilities, &differences);
        }
        if let Some(best) = ranked[0].id.filter(|_| position < self.tokens) {
            let seen = argmax(seen);
            self.token(
                Choice::TopTokens,
                position,
                seen,
                best,
                Some(distribution.gap(ranked, best, seen)),
            );
        }
        let ranks = distribution.ranks(ranked);
        self.choice(
            Choice::TokenRanks,
            position,
            ranks.seen,
            ranks.wanted,
            ranks.gap,
        );
    }

    fn token(&mut self, choice: Choice, position: usize, seen: u32, wanted: u32, gap: Option<f64>) {
        self.choice(choice, position, vec![seen], vec![wanted], gap);
    }

    fn choice(
        &mut self,
        choice: Choice,
        position: usize,
        seen: Vec<u32>,
        wanted: Vec<u32>,
        gap: Option<f64>,
    ) {
        let made = Disagreement {
            choice,
            prompt: self.prompt,
            position,
            layer: None,
            seen,
            wanted,
            gap,
        };
        self.tally
            .choose(made, gap.is_some_and(|gap| gap <= self.tolerance));
    }
}

impl Observer for Comparer<'_> {
    fn embed(&mut self, x: &[f32]) {
        if let Some(embedded) = &mut self.embedded {
            embedded.extend_from_slice(x);
            return;
        }
        self.attempt(|c| c.values(0, Quantity::Embedding, x, c.width()));
    }

    fn attention(&mut self, layer: usize, x: &[f32]) {
        self.attempt(|c| c.values(layer + 1, Quantity::AttentionOutput, x, c.width()));
    }

    fn mlp(&mut self, layer: usize, x: &[f32]) {
        self.attempt(|c| c.values(layer + 1, Quantity::MlpOutput, x, c.width()));
    }

    fn hidden(&mut self, layer: usize, x: &[f32]) {
        self.attempt(|c| c.values(layer + 1, Quantity::HiddenState, x, c.width()));
    }

    fn router(&mut self, layer: usize, routing: &Routing) {
        let experts = self.facts.experts as usize;
        self.attempt(|c| {
            c.values(layer + 1, Quantity::RouterLogits, &routing.logits, experts)?;
            c.values(
                layer + 1,
                Quantity::RouterProbabilities,
                &routing.probabilities,
                experts,
            )?;
            c.experts(layer, routing)
        });
    }

    fn norm(&mut self, x: &[f32]) {
        self.attempt(|c| {
            c.values(
                c.facts.layers as usize + 1,
                Quantity::FinalNorm,
                x,
                c.width(),
            )
        });
    }
}

fn sorted(ids: &[u32]) -> Vec<u32> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

fn by_id(ids: &[u32], weights: &[f32]) -> BTreeMap<u32, f32> {
    ids.iter().copied().zip(weights.iter().copied()).collect()
}

/// The lowest id on ties.
pub(super) fn argmax(logits: &[f32]) -> u32 {
    let better = |best: (u32, f32), (id, x): (u32, &f32)| if *x > best.1 { (id, *x) } else { best };
    (0..).zip(logits).fold((0, f32::NEG_INFINITY), better).0
}

fn second(logits: &[f32], best: u32) -> f32 {
    let others = (0..).zip(logits).filter(|(id, _)| *id != best);
    others.map(|(_, x)| *x).fold(f32::NEG_INFINITY, f32::max)
}

/// The last chosen logit minus the first rejected one; infinite where none is rejected.
fn gap_at(logits: &[f32], best: usize) -> f64 {
    let mut order = logits.to_vec();
    order.sort_by(|a, b| b.total_cmp(a));
    match (order.get(best.wrapping_sub(1)), order.get(best)) {
        (Some(last), Some(first)) => f64::from(last - first),
        _ => f64::INFINITY,
    }
}

//! Several sequences in one forward pass.
//!
//! Their tokens go through the linear layers, the experts and the head together, so that each weight
//! is read once for all of them; each attends to its own keys and values. A value depends on its own
//! row alone (see [`Ops`](crate::ops::Ops)), so a sequence's logits are the same bits whatever else
//! is in the pass.

use std::ops::Range;

use super::observer::{Observer, Routing};
use super::stats::Logits;

/// A sequence of a decoder that runs several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

impl SequenceId {
    /// That of a decoder which runs one alone.
    pub(crate) const WHOLE: Self = Self(0);

    /// The one behind it.
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What a forward pass runs of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct SequenceTokens<'t> {
    /// The sequence.
    pub sequence: SequenceId,
    /// Tokens after those that it has: at least one.
    pub ids: &'t [u32],
    /// Which of their logits are wanted.
    pub want: Logits,
}

impl SequenceTokens<'_> {
    /// Rows of logits.
    pub(super) fn logit_rows(&self) -> usize {
        self.want.of(self.ids.len()).len()
    }
}

/// Which tokens of a forward pass belong to a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub(crate) sequence: SequenceId,
    pub(crate) tokens: Range<usize>,
}

/// The spans of these parts, one behind the other.
pub(super) fn spans(parts: &[SequenceTokens<'_>]) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut first = 0;
    for part in parts {
        let tokens = first..first + part.ids.len();
        first = tokens.end;
        let sequence = part.sequence;
        spans.push(Span { sequence, tokens });
    }
    spans
}

/// The tokens whose logits are wanted.
pub(super) fn logit_rows(parts: &[SequenceTokens<'_>], spans: &[Span]) -> Vec<usize> {
    let rows = parts.iter().zip(spans).flat_map(|(part, span)| {
        let rows = part.want.of(part.ids.len());
        span.tokens.start + rows.start..span.tokens.start + rows.end
    });
    rows.collect()
}

/// Shows each sequence's observer its own rows.
pub(super) struct SplitObserver<'o, 'i> {
    pub(super) spans: &'o [Span],
    pub(super) observers: &'o mut [&'i mut dyn Observer],
}

impl SplitObserver<'_, '_> {
    /// Tokens of the forward pass.
    fn tokens(&self) -> usize {
        self.spans.last().map_or(0, |span| span.tokens.end)
    }

    /// Calls `show` with each observer and its rows.
    fn each(&mut self, x: &[f32], mut show: impl FnMut(&mut dyn Observer, &[f32])) {
        let tokens = self.tokens();
        for (span, observer) in self.spans.iter().zip(self.observers.iter_mut()) {
            show(&mut **observer, rows(x, &span.tokens, tokens));
        }
    }
}

/// The rows of some tokens of so many.
fn rows<'x, T>(x: &'x [T], tokens: &Range<usize>, all: usize) -> &'x [T] {
    let width = x.len() / all.max(1);
    &x[tokens.start * width..tokens.end * width]
}

/// What a router chose for some tokens of so many.
fn routing_of(routing: &Routing, tokens: &Range<usize>, all: usize) -> Routing {
    Routing {
        logits: rows(&routing.logits, tokens, all).to_vec(),
        probabilities: rows(&routing.probabilities, tokens, all).to_vec(),
        ids: rows(&routing.ids, tokens, all).to_vec(),
        weights: rows(&routing.weights, tokens, all).to_vec(),
    }
}

impl Observer for SplitObserver<'_, '_> {
    fn observes(&self) -> bool {
        self.observers.iter().any(|observer| observer.observes())
    }

    fn embed(&mut self, x: &[f32]) {
        self.each(x, |observer, x| observer.embed(x));
    }

    fn attention(&mut self, layer: usize, x: &[f32]) {
        self.each(x, |observer, x| observer.attention(layer, x));
    }

    fn mlp(&mut self, layer: usize, x: &[f32]) {
        self.each(x, |observer, x| observer.mlp(layer, x));
    }

    fn hidden(&mut self, layer: usize, x: &[f32]) {
        self.each(x, |observer, x| observer.hidden(layer, x));
    }

    fn router(&mut self, layer: usize, routing: &Routing) {
        let tokens = self.tokens();
        for (span, observer) in self.spans.iter().zip(self.observers.iter_mut()) {
            if observer.observes() {
                observer.router(layer, &routing_of(routing, &span.tokens, tokens));
            }
        }
    }

    fn shared_expert(&mut self, layer: usize, gate: &[f32], out: &[f32]) {
        let tokens = self.tokens();
        for (span, observer) in self.spans.iter().zip(self.observers.iter_mut()) {
            let gate = rows(gate, &span.tokens, tokens);
            observer.shared_expert(layer, gate, rows(out, &span.tokens, tokens));
        }
    }

    fn norm(&mut self, x: &[f32]) {
        self.each(x, |observer, x| observer.norm(x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(Vec<f32>, Vec<u32>);

    impl Observer for Seen {
        fn hidden(&mut self, _: usize, x: &[f32]) {
            self.0.extend(x);
        }

        fn router(&mut self, _: usize, routing: &Routing) {
            self.1.extend(&routing.ids);
        }
    }

    fn parts<'t>(ids: &[&'t [u32]], want: Logits) -> Vec<SequenceTokens<'t>> {
        let part = |(n, ids): (u64, &&'t [u32])| SequenceTokens {
            sequence: SequenceId(n),
            ids,
            want,
        };
        (0..).zip(ids).map(part).collect()
    }

    #[test]
    fn logits_are_of_the_last_token_of_each_sequence_or_of_all() {
        let last = parts(&[&[1, 2, 3], &[4], &[5, 6]], Logits::Last);
        assert_eq!(logit_rows(&last, &spans(&last)), [2, 3, 5]);
        let all = parts(&[&[1, 2], &[4]], Logits::All);
        assert_eq!(logit_rows(&all, &spans(&all)), [0, 1, 2]);
    }

    #[test]
    fn an_observer_sees_the_rows_of_its_sequence_alone() {
        let parts = parts(&[&[1], &[2, 3]], Logits::Last);
        let (mut one, mut other) = (Seen::default(), Seen::default());
        let mut split = SplitObserver {
            spans: &spans(&parts),
            observers: &mut [&mut one, &mut other],
        };
        split.hidden(0, &[1.0, 1.5, 2.0, 2.5, 3.0, 3.5]);
        let routing = Routing {
            ids: vec![7, 8, 9],
            ..Routing::default()
        };
        split.router(0, &routing);
        assert_eq!((one.0, one.1), (vec![1.0, 1.5], vec![7]));
        assert_eq!((other.0, other.1), (vec![2.0, 2.5, 3.0, 3.5], vec![8, 9]));
    }
}

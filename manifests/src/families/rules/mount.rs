//! Blocks of rules, put together under a name prefix: one component of a family.

use super::pattern::Pattern;
use super::row::{Dims, Row};
use super::trie::{Node, Rule};
use crate::families::config::ConfigError;
use crate::families::expected::{Expected, ExpectedDtype, ExpectedSink, Presence};
use crate::names::{Component, Role};

/// Most tensors that a configuration may ask for, in all.
pub const MAX_TENSORS: usize = 1_000_000;

/// The rules of one block, and where its sizes are among those of the component.
pub(crate) struct Block<D: 'static, B: 'static> {
    pub(crate) rows: &'static [Row<B>],
    pub(crate) dims: fn(&D) -> &B,
}

/// A block of a component whose sizes are `D`.
pub(crate) trait BlockOf<D>: Sync {
    /// Adds its rules to the tree of names.
    fn add_to(&self, place: Place, trie: &mut Node);

    /// The names, at one layer, of its tensors that stack experts.
    fn stacked_names(&self, place: Place, layer: u32) -> Vec<String>;

    /// Adds every tensor that `dims` calls for.
    fn expect(
        &self,
        place: Place,
        dims: &D,
        out: &mut Expectation<'_, '_>,
    ) -> Result<(), ConfigError>;
}

/// Where a block stands: the prefix of its names, and the component.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) prefix: &'static str,
    pub(crate) component: Component,
}

/// One component of a family: its blocks, under a prefix.
pub(crate) struct Mount<D: 'static> {
    pub(crate) prefix: &'static str,
    pub(crate) component: Component,
    pub(crate) blocks: &'static [&'static dyn BlockOf<D>],
}

/// The tensors that a configuration calls for, while they are collected.
pub(crate) struct Expectation<'a, 's> {
    /// Path of the object of the configuration that is read now, for messages.
    pub(crate) section: String,
    pub(crate) tensors: &'a mut ExpectedSink<'s>,
}

impl<D> Mount<D> {
    fn place(&self) -> Place {
        Place {
            prefix: self.prefix,
            component: self.component,
        }
    }

    /// The names, at one layer, of its tensors that stack experts.
    pub(crate) fn stacked_names(&self, layer: u32) -> Vec<String> {
        let blocks = self.blocks.iter();
        blocks
            .flat_map(|b| b.stacked_names(self.place(), layer))
            .collect()
    }

    pub(super) fn add_to(&self, trie: &mut Node) {
        for block in self.blocks {
            block.add_to(self.place(), trie);
        }
    }

    /// Adds every tensor that `dims` calls for: block by block, in each layers in order, within a
    /// layer the rows in order.
    pub(crate) fn expect(
        &self,
        dims: &D,
        section: String,
        tensors: &mut ExpectedSink<'_>,
    ) -> Result<(), ConfigError> {
        let mut out = Expectation { section, tensors };
        let mut blocks = self.blocks.iter();
        blocks.try_for_each(|block| block.expect(self.place(), dims, &mut out))
    }
}

impl<D, B: Dims> BlockOf<D> for Block<D, B> {
    fn add_to(&self, place: Place, trie: &mut Node) {
        for row in self.rows {
            let stack = row.stack.map(|stack| {
                let pattern_of = |role| pattern_of(self.rows, role);
                (stack, stack.cuts(place.prefix, pattern_of))
            });
            let rule = Rule::new(place.component, (row.role, row.part), stack);
            trie.insert(place.prefix, row.pattern, rule);
        }
    }

    fn stacked_names(&self, place: Place, layer: u32) -> Vec<String> {
        stacked_names(place.prefix, self.rows, layer).collect()
    }

    fn expect(
        &self,
        place: Place,
        dims: &D,
        out: &mut Expectation<'_, '_>,
    ) -> Result<(), ConfigError> {
        let compiled: Vec<_> = self
            .rows
            .iter()
            .map(|row| Compiled::of(row, place))
            .collect();
        let rows: Vec<_> = compiled.iter().collect();
        emit(&rows, &mut Vec::new(), (self.dims)(dims), out)
    }
}

/// The pattern of the matrix that has this role where experts are stored one by one.
fn pattern_of<B>(rows: &[Row<B>], role: Role) -> Option<&'static str> {
    let own = |row: &&Row<B>| row.role == role && row.part.is_weight() && row.stack.is_none();
    rows.iter().find(own).map(|row| row.pattern)
}

/// The names, at one layer, of the tensors of a block that stack experts.
pub(crate) fn stacked_names<B>(
    prefix: &'static str,
    rows: &'static [Row<B>],
    layer: u32,
) -> impl Iterator<Item = String> {
    let stacked = rows.iter().filter(|row| row.stack.is_some());
    stacked.map(move |row| Pattern::parse(prefix, row.pattern).name(&[layer]))
}

struct Compiled<'r, B> {
    row: &'r Row<B>,
    place: Place,
    pattern: Pattern,
}

impl<'r, B> Compiled<'r, B> {
    fn of(row: &'r Row<B>, place: Place) -> Self {
        Self {
            row,
            place,
            pattern: Pattern::parse(place.prefix, row.pattern),
        }
    }
}

/// Runs through all numbers of the placeholders, outermost first; rows that share a stem share its
/// loop. `at` holds the numbers so far.
fn emit<B: Dims>(
    rows: &[&Compiled<'_, B>],
    at: &mut Vec<u32>,
    dims: &B,
    out: &mut Expectation<'_, '_>,
) -> Result<(), ConfigError> {
    let depth = at.len();
    let mut rest = rows;
    while let Some(first) = rest.first() {
        let Some(stem) = first.pattern.stems.get(depth) else {
            if depth > 0 || (first.row.when)(dims, 0) {
                push(first, at, dims, out)?;
            }
            rest = &rest[1..];
            continue;
        };
        let same_stem = |row: &&&Compiled<'_, B>| row.pattern.stems.get(depth) == Some(stem);
        let run = rest.iter().take_while(same_stem).count();
        for index in dims.range(first.pattern.placeholders[depth]) {
            // asked before any inner loop, so that a skipped layer costs nothing per expert
            let wanted = |row: &&&Compiled<'_, B>| depth > 0 || (row.row.when)(dims, index);
            let kept: Vec<_> = rest[..run].iter().filter(wanted).copied().collect();
            at.push(index);
            emit(&kept, at, dims, out)?;
            at.pop();
        }
        rest = &rest[run..];
    }
    Ok(())
}

fn push<B: Dims>(
    compiled: &Compiled<'_, B>,
    at: &[u32],
    dims: &B,
    out: &mut Expectation<'_, '_>,
) -> Result<(), ConfigError> {
    if out.tensors.count() == MAX_TENSORS {
        return Err(ConfigError::TooManyTensors {
            section: out.section.clone(),
            limit: MAX_TENSORS,
        });
    }
    let Compiled {
        row,
        place,
        pattern,
    } = compiled;
    let presence = match (row.optional)(dims) {
        true => Presence::Optional,
        false => Presence::Required,
    };
    let numbers = pattern.numbers(at);
    out.tensors.push(Expected {
        name: pattern.name(at),
        shape: (row.shape)(dims, at),
        or_shape: row.or_shape.map(|shape| shape(dims, at)),
        dtype: match row.precise {
            true => ExpectedDtype::AnyOrF32,
            false => ExpectedDtype::Any,
        },
        presence,
        classification: numbers.classification(place.component, row.role, row.part),
    });
    Ok(())
}

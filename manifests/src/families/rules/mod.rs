//! Name rules as data: a row says what a tensor is called, what it is, when it exists and how large
//! it is. The same rows classify names (without any configuration) and derive the expected names
//! and shapes.

mod mount;
mod pattern;
mod row;
mod stack;
mod trie;

pub use mount::MAX_TENSORS;
pub(crate) use mount::{Block, BlockOf, Mount, stacked_names};
pub(crate) use pattern::{Placeholder, parse_number};
pub(crate) use row::{Dims, Row, bias, row};
pub(crate) use stack::Stack;
pub use stack::StackLayout;
use stack::Whole;

use crate::families::expected::{Slice, UnstackError};
use crate::names::{Classification, Part};
use pattern::Numbers;
use trie::{Node, Rule};

#[cfg(test)]
mod tests;

/// All rules of a family.
pub(crate) struct Rules(Node);

impl Rules {
    pub(crate) fn new() -> Self {
        Self(Node::default())
    }

    pub(crate) fn with<D>(mut self, mount: &Mount<D>) -> Self {
        mount.add_to(&mut self.0);
        self
    }

    pub(crate) fn classify(&self, name: &str) -> Option<Classification> {
        let (rule, numbers) = self.find(name)?;
        Some(numbers.classification(rule.component, rule.role, rule.part))
    }

    /// Takes a stacked tensor apart, or a part of one: its name is the stack's and a suffix then.
    pub(crate) fn unstack(
        &self,
        (stack, suffix, part): (&str, &str, Option<Part>),
        shape: &[u64],
        dtype_bits: u64,
        experts: &dyn Fn() -> Option<u64>,
    ) -> Option<Result<Vec<Slice>, UnstackError>> {
        let (rule, numbers) = self.find(stack)?;
        let cutting = rule.stack.as_ref()?;
        let part = part.unwrap_or(rule.part);
        let whole = Whole {
            name: format!("{stack}{suffix}"),
            suffix,
            classification: numbers.classification(rule.component, rule.role, part),
            shape,
            dtype_bits,
        };
        let slices = cutting.slices(&whole, &numbers, experts);
        Some(slices.map_err(|wanted| UnstackError {
            name: whole.name,
            shape: shape.to_vec(),
            dtype_bits,
            wanted,
        }))
    }

    /// How an expert's part lies in a stacked tensor.
    pub(crate) fn stack_layout(&self, stack: &str) -> Option<StackLayout> {
        let (rule, _) = self.find(stack)?;
        Some(rule.stack.as_ref()?.stack.layout())
    }

    fn find(&self, name: &str) -> Option<(&Rule, Numbers)> {
        let mut numbers = Numbers::default();
        let rule = self.0.find(name, &mut numbers)?;
        Some((rule, numbers))
    }
}

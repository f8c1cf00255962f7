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
pub(crate) use pattern::Placeholder;
pub(crate) use row::{Dims, Row, bias, row};
pub(crate) use stack::Stack;
pub(crate) use trie::Rules;

#[cfg(test)]
mod tests;

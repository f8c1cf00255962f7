//! Some rows of a weight times some tokens: what a task of a linear layer computes.

use super::panel::Rows;
use super::shared::Columns;

/// `out[t] = round(rows · x[t] + bias)`
#[derive(Debug)]
pub(super) struct Product<'a> {
    pub weight: Rows<'a>,
    /// As the kernel packs them.
    pub x: &'a [f32],
    pub tokens: usize,
    /// `[rows]`
    pub bias: Option<&'a [f32]>,
    /// `[tokens, rows]`
    pub out: Columns<'a>,
    /// What this thread reads next.
    pub ahead: &'a [u8],
}

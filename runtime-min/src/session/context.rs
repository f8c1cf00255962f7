//! How many positions a model was made for.

use segpack_formats::io::to_usize;
use segpack_manifests::families::TextSettings;

/// Positions that are assumed where `config.json` does not give the context length.
pub const ASSUMED_CONTEXT: usize = 1 << 18;

/// Positions that a text model was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextLength {
    /// `max_position_embeddings` of `config.json`.
    Given(usize),
    /// `config.json` does not say: [`ASSUMED_CONTEXT`].
    Assumed,
}

impl ContextLength {
    /// The number of positions.
    pub fn positions(self) -> usize {
        match self {
            Self::Given(positions) => positions,
            Self::Assumed => ASSUMED_CONTEXT,
        }
    }

    pub(super) fn of(settings: &TextSettings) -> Self {
        settings
            .max_positions
            .map_or(Self::Assumed, |n| Self::Given(to_usize(n)))
    }
}

//! The documents of segpack and the knowledge behind them.
//!
//! * [`names`]: components, roles and classes of tensors.
//! * [`families`]: one file of rules per model family; from `config.json` they derive every tensor
//!   that must exist.
//! * [`audit`]: a checkpoint's headers against its configuration.
//! * [`documents`]: inventory, plan, manifest, reports, as serde types; `schemas/` is generated
//!   from them.
//! * [`layout`]: which tensor goes into which segment of which pack.
//! * [`folder`]: a pack folder, opened for reading.
//! * [`quantization`]: which tensors a quantised weight has.
//! * [`registry`]: published checkpoints with their digests.
//!
//! This crate knows nothing of command lines, progress bars or inference.

pub mod audit;
pub mod documents;
pub mod families;
pub mod folder;
pub mod json;
pub mod layout;
pub mod names;
pub mod quantization;
pub mod registry;

pub use folder::{NotAPack, Pack, PackCursor, PackError, PackReader};

//! Documents that outlive a command: what a checkpoint holds, how it is packed, what a pack holds.

mod card;
mod finding;
mod inventory;
mod manifest;
mod part;
mod plan;
mod version;

pub use card::{ModelCard, OneOrMany};
pub use finding::{Completeness, Finding, FindingKind, Severity};
pub use inventory::{
    ClassCount, Inventory, InventoryCounts, InventoryTensor, LeftOut, MatchedBy, Provenance,
    PublishedMatch, RoleCount, SideFile, SourceShard,
};
pub use manifest::{
    Counts, Excluded, Graft, GraftSource, KnownSource, Layout, Manifest, ManifestError, Midstate,
    ModelFacts, PackEntry, PackOptions, SegmentEntry, SourceFile, SourceFileKind, SourceRange,
    TensorEntry, TextModel,
};
pub use part::{PackShare, PartManifest, PartShare, ShardShare};
pub use plan::{ConsumePlan, Plan, PlannedPack, PlannedSegment, PlannedTensor, SizeEstimate};
pub use version::{FormatVersion, VersionError};

//! Where weights live: a budget for the whole process, and a fixed set of reused slots for experts.

mod arena;
mod budget;
mod expert_cache;

pub use arena::{Arena, BLOCK_ALIGNMENT, Block};
pub use budget::{Budget, Demand, Residency};
pub use expert_cache::{CacheStats, Eviction, ExpertCache, ExpertKey};

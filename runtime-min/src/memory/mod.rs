//! Where weights live: a budget for the whole process, and a fixed set of reused slots for experts.

mod budget;
mod expert_cache;

pub use budget::{Budget, Demand, Residency};
pub use expert_cache::{CacheStats, ExpertCache, Slot};

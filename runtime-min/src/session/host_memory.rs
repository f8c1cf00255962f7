//! How much memory this process may take where nobody says.

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// What is left to other programs: one part of so many.
const SPARED: u64 = 8;

/// Seven eighths of the memory that is available now, in bytes; a control group's limit counts too.
/// None where the system does not tell.
pub fn available_memory() -> Option<u64> {
    let refresh = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(refresh);
    let group = system
        .cgroup_limits()
        .map_or(u64::MAX, |limits| limits.free_memory);
    let available = system.available_memory().min(group);
    (available > 0).then_some(available - available / SPARED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn some_memory_is_available_and_some_is_left() {
        let total = System::new_with_specifics(
            RefreshKind::nothing().with_memory(MemoryRefreshKind::everything()),
        )
        .total_memory();
        let available = available_memory().unwrap();
        assert!(
            available > 16 << 20 && available < total / SPARED * (SPARED - 1) + SPARED,
            "{available} of {total}"
        );
    }
}

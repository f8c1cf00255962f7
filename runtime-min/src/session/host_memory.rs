//! How much memory this process may take where nobody says.

#[cfg(target_os = "linux")]
use std::fs;
#[cfg(target_os = "linux")]
use std::path::Path;

#[cfg(target_os = "linux")]
use super::cgroup;

/// What is left to other programs: one part of so many.
const SPARED: u64 = 8;

/// Seven eighths of the memory that is available now, in bytes; a control group's limit counts too,
/// also those of the groups above. None where the system does not tell.
pub fn available_memory() -> Option<u64> {
    system_memory().and_then(without_spared)
}

/// Without what is left to other programs; none of nothing.
fn without_spared(available: u64) -> Option<u64> {
    (available > 0).then(|| available - available / SPARED)
}

#[cfg(target_os = "linux")]
fn system_memory() -> Option<u64> {
    linux_memory(Path::new("/"))
}

/// As `/proc/meminfo` and control groups tell, below `root`.
#[cfg(target_os = "linux")]
fn linux_memory(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let group = cgroup::free_memory(root);
    [meminfo(&text), group].into_iter().flatten().min()
}

/// `MemAvailable`, in bytes; kernels before 3.14 do not have it.
#[cfg(target_os = "linux")]
fn meminfo(text: &str) -> Option<u64> {
    field(text, "MemAvailable").or_else(|| {
        let (free, cached) = (field(text, "MemFree")?, field(text, "Cached").unwrap_or(0));
        free.checked_add(cached)
    })
}

/// A number of `/proc/meminfo`, in bytes.
#[cfg(target_os = "linux")]
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(not(target_os = "linux"))]
fn system_memory() -> Option<u64> {
    use sysinfo::{MemoryRefreshKind, RefreshKind, System};

    let refresh = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    Some(System::new_with_specifics(refresh).available_memory())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn some_memory_is_available_and_some_is_left() {
        let available = available_memory().unwrap();
        let all = meminfo(&fs::read_to_string("/proc/meminfo").unwrap()).unwrap();
        // what is free changes while this runs
        assert!(
            available > 16 << 20 && available < all + all / 8,
            "{available} of {all}"
        );
    }

    #[test]
    fn one_part_of_eight_is_left_to_others() {
        assert_eq!(without_spared(0), None);
        assert_eq!(without_spared(801), Some(701));
    }

    #[test]
    fn the_system_and_the_groups_are_asked() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(linux_memory(root.path()), None, "no /proc");
        write(
            "proc/meminfo",
            "MemTotal:  100 kB\nMemFree:  10 kB\nCached: 30 kB\n",
        );
        assert_eq!(linux_memory(root.path()), Some(40 << 10), "an old kernel");
        write(
            "proc/meminfo",
            "MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable:  50 kB\n",
        );
        assert_eq!(linux_memory(root.path()), Some(50 << 10));
        write("proc/self/cgroup", "0::/a\n");
        write(
            "proc/self/mountinfo",
            "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        );
        write("sys/fs/cgroup/a/memory.max", "4096\n");
        assert_eq!(linux_memory(root.path()), Some(4096));
        write("proc/meminfo", "nonsense: -1 kB\nMemAvailable: many\n");
        assert_eq!(linux_memory(root.path()), Some(4096));
    }
}

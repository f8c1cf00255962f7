//! The memory limits of Linux control groups, versions 1 and 2.
//!
//! A limit of any group above counts too, as far as groups can be seen: up to where they are
//! mounted. Sources: `cgroups(7)`, the kernel's `cgroup-v2.rst` and `cgroup-v1/memory.rst`.

use std::fs;
use std::path::{Path, PathBuf};

/// Version 1 writes "no limit" as the largest number of whole pages.
const V1_UNLIMITED: u64 = 1 << 62;

/// The version of a hierarchy that limits memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A mounted hierarchy.
#[derive(Debug)]
struct Mount {
    version: Version,
    /// The group that is mounted, as `/proc/self/cgroup` calls it.
    root: String,
    /// Where.
    point: PathBuf,
}

/// Bytes that the groups of this process leave it: of each group its limit without what is in use
/// and could not be given back. `root` is where `proc` and `sys` are. `None` where no group has a
/// limit, or none can be read.
pub(super) fn free_memory(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = mounts(root);
    let left = mounts.iter().filter_map(|mount| {
        let path = path_of(&groups, mount.version)?;
        folders(mount, path)
            .iter()
            .filter_map(|folder| left_in(folder, mount.version))
            .min()
    });
    left.min()
}

/// The hierarchies that may limit memory.
fn mounts(root: &Path) -> Vec<Mount> {
    let Ok(text) = fs::read_to_string(root.join("proc/self/mountinfo")) else {
        return Vec::new();
    };
    text.lines().filter_map(|line| mount(root, line)).collect()
}

/// A line of `/proc/self/mountinfo`: `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS … - TYPE SOURCE
/// SUPER_OPTIONS`.
fn mount(root: &Path, line: &str) -> Option<Mount> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let version = match (kind.next()?, kind.nth(1)) {
        ("cgroup2", _) => Version::Two,
        ("cgroup", Some(options)) if options.split(',').any(|o| o == "memory") => Version::One,
        _ => return None,
    };
    let mut mount = mount.split(' ').skip(3);
    let (mounted, point) = (unescaped(mount.next()?), unescaped(mount.next()?));
    Some(Mount {
        version,
        root: mounted,
        point: root.join(point.trim_start_matches('/')),
    })
}

/// Spaces, tabs, line ends and backslashes are written as three octal digits.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                whole.push(char::from(code));
                whole.push_str(&part[3..]);
            }
            None => {
                whole.push('\\');
                whole.push_str(part);
            }
        }
    }
    whole
}

/// This process' group in a hierarchy. A line of `/proc/self/cgroup` is `ID:CONTROLLERS:PATH`,
/// without controllers for version 2.
fn path_of(groups: &str, version: Version) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let is_it = match version {
            Version::One => controllers.split(',').any(|c| c == "memory"),
            Version::Two => controllers.is_empty(),
        };
        is_it.then_some(path)
    })
}

/// The folders of a group and of those above it, up to the mount. Where the group is not below what
/// is mounted (another namespace's), there is only the mount.
fn folders(mount: &Mount, path: &str) -> Vec<PathBuf> {
    let root = mount.root.trim_end_matches('/');
    let below = path
        .strip_prefix(root)
        .filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let names: Vec<&str> = below
        .unwrap_or_default()
        .split('/')
        .filter(|name| !name.is_empty())
        .collect();
    let mut folders = vec![mount.point.clone()];
    if names.contains(&"..") {
        return folders;
    }
    let mut folder = mount.point.clone();
    for name in names {
        folder.push(name);
        folders.push(folder.clone());
    }
    folders
}

/// Bytes that one group leaves: `None` where it has no limit, or none can be read.
fn left_in(folder: &Path, version: Version) -> Option<u64> {
    let (limits, used, reclaimable): (&[&str], _, _) = match version {
        // above `high` a process is slowed down until it gives memory back
        Version::Two => (
            &["memory.max", "memory.high"],
            "memory.current",
            "inactive_file",
        ),
        Version::One => (
            &["memory.limit_in_bytes"],
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    };
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    // version 1 also says what groups that are not to be seen allow
    let above = counted(&stat, "hierarchical_memory_limit");
    let limits = limits.iter().filter_map(|name| number(&folder.join(name)));
    let limit = limits.chain(above).filter(|n| *n < V1_UNLIMITED).min()?;
    let used = number(&folder.join(used)).unwrap_or(0);
    let used = used.saturating_sub(counted(&stat, reclaimable).unwrap_or(0));
    Some(limit.saturating_sub(used))
}

/// The number of a key in `memory.stat`.
fn counted(stat: &str, key: &str) -> Option<u64> {
    let line = stat
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// The number in a file; `None` for "max", and where there is none.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up system: files by their paths.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const V2_MOUNT: (&str, &str) = (
        "proc/self/mountinfo",
        "22 1 0:5 / /proc rw - proc proc rw\n30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
    );
    const V1_MOUNT: (&str, &str) = (
        "proc/self/mountinfo",
        "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    );

    #[test]
    fn the_lowest_limit_of_any_group_above_counts() {
        let own = "sys/fs/cgroup/user.slice/app.scope";
        let at = |name: &str| format!("{own}/{name}");
        let root = system(&[
            V2_MOUNT,
            ("proc/self/cgroup", "0::/user.slice/app.scope\n"),
            (&at("memory.max"), "max\n"),
            (&at("memory.high"), "max\n"),
            (&at("memory.current"), "1000\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "9000000\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "4000000\n"),
            (
                "sys/fs/cgroup/user.slice/memory.stat",
                "anon 7\ninactive_file 1500000\n",
            ),
        ]);
        assert_eq!(free_memory(root.path()), Some(6_500_000));
        // what is slowed down is limited too
        fs::write(root.path().join(at("memory.high")), "2000\n").unwrap();
        assert_eq!(free_memory(root.path()), Some(1000));
        // more in use than allowed is nothing left
        fs::write(root.path().join(at("memory.current")), "3000\n").unwrap();
        assert_eq!(free_memory(root.path()), Some(0));
    }

    #[test]
    fn version_1_writes_no_limit_as_a_number() {
        let own = "sys/fs/cgroup/memory/box/inner";
        let at = |name: &str| format!("{own}/{name}");
        let root = system(&[
            V1_MOUNT,
            (
                "proc/self/cgroup",
                "5:devices:/\n4:cpu,memory:/box/inner\n1:name=systemd:/\n0::/\n",
            ),
            (&at("memory.limit_in_bytes"), "9223372036854771712\n"),
            (&at("memory.usage_in_bytes"), "100\n"),
            ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "5000\n"),
            ("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "1500\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
        ]);
        assert_eq!(free_memory(root.path()), Some(3500));
        // of groups that cannot be seen
        let stat = "hierarchical_memory_limit 2000\ntotal_inactive_file 40\n";
        fs::write(root.path().join(at("memory.stat")), stat).unwrap();
        assert_eq!(free_memory(root.path()), Some(1940));
    }

    #[test]
    fn a_group_without_a_limit_in_version_1_limits_nothing() {
        let root = system(&[
            V1_MOUNT,
            ("proc/self/cgroup", "4:memory:/\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "100\n"),
            // a hierarchy that does not limit memory, whatever lies there
            ("sys/fs/cgroup/cpu/memory.limit_in_bytes", "10\n"),
        ]);
        assert_eq!(free_memory(root.path()), None);
    }

    #[test]
    fn both_versions_beside_each_other_count_each_with_its_own_group() {
        let root = system(&[
            V1_MOUNT,
            ("proc/self/cgroup", "5:devices:/\n4:memory:/old\n0::/new\n"),
            ("sys/fs/cgroup/memory/old/memory.limit_in_bytes", "5000\n"),
            ("sys/fs/cgroup/unified/new/memory.max", "4000\n"),
        ]);
        assert_eq!(free_memory(root.path()), Some(4000));
        let limit = root.path().join("sys/fs/cgroup/memory/old");
        fs::write(limit.join("memory.limit_in_bytes"), "3000\n").unwrap();
        assert_eq!(free_memory(root.path()), Some(3000));
    }

    #[test]
    fn a_key_of_the_statistics_is_a_whole_word() {
        let stat = "inactive_file_of_others 9\nactive_file 8\ninactive_file 7\n";
        assert_eq!(counted(stat, "inactive_file"), Some(7));
        assert_eq!(counted(stat, "inactive"), None);
    }

    #[test]
    fn a_container_sees_its_group_as_the_root() {
        // a bind mount of the group, whose path is the host's
        let root = system(&[
            (
                "proc/self/mountinfo",
                "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
            ),
            ("proc/self/cgroup", "0::/docker/abc/nested\n"),
            ("sys/fs/cgroup/memory.max", "7000\n"),
            ("sys/fs/cgroup/memory.current", "1000\n"),
            ("sys/fs/cgroup/nested/memory.max", "5000\n"),
            ("sys/fs/cgroup/nested/memory.current", "1\n"),
            // of no group of this process
            ("sys/fs/cgroup/def/memory.max", "2\n"),
            ("sys/fs/other/memory.max", "2\n"),
        ]);
        assert_eq!(free_memory(root.path()), Some(4999));
        // a name that only begins like that of the mount
        fs::write(root.path().join("proc/self/cgroup"), "0::/docker/abcdef\n").unwrap();
        assert_eq!(free_memory(root.path()), Some(6000));
        // a namespace: the path is relative to it, or outside of what is mounted
        for (path, left) in [
            ("/nested", 4999),
            ("/", 6000),
            ("/../other", 6000),
            ("/docker/ab", 6000),
        ] {
            let line = "30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
            fs::write(root.path().join("proc/self/mountinfo"), line).unwrap();
            fs::write(root.path().join("proc/self/cgroup"), format!("0::{path}\n")).unwrap();
            assert_eq!(free_memory(root.path()), Some(left), "{path}");
        }
    }

    #[test]
    fn what_is_not_there_or_not_understood_limits_nothing() {
        let nothing = system(&[]);
        assert_eq!(free_memory(nothing.path()), None);
        let unlimited = system(&[
            V2_MOUNT,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/cgroup.procs", "1\n"),
        ]);
        assert_eq!(free_memory(unlimited.path()), None);
        let garbage = system(&[
            (
                "proc/self/mountinfo",
                "\n - \nx - cgroup2\n1 2 3 4 - cgroup2 a b\n\u{fffd}\n",
            ),
            ("proc/self/cgroup", "::::\n0\n0::\n"),
            ("sys/fs/cgroup/memory.max", "-5\n"),
        ]);
        assert_eq!(free_memory(garbage.path()), None);
    }

    #[test]
    fn names_with_spaces_are_written_in_octal() {
        assert_eq!(unescaped(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescaped(r"/odd\9\04"), r"/odd\9\04");
    }
}

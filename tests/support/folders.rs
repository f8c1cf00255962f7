//! Temporary folders, copies and comparisons.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder that goes away, in memory where there is such a place: every file of a pack is synced.
pub fn temp() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        TempDir::new_in(memory)
    } else {
        TempDir::new()
    };
    made.or_else(|_| TempDir::new())
        .expect("make a temporary folder")
}

/// Every file below a folder with its content; a folder that is empty ends in a slash; links are
/// followed.
pub fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    collect(folder, "", &mut found);
    found
}

fn collect(folder: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut empty = true;
    for entry in entries {
        let path = entry.expect("list").path();
        let name = format!(
            "{prefix}{}",
            path.file_name().expect("a name").to_string_lossy()
        );
        empty = false;
        if path.is_dir() {
            collect(&path, &format!("{name}/"), found);
        } else {
            found.insert(name, fs::read(&path).expect("read"));
        }
    }
    if empty {
        found.insert(prefix.to_owned(), Vec::new());
    }
}

/// Writes what [`contents`] found elsewhere.
pub fn write_contents(folder: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        let path = folder.join(name);
        if name.is_empty() || name.ends_with('/') {
            fs::create_dir_all(path).expect("make a folder");
            continue;
        }
        fs::create_dir_all(path.parent().expect("a parent")).expect("make a folder");
        fs::write(path, bytes).expect("write a file");
    }
}

/// The hidden folder beside an output, in which it is built.
pub fn hidden_beside(out: &Path) -> PathBuf {
    let name = out.file_name().expect("a name").to_string_lossy();
    out.with_file_name(format!(".{name}.partial"))
}

/// Asserts that two folders hold the same files with the same bytes.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path) {
    let (left, right) = (contents(left), contents(right));
    assert_eq!(
        left.keys().collect::<Vec<_>>(),
        right.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in &left {
        assert!(*bytes == right[name], "{name} differs");
    }
}

/// Copies a folder, links as links.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a folder");
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("list");
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            copy(&path, &target);
        } else if kind.is_symlink() {
            #[cfg(unix)]
            std::os::unix::fs::symlink(fs::read_link(&path).expect("read a link"), &target)
                .expect("link");
        } else {
            fs::copy(&path, &target).expect("copy");
        }
    }
}

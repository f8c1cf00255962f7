//! What lies where a pack is, against what its manifest lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use segpack_formats::FormatError;
use segpack_manifests::Pack;
use segpack_manifests::documents::{Finding, FindingKind, Manifest};
use segpack_manifests::folder::{PARTIAL, PackFiles, SIGNATURE, SUMS};
use walkdir::WalkDir;

/// What lies in a pack folder.
#[derive(Default)]
pub(super) struct Listing {
    /// Regular files under listed paths, with their lengths.
    pub there: BTreeMap<String, u64>,
    /// Links.
    pub links: BTreeSet<String>,
    /// Anything that is not listed, and any link; of a signature, that it is there.
    pub findings: Vec<Finding>,
}

/// Every path that a manifest lists, with the length where it tells; that of its own file, and of
/// SHA256SUMS where there has to be one, among them.
pub(super) fn listed_paths<'a>(
    manifest: &'a Manifest,
    document: &'a str,
    has_sums: bool,
) -> BTreeMap<&'a str, Option<u64>> {
    let files = manifest.files().into_iter();
    let mut listed: BTreeMap<&str, Option<u64>> = files
        .map(|(path, length, _)| (path, Some(length)))
        .collect();
    listed.insert(document, None);
    if has_sums {
        listed.insert(SUMS, None);
    }
    listed
}

/// Lists what lies where a pack is.
///
/// # Errors
/// Where the environment keeps it from being listed.
pub(super) fn list_pack(
    pack: &Pack,
    listed: &BTreeMap<&str, Option<u64>>,
) -> Result<Listing, FormatError> {
    match pack.local() {
        Some(folder) => list(folder, listed),
        None => list_elsewhere(&**pack.files(), listed),
    }
}

/// Lists a place that has nothing but files. One that does not tell which they are is asked for
/// those that the manifest lists: what else it has is not seen.
fn list_elsewhere(
    files: &dyn PackFiles,
    listed: &BTreeMap<&str, Option<u64>>,
) -> Result<Listing, FormatError> {
    let mut listing = Listing::default();
    for path in listed.keys() {
        if let Some(length) = files.length(path)? {
            listing.there.insert((*path).to_owned(), length);
        }
    }
    let paths = files.paths()?.unwrap_or_default();
    for path in paths.iter().filter(|p| !listed.contains_key(p.as_str())) {
        listing.findings.push(if path == SIGNATURE {
            Finding::new(FindingKind::UncheckedSignature).file(path)
        } else {
            unlisted(path, "a file that the manifest does not list")
        });
    }
    Ok(listing)
}

/// Lists a pack folder.
///
/// # Errors
/// Where the environment keeps a folder of it from being listed.
pub(super) fn list(
    root: &Path,
    listed: &BTreeMap<&str, Option<u64>>,
) -> Result<Listing, FormatError> {
    let mut listing = Listing::default();
    let folders: BTreeSet<&str> = listed.keys().flat_map(|path| parents(path)).collect();
    let mut walk = WalkDir::new(root)
        .min_depth(1)
        .sort_by_file_name()
        .into_iter();
    while let Some(entry) = walk.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                let path = e
                    .path()
                    .unwrap_or(root)
                    .strip_prefix(root)
                    .unwrap_or(root)
                    .to_string_lossy()
                    .into_owned();
                let finding = Finding::new(FindingKind::Unreadable).file(path).seen(&e);
                let at = e.path().unwrap_or(root).to_owned();
                let Some(error) = e.into_io_error().map(FormatError::io("list", at)) else {
                    listing.findings.push(finding);
                    continue;
                };
                // what is in a folder that cannot be listed would all seem to be missing
                if error.is_environment() {
                    return Err(error);
                }
                listing.findings.push(finding);
                continue;
            }
        };
        let path = entry.path().strip_prefix(root).unwrap_or(entry.path());
        let path = path
            .iter()
            .map(|p| p.to_string_lossy())
            .collect::<Vec<_>>()
            .join("/");
        let unlisted = |seen: &str| unlisted(&path, seen);
        let kind = entry.file_type();
        if kind.is_dir() {
            if folders.contains(path.as_str()) {
                continue;
            }
            listing.findings.push(unlisted(if path == PARTIAL {
                "is what an interrupted run left behind"
            } else {
                "a folder that the manifest does not list"
            }));
            walk.skip_current_dir();
        } else if kind.is_symlink() {
            listing
                .findings
                .push(unlisted("is a link; a pack holds none"));
            listing.links.insert(path);
        } else if !kind.is_file() {
            listing
                .findings
                .push(unlisted("is neither a file nor a folder"));
        } else if listed.contains_key(path.as_str()) {
            let length = entry.metadata().map_or(u64::MAX, |m| m.len());
            listing.there.insert(path, length);
        } else if path == SIGNATURE {
            let unchecked = Finding::new(FindingKind::UncheckedSignature);
            listing.findings.push(unchecked.file(path));
        } else {
            listing
                .findings
                .push(unlisted("a file that the manifest does not list"));
        }
    }
    Ok(listing)
}

/// The folders above a path: `a` and `a/b` for `a/b/c`.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

/// Something in the folder that the manifest does not list.
fn unlisted(path: &str, seen: &str) -> Finding {
    Finding::new(FindingKind::UnlistedFile)
        .file(path)
        .seen(seen)
}

//! The identity of a pack: the SHA-256 of its manifest's file, and who vouches for it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;

use super::{Pack, PackError, PackFiles};
use crate::folder::paths::{MANIFEST, MAX_MANIFEST_BYTES, SUMS};

/// How a pack folder is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct OpenOptions {
    manifest_sha256: Option<Sha256>,
    sums: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl OpenOptions {
    /// The manifest has to be the one that SHA256SUMS lists, where that file is there.
    pub const fn new() -> Self {
        Self {
            manifest_sha256: None,
            sums: true,
        }
    }

    /// Sets the SHA-256 that the manifest's file has to have.
    pub const fn manifest_sha256(mut self, wanted: Option<Sha256>) -> Self {
        self.manifest_sha256 = wanted;
        self
    }

    /// Sets whether the manifest is compared with its line in SHA256SUMS.
    pub const fn check_sums(mut self, check: bool) -> Self {
        self.sums = check;
        self
    }

    /// Opens a folder by its manifest. Packs themselves are not touched.
    ///
    /// # Errors
    /// As [`Pack::open`].
    pub fn open(self, folder: &Path) -> Result<Pack, PackError> {
        Pack::open_with(folder, self)
    }

    /// Opens a pack by its manifest, wherever its files are.
    ///
    /// # Errors
    /// As [`Pack::open`].
    pub fn open_at(self, files: Arc<dyn PackFiles>) -> Result<Pack, PackError> {
        Pack::open_at(files, self)
    }

    /// Refuses a manifest that is not the one that the user named.
    pub(super) fn check_wanted(self, folder: &Path, seen: Sha256) -> Result<(), PackError> {
        match self.manifest_sha256 {
            Some(wanted) => compare(folder.join(MANIFEST), seen, wanted, Voucher::User),
            None => Ok(()),
        }
    }

    /// Refuses a manifest, or the document of a part, that is not the one in SHA256SUMS.
    pub(super) fn check_listed(
        self,
        files: &dyn PackFiles,
        document: &str,
        seen: Sha256,
    ) -> Result<(), PackError> {
        // a link that leads nowhere is a file that cannot be read, not one that is absent
        if !self.sums || !files.has(SUMS)? {
            return Ok(());
        }
        let (path, wanted) = (files.root().join(document), listed(files, document)?);
        compare(path, seen, wanted, Voucher::Sums)
    }
}

/// Who says which manifest a pack has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voucher {
    /// Its line in SHA256SUMS.
    Sums,
    /// Whoever opened the pack.
    User,
}

impl fmt::Display for Voucher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sums => "as SHA256SUMS says",
            Self::User => "as given",
        })
    }
}

fn compare(path: PathBuf, seen: Sha256, wanted: Sha256, by: Voucher) -> Result<(), PackError> {
    if seen == wanted {
        return Ok(());
    }
    Err(PackError::Identity {
        path,
        seen,
        wanted,
        by,
    })
}

/// The digest that a SHA256SUMS lists for a document.
fn listed(files: &dyn PackFiles, document: &str) -> Result<Sha256, PackError> {
    let sums = &files.root().join(SUMS);
    let input = files.open(SUMS)?;
    if input.length() > MAX_MANIFEST_BYTES {
        let what = format!(
            "has {} bytes, over the limit of {MAX_MANIFEST_BYTES}",
            input.length()
        );
        return Err(FormatError::malformed(sums, what).into());
    }
    let text = input.read_range(0..input.length())?;
    digest_of(&String::from_utf8_lossy(&text), document).ok_or_else(|| {
        let what = format!("has no line with the SHA-256 of {document}");
        FormatError::malformed(sums, what).into()
    })
}

/// The SHA-256 of a manifest in the text that `sha256sum` prints: that of the line which names
/// `manifest.json`, in whatever folder, or else of the only line.
#[must_use]
pub fn digest_in_list(text: &str) -> Option<Sha256> {
    digest_of(text, MANIFEST)
}

/// [`digest_in_list`] of a file with this name.
fn digest_of(text: &str, document: &str) -> Option<Sha256> {
    let mut lines = text.lines().filter_map(digest_and_name);
    let named = |(_, name): &(Sha256, &str)| name.rsplit('/').next() == Some(document);
    if let Some((digest, _)) = lines.clone().find(named) {
        return Some(digest);
    }
    match (lines.next(), lines.next()) {
        (Some((digest, "")), None) => Some(digest),
        _ => None,
    }
}

/// A line of `sha256sum`: digest, a space, a space or an asterisk, and the name; or a digest alone.
fn digest_and_name(line: &str) -> Option<(Sha256, &str)> {
    let (digest, name) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    let name = name.trim_start_matches([' ', '*']);
    Some((digest.to_ascii_lowercase().parse().ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_line_or_the_only_digest() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let of = |text: String| digest_in_list(&text).map(|d| d.to_string());
        let list = format!("{a}  SHA256SUMS\n{b}  manifest.json\n{a}  packs/x\n");
        assert_eq!(of(list), Some(b.clone()));
        assert_eq!(of(format!("{b} *omni/manifest.json\n")), Some(b.clone()));
        assert_eq!(of(format!("{}\n", b.to_uppercase())), Some(b.clone()));
        assert_eq!(of(format!("\n  {b}  \n\n")), Some(b.clone()));
        for nothing in [
            String::new(),
            format!("{a}\n{b}\n"),
            format!("{a}  config.json\n"),
            format!("{a}  not-manifest.json\n"),
            "c".repeat(63),
        ] {
            assert_eq!(of(nothing.clone()), None, "{nothing:?}");
        }
    }
}

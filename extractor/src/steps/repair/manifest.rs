//! The manifest that a repair goes by, and why it is right.

use std::path::Path;

use segpack_formats::digest::Sha256;
use segpack_manifests::documents::Manifest;
use segpack_manifests::folder::{MANIFEST, SUMS, digest_in_list};

use super::RepairError;
use super::damage::read_own;
use crate::steps::StepError;

/// A manifest that may be trusted.
pub(super) struct Trusted {
    pub manifest: Manifest,
    /// SHA-256 of its file.
    pub sha256: Sha256,
    /// Its bytes, where the folder's own are damaged or missing.
    pub lost: Option<Vec<u8>>,
}

/// Digits of a SHA-256 in hex that may differ from a damaged copy of it. Those of two files have
/// nearly all digits different: that no more than 8 of 64 are is less likely than 10^-60.
const MAX_DAMAGED_DIGITS: usize = 8;

/// The manifest of the pack in `folder`. Where it is not the one that SHA256SUMS or the user names,
/// or cannot be parsed, that of the pack `from`, if that is the one.
///
/// # Errors
/// `Manifest` where none is known to be right.
pub(super) fn find(
    folder: &Path,
    from: &Path,
    wanted: Option<Sha256>,
) -> Result<Trusted, StepError> {
    let listed = listed(folder)?;
    let own = read(folder)?;
    if let Some(json) = &own {
        let sha256 = Sha256::of(json);
        let vouched = match (wanted, listed) {
            (Some(wanted), _) => wanted == sha256,
            // it may be the list that is damaged
            (None, Some(listed)) => differing_digits(listed, sha256) <= MAX_DAMAGED_DIGITS,
            (None, None) => true,
        };
        if let Some(manifest) = Manifest::parse(json).ok().filter(|_| vouched) {
            return Ok(Trusted {
                manifest,
                sha256,
                lost: None,
            });
        }
    }
    let wanted = wanted.or(listed);
    let other = read(from)?.filter(|json| wanted == Some(Sha256::of(json)));
    let parsed = other.and_then(|json| Some((Manifest::parse(&json).ok()?, json)));
    let Some((manifest, json)) = parsed else {
        let path = folder.join(MANIFEST);
        return Err(RepairError::Manifest { path, wanted }.into());
    };
    Ok(Trusted {
        manifest,
        sha256: Sha256::of(&json),
        lost: Some(json),
    })
}

fn differing_digits(a: Sha256, b: Sha256) -> usize {
    let (a, b) = (a.to_string(), b.to_string());
    a.bytes().zip(b.bytes()).filter(|(a, b)| a != b).count()
}

/// The manifest's file; `None` where there is none that can be read.
fn read(folder: &Path) -> Result<Option<Vec<u8>>, StepError> {
    bytes_of(folder, MANIFEST)
}

/// The digest that SHA256SUMS lists for the manifest, where it does.
fn listed(folder: &Path) -> Result<Option<Sha256>, StepError> {
    let text = bytes_of(folder, SUMS)?;
    Ok(text.and_then(|text| digest_in_list(&String::from_utf8_lossy(&text))))
}

fn bytes_of(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, StepError> {
    if !folder.is_dir() {
        // of a source that is a file; the pack itself has been found missing before
        return Ok(None);
    }
    Ok(read_own(folder, name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_digest_is_told_from_another_one() {
        let digest = Sha256::of(b"a manifest");
        let mut damaged = digest;
        damaged.0[3] ^= 0x10;
        assert_eq!(differing_digits(digest, damaged), 1);
        for i in 0..1000_u32 {
            let other = Sha256::of(&i.to_le_bytes());
            assert!(differing_digits(digest, other) > 4 * MAX_DAMAGED_DIGITS);
        }
    }
}

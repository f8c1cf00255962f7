//! Who wrote a manifest: a release that is no newer than this one wrote no word that this one does
//! not know.

use crate::documents::GENERATOR;

/// Whether a program wrote it that may know more than this one.
pub(super) fn is_newer(generator: &str) -> bool {
    match (version(generator), version(GENERATOR)) {
        (Some(writer), Some(own)) => writer > own,
        _ => true,
    }
}

/// Who wrote the words of a manifest that this program carries into a new one: a newer program, or
/// else this one.
#[must_use]
pub fn newest_writer(before: &str) -> &str {
    if is_newer(before) { before } else { GENERATOR }
}

/// `segpack 1.2.3` as three numbers.
fn version(generator: &str) -> Option<[u32; 3]> {
    let numbers = generator.strip_prefix("segpack ")?;
    let release = numbers.split(['-', '+']).next()?;
    let parsed: Result<Vec<u32>, _> = release.split('.').map(str::parse).collect();
    parsed.ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_and_others_may_know_more() {
        assert!(!is_newer(GENERATOR) && !is_newer("segpack 0.0.9"));
        assert!(is_newer("segpack 9.9.9") && is_newer("segpack 0.1000.0-rc.1"));
        for other in ["", "segpack", "segpack 1.0", "another 0.1.0"] {
            assert!(is_newer(other), "{other:?}");
        }
    }
}

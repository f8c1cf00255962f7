//! Version of a document: readers refuse a newer major version and read all others. Every kind of
//! document has a version of its own.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::documents::{Document, ManifestError};

/// `"MAJOR.MINOR"`. The minor number rises with every field added, the major one when old readers
/// would misread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FormatVersion {
    /// Readers of a lower major version must refuse the document.
    pub major: u32,
    /// Readers of a lower minor version ignore what they do not know.
    pub minor: u32,
}

/// Why a document cannot be read by this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VersionError {
    /// It is newer, and an older reader would misread it.
    #[error(
        "format version {found} is newer than {newest}, the newest this build reads: use a newer segpack"
    )]
    Newer {
        /// That of the document.
        found: FormatVersion,
        /// That of this build.
        newest: FormatVersion,
    },
    /// No release wrote it.
    #[error("format version {0} was never written by a release")]
    NeverWritten(FormatVersion),
    /// It is no version.
    #[error("format version {0:?} is not MAJOR.MINOR")]
    Malformed(String),
}

impl FormatVersion {
    /// This version.
    pub(crate) const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Whether a build whose newest version of the document is `newest` reads this one.
    ///
    /// # Errors
    /// A newer major version, or 0.
    pub fn check_readable(self, newest: Self) -> Result<(), VersionError> {
        match self.major {
            0 => Err(VersionError::NeverWritten(self)),
            major if major > newest.major => Err(VersionError::Newer {
                found: self,
                newest,
            }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for FormatVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for FormatVersion {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let numbers = text.split_once('.');
        let version = numbers
            .and_then(|(major, minor)| Some(Self::new(parse_number(major)?, parse_number(minor)?)));
        version.ok_or_else(|| VersionError::Malformed(text.to_owned()))
    }
}

/// A number written one way: no sign, no leading zero.
fn parse_number(text: &str) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

impl Serialize for FormatVersion {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FormatVersion {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Parses a document that this build may read.
///
/// # Errors
/// `Json`; `Version` where it is newer.
pub(super) fn readable<D: Document + for<'d> Deserialize<'d>>(
    json: &[u8],
) -> Result<D, ManifestError> {
    #[derive(Deserialize)]
    struct Version {
        format_version: FormatVersion,
    }
    // asked first: a newer document may lack what this build demands
    let version: Version = serde_json::from_slice(json).map_err(ManifestError::Json)?;
    version.format_version.check_readable(D::VERSION)?;
    serde_json::from_slice(json).map_err(ManifestError::Json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_major_version_is_refused_a_newer_minor_one_read() {
        let newest = FormatVersion::new(1, 1);
        let check = |text: &str| -> Result<(), String> {
            let version: FormatVersion = text.parse().map_err(|e: VersionError| e.to_string())?;
            version.check_readable(newest).map_err(|e| e.to_string())
        };
        for good in ["1.0", "1.1", "1.99"] {
            assert_eq!(check(good), Ok(()));
        }
        assert!(check("2.0").unwrap_err().contains("newer than 1.1"));
        assert!(check("0.9").unwrap_err().contains("never written"));
        for bad in ["1", "1.", "01.0", "1.0.0", "-1.0", ""] {
            assert!(check(bad).unwrap_err().contains("not MAJOR.MINOR"), "{bad}");
        }
    }
}

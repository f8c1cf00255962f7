//! Version of a document: readers refuse a newer major version and read all older ones.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `"MAJOR.MINOR"`. The minor number rises with every field added, the major one when old readers
/// would misread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FormatVersion {
    /// Readers of a lower major version must refuse the document.
    pub major: u32,
    /// Readers of a lower minor version ignore what they do not know.
    pub minor: u32,
}

impl FormatVersion {
    /// What this build writes.
    pub const CURRENT: Self = Self { major: 1, minor: 0 };

    /// # Errors
    /// In words, where the document is newer than this build.
    pub fn check_readable(self) -> Result<(), String> {
        if self.major > Self::CURRENT.major {
            return Err(format!(
                "format version {self} is newer than {}, the newest this build reads: use a newer segpack",
                Self::CURRENT
            ));
        }
        if self.major == 0 {
            return Err(format!(
                "format version {self} was never written by a release"
            ));
        }
        Ok(())
    }
}

impl fmt::Display for FormatVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for FormatVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |part: &str| part.parse().ok().filter(|n: &u32| n.to_string() == part);
        text.split_once('.')
            .and_then(|(major, minor)| {
                Some(Self {
                    major: parse(major)?,
                    minor: parse(minor)?,
                })
            })
            .ok_or_else(|| format!("format version {text:?} is not MAJOR.MINOR"))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_major_version_is_refused_a_newer_minor_one_read() {
        let check = |text: &str| {
            text.parse::<FormatVersion>()
                .and_then(FormatVersion::check_readable)
        };
        assert_eq!(check("1.0"), Ok(()));
        assert_eq!(check("1.99"), Ok(()));
        assert!(check("2.0").unwrap_err().contains("newer than 1.0"));
        assert!(check("0.9").unwrap_err().contains("never written"));
        for bad in ["1", "1.", "01.0", "1.0.0", "-1.0", ""] {
            assert!(check(bad).unwrap_err().contains("not MAJOR.MINOR"), "{bad}");
        }
    }
}

//! Names of model families.

use std::fmt;
use std::str::FromStr;

use super::Family;
use crate::names::{Word, WordError, serde_as_word};

/// The name of a model family in a document, whether this build knows the family or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FamilyName(&'static str);

impl FamilyName {
    pub(crate) const fn known(name: &'static str) -> Self {
        Self(name)
    }

    /// The name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// The family, where this build knows it.
    #[must_use]
    pub fn family(self) -> Option<Family> {
        Family::named(self.as_str())
    }

    /// The family, for what computes its decoder.
    ///
    /// # Errors
    /// Names the family, and those that this build runs.
    pub fn known_family(name: Option<Self>) -> Result<Family, UnknownFamily> {
        let name = name.ok_or_else(|| UnknownFamily::NotSaid { known: known() })?;
        let known = known();
        name.family()
            .filter(|family| family.is_run())
            .ok_or(UnknownFamily::Unknown { name, known })
    }
}

/// The names of all families that this build runs.
fn known() -> String {
    let all = Family::all().filter(|family| family.is_run());
    let names: Vec<&str> = all.map(Family::as_str).collect();
    names.join(", ")
}

/// A model whose family this build does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnknownFamily {
    /// A newer build may know it.
    #[error("family \"{name}\" is not one that this build can run; known: {known}")]
    Unknown {
        /// The family.
        name: FamilyName,
        /// Those that this build knows, comma separated.
        known: String,
    },
    /// The pack does not say which it is.
    #[error("its model is of no known family; known: {known}")]
    NotSaid {
        /// Those that this build knows, comma separated.
        known: String,
    },
}

impl From<Family> for FamilyName {
    fn from(family: Family) -> Self {
        family.name()
    }
}

impl fmt::Display for FamilyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for FamilyName {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        match Family::named(text) {
            Some(family) => Ok(family.name()),
            None => text.parse().map(|word: Word| Self(word.as_str())),
        }
    }
}

serde_as_word!(
    FamilyName,
    Family::all().map(Family::as_str).collect::<Vec<_>>()
);

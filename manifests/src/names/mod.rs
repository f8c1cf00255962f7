//! What a tensor is, in the terms of the field: its component, its role and part, its layer and its
//! expert.
//!
//! The vocabulary is open. Words that this build knows are variants; others are carried through and
//! shown. Only what needs to understand a word refuses one, by name.

mod class;
mod component;
mod part;
mod role;
mod word;

use serde::{Deserialize, Serialize};

pub use class::Class;
pub use component::Component;
pub use part::Part;
pub use role::Role;
pub(crate) use word::serde_as_word;
pub use word::{MAX_WORD_BYTES, Word, WordError};

/// What the rules of a family say about one tensor name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Classification {
    /// The component it belongs to.
    pub component: Component,
    /// What it does there.
    pub role: Role,
    /// Which tensor of its weight it is.
    #[serde(default = "Part::weight", skip_serializing_if = "Part::is_weight")]
    pub part: Part,
    /// Its layer or block, counted from 0.
    pub layer: Option<u32>,
    /// Its expert, counted from 0.
    pub expert: Option<u32>,
}

impl Classification {
    /// What a tensor gets that no rule names.
    pub const UNCLASSIFIED: Self = Self {
        component: Component::Unclassified,
        role: Role::Unclassified,
        part: Part::Weight,
        layer: None,
        expert: None,
    };

    /// The row of `scan`'s table.
    #[must_use]
    pub const fn class(&self) -> Class {
        Class::of(self.component, self.role)
    }

    /// The segment group inside its layer or component: see [`Role::segment_group`].
    #[must_use]
    pub fn segment_group(&self) -> &'static str {
        self.role.segment_group()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_words_come_back_and_unknown_ones_pass() {
        for component in Component::KNOWN {
            assert_eq!(component.to_string().parse(), Ok(*component));
            assert!(component.is_known());
        }
        for role in Role::KNOWN {
            let json = serde_json::to_string(role).unwrap();
            assert_eq!(serde_json::from_str::<Role>(&json).unwrap(), *role);
        }
        let newer: Role = serde_json::from_str("\"lightning_indexer\"").unwrap();
        assert!(matches!(newer, Role::Other(_)) && !newer.is_known());
        assert_eq!(
            serde_json::to_string(&newer).unwrap(),
            "\"lightning_indexer\""
        );
        assert_eq!(newer.segment_group(), "lightning_indexer");
        assert_eq!(
            Class::of(Component::Text, newer).as_str(),
            "lightning_indexer"
        );
        let error = serde_json::from_str::<Component>("\"../thinker\"").unwrap_err();
        assert!(
            error.to_string().contains("\"../thinker\" is not a word"),
            "{error}"
        );
        assert_eq!(format!("{:<14}|", Class::SharedExpert), "shared expert |");
        assert_eq!(
            serde_json::to_string(&Class::SharedExpert).unwrap(),
            "\"shared_expert\""
        );
    }

    /// A checkpoint has tens of thousands, twice: as they are and as they should be.
    #[test]
    fn a_classification_is_small() {
        assert!(size_of::<Classification>() <= 32);
    }

    #[test]
    fn unknown_words_sort_after_known_ones() {
        let newer: Component = "aaa".parse().unwrap();
        assert!(Component::KNOWN.iter().all(|known| *known < newer));
    }
}

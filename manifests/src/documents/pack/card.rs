//! What a model card says of a checkpoint: the front matter of its `README.md`.

use serde::Deserialize;

/// The front matter of a model card, as far as a bill of materials has places for it. Keys are those
/// of Hugging Face's model cards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ModelCard {
    /// Licences, as the hub names them: `apache-2.0`, `other`.
    pub license: OneOrMany,
    /// The name of a licence that the hub does not know.
    pub license_name: Option<String>,
    /// Where its text is.
    pub license_link: Option<String>,
    /// Models that it was made from: `OWNER/NAME`.
    pub base_model: OneOrMany,
    /// What it is for, such as `any-to-any`.
    pub pipeline_tag: Option<String>,
}

/// One word or several.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// None.
    #[default]
    None,
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[String] {
        match self {
            Self::None => &[],
            Self::One(word) => std::slice::from_ref(word),
            Self::Many(words) => words,
        }
    }
}

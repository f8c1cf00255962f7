//! What a manifest says of the model.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::families::{Family, FamilyName, TextFacts, UnknownFamily};

/// The model, as `config.json` describes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelFacts {
    /// Its family; null where every tensor was packed unclassified.
    pub family: Option<FamilyName>,
    /// The text decoder's numbers.
    #[serde(skip_serializing_if = "TextModel::is_absent")]
    #[cfg_attr(feature = "schema", schemars(default))]
    pub text: TextModel,
}

impl ModelFacts {
    /// The model that a configuration describes.
    #[must_use]
    pub fn of_config(family: Option<Family>, config: Option<&Value>) -> Self {
        let text = family.zip(config);
        let text = text.and_then(|(family, config)| family.text_facts(config).ok());
        Self {
            family: family.map(Into::into),
            text: text.into(),
        }
    }

    /// The family, for what cannot do without knowing it.
    ///
    /// # Errors
    /// Names the family, and those that this build knows.
    pub fn known_family(&self) -> Result<Family, UnknownFamily> {
        FamilyName::known_family(self.family)
    }

    /// The numbers of a text decoder of a family that this build knows.
    ///
    /// # Errors
    /// As [`known_family`](Self::known_family); `None` where no text decoder is described.
    pub fn text_decoder(&self) -> Result<Option<&TextFacts>, UnknownFamily> {
        self.known_family().map(|_| self.text.facts())
    }
}

/// The text decoder of a model.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub enum TextModel {
    /// None is described.
    #[default]
    Absent,
    /// One in the terms of this build.
    Known(TextFacts),
    /// One in other terms, of a family that this build does not know: carried through as it is.
    Other(Value),
}

impl TextModel {
    /// Its numbers, where they are in the terms of this build.
    #[must_use]
    pub fn facts(&self) -> Option<&TextFacts> {
        match self {
            Self::Known(facts) => Some(facts),
            Self::Absent | Self::Other(_) => None,
        }
    }

    fn is_absent(&self) -> bool {
        *self == Self::Absent
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for TextModel {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TextModel".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let known = generator.subschema_for::<TextFacts>();
        let other = "of a family that this version does not know";
        schemars::json_schema!({
            "anyOf": [known, { "type": "object", "description": other }, { "type": "null" }]
        })
    }
}

impl From<Option<TextFacts>> for TextModel {
    fn from(facts: Option<TextFacts>) -> Self {
        facts.map_or(Self::Absent, Self::Known)
    }
}

impl Serialize for TextModel {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent => to.serialize_none(),
            Self::Known(facts) => facts.serialize(to),
            Self::Other(value) => value.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for ModelFacts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            family: Option<FamilyName>,
            text: Option<Value>,
        }
        let Raw { family, text } = Raw::deserialize(from)?;
        let Some(value) = text else {
            let text = TextModel::Absent;
            return Ok(Self { family, text });
        };
        // of a family that this build knows, all numbers have to be there
        let known = family.is_none_or(|name| name.family().is_some());
        let text = match TextFacts::deserialize(&value) {
            Ok(facts) => TextModel::Known(facts),
            Err(e) if known => return Err(D::Error::custom(format!("model.text: {e}"))),
            Err(_) => TextModel::Other(value),
        };
        Ok(Self { family, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<ModelFacts, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    #[test]
    fn another_familys_numbers_are_carried_through() {
        let json = r#"{"family":"later_moe","text":{"hidden_size":8,"latent_rank":4}}"#;
        let model = read(json).unwrap();
        assert!(matches!(model.text, TextModel::Other(_)) && model.text.facts().is_none());
        assert_eq!(serde_json::to_string(&model).unwrap(), json);
    }

    #[test]
    fn a_known_familys_numbers_have_to_be_complete() {
        let error = read(r#"{"family":"qwen3_moe","text":{"hidden_size":8}}"#).unwrap_err();
        assert!(
            error.starts_with("model.text: missing field `layers`"),
            "{error}"
        );
        let none = read(r#"{"family":null}"#).unwrap();
        assert_eq!(none, ModelFacts::default());
        assert_eq!(serde_json::to_string(&none).unwrap(), r#"{"family":null}"#);
    }
}

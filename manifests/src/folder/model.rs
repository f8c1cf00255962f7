//! The numbers of a pack's model: one reader for all who run, compare or export it.
//!
//! `config.json` is the source, the manifest repeats it. Where they disagree one of them was
//! changed, and nobody can say which: such a pack is refused.

use std::path::PathBuf;

use segpack_formats::FormatError;
use segpack_formats::strict_json::UniqueEntries;
use serde_json::Value;

use super::{Pack, source_file};
use crate::documents::{ModelFacts, TextModel};
use crate::families::{
    ConfigError, Family, MediaFacts, SpeechFacts, TextFacts, TextSettings, UnknownFamily,
    VocoderFacts,
};

/// The configuration of a checkpoint, from which all numbers come.
const CONFIG: &str = "config.json";

/// Why the numbers of a pack's model cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// `config.json` cannot be read, is damaged or too large.
    #[error(transparent)]
    File(#[from] FormatError),
    /// `config.json` is not JSON.
    #[error("{}: is not valid JSON", path.display())]
    Json {
        /// The file in the pack.
        path: PathBuf,
        /// Where and why not.
        source: serde_json::Error,
    },
    /// `config.json` lacks a number, or has one that no model can have.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The manifest has numbers, and nothing to compare them with.
    #[error("manifest.json describes a text decoder, but the pack has no config.json")]
    NoConfig,
    /// Manifest and `config.json` are of different models.
    #[error(
        "manifest.json and {} disagree: {field} is {manifest} in the manifest, {config} in config.json",
        path.display()
    )]
    Disagree {
        /// The number, by its name in the manifest.
        field: String,
        /// The manifest's, as JSON.
        manifest: String,
        /// What `config.json` gives, as JSON.
        config: String,
        /// `config.json` in the pack.
        path: PathBuf,
    },
    /// The model's family is not known.
    #[error(transparent)]
    Family(#[from] UnknownFamily),
    /// There is no text decoder.
    #[error("its manifest describes no text decoder")]
    NoTextDecoder,
}

/// A pack's model in numbers: those of its `config.json`, which are the manifest's too.
#[derive(Debug, Clone)]
pub struct PackModel {
    model: ModelFacts,
    config: Option<Value>,
    path: PathBuf,
}

/// The text decoder of a pack's model.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TextDecoder {
    /// Its family.
    pub family: Family,
    /// Its sizes and constants; of keys that the configuration leaves out the family's.
    pub facts: TextFacts,
    /// What a runtime has to know beside them.
    pub settings: TextSettings,
}

impl TextDecoder {
    /// That of a family's `config.json`.
    ///
    /// # Errors
    /// Where a setting is out of bounds, or asks for what no runtime of this build computes.
    pub fn of_config(family: Family, config: &Value) -> Result<Self, ConfigError> {
        let mut facts = family.text_facts(config)?;
        let settings = family.text_settings(config, &facts)?;
        settings.complete(&mut facts);
        Ok(Self {
            family,
            facts,
            settings,
        })
    }
}

impl PackModel {
    /// Reads `config.json` of a pack and compares it with the manifest. A pack of a family that
    /// this build does not know, or without any, is not refused here: only
    /// [`text_decoder`](Self::text_decoder) needs to know it.
    ///
    /// # Errors
    /// `Disagree` and `NoConfig` where the manifest has other numbers; `Json`, `Config` and `File`
    /// where `config.json` cannot be used.
    pub fn read(pack: &Pack) -> Result<Self, ModelError> {
        let path = pack.path(&format!("{}/{CONFIG}", super::SOURCE));
        let given = pack.manifest().options.config.clone();
        let config = match source_file(pack, CONFIG)? {
            _ if given.is_some() => given,
            Some(bytes) => Some(parse(&bytes).map_err(|source| ModelError::Json {
                path: path.clone(),
                source,
            })?),
            None => None,
        };
        let model = Self {
            model: pack.manifest().model.clone(),
            config,
            path,
        };
        model.compare()?;
        Ok(model)
    }

    /// Its family, if this build knows it.
    #[must_use]
    pub fn family(&self) -> Option<Family> {
        self.model.known_family().ok()
    }

    /// `config.json`, if the checkpoint had one.
    #[must_use]
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    /// The text decoder, with everything that a runtime has to know of it, each number within its
    /// bounds.
    ///
    /// # Errors
    /// `NoTextDecoder`; `Family` where it is not known; `Config` where a setting is out of bounds,
    /// or asks for what no runtime of this build computes.
    pub fn text_decoder(&self) -> Result<TextDecoder, ModelError> {
        let family = self.model.known_family()?;
        let Some(config) = &self.config else {
            return Err(ModelError::NoTextDecoder);
        };
        // a checkpoint whose numbers could not be read was packed without any
        family.text_facts(config)?;
        if self.model.text.facts().is_none() {
            return Err(ModelError::NoTextDecoder);
        }
        Ok(TextDecoder::of_config(family, config)?)
    }

    /// The encoders of audio and pictures, and what else a runtime has to know of them; `None`
    /// where the model takes text alone.
    ///
    /// # Errors
    /// `Family` where it is not known; `Config` where a number is out of bounds, or asks for what no
    /// runtime of this build computes.
    pub fn media(&self) -> Result<Option<MediaFacts>, ModelError> {
        let family = self.model.known_family()?;
        match &self.config {
            Some(config) => Ok(family.media_facts(config)?),
            None => Ok(None),
        }
    }

    /// The vocoder; `None` where the model has none.
    ///
    /// # Errors
    /// As [`media`](Self::media).
    pub fn vocoder(&self) -> Result<Option<VocoderFacts>, ModelError> {
        let family = self.model.known_family()?;
        match &self.config {
            Some(config) => Ok(family.vocoder_facts(config)?),
            None => Ok(None),
        }
    }

    /// The talker and its code predictor; `None` where the model does not speak.
    ///
    /// # Errors
    /// As [`media`](Self::media).
    pub fn speech(&self) -> Result<Option<SpeechFacts>, ModelError> {
        let family = self.model.known_family()?;
        match &self.config {
            Some(config) => Ok(family.speech_facts(config)?),
            None => Ok(None),
        }
    }

    /// Whether the manifest has the family and the numbers of `config.json`.
    fn compare(&self) -> Result<(), ModelError> {
        let known = self.model.family.and_then(|name| name.family());
        let (Some(family), Some(config)) = (known, &self.config) else {
            // of an unknown family nothing can be derived; of none there is nothing to compare
            return match (&self.model.text, &self.config) {
                (TextModel::Known(_), None) => Err(ModelError::NoConfig),
                _ => Ok(()),
            };
        };
        let derived = Family::of_config(config);
        if derived != Some(family) {
            let derived = derived.map_or("of no known family", Family::as_str);
            return Err(self.disagree("family", family.as_str().into(), derived.into()));
        }
        match (family.text_facts(config), &self.model.text) {
            (Ok(derived), TextModel::Known(stated)) => self.compare_numbers(stated, &derived),
            (Ok(derived), _) => {
                let derived = format!("a decoder of {} layers", derived.layers);
                Err(self.disagree("text", "missing".to_owned(), derived))
            }
            (Err(wrong), TextModel::Known(_)) => Err(wrong.into()),
            (Err(_), _) => Ok(()),
        }
    }

    fn compare_numbers(&self, stated: &TextFacts, derived: &TextFacts) -> Result<(), ModelError> {
        let (stated, derived) = (numbers(stated)?, numbers(derived)?);
        let differs = |key: &&String| stated.get(*key) != derived.get(*key);
        match derived.keys().find(differs) {
            None => Ok(()),
            Some(key) => {
                let show = |of: &Numbers| of.get(key).map_or("missing".into(), Value::to_string);
                Err(self.disagree(&format!("text.{key}"), show(&stated), show(&derived)))
            }
        }
    }

    fn disagree(&self, field: &str, manifest: String, config: String) -> ModelError {
        ModelError::Disagree {
            field: format!("model.{field}"),
            manifest,
            config,
            path: self.path.clone(),
        }
    }
}

/// A key that stands twice would be another one for every reader.
fn parse(json: &[u8]) -> Result<Value, serde_json::Error> {
    let entries: UniqueEntries<Value> = serde_json::from_slice(json)?;
    Ok(Value::Object(entries.0.into_iter().collect()))
}

/// Numbers by their names in the manifest.
type Numbers = serde_json::Map<String, Value>;

/// As a manifest has them, so that equal numbers are equal whatever their spelling was.
fn numbers(facts: &TextFacts) -> Result<Numbers, ModelError> {
    let text = serde_json::to_vec(facts).and_then(|json| serde_json::from_slice(&json));
    text.map_err(|source| ModelError::Json {
        path: super::MANIFEST.into(),
        source,
    })
}

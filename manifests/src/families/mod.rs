//! Model families: what the tensors of a checkpoint are called, what each is, and which of what
//! shape the configuration calls for. One file per family; the rules are tables, and each row of
//! them serves both classification and derivation.

mod blocks;
mod causal_lm;
pub(crate) mod config;
pub(crate) mod expected;
mod facts;
pub(crate) mod guess;
mod media;
mod models;
mod name;
mod options;
mod packed;
mod rewrite;
mod rope;
mod rules;
mod settings;
mod sizes;
mod sound;
mod speech;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::LazyLock;

use segpack_formats::numeric::Dtype;
use serde_json::Value;

pub use config::{ConfigError, MAX_COUNT, MAX_SIZE};
pub use expected::{Expected, ExpectedDtype, Presence, Slice, UnstackError};
pub use facts::TextFacts;
pub use media::{
    AudioTokens, AudioTowerFacts, MediaFacts, MediaTokens, VisionTowerFacts, VisionTowerNames,
};
pub use name::{FamilyName, UnknownFamily};
pub use options::{
    DecoderOptions, ExpertActivation, ExpertGroups, ExpertOptions, Multipliers, NormRounding,
    QkNorm, RouterOptions, RouterScore, SharedExpertOptions, WeightDivisor,
};
pub use rewrite::set_dtype;
pub use rope::{RotaryOptions, RotaryPairs, RotaryScaling, Yarn};
pub use rules::{MAX_TENSORS, StackLayout};
pub use settings::TextSettings;
pub use sound::VocoderFacts;
pub use speech::{SpeechCodes, SpeechFacts, SpeechTokens, TalkerMedia};

use crate::names::{Classification, Component, Part, Role};
use crate::quantization;
use config::{Section, sections_of_models};
use expected::ExpectedSink;
use models::FAMILIES;
use rules::Rules;

/// A family of models whose tensors share names and shapes, and which this build knows.
#[derive(Clone, Copy)]
pub struct Family(&'static FamilyRow);

/// All that is special to a family: its row of the registry.
pub(crate) struct FamilyRow {
    /// Its name in documents.
    name: &'static str,
    /// `model_type` of its configurations.
    model_types: &'static [&'static str],
    /// `architectures` of its configurations.
    architectures: &'static [&'static str],
    /// What its tensors are called, and what they are.
    rules: LazyLock<Rules>,
    /// Adds every tensor that a configuration calls for; experts stacked in the layers where the
    /// function knows a stacked name.
    expected: ExpectedBy,
    /// The text decoder of a configuration.
    text_facts: fn(&Section<'_>) -> Result<TextFacts, ConfigError>,
    /// What a runtime has to know of that decoder beside its facts; `None` where the runtime does
    /// not compute it.
    text_settings: Option<SettingsBy>,
    /// What takes audio and pictures, where the family does.
    media_facts: fn(&Section<'_>) -> Result<Option<MediaFacts>, ConfigError>,
    /// What makes sound of codes, where the family does.
    vocoder_facts: fn(&Section<'_>) -> Result<Option<VocoderFacts>, ConfigError>,
    /// What speaks, where the family has that.
    speech_facts: fn(&Section<'_>) -> Result<Option<SpeechFacts>, ConfigError>,
    /// The configuration of the text decoder as a `Qwen3MoeForCausalLM`, given that of the
    /// checkpoint and its `generation_config.json`; `None` where the family computes something else.
    as_causal_lm: Option<causal_lm::AsCausalLm>,
    /// The configuration of some of its components.
    partial_config: fn(&Value, &BTreeSet<Component>) -> PartialConfig,
}

type SettingsBy = fn(&Section<'_>, &TextFacts) -> Result<TextSettings, ConfigError>;

type ExpectedBy =
    fn(&Section<'_>, &dyn Fn(&str) -> bool, &mut ExpectedSink<'_>) -> Result<(), ConfigError>;

/// What `config.json` has to say of some components of a model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PartialConfig {
    /// What the checkpoint's says.
    Unchanged,
    /// This: the components are the thinker, which is a model of its own.
    ThinkerOnly(Value),
    /// Nothing: no class loads these components without the rest.
    NoModel,
}

impl Family {
    /// The families that this build knows.
    pub fn all() -> impl Iterator<Item = Self> {
        FAMILIES.iter().map(|row| Self(row))
    }

    /// The family of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|family| family.as_str() == name)
    }

    /// Its name in documents.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.0.name
    }

    /// Its name in documents.
    #[must_use]
    pub fn name(self) -> FamilyName {
        FamilyName::known(self.0.name)
    }

    /// The family that a `config.json` belongs to, by `model_type` or else by `architectures`.
    #[must_use]
    pub fn of_config(config: &Value) -> Option<Self> {
        let model_type = config
            .get("model_type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let by_type = |family: &Self| family.0.model_types.contains(&model_type);
        Self::all().find(by_type).or_else(|| {
            let architectures = config.get("architectures")?.as_array()?.iter();
            architectures
                .filter_map(Value::as_str)
                .find_map(Self::of_architecture)
        })
    }

    fn of_architecture(architecture: &str) -> Option<Self> {
        Self::all().find(|family| family.0.architectures.contains(&architecture))
    }

    /// The family whose rules name most of these tensors, if they name more than half, for
    /// checkpoints without a `config.json`.
    #[must_use]
    pub fn guess<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut total = 0_usize;
        let mut named: Vec<(usize, Self)> = Self::all().map(|family| (0, family)).collect();
        for name in names {
            total += 1;
            for (count, family) in &mut named {
                *count += usize::from(family.classify(name).is_some());
            }
        }
        let (count, family) = named.into_iter().max_by_key(|(count, _)| *count)?;
        (count > total / 2).then_some(family)
    }

    /// What the tensor of this name is; `None` when no rule names it. Needs no configuration, so
    /// layers and experts beyond the model's are classified too.
    #[must_use]
    pub fn classify(self, name: &str) -> Option<Classification> {
        let rules = &self.0.rules;
        let part = || quantization::classify_part(name, |weight| rules.classify(weight));
        rules.classify(name).or_else(part)
    }

    /// Every tensor that the configuration calls for before quantisation (see
    /// [`Quantization`](crate::quantization::Quantization)), of whatever dtype, components in a
    /// fixed order, layers in theirs.
    ///
    /// Experts are expected one by one, unless `is_present` knows a stacked tensor of their layer:
    /// then stacked.
    ///
    /// # Errors
    ///
    /// When a key is missing or unusable, or the counts give more than [`MAX_TENSORS`].
    pub fn expected(
        self,
        config: &Value,
        is_present: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Expected>, ConfigError> {
        let mut all = Vec::new();
        self.for_each_expected(config, is_present, &mut |tensor| all.push(tensor))?;
        Ok(all)
    }

    /// [`expected`](Self::expected), given to `take` one by one.
    ///
    /// # Errors
    ///
    /// As [`expected`](Self::expected), some tensors having been taken.
    pub fn for_each_expected(
        self,
        config: &Value,
        is_present: &dyn Fn(&str) -> bool,
        take: &mut dyn FnMut(Expected),
    ) -> Result<(), ConfigError> {
        let mut out = ExpectedSink::new(take);
        (self.0.expected)(&Section::root(config)?, is_present, &mut out)
    }

    /// Facts about the text decoder (the thinker's, in an omni model).
    ///
    /// # Errors
    ///
    /// When a key is missing or unusable.
    pub fn text_facts(self, config: &Value) -> Result<TextFacts, ConfigError> {
        (self.0.text_facts)(&Section::root(config)?)
    }

    /// What a runtime has to know of that decoder beside its facts.
    ///
    /// # Errors
    ///
    /// When a key is unusable, or asks for an operation that this program does not compute, as all of
    /// the family does where [`is_run`](Self::is_run) says so.
    pub fn text_settings(
        self,
        config: &Value,
        facts: &TextFacts,
    ) -> Result<TextSettings, ConfigError> {
        let root = Section::root(config)?;
        match self.0.text_settings {
            Some(read) => read(&root, facts),
            None => {
                Err(root.invalid_or_missing("model_type", "a family whose decoder is computed"))
            }
        }
    }

    /// What a runtime has to know of the encoders of audio and pictures; `None` where models of this
    /// family take text alone.
    ///
    /// # Errors
    ///
    /// When a key is missing or unusable, or asks for an operation that this program does not
    /// compute.
    pub fn media_facts(self, config: &Value) -> Result<Option<MediaFacts>, ConfigError> {
        (self.0.media_facts)(&Section::root(config)?)
    }

    /// What a runtime has to know of the vocoder; `None` where the model has none.
    ///
    /// # Errors
    ///
    /// When a key is unusable, or asks for an operation that this program does not compute.
    pub fn vocoder_facts(self, config: &Value) -> Result<Option<VocoderFacts>, ConfigError> {
        (self.0.vocoder_facts)(&Section::root(config)?)
    }

    /// What a runtime has to know of talker and code predictor; `None` where the model does not
    /// speak.
    ///
    /// # Errors
    ///
    /// When a key is missing or unusable, or asks for an operation that this program does not
    /// compute.
    pub fn speech_facts(self, config: &Value) -> Result<Option<SpeechFacts>, ConfigError> {
        (self.0.speech_facts)(&Section::root(config)?)
    }

    /// The same text decoder as a `Qwen3MoeForCausalLM`, so that transformers 4 and 5 and everybody
    /// who reads their configurations find what they look for. A configuration that is one already
    /// says what it said, and what it left to defaults. `generation` is `generation_config.json`,
    /// whose special ids are taken where the decoder has none. `None` where the family computes
    /// something else.
    ///
    /// # Errors
    /// As [`text_facts`](Self::text_facts).
    pub fn as_causal_lm(
        self,
        config: &Value,
        generation: Option<&Value>,
    ) -> Result<Option<Value>, ConfigError> {
        let convert = self.0.as_causal_lm;
        convert
            .map(|convert| convert(config, generation))
            .transpose()
    }

    /// Whether its text decoder is Qwen3-MoE's, whatever stands beside it.
    #[must_use]
    pub fn is_qwen3_moe(self) -> bool {
        self.0.as_causal_lm.is_some()
    }

    /// Whether the runtime computes its decoder; the others are taken apart, audited, checked and
    /// restored.
    #[must_use]
    pub fn is_run(self) -> bool {
        self.0.text_settings.is_some()
    }

    /// What `config.json` has to say of some components of a model.
    #[must_use]
    pub fn partial_config(self, config: &Value, components: &BTreeSet<Component>) -> PartialConfig {
        (self.0.partial_config)(config, components)
    }

    /// How an expert's part lies in a stacked tensor of this name; `None` where it is the name of
    /// none.
    #[must_use]
    pub fn stack_layout(self, name: &str) -> Option<StackLayout> {
        let rules = &self.0.rules;
        let own = rules.stack_layout(name);
        own.or_else(|| rules.stack_layout(quantization::stack_of_part(name)?.0))
    }

    /// The per-expert matrices inside a tensor that stacks experts, in order of their bytes; `None`
    /// when the name is not that of a stacked tensor. `experts` is how many the layer's router
    /// chooses from, asked where the shape does not say. `shape` is `[experts, 2 x moe_intermediate,
    /// hidden]` (gate rows, then up rows) or `[experts, hidden, moe_intermediate]`, by the rule for
    /// the name.
    #[must_use]
    pub fn unstack(
        self,
        name: &str,
        shape: &[u64],
        dtype_bits: u64,
        experts: &dyn Fn() -> Option<u64>,
    ) -> Option<Result<Vec<Slice>, UnstackError>> {
        let rules = &self.0.rules;
        let own = rules.unstack((name, "", None), shape, dtype_bits, experts);
        own.or_else(|| {
            let (stack, suffix, part) = quantization::stack_of_part(name)?;
            rules.unstack((stack, suffix, Some(part)), shape, dtype_bits, experts)
        })
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Family {}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Family({})", self.as_str())
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The facts about the text decoder of a configuration, whatever its family; `None` when no family
/// claims it.
#[must_use]
pub fn text_facts(config: &Value) -> Option<Result<TextFacts, ConfigError>> {
    Family::of_config(config).map(|family| family.text_facts(config))
}

/// The dtype that the configuration says its tensors have: `dtype` or `torch_dtype`, at the top, in
/// `thinker_config` or in a `text_config`. `None` when it says nothing.
///
/// # Errors
///
/// When it names a dtype that safetensors does not have.
pub fn expected_dtype(config: &Value) -> Result<Option<Dtype>, ConfigError> {
    for place in sections_of_models(config)? {
        let key = place.either("dtype", "torch_dtype");
        if let Some(text) = place.text(key)? {
            let wanted = "a torch dtype that safetensors has, such as \"bfloat16\"";
            let dtype = dtype_of_torch(text);
            return dtype.map(Some).ok_or_else(|| place.invalid(key, wanted));
        }
    }
    Ok(None)
}

/// The names of torch, with or without the module in front.
fn dtype_of_torch(text: &str) -> Option<Dtype> {
    Some(match text.strip_prefix("torch.").unwrap_or(text) {
        "bfloat16" => Dtype::BF16,
        "float16" | "half" => Dtype::F16,
        "float32" | "float" => Dtype::F32,
        "float64" | "double" => Dtype::F64,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        "float8_e4m3fnuz" => Dtype::F8_E4M3FNUZ,
        "float8_e5m2fnuz" => Dtype::F8_E5M2FNUZ,
        "float8_e8m0fnu" => Dtype::F8_E8M0,
        _ => return None,
    })
}

/// How many parameters a loader prints that stacks each layer's experts: their gate and up matrices
/// count as one, their down matrices as one, their scales likewise, everything else counts itself.
#[must_use]
pub fn logical_parameter_count<'a>(tensors: impl IntoIterator<Item = &'a Classification>) -> usize {
    let mut stacks: BTreeSet<(Component, Option<u32>, bool, Part)> = BTreeSet::new();
    let mut others = 0;
    for tensor in tensors {
        let goes_in = match tensor.role {
            Role::ExpertGate | Role::ExpertUp | Role::ExpertGateUp => true,
            Role::ExpertGateUpStacked => true,
            Role::ExpertGateStacked | Role::ExpertUpStacked => {
                others += 1;
                continue;
            }
            Role::ExpertDown | Role::ExpertDownStacked => false,
            _ => {
                others += 1;
                continue;
            }
        };
        stacks.insert((tensor.component, tensor.layer, goes_in, tensor.part));
    }
    others + stacks.len()
}

#[cfg(test)]
mod tests;

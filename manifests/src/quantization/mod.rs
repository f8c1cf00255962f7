//! Quantised weights: which tensors each consists of, and of which dtypes.
//!
//! A quantised weight is several tensors that share a role and differ in their
//! [`Part`]. `quantization_config` in `config.json` names the scheme; each
//! scheme is one file here and one row of `SCHEMES`.

mod fp8_block;
mod modules;

use serde_json::Value;

use crate::families::config::{ConfigError, Section, sections_of_models};
use crate::families::expected::Expected;
use crate::names::{Classification, Part, Role};

/// What the weights of a checkpoint are quantised with.
#[derive(Debug, Clone)]
pub struct Quantization {
    scheme: Box<dyn Scheme>,
}

/// One way to quantise, with the settings of one checkpoint.
trait Scheme: std::fmt::Debug + SchemeClone {
    /// The tensors that take the place of a weight; the weight itself where it stays as it is.
    fn tensors_of(&self, weight: Expected) -> Vec<Expected>;
}

/// Lets a boxed scheme be cloned.
trait SchemeClone {
    fn boxed(&self) -> Box<dyn Scheme>;
}

impl<S: Scheme + Clone + 'static> SchemeClone for S {
    fn boxed(&self) -> Box<dyn Scheme> {
        Box::new(self.clone())
    }
}

impl Clone for Box<dyn Scheme> {
    fn clone(&self) -> Self {
        self.boxed()
    }
}

/// A scheme that this build knows.
struct SchemeRow {
    /// `quantization_config.quant_method`.
    method: &'static str,
    /// Reads its settings.
    read: fn(&Section<'_>) -> Result<Box<dyn Scheme>, ConfigError>,
    /// What the tensors beside `*.weight` are called, each by what stands for `.weight`.
    parts: &'static [(&'static str, Part)],
}

/// The registry.
static SCHEMES: &[SchemeRow] = &[fp8_block::SCHEME];

impl Quantization {
    /// What `config.json` says: `None` where it has no `quantization_config`, neither at the top
    /// nor beside the text decoder.
    ///
    /// # Errors
    /// A method that this build does not know, or settings that it cannot use.
    pub fn of_config(config: &Value) -> Result<Option<Self>, ConfigError> {
        for section in sections_of_models(config)? {
            if section.has("quantization_config") {
                return Self::read(&section.section("quantization_config")?).map(Some);
            }
        }
        Ok(None)
    }

    fn read(section: &Section<'_>) -> Result<Self, ConfigError> {
        let known: Vec<&str> = SCHEMES.iter().map(|row| row.method).collect();
        let known = known.join(" or ");
        let method = section.text("quant_method")?;
        let method = method.ok_or_else(|| section.missing("quant_method", &known))?;
        let row = SCHEMES.iter().find(|row| row.method == method);
        let row = row.ok_or_else(|| section.invalid("quant_method", &known))?;
        let scheme = (row.read)(section)?;
        Ok(Self { scheme })
    }

    /// The tensors that a checkpoint has, given those that it would have unquantised.
    #[must_use]
    pub fn apply(&self, expected: Vec<Expected>) -> Vec<Expected> {
        let tensors = expected.into_iter().map(|e| self.tensors_of(e));
        tensors.flatten().collect()
    }

    /// The tensors that a checkpoint has in the place of one that it would have unquantised.
    #[must_use]
    pub fn tensors_of(&self, expected: Expected) -> Vec<Expected> {
        match expected.classification.part {
            Part::Weight if is_quantised(expected.classification.role) => {
                self.scheme.tensors_of(expected)
            }
            _ => vec![expected],
        }
    }
}

/// What a tensor beside a quantised weight is; `classify` says what a weight is. Needs no
/// configuration.
pub(crate) fn classify_part(
    name: &str,
    classify: impl Fn(&str) -> Option<Classification>,
) -> Option<Classification> {
    let parts = SCHEMES.iter().flat_map(|row| row.parts);
    for (suffix, part) in parts {
        let Some(module) = name.strip_suffix(suffix) else {
            continue;
        };
        let weight = classify(&format!("{module}.weight"));
        if let Some(weight) = weight.filter(|w| w.part.is_weight() && is_quantised(w.role)) {
            return Some(Classification {
                part: *part,
                ..weight
            });
        }
    }
    None
}

/// Whether weights of a role are quantised in a quantised checkpoint: the projections inside the
/// layers of a decoder are; embeddings, heads, norms, routers and towers stay as they are.
fn is_quantised(role: Role) -> bool {
    match role {
        Role::AttentionQ | Role::AttentionK | Role::AttentionV | Role::AttentionO => true,
        Role::ExpertGate | Role::ExpertUp | Role::ExpertDown | Role::ExpertGateUp => true,
        Role::SharedExpertGate | Role::SharedExpertUp | Role::SharedExpertDown => true,
        Role::MlpGate | Role::MlpUp | Role::MlpDown => true,
        Role::ExpertGateUpStacked | Role::ExpertDownStacked => false,
        Role::Embedding | Role::PositionEmbedding | Role::CodecEmbedding => false,
        Role::QNorm | Role::KNorm | Role::InputNorm | Role::PostAttentionNorm => false,
        Role::FinalNorm | Role::LmHead | Role::CodecHead => false,
        Role::Router | Role::SharedExpertRouter => false,
        Role::Projection | Role::Conv | Role::Merger => false,
        Role::AudioBlock | Role::VisionBlock => false,
        Role::CodecBlock | Role::CodecUpsample | Role::CodecDecoder => false,
        Role::Unclassified | Role::Other(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_methods_are_named() {
        let of = |config: Value| Quantization::of_config(&config).map(|q| q.is_some());
        assert_eq!(
            of(serde_json::json!({"model_type": "qwen3_moe"})),
            Ok(false)
        );
        let awq = serde_json::json!({"quantization_config": {"quant_method": "awq", "bits": 4}});
        assert_eq!(
            of(awq).unwrap_err().to_string(),
            "config.json: quantization_config.quant_method is \"awq\", wanted fp8"
        );
        let silent = serde_json::json!({"text_config": {"quantization_config": {"bits": 4}}});
        assert_eq!(
            of(silent).unwrap_err().to_string(),
            "config.json: text_config.quantization_config.quant_method is missing, wanted fp8"
        );
    }
}

//! Quantised weights: which tensors each consists of, and of which dtypes.
//!
//! A quantised weight is several tensors that share a role and differ in their
//! [`Part`]. `quantization_config` in `config.json` names the scheme; each
//! scheme is one file here and one row of `SCHEMES`.

mod awq;
mod bitsandbytes;
mod compressed_tensors;
mod fp8_block;
mod gptq;
mod modelopt;
mod modules;
mod mxfp4;
mod packed_words;
mod weight;

use std::collections::BTreeSet;
use std::iter;

use segpack_formats::numeric::Dtype;
use serde_json::Value;

use crate::families::config::{ConfigError, Section, sections_of_models};
use crate::families::expected::Expected;
use crate::names::{Classification, Part, Role};
use modules::Modules;
use weight::Weight;

/// What the weights of a checkpoint are quantised with.
#[derive(Debug, Clone)]
pub struct Quantization {
    scheme: Box<dyn Scheme>,
    /// What the tensors beside `*.weight` may be called.
    parts: &'static [(&'static str, Part)],
}

/// One way to quantise, with the settings of one checkpoint.
trait Scheme: std::fmt::Debug + SchemeClone {
    /// Modules that stay as they are.
    fn kept(&self) -> &Modules;

    /// What a quantised weight has beside its module's name and no other weight has.
    fn mark(&self) -> &'static str;

    /// The tensors that take the place of a weight; `None` where such a weight is not quantised.
    fn tensors_of(&self, weight: &Weight<'_>) -> Option<Vec<Expected>>;

    /// What a weight has beside it, quantised or not, as far as it is stored.
    fn beside(&self, _weight: &Weight<'_>) -> Vec<Expected> {
        Vec::new()
    }

    /// How a runtime makes plain values of them; `None` where none of this build does.
    fn coding(&self) -> Option<WeightCoding> {
        None
    }
}

/// How plain values are made of quantised ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightCoding {
    /// F8_E4M3 `[out, in]` times the number of its block, which the scales hold,
    /// `[ceil(out / rows), ceil(in / columns)]`.
    Fp8Blocks {
        /// Rows and columns of a block.
        block: [u64; 2],
    },
    /// `[out, in / 32, 16]` bytes of two E2M1 values times the power of two of their 32.
    Mxfp4,
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
static SCHEMES: &[SchemeRow] = &[
    fp8_block::SCHEME,
    compressed_tensors::SCHEME,
    modelopt::SCHEME,
    mxfp4::SCHEME,
    gptq::SCHEME,
    awq::SCHEME,
    bitsandbytes::SCHEME,
];

/// Which kinds of parts a checkpoint stores at all, and for which roles: publishers differ in what
/// they leave as it is, and no configuration says all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredParts {
    /// `None` where nothing is known: then every weight has what its scheme gives it.
    found: Option<BTreeSet<(&'static str, Role)>>,
}

impl StoredParts {
    /// Those of a checkpoint's tensors, by name and role.
    pub fn of<'a>(tensors: impl IntoIterator<Item = (&'a str, Role)>) -> Self {
        let tensors = tensors.into_iter();
        let beside = tensors.filter(|(name, _)| !name.ends_with(".weight"));
        let found = beside.filter_map(|(name, role)| Some((suffix_of(name)?.0, role)));
        Self {
            found: Some(found.collect()),
        }
    }

    /// Whether any weight has this part.
    fn has(&self, suffix: &str) -> bool {
        let mut found = self.found.iter().flatten();
        found.any(|(known, _)| *known == suffix)
    }

    /// Whether a weight of this role may have this part: another one has.
    fn may_have(&self, suffix: &'static str, role: Role) -> bool {
        let found = self.found.as_ref();
        found.is_none_or(|found| found.contains(&(suffix, role)))
    }
}

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
        Ok(Self {
            scheme,
            parts: row.parts,
        })
    }

    /// How plain values are made of its weights; `None` where no runtime of this build does.
    #[must_use]
    pub fn coding(&self) -> Option<WeightCoding> {
        self.scheme.coding()
    }

    /// The tensors that a checkpoint has in the place of one that it would have unquantised.
    ///
    /// Publishers differ in what they leave as it is. Projections inside a decoder's layers are
    /// quantised unless the configuration names them, or none of their role is; routers, heads,
    /// towers and the like are if `dtype_of`, which knows the stored tensors, shows a part of
    /// theirs or values that are no floats.
    #[must_use]
    pub fn tensors_of(
        &self,
        expected: Expected,
        dtype_of: &dyn Fn(&str) -> Option<Dtype>,
        stored: &StoredParts,
    ) -> Vec<Expected> {
        let role = expected.classification.role;
        let kind = kind_of(role);
        if !expected.classification.part.is_weight() || kind == Kind::Never {
            return vec![expected];
        }
        let weight = Weight::of(&expected, stored);
        if self.scheme.kept().name(weight.module()) {
            let beside = self.scheme.beside(&weight);
            return iter::once(expected).chain(beside).collect();
        }
        let own = dtype_of(&expected.name);
        let moves = !weight.keeps_name(self.scheme.mark());
        let is_left = match kind {
            // stored under another name when it is quantised, and here under its own
            Kind::Always if moves && own.is_some() => true,
            Kind::Always => !stored.may_have(self.scheme.mark(), role),
            Kind::Perhaps | Kind::Never => true,
        };
        if is_left && !own.is_some_and(is_code) && !self.has_part(&weight, dtype_of) {
            let beside = self.scheme.beside(&weight);
            return iter::once(expected).chain(beside).collect();
        }
        let tensors = self.scheme.tensors_of(&weight);
        tensors.unwrap_or_else(|| vec![expected])
    }

    /// Whether any part of a weight is stored.
    fn has_part(&self, weight: &Weight<'_>, dtype_of: &dyn Fn(&str) -> Option<Dtype>) -> bool {
        let mut parts = self.parts.iter();
        parts.any(|(suffix, _)| dtype_of(&weight.name(suffix)).is_some())
    }
}

/// Whether values of this dtype mean nothing without their scales.
fn is_code(dtype: Dtype) -> bool {
    !matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Files beside `config.json` that say how the weights are quantised where it does not: the first
/// is ModelOpt's, the second that of GPTQ and AWQ.
pub const ANNOUNCEMENTS: [&str; 2] = ["hf_quant_config.json", "quantize_config.json"];

/// Adds to a configuration what the files of [`ANNOUNCEMENTS`] say of the quantisation, where it
/// says nothing itself.
pub fn announce(config: &mut Value, file: &str, contents: &Value) {
    let silent = matches!(Quantization::of_config(config), Ok(None));
    let (true, Some(keys), Some(stated)) = (silent, config.as_object_mut(), contents.as_object())
    else {
        return;
    };
    let mut settings = stated.clone();
    let method = match file == ANNOUNCEMENTS[0] {
        true => {
            let inner = stated.get("quantization").and_then(Value::as_object);
            settings = inner.unwrap_or(stated).clone();
            "modelopt"
        }
        // AWQ's own name for its kernels
        false if stated.contains_key("zero_point") => "awq",
        false => "gptq",
    };
    settings
        .entry("quant_method")
        .or_insert_with(|| Value::from(method));
    keys.insert("quantization_config".to_owned(), Value::Object(settings));
}

/// The ending of a name that makes it a part beside `*.weight`.
fn suffix_of(name: &str) -> Option<(&'static str, Part)> {
    let mut parts = SCHEMES.iter().flat_map(|row| row.parts);
    parts.find(|(suffix, _)| name.ends_with(suffix)).copied()
}

/// What a tensor beside a quantised weight is; `classify` says what a weight is. Needs no
/// configuration.
pub(crate) fn classify_part(
    name: &str,
    classify: impl Fn(&str) -> Option<Classification>,
) -> Option<Classification> {
    let (suffix, part) = suffix_of(name)?;
    let module = name.strip_suffix(suffix)?;
    let weight = classify(&format!("{module}.weight")).or_else(|| classify(module))?;
    let is_quantised = weight.part.is_weight() && kind_of(weight.role) != Kind::Never;
    is_quantised.then_some(Classification { part, ..weight })
}

/// The stacked tensor that a part of it belongs to, what the part's name adds, and which it is.
pub(crate) fn stack_of_part(name: &str) -> Option<(&str, &'static str, Part)> {
    let (suffix, part) = suffix_of(name)?;
    Some((name.strip_suffix(suffix)?, suffix, part))
}

/// Whether weights are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// In every quantised checkpoint, unless it says otherwise.
    Always,
    /// In some.
    Perhaps,
    /// In none.
    Never,
}

/// Whether weights of a role are quantised in a quantised checkpoint.
fn kind_of(role: Role) -> Kind {
    match role {
        Role::AttentionQ | Role::AttentionK | Role::AttentionV | Role::AttentionO => Kind::Always,
        Role::AttentionQkv | Role::AttentionQA | Role::AttentionQB => Kind::Always,
        Role::AttentionKvA | Role::AttentionKvB => Kind::Always,
        Role::ExpertGate | Role::ExpertUp | Role::ExpertDown | Role::ExpertGateUp => Kind::Always,
        Role::SharedExpertGate | Role::SharedExpertUp | Role::SharedExpertDown => Kind::Always,
        Role::SharedExpertGateUp => Kind::Always,
        Role::MlpGate | Role::MlpUp | Role::MlpDown => Kind::Always,
        Role::ExpertGateUpStacked | Role::ExpertDownStacked => Kind::Perhaps,
        Role::ExpertGateStacked | Role::ExpertUpStacked => Kind::Perhaps,
        Role::LinearAttention | Role::Indexer | Role::Mtp | Role::LmHead => Kind::Perhaps,
        Role::Router | Role::SharedExpertRouter => Kind::Perhaps,
        Role::Projection | Role::Merger => Kind::Perhaps,
        Role::AudioBlock | Role::VisionBlock => Kind::Perhaps,
        Role::Embedding => Kind::Perhaps,
        Role::PositionEmbedding | Role::CodecEmbedding => Kind::Never,
        Role::QNorm | Role::KNorm | Role::InputNorm | Role::PostAttentionNorm => Kind::Never,
        Role::QANorm | Role::KvANorm | Role::FinalNorm | Role::RouterBias => Kind::Never,
        Role::AttentionSink | Role::Rotary | Role::CodecHead | Role::Conv => Kind::Never,
        Role::CodecBlock | Role::CodecUpsample | Role::CodecDecoder => Kind::Never,
        Role::Unclassified | Role::Other(_) => Kind::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_configuration_is_completed() {
        let mut config = serde_json::json!({"model_type": "qwen3_moe"});
        let file = serde_json::json!({"producer": {"name": "modelopt"}, "quantization":
            {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]}});
        announce(&mut config, ANNOUNCEMENTS[0], &file);
        assert_eq!(config["quantization_config"]["quant_method"], "modelopt");
        assert!(Quantization::of_config(&config).unwrap().is_some());
        // what the configuration says itself stays
        let before = config.clone();
        let other = serde_json::json!({"bits": 4, "group_size": 128, "desc_act": false});
        announce(&mut config, ANNOUNCEMENTS[1], &other);
        assert_eq!(config, before);
        let mut silent = serde_json::json!({"model_type": "qwen3_moe"});
        announce(&mut silent, ANNOUNCEMENTS[1], &other);
        assert_eq!(silent["quantization_config"]["quant_method"], "gptq");
    }

    #[test]
    fn unknown_methods_are_named() {
        let of = |config: Value| Quantization::of_config(&config).map(|q| q.is_some());
        assert_eq!(
            of(serde_json::json!({"model_type": "qwen3_moe"})),
            Ok(false)
        );
        let known = "fp8 or compressed-tensors or modelopt or mxfp4 or gptq or awq or bitsandbytes";
        let other = serde_json::json!({"quantization_config": {"quant_method": "hqq", "bits": 4}});
        assert_eq!(
            of(other).unwrap_err().to_string(),
            format!("config.json: quantization_config.quant_method is \"hqq\", wanted {known}")
        );
        let silent = serde_json::json!({"text_config": {"quantization_config": {"bits": 4}}});
        let key = "text_config.quantization_config.quant_method";
        assert_eq!(
            of(silent).unwrap_err().to_string(),
            format!("config.json: {key} is missing, wanted {known}")
        );
    }
}

//! FP8 with a scale for each block, as Qwen3-FP8, DeepSeek-V3 and others publish it.
//!
//! `*.weight` is F8_E4M3 of the usual shape `[out, in]`; `*.weight_scale_inv` holds one number for
//! each block of `weight_block_size`, `[ceil(out / rows), ceil(in / columns)]`: F32 in DeepSeek's
//! checkpoints, BF16 in Qwen3-235B-A22B-FP8. The value of a weight is the stored one times the
//! number of its block, despite the name. `modules_to_not_convert` (also `ignored_layers`) lists
//! what stays as it is.
//!
//! Source: `FineGrainedFP8Config` and `FP8Linear`, transformers 5.23, integrations/finegrained_fp8.py.

use segpack_formats::numeric::Dtype;

use super::modules::Modules;
use super::weight::Weight;
use super::{Scheme, SchemeRow, WeightCoding};
use crate::families::config::{ConfigError, MAX_SIZE, Section};
use crate::families::expected::{Expected, ExpectedDtype};
use crate::names::Part;

/// The scheme's row.
pub(super) const SCHEME: SchemeRow = SchemeRow {
    method: "fp8",
    read,
    parts: &[(SCALE, Part::Scale)],
};

const SCALE: &str = ".weight_scale_inv";
const INPUT: &str = ".input_scale";

/// The settings of a checkpoint.
#[derive(Debug, Clone)]
struct Fp8Block {
    /// Rows and columns of a block.
    block: [u64; 2],
    /// Modules that stay as they are.
    kept: Modules,
}

fn read(section: &Section<'_>) -> Result<Box<dyn Scheme>, ConfigError> {
    let sides = section.integers("weight_block_size", &[], 1..=MAX_SIZE)?;
    let Ok(block) = <[u64; 2]>::try_from(sides) else {
        let wanted = "rows and columns of a block, such as [128, 128]";
        return Err(section.invalid_or_missing("weight_block_size", wanted));
    };
    // the only format of the class
    let format = section.text("fmt")?.unwrap_or("e4m3");
    if !matches!(format, "e4m3" | "float8_e4m3fn") {
        return Err(section.invalid("fmt", "e4m3"));
    }
    let kept = Modules::read(section, &["modules_to_not_convert", "ignored_layers"])?;
    Ok(Box::new(Fp8Block { block, kept }))
}

impl Scheme for Fp8Block {
    fn kept(&self) -> &Modules {
        &self.kept
    }

    fn mark(&self) -> &'static str {
        SCALE
    }

    fn tensors_of(&self, weight: &Weight<'_>) -> Option<Vec<Expected>> {
        let [rows, columns] = weight.linear()?;
        let [block_rows, block_columns] = self.block;
        let blocks = vec![rows.div_ceil(block_rows), columns.div_ceil(block_columns)];
        let dtype = ExpectedDtype::Either(Dtype::F32, Dtype::BF16);
        let mut tensors = vec![
            weight.values(Dtype::F8_E4M3, vec![rows, columns]),
            weight.part((SCALE, Part::Scale), dtype, blocks),
        ];
        // of a static activation scheme
        tensors.extend(weight.scalar_if_any((INPUT, Part::InputScale)));
        Some(tensors)
    }

    fn coding(&self) -> Option<WeightCoding> {
        Some(WeightCoding::Fp8Blocks { block: self.block })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use crate::families::expected::{Expected, ExpectedDtype};
    use crate::families::{Family, logical_parameter_count};
    use crate::quantization::{Quantization, StoredParts};

    /// The tensors that a configuration calls for, by name.
    fn expected(config: &Value) -> BTreeMap<String, Expected> {
        let family = Family::of_config(config).unwrap();
        let plain = family.expected(config, &|_| false).unwrap();
        let quantization = Quantization::of_config(config).unwrap().unwrap();
        let none = StoredParts::default();
        let tensors = plain.into_iter();
        let tensors = tensors.flat_map(|e| quantization.tensors_of(e, &|_| None, &none));
        let tensors: Vec<Expected> = tensors.collect();
        for tensor in &tensors {
            assert_eq!(family.classify(&tensor.name), Some(tensor.classification));
        }
        tensors.into_iter().map(|e| (e.name.clone(), e)).collect()
    }

    fn bytes(e: &Expected) -> u64 {
        let width = if e.dtype == ExpectedDtype::One(super::Dtype::F8_E4M3) {
            1
        } else {
            2
        };
        width * e.shape.iter().product::<u64>()
    }

    /// Qwen3-235B-A22B-Instruct-2507-FP8 as published: 73,417 tensors of 236,416,915,456 bytes,
    /// 1,601 parameters once experts are stacked.
    #[test]
    fn the_published_checkpoint_is_derived_from_its_config() {
        let layers = 0..94;
        let kept = layers.flat_map(|n| {
            ["input_layernorm", "mlp.gate", "post_attention_layernorm"]
                .map(|module| format!("model.layers.{n}.{module}"))
        });
        let kept: Vec<String> = kept.chain(["lm_head".to_owned()]).collect();
        let config = json!({
            "model_type": "qwen3_moe", "vocab_size": 151_936, "hidden_size": 4096,
            "intermediate_size": 12_288, "num_hidden_layers": 94, "num_attention_heads": 64,
            "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
            "moe_intermediate_size": 1536, "num_experts_per_tok": 8, "torch_dtype": "bfloat16",
            "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3",
                "quant_method": "fp8", "weight_block_size": [128, 128],
                "modules_to_not_convert": kept},
        });
        let tensors = expected(&config);
        assert_eq!(tensors.len(), 73_417);
        assert_eq!(tensors.values().map(bytes).sum::<u64>(), 236_416_915_456);
        let what: Vec<_> = tensors.values().map(|e| e.classification).collect();
        assert_eq!(logical_parameter_count(&what), 1_601);
    }

    #[test]
    fn blocks_at_the_edges_have_scales_too() {
        let config = json!({
            "model_type": "qwen3_moe", "vocab_size": 100, "hidden_size": 40,
            "intermediate_size": 30, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "num_experts": 2,
            "moe_intermediate_size": 20, "num_experts_per_tok": 1, "mlp_only_layers": [1],
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 32],
                "ignored_layers": ["model.layers.1.mlp.up_proj"]},
        });
        let tensors = expected(&config);
        let shape = |name: &str| tensors.get(name).map(|e| e.shape.as_slice());
        let expert = "model.layers.0.mlp.experts.1";
        assert_eq!(
            shape(&format!("{expert}.gate_proj.weight")),
            Some(&[20, 40][..])
        );
        assert_eq!(
            shape(&format!("{expert}.gate_proj.weight_scale_inv")),
            Some(&[2, 2][..])
        );
        assert_eq!(
            shape(&format!("{expert}.down_proj.weight_scale_inv")),
            Some(&[3, 1][..])
        );
        assert!(tensors.contains_key("model.layers.1.mlp.gate_proj.weight_scale_inv"));
        for plain in [
            "model.layers.1.mlp.up_proj",
            "model.layers.0.mlp.gate",
            "lm_head",
        ] {
            assert_eq!(shape(&format!("{plain}.weight_scale_inv")), None, "{plain}");
            assert_eq!(
                tensors[&format!("{plain}.weight")].dtype,
                ExpectedDtype::Any
            );
        }
    }

    fn refusal(settings: &Value) -> String {
        let mut config = json!({"quantization_config": settings});
        config["quantization_config"]["quant_method"] = json!("fp8");
        Quantization::of_config(&config).unwrap_err().to_string()
    }

    #[test]
    fn settings_that_cannot_be_used_are_named() {
        let block = "quantization_config.weight_block_size";
        assert_eq!(
            refusal(&json!({})),
            format!(
                "config.json: {block} is missing, wanted rows and columns of a block, such as \
                 [128, 128]"
            )
        );
        assert!(
            refusal(&json!({"weight_block_size": [128]})).contains("is a list of 1, wanted rows")
        );
        assert!(refusal(&json!({"weight_block_size": [0, 1]})).contains(block));
        let other = json!({"weight_block_size": [1, 1], "fmt": "e5m2"});
        assert!(refusal(&other).contains("fmt is \"e5m2\", wanted e4m3"));
        let odd = json!({"weight_block_size": [1, 1], "modules_to_not_convert": [1]});
        assert!(refusal(&odd).contains("wanted a list of at most"));
    }
}

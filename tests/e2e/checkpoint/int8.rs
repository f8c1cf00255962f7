//! int8 of three kinds, and quantisations that a file beside `config.json` announces: made of the tiny
//! checkpoints of other quantisations by what differs.

use serde_json::{Value, json};

use super::published::{Checkpoint, all, assert_comes_back, assert_dropped};
use crate::support::cli::segpack;
use crate::support::folders::temp;

/// Families whose experts are stored one by one, and one whose are stacked and stay floats.
const FAMILIES: [&str; 5] = ["qwen3_moe", "mixtral", "deepseek_v3", "glm4_moe", "gpt_oss"];

fn named(name: &str) -> Checkpoint {
    let mut all = all().into_iter();
    all.find(|c| c.name == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

/// llm-compressor's W8A8: int8 under `*.weight`, a scale for each row.
fn by_row(family: &str) -> Checkpoint {
    let mut checkpoint = named(&format!("{family}-base-fp8-channel"));
    for (_, dtype, _) in &mut checkpoint.stored {
        if dtype == "F8_E4M3" {
            "I8".clone_into(dtype);
        }
    }
    let quantization = &mut checkpoint.config["quantization_config"];
    quantization["format"] = json!("int-quantized");
    quantization["config_groups"]["group_0"]["weights"]["type"] = json!("int");
    checkpoint
}

/// W8A16: four values of int8 in each word of 32 bits, groups of 32; `zero`: with zero points.
fn packed(family: &str, zero: bool) -> Checkpoint {
    let plain = named(&format!("{family}-base"));
    let mut checkpoint = named(&format!("{family}-base-int4-packed"));
    let mut zeros = Vec::new();
    for (name, _, shape) in &mut checkpoint.stored {
        let Some(module) = name.strip_suffix(".weight_packed") else {
            continue;
        };
        let weight = format!("{module}.weight");
        let (.., whole) = plain.stored.iter().find(|(n, ..)| *n == weight).unwrap();
        shape[1] = whole[1].div_ceil(4);
        let scales = vec![whole[0].div_ceil(4), whole[1].div_ceil(32)];
        zeros.push((
            format!("{module}.weight_zero_point"),
            "I32".to_owned(),
            scales,
        ));
    }
    let weights =
        &mut checkpoint.config["quantization_config"]["config_groups"]["group_0"]["weights"];
    weights["num_bits"] = json!(8);
    if zero {
        weights["symmetric"] = json!(false);
        checkpoint.stored.extend(zeros);
    }
    checkpoint
}

/// bitsandbytes' int8: `*.SCB`, a scale for each row, and a word that says how values are laid out.
fn bitsandbytes(family: &str) -> Checkpoint {
    let mut checkpoint = by_row(family);
    let mut formats = Vec::new();
    for (name, _, shape) in &mut checkpoint.stored {
        if let Some(module) = name.strip_suffix(".weight_scale") {
            formats.push((
                format!("{module}.weight_format"),
                "U8".to_owned(),
                Vec::new(),
            ));
            *name = format!("{module}.SCB");
            shape.pop();
        }
    }
    checkpoint.stored.extend(formats);
    let kept = checkpoint.config["quantization_config"]["ignore"].clone();
    checkpoint.config["quantization_config"] = json!({
        "quant_method": "bitsandbytes", "load_in_8bit": true, "load_in_4bit": false, "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": false, "llm_int8_skip_modules": kept,
    });
    checkpoint
}

/// ModelOpt's older exports: `config.json` says nothing, a file beside it does, and the cache of keys
/// and values has scales too.
fn announced_beside(name: &str, algorithm: &str, group: &Value) -> Checkpoint {
    let mut checkpoint = named(name);
    let config = checkpoint.config.as_object_mut().unwrap();
    let stated = config.remove("quantization_config").unwrap();
    let document = json!({
        "producer": {"name": "modelopt", "version": "0.29.0"},
        "quantization": {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "group_size": group,
            "exclude_modules": stated["ignore"]},
    });
    let file = (
        "hf_quant_config.json".to_owned(),
        document.to_string().into_bytes(),
    );
    checkpoint.files.push(file);
    let attention = |(name, ..): &(String, String, Vec<u64>)| {
        let module = name.strip_suffix("_proj.weight")?;
        let of = module.strip_suffix(".k").map(|at| (at, 'k'));
        let (at, of) = of.or_else(|| module.strip_suffix(".v").map(|at| (at, 'v')))?;
        Some((
            format!("{at}.{of}_proj.{of}_scale"),
            "F32".to_owned(),
            Vec::new(),
        ))
    };
    let scales: Vec<_> = checkpoint.stored.iter().filter_map(attention).collect();
    checkpoint.stored.extend(scales);
    checkpoint
}

/// Nothing is found, and what is dropped is; each third tensor.
fn assert_audited(checkpoint: &Checkpoint, what: &str) {
    let found = checkpoint.audit(None);
    assert!(
        found.complete && found.findings.is_empty(),
        "{what} {}: {:#?}",
        checkpoint.name,
        found.findings
    );
    for number in (0..checkpoint.stored.len()).step_by(3) {
        // what is the only one of its kind, or may be absent, is not missed
        if !checkpoint.stored[number].0.ends_with("weight_format") {
            assert_dropped(checkpoint, number);
        }
    }
}

#[test]
fn int8_of_compressed_tensors_is_audited_and_what_is_dropped_is_named() {
    for family in FAMILIES {
        assert_audited(&by_row(family), "by row");
    }
    for family in ["qwen3_moe", "mixtral", "deepseek_v3", "glm4_moe"] {
        assert_audited(&packed(family, false), "packed");
        assert_audited(&packed(family, true), "packed, with zero points");
    }
}

#[test]
fn int8_of_bitsandbytes_is_audited_and_what_is_dropped_is_named() {
    for family in FAMILIES {
        assert_audited(&bitsandbytes(family), "bitsandbytes");
    }
}

#[test]
fn int8_comes_back_byte_for_byte() {
    let all = [
        by_row("qwen3_moe"),
        packed("mixtral", true),
        bitsandbytes("glm4_moe"),
    ];
    all.iter().for_each(assert_comes_back);
}

#[test]
fn a_quantisation_that_a_file_beside_the_configuration_announces_is_audited() {
    for (name, algorithm, group) in [
        ("qwen3_moe-base-nvfp4", "NVFP4", json!(16)),
        ("deepseek_v3-base-nvfp4", "NVFP4", json!(16)),
        ("qwen3_moe-base-fp8-tensor", "FP8", Value::Null),
    ] {
        let checkpoint = announced_beside(name, algorithm, &group);
        assert_comes_back(&checkpoint);
        // a scale of an expert is missed by its name
        let mut lacking = checkpoint.clone();
        let scale = |(name, ..): &(String, String, Vec<u64>)| {
            name.contains("experts.1.") && name.ends_with(".weight_scale")
        };
        let number = lacking.stored.iter().position(scale).unwrap();
        let (missing, ..) = lacking.stored.remove(number);
        let folder = temp();
        let source = lacking.write(&folder.path().join("checkpoint"));
        let run = segpack!["scan", &source, "--all"].exits(3);
        assert!(run.text().contains(&missing), "{run}");
        // without the file the values are of no dtype that the configuration has
        lacking.files.clear();
        let source = lacking.write(&folder.path().join("silent"));
        segpack!["scan", &source].exits(3);
    }
}

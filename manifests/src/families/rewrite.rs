//! A configuration whose weights have another dtype.

use segpack_formats::numeric::FloatDtype;
use serde_json::{Value, json};

/// Says in a configuration, wherever it names a dtype of its weights, that they are of this one.
pub fn set_dtype(config: &mut Value, dtype: FloatDtype) {
    let name = match dtype {
        FloatDtype::F16 => "float16",
        FloatDtype::BF16 => "bfloat16",
        FloatDtype::F32 => "float32",
    };
    if replace_dtype(config, name) == 0
        && let Some(keys) = config.as_object_mut()
    {
        keys.insert("torch_dtype".to_owned(), json!(name));
    }
}

fn replace_dtype(value: &mut Value, name: &str) -> usize {
    let Some(keys) = value.as_object_mut() else {
        return 0;
    };
    let mut replaced = 0;
    for (key, value) in keys {
        if matches!(key.as_str(), "dtype" | "torch_dtype") && value.is_string() {
            *value = json!(name);
            replaced += 1;
        } else {
            replaced += replace_dtype(value, name);
        }
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mention_of_the_dtype_follows() {
        let mut config = json!({
            "dtype": "bfloat16", "talker_config": {"text_config": {"dtype": "bfloat16"}},
        });
        set_dtype(&mut config, FloatDtype::F32);
        assert_eq!(config["dtype"], "float32");
        assert_eq!(config["talker_config"]["text_config"]["dtype"], "float32");
        let mut silent = json!({"model_type": "qwen3_moe"});
        set_dtype(&mut silent, FloatDtype::F16);
        assert_eq!(silent["torch_dtype"], "float16");
    }
}

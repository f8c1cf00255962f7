//! The encoders of Qwen3-Omni as llama.cpp's `mmproj`, and the text that takes what they give: what
//! llama.cpp's own converter makes of the same checkpoint.

use std::path::{Path, PathBuf};

use segpack_formats::gguf::Value;

use super::gguf::{Gguf, export, printed};
use super::gguf_families::{by_key, differing, metadata, recorded, tensors};
use crate::support::checkpoint::fixtures;
use crate::support::cli::packed;
use crate::support::folders::{contents, temp};

const POSITIONS: &str = "a.position_embd.weight";
const MANIFEST: &str = "segpack.manifest_sha256";

fn omni(folder: &Path) -> PathBuf {
    packed(&fixtures().join("tiny-omni"), folder)
}

/// The files of an export: the text, and the encoders.
fn both(pack: &Path, folder: &Path, options: &[&str]) -> [Gguf; 2] {
    let out = folder.join("omni.gguf");
    let options = [&["--force", "--mmproj"][..], options].concat();
    printed(export(pack, &out, &options), &["read back and equal"]);
    [out, folder.join("mmproj-omni.gguf")].map(|path| Gguf::read(&path))
}

#[test]
fn text_and_encoders_are_what_llama_cpps_converter_makes_of_them() {
    let folder = temp();
    let pack = omni(folder.path());
    let [of_text, of_encoders] = ["tiny_omni", "tiny_omni_mmproj"].map(recorded);
    for dtype in ["bf16", "f16", "f32", "q8_0"] {
        let [text, encoders] = both(&pack, folder.path(), &["both", "--dtype", dtype]);
        let wanted = by_key(&of_text[dtype]["tensors"]);
        assert_eq!(differing(&tensors(&text), &wanted), [""; 0], "{dtype}");
        let wanted = by_key(&of_text[dtype]["metadata"]);
        // the converter writes that no layer takes what blocks of the encoder give
        let layers = "qwen3vlmoe.n_deepstack_layers";
        assert_eq!(wanted[layers][1], 0);
        assert_eq!(text.header.get(layers), Some(&Value::U32(3)));
        assert_eq!(
            differing(&metadata(&text), &wanted),
            [layers, MANIFEST],
            "{dtype}"
        );

        let wanted = by_key(&of_encoders[dtype]["tensors"]);
        // torch's sines are a last bit off here and there
        assert_eq!(
            differing(&tensors(&encoders), &wanted),
            [POSITIONS],
            "{dtype}"
        );
        let wanted = by_key(&of_encoders[dtype]["metadata"]);
        assert_eq!(
            differing(&metadata(&encoders), &wanted),
            [MANIFEST],
            "{dtype}"
        );
    }
}

#[test]
fn positions_of_audio_are_sines_of_all_frequencies_then_cosines() {
    let folder = temp();
    let [_, encoders] = both(&omni(folder.path()), folder.path(), &["audio"]);
    let (steps, width) = (1500, 32);
    let bytes = encoders.data(POSITIONS).as_chunks::<4>().0;
    let values: Vec<f32> = bytes.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(values.len(), steps * width);
    for (step, row) in values.chunks_exact(width).enumerate() {
        for (i, pair) in row[..width / 2].iter().zip(&row[width / 2..]).enumerate() {
            let angle = step as f64 * 10_000_f64.powf(-(i as f64) / (width as f64 / 2.0 - 1.0));
            // the exponent, up to 9.2, and its step are in single precision: frequencies are off by 1.1e-6 of
            // themselves at most
            let tolerance = 1e-7 + 1.2e-6 * angle;
            assert!(
                (f64::from(*pair.0) - angle.sin()).abs() < tolerance,
                "{step} {i}"
            );
            assert!(
                (f64::from(*pair.1) - angle.cos()).abs() < tolerance,
                "{step} {i}"
            );
        }
    }
}

#[test]
fn each_encoder_has_a_file_of_its_own_for_a_text_whose_rows_are_as_long() {
    let folder = temp();
    let pack = omni(folder.path());
    let [_, all] = both(&pack, folder.path(), &["both"]);
    let mut apart = tensors(&all);
    for (encoder, prefixes, deepstack) in [
        ("image", ["v.", "mm.0", "mm.2"], 3),
        ("audio", ["a.", "mm.a.", "mm.a."], 0),
    ] {
        let [text, own] = both(&pack, folder.path(), &[encoder]);
        let layers = text.header.get("qwen3vlmoe.n_deepstack_layers");
        assert_eq!(layers, Some(&Value::U32(deepstack)), "{encoder}");
        for (name, tensor) in tensors(&own) {
            assert!(
                prefixes.iter().any(|p| name.starts_with(p)),
                "{encoder}: {name}"
            );
            assert_eq!(apart.remove(&name), Some(tensor), "{name}");
        }
        let has = |what: &str| {
            own.header
                .get(&format!("clip.has_{what}_encoder"))
                .is_some()
        };
        assert_eq!(
            [has("vision"), has("audio")],
            [encoder == "image", encoder == "audio"]
        );
    }
    assert!(apart.is_empty(), "{apart:?}");
}

#[test]
fn encoders_are_not_quantized_beside_a_text_that_is_and_not_split_with_it() {
    let folder = temp();
    let pack = omni(folder.path());
    let [_, stored] = both(&pack, folder.path(), &["both"]);
    let out = folder.path().join("omni.gguf");
    let options = ["--mmproj", "both", "--force", "--dtype", "q4_0"];
    let run = export(&pack, &out, &options);
    printed(
        run,
        &["the encoders are not quantized", "read back and equal"],
    );
    let beside = Gguf::read(&folder.path().join("mmproj-omni.gguf"));
    assert_eq!(tensors(&beside), tensors(&stored));
    let split = folder.path().join("split");
    std::fs::create_dir(&split).unwrap();
    let options = ["--mmproj", "image", "--max-shard-size", "60kB"];
    export(&pack, &split.join("omni.gguf"), &options).ok();
    let names: Vec<_> = contents(&split).into_keys().collect();
    assert!(names.contains(&"mmproj-omni.gguf".to_owned()), "{names:?}");
    assert!(names.len() > 3, "{names:?}");
}

#[test]
fn a_model_without_encoders_or_their_numbers_is_refused() {
    let refused = |checkpoint: &str, without: Option<&str>, status: i32, words: &[&str]| {
        let folder = temp();
        let from = folder.path().join("checkpoint");
        std::fs::create_dir(&from).unwrap();
        for (name, bytes) in contents(&fixtures().join(checkpoint)) {
            if without != Some(&*name) {
                std::fs::write(from.join(name), bytes).unwrap();
            }
        }
        let pack = packed(&from, folder.path());
        let out = folder.path().join("model.gguf");
        export(
            &pack,
            &out,
            &["--mmproj", "image", "--tokenizer-pre", "none"],
        )
        .exits(status)
        .says(words);
        assert!(!out.exists());
    };
    refused(
        "gguf/mixtral",
        None,
        3,
        &["has no encoders", "without --mmproj"],
    );
    let lacks = Some("preprocessor_config.json");
    refused("tiny-omni", lacks, 3, &["has no numbers", "image_mean"]);
}

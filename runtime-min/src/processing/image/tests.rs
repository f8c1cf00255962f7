//! Against official traces, with the gates of `decoded`, `resized` and `pixels` there: all exact.

use segpack_formats::digest::Sha256;

use super::*;
use crate::processing::media::testing::{MediaTrace, fixture};

fn settings() -> VisualSettings {
    let files = |name: &str| match std::fs::read(fixture("tiny-omni").join(name)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    };
    VisualSettings::load(&files).unwrap()
}

/// Those of `tiny-omni` with other limits.
pub(super) fn settings_with(min_pixels: u64, max_pixels: u64) -> VisualSettings {
    VisualSettings {
        min_pixels,
        max_pixels,
        ..settings()
    }
}

fn sha256(values: &[u8]) -> String {
    Sha256::of(values).to_string()
}

fn digest_of(trace: &MediaTrace, name: &str) -> Option<String> {
    let digest = trace.document["data"][name]["sha256"].as_str();
    digest.map(str::to_owned)
}

fn stages_of(file: &str, settings: &VisualSettings, recipe: MediaRecipe) -> ImageStages {
    let bytes = read_file(&fixture(file)).unwrap();
    stages(&bytes, settings, recipe, &PartLimits::default()).unwrap()
}

#[track_caller]
fn check_case(case: &str, recipe: MediaRecipe) {
    let trace = MediaTrace::open(case);
    let settings = settings();
    let mut features = VisualFeatures::default();
    for (n, entry) in trace.document["image"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        let file = entry["file"].as_str().unwrap();
        let stages = stages_of(file, &settings, recipe);
        let stage = |name: &str, picture: Option<&RgbPicture>| {
            let name = format!("mm.image.{name}.{n}");
            let seen = picture.map(|p| sha256(&p.values));
            assert_eq!(seen, digest_of(&trace, &name), "{case}: {file}: {name}");
        };
        stage("decoded", Some(&stages.decoded));
        stage("pre", stages.pre.as_ref());
        stage("resized", Some(&stages.resized));
        append_patches(&[stages.resized], &settings, &mut features).unwrap();
    }
    check_pixels(case, &trace, "image", &features);
}

#[track_caller]
fn check_pixels(case: &str, trace: &MediaTrace, media: &str, features: &VisualFeatures) {
    let grids: Vec<i64> = features.grids.iter().flatten().map(|n| *n as i64).collect();
    let wanted = trace.integers(&format!("mm.{media}.grid")).unwrap();
    assert_eq!(grids, wanted, "{case}");
    let bytes: Vec<u8> = features
        .values
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let wanted = digest_of(trace, &format!("mm.{media}.pixels"));
    assert_eq!(Some(sha256(&bytes)), wanted, "{case}");
}

#[test]
fn images_of_every_format_are_the_official_ones_bit_for_bit() {
    for case in ["image-lossless", "image-shapes", "image-lossy"] {
        check_case(case, MediaRecipe::Transformers);
    }
}

#[test]
fn images_by_the_model_card_are_the_official_ones_bit_for_bit() {
    check_case("readme-image", MediaRecipe::ModelCard);
}

/// The public conversations with the limits of the published model: what the official processor made
/// of them.
#[test]
fn images_with_the_limits_of_the_published_model_are_the_official_ones() {
    let text = std::fs::read(fixture("traces/real-processor.media.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let settings = settings_with(3136, 12_845_056);
    let mut images = 0;
    for case in summary["cases"].as_array().unwrap() {
        let name = case["case"].as_str().unwrap();
        if case.get("mm.image.grid").is_none() {
            continue;
        }
        let recipe = match case["recipe"].as_str() {
            Some("readme") => MediaRecipe::ModelCard,
            _ => MediaRecipe::Transformers,
        };
        let mut features = VisualFeatures::default();
        for (n, file) in files_of(name).iter().enumerate() {
            let stages = stages_of(file, &settings, recipe);
            let wanted = case["data"][format!("mm.image.resized.{n}")]["sha256"].as_str();
            assert_eq!(
                wanted,
                Some(sha256(&stages.resized.values).as_str()),
                "{name}: {file}"
            );
            append_patches(&[stages.resized], &settings, &mut features).unwrap();
            images += 1;
        }
        let grids = serde_json::json!(features.grids);
        assert_eq!(case["mm.image.grid"], grids, "{name}");
        let bytes: Vec<u8> = features
            .values
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let wanted = case["data"]["mm.image.pixels"]["sha256"].as_str();
        assert_eq!(wanted, Some(sha256(&bytes).as_str()), "{name}");
    }
    assert_eq!(images, 15);
}

fn files_of(case: &str) -> Vec<String> {
    let trace = MediaTrace::open(case);
    let files = trace.document["image"].as_array().unwrap().iter();
    files
        .map(|entry| entry["file"].as_str().unwrap().to_owned())
        .collect()
}

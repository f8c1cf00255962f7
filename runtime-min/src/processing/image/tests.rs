//! Against official traces, with the gates of `decoded`, `resized` and `pixels` there: all exact.

use segpack_formats::digest::Sha256;

use super::*;
use crate::processing::media::testing::{MediaTrace, fixture, fixture_files};

fn settings() -> VisualSettings {
    VisualSettings::load(&fixture_files("tiny-omni")).unwrap()
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

/// What Pillow 13 makes of files of every kind of pixel: with EXIF applied and alpha dropped, and as
/// the model card does. The first of `transparent.gif` is by torchvision's rule: transparent pixels
/// have the background's colour.
#[test]
fn every_kind_of_pixel_is_decoded_as_the_recipe_says() {
    const PLAIN: &str = "58d34e571393d7a43bb4db18a2d26be00fc51a67aaac8e885d4d0870bb792439";
    const TURNED: &str = "2c0f354ff0d5c99fa37166e9b5710dcd259909d7032191a0cb6eb97dc8490824";
    const INK: &str = "8aa7aeabf22028309a582d75ed9047504ae0f09b72721536cd90ce2e0a905abf";
    const GRAY: &str = "20641ec52c6af990625f2be634ab6065ecf9ac3532c29501d6a1fa883b925bbb";
    const ON_WHITE: &str = "cbe7aef2e63ea15a9993231a115086dec96b9c2eaf6f799f3b929bf642ec7a50";
    const UNDRAWN: &str = "e90fc6a961ab8b48b4769fa0be98f2311addf28d030663e6e489f3575e268a94";
    const DRAWN: &str = "6b84f282ad73c629f51d7e555d204390f1c5a3ed050d68d630cd6a16b14468bd";
    let files = [
        ("ink.jpg", INK, INK),
        ("exif6.webp", PLAIN, PLAIN),
        ("exif8.png", TURNED, PLAIN),
        ("gray_alpha.png", GRAY, GRAY),
        ("color_key.png", PLAIN, PLAIN),
        ("alpha.webp", PLAIN, ON_WHITE),
        ("transparent.gif", UNDRAWN, DRAWN),
    ];
    for (name, by_transformers, by_model_card) in files {
        let bytes = read_file(&fixture("media").join(name)).unwrap();
        let seen = |recipe| sha256(&decode(&bytes, recipe).unwrap().values);
        assert_eq!(seen(MediaRecipe::Transformers), by_transformers, "{name}");
        assert_eq!(seen(MediaRecipe::ModelCard), by_model_card, "{name}");
    }
}

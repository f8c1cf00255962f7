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

//! Against official traces. Those of containers need the programs `ffmpeg` and `ffprobe`, and are
//! left out where they are not there, but where `SEGPACK_REQUIRE_FFMPEG` is set.

use segpack_formats::digest::Sha256;

use super::*;
use crate::processing::media::testing::{MediaTrace, fixture};

fn has_programs() -> bool {
    let is_there = version().is_ok();
    let required = std::env::var_os("SEGPACK_REQUIRE_FFMPEG").is_some();
    assert!(
        is_there || !required,
        "ffmpeg and ffprobe are not installed"
    );
    is_there
}

fn settings(size: &serde_json::Value) -> VideoSettings {
    let files = |name: &str| match std::fs::read(fixture("tiny-omni").join(name)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    };
    let mut settings = VideoSettings::load(&files).unwrap();
    settings.frames.min_pixels = size["shortest_edge"].as_u64().unwrap();
    settings.frames.max_pixels = size["longest_edge"].as_u64().unwrap();
    settings
}

fn digest_of(trace: &MediaTrace, name: &str) -> Option<String> {
    let digest = trace.document["data"][name]["sha256"].as_str();
    digest.map(str::to_owned)
}

/// The video of a case, what is asked of it, and the settings.
fn case(trace: &MediaTrace) -> (PathBuf, VideoSettings, VideoRequest) {
    let conversation = &trace.document["conversation"];
    let settings = settings(&conversation["videos_kwargs"]["size"]);
    let messages = conversation["messages"].as_array().unwrap();
    let mut parts = messages
        .iter()
        .flat_map(|m| m["content"].as_array().into_iter().flatten());
    let part = parts.find(|part| part["type"] == "video").unwrap();
    let recipe = match conversation["recipe"].as_str() {
        Some("readme") => MediaRecipe::ModelCard,
        _ => MediaRecipe::Transformers,
    };
    let fps = conversation["fps"].as_f64().unwrap_or(2.0);
    let mut request = VideoRequest::new(recipe, Some(fps), &settings);
    request.limits.min_pixels = part["min_pixels"].as_u64();
    request.limits.max_pixels = part["max_pixels"].as_u64();
    (fixture(part["video"].as_str().unwrap()), settings, request)
}

fn bytes_of(frames: &[RgbPicture]) -> Vec<u8> {
    frames
        .iter()
        .flat_map(|frame| frame.values.iter().copied())
        .collect()
}

#[track_caller]
fn check_case(name: &str) {
    let trace = MediaTrace::open(name);
    let (path, settings, request) = case(&trace);
    let cancel = CancelToken::default();
    let stages = stages(&path, &settings, &request, &cancel).unwrap();

    let indices: Vec<i64> = stages.indices.iter().map(|i| *i as i64).collect();
    assert_eq!(
        Some(indices),
        trace.integers("mm.video.indices.0"),
        "{name}"
    );
    let facts = &trace.document["video"][0];
    let timing = stages.timing.unwrap();
    assert_eq!(Some(timing.frames as u64), facts["num_frames"].as_u64());
    assert_eq!(Some(timing.fps), facts["average_fps"].as_f64());
    let decoded = Sha256::of(&bytes_of(&stages.decoded)).to_string();
    assert_eq!(
        Some(decoded),
        digest_of(&trace, "mm.video.decoded.0"),
        "{name}"
    );
    let spg = trace.floats("mm.video.second_per_grid").unwrap();
    assert_eq!(spg, [request.second_per_grid(&settings)], "{name}");

    let mut features = VisualFeatures::default();
    process(&path, &settings, &request, &mut features, &cancel).unwrap();
    let grid: Vec<i64> = features.grids.iter().flatten().map(|n| *n as i64).collect();
    assert_eq!(Some(grid), trace.integers("mm.video.grid"), "{name}");
    match &stages.resized {
        ResizedFrames::Bytes(frames) => {
            let resized = Sha256::of(&bytes_of(frames)).to_string();
            assert_eq!(
                Some(resized),
                digest_of(&trace, "mm.video.resized.0"),
                "{name}"
            );
            let pixels = features.values.iter().flat_map(|v| v.to_le_bytes());
            let pixels = Sha256::of(&pixels.collect::<Vec<u8>>()).to_string();
            assert_eq!(Some(pixels), digest_of(&trace, "mm.video.pixels"), "{name}");
        }
        ResizedFrames::Floats(_) => check_floats(name, &trace, &stages.pre, &features),
    }
}

/// The gates of frames that are resized in floats.
#[track_caller]
fn check_floats(name: &str, trace: &MediaTrace, pre: &[RgbPicture], features: &VisualFeatures) {
    let wanted = trace.bytes("mm.video.pre.0").unwrap();
    let seen = bytes_of(pre);
    assert_eq!(seen.len(), wanted.len(), "{name}");
    let pairs = seen.iter().zip(&wanted).filter(|(s, w)| s != w);
    let (mut others, mut most) = (0, 0);
    for (seen, wanted) in pairs {
        (others, most) = (others + 1, most.max(seen.abs_diff(*wanted)));
    }
    assert!(
        most <= 1 && others * 1000 <= wanted.len(),
        "{name}: {others}, {most}"
    );
    let wanted = trace.floats("mm.video.pixels").unwrap();
    assert_eq!(features.values.len(), wanted.len(), "{name}");
    let differences = features
        .values
        .iter()
        .zip(&wanted)
        .map(|(s, w)| (s - w).abs());
    let most = differences.fold(0.0, f32::max);
    assert!(most <= 2e-5, "{name}: {most:e}");
}

#[test]
fn an_animated_gif_is_the_official_one_bit_for_bit() {
    check_case("video-gif");
}

#[test]
fn videos_are_the_official_ones_bit_for_bit() {
    if !has_programs() {
        return;
    }
    for name in ["video-silent", "audio-in-video", "audio-in-video-wide"] {
        check_case(name);
    }
}

#[test]
fn videos_by_the_model_card_are_inside_the_gates() {
    if has_programs() {
        check_case("readme-video");
    }
}

#[test]
fn sound_tracks_are_the_official_ones_bit_for_bit() {
    if !has_programs() {
        return;
    }
    let cancel = CancelToken::default();
    for name in ["audio-in-video", "audio-in-video-wide", "readme-video"] {
        let trace = MediaTrace::open(name);
        let (path, _, request) = case(&trace);
        let track = sound_track(&path, 16_000, request.recipe, &cancel)
            .unwrap()
            .unwrap();
        assert_eq!(track.rate, 16_000);
        let data = &trace.document["data"]["mm.audio.samples.0"];
        let bytes: Vec<u8> = match data["dtype"].as_str() {
            #[expect(clippy::cast_possible_truncation, reason = "16-bit samples")]
            Some("int16") => {
                let samples = track.samples.iter().map(|s| (s * 32_768.0) as i16);
                samples.flat_map(i16::to_le_bytes).collect()
            }
            _ => track.samples.iter().flat_map(|s| s.to_le_bytes()).collect(),
        };
        let digest = Sha256::of(&bytes).to_string();
        assert_eq!(Some(digest.as_str()), data["sha256"].as_str(), "{name}");
    }
    let silent = fixture("media/silent_10fps_23frames.mp4");
    let track = sound_track(&silent, 16_000, MediaRecipe::Transformers, &cancel);
    assert_eq!(track.unwrap(), None);
}

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

/// The public conversations with the limits of the published model.
#[test]
fn videos_with_the_limits_of_the_published_model_are_the_official_ones() {
    if !has_programs() {
        return;
    }
    let text = std::fs::read(fixture("traces/real-processor.media.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let size = serde_json::json!({"shortest_edge": 131_072, "longest_edge": 786_432});
    let settings = settings(&size);
    let cancel = CancelToken::default();
    let mut videos = 0;
    for entry in summary["cases"].as_array().unwrap() {
        // frames of the model card are compared by their gates, not by a digest
        if entry.get("mm.video.grid").is_none() || entry["recipe"] == "readme" {
            continue;
        }
        let name = entry["case"].as_str().unwrap();
        let (path, _, request) = case(&MediaTrace::open(name));
        let stages = stages(&path, &settings, &request, &cancel).unwrap();
        let ResizedFrames::Bytes(frames) = &stages.resized else {
            panic!("{name}: frames of 8 bits");
        };
        let seen = Sha256::of(&bytes_of(frames)).to_string();
        let wanted = entry["data"]["mm.video.resized.0"]["sha256"].as_str();
        assert_eq!(wanted, Some(seen.as_str()), "{name}");
        let mut features = VisualFeatures::default();
        append_patches(frames, &settings.frames, &mut features).unwrap();
        assert_eq!(
            entry["mm.video.grid"],
            serde_json::json!(features.grids),
            "{name}"
        );
        let bytes: Vec<u8> = features
            .values
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let wanted = entry["data"]["mm.video.pixels"]["sha256"].as_str();
        assert_eq!(
            wanted,
            Some(Sha256::of(&bytes).to_string().as_str()),
            "{name}"
        );
        videos += 1;
    }
    assert_eq!(videos, 5);
}

fn request(settings: &VideoSettings) -> VideoRequest {
    VideoRequest::new(MediaRecipe::Transformers, Some(2.0), settings)
}

fn small() -> VideoSettings {
    settings(&serde_json::json!({"shortest_edge": 1024, "longest_edge": 8192}))
}

#[track_caller]
fn error_of(path: &Path) -> VideoError {
    let settings = small();
    let stages = stages(
        path,
        &settings,
        &request(&settings),
        &CancelToken::default(),
    );
    stages.map(|stages| stages.timing).unwrap_err()
}

#[test]
fn what_is_no_video_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    assert!(matches!(
        error_of(&folder.path().join("none.mp4")),
        VideoError::Read(_)
    ));
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(matches!(
        error_of(&empty),
        VideoError::TooFew { total: 0, .. }
    ));
    if Path::new("/dev/zero").exists() {
        assert!(matches!(
            error_of(Path::new("/dev/zero")),
            VideoError::NotAFile
        ));
    }
    // more frames than are looked at, each of one pixel
    let frame = b"!\xf9\x04\0\x05\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0";
    let header = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff";
    let many = [header.as_slice(), &frame.repeat(MAX_FRAMES + 1), b";"].concat();
    assert!(matches!(
        error_of(&at("many.gif", &many)),
        VideoError::TooManyFrames
    ));

    if !has_programs() {
        return;
    }
    let read = |name: &str| std::fs::read(fixture("media").join(name)).unwrap();
    let video = read("av_25fps.mp4");
    for length in [0, 1, 700, video.len() / 2, video.len() - 2000] {
        let error = error_of(&at("cut.mp4", &video[..length]));
        assert!(
            matches!(error, VideoError::Program { .. }),
            "{length}: {error}"
        );
    }
    let text = error_of(&at("text.mp4", b"hello")).to_string();
    assert!(text.contains("ffprobe") && !text.contains("@ 0x"), "{text}");
    let wav = error_of(&at("sound.mp4", &read("speech_s16_16k.wav")));
    assert_eq!(
        wav.to_string().split(',').next().unwrap(),
        "a file of the format wav"
    );
    // files that name other files
    let lists = [
        (
            "list.m3u8",
            "#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        ),
        ("list.txt", "ffconcat version 1.0\nfile /etc/passwd\n"),
    ];
    for (name, text) in lists {
        let error = error_of(&at(name, text.as_bytes()));
        let refused = matches!(
            error,
            VideoError::Format { .. } | VideoError::Program { .. }
        );
        assert!(refused, "{name}: {error}");
    }
}

/// Its header counts frames that are not there.
#[test]
fn a_video_that_ends_early_is_an_error() {
    if !has_programs() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (whole, cut) = (
        folder.path().join("whole.mp4"),
        folder.path().join("cut.mp4"),
    );
    let status = std::process::Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-i"])
        .arg(fixture("media/av_25fps.mp4"))
        .args(["-c", "copy", "-movflags", "faststart"])
        .arg(&whole)
        .status();
    assert!(status.unwrap().success());
    let bytes = std::fs::read(&whole).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    assert!(Video::open(&whole, &CancelToken::default()).is_ok());
    assert!(matches!(
        error_of(&cut),
        VideoError::EndsEarly { frames: 1..75, .. }
    ));
}

#[test]
fn names_of_files_are_names_of_files() {
    if !has_programs() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let settings = small();
    for name in ["-i.mp4", "http:a.mp4", "it's %d.mp4", "[0:v];.mp4"] {
        let path = folder.path().join(name);
        std::fs::copy(fixture("media/wide_av.mp4"), &path).unwrap();
        let stages = stages(
            &path,
            &settings,
            &request(&settings),
            &CancelToken::default(),
        );
        assert_eq!(stages.unwrap().timing.unwrap().frames, 10, "{name}");
    }
}

#[test]
fn a_folder_of_frames_is_a_video() {
    let folder = tempfile::tempdir().unwrap();
    let photo = fixture("media/photo.png");
    for name in ["frame9.png", "frame10.png", "frame8.png", ".hidden"] {
        std::fs::copy(&photo, folder.path().join(name)).unwrap();
    }
    let settings = small();
    let mut features = VisualFeatures::default();
    let (request, cancel) = (request(&settings), CancelToken::default());
    let process = |features: &mut VisualFeatures| {
        process(folder.path(), &settings, &request, features, &cancel)
    };
    let summary = process(&mut features).unwrap();
    assert_eq!((summary.indices, summary.timing), (vec![0, 1, 2], None));
    // the last frame is there twice
    assert_eq!(features.grids, [[2, 4, 6]]);
    let error = {
        std::fs::copy(fixture("media/tiny.png"), folder.path().join("frame11.png")).unwrap();
        process(&mut features).unwrap_err()
    };
    let is_size = matches!(
        &error,
        VideoError::Frame {
            frame: 3,
            source: ImageError::FrameSize { seen: (7, 5), .. }
        }
    );
    assert!(is_size, "{error:?}");
}

#[test]
fn nobody_waits_for_a_program_after_a_stop() {
    let cancel = CancelToken::default();
    cancel.cancel();
    let settings = small();
    let stopped =
        |path: &str| stages(&fixture(path), &settings, &request(&settings), &cancel).unwrap_err();
    assert!(matches!(
        stopped("media/anim_7frames.gif"),
        VideoError::Stopped
    ));
    if !has_programs() {
        return;
    }
    // what never ends by itself, and writes nothing
    let words = [
        "-v", "error", "-f", "lavfi", "-i", "testsrc", "-f", "null", "-",
    ];
    let arguments = words.map(std::ffi::OsString::from);
    let (running, stdout) = programs::Running::start(programs::FFMPEG, &arguments).unwrap();
    let pieces = programs::Pieces::of(stdout, container::read_piece);
    assert!(matches!(pieces.next(&cancel), Err(VideoError::Stopped)));
    let process = PathBuf::from(format!("/proc/{}", running.id()));
    assert!(process.exists() || !Path::new("/proc/self").exists());
    drop(running);
    assert!(!process.exists());
}

#[test]
fn a_video_of_too_many_values_is_refused_at_its_first_frame() {
    let pixels = 1 << 27;
    let settings = settings(&serde_json::json!({"shortest_edge": pixels, "longest_edge": pixels}));
    let path = fixture("media/anim_7frames.gif");
    let mut request = request(&settings);
    request.sampling.frames = Some(6);
    let stages = stages(&path, &settings, &request, &CancelToken::default());
    let error = stages.map(|stages| stages.timing).unwrap_err();
    assert!(
        matches!(error, VideoError::TooMuch { frames: 6, .. }),
        "{error}"
    );
}

/// What FFmpeg 5.1 makes of them: areas that are cleared, restored, drawn over.
#[test]
fn animations_are_drawn_as_ffmpeg_does() {
    const GIF: &str = "d80c1e13aa2bb42391a7a9119e4ef8909b374cc072cf108f31558a971bc54c13";
    const PNG: &str = "cd0b6c1d528eeef763fb376cfd1d0bf446c8bf4374c2c9808688ab05aea6e06b";
    let cancel = CancelToken::default();
    for (name, frames, fps, digest) in [
        ("disposal.gif", 6, 10.0, Some(GIF)),
        ("frames.png", 4, 12.5, Some(PNG)),
        // FFmpeg does not decode animated WebP files
        ("frames.webp", 4, 4.0 / 0.24, None),
    ] {
        let video = Video::open(&fixture("media").join(name), &cancel).unwrap();
        let timing = video.timing(&cancel).unwrap().unwrap();
        assert_eq!(timing.frames, frames, "{name}");
        assert!((timing.fps - fps).abs() < 1e-9, "{name}: {}", timing.fps);
        let all: Vec<usize> = (0..frames).collect();
        let mut pictures = Vec::new();
        let mut keep = |picture| {
            pictures.push(picture);
            Ok(())
        };
        let recipe = MediaRecipe::Transformers;
        video.frames(&all, recipe, &cancel, &mut keep).unwrap();
        let seen = Sha256::of(&bytes_of(&pictures)).to_string();
        assert!(digest.is_none_or(|wanted| wanted == seen), "{name}: {seen}");
    }
}

/// A list of pictures is what a folder of them is, in the order of the list.
#[test]
fn a_list_of_pictures_is_a_video_in_its_order() {
    let (photo, tiny) = (fixture("media/photo.png"), fixture("media/large.png"));
    let cancel = CancelToken::default();
    let settings = settings(&serde_json::json!({"shortest_edge": 2048, "longest_edge": 4096}));
    let request = VideoRequest::new(MediaRecipe::Transformers, Some(2.0), &settings);
    let frames = |files: &[&std::path::PathBuf]| {
        let sources = files.iter().map(|file| MediaSource::Path((*file).clone()));
        resized(
            &Video::of_pictures(sources.collect()),
            &settings,
            &request,
            &cancel,
        )
    };
    let ResizedFrames::Bytes(two) = frames(&[&photo, &photo]).unwrap() else {
        panic!("frames of 8 bits")
    };
    let alone = image::resized(
        &std::fs::read(&photo).unwrap(),
        &settings.frames,
        MediaRecipe::Transformers,
        &PartLimits::default(),
    );
    assert_eq!(two, vec![alone.unwrap(); 2]);
    // frames of one video are of one size
    let mixed = frames(&[&photo, &tiny]).unwrap_err();
    assert!(mixed.to_string().contains("frame 1"), "{mixed}");
    cancel.cancel();
    let stopped = frames(&[&photo]).unwrap_err();
    assert!(matches!(stopped, VideoError::Stopped), "{stopped}");
}

/// As librosa cuts what audioread gives it.
#[test]
fn sound_is_cut_to_the_seconds_of_its_video() {
    let cut = |start, end| {
        let mut track = SoundTrack {
            rate: 10,
            samples: (0..30_u8).map(f32::from).collect(),
        };
        track.cut(start, end);
        track.samples
    };
    assert_eq!(cut(0.0, None).len(), 30);
    assert_eq!(
        cut(1.0, None),
        (10..30_u8).map(f32::from).collect::<Vec<_>>()
    );
    assert_eq!(cut(1.04, Some(1.26)), [10.0, 11.0]);
    assert_eq!(cut(2.0, Some(99.0)).len(), 10);
    assert_eq!(cut(9.0, Some(10.0)), Vec::<f32>::new());
}

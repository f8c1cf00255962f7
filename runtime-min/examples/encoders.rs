//! Measures the encoders of audio and pictures of a pack, as a share of the processor's f32
//! multiply-add peak, which is measured in turn.
//!
//! ```text
//! cargo run --release -p segpack-runtime-min --example encoders PACK [--memory BYTES]
//!     [--threads N] [--seconds N] [--images N] [--side PIXELS] [--runs N]
//! ```
//!
//! Features are noise: what they hold does not change what is computed. Multiply-adds are those of
//! the linear layers, the convolutions and attention; norms, activations and softmax are overhead.

mod measure;

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use segpack_formats::io::to_usize;
use segpack_manifests::Pack;
use segpack_manifests::families::MediaFacts;
use segpack_runtime_min::processing::{AudioFeatures, MediaFeatures, VisualFeatures};
use segpack_runtime_min::session::{Session, SessionError};
use segpack_runtime_min::{Kernels, limits};

use measure::{STEPS, beside_limit, options, peak_memory, real};

/// Frames of a second.
const FRAMES: usize = 100;

struct Args {
    pack: PathBuf,
    memory: Option<u64>,
    threads: usize,
    seconds: usize,
    images: usize,
    side: usize,
    runs: usize,
}

fn arguments() -> Result<Args, Box<dyn Error>> {
    let mut given = std::env::args().skip(1);
    let mut args = Args {
        pack: given.next().ok_or("wanted a pack")?.into(),
        memory: None,
        threads: 2,
        seconds: 60,
        images: 4,
        side: 1024,
        runs: 3,
    };
    while let Some(name) = given.next() {
        let value: u64 = given.next().ok_or("wanted a value")?.parse()?;
        let number = to_usize(value);
        match name.as_str() {
            "--memory" => args.memory = Some(value),
            "--threads" => args.threads = number,
            "--seconds" => args.seconds = number,
            "--images" => args.images = number,
            "--side" => args.side = number,
            "--runs" => args.runs = number,
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(args)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = arguments()?;
    let pack = Pack::open(&args.pack)?;
    let session = Session::open(&pack, &options(args.memory, args.threads))?;
    let facts = session.media_facts()?.ok_or("its model takes text alone")?;
    let kernels = Kernels::from_environment()?;
    println!("{} kernels, {} threads", kernels.name(), args.threads);
    // a model that takes no audio is measured by images alone
    let seconds = if facts.audio.is_some() {
        args.seconds
    } else {
        0
    };
    let audio = audio(&facts, seconds * FRAMES);
    let images = images(&facts, args.images, args.side);
    for (what, media, amount) in [
        ("audio, seconds", &audio, seconds),
        ("images", &images, args.images),
    ] {
        if amount == 0 {
            continue;
        }
        let work = 2.0 * multiply_adds(&facts, media);
        let mut rows = Vec::new();
        for _ in 0..args.runs {
            let peak = || session.install(|| limits::fma_peak(kernels, STEPS));
            let (time, peak) = beside_limit(peak, || {
                let began = Instant::now();
                session.encode(&placeholders(&facts, media), media, &mut ())?;
                Ok::<_, SessionError>(began.elapsed())
            })?;
            rows.push((work / time.as_secs_f64() / peak, time));
        }
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (share, time) = rows[rows.len() / 2];
        let per_second = real(amount) / time.as_secs_f64();
        println!(
            "{what}: {amount} in {time:.2?}, {per_second:.3} per second, {:.1} % of the peak",
            share * 100.0
        );
    }
    println!("peak memory: {}", peak_memory());
    Ok(())
}

/// Values between -1 and 1.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap_or(0)) / 32768.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn audio(facts: &MediaFacts, frames: usize) -> MediaFeatures {
    let mut media = MediaFeatures::default();
    let Some(tower) = &facts.audio else {
        return media;
    };
    let mel_bins = to_usize(tower.mel_bins);
    media.audio = AudioFeatures {
        mel_bins,
        values: noise(mel_bins * frames),
        lengths: vec![frames],
    };
    media
}

fn images(facts: &MediaFacts, count: usize, side: usize) -> MediaFeatures {
    let v = &facts.vision;
    let patch_width = to_usize(v.channels * v.patch_frames * v.patch_side * v.patch_side);
    let patches = side / to_usize(v.patch_side);
    let mut media = MediaFeatures::default();
    media.images = VisualFeatures {
        patch_width,
        values: noise(count * patches * patches * patch_width),
        grids: vec![[1, patches, patches]; count],
    };
    media
}

/// A prompt of placeholders alone.
fn placeholders(facts: &MediaFacts, media: &MediaFeatures) -> Vec<u32> {
    let audio = media.audio.lengths.iter();
    let audio = audio
        .map(|n| segpack_runtime_min::processing::audio_tokens(*n))
        .sum();
    let squares = to_usize(facts.vision.merge * facts.vision.merge);
    let grids = media.images.grids.iter();
    let images = grids
        .map(|grid| grid.iter().product::<usize>() / squares)
        .sum();
    let row = facts.tokens.audio.map(|tokens| tokens.row);
    let mut ids: Vec<u32> = row.into_iter().cycle().take(audio).collect();
    ids.extend(vec![facts.tokens.image; images]);
    ids
}

/// Multiply-adds of all linear layers, convolutions and attention.
fn multiply_adds(facts: &MediaFacts, media: &MediaFeatures) -> f64 {
    of_audio(facts, media) + of_images(facts, media)
}

fn of_audio(facts: &MediaFacts, media: &MediaFeatures) -> f64 {
    let Some(a) = &facts.audio else {
        return 0.0;
    };
    let [width, ffn, channels, mel, output, layers] = [
        a.width,
        a.ffn,
        a.channels,
        a.mel_bins,
        a.output,
        a.layers.into(),
    ]
    .map(|n| real(to_usize(n)));
    let (frames, window) = (
        real(media.audio.lengths.iter().sum()),
        13.0 * real(to_usize(a.window_chunks)),
    );
    let tokens = frames * 0.13;
    // places after each convolution: 50, 25 and 13 of 100 frames
    let first = channels * 9.0 * (mel / 2.0) * frames * 0.5;
    let second = channels * channels * 9.0 * (mel / 4.0) * frames * 0.25;
    let third = channels * channels * 9.0 * (mel / 8.0) * tokens;
    let out = tokens * channels * (mel / 8.0) * width;
    let layer = tokens * (4.0 * width * width + 2.0 * width * ffn + 2.0 * window * width);
    let head = tokens * (width * width + width * output);
    first + second + third + out + layers * layer + head
}

fn of_images(facts: &MediaFacts, media: &MediaFeatures) -> f64 {
    let v = &facts.vision;
    let [width, ffn, output, blocks, merge] =
        [v.width, v.ffn, v.output, v.blocks.into(), v.merge * v.merge].map(|n| real(to_usize(n)));
    let grids = media.images.grids.iter();
    let mergers = 1.0 + real(v.deepstack.len());
    grids
        .map(|[time, height, columns]| {
            let frame = real(height * columns);
            let patches = frame * real(*time);
            let merged = width * merge;
            let block = 4.0 * width * width + 2.0 * width * ffn + 2.0 * frame * width;
            let merger = (merged * merged + merged * output) / merge;
            let patch = real(media.images.patch_width) * width;
            patches * (patch + blocks * block + mergers * merger)
        })
        .sum()
}

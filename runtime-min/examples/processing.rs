//! Measures what files of audio and images take before an encoder gets them.
//!
//! ```text
//! cargo run --release -p segpack-runtime-min --example processing CHECKPOINT RUNS THREADS FILE…
//! ```
//!
//! All files are read, decoded and made features of in each run, as for one prompt; images (`.png`,
//! `.jpg`, `.webp`, …) and clips (`.wav`, `.flac`, `.mp3`, `.ogg`) are told apart by their names. It
//! prints the median of the runs in seconds.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use segpack_runtime_min::processing::image::PartLimits;
use segpack_runtime_min::processing::media::{AudioSettings, MediaRecipe, VisualSettings};
use segpack_runtime_min::processing::{VisualFeatures, audio, image};
use segpack_runtime_min::session::on_threads;

type Failure = Box<dyn Error + Send + Sync>;

const CLIPS: [&str; 5] = ["wav", "flac", "mp3", "ogg", "m4a"];

fn main() -> Result<(), Failure> {
    let mut given = std::env::args().skip(1);
    let usage = "wanted CHECKPOINT RUNS THREADS FILE…";
    let checkpoint: PathBuf = given.next().ok_or(usage)?.into();
    let runs: usize = given.next().ok_or(usage)?.parse()?;
    let threads: usize = given.next().ok_or(usage)?.parse()?;
    let is_clip = |path: &PathBuf| {
        let extension = path.extension().and_then(|e| e.to_str());
        extension.is_some_and(|e| CLIPS.contains(&e))
    };
    let (clips, images): (Vec<PathBuf>, Vec<PathBuf>) = given.map(PathBuf::from).partition(is_clip);
    on_threads(threads, || {
        let mut seconds = Vec::new();
        for _ in 0..runs {
            let began = Instant::now();
            process(&checkpoint, &clips, &images)?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        println!("{:.6}", seconds.get(runs / 2).ok_or(usage)?);
        Ok(())
    })?
}

/// A file of the checkpoint; `None`: it has none of this name.
fn file_of(checkpoint: &Path, name: &str) -> std::io::Result<Option<Vec<u8>>> {
    match fs::read(checkpoint.join(name)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

fn process(checkpoint: &Path, clips: &[PathBuf], images: &[PathBuf]) -> Result<(), Failure> {
    let files = |name: &str| file_of(checkpoint, name);
    if !clips.is_empty() {
        let settings = AudioSettings::load(&files)?;
        let samples: Result<Vec<_>, Failure> = clips
            .par_iter()
            .map(|path| {
                let file = Box::new(fs::File::open(path)?);
                Ok(audio::decode(file, settings.sampling_rate)?)
            })
            .collect();
        std::hint::black_box(audio::features(&samples?, &settings)?);
    }
    if !images.is_empty() {
        let settings = VisualSettings::load(&files)?;
        let (recipe, limits) = (MediaRecipe::Transformers, PartLimits::default());
        let resized: Result<Vec<_>, Failure> = images
            .par_iter()
            .map(|path| {
                let bytes = image::read_file(path)?;
                Ok(image::resized(&bytes, &settings, recipe, &limits)?)
            })
            .collect();
        let mut features = VisualFeatures::default();
        for picture in resized? {
            image::append_patches(&[picture], &settings, &mut features)?;
        }
        std::hint::black_box(features);
    }
    Ok(())
}

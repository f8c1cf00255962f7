//! Pictures of a trace, from what was decoded to what the encoder takes.

use segpack_manifests::documents::Stage;
use segpack_manifests::folder::source_file;
use segpack_runtime_min::processing::VisualFeatures;
use segpack_runtime_min::processing::image::{
    ImageError, Picture, RgbPicture, append_patches, processor_size, resize_float, resize_official,
};
use segpack_runtime_min::processing::media::VisualSettings;

use super::MediaRun;
use super::stages::{Allowed, Stages};
use crate::steps::StepError;
use crate::steps::validate::ValidateError;

/// Difference that is allowed of a normalised value: one of rounding.
const PIXELS: f64 = 1e-6;
/// The same after a resize in f32, which the recipe of the model card does for videos.
const FLOAT_PIXELS: f64 = 2e-5;

/// Images, or videos.
#[derive(Debug, Clone, Copy)]
pub(super) struct PictureKind {
    name: &'static str,
    resized: Stage,
    pixels: Stage,
}

/// Images, and videos, which have several frames.
pub(super) const KINDS: [PictureKind; 2] = [
    PictureKind {
        name: "image",
        resized: Stage::ImageResized,
        pixels: Stage::ImagePixels,
    },
    PictureKind {
        name: "video",
        resized: Stage::VideoResized,
        pixels: Stage::VideoPixels,
    },
];

/// Compares what can be compared of one kind.
pub(super) fn compare(
    run: &MediaRun<'_>,
    kind: PictureKind,
    wanted: &VisualFeatures,
    stages: &mut Stages,
) -> Result<(), StepError> {
    if wanted.grids.is_empty() {
        return Ok(());
    }
    let pack = run.session.pack();
    let Some(settings) = settings(pack, run)? else {
        return Ok(());
    };
    let (mut seen, mut are_floats) = (VisualFeatures::default(), false);
    for (number, grid) in wanted.grids.iter().enumerate() {
        let frames = |stage: &str| run.pictures(&format!("{}.{stage}.{number}", kind.name));
        let source = match frames("pre")? {
            Some(pre) => Some(pre),
            None => frames("decoded")?,
        };
        let resized = frames("resized")?;
        if let (Some(source), Some(resized)) = (&source, &resized) {
            compare_resized(kind, number, (source, resized), &settings, stages)?;
        }
        let patched = match (resized, source) {
            (Some(resized), _) => append_patches(&resized, &settings, &mut seen),
            // what was resized in f32 is not recorded
            (None, Some(source)) if kind.name == "video" => {
                are_floats = true;
                let sides = [grid[2], grid[1]].map(|side| side * settings.patch_size);
                append_patches(&resized_floats(&source, sides), &settings, &mut seen)
            }
            (None, _) => return Ok(()),
        };
        patched.map_err(picture_error)?;
    }
    let gate = if are_floats { FLOAT_PIXELS } else { PIXELS };
    stages.compare(
        kind.pixels,
        None,
        &seen.values,
        &wanted.values,
        Allowed::max(Some(gate)),
    );
    Ok(())
}

/// The settings of the processor; none where the pack keeps none and the trace needs none.
fn settings(
    pack: &segpack_manifests::Pack,
    run: &MediaRun<'_>,
) -> Result<Option<VisualSettings>, StepError> {
    let is_needed = ["image", "video"].iter().any(|kind| {
        let of = |stage: &str| run.trace.shape(&format!("{kind}.{stage}.0")).is_some();
        of("resized") || of("pre")
    });
    if !is_needed {
        return Ok(None);
    }
    let settings = VisualSettings::load(&|name: &str| source_file(pack, name));
    let settings = settings.map_err(|source| ValidateError::Processor { source })?;
    Ok(Some(settings))
}

fn picture_error(source: ImageError) -> StepError {
    ValidateError::Picture { source }.into()
}

/// The size of an image is the processor's; that of a frame of a video depends on what the
/// conversation asked for, and is taken from the trace.
fn compare_resized(
    kind: PictureKind,
    number: usize,
    (source, wanted): (&[RgbPicture], &[RgbPicture]),
    settings: &VisualSettings,
    stages: &mut Stages,
) -> Result<(), StepError> {
    let mut seen = Vec::new();
    for (source, wanted) in source.iter().zip(wanted) {
        let (width, height) = if kind.name == "image" {
            processor_size(source.width, source.height, settings).map_err(picture_error)?
        } else {
            (wanted.width, wanted.height)
        };
        let resized = resize_official(source, width, height).map_err(picture_error)?;
        seen.extend(levels(&resized));
    }
    let wanted: Vec<f32> = wanted.iter().flat_map(levels).collect();
    let exact = Allowed::max(Some(0.0));
    let number = u32::try_from(number).ok();
    stages.compare(kind.resized, number, &seen, &wanted, exact);
    Ok(())
}

fn levels(picture: &RgbPicture) -> impl Iterator<Item = f32> {
    picture.values.iter().map(|level| f32::from(*level))
}

fn resized_floats(source: &[RgbPicture], [width, height]: [usize; 2]) -> Vec<Picture<f32>> {
    let wide = source.iter().map(widened);
    wide.map(|picture| resize_float(&picture, width, height))
        .collect()
}

fn widened(picture: &RgbPicture) -> Picture<f32> {
    Picture {
        width: picture.width,
        height: picture.height,
        values: levels(picture).collect(),
    }
}

impl MediaRun<'_> {
    /// Pictures of 8 bits: one, or the frames of a video. `None`: not recorded, or as floats.
    fn pictures(&self, name: &str) -> Result<Option<Vec<RgbPicture>>, StepError> {
        let shape = self.trace.shape(name).unwrap_or_default();
        let (height, width) = match shape[..] {
            [height, width, 3] | [_, height, width, 3] if height > 0 && width > 0 => {
                (height, width)
            }
            _ => return Ok(None),
        };
        if !self.trace.has_levels(name) {
            return Ok(None);
        }
        let values = self.trace.levels(name)?.unwrap_or_default();
        let mut pictures = Vec::new();
        for values in values.chunks_exact(height * width * 3) {
            let values = values.to_vec();
            pictures.push(Picture {
                width,
                height,
                values,
            });
        }
        Ok(Some(pictures))
    }
}

//! Pictures to patches: what a vision encoder takes.

use super::{ImageError, Picture};
use crate::processing::VisualFeatures;
use crate::processing::media::VisualSettings;

/// Appends the patches of one image, or of the frames of one video, and its grid.
///
/// Values are normalised, (v − 255 × mean) / (255 × standard deviation) in float32. Frames are taken
/// in groups of the settings' temporal patch size: a last group that is not full is filled up with
/// the last frame, so that an image is a video of one frame.
///
/// # Errors
/// `NoFrames`; `FrameSize` where frames are not of one size, or not of whole blocks of patches.
pub fn append_patches<T: Copy + Into<f32>>(
    frames: &[Picture<T>],
    settings: &VisualSettings,
    features: &mut VisualFeatures,
) -> Result<(), ImageError> {
    let (patch, merge) = (settings.patch_size, settings.merge_size);
    let group = settings.temporal_patch_size;
    let first = frames
        .first()
        .ok_or(ImageError::NoFrames { format: "video" })?;
    check_sizes(frames, first, patch * merge)?;

    let grid = [
        frames.len().div_ceil(group),
        first.height / patch,
        first.width / patch,
    ];
    features.patch_width = 3 * group * patch * patch;
    let values = grid.iter().product::<usize>() * features.patch_width;
    features.values.reserve(values);
    features.grids.push(grid);

    let normalise = Normalise::new(settings);
    for first in (0..grid[0]).map(|n| n * group) {
        let frame = |n: usize| &frames[(first + n).min(frames.len() - 1)];
        let frames: Vec<&Picture<T>> = (0..group).map(frame).collect();
        for (row, column) in merge_block_order(grid[1], grid[2], merge) {
            let corner = (row * patch, column * patch);
            append_patch(&frames, corner, patch, &normalise, &mut features.values);
        }
    }
    Ok(())
}

fn check_sizes<T>(
    frames: &[Picture<T>],
    first: &Picture<T>,
    block: usize,
) -> Result<(), ImageError> {
    let size = |picture: &Picture<T>| (picture.width, picture.height);
    let whole = |side: usize| side.next_multiple_of(block);
    let wanted = (whole(first.width), whole(first.height));
    match frames.iter().position(|frame| size(frame) != wanted) {
        None => Ok(()),
        Some(frame) => Err(ImageError::FrameSize {
            frame,
            seen: size(&frames[frame]),
            wanted,
        }),
    }
}

/// Rows and columns of patches: block row, block column, row in the block, column in the block.
fn merge_block_order(
    rows: usize,
    columns: usize,
    merge: usize,
) -> impl Iterator<Item = (usize, usize)> {
    let blocks = columns / merge;
    (0..rows * columns).map(move |place| {
        let (block, inside) = (place / (merge * merge), place % (merge * merge));
        let row = block / blocks * merge + inside / merge;
        let column = block % blocks * merge + inside % merge;
        (row, column)
    })
}

/// Values of one patch: channel, time, y, x.
fn append_patch<T: Copy + Into<f32>>(
    frames: &[&Picture<T>],
    (top, left): (usize, usize),
    patch: usize,
    normalise: &Normalise,
    values: &mut Vec<f32>,
) {
    for channel in 0..3 {
        let (mean, std) = (normalise.mean[channel], normalise.std[channel]);
        for frame in frames {
            for y in top..top + patch {
                let start = (y * frame.width + left) * 3;
                let pixels = frame.values[start..start + patch * 3].chunks_exact(3);
                values.extend(pixels.map(|p| (p[channel].into() - mean) / std));
            }
        }
    }
}

/// Mean and standard deviation of each channel, of values from 0 to 255.
struct Normalise {
    mean: [f32; 3],
    std: [f32; 3],
}

impl Normalise {
    fn new(settings: &VisualSettings) -> Self {
        Self {
            mean: settings.mean.map(|mean| mean * 255.0),
            std: settings.std.map(|std| std * 255.0),
        }
    }
}

//! Pictures to patches: what a vision encoder takes.

use rayon::prelude::*;

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
pub fn append_patches<T: Level>(
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
    let width = 3 * group * patch * patch;
    features.patch_width = width;
    features.grids.push(grid);
    let before = features.values.len();
    let values = before + grid.iter().product::<usize>() * width;
    match before {
        // memory that threads touch first
        0 => features.values = vec![0.0; values],
        _ => features.values.resize(values, 0.0),
    }

    let cut = Cut::new(settings, first.width);
    let in_group = grid[1] * grid[2];
    // a row of blocks is what one thread does at a time
    let row_of_blocks = grid[2] * merge;
    let rows = features.values[before..].par_chunks_mut(row_of_blocks * width);
    rows.enumerate().for_each(|(row, values)| {
        let first_patch = row * row_of_blocks;
        let first_frame = first_patch / in_group * group;
        let frame = |n: usize| &frames[(first_frame + n).min(frames.len() - 1)].values[..];
        let frames: Vec<&[T]> = (0..group).map(frame).collect();
        for (n, values) in values.chunks_exact_mut(width).enumerate() {
            let place = first_patch % in_group + n;
            let corner = patch_in_merge_block_order(place, grid[2], merge);
            cut.write(&frames, corner, values);
        }
    });
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

/// Row and column of a patch of a grid with so many columns; the order is block row, block column,
/// row in the block, column in the block.
fn patch_in_merge_block_order(place: usize, columns: usize, merge: usize) -> (usize, usize) {
    let (block, inside) = (place / (merge * merge), place % (merge * merge));
    let blocks = columns / merge;
    let row = block / blocks * merge + inside / merge;
    let column = block % blocks * merge + inside % merge;
    (row, column)
}

/// A value of a pixel, from 0 to 255.
pub trait Level: Copy + Sync {
    /// What is kept of a channel to normalise its values.
    #[doc(hidden)]
    type Normalised: Sync;

    /// What is kept of a channel of this mean and standard deviation.
    #[doc(hidden)]
    fn prepare(mean: f32, std: f32) -> Self::Normalised;

    /// (value − mean) / standard deviation.
    #[doc(hidden)]
    fn normalised(self, by: &Self::Normalised) -> f32;
}

/// All 256 values are computed once.
impl Level for u8 {
    type Normalised = [f32; 256];

    fn prepare(mean: f32, std: f32) -> [f32; 256] {
        let value = |level: u8| (f32::from(level) - mean) / std;
        let mut values = [0.0; 256];
        values
            .iter_mut()
            .zip(0..=u8::MAX)
            .for_each(|(to, v)| *to = value(v));
        values
    }

    fn normalised(self, by: &[f32; 256]) -> f32 {
        by[usize::from(self)]
    }
}

impl Level for f32 {
    type Normalised = (f32, f32);

    fn prepare(mean: f32, std: f32) -> (f32, f32) {
        (mean, std)
    }

    fn normalised(self, (mean, std): &(f32, f32)) -> f32 {
        (self - mean) / std
    }
}

/// How pictures of one size are cut.
struct Cut<T: Level> {
    patch: usize,
    /// Values of a row of a picture.
    stride: usize,
    channels: [T::Normalised; 3],
}

impl<T: Level> Cut<T> {
    fn new(settings: &VisualSettings, width: usize) -> Self {
        let channel = |n: usize| T::prepare(settings.mean[n] * 255.0, settings.std[n] * 255.0);
        Self {
            patch: settings.patch_size,
            stride: width * 3,
            channels: [0, 1, 2].map(channel),
        }
    }

    /// Writes a patch: channel, time, y, x.
    fn write(&self, frames: &[&[T]], (row, column): (usize, usize), values: &mut [f32]) {
        let side = self.patch;
        let area = side * side;
        for (time, frame) in frames.iter().enumerate() {
            let place = |channel: usize| (channel * frames.len() + time) * area;
            // an image is a video of one frame twice
            if time > 0 && std::ptr::eq(*frame, frames[time - 1]) {
                for to in [0, 1, 2].map(place) {
                    values.copy_within(to - area..to, to);
                }
                continue;
            }
            for y in 0..side {
                let start = (row * side + y) * self.stride + column * side * 3;
                let pixels = frame[start..start + side * 3].as_chunks::<3>().0;
                for (channel, by) in self.channels.iter().enumerate() {
                    let to = place(channel) + y * side;
                    let line = values[to..to + side].iter_mut().zip(pixels);
                    line.for_each(|(to, pixel)| *to = pixel[channel].normalised(by));
                }
            }
        }
    }
}

//! Where patches are in their picture: what their order says, the learned positions there, and the
//! rotary embedding of row and column.

use super::VisionSpec;
use crate::error::MediaError;
use crate::error::RunError;
use crate::models::decoder::Rotary;
use crate::processing::VisualFeatures;
use crate::tensor::Compute;

/// The base of the rotary frequencies.
const THETA: f64 = 10_000.0;

/// The grids of some images or videos.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grids {
    /// Patches along time, height and width.
    all: Vec<[usize; 3]>,
    /// The first patch of each frame, and the end of the last.
    frames: Vec<usize>,
}

/// Rows of an image or a video of so many patches along time, height and width: one for each square
/// of patches. `None` where squares do not fill it.
pub(crate) fn visual_tokens([time, height, width]: [usize; 3], merge: usize) -> Option<usize> {
    if merge == 0 || height % merge != 0 || width % merge != 0 {
        return None;
    }
    let squares = (height / merge).checked_mul(width / merge)?;
    squares.checked_mul(time)
}

impl Default for Grids {
    /// Of no patch.
    fn default() -> Self {
        Self {
            all: Vec::new(),
            frames: vec![0],
        }
    }
}

impl Grids {
    /// Puts others behind these.
    pub(super) fn append(&mut self, others: Self) {
        let patches = self.patches();
        self.all.extend(others.all);
        let frames = others.frames.into_iter().skip(1);
        self.frames.extend(frames.map(|end| patches + end));
    }

    /// Of some features.
    ///
    /// # Errors
    /// `Media` where they contradict themselves or the model.
    pub(super) fn of(features: &VisualFeatures, spec: &VisionSpec) -> Result<Self, RunError> {
        if features.grids.is_empty() && features.values.is_empty() {
            return Ok(Self::default());
        }
        if features.patch_width != spec.patch_width() {
            return Err(MediaError::PatchWidth {
                seen: features.patch_width,
                wanted: spec.patch_width(),
            }
            .into());
        }
        let mut frames = vec![0];
        for (number, grid) in features.grids.iter().enumerate() {
            let [time, height, width] = *grid;
            let is_whole = visual_tokens(*grid, spec.merge).is_some_and(|tokens| tokens > 0);
            let patches = height.checked_mul(width).filter(|_| is_whole);
            let Some(patches) = patches else {
                return Err(MediaError::Grid {
                    number,
                    seen: *grid,
                    merge: spec.merge,
                }
                .into());
            };
            let end = time
                .checked_mul(patches)
                .and_then(|all| all.checked_add(frames[frames.len() - 1]))
                .filter(|end| *end <= features.values.len()); // and so are the frames to be listed
            let Some(_) = end else {
                return Err(wrong_values(features));
            };
            for _ in 0..time {
                frames.push(frames[frames.len() - 1] + patches);
            }
        }
        let grids = Self {
            all: features.grids.clone(),
            frames,
        };
        let values = grids.patches().checked_mul(features.patch_width);
        if values != Some(features.values.len()) {
            return Err(wrong_values(features));
        }
        Ok(grids)
    }

    /// Patches of all.
    pub(super) fn patches(&self) -> usize {
        self.frames[self.frames.len() - 1]
    }

    /// The first patch of each frame, and the end of the last.
    pub(super) fn frames(&self) -> &[usize] {
        &self.frames
    }

    /// Patches of the largest frame.
    pub(super) fn longest_frame(&self) -> usize {
        let lengths = self.frames.windows(2).map(|frame| frame[1] - frame[0]);
        lengths.max().unwrap_or(0)
    }

    /// Row and column of every patch, with the grid that it is in. Patches go square by square.
    fn places(&self, merge: usize) -> impl Iterator<Item = ([usize; 2], [usize; 2])> {
        self.all.iter().flat_map(move |[time, height, width]| {
            let (sides, columns) = ([*height, *width], width / merge);
            let square = merge * merge;
            let of_frame = (0..height * width).map(move |patch| {
                let (block, inside) = (patch / square, patch % square);
                let row = block / columns * merge + inside / merge;
                let column = block % columns * merge + inside % merge;
                ([row, column], sides)
            });
            (0..*time).flat_map(move |_| of_frame.clone())
        })
    }

    /// Adds the learned positions, which are of a square of `position_side`: each of its sides is
    /// stretched so that its ends are those of the picture (`align_corners`), and what is between
    /// four of them is mixed of these.
    pub(super) fn add_positions(
        &self,
        spec: &VisionSpec,
        table: &[f32],
        compute: Compute,
        x: &mut [f32],
    ) {
        let (width, side) = (spec.width, spec.position_side);
        let mut mixed = vec![0.0; width];
        for (x, (place, sides)) in x.chunks_exact_mut(width).zip(self.places(spec.merge)) {
            let [row, column] = [0, 1].map(|axis| Tap::new(place[axis], sides[axis], side));
            mixed.fill(0.0);
            for (r, row_weight) in row.both() {
                for (c, column_weight) in column.both() {
                    let weight = compute.round(row_weight * column_weight);
                    let learned = &table[(r * side + c) * width..][..width];
                    for (to, learned) in mixed.iter_mut().zip(learned) {
                        *to = compute.round(*to + compute.round(learned * weight));
                    }
                }
            }
            for (x, position) in x.iter_mut().zip(&mixed) {
                *x = compute.round(*x + position);
            }
        }
    }

    /// The rotary embedding of every patch, `[patches, head width / 2]`: the first half of the
    /// frequencies by row, the second by column; in f32 whatever the precision is.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "f32, as torch does"
    )]
    pub(super) fn rotary(&self, spec: &VisionSpec) -> Rotary {
        let half = spec.width / spec.heads / 2;
        let exponents = (0..half).step_by(2).map(|i| i as f32 / half as f32);
        let frequencies: Vec<f32> = exponents
            .map(|e| 1.0 / (THETA.powf(f64::from(e)) as f32))
            .collect();
        let mut rotary = Rotary::default();
        for (place, _) in self.places(spec.merge) {
            for position in place {
                for frequency in &frequencies {
                    let angle = f64::from(position as f32 * frequency);
                    rotary.cos.push(angle.cos() as f32);
                    rotary.sin.push(angle.sin() as f32);
                }
            }
        }
        rotary
    }
}

fn wrong_values(features: &VisualFeatures) -> RunError {
    let seen = features.values.len();
    MediaError::FeatureValues {
        medium: "pictures",
        seen,
    }
    .into()
}

/// A place between two of a table.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tap {
    below: usize,
    above: usize,
    /// How near it is to the one above.
    share: f32,
}

impl Tap {
    /// Place number `at` of `size`, in a table of `side`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "f32, as torch does; a side is short"
    )]
    fn new(at: usize, size: usize, side: usize) -> Self {
        let last = side - 1;
        let source = at as f32 * last as f32 / size.saturating_sub(1).max(1) as f32;
        let below = (source.floor() as usize).min(last);
        Self {
            below,
            above: (below + 1).min(last),
            share: source - source.floor(),
        }
    }

    /// Both, with their weights.
    fn both(self) -> [(usize, f32); 2] {
        [(self.below, 1.0 - self.share), (self.above, self.share)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grids(all: Vec<[usize; 3]>) -> Grids {
        Grids {
            all,
            frames: vec![0],
        }
    }

    #[test]
    fn patches_go_square_by_square() {
        let places: Vec<[usize; 2]> = grids(vec![[1, 4, 4]]).places(2).map(|(p, _)| p).collect();
        assert_eq!(places[..4], [[0, 0], [0, 1], [1, 0], [1, 1]]);
        assert_eq!(places[4..8], [[0, 2], [0, 3], [1, 2], [1, 3]]);
        assert_eq!(places[8], [2, 0]);
        assert_eq!(grids(vec![[3, 2, 4], [1, 2, 2]]).places(2).count(), 28);
    }

    #[test]
    fn the_corners_of_the_table_are_those_of_the_picture() {
        let at = |at, size| Tap::new(at, size, 8);
        assert_eq!((at(0, 5).below, at(0, 5).share), (0, 0.0));
        assert_eq!(
            (at(4, 5).below, at(4, 5).above, at(4, 5).share),
            (7, 7, 0.0)
        );
        assert_eq!((at(1, 5).below, at(1, 5).share), (1, 0.75));
        // a single row is at the table's start
        assert_eq!((at(0, 1).below, at(0, 1).share), (0, 0.0));
    }
}

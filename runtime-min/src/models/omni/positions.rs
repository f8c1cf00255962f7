//! Where each token of a prompt is in time, height and width.

use segpack_manifests::families::{MediaFacts, MediaTokens};

use super::{MediaError, Rows};
use crate::processing::MediaFeatures;

/// Time, height and width.
type Place = [f32; 3];

/// Where the tokens of a prompt are.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Layout {
    /// Time, height and width of each token. Those of videos may be fractions.
    pub positions: Vec<[f32; 3]>,
}

/// The highest of all axes of all places.
fn highest(places: &[Place]) -> f32 {
    places.iter().flatten().copied().fold(0.0, f32::max)
}

impl Layout {
    /// Of a prompt with these features.
    pub(super) fn of(
        facts: &MediaFacts,
        ids: &[u32],
        features: &MediaFeatures,
    ) -> Result<Self, MediaError> {
        let merge = usize::try_from(facts.vision.merge).unwrap_or(usize::MAX);
        let rows = Rows::of(features, merge)?;
        rows.check(ids, &facts.tokens)?;
        check_seconds(features)?;
        let mut walk = Walk {
            tokens: facts.tokens,
            ids,
            rows: &rows,
            features,
            merge,
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            per_second: facts.positions_per_second as f32,
            positions: Vec::with_capacity(ids.len()),
            next: 0.0,
            done: [0; 3],
        };
        walk.run()?;
        Ok(Self {
            positions: walk.positions,
        })
    }

    /// What is added to the number of a token that follows the prompt: it is not its position where
    /// pictures took fewer positions than tokens.
    #[must_use]
    pub fn rope_delta(&self) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "positions are f32, as in torch")]
        let tokens = self.positions.len() as f32;
        highest(&self.positions) + 1.0 - tokens
    }
}

fn check_seconds(features: &MediaFeatures) -> Result<(), MediaError> {
    let (seen, wanted) = (features.second_per_grid.len(), features.videos.grids.len());
    if seen != wanted {
        return Err(MediaError::Seconds { seen, wanted });
    }
    let is_sound = |seconds: &&f32| seconds.is_finite() && **seconds > 0.0;
    match features.second_per_grid.iter().find(|s| !is_sound(s)) {
        Some(seen) => Err(MediaError::SecondsOutOfRange { seen: *seen }),
        None => Ok(()),
    }
}

/// A walk through the tokens.
struct Walk<'w> {
    tokens: MediaTokens,
    ids: &'w [u32],
    rows: &'w Rows,
    features: &'w MediaFeatures,
    merge: usize,
    per_second: f32,
    positions: Vec<Place>,
    /// The position of the next text token.
    next: f32,
    /// Clips, images and videos that are behind.
    done: [usize; 3],
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), MediaError> {
        while let Some(id) = self.ids.get(self.positions.len()).copied() {
            if self.is_audio_in_video() {
                self.audio_in_video()?;
            } else if id == self.tokens.audio {
                self.audio()?;
            } else if id == self.tokens.image {
                self.image()?;
            } else if id == self.tokens.video {
                self.video()?;
            } else {
                self.skip_empty_clip(id);
                self.advance();
            }
        }
        Ok(())
    }

    /// A token that takes one position of all axes.
    fn advance(&mut self) {
        self.positions.push([self.next; 3]);
        self.next += 1.0;
    }

    /// A clip without a token is behind once its end follows its start.
    fn skip_empty_clip(&mut self, id: u32) {
        let after = self.ids.get(self.positions.len() + 1);
        let is_empty = self.rows.audio.get(self.done[0]) == Some(&0);
        if id == self.tokens.audio_start && after == Some(&self.tokens.audio_end) && is_empty {
            self.done[0] += 1;
        }
    }

    /// The next tokens are `count` of this one.
    fn expect(
        &self,
        (wanted, medium, number): (u32, &'static str, usize),
        count: usize,
    ) -> Result<(), MediaError> {
        for at in self.positions.len()..self.positions.len() + count {
            self.expect_at(at, (wanted, medium, number))?;
        }
        Ok(())
    }

    fn expect_at(
        &self,
        at: usize,
        (wanted, medium, number): (u32, &'static str, usize),
    ) -> Result<(), MediaError> {
        let seen = self.ids.get(at).copied().unwrap_or(u32::MAX);
        if seen == wanted {
            return Ok(());
        }
        Err(MediaError::Apart {
            at,
            seen,
            wanted,
            medium,
            number,
        })
    }

    /// What comes next of one medium: more than there are is found by the count of placeholders, an
    /// empty one where it has tokens here.
    fn take(&mut self, medium: usize) -> (usize, usize) {
        let rows = [&self.rows.audio, &self.rows.images, &self.rows.videos][medium];
        let number = self.done[medium];
        self.done[medium] += 1;
        (number, rows.get(number).copied().unwrap_or(0))
    }

    fn audio(&mut self) -> Result<(), MediaError> {
        let (number, count) = self.take(0);
        let count = count.max(1);
        self.expect((self.tokens.audio, "audio", number), count)?;
        (0..count).for_each(|_| self.advance());
        Ok(())
    }

    fn image(&mut self) -> Result<(), MediaError> {
        let (number, count) = self.take(1);
        self.expect((self.tokens.image, "image", number), count.max(1))?;
        let places = self.grid(self.features.images.grids.get(number), 1.0);
        self.append(places);
        Ok(())
    }

    fn video(&mut self) -> Result<(), MediaError> {
        let (number, count) = self.take(2);
        self.expect((self.tokens.video, "video", number), count.max(1))?;
        let places = self.video_grid(number);
        self.append(places);
        Ok(())
    }

    /// What follows is behind the highest of all axes, whatever the number of tokens is.
    fn append(&mut self, places: Vec<Place>) {
        self.next = highest(&places) + 1.0;
        self.positions.extend(places);
    }

    fn video_grid(&self, number: usize) -> Vec<Place> {
        let seconds = self.features.second_per_grid.get(number);
        let seconds = seconds.copied().unwrap_or(1.0);
        self.grid(self.features.videos.grids.get(number), seconds)
    }

    /// Places of the squares of a grid: frame by frame, row by row. The time of a frame may be a
    /// fraction, which is kept; products and sums are f32 in this order, as in torch.
    #[expect(clippy::cast_precision_loss, reason = "positions are f32, as in torch")]
    fn grid(&self, grid: Option<&[usize; 3]>, seconds: f32) -> Vec<Place> {
        let [time, height, width] = grid.copied().unwrap_or_default();
        let (height, width) = (height / self.merge, width / self.merge);
        let mut places = Vec::with_capacity(time * height * width);
        for frame in 0..time {
            let t = frame as f32 * seconds * self.per_second + self.next;
            for row in 0..height {
                let h = row as f32 + self.next;
                places.extend((0..width).map(|column| [t, h, column as f32 + self.next]));
            }
        }
        places
    }

    /// Whether a video with its sound begins here: two start markers follow each other.
    fn is_audio_in_video(&self) -> bool {
        let at = self.positions.len();
        let markers = [self.tokens.vision_start, self.tokens.audio_start];
        let is_video = self.done[2] < self.rows.videos.len();
        self.features.use_audio_in_video && is_video && self.ids[at..].starts_with(&markers)
    }

    /// Frames and sound begin at the same position and are in the order of their times, frames first
    /// where they are the same. What follows continues after the highest place of the last run, that
    /// is of what is left of one when the other ends: not after the highest of both.
    fn audio_in_video(&mut self) -> Result<(), MediaError> {
        (0..2).for_each(|_| self.advance());
        let ((video, _), (clip, sounds)) = (self.take(2), self.take(0));
        let (video_token, audio_token) = (
            (self.tokens.video, "video", video),
            (self.tokens.audio, "audio", clip),
        );
        let frames = self.video_grid(video);
        #[expect(clippy::cast_precision_loss, reason = "positions are f32, as in torch")]
        let sounds: Vec<Place> = (0..sounds).map(|j| [self.next + j as f32; 3]).collect();
        let (mut frames, mut sounds) = (&frames[..], &sounds[..]);
        // one by one, until one of them ends
        while let ([frame, later_frames @ ..], [sound, later_sounds @ ..]) = (frames, sounds) {
            let at = self.positions.len();
            if frame[0] <= sound[0] {
                self.expect_at(at, video_token)?;
                self.positions.push(*frame);
                frames = later_frames;
            } else {
                self.expect_at(at, audio_token)?;
                self.positions.push(*sound);
                sounds = later_sounds;
            }
        }
        self.expect(video_token, frames.len())?;
        let last = if frames.is_empty() { sounds } else { frames };
        if frames.is_empty() {
            self.expect(audio_token, sounds.len())?;
        }
        if !last.is_empty() {
            self.next = highest(last) + 1.0;
        }
        self.positions.extend_from_slice(last);
        // two end markers
        for _ in 0..2.min(self.ids.len() - self.positions.len()) {
            self.advance();
        }
        Ok(())
    }
}

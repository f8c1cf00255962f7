//! Where each token of a prompt is in time, height and width.

use segpack_manifests::families::{AudioTokens, MediaFacts, MediaTokens};

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
        check_taken(facts, features)?;
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
            per_second: facts.positions_per_second.unwrap_or(1) as f32, // 1: there are no videos
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

/// The model takes what there is.
fn check_taken(facts: &MediaFacts, features: &MediaFeatures) -> Result<(), MediaError> {
    if !features.audio.lengths.is_empty() && facts.audio.is_none() {
        return Err(MediaError::ImagesAlone { medium: "audio" });
    }
    if !features.videos.grids.is_empty() && facts.positions_per_second.is_none() {
        return Err(MediaError::ImagesAlone { medium: "videos" });
    }
    Ok(())
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
            let audio = self.tokens.audio;
            if let Some(audio) = audio.filter(|audio| self.is_audio_in_video(*audio)) {
                self.audio_in_video(audio)?;
            } else if audio.is_some_and(|audio| audio.row == id) {
                self.audio(id)?;
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
        let Some(audio) = self.tokens.audio else {
            return;
        };
        let after = self.ids.get(self.positions.len() + 1);
        let is_empty = self.rows.audio.get(self.done[0]) == Some(&0);
        if id == audio.start && after == Some(&audio.end) && is_empty {
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

    fn audio(&mut self, row: u32) -> Result<(), MediaError> {
        let (number, count) = self.take(0);
        let count = count.max(1);
        self.expect((row, "audio", number), count)?;
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
    fn is_audio_in_video(&self, audio: AudioTokens) -> bool {
        let at = self.positions.len();
        let markers = [self.tokens.vision_start, audio.start];
        let is_video = self.done[2] < self.rows.videos.len();
        self.features.use_audio_in_video && is_video && self.ids[at..].starts_with(&markers)
    }

    /// Frames and sound begin at the same position and are in the order of their times, frames first
    /// where they are the same. What follows continues after the highest place of the last run, that
    /// is of what is left of one when the other ends: not after the highest of both.
    fn audio_in_video(&mut self, audio: AudioTokens) -> Result<(), MediaError> {
        (0..2).for_each(|_| self.advance());
        let ((video, _), (clip, sounds)) = (self.take(2), self.take(0));
        let (video_token, audio_token) = (
            (self.tokens.video, "video", video),
            (audio.row, "audio", clip),
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

#[cfg(test)]
mod tests {
    use segpack_manifests::families::Family;

    use super::*;

    /// Of `tiny-omni`: 13 positions a second, squares of 2 patches.
    fn facts() -> MediaFacts {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/tiny-omni/config.json"
        );
        let config = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let family = Family::of_config(&config).unwrap();
        family.media_facts(&config).unwrap().unwrap()
    }

    const TEXT: u32 = 7;
    const IMAGE: u32 = 291;
    const VIDEO: u32 = 292;
    const AUDIO: u32 = 298;

    fn layout(ids: &[u32], features: &MediaFeatures) -> Result<Vec<Place>, MediaError> {
        Layout::of(&facts(), ids, features).map(|layout| layout.positions)
    }

    fn ids(parts: &[(u32, usize)]) -> Vec<u32> {
        let parts = parts.iter();
        parts.flat_map(|(id, count)| vec![*id; *count]).collect()
    }

    #[test]
    fn two_images_and_a_video_continue_behind_their_highest_places() {
        let mut features = MediaFeatures::default();
        features.images.grids = vec![[1, 2, 6], [1, 4, 2]];
        features.videos.grids = vec![[2, 2, 2]];
        features.second_per_grid = vec![0.75];
        let parts = [
            (TEXT, 1),
            (IMAGE, 3),
            (IMAGE, 2),
            (TEXT, 1),
            (VIDEO, 2),
            (TEXT, 2),
        ];
        let places = layout(&ids(&parts), &features).unwrap();
        assert_eq!(
            places,
            [
                [0.0, 0.0, 0.0],
                [1.0, 1.0, 1.0],
                [1.0, 1.0, 2.0],
                [1.0, 1.0, 3.0],
                [4.0, 4.0, 4.0],
                [4.0, 5.0, 4.0],
                [6.0, 6.0, 6.0],
                [7.0, 7.0, 7.0],
                [16.75, 7.0, 7.0],
                [17.75, 17.75, 17.75],
                [18.75, 18.75, 18.75],
            ]
        );
        let layout = Layout { positions: places };
        assert_eq!(layout.rope_delta(), 19.75 - 11.0);
    }

    #[test]
    fn frames_and_sound_are_in_the_order_of_their_times_and_text_follows_the_last_run() {
        let mut features = MediaFeatures {
            use_audio_in_video: true,
            ..MediaFeatures::default()
        };
        // a frame of 1 x 8 squares, wider than the sound is long
        features.videos.grids = vec![[1, 2, 16]];
        features.second_per_grid = vec![1.0];
        features.audio.lengths = vec![16]; // 2 tokens
        let parts = [
            (288, 1),
            (293, 1),
            (VIDEO, 8),
            (AUDIO, 2),
            (294, 1),
            (289, 1),
            (TEXT, 1),
        ];
        let prompt = ids(&parts);
        let places = layout(&prompt, &features).unwrap();
        assert_eq!(places[2..4], [[2.0, 2.0, 2.0], [2.0, 2.0, 3.0]]);
        assert_eq!(places[9..12], [[2.0, 2.0, 9.0], [2.0; 3], [3.0; 3]]);
        // behind the two tokens of sound, not behind column 9
        assert_eq!(places[12..], [[4.0; 3], [5.0; 3], [6.0; 3]]);
        // the other order is none of an official processor
        let mut other = prompt.clone();
        other.swap(2, 11);
        let seen = layout(&other, &features);
        assert!(matches!(
            seen,
            Err(MediaError::Apart {
                at: 2,
                medium: "video",
                ..
            })
        ));
        // without the flag the two stand apart
        features.use_audio_in_video = false;
        assert_eq!(
            layout(&prompt, &features).unwrap()[12..],
            [[12.0; 3], [13.0; 3], [14.0; 3]]
        );
    }

    #[test]
    fn text_and_sound_alone_count_up() {
        let mut features = MediaFeatures::default();
        features.audio.lengths = vec![100, 0, 9];
        let parts = [
            (TEXT, 2),
            (293, 1),
            (AUDIO, 13),
            (294, 1),
            (293, 1),
            (294, 1),
            (AUDIO, 2),
        ];
        let places = layout(&ids(&parts), &features).unwrap();
        for (place, wanted) in places.iter().zip(0_u8..) {
            assert_eq!(place, &[f32::from(wanted); 3]);
        }
        assert_eq!(Layout { positions: places }.rope_delta(), 0.0);
    }

    #[test]
    fn a_model_of_images_alone_takes_nothing_else() {
        let mut of_images = facts();
        (of_images.audio, of_images.tokens.audio) = (None, None);
        of_images.positions_per_second = None;
        let mut features = MediaFeatures::default();
        features.images.grids = vec![[1, 2, 4]];
        // an id that stands for audio elsewhere is a word here
        let prompt = ids(&[(AUDIO, 1), (IMAGE, 2), (TEXT, 1)]);
        let places = Layout::of(&of_images, &prompt, &features)
            .unwrap()
            .positions;
        assert_eq!(
            places,
            [[0.0; 3], [1.0; 3], [1.0, 1.0, 2.0], [3.0, 3.0, 3.0]]
        );
        let refused = |features: &MediaFeatures| Layout::of(&of_images, &prompt, features);
        let mut with_sound = features.clone();
        with_sound.audio.lengths = vec![8];
        let mut with_video = features.clone();
        with_video.videos.grids = vec![[1, 2, 2]];
        with_video.second_per_grid = vec![1.0];
        for (features, medium) in [(with_sound, "audio"), (with_video, "videos")] {
            let wanted = MediaError::ImagesAlone { medium };
            assert_eq!(refused(&features).unwrap_err(), wanted);
        }
    }

    #[test]
    fn placeholders_and_features_are_as_many() {
        let mut features = MediaFeatures::default();
        features.images.grids = vec![[1, 2, 4]];
        let of = |parts: &[(u32, usize)], features: &MediaFeatures| layout(&ids(parts), features);
        assert!(of(&[(IMAGE, 2)], &features).is_ok());
        for parts in [
            &[(IMAGE, 1)][..],
            &[(IMAGE, 3)],
            &[(TEXT, 2)],
            &[(IMAGE, 2), (AUDIO, 1)],
        ] {
            let seen = of(parts, &features);
            assert!(
                matches!(seen, Err(MediaError::Placeholders { .. })),
                "{seen:?}"
            );
        }
        // as many, but with a word between them
        let seen = of(&[(IMAGE, 1), (TEXT, 1), (IMAGE, 1)], &features);
        assert!(
            matches!(
                seen,
                Err(MediaError::Apart {
                    at: 1,
                    seen: TEXT,
                    ..
                })
            ),
            "{seen:?}"
        );
        features.images.grids = vec![[1, 3, 4]];
        assert!(matches!(
            of(&[(IMAGE, 2)], &features),
            Err(MediaError::Grid { .. })
        ));
        features.images.grids = vec![[usize::MAX, 4, 4]];
        assert!(of(&[(IMAGE, 2)], &features).is_err());
        features.images.grids.clear();
        features.videos.grids = vec![[1, 2, 2]];
        for (seconds, is_sound) in [(vec![], false), (vec![f32::NAN], false), (vec![1.0], true)] {
            features.second_per_grid = seconds;
            assert_eq!(of(&[(VIDEO, 1)], &features).is_ok(), is_sound);
        }
    }
}

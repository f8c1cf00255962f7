//! Placeholders of media in a text: each becomes as many as the encoders give rows.

use serde_json::Value;

use super::{MediaError, MediaKind};

/// Positions of a second (`Qwen3OmniMoeProcessor.position_id_per_seconds`): tokens of audio.
const TOKENS_PER_SECOND: f64 = 13.0;

/// How media are marked in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholders {
    /// A token of an image.
    pub image: String,
    /// A token of a video.
    pub video: String,
    /// Those of audio; `None` where the model takes none.
    pub audio: Option<AudioMarks>,
}

/// How audio is marked in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AudioMarks {
    /// A token of audio.
    pub token: String,
    /// Before the tokens of a video with sound.
    pub start: String,
    /// After the tokens of a video with sound.
    pub end: String,
}

/// What stands in a text for one of the media.
#[derive(Debug, Clone, PartialEq)]
pub enum Replacement {
    /// So many tokens of its kind.
    Tokens(usize),
    /// A video with its sound.
    Interleaved {
        /// Tokens of each temporal patch.
        tokens_per_patch: usize,
        /// Temporal patches.
        patches: usize,
        /// Seconds between two of them.
        seconds: f64,
        /// Tokens of the sound.
        audio: usize,
    },
}

impl Replacement {
    /// Tokens of the media, without the marks around a video with sound.
    pub fn tokens(&self) -> usize {
        match *self {
            Self::Tokens(tokens) => tokens,
            Self::Interleaved {
                tokens_per_patch,
                patches,
                audio,
                ..
            } => tokens_per_patch * patches + audio,
        }
    }
}

impl Placeholders {
    /// Those of `tokenizer_config.json`; `None` where a tokenizer knows none of them.
    ///
    /// # Errors
    /// `Token` where it knows only some.
    pub fn of(config: &Value) -> Result<Option<Self>, MediaError> {
        let get = |key| token(config, key).ok_or(MediaError::Token { key });
        let known = ["image_token", "video_token", "audio_token"];
        if known.iter().all(|key| token(config, key).is_none()) {
            return Ok(None);
        }
        Ok(Some(Self {
            image: get("image_token")?,
            video: get("video_token")?,
            audio: Some(AudioMarks {
                token: get("audio_token")?,
                start: get("audio_bos_token")?,
                end: get("audio_eos_token")?,
            }),
        }))
    }

    /// Those of images and videos: of `tokenizer_config.json`, or else these.
    ///
    /// Source: `Qwen3VLProcessor.__init__`, transformers 5.23.
    pub fn of_pictures(config: &Value, [image, video]: [&str; 2]) -> Self {
        let or = |key, default: &str| token(config, key).unwrap_or_else(|| default.to_owned());
        Self {
            image: or("image_token", image),
            video: or("video_token", video),
            audio: None,
        }
    }

    /// Each with what it stands for.
    pub fn all(&self) -> impl Iterator<Item = (MediaKind, &str)> {
        let audio = self.audio.as_ref().map(|audio| &audio.token);
        let all = MediaKind::ALL.map(|kind| match kind {
            MediaKind::Image => Some((kind, self.image.as_str())),
            MediaKind::Video => Some((kind, self.video.as_str())),
            MediaKind::Audio => Some((kind, audio?.as_str())),
        });
        all.into_iter().flatten()
    }

    /// The text with every placeholder replaced, in the order of the media of its kind.
    ///
    /// # Errors
    /// `Count` where there are more placeholders of a kind than media, or fewer.
    pub fn expand(
        &self,
        text: &str,
        replacements: &[(MediaKind, Replacement)],
    ) -> Result<String, MediaError> {
        for (kind, placeholder) in self.all() {
            let in_text = text.matches(placeholder).count();
            let given = replacements.iter().filter(|(k, _)| *k == kind).count();
            if in_text != given {
                return Err(MediaError::Count {
                    kind,
                    placeholder: placeholder.to_owned(),
                    in_text,
                    given,
                });
            }
        }
        let mut next = MediaKind::ALL.map(|kind| {
            let of_kind = replacements.iter().filter(move |(k, _)| *k == kind);
            (kind, of_kind.map(|(_, replacement)| replacement))
        });
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((at, (kind, placeholder))) = self.first_in(rest) {
            expanded.push_str(&rest[..at]);
            let replacement = next.iter_mut().find(|(k, _)| *k == kind);
            if let Some(replacement) = replacement.and_then(|(_, of_kind)| of_kind.next()) {
                self.push(&mut expanded, placeholder, replacement)?;
            }
            rest = &rest[at + placeholder.len()..];
        }
        expanded.push_str(rest);
        Ok(expanded)
    }

    fn first_in(&self, text: &str) -> Option<(usize, (MediaKind, &str))> {
        let found = self.all().filter_map(|one| Some((text.find(one.1)?, one)));
        found.min_by_key(|(at, _)| *at)
    }

    fn push(
        &self,
        text: &mut String,
        placeholder: &str,
        replacement: &Replacement,
    ) -> Result<(), MediaError> {
        match (replacement, &self.audio) {
            (Replacement::Tokens(count), _) => text.push_str(&placeholder.repeat(*count)),
            (Replacement::Interleaved { .. }, None) => {
                return Err(MediaError::Token { key: "audio_token" });
            }
            (
                &Replacement::Interleaved {
                    tokens_per_patch,
                    patches,
                    seconds,
                    audio,
                },
                Some(marks),
            ) => {
                text.push_str(&marks.start);
                let mut sounded = 0;
                for patch in 0..patches {
                    #[expect(clippy::cast_precision_loss, reason = "a small number")]
                    let time = patch as f64 * seconds * TOKENS_PER_SECOND;
                    // video comes first where both have the same time
                    let before = audio_before(time).clamp(sounded, audio.max(sounded));
                    text.push_str(&marks.token.repeat(before - sounded));
                    text.push_str(&placeholder.repeat(tokens_per_patch));
                    sounded = before;
                }
                text.push_str(&marks.token.repeat(audio.saturating_sub(sounded)));
                text.push_str(&marks.end);
            }
        }
        Ok(())
    }
}

/// Tokens of audio, one for each position from 0, that are before `time`.
fn audio_before(time: f64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a time that is not negative; beyond all numbers it saturates"
    )]
    let before = time.ceil() as usize;
    before
}

/// A token by its name: as text or with its attributes, by itself or among the model's own.
fn token(config: &Value, key: &str) -> Option<String> {
    let found = [Some(config), config.get("extra_special_tokens")];
    found.into_iter().flatten().find_map(|object| {
        let value = object.get(key)?;
        let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
        (!text.is_empty()).then(|| text.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn placeholders() -> Placeholders {
        Placeholders::of(&json!({
            "image_token": "<i>", "video_token": {"content": "<v>"},
            "extra_special_tokens": {"audio_token": "<a>", "audio_bos_token": "(", "audio_eos_token": ")"}
        }))
        .unwrap()
        .unwrap()
    }

    use MediaKind::{Audio, Image, Video};
    use Replacement::Tokens;

    #[test]
    fn placeholders_are_replaced_in_the_order_of_each_kind() {
        let given = [
            (Audio, Tokens(2)),
            (Image, Tokens(3)),
            (Audio, Tokens(0)),
            (Video, Tokens(1)),
        ];
        let expanded = placeholders().expand("x<i>y<a><v><a>z", &given).unwrap();
        assert_eq!(expanded, "x<i><i><i>y<a><a><v>z");
    }

    #[test]
    fn more_or_fewer_placeholders_than_media_are_refused() {
        for (text, given, wanted) in [
            ("<i><i>", vec![(Image, Tokens(1))], "has 2 <i> and 1 image"),
            ("", vec![(Audio, Tokens(1))], "has 0 <a> and 1 audio"),
            ("say <v>", vec![], "has 1 <v> and 0 video"),
        ] {
            let error = placeholders().expand(text, &given).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    /// As the official loop: tokens of both in the order of their times, video first on ties.
    fn interleaved(tokens_per_patch: usize, patches: usize, seconds: f64, audio: usize) -> String {
        let (mut video, mut sound, mut text) = (0, 0, String::from("("));
        while video < tokens_per_patch * patches && sound < audio {
            let time = (video / tokens_per_patch) as f64 * seconds * 13.0;
            if time <= sound as f64 {
                text += "<v>";
                video += 1;
            } else {
                text += "<a>";
                sound += 1;
            }
        }
        text += &"<v>".repeat(tokens_per_patch * patches - video);
        text + &"<a>".repeat(audio - sound) + ")"
    }

    #[test]
    fn sound_is_interleaved_by_time() {
        for (tokens_per_patch, patches, seconds, audio) in [
            (2, 3, 1.0, 39),
            (1, 4, 2.0 / 3.0, 10),
            (5, 2, 0.25, 1),
            (3, 9, 1.0, 20),
            (3, 1, 1.0, 0),
            (1, 3, 2.0, 100),
        ] {
            let replacement = Replacement::Interleaved {
                tokens_per_patch,
                patches,
                seconds,
                audio,
            };
            let seen = placeholders()
                .expand("<v>", &[(Video, replacement)])
                .unwrap();
            assert_eq!(seen, interleaved(tokens_per_patch, patches, seconds, audio));
        }
    }

    #[test]
    fn marks_of_pictures_are_the_tokenizers_or_the_usual_ones() {
        let usual = ["<|i|>", "<|v|>"];
        let found = Placeholders::of_pictures(&json!({"video_token": "<w>"}), usual);
        assert_eq!((&*found.image, &*found.video), ("<|i|>", "<w>"));
        // without marks of audio those of other models are words
        let expanded = found.expand("<a><|i|>", &[(Image, Tokens(2))]).unwrap();
        assert_eq!(expanded, "<a><|i|><|i|>");
        let sounding = Replacement::Interleaved {
            tokens_per_patch: 1,
            patches: 1,
            seconds: 1.0,
            audio: 1,
        };
        assert!(found.expand("<w>", &[(Video, sounding)]).is_err());
    }

    #[test]
    fn a_tokenizer_that_knows_only_some_is_refused() {
        assert_eq!(Placeholders::of(&json!({"eos_token": "x"})).unwrap(), None);
        let error = Placeholders::of(&json!({"image_token": "<i>"})).unwrap_err();
        assert!(error.to_string().contains("video_token"), "{error}");
    }
}

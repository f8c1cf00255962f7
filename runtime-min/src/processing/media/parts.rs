//! Audio, images and videos among the parts of a chat's messages.

use std::fmt;

use serde_json::{Map, Value};

use super::source::References;
use super::{MediaError, MediaSource};

/// What a part of a prompt is, if it is not text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MediaKind {
    /// A sound.
    Audio,
    /// A still image.
    Image,
    /// A video.
    Video,
}

impl MediaKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Audio, Self::Image, Self::Video];

    /// The word for it, which is the type of such a part.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Audio => "audio",
            Self::Image => "image",
            Self::Video => "video",
        }
    }

    /// The types and keys that chats have for it.
    fn keys(self) -> [&'static str; 2] {
        match self {
            Self::Audio => ["audio", "audio_url"],
            Self::Image => ["image", "image_url"],
            Self::Video => ["video", "video_url"],
        }
    }
}

impl fmt::Display for MediaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One of the media of a prompt.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MediaPart {
    /// What it is.
    pub kind: MediaKind,
    /// Where it is.
    pub source: MediaSource,
    /// Everything else that the chat says of it, such as `min_pixels`, which the model card's recipe
    /// takes from there.
    pub options: Map<String, Value>,
}

/// The media of a chat's messages.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// In the order of the chat.
    pub(crate) media: Vec<MediaPart>,
    /// Whether messages were changed.
    pub(crate) is_rewritten: bool,
}

/// Finds the media in a chat's messages. Parts that a chat template would not know become
/// `{"type": KIND, KIND: …}`.
///
/// # Errors
/// `Part` where a part is neither text nor media, or says two things at once; what
/// [`References::resolve`] returns.
pub(crate) fn find_parts(
    messages: &mut Value,
    references: References<'_>,
) -> Result<Parts, MediaError> {
    let mut found = Parts::default();
    // what is no list of messages is refused by the template
    let messages = messages.as_array_mut().map(Vec::as_mut_slice);
    for (message, content) in messages.unwrap_or_default().iter_mut().enumerate() {
        let parts = content.get_mut("content").and_then(Value::as_array_mut);
        let parts = parts.map(Vec::as_mut_slice).unwrap_or_default();
        for (number, part) in parts.iter_mut().enumerate() {
            let wrong = |problem| MediaError::Part {
                message,
                part: number,
                problem,
            };
            let Some(object) = part.as_object() else {
                continue; // text in a list
            };
            let Some(kind) = kind_of(object).map_err(wrong)? else {
                continue;
            };
            let (reference, options) = reference_of(kind, object).map_err(wrong)?;
            let source = reference.source(references)?;
            let own = object.get("type").and_then(Value::as_str) == Some(kind.as_str());
            if !own && !object.contains_key(kind.as_str()) {
                *part =
                    serde_json::json!({"type": kind.as_str(), kind.as_str(): reference.value()});
                found.is_rewritten = true;
            }
            found.media.push(MediaPart {
                kind,
                source,
                options,
            });
        }
    }
    Ok(found)
}

/// What a part is; `None`: text.
fn kind_of(part: &Map<String, Value>) -> Result<Option<MediaKind>, String> {
    let by_type = match part.get("type") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) if name == "text" => None,
        Some(Value::String(name)) => {
            let kind = MediaKind::ALL
                .into_iter()
                .find(|k| k.keys().contains(&name.as_str()));
            let unknown = || {
                format!(
                    "is of type {name:?}: text, audio, image, video and audio_url, image_url, \
                     video_url are known"
                )
            };
            Some(kind.ok_or_else(unknown)?)
        }
        Some(_) => return Err("has a type that is no text".to_owned()),
    };
    let has = |key: &str| part.get(key).is_some_and(|value| !value.is_null());
    let by_key: Vec<MediaKind> = MediaKind::ALL
        .into_iter()
        .filter(|kind| kind.keys().into_iter().any(has))
        .collect();
    let named = |kinds: &[MediaKind]| {
        let names: Vec<_> = kinds.iter().map(|kind| kind.as_str()).collect();
        names.join(" and ")
    };
    match (by_type, by_key.as_slice()) {
        (Some(kind), []) => Ok(Some(kind)),
        (Some(kind), [other]) if kind == *other => Ok(Some(kind)),
        (None, [kind]) if !has("text") => Ok(Some(*kind)),
        (None, []) if has("text") => Ok(None),
        (None, []) => Err("is an object without \"text\"".to_owned()),
        (Some(kind), others) => Err(format!(
            "is of type {kind}, with a key for {}",
            named(others)
        )),
        (None, others) => Err(format!("is text, with a key for {}", named(others))),
    }
}

/// Where one of the media is, as a part says it.
enum Reference {
    One(String),
    /// A video as a list of pictures.
    Frames(Vec<String>),
}

impl Reference {
    fn source(&self, references: References<'_>) -> Result<MediaSource, MediaError> {
        match self {
            Self::One(text) => references.resolve(text),
            Self::Frames(texts) => {
                let frames = texts.iter().map(|text| references.resolve(text));
                Ok(MediaSource::Frames(frames.collect::<Result<_, _>>()?))
            }
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::One(text) => text.as_str().into(),
            Self::Frames(texts) => texts.as_slice().into(),
        }
    }
}

/// Most pictures of a video that is a list: as of a folder.
const MAX_FRAMES: usize = 10_000;

/// A list of addresses of pictures; `None`: it is no such list.
fn frames_of(kind: MediaKind, value: &Value) -> Option<Vec<String>> {
    let list = value.as_array().filter(|_| kind == MediaKind::Video)?;
    if list.is_empty() || list.len() > MAX_FRAMES {
        return None;
    }
    let texts = list.iter().map(|frame| frame.as_str().map(str::to_owned));
    texts.collect()
}

/// Where one of the media is, and what else the part says.
fn reference_of(
    kind: MediaKind,
    part: &Map<String, Value>,
) -> Result<(Reference, Map<String, Value>), String> {
    let [own, url_of_own] = kind.keys();
    let places = [own, url_of_own, "url", "path"];
    let is_place = |key: &str| places.contains(&key);
    let given: Vec<_> = part
        .iter()
        .filter(|(key, value)| is_place(key) && !value.is_null())
        .collect();
    let (key, value) = match given.as_slice() {
        [one] => *one,
        [] => return Err(format!("is {kind} without a path: give it as {own:?}")),
        _ => return Err(format!("is {kind} with several paths")),
    };
    // OpenAI's clients write an object around an address
    let text = value.as_str().or_else(|| value.get("url")?.as_str());
    let reference = match (text, frames_of(kind, value)) {
        (Some(text), _) => Reference::One(text.to_owned()),
        (None, Some(frames)) => Reference::Frames(frames),
        (None, None) if kind == MediaKind::Video => {
            return Err(format!(
                "is video whose {key:?} is no path or address, nor a list of 1 to {MAX_FRAMES} of \
                 pictures"
            ));
        }
        (None, None) => return Err(format!("is {kind} whose {key:?} is no path or address")),
    };
    let options = part
        .iter()
        .filter(|(key, _)| !is_place(key) && *key != "type");
    let options = options.map(|(key, value)| (key.clone(), value.clone()));
    Ok((reference, options.collect()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use segpack_formats::FormatError;
    use serde_json::json;

    use super::super::FetchMedia;
    use super::*;

    /// A server that has this much at every address.
    #[derive(Debug)]
    struct Served(&'static [u8]);

    impl FetchMedia for Served {
        fn fetch(&self, _: &str) -> Result<Vec<u8>, FormatError> {
            Ok(self.0.to_vec())
        }
    }

    fn chats() -> References<'static> {
        References {
            folder: Path::new("/chats"),
            fetch: None,
        }
    }

    #[test]
    fn addresses_are_fetched_where_somebody_may_and_nothing_else_is() {
        let content = json!([
            {"type": "image_url", "image_url": {"url": "https://a/b.png?key=secret"}},
            {"type": "image", "image": "c.png"},
            {"type": "video", "video": ["HTTP://a/1.png", "2.png"]},
        ]);
        let mut messages = json!([{"role": "user", "content": content}]);
        assert!(find_parts(&mut messages.clone(), chats()).is_err());
        let served = Served(b"bytes");
        let fetch = Some(&served as &dyn FetchMedia);
        let references = References { fetch, ..chats() };
        let parts = find_parts(&mut messages, references).unwrap().media;
        let bytes = |name: &str| MediaSource::Bytes {
            name: name.to_owned(),
            bytes: b"bytes".to_vec().into(),
        };
        assert_eq!(parts[0].source, bytes("https://a/b.png"));
        assert_eq!(parts[1].source, MediaSource::Path("/chats/c.png".into()));
        let frames = vec![
            bytes("HTTP://a/1.png"),
            MediaSource::Path("/chats/2.png".into()),
        ];
        assert_eq!(parts[2].source, MediaSource::Frames(frames));
    }

    #[expect(clippy::needless_pass_by_value, reason = "literals")]
    fn take(content: Value) -> Result<(Vec<MediaPart>, Value), String> {
        let mut messages = json!([{"role": "user", "content": content}]);
        let parts = find_parts(&mut messages, chats());
        let parts = parts.map_err(|e| e.to_string())?;
        Ok((parts.media, messages[0]["content"].take()))
    }

    #[test]
    fn parts_are_found_in_every_spelling() {
        let (parts, left) = take(json!([
            {"type": "text", "text": "See "},
            {"type": "image", "image": "a.png", "max_pixels": 5, "video": null},
            {"type": "image", "url": "b.png"},
            {"type": "image_url", "image_url": {"url": "file:///c.png"}},
            {"type": "audio", "path": "d.wav"},
            {"audio_url": "e.wav"},
            {"type": "video", "video": "f.mp4"},
            "and text",
        ]))
        .unwrap();
        let found: Vec<_> = parts
            .iter()
            .map(|p| (p.kind.as_str(), p.source.name()))
            .collect();
        assert_eq!(
            found,
            [
                ("image", "/chats/a.png".to_owned()),
                ("image", "/chats/b.png".to_owned()),
                ("image", "/c.png".to_owned()),
                ("audio", "/chats/d.wav".to_owned()),
                ("audio", "/chats/e.wav".to_owned()),
                ("video", "/chats/f.mp4".to_owned()),
            ]
        );
        assert_eq!(parts[0].options["max_pixels"], 5);
        assert_eq!(left[5], json!({"type": "audio", "audio": "e.wav"}));
        assert_eq!(left[0], json!({"type": "text", "text": "See "}));
    }

    #[test]
    fn a_list_of_pictures_is_a_video() {
        let (parts, left) = take(json!([
            {"type": "video", "video": ["a.png", "file:///b.png"], "min_pixels": 3},
            {"video_url": ["c.png"]},
        ]))
        .unwrap();
        let frames = |names: &[&str]| {
            let frames = names.iter().map(|name| MediaSource::Path(name.into()));
            MediaSource::Frames(frames.collect())
        };
        assert_eq!(parts[0].source, frames(&["/chats/a.png", "/b.png"]));
        assert_eq!(parts[0].options["min_pixels"], 3);
        assert_eq!(parts[1].source, frames(&["/chats/c.png"]));
        assert_eq!(left[1], json!({"type": "video", "video": ["c.png"]}));
        assert_eq!(parts[0].source.name(), "of 2 pictures, /chats/a.png first");
    }

    #[test]
    fn a_chat_of_text_stays_as_it_is() {
        for content in [
            json!("Hi"),
            json!([{"type": "text", "text": "Hi"}, {"text": "Ho"}]),
        ] {
            let (parts, left) = take(content.clone()).unwrap();
            assert_eq!((parts.len(), left), (0, content));
        }
    }

    #[test]
    fn parts_that_are_nothing_or_two_things_are_refused() {
        let cases = [
            (json!({"type": "thought"}), "is of type \"thought\""),
            (json!({"type": 5}), "has a type that is no text"),
            (json!({}), "is an object without \"text\""),
            (json!({"type": "text"}), "is an object without \"text\""),
            (
                json!({"type": "text", "text": "a", "video": "b"}),
                "is text, with a key for video",
            ),
            (
                json!({"audio": "a", "image": "b"}),
                "is text, with a key for audio and image",
            ),
            (
                json!({"type": "image", "audio": "b"}),
                "is of type image, with a key for audio",
            ),
            (
                json!({"type": "image"}),
                "is image without a path: give it as \"image\"",
            ),
            (
                json!({"type": "image", "image": "a", "url": "b"}),
                "is image with several paths",
            ),
            (
                json!({"type": "video", "video": ["a", 5]}),
                "whose \"video\" is no path or address, nor a list of 1 to 10000 of pictures",
            ),
            (
                json!({"type": "video", "video": []}),
                "nor a list of 1 to 10000 of pictures",
            ),
            (
                json!({"type": "image", "image": ["a", "b"]}),
                "whose \"image\" is no path or address",
            ),
        ];
        for (part, wanted) in cases {
            let error = take(json!([{"type": "text", "text": "x"}, part])).unwrap_err();
            assert!(error.starts_with("part 1 of message 0"), "{error}");
            assert!(error.contains(wanted), "{error}");
        }
    }
}

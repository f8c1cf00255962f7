//! Words: the open vocabulary of a pack.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{PoisonError, RwLock};

/// The longest word, in bytes.
pub const MAX_WORD_BYTES: usize = 64;

/// How many different words are remembered by one process: as many as 16 bits can number, 4 MiB of
/// them.
const MAX_WORDS: usize = 1 << 16;

/// The words that were met so far, each kept for the life of the process.
static WORDS: RwLock<Vocabulary> = RwLock::new(Vocabulary {
    texts: Vec::new(),
    numbers: BTreeMap::new(),
});

struct Vocabulary {
    /// By number.
    texts: Vec<&'static str>,
    numbers: BTreeMap<&'static str, u16>,
}

/// A word of a document's vocabulary: 1 to 64 bytes of `a-z`, `0-9`, `_`, `.` and `-`, beginning
/// and ending with a letter or digit, without `..`. Such a word is safe as part of a file name.
///
/// A word is a handle of two bytes, since every tensor of a checkpoint has several: cheap to copy,
/// compared and ordered by its text. A text that is new is kept for the life of the process, once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Word(u16);

/// A text that is no [`Word`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WordError {
    /// Its characters or its length are not those of a word.
    #[error(
        "{found:?} is not a word: wanted 1 to {MAX_WORD_BYTES} of a-z, 0-9, _, . and -, beginning \
         and ending with a letter or digit, without .."
    )]
    Malformed {
        /// The text, cut short.
        found: String,
    },
    /// This process has seen too many different words already.
    #[error("{found:?} is one unknown word more than the {MAX_WORDS} that are remembered")]
    TooMany {
        /// The word.
        found: String,
    },
}

impl Word {
    /// Its text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let words = WORDS.read().unwrap_or_else(PoisonError::into_inner);
        words.texts[usize::from(self.0)]
    }
}

impl FromStr for Word {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        if !is_word(text) {
            let found = text.chars().take(MAX_WORD_BYTES).collect();
            return Err(WordError::Malformed { found });
        }
        let mut words = WORDS.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = words.numbers.get(text) {
            return Ok(Self(*number));
        }
        let Ok(number) = u16::try_from(words.texts.len()) else {
            let found = text.to_owned();
            return Err(WordError::TooMany { found });
        };
        let kept: &'static str = Box::leak(text.to_owned().into_boxed_str());
        words.texts.push(kept);
        words.numbers.insert(kept, number);
        Ok(Self(number))
    }
}

impl Ord for Word {
    fn cmp(&self, other: &Self) -> Ordering {
        match self.0 == other.0 {
            true => Ordering::Equal,
            false => self.as_str().cmp(other.as_str()),
        }
    }
}

impl PartialOrd for Word {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn is_word(text: &str) -> bool {
    let inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-');
    let outer = |byte: Option<u8>| byte.is_some_and(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'));
    let (first, last) = (text.bytes().next(), text.bytes().last());
    let ends = outer(first) && outer(last) && text.len() <= MAX_WORD_BYTES;
    ends && text.bytes().all(inner) && !text.contains("..")
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A closed-looking enum over an open vocabulary: every variant but `Other` is a word that this
/// build knows; `Other` is any other word, carried through and shown. `Display` prints what the
/// method named after `display` returns.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident, display $display:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
            /// A word that this build does not know; a newer one may.
            Other($crate::names::Word),
        }

        impl $name {
            /// Every word that this build knows, in order.
            pub const KNOWN: &'static [Self] = &[$(Self::$variant),+];

            /// The word used in documents and on the command line.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                    Self::Other(word) => word.as_str(),
                }
            }

            /// Whether this build knows the word.
            #[must_use]
            pub const fn is_known(self) -> bool {
                !matches!(self, Self::Other(_))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.$display())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::names::WordError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => other.parse().map(Self::Other),
                }
            }
        }

        $crate::names::word::serde_as_word!($name, [$($text),+].to_vec());
    };
}
pub(crate) use words;

/// Documents hold the word; the schema names those that are known, and lets others pass.
macro_rules! serde_as_word {
    ($name:ident, $known:expr) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "pattern": "^[a-z0-9]([a-z0-9_.-]*[a-z0-9])?$",
                    "maxLength": $crate::names::MAX_WORD_BYTES,
                    "examples": $known
                })
            }
        }
    };
}
pub(crate) use serde_as_word;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_safe_in_a_file_name() {
        let longest = "a".repeat(MAX_WORD_BYTES);
        for good in ["a", "0", "thinker.text", "qwen3_5-moe", "a.b.c", &longest] {
            assert_eq!(good.parse::<Word>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(MAX_WORD_BYTES + 1);
        for bad in [
            "", ".", "..", ".a", "a.", "-a", "_a", "a..b", "a/b", "a\\b", "A", "ä", "a b", "a\n",
            "a:b", &too_long,
        ] {
            let error = bad.parse::<Word>().unwrap_err();
            assert!(
                matches!(error, WordError::Malformed { .. }),
                "{bad:?}: {error}"
            );
        }
    }

    #[test]
    fn equal_texts_are_equal_words() {
        let (one, other): (Word, Word) = ("new.word".parse().unwrap(), "new.word".parse().unwrap());
        assert_eq!(one, other);
        assert!(std::ptr::eq(one.as_str(), other.as_str()));
        let (second, first): (Word, Word) = ("b".parse().unwrap(), "a".parse().unwrap());
        assert!(first < second && first.cmp(&first).is_eq());
        assert_eq!(format!("{one:>10}|{one:?}"), "  new.word|\"new.word\"");
    }
}

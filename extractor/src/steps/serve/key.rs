//! The key that requests have to show.

use std::path::Path;

use segpack_formats::digest::Sha256;
use segpack_formats::io::read_limited;
use subtle::ConstantTimeEq;

use super::ServeError;
use crate::steps::StepError;

/// The environment variable that may hold it.
const VARIABLE: &str = "SEGPACK_API_KEY";
/// Bytes of the longest.
const MAX_BYTES: usize = 1024;

/// A key, of which only the digest is kept.
#[derive(Clone)]
pub(crate) struct ApiKey(Sha256);

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey")
    }
}

impl ApiKey {
    /// The one line of a file.
    ///
    /// # Errors
    /// Where the file cannot be read, or holds no key.
    pub(crate) fn read(path: &Path) -> Result<Self, StepError> {
        let bytes = read_limited(path, MAX_BYTES as u64 + 2)?;
        let key = std::str::from_utf8(&bytes).ok().and_then(Self::of);
        match key {
            Some(key) => Ok(key),
            None => Err(ServeError::Key {
                path: path.to_owned(),
            }
            .into()),
        }
    }

    /// That of the environment, where there is one.
    ///
    /// # Errors
    /// Where the variable holds no key.
    pub(crate) fn of_environment() -> Result<Option<Self>, StepError> {
        let Some(value) = std::env::var_os(VARIABLE) else {
            return Ok(None);
        };
        let key = value.to_str().and_then(Self::of);
        let variable = VARIABLE;
        Ok(Some(key.ok_or(ServeError::KeyVariable { variable })?))
    }

    fn of(text: &str) -> Option<Self> {
        let key = text.strip_suffix('\n').unwrap_or(text);
        let key = key.strip_suffix('\r').unwrap_or(key);
        let is_key =
            (1..=MAX_BYTES).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        is_key.then(|| Self(Sha256::of(key.as_bytes())))
    }

    /// Whether a request shows it. Digests are compared, each byte of them, so that the time tells
    /// nothing of the key, nor of its length.
    pub(super) fn is(&self, shown: &[u8]) -> bool {
        self.0.0.ct_eq(&Sha256::of(shown).0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_line_of_visible_characters() {
        for text in ["secret", "secret\n", "secret\r\n"] {
            let key = ApiKey::of(text).unwrap();
            assert!(key.is(b"secret") && !key.is(b"secre") && !key.is(b""));
            assert_eq!(format!("{key:?}"), "ApiKey");
        }
        for text in ["", "\n", "a b", "a\nb\n", "é", &"a".repeat(1025)] {
            assert!(ApiKey::of(text).is_none(), "{text:?}");
        }
    }
}

//! SHA-256 (identity of bytes, what the hub publishes) and BLAKE3 (checked at every load).
//!
//! Both are written as 64 lower-case hex digits, the form that `sha256sum` and `b3sum` print.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod blake3_tree;
mod sha256;

pub use blake3_tree::{BLAKE3_CHUNK_BYTES, Blake3Part};
pub use sha256::{LANES, Sha256Hasher, Sha256Lanes};

/// A digest text that is not 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 lower-case hex digits, not {seen:?}")]
pub struct DigestParseError {
    seen: String,
}

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestParseError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let refuse = || DigestParseError { seen: text.chars().take(80).collect() };
                if text.len() != 64 || text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(refuse());
                }
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| refuse())?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

digest_type! {
    /// A SHA-256 digest (FIPS 180-4).
    Sha256
}
digest_type! {
    /// The state of SHA-256 between two blocks of a message (H0 to H7, big-endian): with the number
    /// of bytes before it, all that is needed to go on from there.
    Sha256Midstate
}
digest_type! {
    /// A BLAKE3 digest of the default 32 bytes.
    Blake3
}

/// BLAKE3 over bytes that come in pieces.
#[derive(Debug, Clone, Default)]
pub struct Blake3Hasher(blake3::Hasher);

impl Blake3Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Blake3 {
        Blake3(*self.0.finalize().as_bytes())
    }
}

impl Sha256 {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Sha256Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }
}

impl Blake3 {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_agree_with_published_vectors() {
        // FIPS 180-4 appendix B.1; BLAKE3's test_vectors.json, input_len 0
        assert_eq!(
            Sha256::of(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            Blake3::of(b"").to_string(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn a_digest_text_is_64_lower_case_hex_digits() {
        let good = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(good.parse::<Sha256>().unwrap().to_string(), good);
        for bad in [
            "",
            "00",
            &good.to_uppercase(),
            &good[..63],
            &good.replace('b', "g"),
        ] {
            assert!(bad.parse::<Sha256>().is_err(), "{bad:?}");
        }
    }
}

//! ECDSA keys of the three curves that OpenSSF's model signing takes, each with the SHA-2 of its
//! size: P-256 with SHA-256, P-384 with SHA-384, P-521 with SHA-512.

use std::fs;
use std::path::{Path, PathBuf};

use p256::ecdsa::signature::{Signer, Verifier};
use p256::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePublicKey, LineEnding};
use segpack_formats::digest::Sha256;

use super::SignError;
use crate::steps::StepError;

/// More than any key, or the certificates of any system, take as PEM.
const MAX_PEM_BYTES: u64 = 1 << 20;

macro_rules! curves {
    ($($curve:ident = $library:ident,)*) => {
        /// A private key.
        pub(super) enum PrivateKey {
            $($curve($library::ecdsa::SigningKey),)*
        }

        /// A public key.
        #[derive(Debug, Clone)]
        pub(in crate::steps) enum PublicKey {
            $($curve($library::ecdsa::VerifyingKey),)*
        }

        impl PrivateKey {
            /// PKCS#8 or SEC1, as PEM.
            fn of_pem(pem: &str) -> Option<Self> {
                $(
                    if let Ok(key) = $library::ecdsa::SigningKey::from_pkcs8_pem(pem) {
                        return Some(Self::$curve(key));
                    }
                    if let Ok(key) = $library::SecretKey::from_sec1_pem(pem) {
                        return Some(Self::$curve(key.into()));
                    }
                )*
                None
            }

            /// The key that its signatures are checked with.
            pub(super) fn public(&self) -> PublicKey {
                match self {
                    $(Self::$curve(key) => {
                        PublicKey::$curve($library::ecdsa::VerifyingKey::from(key))
                    })*
                }
            }

            /// A signature of a message, DER-encoded; always the same (RFC 6979).
            pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
                match self {
                    $(Self::$curve(key) => {
                        let signature: $library::ecdsa::Signature = key.sign(message);
                        signature.to_der().as_bytes().to_vec()
                    })*
                }
            }
        }

        impl PublicKey {
            /// A `SubjectPublicKeyInfo` as PEM.
            pub(super) fn of_pem(pem: &str) -> Option<Self> {
                $(
                    if let Ok(key) = $library::ecdsa::VerifyingKey::from_public_key_pem(pem) {
                        return Some(Self::$curve(key));
                    }
                )*
                None
            }

            /// Whether a DER-encoded signature of a message is this key's.
            pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
                match self {
                    $(Self::$curve(key) => {
                        let signature = $library::ecdsa::Signature::from_der(signature);
                        signature.is_ok_and(|signature| key.verify(message, &signature).is_ok())
                    })*
                }
            }

            fn to_pem(&self) -> Result<String, SignError> {
                let pem = match self {
                    $(Self::$curve(key) => key.to_public_key_pem(LineEnding::LF),)*
                };
                pem.map_err(|e| SignError::Pem { what: e.to_string() })
            }
        }
    };
}

curves! {
    P256 = p256,
    P384 = p384,
    P521 = p521,
}

impl PrivateKey {
    /// Reads a private key.
    ///
    /// # Errors
    /// `Encrypted`, `NotPrivate`; `PrivateKey` where it is none of these curves; `Io`.
    pub(super) fn read(path: &Path) -> Result<Self, StepError> {
        let pem = read_key(path)?.unwrap_or_default();
        let key = Self::of_pem(without_parameters(&pem));
        Ok(key.ok_or_else(|| no_private_key(path.to_owned(), &pem))?)
    }
}

impl PublicKey {
    /// Reads a public key.
    ///
    /// # Errors
    /// `PublicKey` where it is none of these curves; `Io`.
    pub(super) fn read(path: &Path) -> Result<Self, StepError> {
        let path_of = || path.to_owned();
        let key = read_key(path)?.and_then(|pem| Self::of_pem(&pem));
        Ok(key.ok_or_else(|| SignError::PublicKey { path: path_of() })?)
    }

    /// What a signature names it by: the SHA-256 of its PEM, with lines of 64 characters and a line
    /// break at the end.
    ///
    /// # Errors
    /// `Pem`.
    pub(super) fn hint(&self) -> Result<Sha256, SignError> {
        Ok(Sha256::of(self.to_pem()?.as_bytes()))
    }
}

/// A key without the block of its curve's parameters, which `openssl ecparam -genkey` writes before
/// it unless told not to: the key itself names the curve, too.
fn without_parameters(pem: &str) -> &str {
    const END: &str = "-----END EC PARAMETERS-----";
    let text = pem.trim_start();
    match text.split_once(END) {
        Some((_, rest)) if text.starts_with("-----BEGIN EC PARAMETERS-----") => rest.trim_start(),
        _ => pem,
    }
}

/// Why a file holds no private key that signs.
fn no_private_key(path: PathBuf, pem: &str) -> SignError {
    // PKCS#8 says it in its label, SEC1 in a header (RFC 1421)
    let encrypted = [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----",
        "Proc-Type: 4,ENCRYPTED",
    ];
    if encrypted.iter().any(|text| pem.contains(text)) {
        return SignError::Encrypted { path };
    }
    match PublicKey::of_pem(pem) {
        Some(_) => SignError::NotPrivate { path },
        None => SignError::PrivateKey { path },
    }
}

/// The bytes of a file of keys or certificates; `None` where it can be none.
pub(super) fn read_pem(path: &Path) -> Result<Option<Vec<u8>>, StepError> {
    read_small(path, MAX_PEM_BYTES)
}

/// The bytes of a file; `None` where it is no file, or longer.
pub(super) fn read_small(path: &Path, most_bytes: u64) -> Result<Option<Vec<u8>>, StepError> {
    let metadata = fs::metadata(path).map_err(StepError::io("read", path))?;
    if !metadata.is_file() || metadata.len() > most_bytes {
        return Ok(None);
    }
    let bytes = fs::read(path).map_err(StepError::io("read", path))?;
    Ok(Some(bytes))
}

/// The text of a file that holds a key.
fn read_key(path: &Path) -> Result<Option<String>, StepError> {
    let bytes = read_pem(path)?;
    Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()))
}

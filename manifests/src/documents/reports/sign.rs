//! The summary of `sign`, and what `verify` says of a signature.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::FormatVersion;

/// What `sign` signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SignSummary {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// SHA-256 of `manifest.json`: the pack's identity. `null` of a folder that is no pack.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<crate::documents::schema::HexDigest>")
    )]
    pub manifest_sha256: Option<Sha256>,
    /// Files that the signature covers.
    pub files: u64,
    /// SHA-256 of the public key as PEM: the hint that the signature has.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub key_sha256: Sha256,
}

/// A signature that is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CheckedSignature {
    /// SHA-256 of the public key as PEM.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub key_sha256: Sha256,
    /// Files that the signature covers: all of the pack.
    pub files: u64,
}

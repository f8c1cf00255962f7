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
    /// The certificate that the signature names, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<SigningCertificate>,
}

/// A signature that is right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CheckedSignature {
    /// SHA-256 of the public key as PEM.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub key_sha256: Sha256,
    /// The certificate that it was signed with, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<SigningCertificate>,
    /// Files that the signature covers: all of the pack.
    pub files: u64,
}

/// The X.509 certificate of whoever signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SigningCertificate {
    /// SHA-256 of its DER.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub sha256: Sha256,
    /// Its owner's distinguished name as RFC 4514 writes it; empty of a keyless signature.
    pub subject: String,
    /// Its owner's email addresses, URIs and DNS names.
    pub names: Vec<String>,
    /// The distinguished name of whoever issued it.
    pub issuer: String,
    /// Where its owner logged in, of a keyless signature: the OpenID Connect issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
}

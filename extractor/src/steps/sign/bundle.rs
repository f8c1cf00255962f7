//! A signature as OpenSSF's model signing 1.0 writes it: a Sigstore bundle (version 0.3) around a
//! DSSE envelope around an in-toto statement (version 1) that lists every file with its SHA-256.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The only version of a bundle that is read and written.
pub(super) const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// What the envelope holds.
pub(super) const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// What the payload is.
pub(super) const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// What the statement says.
pub(super) const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";

/// The whole file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bundle {
    pub media_type: String,
    pub verification_material: Material,
    pub dsse_envelope: Envelope,
    /// The other kind of signature, of which a bundle has one: that it is there is wrong.
    #[serde(default, skip_serializing)]
    pub message_signature: Option<IgnoredAny>,
}

/// Who signed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Material {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<KeyHint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x509_certificate_chain: Option<CertificateChain>,
    /// Of a keyless signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<RawCertificate>,
    /// Where a keyless signature was logged: how often. The crate that verifies one reads more.
    #[serde(
        default,
        deserialize_with = "length_of_list",
        serialize_with = "empty_list"
    )]
    pub tlog_entries: usize,
}

/// Takes no memory for what it counts.
fn length_of_list<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    let list = Option::<Vec<IgnoredAny>>::deserialize(from)?;
    Ok(list.map_or(0, |list| list.len()))
}

/// What is signed here is in no log.
fn empty_list<S: Serializer>(_: &usize, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(std::iter::empty::<()>())
}

/// The signer's certificate, then intermediates.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CertificateChain {
    pub certificates: Vec<RawCertificate>,
}

/// A certificate.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawCertificate {
    /// Base64 of its DER.
    pub raw_bytes: String,
}

impl RawCertificate {
    pub(super) fn of(der: &[u8]) -> Self {
        Self {
            raw_bytes: STANDARD.encode(der),
        }
    }
}

/// Which key.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KeyHint {
    /// SHA-256 of its PEM in lower-case hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What is signed, and the signature.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Envelope {
    /// Base64.
    pub payload: String,
    pub payload_type: String,
    pub signatures: Vec<EnvelopeSignature>,
}

/// A signature in an envelope.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct EnvelopeSignature {
    /// Base64 of the DER-encoded signature.
    pub sig: String,
    #[serde(default)]
    pub keyid: String,
}

/// What the payload says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Statement {
    #[serde(rename = "_type")]
    pub type_: String,
    pub subject: Vec<Subject>,
    pub predicate_type: String,
    pub predicate: Predicate,
}

/// The model as a whole.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Subject {
    /// The name of its folder, which may have another one now.
    pub name: String,
    pub digest: RootDigest,
}

/// The SHA-256 of the raw digests of all files, one after another as they are listed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RootDigest {
    pub sha256: String,
}

/// How files were digested, and what came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Predicate {
    pub serialization: Serialization,
    pub resources: Vec<Resource>,
}

/// How files were digested.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Serialization {
    pub method: String,
    pub hash_type: String,
    pub allow_symlinks: bool,
    #[serde(default)]
    pub ignore_paths: Vec<String>,
}

/// A file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Resource {
    /// Its path below the folder.
    pub name: String,
    pub algorithm: String,
    pub digest: String,
}

/// What is signed: DSSE's pre-authentication encoding, version 1. Lengths are those in bytes.
pub(super) fn signed_bytes(payload: &[u8]) -> Vec<u8> {
    let (type_length, length) = (PAYLOAD_TYPE.len(), payload.len());
    let mut bytes = format!("DSSEv1 {type_length} {PAYLOAD_TYPE} {length} ").into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

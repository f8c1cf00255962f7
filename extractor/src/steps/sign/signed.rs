//! What is signed, and by whom: what the check of a bundle and the kinds of signers share.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use segpack_formats::digest::Sha256;
use segpack_manifests::documents::SigningCertificate;
use serde::de::DeserializeOwned;

use super::bundle::{Material, Statement, signed_bytes};
use super::problem::{Problem, problem};

/// What is signed, and what says by whom.
pub(super) struct Signed<'a> {
    /// The whole bundle.
    pub json: &'a [u8],
    pub material: &'a Material,
    /// The statement, as JSON.
    pub payload: &'a [u8],
    /// DER-encoded.
    pub signature: &'a [u8],
}

impl Signed<'_> {
    /// The bytes that the signature is of.
    pub(super) fn message(&self) -> Vec<u8> {
        signed_bytes(self.payload)
    }
}

/// Whose signature it turned out to be.
pub(super) struct SignedBy {
    /// SHA-256 of the public key as PEM.
    pub key_sha256: Sha256,
    pub certificate: Option<SigningCertificate>,
}

/// What is signed.
pub(super) fn statement(payload: &[u8]) -> Result<Statement, Problem> {
    parsed("the statement", payload)
}

/// What the statement is about: the digest of the whole.
pub(super) fn subject(statement: &Statement) -> Result<Sha256, Problem> {
    let [subject] = &statement.subject[..] else {
        let count = statement.subject.len();
        return problem(format!("{count} subjects"), "one");
    };
    let seen = &subject.digest.sha256;
    seen.parse().or_else(|_| {
        problem(
            format!("the digest of the whole {seen:?}"),
            "64 hexadecimal digits",
        )
    })
}

pub(super) fn decoded(what: &str, base64: &str) -> Result<Vec<u8>, Problem> {
    match STANDARD.decode(base64) {
        Ok(bytes) => Ok(bytes),
        Err(e) => problem(format!("{what}: {e}"), "base64"),
    }
}

pub(super) fn parsed<T: DeserializeOwned>(what: &str, json: &[u8]) -> Result<T, Problem> {
    match serde_json::from_slice(json) {
        Ok(value) => Ok(value),
        Err(e) => problem(format!("{what}: {e}"), "JSON as model signing 1.0 has it"),
    }
}

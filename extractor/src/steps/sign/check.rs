//! Whether a signature is that of a key over a pack, step by step as the specification has it, and
//! stricter: every file has to be listed once, and by a path that leads nowhere else.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use segpack_formats::digest::Sha256;
use segpack_manifests::Pack;
use segpack_manifests::documents::CheckedSignature;
use serde::de::DeserializeOwned;

use super::bundle::{
    Bundle, MEDIA_TYPE, PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE, Statement, signed_bytes,
};
use super::{PublicKey, SignError, covered, root_of};

/// What is wrong with a signature: what was seen, and what was wanted.
pub(in crate::steps) struct Wrong {
    pub seen: String,
    pub wanted: String,
}

fn wrong<T>(seen: impl Into<String>, wanted: impl Into<String>) -> Result<T, Wrong> {
    let (seen, wanted) = (seen.into(), wanted.into());
    Err(Wrong { seen, wanted })
}

/// Compares a text with the only one that is taken.
fn only(what: &str, seen: &str, wanted: &str) -> Result<(), Wrong> {
    match seen == wanted {
        true => Ok(()),
        false => wrong(format!("{what} {seen:?}"), format!("{wanted:?}")),
    }
}

/// Checks the signature in `json` of all files of a pack.
///
/// # Errors
/// `Pem` where the key cannot be named; within, what is wrong with the signature.
pub(in crate::steps) fn check(
    json: &[u8],
    key: &PublicKey,
    pack: &Pack,
) -> Result<Result<CheckedSignature, Wrong>, SignError> {
    let hint = key.hint()?;
    Ok(
        check_all(json, key, hint, pack).map(|files| CheckedSignature {
            key_sha256: hint,
            files,
        }),
    )
}

/// Returns the number of files that are signed.
fn check_all(json: &[u8], key: &PublicKey, hint: Sha256, pack: &Pack) -> Result<u64, Wrong> {
    let bundle: Bundle = parsed("the signature", json)?;
    only("media type", &bundle.media_type, MEDIA_TYPE)?;
    check_key(&bundle, hint)?;
    let envelope = &bundle.dsse_envelope;
    only("payload type", &envelope.payload_type, PAYLOAD_TYPE)?;
    let [signature] = &envelope.signatures[..] else {
        let count = envelope.signatures.len();
        return wrong(format!("{count} signatures"), "one");
    };
    let payload = decoded("the payload", &envelope.payload)?;
    let signature = decoded("the signature", &signature.sig)?;
    if !key.has_signed(&signed_bytes(&payload), &signature) {
        return wrong("is not the signature of this key", "one that is");
    }
    let statement: Statement = parsed("the statement", &payload)?;
    compare(&signed_files(&statement)?, pack)
}

/// It has to be signed with a key, and to name this one where it names any.
fn check_key(bundle: &Bundle, hint: Sha256) -> Result<(), Wrong> {
    let material = &bundle.verification_material;
    if material.x509_certificate_chain.is_some() || material.certificate.is_some() {
        let seen = "is signed with a certificate, which this version does not check";
        return wrong(seen, "a signature of the key that was given");
    }
    let Some(named) = &material.public_key else {
        return wrong("names no key", "a signature of the key that was given");
    };
    match &named.hint {
        Some(named) => only("the key with SHA-256", named, &hint.to_string()),
        None => Ok(()),
    }
}

/// The files that a statement lists, which has to be one of all files of a model by SHA-256.
fn signed_files(statement: &Statement) -> Result<BTreeMap<Vec<String>, Sha256>, Wrong> {
    only("statement", &statement.type_, STATEMENT_TYPE)?;
    only("predicate", &statement.predicate_type, PREDICATE_TYPE)?;
    let serialization = &statement.predicate.serialization;
    only("method", &serialization.method, "files")?;
    only("hash type", &serialization.hash_type, "sha256")?;
    if serialization.allow_symlinks {
        return wrong("allows links", "a statement of files alone");
    }
    let mut files = BTreeMap::new();
    let mut digests = Vec::new();
    for resource in &statement.predicate.resources {
        let name = &resource.name;
        only("algorithm", &resource.algorithm, "sha256")?;
        if let Err(why) = segpack_formats::safetensors::check_relative_path(name) {
            return wrong(format!("path {name:?}: {why}"), "a path below the folder");
        }
        let Ok(digest) = resource.digest.parse::<Sha256>() else {
            let seen = format!("digest {:?} of {name}", resource.digest);
            return wrong(seen, "64 hexadecimal digits");
        };
        let parts = name.split('/').map(str::to_owned).collect();
        if files.insert(parts, digest).is_some() {
            return wrong(format!("lists {name} twice"), "every file once");
        }
        digests.push(digest);
    }
    let [subject] = &statement.subject[..] else {
        let count = statement.subject.len();
        return wrong(format!("{count} subjects"), "one");
    };
    let root = root_of(digests.into_iter()).to_string();
    only("the digest of the whole", &subject.digest.sha256, &root)?;
    Ok(files)
}

/// The files that are signed against those of the pack, in both directions.
fn compare(signed: &BTreeMap<Vec<String>, Sha256>, pack: &Pack) -> Result<u64, Wrong> {
    let there = covered(pack);
    for (path, wanted) in &there {
        let shown = path.join("/");
        match signed.get(path) {
            None => return wrong(format!("does not cover {shown}"), "every file of the pack"),
            Some(seen) if seen != wanted => {
                let seen = format!("signs {shown} with SHA-256 {seen}");
                return wrong(seen, format!("{wanted}, as in the pack"));
            }
            Some(_) => {}
        }
    }
    match signed.keys().find(|path| !there.contains_key(*path)) {
        Some(path) => {
            let shown = path.join("/");
            wrong(
                format!("signs {shown}, which the pack has not"),
                "files of the pack",
            )
        }
        None => Ok(there.len() as u64),
    }
}

fn decoded(what: &str, base64: &str) -> Result<Vec<u8>, Wrong> {
    match STANDARD.decode(base64) {
        Ok(bytes) => Ok(bytes),
        Err(e) => wrong(format!("{what}: {e}"), "base64"),
    }
}

fn parsed<T: DeserializeOwned>(what: &str, json: &[u8]) -> Result<T, Wrong> {
    match serde_json::from_slice(json) {
        Ok(value) => Ok(value),
        Err(e) => wrong(format!("{what}: {e}"), "JSON as model signing 1.0 has it"),
    }
}

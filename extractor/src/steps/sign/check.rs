//! Whether a signature is that of a signer over a pack, step by step as the specification has it, and
//! stricter: every file has to be listed once, and by a path that leads nowhere else.

use std::collections::BTreeMap;

use segpack_formats::digest::Sha256;
use segpack_manifests::Pack;
use segpack_manifests::documents::CheckedSignature;

use super::bundle::{Bundle, MEDIA_TYPE, PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE, Statement};
use super::problem::{Problem, problem};
use super::signed::{Signed, decoded, parsed, statement, subject};
use super::signer::Signer;
use super::{covered, root_of};

/// Compares a text with the only one that is taken.
fn only(what: &str, seen: &str, wanted: &str) -> Result<(), Problem> {
    match seen == wanted {
        true => Ok(()),
        false => problem(format!("{what} {seen:?}"), format!("{wanted:?}")),
    }
}

/// Checks the signature in `json` of all files of a pack.
///
/// # Errors
/// What is wrong with it.
pub(in crate::steps) fn check(
    json: &[u8],
    signer: &Signer,
    pack: &Pack,
) -> Result<CheckedSignature, Problem> {
    let bundle: Bundle = parsed("the signature", json)?;
    only("media type", &bundle.media_type, MEDIA_TYPE)?;
    if bundle.message_signature.is_some() {
        return problem(
            "has two signatures, of a message and of an envelope",
            "the latter",
        );
    }
    let envelope = &bundle.dsse_envelope;
    only("payload type", &envelope.payload_type, PAYLOAD_TYPE)?;
    let [signature] = &envelope.signatures[..] else {
        let count = envelope.signatures.len();
        return problem(format!("{count} signatures"), "one");
    };
    let payload = decoded("the payload", &envelope.payload)?;
    let signature = decoded("the signature", &signature.sig)?;
    let by = signer.has_signed(&Signed {
        json,
        material: &bundle.verification_material,
        payload: &payload,
        signature: &signature,
    })?;
    let statement = statement(&payload)?;
    let files = compare(&signed_files(&statement)?, pack)?;
    Ok(CheckedSignature {
        key_sha256: by.key_sha256,
        certificate: by.certificate,
        files,
    })
}

/// The files that a statement lists, which has to be one of all files of a model by SHA-256.
fn signed_files(statement: &Statement) -> Result<BTreeMap<Vec<String>, Sha256>, Problem> {
    only("statement", &statement.type_, STATEMENT_TYPE)?;
    only("predicate", &statement.predicate_type, PREDICATE_TYPE)?;
    let serialization = &statement.predicate.serialization;
    only("method", &serialization.method, "files")?;
    only("hash type", &serialization.hash_type, "sha256")?;
    if serialization.allow_symlinks {
        return problem("allows links", "a statement of files alone");
    }
    let mut files = BTreeMap::new();
    let mut digests = Vec::new();
    for resource in &statement.predicate.resources {
        let name = &resource.name;
        only("algorithm", &resource.algorithm, "sha256")?;
        if let Err(why) = segpack_formats::safetensors::check_relative_path(name) {
            return problem(format!("path {name:?}: {why}"), "a path below the folder");
        }
        let Ok(digest) = resource.digest.parse::<Sha256>() else {
            let seen = format!("digest {:?} of {name}", resource.digest);
            return problem(seen, "64 hexadecimal digits");
        };
        let parts = name.split('/').map(str::to_owned).collect();
        if files.insert(parts, digest).is_some() {
            return problem(format!("lists {name} twice"), "every file once");
        }
        digests.push(digest);
    }
    let root = root_of(digests.into_iter());
    match subject(statement)? {
        seen if seen == root => Ok(files),
        seen => problem(
            format!("the digest of the whole {seen}"),
            format!("{root}, of the files that are listed"),
        ),
    }
}

/// The files that are signed against those of the pack, in both directions.
fn compare(signed: &BTreeMap<Vec<String>, Sha256>, pack: &Pack) -> Result<u64, Problem> {
    let there = covered(pack);
    for (path, wanted) in &there {
        let shown = path.join("/");
        match signed.get(path) {
            None => return problem(format!("does not cover {shown}"), "every file of the pack"),
            Some(seen) if seen != wanted => {
                let seen = format!("signs {shown} with SHA-256 {seen}");
                return problem(seen, format!("{wanted}, as in the pack"));
            }
            Some(_) => {}
        }
    }
    match signed.keys().find(|path| !there.contains_key(*path)) {
        Some(path) => {
            let shown = path.join("/");
            problem(
                format!("signs {shown}, which the pack has not"),
                "files of the pack",
            )
        }
        None => Ok(there.len() as u64),
    }
}

//! `sign`, and the check of a signature for `verify`: as OpenSSF's model signing has them, with a
//! key. Nothing of a pack is read a second time: the digests of the files are those of the manifest,
//! which was verified, and a signature of the manifest's own digest covers all that the manifest
//! lists.

mod bundle;
mod check;
mod error;
mod files;
mod keys;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{EntryKind, InputFile, entry_kind};
use segpack_manifests::Pack;
use segpack_manifests::documents::{Finding, GENERATOR, SignSummary, VerifyMode};
use segpack_manifests::folder::{SIGNATURE, SUMS};

use bundle::{
    Bundle, Envelope, EnvelopeSignature, KeyHint, MEDIA_TYPE, Material, PAYLOAD_TYPE,
    PREDICATE_TYPE, Predicate, Resource, RootDigest, STATEMENT_TYPE, Serialization, Statement,
    Subject, signed_bytes,
};
pub(super) use check::check;
pub use error::SignError;
pub(crate) use files::sign_files;
use keys::PrivateKey;
pub(super) use keys::PublicKey;

use super::StepError;
use super::verify::{VerifySettings, verify};
use crate::output::{refuse_holding, refuse_inside, write_whole};
use crate::work::Job;

/// More than a signature of the largest model known here takes, ten times.
pub(super) const MAX_SIGNATURE_BYTES: u64 = 64 << 20;
/// What a signature does not cover, as the tool of OpenSSF has it: itself, and version control.
const IGNORED: [&str; 5] = [SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore"];

/// Verifies a pack with the digests of all its files, then signs it with a key. The signature is
/// written to `to`, by default `model.sig` in the pack.
///
/// # Errors
/// `Findings` where the pack is damaged: nothing is signed then. `Exists` where there is a signature
/// and it is not to be replaced; `PrivateKey`; `Io`.
pub(crate) fn sign(
    folder: &Path,
    key_file: &Path,
    to: Option<&Path>,
    force: bool,
    job: Job<'_>,
) -> Result<SignSummary, StepError> {
    let key = PrivateKey::read(key_file)?;
    let pack = Pack::open(folder)?;
    let to = destination(folder, key_file, to, force)?;
    refuse_damaged(folder, &pack, job)?;
    let identity = Some(pack.manifest_sha256());
    write_signature(folder, &covered(&pack), &key, &to, force, identity)
}

/// Where the signature goes: nothing but a signature is replaced there.
///
/// # Errors
/// `Exists`, `NotASignature`; where it would replace the key or a file that is signed; `Io`.
fn destination(
    folder: &Path,
    key_file: &Path,
    to: Option<&Path>,
    force: bool,
) -> Result<PathBuf, StepError> {
    let own = folder.join(SIGNATURE);
    let to = to.map_or_else(|| own.clone(), Path::to_owned);
    refuse_holding(&to, &[key_file.to_owned()])?;
    if to != own {
        refuse_inside(&to, folder)?;
    }
    if force {
        refuse_other(&to, to == own)?;
    }
    if !force && to.symlink_metadata().is_ok() {
        return Err(SignError::Exists { path: to }.into());
    }
    Ok(to)
}

/// Signs the files with their digests, and says what was signed.
fn write_signature(
    folder: &Path,
    files: &BTreeMap<Vec<String>, Sha256>,
    key: &PrivateKey,
    to: &Path,
    force: bool,
    identity: Option<Sha256>,
) -> Result<SignSummary, StepError> {
    let hint = key.public().hint()?;
    let bundle = bundle_of(folder, files, key, hint)?;
    let mut json = serde_json::to_vec(&bundle).map_err(SignError::Encode)?;
    json.push(b'\n');
    write_whole(to, force, |out| out.write_all(&json))?;
    Ok(SignSummary {
        format_version: SignSummary::VERSION,
        generator: GENERATOR.to_owned(),
        manifest_sha256: identity,
        files: files.len() as u64,
        key_sha256: hint,
    })
}

/// Refuses to replace what is no signature; in its own place in the pack, it may be a damaged one.
fn refuse_other(to: &Path, is_own_place: bool) -> Result<(), StepError> {
    let not_one = || SignError::NotASignature {
        path: to.to_owned(),
    };
    let Some(kind) = entry_kind(to)? else {
        return Ok(());
    };
    if kind != EntryKind::File {
        return Err(not_one().into());
    }
    let input = InputFile::open(to)?;
    if is_own_place {
        return Ok(());
    }
    let json = input.read_range(0..input.length().min(MAX_SIGNATURE_BYTES))?;
    let bundle: Option<serde_json::Value> = serde_json::from_slice(&json).ok();
    let media = bundle.as_ref().and_then(|b| b.get("mediaType")?.as_str());
    match media.is_some_and(|m| m.starts_with("application/vnd.dev.sigstore.bundle")) {
        true => Ok(()),
        false => Err(not_one().into()),
    }
}

/// What is signed is what is there, every byte of it.
fn refuse_damaged(folder: &Path, pack: &Pack, job: Job<'_>) -> Result<(), StepError> {
    let settings = VerifySettings {
        manifest_sha256: Some(pack.manifest_sha256()),
        ..VerifySettings::new(VerifyMode::Sums, job.threads)
    };
    let report = verify(folder, &settings, job.stop, job.progress)?;
    if report.ok {
        return Ok(());
    }
    let findings: Vec<Finding> = report.findings;
    let what = format!("{}: damaged; nothing was signed", folder.display());
    Err(StepError::Findings { what, findings })
}

/// Every file of a pack with its SHA-256, in the order in which the tool of OpenSSF lists them: by
/// the parts of their paths. All follows from the manifest and its own digest.
fn covered(pack: &Pack) -> BTreeMap<Vec<String>, Sha256> {
    let listed = pack.manifest().files().into_iter();
    let mut files: BTreeMap<Vec<String>, Sha256> = listed
        .map(|(path, _, sha256)| (parts(path), sha256))
        .collect();
    files.insert(parts(pack.document()), pack.manifest_sha256());
    if pack.has_sums() {
        files.insert(parts(SUMS), Sha256::of(pack.sums_text().as_bytes()));
    }
    files
}

/// The parts of a path below the folder.
fn parts(path: &str) -> Vec<String> {
    path.split('/').map(str::to_owned).collect()
}

/// The digest of the whole: of the raw digests in the order of the list.
fn root_of(digests: impl Iterator<Item = Sha256>) -> Sha256 {
    let mut root = Sha256Hasher::default();
    digests.for_each(|digest| root.update(&digest.0));
    root.finish()
}

fn bundle_of(
    folder: &Path,
    files: &BTreeMap<Vec<String>, Sha256>,
    key: &PrivateKey,
    hint: Sha256,
) -> Result<Bundle, StepError> {
    let real: PathBuf = folder
        .canonicalize()
        .map_err(StepError::io("open", folder))?;
    let name = real.file_name().unwrap_or_default().to_string_lossy();
    let resource = |(path, digest): (&Vec<String>, &Sha256)| Resource {
        name: path.join("/"),
        algorithm: "sha256".to_owned(),
        digest: digest.to_string(),
    };
    let statement = Statement {
        type_: STATEMENT_TYPE.to_owned(),
        subject: vec![Subject {
            name: name.into_owned(),
            digest: RootDigest {
                sha256: root_of(files.values().copied()).to_string(),
            },
        }],
        predicate_type: PREDICATE_TYPE.to_owned(),
        predicate: Predicate {
            serialization: Serialization {
                method: "files".to_owned(),
                hash_type: "sha256".to_owned(),
                allow_symlinks: false,
                ignore_paths: IGNORED.map(str::to_owned).to_vec(),
            },
            resources: files.iter().map(resource).collect(),
        },
    };
    let payload = serde_json::to_vec(&statement).map_err(SignError::Encode)?;
    let signature = key.sign(&signed_bytes(&payload));
    Ok(Bundle {
        media_type: MEDIA_TYPE.to_owned(),
        verification_material: Material {
            public_key: Some(KeyHint {
                hint: Some(hint.to_string()),
            }),
            x509_certificate_chain: None,
            certificate: None,
            tlog_entries: Vec::new(),
        },
        dsse_envelope: Envelope {
            payload: STANDARD.encode(payload),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![EnvelopeSignature {
                sig: STANDARD.encode(signature),
                keyid: String::new(),
            }],
        },
    })
}

//! `sign`, and the check of a signature: as OpenSSF's model signing has them, with a key, with a
//! certificate, or (checked only) with a Sigstore identity. Nothing of a pack is read a second time: the digests of the files are those of the manifest,
//! which was verified, and a signature of the manifest's own digest covers all that the manifest
//! lists.

mod bundle;
mod certificates;
mod check;
mod ecdsa;
mod error;
mod files;
mod keys;
mod problem;
mod provider;
mod require;
mod signed;
mod signer;
mod sigstore;

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
    Bundle, CertificateChain, Envelope, EnvelopeSignature, KeyHint, MEDIA_TYPE, Material,
    PAYLOAD_TYPE, PREDICATE_TYPE, Predicate, RawCertificate, Resource, RootDigest, STATEMENT_TYPE,
    Serialization, Statement, Subject, signed_bytes,
};
use certificates::SigningChain;
pub use error::SignError;
pub(crate) use files::sign_files;
use keys::PrivateKey;
pub use require::SignatureSettings;
pub(super) use require::check_signature;
pub(crate) use require::require_signature;
use signed::SignedBy;
pub(super) use signer::Signer;
pub use signer::SignerSettings;

use super::StepError;
use super::verify::{VerifySettings, verify};
use crate::output::{refuse_holding, refuse_inside, write_whole};
use crate::work::Job;

/// More than a signature of the largest model known here takes, ten times.
pub(super) const MAX_SIGNATURE_BYTES: u64 = 64 << 20;
/// What a signature does not cover, as the tool of OpenSSF has it: itself, and version control.
const IGNORED: [&str; 5] = [SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore"];

/// How to sign, and where to.
#[derive(Debug)]
pub(crate) struct SignSettings {
    /// The private key, as PEM.
    pub key: PathBuf,
    /// The key's certificate, as PEM; what is signed names the key alone where there is none.
    pub certificate: Option<PathBuf>,
    /// The certificates between that and its root, as PEM.
    pub intermediates: Option<PathBuf>,
    /// The signature; `model.sig` in the folder where it is not given.
    pub to: Option<PathBuf>,
    /// Whether a signature that is there is replaced.
    pub force: bool,
}

/// Whoever signs.
struct Owner {
    key: PrivateKey,
    chain: Option<SigningChain>,
}

impl Owner {
    fn read(settings: &SignSettings) -> Result<Self, StepError> {
        let key = PrivateKey::read(&settings.key)?;
        let intermediates = settings.intermediates.as_deref();
        let chain = settings.certificate.as_deref();
        let chain = chain.map(|path| SigningChain::read(path, intermediates, &key));
        Ok(Self {
            chain: chain.transpose()?,
            key,
        })
    }

    fn signer(&self) -> Result<SignedBy, SignError> {
        if let Some(chain) = &self.chain {
            return chain.signer();
        }
        Ok(SignedBy {
            key_sha256: self.key.public().hint()?,
            certificate: None,
        })
    }

    /// What says in a bundle who signed.
    fn material(&self, hint: Sha256) -> Material {
        let chain = self.chain.as_ref().map(|chain| CertificateChain {
            certificates: chain.der().map(RawCertificate::of).collect(),
        });
        Material {
            public_key: chain.is_none().then(|| KeyHint {
                hint: Some(hint.to_string()),
            }),
            x509_certificate_chain: chain,
            certificate: None,
            tlog_entries: 0,
        }
    }
}

/// Verifies a pack with the digests of all its files, then signs it.
///
/// # Errors
/// `Findings` where the pack is damaged: nothing is signed then. `Exists` where there is a signature
/// and it is not to be replaced; `PrivateKey`, `Certificates`; `Io`.
pub(crate) fn sign(
    folder: &Path,
    settings: &SignSettings,
    job: Job<'_>,
) -> Result<SignSummary, StepError> {
    let owner = Owner::read(settings)?;
    let pack = Pack::open(folder)?;
    let to = destination(folder, settings)?;
    refuse_damaged(folder, &pack, job)?;
    let identity = Some(pack.manifest_sha256());
    write_signature(
        folder,
        &covered(&pack),
        &owner,
        &to,
        settings.force,
        identity,
    )
}

/// Where the signature goes: nothing but a signature is replaced there.
///
/// # Errors
/// `Exists`, `NotASignature`; where it would replace the key or a file that is signed; `Io`.
fn destination(folder: &Path, settings: &SignSettings) -> Result<PathBuf, StepError> {
    let SignSettings {
        key,
        certificate,
        intermediates,
        to,
        force,
    } = settings;
    let own = folder.join(SIGNATURE);
    let to = to.clone().unwrap_or_else(|| own.clone());
    let read = [Some(key), certificate.as_ref(), intermediates.as_ref()];
    let read: Vec<_> = read.into_iter().flatten().cloned().collect();
    refuse_holding(&to, &read)?;
    if to != own {
        refuse_inside(&to, folder)?;
    }
    if *force {
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
    owner: &Owner,
    to: &Path,
    force: bool,
    identity: Option<Sha256>,
) -> Result<SignSummary, StepError> {
    let by = owner.signer()?;
    let bundle = bundle_of(folder, files, owner, by.key_sha256)?;
    let mut json = serde_json::to_vec(&bundle).map_err(SignError::Encode)?;
    json.push(b'\n');
    write_whole(to, force, |out| out.write_all(&json))?;
    Ok(SignSummary {
        format_version: SignSummary::VERSION,
        generator: GENERATOR.to_owned(),
        manifest_sha256: identity,
        files: files.len() as u64,
        key_sha256: by.key_sha256,
        certificate: by.certificate,
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
    owner: &Owner,
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
    let signature = owner.key.sign(&signed_bytes(&payload));
    Ok(Bundle {
        media_type: MEDIA_TYPE.to_owned(),
        message_signature: None,
        verification_material: owner.material(hint),
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

//! The check of a signature: `verify` reports it, other commands demand it before they use a pack.

use std::path::PathBuf;
use std::sync::Arc;

use segpack_formats::io::{InputFile, ReadAt};
use segpack_manifests::Pack;
use segpack_manifests::documents::{CheckedSignature, Finding, FindingKind};
use segpack_manifests::folder::SIGNATURE;

use super::MAX_SIGNATURE_BYTES;
use super::check::check;
use super::signer::{Signer, SignerSettings};
use crate::causes::without_path;
use crate::steps::StepError;

/// A signature to check.
#[derive(Debug, Clone)]
pub struct SignatureSettings {
    /// Its file; `model.sig` in the pack where there is none.
    pub file: Option<PathBuf>,
    /// Whose it has to be.
    pub signer: SignerSettings,
}

/// Refuses a pack that is not signed by whom it has to be. All of the pack follows from its
/// manifest, which the signature covers: what is read of it with its digests compared is what was
/// signed.
///
/// # Errors
/// `Findings` where the signature is not right; where keys, certificates or the signature cannot be
/// read.
pub(crate) fn require_signature(
    pack: &Pack,
    settings: &SignatureSettings,
) -> Result<(), StepError> {
    let signer = Signer::read(&settings.signer)?;
    match check_signature(pack, settings, &signer)? {
        Ok(_) => Ok(()),
        Err(finding) => Err(StepError::Findings {
            what: format!("{}: not signed as it has to be", pack.folder().display()),
            findings: vec![*finding],
        }),
    }
}

/// Checks a signature against the files that the manifest lists, which are compared with their
/// digests by themselves.
///
/// # Errors
/// Where the environment keeps it from being read; within, what is wrong with it.
pub(in crate::steps) fn check_signature(
    pack: &Pack,
    settings: &SignatureSettings,
    signer: &Signer,
) -> Result<Result<CheckedSignature, Box<Finding>>, StepError> {
    let file = settings.file.as_ref();
    let shown = file.map_or_else(|| SIGNATURE.to_owned(), |path| path.display().to_string());
    let bad = || Finding::new(FindingKind::BadSignature).file(&shown);
    let unusable = |seen: String| Ok(Err(Box::new(bad().seen(seen))));
    let read = match file {
        // no link in a pack is followed
        None => pack.open_file(SIGNATURE),
        Some(path) => InputFile::open(path).map(|file| Arc::new(file) as Arc<dyn ReadAt>),
    };
    let input = match read {
        Ok(input) if input.length() <= MAX_SIGNATURE_BYTES => input,
        Ok(input) => return unusable(format!("{} bytes", input.length())),
        Err(e) if e.is_environment() => return Err(e.into()),
        Err(e) => return unusable(without_path(&e)),
    };
    let json = input.read_range(0..input.length())?;
    let checked = check(&json, signer, pack);
    Ok(checked.map_err(|problem| Box::new(bad().seen(problem.seen).wanted(problem.wanted))))
}

use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::digest::Sha256;
use segpack_manifests::Pack;
use segpack_manifests::folder::digest_in_list;

use super::INPUT;
use crate::cli::Context;
use crate::cli::error::CliError;
use crate::source::{PackPlace, local_pack};
use crate::steps::StepError;
use crate::steps::open::open_pack;

/// A pack to read, and who it has to be.
#[derive(Debug, clap::Args)]
pub(crate) struct PackArg {
    /// Pack: a folder, or hf://OWNER/NAME[@REVISION] on a hub, https://HOST/FOLDER/ on a web server,
    /// s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX in an object store
    #[arg(value_name = "PACK")]
    pack: PathBuf,
    /// SHA-256 that manifest.json must have: 64 hex digits, or a file that holds it, such as a
    /// SHA256SUMS
    #[arg(long, value_name = "HEX|FILE", value_parser = identity, help_heading = INPUT)]
    manifest_sha256: Option<Identity>,
}

/// The SHA-256 of a manifest.
#[derive(Debug, Clone)]
pub(crate) enum Identity {
    Digest(Sha256),
    /// In this file.
    File(PathBuf),
}

impl Identity {
    /// The digest.
    ///
    /// # Errors
    /// Where the file that holds it cannot be read, or holds none.
    pub(crate) fn digest(&self) -> Result<Sha256, CliError> {
        match self {
            Self::Digest(digest) => Ok(*digest),
            Self::File(path) => read_digest(path),
        }
    }
}

/// 64 hex digits are a digest; everything else names a file, with or without `@` before it.
pub(crate) fn identity(text: &str) -> Result<Identity, String> {
    if let Ok(digest) = text.to_ascii_lowercase().parse() {
        return Ok(Identity::Digest(digest));
    }
    let file = PathBuf::from(text.strip_prefix('@').unwrap_or(text));
    let is_hex = text.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hex && !file.exists() {
        return Err("expected 64 hex digits, or a file that holds them".to_owned());
    }
    Ok(Identity::File(file))
}

impl PackArg {
    /// The folder of a pack that is written to, or that only a folder can be; `why` says so of
    /// others.
    ///
    /// # Errors
    /// Where the pack is on a server.
    pub(crate) fn local(&self, why: &'static str) -> Result<&Path, CliError> {
        let folder = local_pack(&self.pack, why).map_err(StepError::from)?;
        Ok(folder)
    }

    /// Where the pack is.
    ///
    /// # Errors
    /// Where a server cannot be asked.
    pub(crate) fn find(&self, context: &Context) -> Result<PackPlace, CliError> {
        let found = PackPlace::find(&self.pack, context.job());
        Ok(found.map_err(StepError::from)?)
    }

    /// The pack, as messages name it.
    pub(crate) fn place(&self) -> String {
        self.pack.display().to_string()
    }

    /// The SHA-256 that the manifest must have.
    ///
    /// # Errors
    /// Where the file that holds it cannot be read, or holds none.
    pub(crate) fn wanted(&self) -> Result<Option<Sha256>, CliError> {
        self.manifest_sha256
            .as_ref()
            .map(Identity::digest)
            .transpose()
    }

    /// Opens the pack.
    ///
    /// # Errors
    /// Where it is no pack, or not the one that it must be.
    pub(crate) fn open(&self, context: &Context) -> Result<Pack, CliError> {
        Ok(open_pack(&self.pack, self.wanted()?, context.job())?)
    }
}

fn read_digest(path: &Path) -> Result<Sha256, CliError> {
    /// More than the SHA256SUMS of any pack has.
    const MAX_BYTES: u64 = 64 << 20;
    let metadata = fs::metadata(path).map_err(StepError::io("read", path))?;
    let no_digest = || CliError::NoDigest(path.to_owned());
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(no_digest());
    }
    let bytes = fs::read(path).map_err(StepError::io("read", path))?;
    digest_in_list(&String::from_utf8_lossy(&bytes)).ok_or_else(no_digest)
}

use std::path::PathBuf;

use clap::ArgGroup;
use clap::builder::NonEmptyStringValueParser;

use super::SIGNATURE;
use crate::steps::sign::{SignatureSettings, SignerSettings};

/// The option that names the signature, which those of the signer belong to: `--signature` or
/// `--require-signature`.
pub(crate) const SIGNATURE_OPTION: &str = "signature";
/// Any of the options that say who has to have signed.
pub(crate) const SIGNER_OPTION: &str = "signer";

/// Who has to have signed.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new(SIGNER_OPTION).args(["public_key", "certificate_chain", "trusted_root"]))]
pub(crate) struct SignerArgs {
    /// Public key of the signature: P-256, P-384 or P-521, as PEM
    #[arg(long, value_name = "FILE", requires = SIGNATURE_OPTION, help_heading = SIGNATURE)]
    public_key: Option<PathBuf>,
    /// Root certificates, as PEM: the signature has a certificate for which one of them vouches.
    /// Anybody's will do, unless --identity says whose
    #[arg(long, value_name = "FILE", requires = SIGNATURE_OPTION, help_heading = SIGNATURE)]
    certificate_chain: Option<PathBuf>,
    /// Name that the signer's certificate has: an email address, URI or DNS name, or the whole
    /// subject as RFC 4514 writes it (CN=me,O=example); of a keyless signature, who logged in
    #[arg(
        long,
        value_name = "NAME",
        value_parser = NonEmptyStringValueParser::new(),
        requires = SIGNER_OPTION,
        conflicts_with = "public_key",
        help_heading = SIGNATURE
    )]
    identity: Option<String>,
    /// Where the identity logged in, of a keyless (Sigstore) signature: the address of the OpenID
    /// Connect issuer
    #[arg(long, value_name = "URL", requires = "trusted_root", conflicts_with_all = ["public_key", "certificate_chain"], help_heading = SIGNATURE)]
    issuer: Option<String>,
    /// What is trusted of the Sigstore instance of a keyless signature: its trusted_root.json. Nothing
    /// is asked of a server
    #[arg(long, value_name = "FILE", requires_all = ["identity", "issuer", SIGNATURE_OPTION], help_heading = SIGNATURE)]
    trusted_root: Option<PathBuf>,
}

impl SignerArgs {
    /// `None` where nobody is named.
    fn settings(&self) -> Option<SignerSettings> {
        let identity = self.identity.clone();
        if let Some(public_key) = self.public_key.clone() {
            return Some(SignerSettings::Key { public_key });
        }
        if let Some(roots) = self.certificate_chain.clone() {
            return Some(SignerSettings::Certificate { roots, identity });
        }
        Some(SignerSettings::Sigstore {
            trusted_root: self.trusted_root.clone()?,
            identity: identity?,
            issuer: self.issuer.clone()?,
        })
    }

    /// The signature to check: in this file, or in the pack where none is named.
    pub(crate) fn signature(&self, file: Option<&Option<PathBuf>>) -> Option<SignatureSettings> {
        Some(SignatureSettings {
            file: file?.clone(),
            signer: self.settings()?,
        })
    }
}

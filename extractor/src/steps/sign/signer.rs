//! Who a signature has to be of, and whether it is.

use std::path::PathBuf;

use segpack_formats::digest::Sha256;

use super::bundle::{Material, RawCertificate};
use super::certificates::RootCertificates;
use super::keys::PublicKey;
use super::problem::{Problem, problem};
use super::signed::{Signed, SignedBy};
use super::sigstore::SigstoreIdentity;
use crate::steps::StepError;

/// Who has to have signed.
#[derive(Debug, Clone)]
pub enum SignerSettings {
    /// The owner of a key.
    Key {
        /// Its public key, as PEM.
        public_key: PathBuf,
    },
    /// The owner of a certificate.
    Certificate {
        /// The root certificates that may vouch for it, as PEM.
        roots: PathBuf,
        /// A name that the certificate must have, if any will not do.
        identity: Option<String>,
    },
    /// Whoever logged in with this identity, as a Sigstore instance has recorded it.
    Sigstore {
        /// What is trusted: the instance's `trusted_root.json`.
        trusted_root: PathBuf,
        /// An email address, or the address of a workflow.
        identity: String,
        /// Where they logged in: the OpenID Connect issuer.
        issuer: String,
    },
}

/// Who has to have signed, with the keys and certificates that tell.
pub(in crate::steps) enum Signer {
    Key { key: PublicKey, hint: Sha256 },
    Certificate(RootCertificates),
    Sigstore(Box<SigstoreIdentity>),
}

impl Signer {
    /// Reads the keys and certificates.
    ///
    /// # Errors
    /// `PublicKey`, `Certificates`, `TrustedRoot`; `Io`.
    pub(in crate::steps) fn read(settings: &SignerSettings) -> Result<Self, StepError> {
        Ok(match settings {
            SignerSettings::Key { public_key } => {
                let key = PublicKey::read(public_key)?;
                let hint = key.hint()?;
                Self::Key { key, hint }
            }
            SignerSettings::Certificate { roots, identity } => {
                Self::Certificate(RootCertificates::read(roots, identity.clone())?)
            }
            SignerSettings::Sigstore {
                trusted_root,
                identity,
                issuer,
            } => Self::Sigstore(Box::new(SigstoreIdentity::read(
                trusted_root,
                identity,
                issuer,
            )?)),
        })
    }

    /// Whether what is signed is signed by them.
    pub(super) fn has_signed(&self, signed: &Signed<'_>) -> Result<SignedBy, Problem> {
        match (self, method(signed.material)?) {
            (Self::Key { key, hint }, Method::Key(named)) => {
                key_has_signed(key, *hint, named, signed)
            }
            (Self::Certificate(roots), Method::Chain(chain)) => roots.have_signed(chain, signed),
            (Self::Sigstore(identity), Method::Sigstore) => identity.has_signed(signed),
            (wanted, seen) => problem(seen.shown(), wanted.shown()),
        }
    }

    /// The kind of signature that is wanted.
    fn shown(&self) -> &'static str {
        match self {
            Self::Key { .. } => "a signature of the key that was given",
            Self::Certificate(_) => "a signature with a certificate of the roots that were given",
            Self::Sigstore(_) => "a keyless signature of the identity that was given",
        }
    }
}

/// How a bundle says who signed.
enum Method<'m> {
    /// With a key, of which it may have the SHA-256.
    Key(Option<&'m str>),
    Chain(&'m [RawCertificate]),
    Sigstore,
}

impl Method<'_> {
    fn shown(&self) -> &'static str {
        match self {
            Self::Key(_) => "is signed with a key",
            Self::Chain(_) => "is signed with a certificate",
            Self::Sigstore => "is signed without a key, by a Sigstore identity",
        }
    }
}

fn method(material: &Material) -> Result<Method<'_>, Problem> {
    let Material {
        public_key,
        x509_certificate_chain,
        certificate,
        tlog_entries: _, // of keyless signatures
    } = material;
    match (public_key, x509_certificate_chain, certificate) {
        (Some(key), None, None) => Ok(Method::Key(key.hint.as_deref())),
        (None, Some(chain), None) => Ok(Method::Chain(&chain.certificates)),
        (None, None, Some(_)) => Ok(Method::Sigstore),
        (None, None, None) => problem("names no key and no certificate", "one of them"),
        _ => problem("names a key and a certificate, or two kinds of them", "one"),
    }
}

/// Where the bundle names a key, it has to be this one.
fn key_has_signed(
    key: &PublicKey,
    hint: Sha256,
    named: Option<&str>,
    signed: &Signed<'_>,
) -> Result<SignedBy, Problem> {
    let wanted = hint.to_string();
    if let Some(seen) = named.filter(|seen| *seen != wanted) {
        return problem(
            format!("the key with SHA-256 {seen:?}"),
            format!("{wanted:?}"),
        );
    }
    if !key.has_signed(&signed.message(), signed.signature) {
        return problem("is not the signature of this key", "one that is");
    }
    Ok(SignedBy {
        key_sha256: hint,
        certificate: None,
    })
}

//! Signatures with X.509 certificates, whose roots the user names. A bundle has the signer's own
//! certificate first, then intermediates, as OpenSSF's model signing has them.

use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm,
    UnixTime, alg_id,
};
use segpack_formats::digest::Sha256;
use segpack_manifests::documents::SigningCertificate;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, VerifiedPath};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{Decode, EncodePem};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};

use super::SignError;
use super::bundle::RawCertificate;
use super::keys::{PrivateKey, PublicKey, read_pem};
use super::problem::{Problem, problem};
use super::signed::{Signed, SignedBy, decoded};
use crate::steps::StepError;

/// `id-kp-codeSigning` of RFC 5280, section 4.2.1.12.
const CODE_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.3");
/// `id-at-commonName` of RFC 5280, appendix A.1.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// A certificate, and the bytes that it was read from.
pub(super) struct ReadCertificate {
    der: CertificateDer<'static>,
    certificate: Certificate,
}

/// The root certificates that may vouch for a signer.
pub(in crate::steps) struct RootCertificates {
    roots: Vec<ReadCertificate>,
    /// A name that the signer's certificate must have.
    identity: Option<String>,
}

/// A certificate to sign with, and the intermediates that lead to its root.
pub(super) struct SigningChain(Vec<ReadCertificate>);

impl ReadCertificate {
    pub(super) fn parse(der: CertificateDer<'static>) -> Result<Self, x509_cert::der::Error> {
        let certificate = Certificate::from_der(&der)?;
        Ok(Self { der, certificate })
    }

    /// All certificates of a PEM file, of which there is at least one.
    fn read_all(path: &Path) -> Result<Vec<Self>, StepError> {
        let wrong = |what: String| SignError::Certificates {
            path: path.to_owned(),
            what,
        };
        let pem = read_pem(path)?.ok_or_else(|| wrong("not a PEM file".to_owned()))?;
        let mut all = Vec::new();
        for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let der = der.map_err(|e| wrong(e.to_string()))?;
            all.push(Self::parse(der).map_err(|e| wrong(e.to_string()))?);
        }
        match all.is_empty() {
            true => Err(wrong("it has none".to_owned()).into()),
            false => Ok(all),
        }
    }

    /// The distinguished name of the owner, as RFC 4514 writes it.
    fn subject(&self) -> String {
        self.certificate.tbs_certificate.subject.to_string()
    }

    fn issuer(&self) -> String {
        self.certificate.tbs_certificate.issuer.to_string()
    }

    /// `None` of a key of another kind.
    fn public_key(&self) -> Option<PublicKey> {
        let key = &self.certificate.tbs_certificate.subject_public_key_info;
        PublicKey::of_pem(&key.to_pem(LineEnding::LF).ok()?)
    }

    /// An extension; one that cannot be read counts as an error, not as missing.
    fn extension<'a, T: Decode<'a> + x509_cert::der::oid::AssociatedOid>(
        &'a self,
    ) -> Result<Option<T>, x509_cert::der::Error> {
        let found = self.certificate.tbs_certificate.get::<T>()?;
        Ok(found.map(|(_critical, extension)| extension))
    }

    /// As OpenSSF's tool has it: the key usage `digitalSignature`, or the extended key usage
    /// `codeSigning`.
    fn may_sign_models(&self) -> Result<bool, x509_cert::der::Error> {
        let usage = self.extension::<KeyUsage>()?;
        let extended = self.extension::<ExtendedKeyUsage>()?;
        Ok(usage.is_some_and(|usage| usage.digital_signature())
            || extended.is_some_and(|extended| extended.0.contains(&CODE_SIGNING)))
    }

    /// Whether it is that of an authority: where there is a key usage, it has to say so, too.
    fn may_vouch(&self) -> Result<bool, x509_cert::der::Error> {
        let constraints = self.extension::<BasicConstraints>()?;
        let usage = self.extension::<KeyUsage>()?;
        Ok(constraints.is_some_and(|constraints| constraints.ca)
            && usage.is_none_or(|usage| usage.key_cert_sign()))
    }

    /// When it became valid.
    fn valid_from(&self) -> UnixTime {
        let validity = self.certificate.tbs_certificate.validity;
        UnixTime::since_unix_epoch(validity.not_before.to_unix_duration())
    }

    fn is_valid_at(&self, time: UnixTime) -> bool {
        let validity = self.certificate.tbs_certificate.validity;
        let [from, until] =
            [validity.not_before, validity.not_after].map(|time| time.to_unix_duration().as_secs());
        (from..=until).contains(&time.as_secs())
    }

    /// Email addresses, URIs and DNS names.
    fn names(&self) -> Result<Vec<String>, x509_cert::der::Error> {
        let names = self.extension::<SubjectAltName>()?;
        Ok(names.map_or_else(Vec::new, |names| {
            names.0.iter().filter_map(name).map(str::to_owned).collect()
        }))
    }

    /// The common names in the subject.
    fn common_names(&self) -> impl Iterator<Item = String> {
        let subject = self.certificate.tbs_certificate.subject.0.iter();
        let attributes = subject.flat_map(|part| part.0.iter());
        attributes
            .filter(|attribute| attribute.oid == COMMON_NAME)
            .filter_map(|attribute| String::from_utf8(attribute.value.value().to_vec()).ok())
    }

    fn described(&self) -> Result<SigningCertificate, x509_cert::der::Error> {
        Ok(SigningCertificate {
            sha256: Sha256::of(&self.der),
            subject: self.subject(),
            names: self.names()?,
            issuer: self.issuer(),
            login: None,
        })
    }

    /// Its owner, who has signed.
    pub(super) fn signer(&self) -> Result<SignedBy, x509_cert::der::Error> {
        let key = &self.certificate.tbs_certificate.subject_public_key_info;
        Ok(SignedBy {
            key_sha256: Sha256::of(key.to_pem(LineEnding::LF)?.as_bytes()),
            certificate: Some(self.described()?),
        })
    }
}

/// An alternative name as text.
fn name(name: &GeneralName) -> Option<&str> {
    match name {
        GeneralName::Rfc822Name(text)
        | GeneralName::DnsName(text)
        | GeneralName::UniformResourceIdentifier(text) => Some(text.as_str()),
        _ => None,
    }
}

impl RootCertificates {
    /// Reads the roots.
    ///
    /// # Errors
    /// `Certificates`; `Io`.
    pub(super) fn read(path: &Path, identity: Option<String>) -> Result<Self, StepError> {
        let roots = ReadCertificate::read_all(path)?;
        Ok(Self { roots, identity })
    }

    /// Whether the owner of the first certificate signed, and a root vouches for it.
    pub(super) fn have_signed(
        &self,
        chain: &[RawCertificate],
        signed: &Signed<'_>,
    ) -> Result<SignedBy, Problem> {
        let chain = chain
            .iter()
            .map(certificate_of_bundle)
            .collect::<Result<Vec<_>, _>>()?;
        let Some((leaf, intermediates)) = chain.split_first() else {
            return problem("names no certificate", "the signer's");
        };
        if !leaf.may_sign_models().or_else(unreadable)? {
            return problem(
                format!(
                    "the certificate of {} is not for signatures",
                    leaf.subject()
                ),
                "the key usage digitalSignature, or the extended key usage codeSigning",
            );
        }
        self.vouch_for(leaf, intermediates)?;
        let Some(key) = leaf.public_key() else {
            return problem(
                format!("the key of {} is of another kind", leaf.subject()),
                "one of the curves P-256, P-384 or P-521",
            );
        };
        if !key.has_signed(signed.message, signed.signature) {
            let seen = format!("is not the signature of {}", leaf.subject());
            return problem(seen, "one that is");
        }
        self.compare_identity(leaf)?;
        leaf.signer().or_else(unreadable)
    }

    /// As OpenSSF's tool has it, certificates are judged as of the day on which the signer's became
    /// valid: one that has run out since does not make its signatures wrong.
    fn vouch_for(
        &self,
        leaf: &ReadCertificate,
        intermediates: &[ReadCertificate],
    ) -> Result<(), Problem> {
        let time = leaf.valid_from();
        let roots: Vec<_> = self
            .roots
            .iter()
            .filter(|root| root.is_valid_at(time))
            .filter(|root| root.der == leaf.der || root.may_vouch().unwrap_or(false))
            .filter_map(|root| webpki::anchor_from_trusted_cert(&root.der).ok())
            .collect();
        let ders: Vec<_> = intermediates.iter().map(|c| c.der.clone()).collect();
        let mut algorithms = webpki::ALL_VERIFICATION_ALGS.to_vec();
        algorithms.push(&P521_WITH_SHA512);
        let path = EndEntityCert::try_from(&leaf.der).and_then(|certificate| {
            let only = Some(&may_vouch as &dyn Fn(&VerifiedPath<'_>) -> _);
            certificate
                .verify_for_usage(&algorithms, &roots, &ders, time, AnyUsage, None, only)
                .map(drop)
        });
        path.or_else(|error| {
            problem(
                format!("the certificate of {}: {}", leaf.subject(), shown(&error)),
                "one for which a root that was given vouches",
            )
        })
    }

    fn compare_identity(&self, leaf: &ReadCertificate) -> Result<(), Problem> {
        let Some(wanted) = &self.identity else {
            return Ok(());
        };
        let mut names = leaf.names().or_else(unreadable)?;
        names.extend(leaf.common_names());
        names.push(leaf.subject());
        match names.contains(wanted) {
            true => Ok(()),
            false => problem(format!("is signed by {}", names.join(", ")), wanted),
        }
    }
}

impl SigningChain {
    /// Reads a certificate and the intermediates above it, in their order; both may be in one file.
    ///
    /// # Errors
    /// `Certificates`; where it is not that of the key, not for signatures, or the intermediates are
    /// not those above it; `Io`.
    pub(super) fn read(
        certificate: &Path,
        intermediates: Option<&Path>,
        key: &PrivateKey,
    ) -> Result<Self, StepError> {
        let mut chain = ReadCertificate::read_all(certificate)?;
        if let Some(path) = intermediates {
            chain.extend(ReadCertificate::read_all(path)?);
        }
        let chain = Self(chain);
        chain.check(key).map_err(|what| SignError::Certificates {
            path: PathBuf::from(certificate),
            what,
        })?;
        Ok(chain)
    }

    fn check(&self, key: &PrivateKey) -> Result<(), String> {
        let leaf = self.leaf();
        let hint = leaf.public_key().and_then(|key| key.hint().ok());
        if hint.is_none() || hint != key.public().hint().ok() {
            return Err(format!("{} has another key", leaf.subject()));
        }
        if !leaf.may_sign_models().map_err(|e| e.to_string())? {
            let why = "is not for signatures: it has neither the key usage digitalSignature nor the \
                       extended key usage codeSigning";
            return Err(format!("{} {why}", leaf.subject()));
        }
        for pair in self.0.windows(2) {
            if pair[0].issuer() != pair[1].subject() {
                let (above, below) = (pair[1].subject(), pair[0].subject());
                return Err(format!("{above} is not the issuer of {below}, before it"));
            }
        }
        Ok(())
    }

    /// The signer's own certificate, for a summary.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(super) fn described(&self) -> Result<SigningCertificate, SignError> {
        let described = self.leaf().described();
        described.map_err(|e| SignError::Pem {
            what: e.to_string(),
        })
    }

    /// The signer's own.
    fn leaf(&self) -> &ReadCertificate {
        &self.0[0] // read_all gives one at least
    }

    /// DER, the signer's own first.
    pub(super) fn der(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|certificate| certificate.der.as_ref())
    }
}

fn certificate_of_bundle(raw: &RawCertificate) -> Result<ReadCertificate, Problem> {
    let der = decoded("a certificate", &raw.raw_bytes)?;
    ReadCertificate::parse(der.into()).or_else(unreadable)
}

fn unreadable<T>(error: x509_cert::der::Error) -> Result<T, Problem> {
    problem(format!("a certificate: {error}"), "an X.509 certificate")
}

/// Every intermediate has to be that of an authority, which webpki sees in the basic constraints
/// alone.
fn may_vouch(path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
    for certificate in path.intermediate_certificates() {
        let read = ReadCertificate::parse(certificate.der().into_owned());
        match read.and_then(|read| read.may_vouch()) {
            Ok(true) => {}
            Ok(false) => return Err(webpki::Error::EndEntityUsedAsCa),
            Err(_) => return Err(webpki::Error::BadDer),
        }
    }
    Ok(())
}

/// Why there is no path.
fn shown(error: &webpki::Error) -> String {
    let text = match error {
        webpki::Error::UnknownIssuer => "no root that was given vouches for it",
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => {
            "a certificate above it was not valid when it became valid"
        }
        webpki::Error::EndEntityUsedAsCa => "one above it is not that of an authority",
        webpki::Error::CaUsedAsEndEntity => "it is that of an authority itself",
        webpki::Error::InvalidSignatureForPublicKey => "its issuer has not signed it",
        webpki::Error::PathLenConstraintViolated => "its path is longer than an authority allows",
        other => return other.to_string(),
    };
    text.to_owned()
}

/// What certificates are for is judged of the signer's alone, as OpenSSF's tool does.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// ECDSA on P-521 with SHA-512, which webpki's own algorithms lack.
static P521_WITH_SHA512: P521WithSha512 = P521WithSha512;

#[derive(Debug)]
struct P521WithSha512;

impl SignatureVerificationAlgorithm for P521WithSha512 {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        use p521::ecdsa::signature::Verifier;
        let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(public_key);
        let signature = p521::ecdsa::DerSignature::from_bytes(signature);
        let (Ok(key), Ok(signature)) = (key, signature) else {
            return Err(InvalidSignature);
        };
        let verified = key.verify(message, &signature);
        verified.map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA512
    }
}

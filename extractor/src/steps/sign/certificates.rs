//! Signatures with X.509 certificates, whose roots the user names. A bundle has the signer's own
//! certificate first, then intermediates, as OpenSSF's model signing has them.

use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use segpack_formats::digest::Sha256;
use segpack_manifests::documents::SigningCertificate;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, VerifiedPath};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{Decode, EncodePem};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};
use x509_cert::name::Name;

use super::bundle::RawCertificate;
use super::keys::{PrivateKey, PublicKey, read_pem};
use super::problem::{Problem, problem};
use super::signed::{Signed, SignedBy, decoded};
use super::{SignError, ecdsa};
use crate::steps::StepError;

/// `id-kp-codeSigning` of RFC 5280, section 4.2.1.12.
const CODE_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.3");
/// More certificates than any path has. Their number is what the time to find a path depends on.
const MAX_CERTIFICATES: usize = 10;

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
        for der in CertificateDer::pem_slice_iter(&pem) {
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
        PublicKey::of_pem(&self.key_pem().ok()?)
    }

    fn key_pem(&self) -> Result<String, x509_cert::der::Error> {
        let key = &self.certificate.tbs_certificate.subject_public_key_info;
        key.to_pem(LineEnding::LF)
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

    /// Whether it may be above so many others.
    fn allows(&self, intermediates: usize) -> bool {
        let constraints = self.extension::<BasicConstraints>().ok().flatten();
        let length = constraints.and_then(|constraints| constraints.path_len_constraint);
        length.is_none_or(|length| intermediates <= usize::from(length))
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

    /// Its owner, who has signed.
    pub(super) fn signer(&self) -> Result<SignedBy, x509_cert::der::Error> {
        Ok(SignedBy {
            key_sha256: Sha256::of(self.key_pem()?.as_bytes()),
            certificate: Some(SigningCertificate {
                sha256: Sha256::of(&self.der),
                subject: self.subject(),
                names: self.names()?,
                issuer: self.issuer(),
                login: None,
            }),
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
        if chain.len() > MAX_CERTIFICATES {
            let seen = format!("{} certificates", chain.len());
            return problem(seen, format!("at most {MAX_CERTIFICATES}"));
        }
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
                    "the certificate of {:?} is not for signatures",
                    leaf.subject()
                ),
                "the key usage digitalSignature, or the extended key usage codeSigning",
            );
        }
        self.vouch_for(leaf, intermediates)?;
        let Some(key) = leaf.public_key() else {
            return problem(
                format!("the key of {:?} is of another kind", leaf.subject()),
                "one of the curves P-256, P-384 or P-521",
            );
        };
        if !key.has_signed(&signed.message(), signed.signature) {
            let seen = format!("is not the signature of {:?}", leaf.subject());
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
        let refuse = |why: &str| {
            problem(
                format!("the certificate of {:?}: {why}", leaf.subject()),
                "one for which a root that was given vouches",
            )
        };
        // given as a root, it needs nobody else
        if self.roots.iter().any(|root| root.der == leaf.der) {
            return Ok(());
        }
        let time = leaf.valid_from();
        let anchors = self.anchors(time);
        if anchors.is_empty() {
            return refuse(
                "no root that was given is that of an authority and was valid when it became valid",
            );
        }
        let ders: Vec<_> = intermediates.iter().map(|c| c.der.clone()).collect();
        let mut algorithms = webpki::ALL_VERIFICATION_ALGS.to_vec();
        algorithms.extend(ecdsa::MORE);
        let path = EndEntityCert::try_from(&leaf.der).and_then(|certificate| {
            let only = |path: &VerifiedPath<'_>| self.allow(path);
            certificate
                .verify_for_usage(
                    &algorithms,
                    &anchors,
                    &ders,
                    time,
                    AnyUsage,
                    None,
                    Some(&only),
                )
                .map(drop)
        });
        path.or_else(|error| refuse(&shown(&error)))
    }

    /// The roots that may vouch for what became valid at a time.
    fn anchors(&self, time: UnixTime) -> Vec<TrustAnchor<'_>> {
        let usable =
            |root: &&ReadCertificate| root.is_valid_at(time) && root.may_vouch().unwrap_or(false);
        let roots = self.roots.iter().filter(usable);
        let anchors = roots.filter_map(|root| webpki::anchor_from_trusted_cert(&root.der).ok());
        anchors.collect()
    }

    /// What webpki does not look at: that every intermediate may sign certificates, and how many of
    /// them its root allows.
    fn allow(&self, path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
        let mut intermediates = 0;
        for certificate in path.intermediate_certificates() {
            let read = ReadCertificate::parse(certificate.der().into_owned());
            match read.and_then(|read| read.may_vouch()) {
                Ok(true) => intermediates += 1,
                Ok(false) => return Err(webpki::Error::EndEntityUsedAsCa),
                Err(_) => return Err(webpki::Error::BadDer),
            }
        }
        let is_of_path = |root: &&ReadCertificate| {
            let anchor = webpki::anchor_from_trusted_cert(&root.der);
            anchor.is_ok_and(|anchor| anchor == *path.anchor())
        };
        let mut roots = self.roots.iter().filter(is_of_path);
        match roots.any(|root| root.allows(intermediates)) {
            true => Ok(()),
            false => Err(webpki::Error::PathLenConstraintViolated),
        }
    }

    /// A distinguished name is compared with the subject, everything else with the alternative names:
    /// whoever issues certificates vouches for a name as what it is.
    fn compare_identity(&self, leaf: &ReadCertificate) -> Result<(), Problem> {
        let Some(wanted) = &self.identity else {
            return Ok(());
        };
        let names = leaf.names().or_else(unreadable)?;
        let is_theirs = match wanted.parse::<Name>() {
            Ok(_) => *wanted == leaf.subject(),
            Err(_) => names.contains(wanted),
        };
        match is_theirs {
            true => Ok(()),
            false => problem(
                format!("is signed by {:?}, {names:?}", leaf.subject()),
                format!("{wanted:?}"),
            ),
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

    /// Who signs with it.
    ///
    /// # Errors
    /// Where the certificate cannot be read.
    pub(super) fn signer(&self) -> Result<SignedBy, SignError> {
        let signer = self.leaf().signer();
        signer.map_err(|e| SignError::Pem {
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

/// Why there is no path.
fn shown(error: &webpki::Error) -> String {
    use webpki::Error;
    let text = match error {
        Error::UnknownIssuer => "no root that was given vouches for it",
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } => {
            "a certificate above it was not valid when it became valid"
        }
        Error::EndEntityUsedAsCa => "one above it is not that of an authority",
        Error::CaUsedAsEndEntity => {
            "it is that of an authority itself, which signs only where it is given as a root"
        }
        Error::InvalidSignatureForPublicKey => {
            "its issuer has not signed it, or with an RSA key of fewer than 2048 bits"
        }
        Error::PathLenConstraintViolated => "its path is longer than an authority allows",
        Error::NameConstraintViolation => {
            "its names are not those that an authority above it may vouch for, or of a kind that is not \
             understood"
        }
        Error::UnsupportedCriticalExtension => {
            "a certificate of its path has a critical extension that is not understood"
        }
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            "a certificate of its path is signed with an algorithm that is not taken"
        }
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

//! Keyless signatures: a Sigstore instance gives out a certificate for minutes to whoever has logged
//! in, and records in a public log what was signed with it. Its own crate verifies all of it,
//! offline, from what the user trusts of the instance.

use std::path::Path;

use sigstore_verify::trust_root::TrustedRoot;
use sigstore_verify::types::{Bundle, Sha256Hash, SignatureContent};
use sigstore_verify::{VerificationPolicy, Verifier};

use super::SignError;
use super::certificates::ReadCertificate;
use super::keys::read_small;
use super::problem::{Problem, problem};
use super::provider;
use super::signed::{Signed, SignedBy, statement, subject};
use crate::steps::StepError;

/// More than the trusted root of any instance takes.
const MAX_ROOT_BYTES: u64 = 4 << 20;
/// One for each log, of which an instance has few.
const MAX_ENTRIES: usize = 16;

/// Who has to have logged in where, and what is trusted to say so.
pub(in crate::steps) struct SigstoreIdentity {
    verifier: Verifier,
    policy: VerificationPolicy,
    issuer: String,
}

impl SigstoreIdentity {
    /// Reads what is trusted: a `trusted_root.json`, or a trust configuration that holds one.
    ///
    /// # Errors
    /// `TrustedRoot`; `Io`.
    pub(super) fn read(
        trusted_root: &Path,
        identity: &str,
        issuer: &str,
    ) -> Result<Self, StepError> {
        provider::install();
        let wrong = |what: String| SignError::TrustedRoot {
            path: trusted_root.to_owned(),
            what,
        };
        let json = read_small(trusted_root, MAX_ROOT_BYTES)?;
        let json = json.and_then(|json| String::from_utf8(json).ok());
        let json = json.ok_or_else(|| wrong("not a file of text".to_owned()))?;
        let root = trusted_root_of(&json).map_err(wrong)?;
        let verifier = Verifier::new(&root).map_err(|e| wrong(e.to_string()))?;
        Ok(Self {
            verifier,
            policy: VerificationPolicy::new(identity, issuer),
            issuer: issuer.to_owned(),
        })
    }

    /// Whether they signed: the certificate, that it was logged, and that the log is the instance's.
    pub(super) fn has_signed(&self, signed: &Signed<'_>) -> Result<SignedBy, Problem> {
        let wanted = "a keyless signature of the identity that was given, as its instance logs it";
        let refuse = |what: String| problem(format!("a keyless signature: {what}"), wanted);
        if signed.material.tlog_entries > MAX_ENTRIES {
            return refuse(format!("{} entries of logs", signed.material.tlog_entries));
        }
        let json = String::from_utf8_lossy(signed.json);
        let bundle = match Bundle::from_json(&json) {
            Ok(bundle) => bundle,
            Err(e) => return refuse(e.to_string()),
        };
        if !is_of_envelope(&bundle, signed) {
            return refuse("it is not of the statement".to_owned());
        }
        let subject = Sha256Hash::new(subject(&statement(signed.payload)?)?.0);
        if let Err(e) = self.verifier.verify(subject, &bundle, &self.policy) {
            return refuse(e.to_string());
        }
        let Some(certificate) = bundle.signing_certificate() else {
            return refuse("it has no certificate".to_owned());
        };
        let der = certificate.as_bytes().to_vec();
        match ReadCertificate::parse(der.into()).and_then(|read| read.signer()) {
            Ok(by) => Ok(self.logged_in(by)),
            Err(e) => refuse(e.to_string()),
        }
    }

    /// Where they logged in is part of who they are.
    fn logged_in(&self, mut by: SignedBy) -> SignedBy {
        if let Some(certificate) = &mut by.certificate {
            certificate.login = Some(self.issuer.clone());
        }
        by
    }
}

/// Whether what is verified is what was read here: the crate reads the bundle by itself.
fn is_of_envelope(bundle: &Bundle, signed: &Signed<'_>) -> bool {
    match &bundle.content {
        SignatureContent::DsseEnvelope(envelope) => {
            envelope.payload.as_bytes() == signed.payload
                && envelope.signature.sig.as_bytes() == signed.signature
        }
        _ => false,
    }
}

fn trusted_root_of(json: &str) -> Result<TrustedRoot, String> {
    let mut value: serde_json::Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let inner = value.get_mut("trustedRoot").map(serde_json::Value::take);
    let json = inner.map_or_else(|| json.to_owned(), |inner| inner.to_string());
    TrustedRoot::from_json(&json).map_err(|e| e.to_string())
}

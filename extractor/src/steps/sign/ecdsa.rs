//! The ECDSA that webpki's own algorithms lack: P-521, and SHA-512 under shorter curves. OpenSSL
//! digests with SHA-256 unless told otherwise, whatever the curve.

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use ring::digest;
use rustls_pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};

/// A curve with a digest.
#[derive(Debug)]
struct Ecdsa {
    curve: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    digest: &'static digest::Algorithm,
    /// Whether a signature is that of a digest with a public key, a point of the curve (SEC1).
    verify: fn(public_key: &[u8], digest: &[u8], signature: &[u8]) -> bool,
}

/// Whether a signature is that of a digest with a public key.
macro_rules! verify_with {
    ($name:ident, $library:ident, $bytes:literal) => {
        pub(super) fn $name(public_key: &[u8], digest: &[u8], signature: &[u8]) -> bool {
            let key = $library::ecdsa::VerifyingKey::from_sec1_bytes(public_key);
            let signature = $library::ecdsa::Signature::from_der(signature);
            let (Ok(key), Ok(signature)) = (key, signature) else {
                return false;
            };
            // the same number (FIPS 186-5, 6.4.2): one of less than half the curve's length is refused
            let mut padded = vec![0; $bytes.max(digest.len())];
            let start = padded.len() - digest.len();
            padded[start..].copy_from_slice(digest);
            key.verify_prehash(&padded, &signature).is_ok()
        }
    };
}

verify_with!(verify_p256, p256, 32_usize);
verify_with!(verify_p384, p384, 48_usize);
verify_with!(verify_p521, p521, 66_usize);

/// A curve with SHA-256, SHA-384 or SHA-512.
macro_rules! ecdsa {
    ($curve:ident, $signature:ident, $digest:ident, $verify:ident) => {
        &Ecdsa {
            curve: alg_id::$curve,
            signature: alg_id::$signature,
            digest: &digest::$digest,
            verify: $verify,
        }
    };
}

/// What webpki's own algorithms lack.
pub(super) const MORE: [&dyn SignatureVerificationAlgorithm; 5] = [
    ecdsa!(ECDSA_P521, ECDSA_SHA512, SHA512, verify_p521),
    ecdsa!(ECDSA_P521, ECDSA_SHA384, SHA384, verify_p521),
    ecdsa!(ECDSA_P521, ECDSA_SHA256, SHA256, verify_p521),
    ecdsa!(ECDSA_P384, ECDSA_SHA512, SHA512, verify_p384),
    ecdsa!(ECDSA_P256, ECDSA_SHA512, SHA512, verify_p256),
];

impl SignatureVerificationAlgorithm for Ecdsa {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let digest = digest::digest(self.digest, message);
        match (self.verify)(public_key, digest.as_ref(), signature) {
            true => Ok(()),
            false => Err(InvalidSignature),
        }
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.curve
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

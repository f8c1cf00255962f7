//! Why a pack is not signed, or a signature cannot be checked.

use std::path::PathBuf;

/// Why a pack is not signed, or its signature cannot be checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// The private key is of no kind that the specification has.
    #[error(
        "{} holds no private key of the curves P-256, P-384 or P-521 (PKCS#8 or SEC1, as PEM, not \
         encrypted)",
        path.display()
    )]
    PrivateKey {
        /// The file.
        path: PathBuf,
    },
    /// The private key is encrypted.
    #[error("{} holds an encrypted private key, and nothing here decrypts it", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// A public key in the place of a private one.
    #[error("{} holds a public key: its private key is wanted", path.display())]
    NotPrivate {
        /// The file.
        path: PathBuf,
    },
    /// The public key is of no kind that the specification has.
    #[error("{} holds no public key of the curves P-256, P-384 or P-521 (PEM)", path.display())]
    PublicKey {
        /// The file.
        path: PathBuf,
    },
    /// Certificates cannot be used.
    #[error("{} has no certificates to use: {what}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// What is trusted of a Sigstore instance cannot be read.
    #[error("{} is no trusted root of a Sigstore instance: {what}", path.display())]
    TrustedRoot {
        /// The file.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// There is a signature already.
    #[error("{} exists", path.display())]
    Exists {
        /// The signature.
        path: PathBuf,
    },
    /// Something else than a signature would be replaced.
    #[error("{} is no signature, and is not replaced", path.display())]
    NotASignature {
        /// What is there.
        path: PathBuf,
    },
    /// A pack is to be signed as any folder, without being verified.
    #[error("{} is a pack, whose files are not to be signed unverified", path.display())]
    IsAPack {
        /// The pack.
        path: PathBuf,
    },
    /// There is nothing to sign.
    #[error("{} holds no files that a signature covers", path.display())]
    NoFiles {
        /// The folder.
        path: PathBuf,
    },
    /// The signature cannot be written as JSON.
    #[error("cannot write a signature")]
    Encode(#[source] serde_json::Error),
    /// A key cannot be written as PEM.
    #[error("cannot write a public key: {what}")]
    Pem {
        /// Why not.
        what: String,
    },
}

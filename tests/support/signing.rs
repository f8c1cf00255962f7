//! Keys, and signatures that other tools made.

use std::fs;
use std::path::{Path, PathBuf};

use p256::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};

use super::checkpoint::fixtures;

/// What `model_signing` 1.1.1 signed, and with which keys.
pub fn example(name: &str) -> PathBuf {
    fixtures().join("signing").join(name)
}

/// A key pair of each curve, as PKCS#8 or SEC1, in a folder.
pub fn keys(folder: &Path) -> [(PathBuf, PathBuf); 4] {
    macro_rules! pair {
        ($name:literal, $curve:ident, $bytes:literal) => {{
            let secret = $curve::SecretKey::from_slice(&[1; $bytes]).unwrap();
            let private = secret.to_pkcs8_pem(LineEnding::LF).unwrap();
            let public = secret
                .public_key()
                .to_public_key_pem(LineEnding::LF)
                .unwrap();
            write_pair(folder, $name, &private, &public)
        }};
    }
    let secret = p256::SecretKey::from_slice(&[2; 32]).unwrap();
    let sec1 = secret.to_sec1_pem(LineEnding::LF).unwrap();
    let public = secret
        .public_key()
        .to_public_key_pem(LineEnding::LF)
        .unwrap();
    [
        pair!("p256", p256, 32),
        pair!("p384", p384, 48),
        pair!("p521", p521, 66),
        write_pair(folder, "sec1", &sec1, &public),
    ]
}

fn write_pair(folder: &Path, name: &str, private: &str, public: &str) -> (PathBuf, PathBuf) {
    let path = |ending| folder.join(format!("{name}.{ending}"));
    fs::write(path("pem"), private).unwrap();
    fs::write(path("pub"), public).unwrap();
    (path("pem"), path("pub"))
}

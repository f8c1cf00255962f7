use segpack_manifests::documents::{CheckedSignature, SignSummary, SigningCertificate};

use super::numbers::counted;
use super::page::Page;

/// What `sign` signed at `place`: a pack, or the files of a folder that is none.
pub(crate) fn sign(summary: &SignSummary, place: &str) -> String {
    let mut page = Page::default();
    let files = counted(summary.files, "file");
    match summary.manifest_sha256 {
        Some(_) => page.line(format_args!("{place}: verified and signed, {files}")),
        None => page.line(format_args!("{place}: signed, {files}")),
    }
    page.line(format_args!("public key SHA-256 {}", summary.key_sha256));
    if let Some(certificate) = &summary.certificate {
        page.line(format_args!("certificate of {}", owner(certificate)));
    }
    if let Some(identity) = summary.manifest_sha256 {
        page.line(format_args!("manifest SHA-256 {identity}"));
    }
    page.into_text()
}

/// Whose a signature is, in words.
pub(super) fn signer(signature: &CheckedSignature) -> String {
    match &signature.certificate {
        None => format!("the key with SHA-256 {}", signature.key_sha256),
        Some(certificate) => owner(certificate),
    }
}

/// The owner of a certificate, and who says so.
fn owner(certificate: &SigningCertificate) -> String {
    let mut names = certificate.names.clone();
    if !certificate.subject.is_empty() {
        names.insert(0, certificate.subject.clone());
    }
    let names = visible(&names.join(", "));
    match &certificate.login {
        Some(login) => format!("{names} (logged in at {login})"),
        None => format!("{names} (issued by {})", visible(&certificate.issuer)),
    }
}

/// Text of a certificate, with what a terminal would obey or not show escaped.
fn visible(text: &str) -> String {
    let escaped = |c: char| match c {
        '"' | '\'' | '\\' => c.to_string(),
        c => c.escape_debug().to_string(),
    };
    text.chars().map(escaped).collect()
}

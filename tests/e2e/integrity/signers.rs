//! Whose a signature is: certificates under the roots that were given, and keyless signatures of a
//! made-up Sigstore instance (`tests/tools/make_keyless_signature.py`). Commands that use a pack
//! demand one. That OpenSSF's tool takes ours is a test of `tests/peers`.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    date_time_ymd,
};
use serde_json::{Value, json};

use crate::support::cli::{Run, segpack};
use crate::support::damage::flip;
use crate::support::folders::temp;
use crate::support::packs::pack_into;
use crate::support::signing::{example, keys};
use crate::support::tiny::tiny_text;

/// The email address and the issuer that the made-up keyless signature is of.
const IDENTITY: &str = "signer@example.org";
const LOGIN: &str = "https://login.example.org";

/// A certificate and its key.
struct Made {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

/// A certificate of this name that `change` made another one, by `issuer` or by itself.
fn made(name: &str, issuer: Option<&Made>, change: impl Fn(&mut CertificateParams)) -> Made {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    change(&mut params);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = match issuer {
        None => params.self_signed(&key),
        Some(above) => {
            let above = Issuer::from_params(&above.params, &above.key);
            params.signed_by(&key, &above)
        }
    };
    let pem = certificate.unwrap().pem();
    Made { params, key, pem }
}

fn authority(params: &mut CertificateParams) {
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
}

fn signs(params: &mut CertificateParams) {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
}

/// A folder of PEM files.
struct Desk(tempfile::TempDir);

impl Desk {
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A pack, not signed yet.
    fn pack(&self) -> PathBuf {
        let pack = self.0.path().join("pack");
        pack_into(tiny_text().as_path(), &pack, &[]);
        pack
    }

    fn sign(&self, pack: &Path, leaf: &Made, above: &[&Made]) -> Run {
        let key = self.write("leaf.key", &leaf.key.serialize_pem());
        let pem: String = above.iter().map(|made| made.pem.as_str()).collect();
        let certificate = self.write("leaf.pem", &format!("{}{pem}", leaf.pem));
        let (key, certificate) = (key.as_os_str(), certificate.as_os_str());
        segpack![
            "sign",
            pack,
            "--key",
            key,
            "--certificate",
            certificate,
            "--force",
            "--json"
        ]
    }

    fn verify(&self, pack: &Path, root: &Made, more: &[&str]) -> Run {
        let roots = self.write("root.pem", &root.pem);
        let mut arguments = vec!["verify".into(), pack.into(), "--signature".into()];
        arguments.extend(["--json".into(), "--certificate-chain".into(), roots.into()]);
        arguments.extend(more.iter().map(Into::into));
        crate::support::cli::run(&arguments)
    }
}

/// What `verify --json` says of a signature that is not right.
#[track_caller]
fn refused(run: Run, words: &[&str]) {
    let run = run.exits(3);
    assert_eq!(run.json()["signature"], Value::Null);
    let findings = run.json()["findings"].to_string();
    for word in words {
        assert!(findings.contains(word), "{word}: {findings}");
    }
}

fn tiny() -> PathBuf {
    example("tiny.segpack")
}

fn signature(name: &str) -> String {
    format!("--signature={}", example(name).display())
}

#[test]
fn what_the_openssf_tool_signed_with_a_certificate_is_verified_under_its_root() {
    let roots = example("root-cert.pem");
    let by = |more: &[&str]| {
        let mut arguments = vec!["verify".into(), tiny().into(), signature("cert.sig").into()];
        arguments.extend([
            "--json".into(),
            "--certificate-chain".into(),
            roots.clone().into(),
        ]);
        arguments.extend(more.iter().map(Into::into));
        crate::support::cli::run(&arguments)
    };
    let report = by(&[]).ok().json();
    let certificate = &report["signature"]["certificate"];
    assert_eq!(report["signature"]["files"], 8);
    let subject = certificate["subject"].as_str().unwrap().to_owned();
    by(&["--identity", &subject]).ok();
    refused(
        by(&["--identity", "CN=somebody else"]),
        &["is signed by", &subject],
    );
    // a root that was not given, and a signature of another kind
    let desk = Desk(temp());
    let other = desk.write("other.pem", &made("other", None, authority).pem);
    let arguments = ["--certificate-chain", other.to_str().unwrap(), "--json"];
    let run = segpack![
        "verify",
        tiny(),
        signature("cert.sig"),
        arguments[0],
        arguments[1],
        arguments[2]
    ];
    refused(run, &["no root that was given vouches for it"]);
    let run = segpack![
        "verify",
        tiny(),
        signature("key.sig"),
        "--certificate-chain",
        &roots,
        "--json"
    ];
    refused(run, &["is signed with a key"]);
    let run = segpack![
        "verify",
        tiny(),
        signature("cert.sig"),
        "--certificate-chain",
        &roots
    ];
    let line = format!("signature: of all 8 files, by {subject} (issued by ");
    assert!(run.ok().text().contains(&line));
}

#[test]
fn a_pack_is_signed_with_a_certificate_and_its_intermediates() {
    let desk = Desk(temp());
    let pack = desk.pack();
    let root = made("root", None, authority);
    let above = made("above", Some(&root), authority);
    let leaf = made("leaf", Some(&above), |params| {
        signs(params);
        params.subject_alt_names = vec![rcgen::SanType::Rfc822Name(IDENTITY.try_into().unwrap())];
        // it has run out since
        params.not_before = date_time_ymd(2021, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 2);
    });
    let summary = desk.sign(&pack, &leaf, &[&above]).ok().json();
    assert_eq!(summary["certificate"]["subject"], "CN=leaf");
    let report = desk.verify(&pack, &root, &[]).ok().json();
    assert_eq!(report["findings"], json!([]));
    assert_eq!(report["signature"]["certificate"], summary["certificate"]);
    assert_eq!(report["signature"]["key_sha256"], summary["key_sha256"]);
    for name in [IDENTITY, "CN=leaf"] {
        desk.verify(&pack, &root, &["--identity", name]).ok();
    }
    refused(
        desk.verify(&pack, &root, &["--identity", "signer@example.com"]),
        &[IDENTITY],
    );
    // what is signed under the intermediate alone is under that root, too
    desk.verify(&pack, &above, &[]).ok();
    let config = pack.join("manifest.json");
    flip(&config, 9);
    desk.verify(&pack, &root, &[]).exits(3);
}

#[test]
fn what_no_root_vouches_for_is_no_signature() {
    let desk = Desk(temp());
    let pack = desk.pack();
    let root = made("root", None, authority);
    let above = made("above", Some(&root), authority);
    let leaf = made("leaf", Some(&above), signs);
    // without the intermediate
    desk.sign(&pack, &leaf, &[]).ok();
    refused(
        desk.verify(&pack, &root, &[]),
        &["no root that was given vouches for it"],
    );
    // one of its name, but another key
    let double = made("root", None, authority);
    desk.sign(&pack, &leaf, &[&above]).ok();
    desk.verify(&pack, &root, &[]).ok();
    refused(
        desk.verify(&pack, &double, &[]),
        &["its issuer has not signed it"],
    );
    // an intermediate that is no authority, or may not sign certificates
    let plain = made("plain", Some(&root), signs);
    let under_plain = made("leaf", Some(&plain), signs);
    desk.sign(&pack, &under_plain, &[&plain]).ok();
    refused(
        desk.verify(&pack, &root, &[]),
        &["not that of an authority"],
    );
    let idle = made("idle", Some(&root), |params| {
        authority(params);
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
    });
    let under_idle = made("leaf", Some(&idle), signs);
    desk.sign(&pack, &under_idle, &[&idle]).ok();
    refused(
        desk.verify(&pack, &root, &[]),
        &["not that of an authority"],
    );
    // a root that is no authority, or younger than what it vouches for
    refused(desk.verify(&pack, &plain, &[]), &["no root that was given"]);
    let young = made("root", None, |params| {
        authority(params);
        params.not_before = date_time_ymd(2030, 1, 1);
    });
    let under_young = made("leaf", Some(&young), signs);
    desk.sign(&pack, &under_young, &[]).ok();
    refused(desk.verify(&pack, &young, &[]), &["no root that was given"]);
}

#[test]
fn only_a_certificate_for_signatures_and_of_the_key_signs() {
    let desk = Desk(temp());
    let pack = desk.pack();
    let root = made("root", None, authority);
    let idle = made("idle", Some(&root), |params| {
        params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    });
    desk.sign(&pack, &idle, &[])
        .exits(3)
        .says(&["leaf.pem", "CN=idle", "digitalSignature"]);
    let code = made("code", Some(&root), |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    });
    desk.sign(&pack, &code, &[]).ok();
    desk.verify(&pack, &root, &[]).ok();
    let leaf = made("leaf", Some(&root), signs);
    let other = Made {
        key: KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
        ..made("leaf", Some(&root), signs)
    };
    desk.sign(&pack, &other, &[])
        .exits(3)
        .says(&["CN=leaf has another key"]);
    desk.sign(&pack, &leaf, &[&leaf])
        .exits(3)
        .says(&["is not the issuer of"]);
    let empty = desk.write("empty.pem", "no certificate\n");
    let key = desk.write("key.pem", &leaf.key.serialize_pem());
    segpack!["sign", &pack, "--key", &key, "--certificate", &empty]
        .exits(3)
        .says(&["empty.pem", "it has none"]);
    segpack![
        "verify",
        &pack,
        "--signature",
        "--certificate-chain",
        &empty
    ]
    .exits(3);
    // a stolen certificate does not make its owner the signer
    desk.sign(&pack, &leaf, &[]).ok();
    let path = pack.join("model.sig");
    let mut bundle: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let stolen = made("boss", Some(&root), signs);
    let der = base64_of_pem(&stolen.pem);
    bundle["verificationMaterial"]["x509CertificateChain"]["certificates"] =
        json!([{"rawBytes": der}]);
    fs::write(&path, bundle.to_string()).unwrap();
    refused(
        desk.verify(&pack, &root, &[]),
        &["is not the signature of", "CN=boss"],
    );
    bundle["verificationMaterial"]["publicKey"] = json!({"hint": "00"});
    fs::write(&path, bundle.to_string()).unwrap();
    refused(
        desk.verify(&pack, &root, &[]),
        &["names a key and a certificate"],
    );
}

fn base64_of_pem(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with('-')).collect()
}

/// `verify` of the keyless signature, which was changed.
fn keyless(change: impl Fn(&mut Value), identity: &str, issuer: &str, root: &Path) -> Run {
    let folder = temp();
    let bytes = fs::read(example("keyless.sig")).unwrap();
    let mut bundle: Value = serde_json::from_slice(&bytes).unwrap();
    change(&mut bundle);
    let path = folder.path().join("changed.sig");
    fs::write(&path, bundle.to_string()).unwrap();
    let signature = format!("--signature={}", path.display());
    segpack![
        "verify",
        tiny(),
        signature,
        "--json",
        "--identity",
        identity,
        "--issuer",
        issuer,
        "--trusted-root",
        root
    ]
}

#[test]
fn a_keyless_signature_is_of_an_identity_as_its_instance_logged_it() {
    let root = example("trusted_root.json");
    let same = |_: &mut Value| {};
    let report = keyless(same, IDENTITY, LOGIN, &root).ok().json();
    let certificate = &report["signature"]["certificate"];
    assert_eq!(certificate["names"], json!([IDENTITY]));
    assert_eq!(certificate["login"], LOGIN);
    refused(
        keyless(same, "other@example.org", LOGIN, &root),
        &["other@example.org", IDENTITY],
    );
    refused(
        keyless(same, IDENTITY, "https://example.com", &root),
        &["issuer mismatch"],
    );
    // not logged, at another time, another entry, another log
    let entries = "/verificationMaterial/tlogEntries";
    let unlogged = |bundle: &mut Value| *bundle.pointer_mut(entries).unwrap() = json!([]);
    refused(
        keyless(unlogged, IDENTITY, LOGIN, &root),
        &["a keyless signature:"],
    );
    for (what, value) in [
        ("integratedTime", json!("1793534000")),
        ("canonicalizedBody", json!("e30=")),
        ("logIndex", json!("1")),
    ] {
        let changed = |bundle: &mut Value| {
            bundle["verificationMaterial"]["tlogEntries"][0][what] = value.clone();
        };
        refused(
            keyless(changed, IDENTITY, LOGIN, &root),
            &["a keyless signature:"],
        );
    }
    let payload = |bundle: &mut Value| {
        let text = bundle["dsseEnvelope"]["payload"]
            .as_str()
            .unwrap()
            .replace('A', "B");
        bundle["dsseEnvelope"]["payload"] = text.into();
    };
    keyless(payload, IDENTITY, LOGIN, &root).exits(3);
    // of a certificate as if it were a chain of certificates
    let run = segpack![
        "verify",
        tiny(),
        signature("keyless.sig"),
        "--certificate-chain",
        example("root-cert.pem"),
        "--json"
    ];
    refused(run, &["by a Sigstore identity"]);
}

#[test]
fn what_is_trusted_of_an_instance_has_to_be_its_trusted_root() {
    let folder = temp();
    let path = folder.path().join("root.json");
    let text = fs::read_to_string(example("trusted_root.json")).unwrap();
    let root: Value = serde_json::from_str(&text).unwrap();
    let same = |_: &mut Value| {};
    // a trust configuration has one
    fs::write(
        &path,
        json!({"trustedRoot": root, "signingConfig": {}}).to_string(),
    )
    .unwrap();
    keyless(same, IDENTITY, LOGIN, &path).ok();
    for part in ["tlogs", "certificateAuthorities", "ctlogs"] {
        let mut without = root.clone();
        without[part] = json!([]);
        fs::write(&path, without.to_string()).unwrap();
        refused(
            keyless(same, IDENTITY, LOGIN, &path),
            &["a keyless signature:"],
        );
    }
    for text in ["", "{}", "[1", "\u{0}", &text[..700]] {
        fs::write(&path, text).unwrap();
        keyless(same, IDENTITY, LOGIN, &path)
            .exits(3)
            .says(&["root.json is no trusted root of a Sigstore instance"]);
    }
    let arguments = ["--signature", "--trusted-root", "x", "--identity", "y"];
    segpack![
        "verify",
        tiny(),
        arguments[0],
        arguments[1],
        arguments[2],
        arguments[3],
        arguments[4]
    ]
    .exits(2)
    .says(&["--issuer"]);
}

#[test]
fn commands_use_no_pack_that_is_not_signed_as_it_has_to_be() {
    let folder = temp();
    let place = |name: &str| folder.path().join(name);
    let pack = place("pack");
    pack_into(tiny_text().as_path(), &pack, &[]);
    let [(private, public), (_, other), ..] = keys(folder.path());
    let cat = |key: &Path| {
        segpack![
            "cat",
            &pack,
            "config.json",
            "--require-signature",
            "--public-key",
            key
        ]
    };
    cat(&public)
        .exits(3)
        .says(&["not signed as it has to be", "model.sig"]);
    segpack!["sign", &pack, "--key", &private].ok();
    cat(&public).ok();
    cat(&other).exits(3).says(&["the key with SHA-256"]);
    for (key, status) in [(&public, 0), (&other, 3)] {
        let outputs =
            ["restored", "exported", "said"].map(|name| place(&format!("{name}{status}")));
        let run = ["--max-new-tokens", "2", "--prompt-ids", "1,2"];
        segpack![
            "unpack",
            &pack,
            "-o",
            &outputs[0],
            "--require-signature",
            "--public-key",
            key
        ]
        .exits(status);
        segpack![
            "export",
            &pack,
            "--to",
            "safetensors",
            "-o",
            &outputs[1],
            "--require-signature",
            "--public-key",
            key
        ]
        .exits(status);
        segpack![
            "run",
            &pack,
            run[0],
            run[1],
            run[2],
            run[3],
            "--require-signature",
            "--public-key",
            key
        ]
        .exits(status);
        assert!(
            outputs[..2]
                .iter()
                .all(|output| output.exists() == (status == 0))
        );
    }
    // in another place, and of what is no longer what was signed
    let elsewhere = place("elsewhere.sig");
    fs::rename(pack.join("model.sig"), &elsewhere).unwrap();
    let option = format!("--require-signature={}", elsewhere.display());
    segpack![
        "cat",
        &pack,
        "config.json",
        &option,
        "--public-key",
        &public
    ]
    .ok();
    flip(&pack.join("source/config.json"), 20);
    segpack![
        "cat",
        &pack,
        "config.json",
        &option,
        "--public-key",
        &public
    ]
    .exits(3);
    // nobody is named, there is no pack, and not all would be compared
    segpack![
        "export",
        "--check-share",
        folder.path(),
        "--rank",
        "0/2",
        &option,
        "--public-key",
        &public
    ]
    .exits(2);
    segpack!["cat", &pack, "config.json", &option].exits(2);
    let rows = ["thinker.model.norm.weight", "--rows", "0..1"];
    segpack![
        "cat",
        &pack,
        rows[0],
        rows[1],
        rows[2],
        &option,
        "--public-key",
        &public
    ]
    .exits(2)
    .says(&["--rows", "compared with what was signed"]);
    segpack![
        "run",
        &pack,
        "--prompt-ids",
        "1",
        "--check",
        "never",
        &option,
        "--public-key",
        &public
    ]
    .exits(2)
    .says(&["--check"]);
}

#[test]
fn a_name_is_compared_as_what_it_was_vouched_for() {
    let desk = Desk(temp());
    let pack = desk.pack();
    let root = made("root", None, authority);
    // a common name is no email address, nor is a DNS name a subject
    let boss = made("boss@example.org", Some(&root), signs);
    desk.sign(&pack, &boss, &[]).ok();
    desk.verify(&pack, &root, &["--identity", "CN=boss@example.org"])
        .ok();
    refused(
        desk.verify(&pack, &root, &["--identity", "boss@example.org"]),
        &["is signed by"],
    );
    let claims = made("host", Some(&root), |params| {
        signs(params);
        params.subject_alt_names = vec![rcgen::SanType::DnsName("CN=boss".try_into().unwrap())];
    });
    desk.sign(&pack, &claims, &[]).ok();
    refused(
        desk.verify(&pack, &root, &["--identity", "CN=boss"]),
        &["is signed by"],
    );
    // nobody is everybody's name
    desk.verify(&pack, &root, &["--identity", ""]).exits(2);
    desk.verify(&pack, &root, &["--identity", "CN=host", "--issuer", LOGIN])
        .exits(2)
        .says(&["--issuer"]);
}

#[test]
fn a_root_says_how_long_its_paths_are_and_signs_by_itself_where_it_is_given() {
    let desk = Desk(temp());
    let pack = desk.pack();
    let root = made("root", None, |params| {
        authority(params);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let above = made("above", Some(&root), authority);
    let leaf = made("leaf", Some(&above), signs);
    desk.sign(&pack, &leaf, &[&above]).ok();
    refused(
        desk.verify(&pack, &root, &[]),
        &["longer than an authority"],
    );
    let direct = made("direct", Some(&root), signs);
    desk.sign(&pack, &direct, &[]).ok();
    desk.verify(&pack, &root, &[]).ok();
    let own = made("own", None, |params| {
        authority(params);
        params.key_usages.push(KeyUsagePurpose::DigitalSignature);
    });
    desk.sign(&pack, &own, &[]).ok();
    desk.verify(&pack, &own, &[]).ok();
    refused(
        desk.verify(&pack, &root, &[]),
        &["signs only where it is given as a root"],
    );
    // more certificates than a path has cost time before anybody is trusted
    let path = pack.join("model.sig");
    let mut bundle: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let list = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"].take();
    let many = vec![list[0].clone(); 11];
    bundle["verificationMaterial"]["x509CertificateChain"]["certificates"] = many.into();
    fs::write(&path, bundle.to_string()).unwrap();
    refused(desk.verify(&pack, &own, &[]), &["11 certificates"]);
}

#[test]
fn a_bundle_has_one_signature_and_its_entries_take_no_memory() {
    let root = example("trusted_root.json");
    // of a message, before the envelope: what verifies the one is not what is read of the other
    let text = fs::read_to_string(example("keyless.sig")).unwrap();
    let folder = temp();
    let path = folder.path().join("two.sig");
    let signature = format!("--signature={}", path.display());
    let message = r#"{"messageSignature": {"messageDigest": {}, "signature": "AAAA"}, "#;
    fs::write(&path, text.replacen('{', message, 1)).unwrap();
    let verify = || {
        let (identity, issuer) = (["--identity", IDENTITY], ["--issuer", LOGIN]);
        segpack![
            "verify",
            tiny(),
            &signature,
            "--json",
            identity[0],
            identity[1],
            issuer[0],
            issuer[1],
            "--trusted-root",
            &root
        ]
    };
    refused(verify(), &["has two signatures"]);
    let entries = format!("\"tlogEntries\": [{}", "{},".repeat(100));
    fs::write(&path, text.replacen("\"tlogEntries\": [", &entries, 1)).unwrap();
    refused(verify(), &["101 entries of logs"]);
}

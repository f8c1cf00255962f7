//! Signatures: those that OpenSSF's own tool made are checked, and what `sign` writes is of all files.
//! That the tool takes ours is a test of `tests/peers`.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::signature::Verifier;
use p256::pkcs8::DecodePublicKey;
use serde_json::{Value, json};

use crate::support::cli::{FindingKind, Run, segpack};
use crate::support::damage::{flip, reseal};
use crate::support::folders::{contents, copy, temp};
use crate::support::packs::pack_into;
use crate::support::signing::{example, keys};
use crate::support::tiny::tiny_text;

fn verify(pack: &Path, signature: &str, key: &Path) -> Run {
    segpack!["verify", pack, signature, "--public-key", key, "--json"]
}

#[track_caller]
fn refused(pack: &Path, signature: &str, key: &Path, words: &str) {
    let run = verify(pack, signature, key).exits(3);
    let found = run.findings();
    let bad: Vec<_> = found
        .iter()
        .filter(|f| f.kind == FindingKind::BadSignature)
        .collect();
    assert_eq!(bad.len(), 1, "{run}");
    let printed = format!("{:?} {:?}", bad[0].seen, bad[0].wanted);
    assert!(printed.contains(words), "{printed}");
    assert_eq!(run.json()["signature"], Value::Null);
}

#[test]
fn what_the_openssf_tool_signed_is_verified_and_another_key_is_not_its() {
    let pack = example("tiny.segpack");
    let key = example("test-key.pub.pem");
    for name in ["key.sig", "from-sums.sig"] {
        let option = format!("--signature={}", example(name).display());
        let report = verify(&pack, &option, &key).ok().json();
        assert_eq!(report["signature"]["files"], 8);
        let folder = temp();
        for (_, other) in keys(folder.path()) {
            refused(&pack, &option, &other, "the key with SHA-256");
        }
    }
    let certificate = format!("--signature={}", example("cert.sig").display());
    refused(&pack, &certificate, &key, "is signed with a certificate");
}

#[test]
fn a_signed_pack_is_verified_with_every_kind_of_key_and_is_no_finding() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(tiny_text().as_path(), &pack, &[]);
    for (private, public) in keys(folder.path()) {
        let summary = segpack!["sign", &pack, "--key", &private, "--force", "--json"];
        let summary = summary.ok().json();
        let report = verify(&pack, "--signature", &public).ok().json();
        assert_eq!(report["findings"], json!([]));
        assert_eq!(report["signature"]["key_sha256"], summary["key_sha256"]);
        assert_eq!(report["signature"]["files"], contents(&pack).len() - 1);
        segpack![
            "verify",
            &pack,
            "--quick",
            "--signature",
            "--public-key",
            &public
        ]
        .ok();
    }
    let (private, public) = &keys(folder.path())[0];
    segpack!["sign", &pack, "--key", private]
        .exits(1)
        .says(&["model.sig exists", "--force"]);
    // the same key gives the same signature
    segpack!["sign", &pack, "--key", private, "--force"].ok();
    let beside = folder.path().join("beside.sig");
    segpack!["sign", &pack, "--key", private, "-o", &beside].ok();
    assert_eq!(
        fs::read(&beside).unwrap(),
        fs::read(pack.join("model.sig")).unwrap()
    );
    // wherever the pack is, and whatever its name
    let moved = folder.path().join("another name");
    copy(&pack, &moved);
    verify(&moved, "--signature", public).ok();
    segpack!["verify", &moved, "--signature"].exits(2);
}

/// A change of a statement.
type Change<'c> = &'c dyn Fn(&mut Value);

#[test]
fn what_was_changed_after_it_was_signed_is_found() {
    let folder = temp();
    let (private, public) = &keys(folder.path())[0];
    let pack = folder.path().join("pack");
    pack_into(tiny_text().as_path(), &pack, &[]);
    refused(&pack, "--signature", public, "No such file");
    segpack!["sign", &pack, "--key", private].ok();
    let signed = fs::read(pack.join("model.sig")).unwrap();

    // a changed pack whose manifest and sums were made to fit
    let config = pack.join("source/config.json");
    let mut text = fs::read_to_string(&config).unwrap();
    text = text.replacen("qwen", "qwem", 1);
    fs::write(&config, text).unwrap();
    let damaged = verify(&pack, "--signature", public).exits(3).findings();
    assert!(damaged.iter().any(|f| f.kind == FindingKind::DamagedFile));
    segpack!["sign", &pack, "--key", private, "--force"]
        .exits(3)
        .says(&["nothing was signed"]);
    let document = fs::read_to_string(pack.join("manifest.json")).unwrap();
    let sha256 = segpack_formats::digest::Sha256::of(&fs::read(&config).unwrap()).to_string();
    let listed: Value = serde_json::from_str(&document).unwrap();
    let files = listed["source_files"].as_array().unwrap();
    let before = files.iter().find(|f| f["path"] == "config.json").unwrap();
    let before = before["sha256"].as_str().unwrap();
    fs::write(
        pack.join("manifest.json"),
        document.replace(before, &sha256),
    )
    .unwrap();
    reseal(&pack);
    fs::write(pack.join("model.sig"), &signed).unwrap();
    refused(&pack, "--signature", public, "with SHA-256");

    // a signature that was changed
    pack_into(tiny_text().as_path(), &pack, &[]);
    let bundle: Value = serde_json::from_slice(&signed).unwrap();
    let changes: [(Change<'_>, &str); 5] = [
        (&|b| b["mediaType"] = json!("x"), "media type"),
        (
            &|b| b["dsseEnvelope"]["payloadType"] = json!("x"),
            "payload type",
        ),
        (
            &|b| b["dsseEnvelope"]["signatures"] = json!([]),
            "0 signatures",
        ),
        (
            &|b| b["dsseEnvelope"]["payload"] = json!("AAAA"),
            "is not the signature of this key",
        ),
        (
            &|b| b["dsseEnvelope"]["signatures"][0]["sig"] = json!("AAAA"),
            "is not the signature",
        ),
    ];
    for (change, words) in changes {
        let mut changed = bundle.clone();
        change(&mut changed);
        fs::write(pack.join("model.sig"), changed.to_string()).unwrap();
        refused(&pack, "--signature", public, words);
    }
    fs::write(pack.join("model.sig"), &signed[..100]).unwrap();
    refused(&pack, "--signature", public, "the signature");
    // without a request it is a remark, as before
    let unchecked = segpack!["verify", &pack, "--json"].ok().findings();
    assert_eq!(unchecked[0].kind, FindingKind::UncheckedSignature);
}

#[test]
fn a_sound_signature_hides_nothing_and_one_that_is_too_long_is_not_read() {
    let folder = temp();
    let (private, public) = &keys(folder.path())[0];
    let pack = folder.path().join("pack");
    pack_into(tiny_text().as_path(), &pack, &[]);
    segpack!["sign", &pack, "--key", private].ok();
    fs::write(pack.join("more.txt"), "more").unwrap();
    let found = verify(&pack, "--signature", public).exits(3).findings();
    let kinds: Vec<FindingKind> = found.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [FindingKind::UnlistedFile], "{found:?}");
    fs::remove_file(pack.join("more.txt")).unwrap();
    let signature = fs::File::options().write(true).open(pack.join("model.sig"));
    signature.unwrap().set_len((64 << 20) + 1).unwrap();
    refused(&pack, "--signature", public, "67108865 bytes");
}

#[test]
fn a_damaged_pack_is_not_signed_and_what_is_no_key_is_named() {
    let folder = temp();
    let (private, public) = &keys(folder.path())[0];
    let pack = folder.path().join("pack");
    pack_into(tiny_text().as_path(), &pack, &[]);
    segpack!["sign", &pack, "--key", public]
        .exits(3)
        .says(&["holds a public key: its private key is wanted"]);
    let notes = folder.path().join("notes");
    fs::write(&notes, "not a key").unwrap();
    segpack!["sign", &pack, "--key", &notes]
        .exits(3)
        .says(&["holds no private key", "openssl ecparam"]);
    verify(&pack, "--signature", private)
        .exits(3)
        .says(&["holds no public key"]);
    segpack!["sign", &pack, "--key", folder.path().join("none")].exits(1);
    let file = fs::read_dir(pack.join("packs")).unwrap();
    flip(&file.flatten().next().unwrap().path(), -1);
    segpack!["sign", &pack, "--key", private]
        .exits(3)
        .says(&["damaged; nothing was signed"]);
    assert!(!pack.join("model.sig").exists());
}

/// What `openssl ecparam -genkey` writes without `-noout`, and what encrypts a key.
#[test]
fn parameters_before_a_key_are_passed_over_and_an_encrypted_key_is_told() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(tiny_text().as_path(), &pack, &[]);
    let (sec1, public) = &keys(folder.path())[3];
    let plain = fs::read_to_string(sec1).unwrap();
    let key = folder.path().join("key.pem");
    let parameters =
        "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    fs::write(&key, format!("{parameters}{plain}")).unwrap();
    segpack!["sign", &pack, "--key", &key].ok();
    verify(&pack, "--signature", public).ok();

    let head = "-----BEGIN EC PRIVATE KEY-----\n";
    let headers = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n";
    for encrypted in [
        plain.replace(head, &format!("{head}{headers}")),
        plain.replace("EC PRIVATE", "ENCRYPTED PRIVATE"),
    ] {
        fs::write(&key, encrypted).unwrap();
        let run = segpack!["sign", &pack, "--key", &key, "--force"].exits(3);
        run.says(&["holds an encrypted private key", "openssl pkey"]);
    }
}

#[test]
fn nothing_but_a_signature_is_replaced() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(tiny_text().as_path(), &pack, &[]);
    let (private, _) = &keys(folder.path())[0];
    let other = folder.path().join("mine");
    fs::write(&other, "mine").unwrap();
    let before = (contents(&pack), fs::read(private).unwrap());
    for to in [
        "manifest.json",
        "SHA256SUMS",
        "source/config.json",
        "new.sig",
    ] {
        let run = segpack![
            "sign",
            &pack,
            "--key",
            private,
            "--force",
            "-o",
            pack.join(to)
        ];
        run.exits(1).says(&["lies inside the input"]);
    }
    segpack!["sign", &pack, "--key", private, "--force", "-o", private].exits(1);
    let run = segpack!["sign", &pack, "--key", private, "--force", "-o", &other];
    run.exits(1).says(&["is no signature, and is not replaced"]);
    assert_eq!((contents(&pack), fs::read(private).unwrap()), before);
    assert_eq!(fs::read(&other).unwrap(), b"mine");
    // one elsewhere, and one in the pack, are
    let elsewhere = folder.path().join("elsewhere.sig");
    for _ in 0..2 {
        segpack!["sign", &pack, "--key", private, "--force", "-o", &elsewhere].ok();
        segpack!["sign", &pack, "--key", private, "--force"].ok();
    }
}

/// The statement of a signature, once its ECDSA signature is verified by the crate of the curve.
fn statement_signed_by(signature: &Path, public: &Path) -> Value {
    let bundle: Value = serde_json::from_slice(&fs::read(signature).unwrap()).unwrap();
    let field = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
    let payload = field(&bundle["dsseEnvelope"]["payload"]);
    let der = field(&bundle["dsseEnvelope"]["signatures"][0]["sig"]);
    let kind = "application/vnd.in-toto+json";
    let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
    let signed = [head.as_bytes(), &payload].concat();
    let pem = fs::read_to_string(public).unwrap();
    let key = p256::ecdsa::VerifyingKey::from_public_key_pem(&pem).unwrap();
    let signature = p256::ecdsa::Signature::from_der(&der).unwrap();
    key.verify(&signed, &signature).unwrap();
    serde_json::from_slice(&payload).unwrap()
}

#[test]
fn all_files_of_a_folder_that_is_no_pack_are_signed() {
    let folder = temp();
    let (private, public) = &keys(folder.path())[0];
    let release = folder.path().join("release");
    fs::create_dir_all(release.join("b")).unwrap();
    fs::create_dir_all(release.join(".git")).unwrap();
    for (name, text) in [("a", "first"), ("b/c", "second"), (".git/d", "third")] {
        fs::write(release.join(name), text).unwrap();
    }
    let summary = segpack!["sign", &release, "--files", "--key", private, "--json"].ok();
    assert_eq!(summary.json()["files"], 2);
    assert_eq!(summary.json()["manifest_sha256"], Value::Null);
    let statement = statement_signed_by(&release.join("model.sig"), public);
    let resource = |name: &str, text: &str| {
        let digest = segpack_formats::digest::Sha256::of(text.as_bytes()).to_string();
        json!({"name": name, "algorithm": "sha256", "digest": digest})
    };
    let wanted = json!([resource("a", "first"), resource("b/c", "second")]);
    assert_eq!(statement["predicate"]["resources"], wanted);

    // again, the signature itself is none of the files
    segpack!["sign", &release, "--files", "--key", private]
        .exits(1)
        .says(&["model.sig exists", "--force"]);
    let again = segpack!["sign", &release, "--files", "--key", private, "--force"].ok();
    assert!(again.text().contains("release: signed, 2 files"), "{again}");
    // without --files it has to be a pack
    segpack!["sign", &release, "--key", private, "--force"].exits(3);
}

#[test]
fn neither_a_pack_nor_a_link_nor_nothing_is_signed_as_files() {
    let folder = temp();
    let (private, _) = &keys(folder.path())[0];
    let pack = folder.path().join("pack");
    pack_into(tiny_text().as_path(), &pack, &[]);
    segpack!["sign", &pack, "--files", "--key", private]
        .exits(3)
        .says(&["is a pack", "without --files"]);
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    segpack!["sign", &empty, "--files", "--key", private]
        .exits(3)
        .says(&["holds no files"]);
    std::os::unix::fs::symlink(private, empty.join("link")).unwrap();
    segpack!["sign", &empty, "--files", "--key", private]
        .exits(1)
        .says(&["link is a link"]);
    assert!(!empty.join("model.sig").exists() && !pack.join("model.sig").exists());
}

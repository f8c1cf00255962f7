#!/usr/bin/env python3
"""Makes a keyless signature of a pack, and the Sigstore instance that vouches for it, without a network.

    tests/tools/make_keyless_signature.py PACK OUT      writes OUT/keyless.sig and OUT/trusted_root.json

All keys are made up and thrown away: an authority with an intermediate, a log of certificates, a log of signatures. The
bundle is what `model_signing sign sigstore` writes: its statement (an in-toto statement of every file), a certificate of
ten minutes with a timestamp of the log of certificates (RFC 6962), and an entry `dsse` 0.0.1 of the log of signatures
with its promise, its proof of inclusion and the checkpoint. `model_signing verify sigstore --trust_config` of 1.1.1 takes
it.

Needs: pip install cryptography
"""
import base64, hashlib, json, struct, sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

IDENTITY, ISSUER = "signer@example.org", "https://login.example.org"
FROM, SIGNED = datetime(2026, 1, 1, tzinfo=timezone.utc), datetime(2026, 11, 1, 12, tzinfo=timezone.utc)
UNTIL = FROM + timedelta(days=36525)
FULCIO = "1.3.6.1.4.1.57264.1."  # the arc of its extensions
TIMESTAMPS = "1.3.6.1.4.1.11129.2.4.2"  # RFC 6962, section 3.3
PAYLOAD_TYPE = "application/vnd.in-toto+json"
IGNORED = ["model.sig", ".git", ".gitattributes", ".github", ".gitignore"]


def b64(data):
    return base64.b64encode(data).decode()


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def der(key):
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def sign(key, data):
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def new_key():
    return ec.generate_private_key(ec.SECP256R1())


def authority(name, key, issuer_name, issuer_key, length):
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = x509.CertificateBuilder(issuer_name or name, name, key.public_key(), x509.random_serial_number(), FROM, UNTIL)
    builder = builder.add_extension(x509.BasicConstraints(True, length), True).add_extension(usage, True)
    if issuer_name:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)
    return builder.sign(issuer_key, hashes.SHA256())


def leaf_builder(key, issuer, issuer_key):
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    until = SIGNED + timedelta(minutes=10)
    text = ISSUER.encode()
    builder = x509.CertificateBuilder(issuer.subject, x509.Name([]), key.public_key(), 4711, SIGNED, until)
    extensions = [
        (usage, True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False),
        (x509.SubjectAlternativeName([x509.RFC822Name(IDENTITY)]), True),
        (x509.UnrecognizedExtension(ObjectIdentifier(FULCIO + "1"), text), False),
        (x509.UnrecognizedExtension(ObjectIdentifier(FULCIO + "8"), bytes([0x0C, len(text)]) + text), False),
    ]
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, is_critical)
    return builder


def leaf_certificate(key, issuer, issuer_key, log_key):
    """With the timestamp of the log, over the certificate without it."""
    builder = leaf_builder(key, issuer, issuer_key)
    before = builder.sign(issuer_key, hashes.SHA256()).tbs_certificate_bytes
    time = int(SIGNED.timestamp() * 1000)
    entry = hashlib.sha256(der(issuer_key)).digest() + len(before).to_bytes(3, "big") + before
    signature = sign(log_key, struct.pack(">BBQH", 0, 0, time, 1) + entry + b"\0\0")
    log_id = hashlib.sha256(der(log_key)).digest()
    timestamp = b"\0" + log_id + struct.pack(">QH", time, 0) + bytes([4, 3]) + struct.pack(">H", len(signature)) + signature
    listed = struct.pack(">HH", len(timestamp) + 2, len(timestamp)) + timestamp
    octets = bytes([0x04, 0x81, len(listed)] if len(listed) > 127 else [0x04, len(listed)]) + listed
    return builder.add_extension(x509.UnrecognizedExtension(ObjectIdentifier(TIMESTAMPS), octets), False).sign(
        issuer_key, hashes.SHA256()
    )


def statement(pack):
    files = sorted(path.relative_to(pack) for path in pack.rglob("*") if path.is_file())
    digests = {path: hashlib.sha256((pack / path).read_bytes()) for path in files}
    root = hashlib.sha256(b"".join(d.digest() for d in digests.values())).hexdigest()
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": IGNORED}
    resources = [{"name": p.as_posix(), "algorithm": "sha256", "digest": d.hexdigest()} for p, d in digests.items()]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": pack.name, "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {"serialization": serialization, "resources": resources},
    }


def log_entry(payload, envelope, certificate, log_key):
    """The only entry of a log."""
    time, log_id = int(SIGNED.timestamp()) + 60, hashlib.sha256(der(log_key)).digest()
    sha256 = lambda data: {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    spec = {
        "envelopeHash": sha256(canonical(envelope)),
        "payloadHash": sha256(payload),
        "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": b64(pem)}],
    }
    body = canonical({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
    root = hashlib.sha256(b"\0" + body).digest()
    promised = canonical({"body": b64(body), "integratedTime": time, "logID": log_id.hex(), "logIndex": 0})
    note = f"log.example.org - 1\n1\n{b64(root)}\n"
    signed_note = f"{note}\n\u2014 log.example.org {b64(log_id[:4] + sign(log_key, note.encode()))}\n"
    return {
        "logIndex": "0",
        "logId": {"keyId": b64(log_id)},
        "kindVersion": {"kind": "dsse", "version": "0.0.1"},
        "integratedTime": str(time),
        "inclusionPromise": {"signedEntryTimestamp": b64(sign(log_key, promised))},
        "inclusionProof": {
            "logIndex": "0", "rootHash": b64(root), "treeSize": "1", "hashes": [],
            "checkpoint": {"envelope": signed_note},
        },
        "canonicalizedBody": b64(body),
    }


def log(key, address):
    valid = {"start": FROM.strftime("%Y-%m-%dT%H:%M:%SZ")}
    public = {"rawBytes": b64(der(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": valid}
    log_id = {"keyId": b64(hashlib.sha256(der(key)).digest())}
    return {"baseUrl": address, "hashAlgorithm": "SHA2_256", "publicKey": public, "logId": log_id}


def main():
    pack, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    root_key, above_key, leaf_key, certificates_key, log_key = (new_key() for _ in range(5))
    named = lambda text: x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "example.org"), x509.NameAttribute(NameOID.COMMON_NAME, text)])
    root = authority(named("root"), root_key, None, root_key, 1)
    above = authority(named("intermediate"), above_key, root.subject, root_key, 0)
    leaf = leaf_certificate(leaf_key, above, above_key, certificates_key)
    payload = json.dumps(statement(pack)).encode()
    signed = b"DSSEv1 %d %s %d " % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload)) + payload
    envelope = {"payload": b64(payload), "payloadType": PAYLOAD_TYPE, "signatures": [{"sig": b64(sign(leaf_key, signed)), "keyid": ""}]}
    raw = lambda certificate: {"rawBytes": b64(certificate.public_bytes(serialization.Encoding.DER))}
    bundle = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"certificate": raw(leaf), "tlogEntries": [log_entry(payload, envelope, leaf, log_key)]},
        "dsseEnvelope": envelope,
    }
    fulcio = {
        "subject": {"organization": "example.org", "commonName": "root"},
        "uri": "https://certificates.example.org",
        "certChain": {"certificates": [raw(above), raw(root)]},
        "validFor": {"start": FROM.strftime("%Y-%m-%dT%H:%M:%SZ")},
    }
    trusted = {
        "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
        "tlogs": [log(log_key, "https://log.example.org")],
        "certificateAuthorities": [fulcio],
        "ctlogs": [log(certificates_key, "https://certificates-log.example.org")],
        "timestampAuthorities": [],
    }
    (out / "keyless.sig").write_text(json.dumps(bundle) + "\n")
    (out / "trusted_root.json").write_text(json.dumps(trusted, indent=1) + "\n")


main()

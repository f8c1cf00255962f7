"""Signatures beside OpenSSF's own tool, the command line of `model_signing`: what either signs, the other verifies."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import CHECKPOINTS, ROOT, SEGPACK, segpack

TOOLS = ROOT / "tests/tools"
CURVES = ["prime256v1", "secp384r1", "secp521r1"]


def tool(*arguments):
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(params=CURVES)
def keys(request, tmp_path):
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    make = ["openssl", "ecparam", "-name", request.param, "-genkey", "-noout", "-out", private]
    subprocess.run(make, check=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


@pytest.fixture
def pack(tmp_path):
    out = tmp_path / "pack"
    segpack("pack", CHECKPOINTS["tiny-text"], "-o", out, "--codec", "bf16-rans")
    return out


def test_the_tool_verifies_what_segpack_signs(pack, keys):
    private, public = keys
    segpack("sign", pack, "--key", private)
    check = ["verify", "key", pack, "--signature", pack / "model.sig", "--public_key", public]
    done = tool(*check)
    assert done.returncode == 0, done.stderr
    # also under another name, and not once a byte is another one
    moved = shutil.move(pack, pack.with_name("moved"))
    assert tool("verify", "key", moved, "--signature", moved / "model.sig", "--public_key", public).returncode == 0
    (moved / "manifest.json").write_bytes((moved / "manifest.json").read_bytes() + b" ")
    assert tool("verify", "key", moved, "--signature", moved / "model.sig", "--public_key", public).returncode != 0


def test_the_tool_verifies_a_folder_whose_files_segpack_signs(tmp_path, keys):
    private, public = keys
    release = tmp_path / "release"
    (release / "more").mkdir(parents=True)
    (release / "segpack.tar.gz").write_bytes(b"archive")
    (release / "more" / "notes").write_bytes(b"notes")
    segpack("sign", release, "--files", "--key", private)
    check = ["verify", "key", release, "--signature", release / "model.sig", "--public_key", public]
    assert tool(*check).returncode == 0
    (release / "more" / "notes").write_bytes(b"other")
    assert tool(*check).returncode != 0


def test_segpack_verifies_what_the_tool_signs(pack, keys):
    private, public = keys
    done = tool("sign", "key", pack, "--private_key", private, "--signature", pack / "model.sig")
    assert done.returncode == 0, done.stderr
    said = segpack("verify", pack, "--signature", "--public-key", public).decode()
    assert "signature: of all" in said
    (pack / "SHA256SUMS").unlink()
    damaged = [SEGPACK, "verify", pack, "--signature", "--public-key", public]
    assert subprocess.run(damaged, capture_output=True, check=False).returncode == 3


@pytest.fixture(params=CURVES)
def certificates(request, tmp_path):
    """A key, its certificate, the one above that, and the root; of the curve are all of them."""

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=tmp_path)

    authority = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n"
    signer = "keyUsage=critical,digitalSignature\nsubjectAltName=email:signer@example.org\n"
    for name, above, extensions in [("root", None, authority), ("above", "root", authority), ("leaf", "above", signer)]:
        openssl("ecparam", "-name", request.param, "-genkey", "-noout", "-out", f"{name}.key")
        openssl("req", "-new", "-key", f"{name}.key", "-subj", f"/CN={name}", "-out", f"{name}.csr")
        (tmp_path / f"{name}.ext").write_text(extensions)
        by = ["-CA", f"{above}.pem", "-CAkey", f"{above}.key", "-CAcreateserial"] if above else ["-signkey", f"{name}.key"]
        digest = {"prime256v1": "-sha256", "secp384r1": "-sha384", "secp521r1": "-sha512"}[request.param]
        openssl("x509", "-req", "-in", f"{name}.csr", *by, "-days", 3, digest, "-extfile", f"{name}.ext", "-out", f"{name}.pem")
    return [tmp_path / name for name in ("leaf.key", "leaf.pem", "above.pem", "root.pem")]


def test_certificates_are_taken_in_both_directions(pack, certificates):
    key, leaf, above, root = certificates
    signature = pack / "model.sig"
    segpack("sign", pack, "--key", key, "--certificate", leaf, "--certificate-chain", above)
    check = ["verify", "certificate", pack, "--signature", signature, "--certificate_chain", root]
    done = tool(*check)
    assert done.returncode == 0, done.stderr
    signature.unlink()
    done = tool(
        "sign", "certificate", pack, "--private_key", key, "--signing_certificate", leaf,
        "--certificate_chain", above, "--signature", signature,
    )
    assert done.returncode == 0, done.stderr
    ours = ["verify", pack, "--signature", "--certificate-chain"]
    said = segpack(*ours, root, "--identity", "signer@example.org").decode()
    assert "CN=leaf" in said
    other = subprocess.run([SEGPACK, *ours, root, "--identity", "signer@example.com"], capture_output=True, check=False)
    assert other.returncode == 3


def test_both_take_the_same_keyless_signature(pack, tmp_path):
    maker = TOOLS / "make_keyless_signature.py"
    subprocess.run([sys.executable, maker, pack, tmp_path], check=True)
    root, config = json.loads((tmp_path / "trusted_root.json").read_text()), tmp_path / "config.json"
    none = {"caUrls": [], "oidcUrls": [], "rekorTlogUrls": [], "tsaUrls": []}
    any_of = {"rekorTlogConfig": {"selector": "ANY"}, "tsaConfig": {"selector": "ANY"}}
    signing = {"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json", **none, **any_of}
    kind = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
    config.write_text(json.dumps({"mediaType": kind, "trustedRoot": root, "signingConfig": signing}))
    signature, issuer = tmp_path / "keyless.sig", "https://login.example.org"
    for identity, works in [("signer@example.org", True), ("other@example.org", False)]:
        done = tool(
            "verify", "sigstore", pack, "--signature", signature, "--identity", identity,
            "--identity_provider", issuer, "--trust_config", config,
        )
        assert (done.returncode == 0) == works, done.stderr
        ours = ["verify", pack, f"--signature={signature}", "--identity", identity, "--issuer", issuer]
        done = subprocess.run([SEGPACK, *ours, "--trusted-root", config], capture_output=True, check=False)
        assert done.returncode == (0 if works else 3), done.stderr

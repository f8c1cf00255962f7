"""Signatures beside OpenSSF's own tool, the command line of `model_signing`: what either signs, the other verifies."""

import shutil
import subprocess
import sys

import pytest
from conftest import CHECKPOINTS, SEGPACK, segpack

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

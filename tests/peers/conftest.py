"""What the tests share: the checkpoints, their packs (made once), and the count at the end."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEGPACK = os.environ["SEGPACK"]
FULL = os.environ["PEERS_MODE"] == "full"
CHECKPOINTS = {"tiny-full": ROOT / "extractor/demo/tiny-full", "tiny-text": ROOT / "tests/fixtures/tiny-text"}
CODECS = ["raw", "zstd", "bf16-zstd", "bf16-rans"]


def segpack(*arguments):
    """Standard output of a run that must succeed."""
    done = subprocess.run([SEGPACK, *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == 0, f"segpack {arguments} gave {done.returncode}: {done.stderr.decode()}"
    return done.stdout


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Pack:
    """A pack folder, the checkpoint it was made of, and its manifest."""

    def __init__(self, folder, checkpoint, codec):
        self.folder, self.checkpoint, self.codec = folder, checkpoint, codec
        self.manifest = json.loads((folder / "manifest.json").read_bytes())

    def tensors_of(self, segment):
        return [t for t in self.manifest["tensors"] if t["segment"] == segment["id"]]

    def segments_of(self, pack):
        return [s for s in self.manifest["segments"] if s["pack"] == pack["path"]]


@pytest.fixture(scope="session")
def packs(tmp_path_factory):
    """Every checkpoint with every codec."""
    made, folder = {}, tmp_path_factory.mktemp("packs")
    for name, checkpoint in CHECKPOINTS.items():
        for codec in CODECS:
            out = folder / f"{name}.{codec}"
            segpack("pack", checkpoint, "-o", out, "--codec", codec)
            made[name, codec] = Pack(out, checkpoint, codec)
    return made


@pytest.fixture(params=CHECKPOINTS)
def raw(request, packs):
    return packs[request.param, "raw"]


@pytest.fixture(params=[(name, codec) for name in CHECKPOINTS for codec in CODECS[1:]], ids="-".join)
def coded(request, packs):
    return packs[request.param]


@pytest.fixture(params=[(name, codec) for name in CHECKPOINTS for codec in CODECS], ids="-".join)
def pack(request, packs):
    return packs[request.param]


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    count = {key: len(reporter.stats.get(key, [])) for key in ("passed", "failed", "error", "skipped")}
    session.config.peers_count = count
    # a test that did not run is not a test that passed
    if exitstatus == 0 and (count["skipped"] or not count["passed"]):
        session.exitstatus = 1


def pytest_unconfigure(config):
    count = getattr(config, "peers_count", None)
    if count:
        failed = count["failed"] + count["error"] + count["skipped"]
        print(f"{count['passed']} passed, {failed} failed")

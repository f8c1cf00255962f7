"""Packs of the two tiny checkpoints, read by stock readers and by hand, as formats/FORMAT.md says."""

import hashlib
import json
import re
import struct
import subprocess
import sys

import ml_dtypes  # noqa: F401  (numpy learns bfloat16)
import pytest
import safetensors
from blake3 import blake3
from conftest import FULL, ROOT, SEGPACK, segpack

ALIGNMENT = 4096
PREFIX_BYTES, TABLE_ENTRY_BYTES, RAW_CHUNK_BYTES = 32, 24, 2 << 20


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def originals(checkpoint):
    """Name → dtype, shape, bytes of every tensor of a checkpoint, by the stock reader."""
    found = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        found.update(safetensors.deserialize(shard.read_bytes()))
    return found


def header_of(image):
    length = struct.unpack_from("<Q", image)[0]
    return 8 + length, image[8 : 8 + length]


def test_raw_packs_hold_the_tensors_of_the_shards(raw):
    wanted = originals(raw.checkpoint)
    seen = {}
    for entry in raw.manifest["packs"]:
        path = raw.folder / entry["path"]
        held = dict(safetensors.deserialize(path.read_bytes()))
        with safetensors.safe_open(path, framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt", "segpack": "1"}
            assert set(opened.keys()) == set(held)
            for name, tensor in held.items():
                value = opened.get_tensor(name)
                assert value.tobytes() == bytes(tensor["data"]) and list(value.shape) == tensor["shape"]
        assert not seen.keys() & held.keys()
        seen.update(held)
    assert seen.keys() == wanted.keys()
    for name, tensor in wanted.items():
        for key in ("dtype", "shape", "data"):
            assert seen[name][key] == tensor[key], f"{name}: {key}"


def test_coded_packs_open_as_safetensors(coded):
    kinds = set()
    for entry in coded.manifest["packs"]:
        held = dict(safetensors.deserialize((coded.folder / entry["path"]).read_bytes()))
        for segment in coded.segments_of(entry):
            kinds.add(segment["codec"])
            if segment["codec"] != "raw":
                tensor = held.pop(segment["id"])
                assert (tensor["dtype"], tensor["shape"]) == ("U8", [segment["stored_length"]])
                assert segment["stored_length"] % ALIGNMENT == 0
                assert segment["stored_length"] < segment["raw_length"]
            else:
                for tensor in coded.tensors_of(segment):
                    assert held.pop(tensor["name"])["shape"] == tensor["shape"]
        assert not held
    assert kinds == {"raw", coded.codec}, "the checkpoint does not show both"


def entry_text(name, dtype, shape, begin, end):
    value = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return "," + json.dumps({name: value}, ensure_ascii=False, separators=(",", ":"))[1:-1]


def entries(pack, segment, begin):
    text = ""
    for t in pack.tensors_of(segment):
        text += entry_text(t["name"], t["dtype"], t["shape"], begin, begin + t["length"])
        begin += t["length"]
    return text


def chunk_count(pack, segment):
    return sum(-(-t["length"] // RAW_CHUNK_BYTES) for t in pack.tensors_of(segment))


def round_up(length):
    return -(-length // ALIGNMENT) * ALIGNMENT


def longest_header(pack, segments):
    def at_most(s):
        return round_up(s["raw_length"] + PREFIX_BYTES + chunk_count(pack, s) * TABLE_ENTRY_BYTES)

    most, length = sum(map(at_most, segments)), 0
    for s in segments:
        own = [entry_text(t["name"], t["dtype"], t["shape"], most, most) for t in pack.tensors_of(s)]
        coded = entry_text(s["id"], "U8", [most], most, most)
        length += max(len("".join(own).encode()), len(coded.encode()))
    return length


def test_headers_are_a_function_of_the_manifest(pack):
    for entry in pack.manifest["packs"]:
        image = (pack.folder / entry["path"]).read_bytes()
        start, seen = header_of(image)
        segments = pack.segments_of(entry)
        text = '{"__metadata__":{"format":"pt","segpack":"1"}'
        for s in segments:
            begin = s["offset"] - entry["data_offset"]
            if s["codec"] == "raw":
                text += entries(pack, s, begin)
            else:
                text += entry_text(s["id"], "U8", [s["stored_length"]], begin, begin + s["stored_length"])
        wanted = (text + "}").encode()
        room = len(wanted)
        if pack.codec != "raw":
            room = len('{"__metadata__":{"format":"pt","segpack":"1"}}') + longest_header(pack, segments)
        assert seen.rstrip(b" ") == wanted
        assert start == entry["data_offset"] == round_up(8 + room), entry["path"]
        assert start % ALIGNMENT == 0 and len(image) == entry["length"]


def decode(stored, raw_length):
    """The raw bytes of a coded segment, with everything checked that FORMAT.md promises."""
    magic, chunks, shared, length, check = struct.unpack_from("<8sIIQ8s", stored)
    at = PREFIX_BYTES + TABLE_ENTRY_BYTES * chunks
    assert (magic, shared, length) == (b"SEGCHNK\x01", 0, raw_length)
    assert check == blake3(stored[:24] + stored[PREFIX_BYTES:at]).digest(length=8)
    data, cuts = b"", [0]
    for i in range(chunks):
        raw, length, method, zeros, check = struct.unpack_from(
            "<IIB7s8s", stored, PREFIX_BYTES + TABLE_ENTRY_BYTES * i
        )
        chunk = stored[at : at + length]
        assert zeros == bytes(7) and check == blake3(chunk).digest(length=8)
        assert 1 <= raw <= RAW_CHUNK_BYTES
        assert length == raw if method == 0 else length < raw
        data += METHODS[method](chunk, raw)
        at += length
        cuts.append(len(data))
    assert len(data) == raw_length and stored[at:] == bytes(len(stored) - at) and len(stored) - at < ALIGNMENT
    return data, cuts


def test_segments_and_tensors_have_their_digests(pack):
    for entry in pack.manifest["packs"]:
        image = (pack.folder / entry["path"]).read_bytes()
        assert sha256(image) == entry["sha256"]
        at = entry["data_offset"]
        for segment in pack.segments_of(entry):
            assert segment["offset"] == at
            at += segment["stored_length"]
            data = image[segment["offset"] : at]
            assert blake3(data).hexdigest() == segment["blake3"]
            cuts = None
            if segment["codec"] != "raw":
                data, cuts = decode(data, segment["raw_length"])
            assert len(data) == segment["raw_length"]
            for t in pack.tensors_of(segment):
                end = t["offset"] + t["length"]
                assert sha256(data[t["offset"] : end]) == t["sha256"], t["name"]
                assert cuts is None or {t["offset"], end} <= set(cuts), "a chunk crosses a tensor's end"
        assert at == entry["length"]


def python_blocks():
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "formats/FORMAT.md").read_text(), re.M | re.S)


def methods():
    """Those of the last reader in FORMAT.md, by number."""
    names = {}
    exec(python_blocks()[2].partition("manifest = ")[0], names)
    return names["methods"]


METHODS = methods()


def run_python(block, folder):
    command = [sys.executable, "-c", block]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_readers_in_format_md_run_as_printed(packs, tmp_path):
    blocks = python_blocks()
    assert len(blocks) == 3
    shown = []
    for name in ("tiny-full", "tiny-text"):
        folder = tmp_path / name
        folder.mkdir()
        for codec in ("raw", "zstd"):
            (folder / f"{codec}.segpack").symlink_to(packs[name, codec].folder)
        for block in blocks[:2]:
            done = run_python(block, folder)
            assert done.returncode == 0, done.stderr
            shown.append(done.stdout)
    assert "'expert_gate': ('bfloat16', (24, 48))" in shown[0]
    assert shown[1].endswith(" raw\n") and shown[3].endswith(" zstd\n"), "both ways to store are shown"


@pytest.mark.parametrize(("codec", "method"), [("bf16-zstd", 2), ("bf16-rans", 3)])
def test_the_reader_of_weights_in_format_md_runs_as_printed(codec, method, tmp_path):
    # longer tensors than the tiny checkpoints have, so that every method is taken
    pack = tmp_path / "weights.segpack"
    subprocess.run(["cp", "-r", ROOT / "tests/fixtures/packs/v1-weights" / codec, pack], check=True)
    done = run_python(python_blocks()[2], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f" {codec} [{method}]\n")
    path = pack / "packs/text.safetensors"
    image = bytearray(path.read_bytes())
    image[20_000] ^= 1
    path.write_bytes(image)
    assert run_python(python_blocks()[2], tmp_path).returncode != 0, "it took a damaged byte"


def test_a_damaged_byte_fails_the_readers_in_format_md(packs, tmp_path):
    for codec, block in zip(("raw", "zstd"), python_blocks()[:2], strict=True):
        folder = tmp_path / f"{codec}.segpack"
        subprocess.run(["cp", "-r", packs["tiny-text", codec].folder, folder], check=True)
        path = folder / "packs/thinker.text.experts.01.safetensors"
        segments = packs["tiny-text", codec].manifest["segments"]
        segment = next(s for s in segments if s["id"] == "thinker.text.layers.1.experts.2")
        image = bytearray(path.read_bytes())
        # all of it but the chunk table that a coded one begins with
        begin, end = segment["offset"] + 128, segment["offset"] + segment["stored_length"]
        image[begin:end] = b"?" * (end - begin)
        path.write_bytes(image)
        assert run_python(block, tmp_path).returncode != 0, f"the reader of {codec} packs took damaged bytes"


def test_sha256sum_agrees(pack):
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"],
        cwd=pack.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (pack.folder / "SHA256SUMS").read_text().splitlines()
    listed = [line[66:] for line in lines]
    there = [p.relative_to(pack.folder).as_posix() for p in pack.folder.rglob("*") if p.is_file()]
    assert listed == sorted(p for p in there if p != "SHA256SUMS")


def test_cat_writes_the_bytes_that_the_manifest_names(pack):
    tensors = pack.manifest["tensors"] if FULL else pack.manifest["tensors"][::17]
    wanted = originals(pack.checkpoint)
    for tensor in tensors:
        command = ["bash", "-c", 'set -o pipefail; "$0" cat "$1" "$2" | sha256sum']
        command += [SEGPACK, pack.folder, tensor["name"]]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == tensor["sha256"] == sha256(wanted[tensor["name"]]["data"])
    for segment in pack.manifest["segments"][:: 1 if FULL else 7]:
        data = b"".join(bytes(wanted[t["name"]]["data"]) for t in pack.tensors_of(segment))
        assert segpack("cat", pack.folder, segment["id"]) == data


def test_cat_writes_rows(pack):
    name = "thinker.model.embed_tokens.weight"
    tensor = originals(pack.checkpoint)[name]
    row = len(tensor["data"]) // tensor["shape"][0]
    assert segpack("cat", pack.folder, name, "--rows", "7..9") == bytes(tensor["data"])[7 * row : 9 * row]


def test_unpack_gives_the_same_files(pack, tmp_path):
    segpack("verify", pack.folder)
    segpack("unpack", pack.folder, "-o", tmp_path / "out")

    def digests(folder):
        return {p.relative_to(folder): sha256(p.read_bytes()) for p in folder.rglob("*") if p.is_file()}

    assert digests(tmp_path / "out") == digests(pack.checkpoint)

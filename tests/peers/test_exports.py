"""Exports of the two tiny checkpoints, read by the stock readers of safetensors and numpy."""

import hashlib
import io
import json
import subprocess

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from conftest import SEGPACK, segpack
from transformers import AutoTokenizer
from test_packs import originals


def exported(folder):
    found = {}
    for shard in sorted(folder.glob("*.safetensors")):
        held = dict(safetensors.deserialize(shard.read_bytes()))
        assert not found.keys() & held.keys()
        found.update(held)
    return found


def assert_same(seen, wanted):
    assert seen.keys() == wanted.keys()
    for name, tensor in wanted.items():
        for key in ("dtype", "shape", "data"):
            assert seen[name][key] == tensor[key], f"{name}: {key}"


def test_hf_is_the_checkpoint_again(pack, tmp_path):
    segpack("export", pack.folder, "--to", "hf", "-o", tmp_path / "out", "--max-shard-size", "150kB")
    assert_same(exported(tmp_path / "out"), originals(pack.checkpoint))
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_bytes())
    identity = hashlib.sha256((pack.folder / "manifest.json").read_bytes()).hexdigest()
    for name, file in index["weight_map"].items():
        with safetensors.safe_open(tmp_path / "out" / file, framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt", "segpack.manifest_sha256": identity}
            opened.get_slice(name)
    size = sum(len(t["data"]) for t in originals(pack.checkpoint).values())
    assert index["metadata"]["total_size"] == size


def test_a_pipe_carries_one_safetensors_file(pack):
    data = segpack("export", pack.folder, "--to", "safetensors", "-o", "-", "-q", "*.mlp.*")
    wanted = {name: t for name, t in originals(pack.checkpoint).items() if ".mlp." in name}
    assert wanted
    assert_same(dict(safetensors.deserialize(data)), wanted)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_dtypes_are_those_of_numpy(raw, dtype):
    """Widening is exact, narrowing rounds as numpy and ml_dtypes do; bf16 through f32 comes back."""
    data = segpack("export", raw.folder, "--to", "safetensors", "-o", "-", "-q", "--dtype", dtype)
    wanted = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[dtype]
    before = originals(raw.checkpoint)
    for name, tensor in safetensors.deserialize(data):
        source = np.frombuffer(before[name]["data"], ml_dtypes.bfloat16).astype(np.float32)
        assert source.astype(wanted).tobytes() == bytes(tensor["data"]), name


def test_numpy_reads_every_array(raw, tmp_path):
    before = originals(raw.checkpoint)
    for dtype, view in [("keep", ml_dtypes.bfloat16), ("f32", np.float32)]:
        out = tmp_path / dtype
        segpack("export", raw.folder, "--to", "npy", "-o", out, "--dtype", dtype)
        assert {p.stem for p in out.iterdir()} == before.keys()
        for name, tensor in before.items():
            seen = np.load(out / f"{name}.npy", allow_pickle=False).view(view)
            source = np.frombuffer(tensor["data"], ml_dtypes.bfloat16).reshape(tensor["shape"])
            assert seen.shape == source.shape
            assert seen.astype(np.float32).tobytes() == source.astype(np.float32).tobytes(), name
            if dtype == "keep":  # what numpy itself writes for such an array
                saved = io.BytesIO()
                np.save(saved, source)
                assert saved.getvalue() == (out / f"{name}.npy").read_bytes(), name


def test_a_closed_pipe_is_silent(raw):
    export = subprocess.Popen([SEGPACK, "export", raw.folder, "--to", "safetensors", "-o", "-", "-q"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert len(export.stdout.read(8)) == 8
    export.stdout.close()
    assert (export.wait(), export.stderr.read()) == (0, b"")


TEXTS = ["Hi, is the user on?", "Größe 中 7", "  two  spaces\n\n\tand tabs ", "it's 12345 <|im_start|>user\nx<|im_end|>", "e\u0301 \u1e9b\u0323"]


def test_a_built_tokenizer_is_that_of_transformers(packs, tmp_path):
    """Where only vocab.json and merges.txt ship, the tokenizer.json built of them makes transformers' own tokens."""
    checkpoint = packs["tiny-full", "raw"].checkpoint
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in checkpoint.iterdir():
        if path.name != "tokenizer.json":
            (bare / path.name).write_bytes(path.read_bytes())
    segpack("pack", bare, "-o", tmp_path / "pack")
    segpack("export", tmp_path / "pack", "--to", "qwen3-moe", "-o", tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").exists()
    for name in ["vocab.json", "merges.txt"]:
        (tmp_path / "out" / name).unlink()
    built, stock = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "out", bare))
    assert len(built) == len(stock)
    for text in TEXTS:
        assert built(text)["input_ids"] == stock(text)["input_ids"], text
        ids = built(text)["input_ids"]
        assert built.decode(ids) == stock.decode(ids), text
    messages = [{"role": "user", "content": "Hi"}]
    assert built.apply_chat_template(messages, tokenize=False) == stock.apply_chat_template(messages, tokenize=False)

"""Checkpoints written by the stock library, read by segpack."""

import hashlib
import json

import numpy
import pytest
import safetensors
from conftest import CHECKPOINTS, CODECS, segpack
from safetensors.numpy import save_file


def every_kind():
    random = numpy.random.default_rng(7)
    return {
        "a.weight": random.standard_normal((3, 5)).astype("float32"),
        "a.half": random.standard_normal((2, 3, 4)).astype("float16"),
        "a.count": numpy.arange(-4, 4, dtype="int64"),
        "a.bytes": numpy.frombuffer(random.bytes(5000) + bytes(5000), dtype="uint8").reshape(100, 100),
        "a.mask": numpy.array([[True, False, True]]),
        "a.empty": numpy.zeros((0, 7), dtype="float32"),
        "a.scalar": numpy.array(2.5, dtype="float64"),
    }


NAMES = {"float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8", "bool": "BOOL", "float64": "F64"}


def serialize_file(tensors, path):
    """Writes name → dtype as torch names it, shape, bytes."""
    kept = {name: numpy.frombuffer(data, dtype="uint8") for name, (_, _, data) in tensors.items()}

    def spec(name, dtype, shape, data):
        address = kept[name].ctypes.data
        return safetensors.TensorSpec(dtype=dtype, shape=shape, data_ptr=address, data_len=len(data))

    specs = {name: spec(name, *tensor) for name, tensor in tensors.items()}
    safetensors.serialize_file(specs, path, metadata={"format": "pt"})


def scanned(path):
    inventory = json.loads(segpack("scan", path, "--allow-unaudited", "--json"))
    return {t["name"]: (t["dtype"], t["shape"], t["length"]) for t in inventory["tensors"]}


def test_files_of_save_file_are_accepted(tmp_path):
    tensors, path = every_kind(), tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "np"})
    assert scanned(path) == {n: (NAMES[t.dtype.name], list(t.shape), t.nbytes) for n, t in tensors.items()}


def test_files_of_serialize_file_are_accepted(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {
        "half": ("bfloat16", [3], bytes(6)),
        "quarter": ("float8_e4m3fn", [2, 2], bytes(4)),
        "eighth": ("float4_e2m1fn_x2", [5], bytes(5)),
        "odd name \u00e9 \\ \" /": ("uint8", [1], b"x"),
        "none": ("int32", [4, 0], b""),
    }
    serialize_file(tensors, path)
    assert scanned(path) == {
        "half": ("BF16", [3], 6),
        "quarter": ("F8_E4M3", [2, 2], 4),
        "eighth": ("F4", [10], 5),
        "odd name \u00e9 \\ \" /": ("U8", [1], 1),
        "none": ("I32", [4, 0], 0),
    }


@pytest.mark.parametrize("codec", CODECS)
def test_files_of_the_stock_writer_come_back(codec, tmp_path):
    tensors, source = every_kind(), tmp_path / "model"
    source.mkdir()
    save_file(tensors, source / "model.safetensors")
    pack, out = tmp_path / "pack", tmp_path / "out"
    segpack("pack", source, "-o", pack, "--allow-unclassified", "--codec", codec)
    segpack("verify", pack, "--allow-unaudited")
    if codec == "raw":
        with safetensors.safe_open(pack / "packs/unclassified.safetensors", framework="numpy") as opened:
            for name, tensor in tensors.items():
                assert numpy.array_equal(opened.get_tensor(name), tensor)
    segpack("unpack", pack, "-o", out)
    assert [p.name for p in out.iterdir()] == ["model.safetensors"]
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def stack_experts(tensors):
    """The same tensors with each layer's experts stacked: gate and up in one, down in the other."""
    stacked, experts = {}, {}
    for name, tensor in tensors.items():
        if ".experts." not in name:
            stacked[name] = tensor
            continue
        prefix, rest = name.split(".experts.")
        expert, matrix = rest.removesuffix(".weight").split(".")
        experts.setdefault(prefix, {})[int(expert), matrix] = tensor
    for prefix, matrices in experts.items():
        count = len(matrices) // 3
        for stack, parts in {"gate_up_proj": ["gate_proj", "up_proj"], "down_proj": ["down_proj"]}.items():
            data = b"".join(bytes(matrices[e, part]["data"]) for e in range(count) for part in parts)
            rows, columns = matrices[0, parts[0]]["shape"]
            shape = [count, rows * len(parts), columns]
            stacked[f"{prefix}.experts.{stack}"] = {"dtype": "BF16", "shape": shape, "data": data}
    return stacked


def test_stacked_experts_become_the_same_segments(packs, tmp_path):
    source = tmp_path / "stacked"
    source.mkdir()
    config = CHECKPOINTS["tiny-text"] / "config.json"
    (source / "config.json").write_bytes(config.read_bytes())
    single = {}
    for shard in CHECKPOINTS["tiny-text"].glob("*.safetensors"):
        single.update(safetensors.deserialize(shard.read_bytes()))
    stacked = stack_experts(single)
    assert len(stacked) < len(single)
    parts = {name: ("bfloat16", t["shape"], bytes(t["data"])) for name, t in stacked.items()}
    serialize_file(parts, source / "model.safetensors")
    segpack("pack", source, "-o", tmp_path / "pack")
    manifest = json.loads((tmp_path / "pack/manifest.json").read_bytes())
    wanted = packs["tiny-text", "raw"].manifest

    def what(tensors):
        keys = ("name", "dtype", "shape", "segment", "offset", "length", "sha256", "role", "layer", "expert")
        return [{k: t.get(k) for k in keys} for t in tensors]

    assert what(manifest["tensors"]) == what(wanted["tensors"])
    assert [p["sha256"] for p in manifest["packs"]] == [p["sha256"] for p in wanted["packs"]]
    name = next(n for n in stacked if n.endswith("gate_up_proj"))
    assert segpack("cat", tmp_path / "pack", name) == bytes(stacked[name]["data"])
    slices = [t for t in manifest["tensors"] if t["source"]["tensor"] == name]
    up = next(t for t in slices if (t["role"], t["expert"]) == ("expert_up", 1))
    data = (source / "model.safetensors").read_bytes()[up["source"]["offset"] :][: up["length"]]
    assert hashlib.sha256(data).hexdigest() == up["sha256"]
    segpack("unpack", tmp_path / "pack", "-o", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()

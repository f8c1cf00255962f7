"""What the tests share: the command that the wheel brought, and packs that it makes once."""

import json
import signal
import subprocess
import sysconfig
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import segpack

# a shell's `&` has it ignored, and whatever is started from here would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = ROOT / "extractor/demo/tiny-full"
COMMAND = Path(sysconfig.get_path("scripts")) / "segpack"
CODECS = ["raw", "zstd", "bf16-zstd", "bf16-rans"]

#: Every dtype of safetensors, and how numpy has it.
DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "C64": np.complex64,
    "F64": np.float64,
    "I64": np.int64,
    "U64": np.uint64,
}
PACKED = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


def command(*arguments, status=0, **options):
    """A run of the command that must end with this status."""
    done = subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, check=False, **options)
    assert done.returncode == status, f"segpack {arguments} gave {done.returncode}: {done.stderr.decode()}"
    return done


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("packs")


@pytest.fixture(scope="session", params=CODECS)
def place(request, folder):
    """The tiny official checkpoint as a pack, with each codec."""
    return made(folder, request.param)


@pytest.fixture(scope="session")
def raw(folder):
    """The same, raw."""
    return made(folder, "raw")


@pytest.fixture(scope="session")
def coded(folder):
    """The same, as bf16-rans."""
    return made(folder, "bf16-rans")


def made(folder, codec):
    out = folder / codec
    if not out.exists():
        command("pack", CHECKPOINT, "-o", out, "--codec", codec)
    return out


@pytest.fixture
def damaged(raw, tmp_path):
    """A copy of the raw pack in which one bit of one tensor is flipped, and that tensor."""
    import shutil

    copy = tmp_path / "damaged"
    shutil.copytree(raw, copy)
    tensor = segpack.Pack(copy).tensor("thinker.model.layers.1.mlp.experts.5.up_proj.weight")
    place, offset = find(copy, tensor.name)
    data = bytearray(place.read_bytes())
    data[offset] ^= 1
    place.write_bytes(data)
    return copy, tensor


def find(folder, name):
    """The file of a raw pack that holds a tensor, and its first byte there."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (tensor,) = (t for t in manifest["tensors"] if t["name"] == name)
    (segment,) = (s for s in manifest["segments"] if s["id"] == tensor["segment"])
    return folder / segment["pack"], segment["offset"] + tensor["offset"]


@pytest.fixture(scope="session")
def every_dtype(folder):
    """A checkpoint with a tensor of every dtype, and one without values, and its bytes by name."""
    checkpoint = folder / "dtypes"
    checkpoint.mkdir()
    random = np.random.default_rng(1)
    tensors, header, data = {}, {}, b""
    sizes = {name: 8 * np.dtype(dtype).itemsize for name, dtype in DTYPES.items()} | PACKED
    for name, bits in sizes.items():
        shape = [3, 8]
        values = random.integers(0, 2 if name == "BOOL" else 256, 24 * bits // 8, dtype=np.uint8)
        tensors[f"of.{name}"] = values.tobytes()
        header[f"of.{name}"] = (name, shape)
    tensors["empty"], header["empty"] = b"", ("F32", [0, 4])
    entries = {}
    # as the format wants them: the widest first, so that all are aligned
    for name in sorted(tensors, key=lambda name: (-sizes[header[name][0]], name)):
        dtype, shape = header[name]
        end = len(data) + len(tensors[name])
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), end]}
        data += tensors[name]
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    (checkpoint / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (checkpoint / "config.json").write_text('{"model_type": "none_that_is_known"}')
    return checkpoint, tensors, header

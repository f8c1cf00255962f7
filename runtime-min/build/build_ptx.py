#!/usr/bin/env python3
"""Compiles the CUDA kernels to kernels.ptx.zst, which is committed and embedded in the program.

NVRTC comes from its PyPI wheel, so neither a CUDA toolkit nor a GPU is needed. The PTX is for compute_80 and labelled
with an old version of the language, so that drivers from CUDA 11.8 on take it for every GPU from Ampere on. It is one zstd
frame; what is compared is the text in it, so that any zstd may have written it.

  build_ptx.py             write kernels.ptx.zst
  build_ptx.py --check     fail where kernels.ptx.zst does not hold what the sources give
  build_ptx.py --assemble PTXAS
                           assemble it for every architecture that is supported

tests/gpu/ptx installs the pinned wheels and runs the last two.
"""

import argparse
import ctypes
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile

import zstandard

NVRTC = (12, 8)
PTX_VERSION = "7.8"  # CUDA 11.8; mma.sync with bf16 needs 7.0
ARCHITECTURES = [80, 86, 89, 90, 100, 103, 110, 120, 121]
# without --fmad=false a sum of a product may or may not be rounded in between, kernel by kernel; fmaf stays what it is
OPTIONS = ["--gpu-architecture=compute_80", "--std=c++17", "--fmad=false"]
HERE = pathlib.Path(__file__).resolve().parent
CUDA = HERE.parent / "src/devices/cuda"
KERNELS, PTX = CUDA / "kernels", CUDA / "ptx/kernels.ptx.zst"


def load_nvrtc():
    """The wheel's library."""
    for name in ("purelib", "platlib"):
        path = pathlib.Path(sysconfig.get_path(name)) / "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"
        if path.exists():
            return ctypes.CDLL(str(path))
    sys.exit("libnvrtc.so.12 is not installed: pip install nvidia-cuda-nvrtc-cu12 (tests/gpu/ptx has the version)")


def compile_ptx():
    """The PTX of all.cu."""
    nvrtc = load_nvrtc()
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    if (major.value, minor.value) != NVRTC:
        sys.exit(f"NVRTC is {major.value}.{minor.value}, wanted {NVRTC[0]}.{NVRTC[1]}: other versions give other PTX")
    headers = sorted(p for p in KERNELS.iterdir() if p.suffix in (".cu", ".cuh") and p.name != "all.cu")
    texts = (ctypes.c_char_p * len(headers))(*(p.read_bytes() for p in headers))
    names = (ctypes.c_char_p * len(headers))(*(p.name.encode() for p in headers))
    options = (ctypes.c_char_p * len(OPTIONS))(*(o.encode() for o in OPTIONS))
    program = ctypes.c_void_p()

    def checked(status, what):
        if status == 0:
            return
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        sys.exit(f"{what} failed with status {status}:\n{log.value.decode()}")

    source = (KERNELS / "all.cu").read_bytes()
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"all.cu", len(headers), texts, names)
    checked(created, "nvrtcCreateProgram")
    checked(nvrtc.nvrtcCompileProgram(program, len(OPTIONS), options), "nvrtcCompileProgram")
    size = ctypes.c_size_t()
    checked(nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)), "nvrtcGetPTXSize")
    ptx = ctypes.create_string_buffer(size.value)
    checked(nvrtc.nvrtcGetPTX(program, ptx), "nvrtcGetPTX")
    text, labels = re.subn(r"(?m)^\.version \d+\.\d+$", f".version {PTX_VERSION}", ptx.value.decode())
    if labels != 1:
        sys.exit(f"the PTX has {labels} .version lines, wanted 1")
    return text


def committed_ptx():
    """The text of the committed PTX."""
    return zstandard.ZstdDecompressor().stream_reader(PTX.read_bytes()).read().decode()


def write_ptx(text):
    """Commits this text, as small as zstd makes it."""
    PTX.write_bytes(zstandard.ZstdCompressor(level=22, write_content_size=True).compress(text.encode()))


def assemble(ptxas):
    """Assembles the committed PTX for every architecture, warnings about spilled registers included."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = pathlib.Path(folder) / "kernels.ptx"
        ptx.write_text(committed_ptx())
        for architecture in ARCHITECTURES:
            out = pathlib.Path(folder) / f"sm_{architecture}.cubin"
            subprocess.run([ptxas, "--warn-on-spills", f"--gpu-name=sm_{architecture}", ptx, "-o", out], check=True)
            print(f"sm_{architecture}: {out.stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--assemble", metavar="PTXAS")
    arguments = parser.parse_args()
    if arguments.check:
        if compile_ptx() != committed_ptx():
            sys.exit(f"{PTX} is stale: tests/gpu/ptx --write makes it anew")
        print("kernels.ptx.zst is what the sources give")
    if arguments.assemble:
        assemble(arguments.assemble)
    if not (arguments.check or arguments.assemble):
        write_ptx(compile_ptx())
        print(f"wrote {PTX}")


if __name__ == "__main__":
    main()

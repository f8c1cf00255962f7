"""Writes tests/fixtures/ggml: values, and the blocks that ggml's reference quantizers make of them; NAME.weighted are those with
an importance matrix, for rows of 256 in whose column i it is (37 i mod 101 + 1) / 64.

    python3 tests/tools/make_ggml_blocks.py LIBGGML_BASE OUT

LIBGGML_BASE is libggml-base.so of llama.cpp (llama-cpp-python has it in its folder lib). The values are bf16: rows like trained
weights, rows with outliers, of one sign, on a grid, nearly constant, sparse, tiny, and zeros.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np

TYPES = {"q4_0": (32, 18), "q5_0": (32, 22), "q5_1": (32, 24), "q8_0": (32, 34), "q4_K": (256, 144), "q5_K": (256, 176),
         "q6_K": (256, 210)}


def values():
    random = np.random.default_rng(7)
    rows = [random.normal(0, 0.02, 256) for _ in range(10)]
    outliers = random.normal(0, 0.02, 256)
    outliers[[3, 77, 200]] = [0.9, -0.6, 0.3]
    rows += [outliers, np.abs(random.normal(0, 0.1, 256)), -np.abs(random.normal(0, 0.1, 256)) - 0.5]
    rows += [np.round(random.normal(0, 3, 256)) / 8, 0.25 + random.normal(0, 1e-3, 256)]
    rows += [random.normal(0, 1, 256) * (random.random(256) < 0.05), random.normal(0, 1e-6, 256), np.zeros(256)]
    runs = random.normal(0, 0.02, 256)
    runs[64:128] = 0
    rows += [runs, random.standard_t(3, 256) * 0.02]
    bits = np.stack(rows).astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


# ggml_type
NUMBERS = {"q4_0": 2, "q5_0": 6, "q5_1": 7, "q4_K": 12, "q5_K": 13, "q6_K": 14}


def weighted(library, name, wide):
    count, size = TYPES[name]
    importance = ((37 * np.arange(256) % 101 + 1) / 64).astype(np.float32)
    blocks = np.zeros(wide.size // count * size, np.uint8)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (wide, blocks, importance)]
    rows = [ctypes.c_int64(number) for number in (0, wide.size // 256, 256)]
    library.ggml_quantize_chunk(ctypes.c_int(NUMBERS[name]), *pointers[:2], *rows, pointers[2])
    return blocks


def main():
    library, out = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    bf16 = values().ravel()
    (out / "values.bf16").write_bytes(bf16.tobytes())
    wide = (bf16.astype(np.uint32) << 16).view(np.float32)
    for name, (count, size) in TYPES.items():
        blocks = np.zeros(wide.size // count * size, np.uint8)
        quantize = getattr(library, f"quantize_row_{name}_ref")
        quantize(wide.ctypes.data_as(ctypes.c_void_p), blocks.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(wide.size))
        (out / name.lower()).write_bytes(blocks.tobytes())
    for name in NUMBERS:
        (out / f"{name.lower()}.weighted").write_bytes(weighted(library, name, wide).tobytes())


if __name__ == "__main__":
    main()

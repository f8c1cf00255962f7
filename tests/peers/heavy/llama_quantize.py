"""llama.cpp's own quantizer, through the low-level API of llama-cpp-python.

    llama_quantize.py IN.gguf OUT.gguf FTYPE [IMATRIX.gguf]

FTYPE is a number of llama_ftype.
"""

import ctypes
import sys

import llama_cpp as llama
import numpy as np
from gguf import GGUFReader


@llama.llama_log_callback
def quiet(level, text, _):
    if level >= 4:  # GGML_LOG_LEVEL_ERROR
        sys.stderr.write(text.decode())


def importance(path):
    """As `load_imatrix` and `prepare_imatrix` of tools/quantize/quantize.cpp have it: means, 1 where no token came."""
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    for name in [name for name in tensors if name.endswith(".in_sum2")]:
        counts = tensors[name.replace(".in_sum2", ".counts")].reshape(-1, 1)
        sums = tensors[name].reshape(len(counts), -1)
        yield name.removesuffix(".in_sum2"), np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32)


def main():
    source, out, ftype = sys.argv[1:4]
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    params = llama.llama_model_quantize_default_params()
    params.ftype = int(ftype)
    params.nthread = 2
    means = [(name.encode(), np.ascontiguousarray(values)) for path in sys.argv[4:] for name, values in importance(path)]
    if means:
        pointer = ctypes.POINTER(ctypes.c_float)
        entries = [(name, values.ctypes.data_as(pointer), values.size) for name, values in means]
        params.imatrix = (llama.llama_model_imatrix_data * (len(means) + 1))(*entries)
    status = llama.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params))
    sys.exit(f"llama_model_quantize gave {status}" if status else 0)


if __name__ == "__main__":
    main()

"""llama.cpp's own quantizer, through the low-level API of llama-cpp-python.

    llama_quantize.py IN.gguf OUT.gguf FTYPE

FTYPE is a number of llama_ftype.
"""

import ctypes
import sys

import llama_cpp as llama


@llama.llama_log_callback
def quiet(level, text, _):
    if level >= 4:  # GGML_LOG_LEVEL_ERROR
        sys.stderr.write(text.decode())


def main():
    source, out, ftype = sys.argv[1:4]
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    params = llama.llama_model_quantize_default_params()
    params.ftype = int(ftype)
    params.nthread = 2
    status = llama.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params))
    sys.exit(f"llama_model_quantize gave {status}" if status else 0)


if __name__ == "__main__":
    main()

"""What llama.cpp's `imatrix` collects, through the low-level API of llama-cpp-python, which has the callback and not the tool.

    llama_imatrix.py MODEL.gguf < chunks.json > sums.json

Standard input: {"chunks": [[id, ...], ...]}, each of 16 ids at least: of fewer the tool takes experts alone. Standard output:
{name: {"sums": [...], "counts": [...]}}. After `IMatrixCollector::collect_imatrix` in tools/imatrix/imatrix.cpp.
"""

import ctypes
import json
import sys

import llama_cpp as llama
import numpy as np
from llama_greedy import DISABLED, F32, load

MUL_MAT, MUL_MAT_ID = 29, 30  # enum ggml_op of ggml.h, as in llama-cpp-python 0.3.36


class Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h, as in llama-cpp-python 0.3.36."""


Tensor._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10), ("view_src", ctypes.POINTER(Tensor)), ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64), ("extra", ctypes.c_void_p), ("padding", ctypes.c_char * 8),
]


def array(tensor, dtype, sides):
    """The first sides of a tensor in the processor's memory, outermost first."""
    size = tensor.nb[sides - 1] * tensor.ne[sides - 1]
    raw = (ctypes.c_char * size).from_address(tensor.data)
    shape, strides = tensor.ne[:sides][::-1], tensor.nb[:sides][::-1]
    return np.ndarray(shape, dtype, raw, strides=strides)


class Collector:
    def __init__(self):
        self.sums, self.counts = {}, {}

    def collect(self, address, ask, _):
        tensor = Tensor.from_address(address)
        name = tensor.src[0].contents.name.decode() if tensor.src[0] else ""
        is_wanted = tensor.op == MUL_MAT_ID or tensor.op == MUL_MAT and name.startswith("blk.")
        if ask or not is_wanted:
            return is_wanted
        weight, rows = tensor.src[0].contents, tensor.src[1].contents
        assert rows.type == F32
        if tensor.op == MUL_MAT:
            assert rows.ne[1] >= 16 and rows.ne[2] == 1
            x = array(rows, np.float32, 2).astype(np.float64)
            self.add(name, 1, 0, x)
        else:
            # [tokens, experts of a token or 1, columns], [tokens, experts of a token]
            x, ids = array(rows, np.float32, 3).astype(np.float64), array(tensor.src[2].contents, np.int32, 2)
            for token, experts in enumerate(ids):
                for slot, expert in enumerate(experts):
                    self.add(name, weight.ne[2], expert, x[token, slot % x.shape[1]][None])
        return True

    def add(self, name, matrices, matrix, x):
        sums = self.sums.setdefault(name, np.zeros((matrices, x.shape[1])))
        counts = self.counts.setdefault(name, np.zeros(matrices, np.int64))
        sums[matrix] += (x**2).sum(0)
        counts[matrix] += len(x)


def main():
    chunks = json.load(sys.stdin)["chunks"]
    model, collector = load(sys.argv[1]), Collector()
    callback = llama.ggml_backend_sched_eval_callback(collector.collect)
    for ids in chunks:
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(len(ids), 32)
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = F32
        params.flash_attn_type = DISABLED
        params.cb_eval = callback
        ctx = llama.llama_init_from_model(model, params)
        batch = llama.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.n_seq_id[place], batch.logits[place] = token, place, 1, 1
            batch.seq_id[place][0] = 0
        status = llama.llama_decode(ctx, batch)
        if status:
            sys.exit(f"llama_decode gave {status}")
        llama.llama_batch_free(batch)
        llama.llama_free(ctx)
    json.dump({name: {"sums": sums.ravel().tolist(), "counts": collector.counts[name].tolist()}
               for name, sums in collector.sums.items()}, sys.stdout)


if __name__ == "__main__":
    main()

"""Greedy continuations by llama.cpp, through the low-level API of llama-cpp-python.

    llama_greedy.py MODEL.gguf < prompts.json > continuations.json

Standard input: {"prompts": [[id, ...], ...], "tokens": N}. Standard output: {"generated": [[id, ...], ...], "tokenized": ...,
"logits": ...}; "tokenized" holds the ids of each of "texts", and "logits" a row for each id of each list of "scored", where those
are given. Keys and values are cached in F32, and attention is the plain
one: what is compared is the model, not the precision of a cache.
"""

import ctypes
import json
import sys

import llama_cpp as llama
import numpy as np

F32 = 0  # GGML_TYPE_F32
DISABLED = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED


@llama.llama_log_callback
def quiet(level, text, _):
    if level >= 4:  # GGML_LOG_LEVEL_ERROR
        sys.stderr.write(text.decode())


def load(path):
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp does not load {path}")
    return model


def context(model, positions, threads=1):
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(positions, 32)
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = F32
    params.flash_attn_type = DISABLED
    made = llama.llama_init_from_model(model, params)
    if not made:
        sys.exit("llama.cpp makes no context")
    return made


def decode(ctx, ids):
    tokens = (llama.llama_token * len(ids))(*ids)
    status = llama.llama_decode(ctx, llama.llama_batch_get_one(tokens, len(ids)))
    if status:
        sys.exit(f"llama_decode gave {status}")


def greedy(model, prompt, count):
    """The ids, lowest first among equals."""
    vocab = llama.llama_model_get_vocab(model)
    size = llama.llama_vocab_n_tokens(vocab)
    ctx, out, ids = context(model, len(prompt) + count), [], list(prompt)
    for _ in range(count):
        decode(ctx, ids)
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(ctx, -1), shape=(size,))
        ids = [int(logits.argmax())]
        out += ids
    llama.llama_free(ctx)
    return out


def logits(model, ids):
    """Those behind each id."""
    size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    ctx, rows = context(model, len(ids)), []
    for token in ids:
        decode(ctx, [token])
        rows.append(np.ctypeslib.as_array(llama.llama_get_logits_ith(ctx, -1), shape=(size,)).tolist())
    llama.llama_free(ctx)
    return rows


def tokenize(model, text):
    vocab, data = llama.llama_model_get_vocab(model), text.encode()
    room = (llama.llama_token * (len(data) + 8))()
    count = llama.llama_tokenize(vocab, data, len(data), room, len(room), False, True)
    return list(room[:count])


def main():
    wanted = json.load(sys.stdin)
    model = load(sys.argv[1])
    generated = [greedy(model, prompt, wanted["tokens"]) for prompt in wanted["prompts"]]
    tokenized = [tokenize(model, text) for text in wanted.get("texts", [])]
    scored = [logits(model, ids) for ids in wanted.get("scored", [])]
    json.dump({"generated": generated, "tokenized": tokenized, "logits": scored}, sys.stdout)


if __name__ == "__main__":
    main()

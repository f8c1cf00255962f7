"""runtime-min/reference/record_server.py on the real llama.cpp server (llama-cpp-python's), which serves what
`segpack export --to gguf` wrote; segpack's validate judges what was recorded.

SEGPACK_LLAMA_PYTHON is an interpreter that has llama-cpp-python[server]; without it, this one.
"""

import itertools
import json
import os
import shutil
import socket
import string
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SEGPACK = os.environ["SEGPACK"]
SCRIPTS = ROOT / "runtime-min/reference"
LLAMA_PYTHON = os.environ.get("SEGPACK_LLAMA_PYTHON", sys.executable)
TEXTS = ["the user is on", "Hello", "segpack loads experts", "a"]


def write_tokenizer(folder, vocab_size=320):
    """A byte-level BPE of ASCII alone: every token is another word, so that words tell tokens."""
    characters = [chr(c) for c in range(0x21, 0x7F)]
    pairs = itertools.product(string.ascii_lowercase, repeat=2)
    merges = list(itertools.islice(pairs, vocab_size - len(characters) - 1))
    words = [*characters, "\u0120", *("".join(pair) for pair in merges)]
    vocab = {word: number for number, word in enumerate(words)}
    model = {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges], "byte_fallback": False}
    # as Qwen's: contractions, letters, single digits, punctuation, spaces
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    document = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": level,
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    config = {"tokenizer_class": "Qwen2TokenizerFast", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def segpack(*arguments):
    done = subprocess.run([SEGPACK, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"segpack {arguments} gave {done.returncode}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The checkpoint with a tokenizer, its pack, and a GGUF file by dtype."""
    folder = tmp_path_factory.mktemp("llama")
    checkpoint, pack = folder / "checkpoint", folder / "pack"
    shutil.copytree(ROOT / "tests/fixtures/tiny-text", checkpoint)
    write_tokenizer(checkpoint)
    segpack("pack", checkpoint, "-o", pack)
    files = {dtype: folder / f"{dtype}.gguf" for dtype in ("f32", "bf16")}
    for dtype, file in files.items():
        segpack("export", pack, "--to", "gguf", "--dtype", dtype, "--tokenizer-pre", "qwen2", "-o", file)
    return checkpoint, pack, files


class Server:
    def __init__(self, model, log, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}/v1", log
        # 0 is f32: the default, f16, would round keys and values
        plain = ["--n_ctx", "256", "--type_k", "0", "--type_v", "0", "--n_threads", "1", "--n_threads_batch", "1"]
        command = [LLAMA_PYTHON, "-m", "llama_cpp.server", "--model", model, "--port", port, *plain, *options]
        with open(log, "wb") as out:
            self.process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=subprocess.STDOUT)

    def __enter__(self):
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"{self.url}/models", timeout=5).read()
                return self
            except OSError:
                time.sleep(0.1)
        self.__exit__()
        raise AssertionError(f"the llama.cpp server did not start: {self.log.read_text(errors='replace')[-3000:]}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)


def record(server, out, checkpoint, *arguments, texts=TEXTS):
    given = ["--url", server.url, "--checkpoint", checkpoint, "--max-new-tokens", "24", *arguments]
    given += [word for text in texts for word in ("--text", text)]
    command = [sys.executable, "-B", SCRIPTS / "record_server.py", out, *given]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def validated(pack, trace, status, *arguments):
    command = [SEGPACK, "validate", str(pack), "--reference", str(trace), "--json", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == status, done.stdout.decode() + done.stderr.decode()
    return json.loads(done.stdout)


def worst(report):
    (row,) = (row for row in report["values"] if row["quantity"] == "log_probabilities")
    return row["max_abs"]


def test_an_exported_f32_model_is_inside_the_gate(made, tmp_path):
    checkpoint, pack, files = made
    out = tmp_path / "trace.safetensors"
    with Server(files["f32"], tmp_path / "log") as server:
        done = record(server, out, checkpoint, "--server", "llama-cpp-python", "--dtype", "float32")
        assert done.returncode == 0, done.stderr
        # it takes text only
        by_ids = record(server, tmp_path / "ids.safetensors", checkpoint, "--dtype", "float32")
        assert by_ids.returncode == 1 and "should be a valid string" in by_ids.stderr, by_ids.stderr
        assert not (tmp_path / "ids.safetensors").exists()
        unknown = record(server, tmp_path / "no.safetensors", checkpoint, "--dtype", "float32", texts=["\u00fc"])
        assert unknown.returncode == 3, unknown.stderr
    report = validated(pack, out, 0)
    assert report["verdict"] == "inside" and report["reference_dtype"] == "float32", report
    tokens = next(row for row in report["choices"] if row["choice"] == "greedy_tokens")
    assert tokens["equal"] == tokens["compared"] and tokens["compared"] >= 24
    print(f"log-probabilities differ by at most {worst(report):.1e}, tolerance {report['tolerance']:.1e}")


def test_a_bf16_model_is_reported(made, tmp_path):
    checkpoint, pack, files = made
    out = tmp_path / "trace.safetensors"
    with Server(files["bf16"], tmp_path / "log") as server:
        done = record(server, out, checkpoint, "--server", "llama-cpp-python", "--dtype", "bfloat16")
        assert done.returncode == 0, done.stderr
    report = validated(pack, out, 0)
    assert report["verdict"] == "not_judged" and report["tolerance"] is None
    print(f"log-probabilities differ by at most {worst(report):.1e}")
    judged = validated(pack, out, 0, "--tolerance", str(1.01 * worst(report)))
    assert judged["verdict"] in ("inside", "outside")


def test_a_server_without_logits_says_so(made, tmp_path):
    checkpoint, _, files = made
    with Server(files["f32"], tmp_path / "log", "--logits_all", "false") as server:
        out = tmp_path / "trace.safetensors"
        done = record(server, out, checkpoint, "--server", "llama-cpp-python", "--dtype", "float32", texts=["a"])
    assert done.returncode == 1 and "logprobs is not supported" in done.stderr and not out.exists(), done.stderr

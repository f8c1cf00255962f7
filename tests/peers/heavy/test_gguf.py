"""GGUF exports in llama.cpp, and beside what its own converter makes of the same model.

By hand, as all that is heavy. What these tests need, and fail without:

    SEGPACK_LLAMA_PYTHON    an interpreter with llama-cpp-python 0.3.36 (PyPI has its source, which builds with cmake)
    SEGPACK_LLAMA_CPP       the folder vendor/llama.cpp of that source distribution, with convert_hf_to_gguf.py
    SEGPACK_QWEN_TOKENIZER  the tokenizer files of Qwen3-Omni-30B-A3B-Instruct: vocab.json, merges.txt, tokenizer_config.json,
                            and tokenizer.json where the hub has one

llama_prebuilt FOLDER makes the first two of published binaries.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, segpack
from safetensors.torch import load_file, save_file

TRACES = {"tiny-full": ROOT / "tests/fixtures/traces/tiny-full", "tiny-text": ROOT / "tests/fixtures/traces/tiny-text"}
HERE = Path(__file__).parent
ROWS = 152064  # of the real embedding; its tokenizer has 151,676 tokens
TEXTS = [
    "Hello, world! It's 2026, and we'RE 12345 strong.",
    "  Größe 中文 ก็ \n\n\t x = f(a[1])  # 3.14…\r\n🦙🦙",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "don't DON'T can't've   trailing   ",
]


def needed(name):
    """A path that the caller has to name."""
    value = os.environ.get(name)
    if not value or not Path(value).exists():
        pytest.fail(f"{name} is not set to a path that exists: {__doc__}")
    return Path(value)


def greedy(model, prompts, tokens, texts=(), scored=()):
    """What llama.cpp goes on with, how it tokenizes, and the logits behind each id of what is scored."""
    done = subprocess.run(
        [needed("SEGPACK_LLAMA_PYTHON"), HERE / "llama_greedy.py", model],
        input=json.dumps({"prompts": prompts, "tokens": tokens, "texts": list(texts), "scored": list(scored)}),
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def export(pack, out, *options):
    segpack("export", pack, "--to", "gguf", "-o", out, *options)
    return out


@pytest.fixture(params=[(name, codec) for name in TRACES for codec in ("raw", "bf16-rans")], ids="-".join)
def packed(request, packs):
    name, _ = request.param
    return packs[request.param].folder, {d: json.loads(Path(f"{TRACES[name]}.{d}.json").read_bytes())["prompts"]
                                         for d in ("float32", "bfloat16")}


def continuations(model, prompts):
    seen = greedy(model, [p["input_ids"] for p in prompts], len(prompts[0]["generated"]))["generated"]
    return list(zip(seen, [p["generated"] for p in prompts]))


@pytest.mark.parametrize("options", [[], ["--max-shard-size", "60kB"]], ids=["one-file", "split"])
def test_every_greedy_token_of_the_f32_trace(packed, tmp_path, options):
    pack, prompts = packed
    export(pack, tmp_path / "m.gguf", "--dtype", "f32", *options)
    for seen, wanted in continuations(min(tmp_path.glob("m*.gguf")), prompts["float32"]):
        assert seen == wanted


def test_every_greedy_token_of_the_stable_prompts_in_bf16(packed, tmp_path):
    pack, prompts = packed
    stable = [p for p in prompts["bfloat16"] if p["bf16_stable"]]
    assert stable
    for seen, wanted in continuations(export(pack, tmp_path / "m.gguf"), stable):
        assert seen == wanted


def test_q8_0_is_loaded_and_keeps_most_tokens(packed, tmp_path, capsys):
    pack, prompts = packed
    pairs = continuations(export(pack, tmp_path / "m.gguf", "--dtype", "q8_0"), prompts["float32"])
    alike = [next((i for i, (a, b) in enumerate(zip(s, w)) if a != b), len(w)) for s, w in pairs]
    with capsys.disabled():
        print(f"\n    tokens before the first that differs from f32's, of {len(pairs[0][1])}: {alike}")
    # random weights of tiny widths: reported, not judged, but half of the prompts of a wrong model do not get that far
    assert sorted(alike)[len(alike) // 2] >= 4


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.json and merges.txt"])
def real_vocabulary(request, tmp_path_factory):
    """The official tiny thinker with the real vocabulary: a checkpoint's folder and its pack."""
    folder = tmp_path_factory.mktemp("vocabulary")
    checkpoint, source = folder / "checkpoint", ROOT / "tests/fixtures/tiny-text"
    checkpoint.mkdir()
    tensors = {}
    for shard in sorted(source.glob("*.safetensors")):
        tensors.update(load_file(shard))
    torch.manual_seed(0)
    for name in ("thinker.model.embed_tokens.weight", "thinker.lm_head.weight"):
        tensors[name] = (torch.randn(ROWS, tensors[name].shape[1]) * 0.05).to(torch.bfloat16)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["thinker_config"]["text_config"]["vocab_size"] = ROWS
    (checkpoint / "config.json").write_text(json.dumps(config))
    generation = {"eos_token_id": [151645, 151643], "pad_token_id": 151643, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
                  "repetition_penalty": 1.05}
    (checkpoint / "generation_config.json").write_text(json.dumps(generation))
    files = ["tokenizer_config.json", "vocab.json", "merges.txt"]
    for name in files + ["tokenizer.json"] * (request.param == "tokenizer.json"):
        shutil.copy(needed("SEGPACK_QWEN_TOKENIZER") / name, checkpoint)
    segpack("pack", checkpoint, "-o", folder / "pack", "--no-provenance")
    segpack("export", folder / "pack", "--to", "qwen3-moe", "-o", folder / "plain")
    return folder


def read(path):
    """Metadata with types, and tensors with types, shapes and bytes."""
    from gguf import GGUFReader
    reader = GGUFReader(path)
    metadata = {key: ([t.name for t in field.types], field.contents()) for key, field in reader.fields.items()
                if not key.startswith("GGUF.")}
    tensors = {t.name: (t.tensor_type.name, t.shape.tolist(), t.data.tobytes()) for t in reader.tensors}
    return metadata, tensors


# The rustdoc of extractor/src/steps/export/gguf has the table; the other lines of it need what this checkpoint lacks (a model
# card, a folder with a telling name).
DIFFERENCES = {"general.name", "segpack.manifest_sha256"}


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32", "q8_0"])
def test_llama_cpps_own_converter_makes_the_same_file(real_vocabulary, tmp_path, dtype):
    theirs, ours = tmp_path / "theirs.gguf", export(real_vocabulary / "pack", tmp_path / "ours.gguf", "--dtype", dtype)
    script = needed("SEGPACK_LLAMA_CPP") / "convert_hf_to_gguf.py"
    command = [sys.executable, script, real_vocabulary / "plain", "--outfile", theirs, "--outtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (our_metadata, our_tensors), (their_metadata, their_tensors) = read(ours), read(theirs)
    keys = our_metadata.keys() | their_metadata.keys()
    assert {key for key in keys if our_metadata.get(key) != their_metadata.get(key)} == DIFFERENCES
    assert our_tensors.keys() == their_tensors.keys()
    assert [name for name, tensor in our_tensors.items() if tensor != their_tensors[name]] == []


def test_llama_cpp_tokenizes_with_it_as_transformers_does(real_vocabulary, tmp_path):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(real_vocabulary / "plain")
    model = export(real_vocabulary / "pack", tmp_path / "m.gguf")
    assert greedy(model, [], 0, TEXTS)["tokenized"] == [tokenizer.encode(text) for text in TEXTS]

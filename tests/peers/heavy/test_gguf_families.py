"""GGUF exports of families other than Qwen3-MoE's, beside what llama.cpp's own converter makes of the same checkpoints, and in
llama.cpp. test_gguf.py says what has to be installed."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, segpack
from test_gguf import DIFFERENCES, export, greedy, needed, read
from transformers import AutoModelForCausalLM, Mxfp4Config

FIXTURES = ROOT / "tests/fixtures"
CHECKPOINTS = {"mixtral": "gguf/mixtral", "olmoe": "gguf/olmoe", "qwen2_moe": "gguf/qwen2_moe", "glm4_moe": "gguf/glm4_moe",
               "gpt_oss": "gguf/gpt_oss", "gpt_oss_mxfp4": "decoders/gpt_oss_mxfp4"}
PRE = {"olmoe": "olmo", "qwen2_moe": "qwen2", "glm4_moe": "glm4", "gpt_oss": "gpt-4o"}
RECORDER = ROOT / "tests/tools/record_gguf_converter.py"


@pytest.fixture(params=CHECKPOINTS)
def family(request, tmp_path):
    checkpoint = FIXTURES / CHECKPOINTS[request.param]
    segpack("pack", checkpoint, "-o", tmp_path / "pack", "--no-provenance")
    return request.param, checkpoint, tmp_path / "pack"


def test_what_was_recorded_of_the_converter_is_what_it_makes(family, tmp_path):
    name, checkpoint, _ = family
    command = [sys.executable, RECORDER, needed("SEGPACK_LLAMA_CPP"), checkpoint, tmp_path / "recorded.json"]
    command += ["--pre", PRE[name]] if name in PRE else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    recorded = json.loads((tmp_path / "recorded.json").read_text())
    assert recorded == json.loads((FIXTURES / f"gguf/{name}.json").read_text())


PROMPTS = [[3, 14, 15, 9, 26, 5, 35], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2]]
TOKENS = 8
# of log-probabilities. llama.cpp rounds the bounds of YaRN, which gpt-oss does not ("truncate": false), and multiplies MXFP4 with
# activations that it rounds to 8 bits
TOLERANCE = {"gpt_oss": 2e-3, "gpt_oss_mxfp4": 2e-2}


def log_probabilities(logits):
    return torch.log_softmax(torch.as_tensor(logits, dtype=torch.float64), -1)


def official(checkpoint):
    """Greedy continuations by the official class in F32, whatever ends a text, and the logits behind each id of the prompts."""
    config = json.loads((checkpoint / "config.json").read_text())
    options = {"quantization_config": Mxfp4Config(dequantize=True)} if "quantization_config" in config else {}
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager", **options)
    generated, logits = [], []
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = list(prompt)
            logits.append(model(torch.tensor([ids])).logits[0])
            for _ in range(TOKENS):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            generated.append(ids[len(prompt):])
    return generated, logits


def difference(checkpoint, model):
    """The largest one of a log-probability between llama.cpp and the official class, whose greedy tokens are the same."""
    seen = greedy(model, PROMPTS, TOKENS, scored=PROMPTS)
    generated, logits = official(checkpoint)
    assert seen["generated"] == generated
    return max(float((log_probabilities(a) - log_probabilities(b)).abs().max()) for a, b in zip(seen["logits"], logits))


def test_llama_cpp_computes_what_the_official_class_does(family, tmp_path, capsys):
    name, checkpoint, pack = family
    largest = difference(checkpoint, export(pack, tmp_path / "m.gguf", "--dtype", "f32"))
    with capsys.disabled():
        print(f"\n    log-probabilities differ by {largest:.1e} at most")
    assert largest <= TOLERANCE.get(name, 1e-4)


def test_gpt_oss_differs_by_the_bounds_of_yarn_alone(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(FIXTURES / CHECKPOINTS["gpt_oss"], checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config["rope_scaling"]["truncate"] = True
    (checkpoint / "config.json").write_text(json.dumps(config))
    segpack("pack", checkpoint, "-o", tmp_path / "pack", "--no-provenance")
    assert difference(checkpoint, export(tmp_path / "pack", tmp_path / "m.gguf", "--dtype", "f32")) <= 1e-4


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8_0"])
def test_llama_cpp_goes_on_with_the_tokens_that_segpack_does(family, tmp_path, dtype):
    name, checkpoint, pack = family
    model = export(pack, tmp_path / "m.gguf", "--dtype", dtype)
    metadata, _ = read(model)
    assert metadata["segpack.manifest_sha256"], DIFFERENCES
    seen = greedy(model, PROMPTS, TOKENS)["generated"]
    if dtype != "f32":
        # random weights of tiny widths: loaded and computed is all that is asked
        assert [len(tokens) for tokens in seen] == [TOKENS] * 2, name
        return
    # of token ids alone: `run` does not read Mixtral's tokenizer
    (tmp_path / "bare").mkdir()
    for file in ["config.json", *(path.name for path in checkpoint.glob("*.safetensors"))]:
        shutil.copy(checkpoint / file, tmp_path / "bare")
    segpack("pack", tmp_path / "bare", "-o", tmp_path / "bare.pack", "--no-provenance")
    for prompt, tokens in zip(PROMPTS, seen):
        ids = ",".join(map(str, prompt))
        ran = segpack("run", tmp_path / "bare.pack", "--prompt-ids", ids, "--max-new-tokens", TOKENS, "--greedy", "--compute", "f32",
                      "--json")
        lines = [json.loads(line) for line in ran.splitlines()]
        # `run` ends where the text does
        ours = [line["id"] for line in lines if "id" in line]
        assert ours and tokens[:len(ours)] == ours, name

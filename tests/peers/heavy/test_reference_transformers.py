"""runtime-min/reference/record_transformers.py on the official classes: its traces equal the public ones, and segpack's validate
accepts them.

Runs with this interpreter, and with those of REFERENCE_PYTHONS (paths between colons), which may have other versions of
transformers (4.57, and 5.1 or later).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]
SEGPACK = os.environ["SEGPACK"]
SCRIPT = ROOT / "runtime-min/reference/record_transformers.py"
CHECKPOINTS = {"tiny-full": ROOT / "extractor/demo/tiny-full", "tiny-text": ROOT / "tests/fixtures/tiny-text"}
PYTHONS = [sys.executable, *filter(None, os.environ.get("REFERENCE_PYTHONS", "").split(":"))]
NOISE = 1e-4  # between machines; two legitimate implementations differ by at most 1.1e-4


@pytest.fixture(params=PYTHONS)
def python(request):
    return request.param


def record(python, *arguments, script=SCRIPT):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [python, "-B", script, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)


def public(name, dtype):
    """The public trace, and its prompts as a file for the script would have them."""
    path = ROOT / f"tests/fixtures/traces/{name}.{dtype}.safetensors"
    described = json.loads(path.with_suffix(".json").read_text())["prompts"]
    kept = ("chat", "bf16_stable", "note")
    prompts = [{k: p[k] for k in kept if k in p} for p in described]
    for prompt, entry in zip(prompts, described, strict=True):
        if "chat" not in prompt:
            prompt["ids"] = entry["input_ids"]
    return load_file(path), described, prompts


def validated(pack, trace, status=0):
    command = [SEGPACK, "validate", str(pack), "--reference", str(trace), "--json", "-q"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == status, done.stdout.decode() + done.stderr.decode()
    return json.loads(done.stdout)


def packed(checkpoint, out):
    subprocess.run([SEGPACK, "pack", str(checkpoint), "-o", str(out), "-q"], check=True)
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_public_traces_are_recorded_again(python, name, dtype, tmp_path):
    wanted, described, prompts = public(name, dtype)
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    out = tmp_path / "trace.safetensors"
    given = [CHECKPOINTS[name], out, "--prompts", tmp_path / "prompts.json", "--dtype", dtype, "--max-new-tokens", "24"]
    done = record(python, *given)
    assert done.returncode == 0, done.stderr
    assert "memory needed" in done.stderr and "peak memory: resident" in done.stderr
    seen, document = load_file(out), json.loads(out.with_suffix(".json").read_text())
    # 5.1 keeps the experts' weights in float32: under bfloat16 it is another model than 4.57 and 5.23
    rounds_otherwise = dtype == "bfloat16" and document["versions"]["transformers"].startswith("5.1.")
    assert seen.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert seen[key].shape == tensor.shape, key
        assert seen[key].dtype == tensor.dtype or rounds_otherwise, key
        if dtype == "bfloat16":
            continue
        if tensor.is_floating_point():
            assert torch.allclose(seen[key], tensor, rtol=0, atol=NOISE * max(1, tensor.abs().max() / 5)), key
        elif not key.endswith("gen.top_ids"):  # the order of its tail is rounding's
            assert torch.equal(seen[key], tensor), key
    for prompt, entry, recorded in zip(document["prompts"], described, range(len(described)), strict=True):
        assert prompt["input_ids"] == entry["input_ids"]
        if dtype == "float32" or (entry["bf16_stable"] and not rounds_otherwise):
            assert prompt["generated"] == entry["generated"] == seen[f"p{recorded:02d}.gen.ids"].tolist()
    if dtype == "float32":
        logits = [(seen[k] - wanted[k]).abs().max().item() for k in wanted if k.endswith(".logits")]
        assert max(logits) <= NOISE
        print(f"logits differ by at most {max(logits):.1e}", document["versions"])
    pack = packed(CHECKPOINTS[name], tmp_path / "pack")
    if not rounds_otherwise:
        report = validated(pack, out)
        assert report["verdict"] == "inside" and report["not_compared"] == []


@pytest.mark.parametrize(("level", "missing"), [("router", 4), ("logits", 8)])
def test_levels(python, level, missing, tmp_path):
    out = tmp_path / "trace.safetensors"
    given = ["--ids", "5,6,7", "--chat", "Hi", "--level", level, "--max-new-tokens", "2", "--device-map", "auto"]
    done = record(python, CHECKPOINTS["tiny-full"], out, *given)
    assert done.returncode == 0, done.stderr
    report = validated(packed(CHECKPOINTS["tiny-full"], tmp_path / "pack"), out)
    assert report["verdict"] == "inside" and len(report["not_compared"]) == missing, report["not_compared"]


def plain(folder):
    """The text part of tiny-text as a plain Qwen3-MoE checkpoint."""
    config = json.loads((CHECKPOINTS["tiny-text"] / "config.json").read_text())["thinker_config"]["text_config"]
    config |= {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "tie_word_embeddings": False}
    config.pop("rope_scaling", None)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for shard in sorted(CHECKPOINTS["tiny-text"].glob("*.safetensors")):
        for name, tensor in load_file(shard).items():
            if name.startswith(("thinker.model.", "thinker.lm_head.")):
                tensors[name.removeprefix("thinker.")] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def test_plain_checkpoints(python, tmp_path):
    plain(tmp_path / "plain")
    wanted, _, prompts = public("tiny-text", "float32")
    out = tmp_path / "trace.safetensors"
    given = ["--ids", ",".join(map(str, prompts[-1]["ids"])), "--max-new-tokens", "24"]
    done = record(python, tmp_path / "plain", out, *given)
    assert done.returncode == 0, done.stderr
    seen, last = load_file(out), f"p{len(prompts) - 1:02d}."
    assert torch.equal(seen["p00.gen.ids"], wanted[f"{last}gen.ids"])
    assert numpy.abs(seen["p00.logits"] - wanted[f"{last}logits"]).max() <= NOISE
    assert json.loads(out.with_suffix(".json").read_text())["settings"]["class"] == "Qwen3MoeForCausalLM"
    assert validated(packed(tmp_path / "plain", tmp_path / "pack"), out)["verdict"] == "inside"


def test_models_that_are_not_all_there_are_refused(python, tmp_path):
    tensors = plain(tmp_path / "plain")
    out, shard = tmp_path / "trace.safetensors", tmp_path / "plain/model.safetensors"
    name = "model.layers.1.mlp.experts.5.up_proj.weight"

    def refused(kept, words):
        save_file(kept, shard, metadata={"format": "pt"})
        done = record(python, tmp_path / "plain", out, "--ids", "1,2,3")
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 3 and last.startswith("error: "), done.stderr
        assert any(word in last for word in words), done.stderr
        assert not out.exists() and not out.with_suffix(".json").exists()

    norm = "model.layers.1.input_layernorm.weight"
    refused({k: t for k, t in tensors.items() if k != norm}, ["1 parameters are missing from the checkpoint"])
    refused({k: t for k, t in tensors.items() if k != name}, ["missing from the checkpoint", "does not load"])
    refused({**tensors, "model.extra.weight": tensors[norm].clone()}, ["1 parameters are not expected by the class"])
    refused({**tensors, norm: tensors[norm][:32].contiguous()}, ["of another shape", "does not load"])

"""GGUF exports of families other than Qwen3-MoE's, beside what llama.cpp's own converter makes of the same checkpoints, and in
llama.cpp. test_gguf.py says what has to be installed."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, segpack
from test_gguf import DIFFERENCES, export, greedy, needed, read

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


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8_0"])
def test_llama_cpp_goes_on_with_the_tokens_that_segpack_does(family, tmp_path, dtype):
    name, _, pack = family
    model = export(pack, tmp_path / "m.gguf", "--dtype", dtype)
    metadata, _ = read(model)
    assert metadata["segpack.manifest_sha256"], DIFFERENCES
    prompts = [[3, 14, 15, 9, 26, 5, 35], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2]]
    seen = greedy(model, prompts, 8)["generated"]
    if dtype != "f32":
        # random weights of tiny widths: loaded and computed is all that is asked
        assert [len(tokens) for tokens in seen] == [8, 8], name
        return
    for prompt, tokens in zip(prompts, seen):
        ids = ",".join(map(str, prompt))
        wanted = segpack("run", pack, "--prompt-ids", ids, "--max-new-tokens", 8, "--greedy", "--compute", "f32", "--json")
        lines = [json.loads(line) for line in wanted.splitlines()]
        assert tokens == [line["id"] for line in lines if "id" in line], name

"""Other families than Qwen3-MoE: checkpoints of random numbers, run by the official class and by segpack.

The configurations are those of tests/fixtures/decoders; each seed gives another model of the same shapes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SEGPACK = os.environ["SEGPACK"]
MAKE = ROOT / "tests/tools/make_family_checkpoint.py"
RECORD = ROOT / "runtime-min/reference/record_transformers.py"
CONFIGS = sorted((ROOT / "tests/fixtures/decoders").glob("*/config.json"))
# longer than the windows of the configurations, and of every expert
PROMPT = ",".join(str((7 * i * i + 3 * i + 5) % 40) for i in range(40))


def python(*arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-B", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, env=environment)


def validated(pack, trace, *options):
    command = [SEGPACK, "validate", str(pack), "--reference", str(trace), "--json", "-q", *options]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.parent.name)
def test_the_official_class_and_segpack_compute_the_same(config, seed, tmp_path):
    checkpoint, pack, trace = (tmp_path / name for name in ("checkpoint", "pack", "trace.safetensors"))
    python(MAKE, config, checkpoint, "--seed", seed)
    python(RECORD, checkpoint, trace, "--ids", PROMPT, "--max-new-tokens", 8)
    subprocess.run([SEGPACK, "pack", str(checkpoint), "-o", str(pack), "-q"], check=True)
    report = validated(pack, trace)
    assert report["verdict"] == "inside"
    assert report["not_compared"] == []
    # keys and values of one token at a time, and one expert in memory
    assert validated(pack, trace, "--expert-cache", "1")["values"] == report["values"]

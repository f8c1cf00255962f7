"""runtime-min/reference/record_speech.py on the official classes: validate accepts what it records, and a given answer is spoken as the
whole model speaks it."""

import json
import subprocess
import sys

import numpy
import pytest
from safetensors.torch import load_file
from test_reference_transformers import CHECKPOINTS, ROOT, SEGPACK, packed, record as run, validated

SCRIPT = ROOT / "runtime-min/reference/record_speech.py"
PUBLIC = ROOT / "tests/fixtures/traces/tiny-full.speech.float32.safetensors"
TINY = CHECKPOINTS["tiny-full"]


def record(*arguments):
    done = run(sys.executable, *arguments, script=SCRIPT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return packed(TINY, tmp_path_factory.mktemp("speech") / "pack")


def test_the_public_answer_is_recorded_again(tmp_path):
    wanted = {key[4:]: value for key, value in load_file(PUBLIC).items() if key.startswith("s00.")}
    entry = json.loads(PUBLIC.with_suffix(".json").read_text())["cases"][0]
    ids = ",".join(str(int(i)) for i in wanted["input_ids"])
    out = tmp_path / "again.safetensors"
    record(TINY, out, "--ids", ids, "--text-tokens", entry["text_tokens"], "--talker-tokens", entry["talker_tokens"], "--speaker", entry["speaker"])
    seen = {key[4:]: value for key, value in load_file(out).items()}
    for name in ("text_ids", "talker.ids", "talker.tokens", "codes"):
        assert seen[name].tolist() == wanted[name].tolist(), name
    for name in wanted.keys() & seen.keys():
        rows = wanted[name].shape[0]  # the public traces keep some steps of some tensors
        if wanted[name].is_floating_point() and not name.endswith("scores"):
            assert (seen[name][:rows] - wanted[name]).abs().max() < 1e-3, name


def test_validate_accepts_whole_answers_given_ones_and_sound(pack, tmp_path):
    out = tmp_path / "t.safetensors"
    record(TINY, out, "--chat", "Name three rivers.", "--text-tokens", "8", "--talker-tokens", "20")
    assert validated(pack, out)["verdict"] == "inside"
    record(TINY, out, "--chat", "Say it.", "--answer", "The Rhine flows north.", "--talker-tokens", "12", "--overwrite")
    report = validated(pack, out)
    assert report["verdict"] == "inside" and "speech_text" not in json.dumps(report["stages"])
    numpy.save(tmp_path / "codes.npy", numpy.random.default_rng(0).integers(0, 60, size=(4, 320)))
    record(TINY, out, "--codes", tmp_path / "codes.npy", "--overwrite")
    assert validated(pack, out)["verdict"] == "inside"


def test_a_trace_of_an_export_belongs_to_its_pack(pack, tmp_path):
    exported, out = tmp_path / "exported", tmp_path / "t.safetensors"
    subprocess.run([SEGPACK, "export", str(pack), "--to", "hf", "-o", str(exported), "-q"], check=True)
    record(exported, out, "--chat", "Name three rivers.", "--text-tokens", "4", "--talker-tokens", "8")
    report = validated(pack, out)
    assert report["verdict"] == "inside" and report["is_of_export"]
    other = packed(CHECKPOINTS["tiny-text"], tmp_path / "other")
    assert validated(other, out, status=3)["verdict"] == "foreign"

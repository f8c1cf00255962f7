"""Exports in the runtimes that they are for: greedy tokens and log-probabilities of each beside the official class's.

The checkpoint is tests/fixtures/tiny-runtimes, which all of them take (rows that are multiples of 32, heads of 32); its traces
are of transformers' own class, in float32, by runtime-min/reference. Everything is computed in float32 here, with keys and values
in float32, so that tokens have to be equal and log-probabilities inside TOLERANCE.

Each runtime has a script, run_NAME.py, which its own interpreter runs with the path of an export. Standard input:
{"top": R, "cases": [{"ids": [...] | null, "text": "..." | null, "image": PATH, "audio": PATH, "tokens": N}]}. Standard output:
{"versions": {...}, "answers": [{"prompt": [...], "ids": [...], "steps": [[[id, log-probability], ...], ...]}]}: how it read the
prompt, its N tokens, and the R best tokens of each step. RUNTIMES_VENVS names the folder of their virtual environments.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, segpack
from safetensors.numpy import load_file

HERE = Path(__file__).parent
FIXTURES = ROOT / "tests/fixtures"
CHECKPOINT = FIXTURES / "tiny-runtimes"
TRACES = FIXTURES / "traces"
TOP = 10
# what `validate` allows a server that computes in float32
TOLERANCE = 6e-4
# runtime, what is exported, what it takes
RUNS = [
    ("vllm", "hf", {"ids", "text", "image", "audio"}),
    ("vllm", "qwen3-moe", {"ids", "text"}),
    ("mistralrs", "qwen3-moe", {"text"}),
    ("mistralrs", "gguf", {"text"}),
    ("mistralrs", "gguf-f32", {"text"}),
    ("openvino", "qwen3-moe", {"ids", "text"}),
]  # fmt: skip
OPTIONS = {
    "hf": ["--to", "hf", "--component", "thinker"],
    "qwen3-moe": ["--to", "qwen3-moe"],
    "gguf": ["--to", "gguf"],
    "gguf-f32": ["--to", "gguf", "--dtype", "f32"],
}


def text_cases():
    """Prompts of the trace, and what the class chose after them."""
    document = json.loads((TRACES / "tiny-runtimes.float32.json").read_bytes())
    trace = load_file(TRACES / "tiny-runtimes.float32.safetensors")
    for number, prompt in enumerate(document["prompts"]):
        ids, text, generated = prompt["input_ids"], prompt.get("rendered"), prompt["generated"]
        steps = list(zip(trace[f"p{number:02}.gen.top_ids"], trace[f"p{number:02}.gen.top_logits"]))
        case = {"ids": ids, "text": text, "tokens": len(generated)}
        yield "text" if text else "ids", case, {"ids": generated, "last": trace[f"p{number:02}.logits"][-1], "steps": steps}


def media_cases():
    for kind in ("image", "audio"):
        stem = TRACES / f"tiny-runtimes.media.{kind}.float32"
        document, trace = json.loads(stem.with_name(stem.name + ".json").read_bytes()), load_file(stem.with_name(stem.name + ".safetensors"))
        (file,) = [part[kind] for part in document["conversation"]["messages"][0]["content"] if kind in part]
        case = {"text": document["prompt"], kind: str(FIXTURES / file), "tokens": len(document["generated"])}
        yield kind, case, {"prompt": trace["mm.input_ids"].tolist(), "ids": document["generated"], "last": trace["mm.logits"][-1], "steps": []}


CASES = [*text_cases(), *media_cases()]


def changed(folder):
    """The checkpoint with one matrix of one expert that has the other sign."""
    name = "thinker.model.layers.1.mlp.experts.2.down_proj.weight"
    folder.mkdir()
    for file in CHECKPOINT.iterdir():
        data = bytearray(file.read_bytes())
        if file.suffix == ".safetensors":
            size = int.from_bytes(data[:8], "little")
            if entry := json.loads(data[8 : 8 + size]).get(name):
                begin, end = (8 + size + at for at in entry["data_offsets"])
                data[begin + 1 : end : 2] = bytes(byte ^ 0x80 for byte in data[begin + 1 : end : 2])
        (folder / file.name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A folder with every export of the checkpoint, and one of the changed one, each made once."""
    folder, made = tmp_path_factory.mktemp("runtimes"), {}

    def export(target, is_changed=False):
        key = (target, is_changed)
        if key not in made:
            pack = folder / f"pack-{is_changed}"
            if not pack.exists():
                checkpoint = changed(folder / "changed") if is_changed else CHECKPOINT
                segpack("pack", checkpoint, "-o", pack, "--no-provenance")
            made[key] = folder / f"{target}-{is_changed}{'.gguf' if 'gguf' in target else ''}"
            segpack("export", pack, "-o", made[key], *OPTIONS[target])
        return made[key]

    return export


def run(runtime, model, cases):
    interpreter = Path(os.environ["RUNTIMES_VENVS"]) / runtime / "bin/python"
    wanted = json.dumps({"top": TOP, "cases": cases})
    command = [interpreter, "-B", HERE / f"run_{runtime}.py", model]
    # the interpreter of the tests is not to be seen by that of the runtime
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, input=wanted, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{runtime} does not run {model.name}: {done.stderr[-3000:]}"
    answers = json.loads(done.stdout)
    assert len(answers["answers"]) == len(cases)
    return answers


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def difference(answer, wanted):
    """The largest one of log-probabilities: of the first step, whose logits the trace has all, and of the others beside the
    likeliest token, since differences of log-probabilities are those of logits. Ids are compared before."""
    row = log_softmax(wanted["last"])
    largest = max(abs(row[i] - value) for i, value in answer["steps"][0])
    for step, (ids, logits) in zip(answer["steps"], wanted["steps"]):
        listed = dict(step)
        both = [(listed[i] - listed[ids[0]], logits[k] - logits[0]) for k, i in enumerate(ids) if i in listed]
        if len(both) <= TOP // 2:  # other tokens than the reference's are the best ones
            return np.inf
        largest = max(largest, *(abs(a - float(b)) for a, b in both))
    return largest


def compared(runtime, model, kinds):
    """Per kind of prompt: tokens, those that are equal, and the largest difference where all are; and the versions."""
    cases = [(kind, case, wanted) for kind, case, wanted in CASES if kind in kinds]
    answers = run(runtime, model, [case for _, case, _ in cases])
    rows = {}
    for (kind, case, wanted), answer in zip(cases, answers["answers"]):
        assert answer["prompt"] == wanted.get("prompt", case.get("ids")), f"{kind}: the prompt was read as {answer['prompt']}"
        equal = sum(a == b for a, b in zip(answer["ids"], wanted["ids"]))
        row = rows.setdefault(kind, {"tokens": 0, "equal": 0, "difference": 0.0})
        row["tokens"] += len(wanted["ids"])
        row["equal"] += equal if len(answer["ids"]) == len(wanted["ids"]) else 0
        if equal == len(wanted["ids"]):
            row["difference"] = max(row["difference"], difference(answer, wanted))
    assert rows.keys() == kinds
    return rows, answers["versions"]


def is_inside(row):
    return row["tokens"] == row["equal"] and row["difference"] <= TOLERANCE


@pytest.mark.parametrize(("runtime", "target", "kinds"), RUNS, ids=lambda value: value if isinstance(value, str) else "")
def test_an_export_computes_what_the_official_class_does(runtime, target, kinds, exports, capsys):
    rows, versions = compared(runtime, exports(target), kinds)
    with capsys.disabled():
        print(f"\n    {' '.join(f'{name} {number}' for name, number in versions.items())}, {target}")
        for kind, row in rows.items():
            print(f"    {kind}: {row['equal']} of {row['tokens']} tokens equal, log-probabilities within {row['difference']:.1e}")
    assert all(map(is_inside, rows.values())), rows


@pytest.mark.parametrize(("runtime", "target", "kinds"), RUNS, ids=lambda value: value if isinstance(value, str) else "")
def test_one_expert_that_was_changed_is_seen(runtime, target, kinds, exports):
    rows, _ = compared(runtime, exports(target, is_changed=True), kinds)
    assert not all(map(is_inside, rows.values())), rows

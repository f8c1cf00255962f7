"""Greedy continuations by OpenVINO GenAI, in float32, of what optimum-intel converts.

    run_openvino.py FOLDER < cases.json > answers.json

test_runtimes.py documents both files. Tokens are those of GenAI's LLMPipeline; since it lists log-probabilities of the chosen
tokens alone, those of the others are from one pass of the same converted model over prompt and tokens.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# what the libraries print is not the answer
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import numpy as np  # noqa: E402
import openvino as ov  # noqa: E402
import openvino_genai as genai  # noqa: E402

# CPUs with bf16 instructions would compute in bf16, and keys and values would be kept in 8 bits
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "ATTENTION_BACKEND": "SDPA"}


def convert(folder, out):
    program = Path(sys.executable).with_name("optimum-cli")
    command = [program, "export", "openvino", "--model", folder, "--task", "text-generation-with-past", "--weight-format", "fp32", out]
    subprocess.run(list(map(str, command)), check=True)


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def passed(model, ids):
    """Log-probabilities after each of the ids."""
    request, row = model.create_infer_request(), np.array([ids], dtype=np.int64)
    given = {
        "input_ids": row, "attention_mask": np.ones_like(row), "position_ids": np.arange(len(ids), dtype=np.int64)[None],
        "beam_idx": np.zeros(1, dtype=np.int32),
    }  # fmt: skip
    names = {name for one in model.inputs for name in one.names}
    request.infer({name: value for name, value in given.items() if name in names})
    return log_softmax(request.get_tensor("logits").data[0].astype(np.float64))


def listed(row, top):
    return [[int(i), float(row[i])] for i in np.argsort(-row, kind="stable")[:top]]


def main():
    wanted = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        convert(sys.argv[1], folder)
        pipeline = genai.LLMPipeline(folder, "CPU", FLOAT32)
        precision = {key: value for key, value in FLOAT32.items() if key != "ATTENTION_BACKEND"}
        model = ov.Core().compile_model(Path(folder) / "openvino_model.xml", "CPU", precision)
        made = []
        for case in wanted["cases"]:
            config = genai.GenerationConfig(max_new_tokens=case["tokens"], do_sample=False, ignore_eos=True)
            ids = pipeline.generate(ov.Tensor(np.array([case["ids"]], dtype=np.int64)), config).tokens[0]
            rows = passed(model, case["ids"] + ids[:-1])[len(case["ids"]) - 1 :]
            made.append({"prompt": case["ids"], "ids": list(ids), "steps": [listed(row, wanted["top"]) for row in rows]})
    packages = ["openvino", "openvino-genai", "optimum-intel", "transformers", "torch"]
    json.dump({"versions": {name: version(name) for name in packages}, "answers": made}, answers)


if __name__ == "__main__":
    main()

"""Greedy continuations by vLLM's offline class, in float32.

    run_vllm.py FOLDER < cases.json > answers.json

test_runtimes.py documents both files. Everything runs in this process: vLLM's workers would need minutes to start.
"""

import os
import sys

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip
# what vLLM and its libraries print is not the answer
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import json  # noqa: E402
import wave  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import vllm  # noqa: E402
from PIL import Image  # noqa: E402


def sound(path):
    """Samples and rate of a file with one channel of 16 bits."""
    with wave.open(path) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2), path
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        return samples.astype(np.float32) / 32768, file.getframerate()


def media(case):
    """What vLLM takes beside the text, under its names."""
    taken = {}
    if "image" in case:
        taken["image"] = Image.open(case["image"]).convert("RGB")
    if "audio" in case:
        taken["audio"] = sound(case["audio"])
    return taken


def prompt(case):
    if taken := media(case):
        return {"prompt": case["text"], "multi_modal_data": taken}
    return {"prompt_token_ids": case["ids"]}


def sampling(case, top):
    return vllm.SamplingParams(temperature=0, max_tokens=case["tokens"], logprobs=top, ignore_eos=True, detokenize=False)


def main():
    wanted = json.load(sys.stdin)
    cases = wanted["cases"]
    llm = vllm.LLM(model=sys.argv[1], dtype="float32", seed=0, enforce_eager=True, enable_prefix_caching=False, max_model_len=256)
    made = []
    for case in cases:
        (output,) = llm.generate([prompt(case)], sampling(case, wanted["top"]), use_tqdm=False)
        (one,) = output.outputs
        steps = [[[int(i), float(entry.logprob)] for i, entry in row.items()] for row in one.logprobs]
        made.append({"prompt": list(output.prompt_token_ids), "ids": list(one.token_ids), "steps": steps})
    versions = {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    json.dump({"versions": versions, "answers": made}, answers)


if __name__ == "__main__":
    main()

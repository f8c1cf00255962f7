"""Greedy continuations by mistral.rs, in float32.

    run_mistralrs.py FOLDER_OR_FILE.gguf < cases.json > answers.json

test_runtimes.py documents both files. Prompts are texts, since mistral.rs takes no token ids; a template that adds nothing
hands them over as they are. Keys and values are cached in F32: on CPUs, mistral.rs takes F16 unless it is told otherwise.
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ |= {"MISTRALRS_CPU_KV_F32": "1", "HF_HUB_OFFLINE": "1"}
# what the runtime prints is not the answer
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from mistralrs import Architecture, ChatCompletionRequest, ModelDType, Runner, Which  # noqa: E402

TEMPLATE = "{{ messages[0]['content'] }}"


def model(path):
    if path.suffix == ".gguf":
        return Which.GGUF(str(path.parent), path.name, dtype=ModelDType.F32)
    return Which.Plain(str(path), arch=Architecture.Qwen3Moe, dtype=ModelDType.F32)


def answer(runner, case, top):
    request = ChatCompletionRequest(
        model="default", messages=case["text"], max_tokens=case["tokens"], temperature=0.0, logprobs=True, top_logprobs=top,
        ignore_eos=True,
    )  # fmt: skip
    response = runner.send_chat_completion_request(request)
    read = runner.tokenize_text(case["text"], False, None)
    # the template is seen to add nothing
    assert response.usage.prompt_tokens == len(read), (response.usage.prompt_tokens, read)
    steps = [[[one.token, one.logprob] for one in step.top_logprobs] for step in response.choices[0].logprobs.content]
    return {"prompt": list(read), "ids": [row[0][0] for row in steps], "steps": steps}


def main():
    wanted = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "template.jinja"
        template.write_text(TEMPLATE)
        runner = Runner(which=model(Path(sys.argv[1])), prefix_cache_n=0, no_paged_attn=True, jinja_explicit=str(template))
        made = [answer(runner, case, wanted["top"]) for case in wanted["cases"]]
    json.dump({"versions": {"mistralrs": version("mistralrs")}, "answers": made}, answers)
    answers.flush()
    # the runtime's threads do not end by themselves
    os._exit(0)


if __name__ == "__main__":
    main()

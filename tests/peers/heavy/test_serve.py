"""`segpack serve` beside the programs that it is for: OpenAI's own client, and lm-eval's `local-completions`."""

import json
import math
import subprocess

import pytest
from conftest import CHECKPOINTS, SEGPACK, segpack

PROMPT = "Hi, is the user on?"


class Server:
    def __init__(self, pack):
        command = [SEGPACK, "serve", pack, "--port", "0", "--json", "--model-name", "tiny", "--queue", "2"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.started = json.loads(self.process.stdout.readline())
        self.base = self.started["address"] + "/v1"


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    out = tmp_path_factory.mktemp("serve") / "pack"
    segpack("pack", CHECKPOINTS["tiny-full"], "-o", out)
    return out


@pytest.fixture(scope="module")
def server(pack):
    server = Server(pack)
    yield server
    server.process.terminate()
    assert server.process.wait(timeout=60) == 0


@pytest.fixture
def client(server):
    from openai import OpenAI

    return OpenAI(base_url=server.base, api_key="none", max_retries=0)


def run(pack, *options):
    lines = segpack("run", pack, "--json", *options).decode().splitlines()
    *tokens, summary = map(json.loads, lines)
    return tokens, summary


def test_the_client_gets_what_run_generates(pack, client):
    _, summary = run(pack, "--prompt", PROMPT, "--max-new-tokens", "12")
    options = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    answer = client.completions.create(**options, logprobs=3, extra_body={"return_token_ids": True})
    choice = answer.choices[0]
    assert choice.text == summary["text"]
    assert choice.token_ids == summary["ids"]
    assert len(choice.logprobs.tokens) == len(choice.logprobs.top_logprobs) == len(summary["ids"])
    assert answer.usage.completion_tokens == len(summary["ids"])
    pieces = list(client.completions.create(**options, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == summary["text"]
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")


def test_chats_are_answered_whole_and_in_pieces(pack, client):
    _, summary = run(pack, "--chat", "--prompt", "Hi", "--max-new-tokens", "9")
    options = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 9,
        "temperature": 0,
    }
    answer = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == summary["text"]
    assert answer.choices[0].message.role == "assistant"
    content = answer.choices[0].logprobs.content
    assert all(token.logprob == token.top_logprobs[0].logprob for token in content)
    usage = {"include_usage": True}
    pieces = list(client.chat.completions.create(**options, stream=True, stream_options=usage))
    texts = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert "".join(texts) == summary["text"]
    assert pieces[-1].usage.total_tokens == answer.usage.total_tokens


def test_the_client_knows_the_errors(client):
    import openai

    assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.NotFoundError) as error:
        client.completions.create(model="gpt-4", prompt="Hi")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="tiny", prompt="Hi", n=2)
    assert error.value.param == "n"


def test_the_client_leaves_a_stream_and_others_are_answered(client):
    endless = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}
    stream = client.completions.create(model="tiny", prompt="Hi", stream=True, **endless)
    next(iter(stream))
    stream.close()
    answer = client.completions.create(model="tiny", prompt="Hi", max_tokens=2, timeout=60)
    assert answer.usage.completion_tokens <= 2


def evaluate(server, folder, task, batch_size):
    import lm_eval
    from lm_eval.tasks import TaskManager

    arguments = {
        "model": "tiny",
        "tokenizer": str(CHECKPOINTS["tiny-full"]),
        "tokenizer_backend": "huggingface",
        "base_url": server.base + "/completions",
        "num_concurrent": 1,
        "max_length": 4096,
    }
    return lm_eval.simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=[task],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=batch_size,
        bootstrap_iters=0,
        log_samples=True,
    )


def write_task(folder, name, rows, more):
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        **more,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML


def log_likelihood(pack, before, after):
    """The sum of the log probabilities of some tokens, each by a run of its own."""
    total, ids = 0.0, list(before)
    for token in after:
        options = ["--prompt-ids", ",".join(map(str, ids)), "--max-new-tokens", "1", "--top-k-logits", "320"]
        (first, *_), _ = run(pack, *options)
        total += math.log(next(c["probability"] for c in first["top"] if c["id"] == token))
        ids.append(token)
    return total


@pytest.mark.parametrize("batch_size", [1, 4])
def test_lm_eval_gets_the_log_likelihoods_of_run(pack, server, tmp_path, batch_size):
    from transformers import AutoTokenizer

    rows = [
        {"question": "Hi, is the user", "choices": ["on?", "off?", "there, you think?"], "answer": 0},
        {"question": "The assistant is", "choices": ["brief", "a user"], "answer": 1},
    ]
    more = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"}
    write_task(tmp_path, "tiny_choice", rows, more)
    result = evaluate(server, tmp_path, "tiny_choice", batch_size)
    assert "acc,none" in result["results"]["tiny_choice"]
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS["tiny-full"])
    for row, sample in zip(rows, result["samples"]["tiny_choice"], strict=True):
        for choice, ((seen, _),) in zip(row["choices"], sample["resps"], strict=True):
            before = tokenizer(row["question"])["input_ids"]
            whole = tokenizer(row["question"] + " " + choice)["input_ids"]
            assert math.isclose(float(seen), log_likelihood(pack, before, whole[len(before) :]), abs_tol=1e-6)


def test_lm_eval_generates_what_run_does(pack, server, tmp_path):
    rows = [{"question": PROMPT, "answer": "x"}]
    more = {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["never to be seen"], "max_gen_toks": 12, "temperature": 0},
        "metric_list": [{"metric": "exact_match"}],
    }
    write_task(tmp_path, "tiny_text", rows, more)
    result = evaluate(server, tmp_path, "tiny_text", 1)
    _, summary = run(pack, "--prompt", PROMPT, "--max-new-tokens", "12")
    assert result["samples"]["tiny_text"][0]["resps"] == [[summary["text"]]]

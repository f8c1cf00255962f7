"""runtime-min/reference: what it records from a server, every way in which one fails, and what it asks for before it computes."""

import http.server
import json
import math
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time

import numpy
import pytest
from conftest import CHECKPOINTS, ROOT, SEGPACK, segpack
from safetensors.numpy import load_file, save_file

SCRIPTS = ROOT / "runtime-min/reference"
TINY = CHECKPOINTS["tiny-full"]
SECRET = "sk-never-to-be-seen"
VOCABULARY = 320


def script(name, *arguments, env=None, path=()):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, "-B", SCRIPTS / name, *map(str, arguments)]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)


# ---- a server ----------------------------------------------------------------------------------------------------------


def log_softmax(logits):
    shifted = logits.astype("float64") - logits.max()
    return shifted - math.log(numpy.exp(shifted).sum())


class Model:
    """The official trace of a tiny checkpoint: what follows any beginning of its prompts."""

    def __init__(self, name="tiny-full"):
        traces = ROOT / "tests/fixtures/traces"
        self.tensors = load_file(traces / f"{name}.float32.safetensors")
        self.prompts = json.loads((traces / f"{name}.float32.json").read_text())["prompts"]

    def number(self, ids):
        return next(i for i, prompt in enumerate(self.prompts) if prompt["input_ids"] == list(ids))

    def rows(self, ids):
        """Log-probabilities after every token of a prompt; the last are what the first generated token is chosen from."""
        return [log_softmax(row) for row in self.tensors[f"p{self.number(ids):02d}.logits"]]


def best(row, count):
    order = numpy.argsort(-row, kind="stable")[:count]
    return [(int(i), float(row[i])) for i in order]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.send(200, {"object": "list", "data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, self.headers.get("Authorization")))
        self.server.answer(self, body)

    def send(self, status, body, headers=(), length=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for header in headers:
            self.send_header(*header)
        self.send_header("Content-Length", str(length or len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.models, made.asked = ["tiny"], []
    made.url = f"http://127.0.0.1:{made.server_port}/v1"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


MODEL = Model()
PROMPT = MODEL.prompts[0]["input_ids"]
IDS = ",".join(map(str, PROMPT))


def vllm_step(pairs):
    return {f"token_id:{i}": value for i, value in pairs}


def vllm(handler, body, model=MODEL):
    """As vLLM answers when it is asked for ids."""
    assert body["return_token_ids"] and body["temperature"] == 0 and body["repetition_penalty"] == 1.0
    rows = model.rows(body["prompt"])
    top = best(rows[-1], body["logprobs"])
    chosen, value = top[0]
    logprobs = {"tokens": [f"token_id:{chosen}"], "token_logprobs": [value], "top_logprobs": [vllm_step(top)]}
    choice = {"index": 0, "token_ids": [chosen], "prompt_token_ids": body["prompt"], "logprobs": logprobs}
    if "prompt_logprobs" in body:
        listed = [best(row, body["prompt_logprobs"]) for row in rows[:-1]]
        # the prompt's own token is there too, whatever its rank
        for pairs, row, own in zip(listed, rows, body["prompt"][1:], strict=False):
            pairs.append((own, float(row[own])))
        choice["prompt_logprobs"] = [None, *({str(i): {"logprob": v} for i, v in pairs} for pairs in listed)]
    handler.send(200, {"model": "tiny", "choices": [choice], "usage": {"prompt_tokens": len(body["prompt"])}})


def sglang(handler, body):
    assert handler.path == "/generate"
    rows = MODEL.rows(body["input_ids"])
    count = body["top_logprobs_num"]
    entry = lambda pairs: [[v, i, None] for i, v in pairs]  # noqa: E731
    given = [[None, PROMPT[0], None]]
    given += [[float(row[i]), i, None] for row, i in zip(rows, body["input_ids"][1:], strict=False)]
    meta = {
        "prompt_tokens": len(body["input_ids"]),
        "finish_reason": {"type": "length"},
        "output_token_logprobs": entry(best(rows[-1], 1)),
        "output_top_logprobs": [entry(best(rows[-1], count))],
        "input_token_logprobs": given,
        "input_top_logprobs": [None, *(entry(best(row, count)) for row in rows[:-1])],
    }
    handler.send(200, {"text": "?", "meta_info": meta})


def llama_cpp(handler, body):
    assert handler.path == "/completion" and body["return_tokens"]
    top = best(MODEL.rows(body["prompt"])[-1], body["n_probs"])
    listed = [{"id": i, "token": "?", "bytes": [], "logprob": v} for i, v in top]
    one = {**listed[0], "top_logprobs": listed}
    handler.send(200, {"tokens": [top[0][0]], "completion_probabilities": [one], "tokens_evaluated": len(PROMPT)})


def words(handler, body, texts, alter=lambda answer: None):
    """Any server with OpenAI's completions: tokens are words."""
    tokens = [next(iter(row)) for row in texts]
    logprobs = {"tokens": tokens, "token_logprobs": [row[t] for t, row in zip(tokens, texts, strict=True)]}
    choice = {"index": 0, "text": "".join(tokens), "logprobs": {**logprobs, "top_logprobs": texts}}
    answer = {"model": "tiny", "choices": [choice], "usage": {"prompt_tokens": len(body["prompt"])}}
    alter(answer)
    handler.send(200, answer)


def record(server, out, *arguments, key=None, **options):
    env = {"OPENAI_API_KEY": key} if key else {"OPENAI_API_KEY": ""}
    common = ["--url", server.url, "--dtype", "float32", "--max-new-tokens", "1"]
    return script("record_server.py", out, *common, *arguments, env=env, **options)


# ---- what is recorded --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "pack"
    segpack("pack", TINY, "-o", folder)
    return folder


def validated(pack, trace, status=0, *arguments):
    command = [SEGPACK, "validate", str(pack), "--reference", str(trace), "--json", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == status, done.stdout.decode() + done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "play", "more"),
    [
        ("vllm", vllm, ["--prompt-logprobs"]),
        ("vllm", vllm, []),
        ("sglang", sglang, ["--prompt-logprobs"]),
        ("llama.cpp", llama_cpp, []),
    ],
)
def test_servers_that_tell_ids(server, tiny_pack, tmp_path, name, play, more):
    server.answer = play
    out = tmp_path / "trace.safetensors"
    model = [] if name in ("sglang", "llama.cpp") else ["--model", "tiny"]
    done = record(server, out, "--server", name, "--checkpoint", TINY, "--ids", IDS, *model, *more)
    assert done.returncode == 0, done.stderr
    tensors = load_file(out)
    assert tensors["p00.gen.ids"].tolist() == MODEL.prompts[0]["generated"][:1]
    assert tensors["p00.gen.top_logprobs"].shape == (1, 10) and ("p00.prompt.top_ids" in tensors) == bool(more)
    report = validated(tiny_pack, out)
    assert report["verdict"] == "inside" and report["reference_dtype"] == "float32"
    ranks = next(row for row in report["choices"] if row["choice"] == "token_ranks")
    assert ranks["compared"] == (len(PROMPT) if more else 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trace.json", "trace.safetensors"]


def test_a_token_that_llama_cpp_lists_nothing_of_is_recorded_without_a_list(server, tmp_path):
    """It leaves out those whose text ends within a character."""
    step = lambda one, value: {"id": one, "logprob": value, "top_logprobs": [{"id": one, "logprob": value}]}  # noqa: E731
    answer = {"tokens": [7, 8, 9], "completion_probabilities": [step(7, -0.5), step(9, -0.25)], "tokens_evaluated": len(PROMPT)}
    server.answer = lambda handler, body: handler.send(200, answer)
    out = tmp_path / "trace.safetensors"
    done = record(server, out, "--server", "llama.cpp", "--ids", IDS, "--max-new-tokens", "3")
    assert done.returncode == 0, done.stderr
    tensors = load_file(out)
    assert tensors["p00.gen.ids"].tolist() == [7, 8, 9]
    assert tensors["p00.gen.top_ids"].tolist() == [[7], [-1], [9]]
    assert numpy.isnan(tensors["p00.gen.top_logprobs"][1]).all()
    # lists of tokens that were not generated in this order
    answer["tokens"] = [9, 8, 7]
    done = record(server, tmp_path / "other.safetensors", "--server", "llama.cpp", "--ids", IDS, "--max-new-tokens", "3")
    assert done.returncode == 3 and "do not follow each other" in done.stderr, done.stderr



def test_a_trace_is_judged_by_what_it_says(server, tiny_pack, tmp_path):
    server.answer = vllm
    out = tmp_path / "trace.safetensors"
    assert record(server, out, "--server", "vllm", "--checkpoint", TINY, "--ids", IDS).returncode == 0
    tensors = load_file(out)
    tensors["p00.gen.top_logprobs"][0, 3] -= 1e-3
    save_file(tensors, out)
    assert validated(tiny_pack, out, 3)["verdict"] == "outside"
    description = out.with_suffix(".json")
    document = json.loads(description.read_text())
    document["settings"]["dtype"] = "q8_0"
    description.write_text(json.dumps(document))
    assert validated(tiny_pack, out)["verdict"] == "not_judged"
    assert validated(tiny_pack, out, 0, "--tolerance", "0.01")["verdict"] == "inside"
    document["checkpoint"]["vocab.json"]["sha256"] = "0" * 64
    description.write_text(json.dumps(document))
    assert validated(tiny_pack, out, 3)["verdict"] == "foreign"


def text_of(checkpoint):
    """Tokens of the tiny tokenizer by what they are in text."""
    vocab = json.loads((checkpoint / "vocab.json").read_text())
    return {name.replace("\u0120", " "): number for name, number in vocab.items() if name.isascii() or name[0] == "\u0120"}


def test_words_are_tokens_where_only_one_fits(server, tmp_path):
    token = text_of(TINY)
    steps = [{"user": -0.1, " the": -2.5, "\ufffd": -4.0, "": -5.0}, {" the": -0.2, "er": -3.0}]
    server.answer = lambda handler, body: words(handler, body, steps)
    out = tmp_path / "trace.safetensors"
    arguments = ["--checkpoint", TINY, "--text", "on the user", "--max-new-tokens", "2"]
    done = record(server, out, *arguments)
    assert done.returncode == 0, done.stderr
    tensors = load_file(out)
    assert tensors["p00.gen.ids"].tolist() == [token["user"], token[" the"]]
    assert tensors["p00.gen.top_ids"].tolist() == [
        [token["user"], token[" the"], -1, -1],
        [token[" the"], token["er"], -1, -1],
    ]
    assert numpy.isnan(tensors["p00.gen.top_logprobs"][1, 2:]).all()
    entry = json.loads(out.with_suffix(".json").read_text())["prompts"][0]
    assert entry["unidentified"] == 2 and entry["rendered"] == "on the user"
    # a chosen token that could be several is no trace
    server.answer = lambda handler, body: words(handler, body, [{"\ufffd": -0.1}])
    done = record(server, tmp_path / "other.safetensors", *arguments)
    assert done.returncode == 3 and "could be any of the tokens" in done.stderr and "--server vllm" in done.stderr
    assert not (tmp_path / "other.safetensors").exists()
    server.answer = lambda handler, body: words(handler, body, [{"no such token": -0.1}])
    done = record(server, tmp_path / "other.safetensors", *arguments)
    assert done.returncode == 3 and "is no token" in done.stderr


def test_echoed_prompts(server, tmp_path):
    token = text_of(TINY)
    ids = [token["user"], token[" the"], token["er"]]
    rows = [None, {" the": -1.0, "er": -0.5}, {"er": -0.25}, {"on": -0.125}]

    def echo(handler, body):
        assert body["echo"] is True
        logprobs = {"tokens": ["user", " the", "er", "on"], "token_logprobs": [None, -1.0, -0.25, -0.125]}
        choice = {"logprobs": {**logprobs, "top_logprobs": rows}}
        handler.send(200, {"choices": [choice], "usage": {"prompt_tokens": 3}})

    server.answer = echo
    out = tmp_path / "trace.safetensors"
    given = ["--ids", ",".join(map(str, ids)), "--checkpoint", TINY, "--prompt-logprobs"]
    done = record(server, out, *given)
    assert done.returncode == 0, done.stderr
    tensors = load_file(out)
    assert tensors["p00.prompt.top_ids"].tolist() == [[token["er"], token[" the"]], [token["er"], -1]]
    assert tensors["p00.gen.ids"].tolist() == [token["on"]]


def test_chat_completions_tell_bytes(server, tmp_path):
    token = text_of(TINY)
    vocab = json.loads((TINY / "vocab.json").read_text())

    def chat(handler, body):
        assert handler.path == "/v1/chat/completions" and body["messages"][-1]["content"] == "Hi, is the user on?"
        assert body["logprobs"] is True and body["top_logprobs"] == 5
        # bytes say what a replacement character does not
        first = {"token": "\ufffd", "bytes": [0xC3], "logprob": -0.5}
        other = {"token": " the", "bytes": list(b" the"), "logprob": -1.5}
        content = [{**first, "top_logprobs": [first, other]}]
        answer = {"choices": [{"logprobs": {"content": content}, "finish_reason": "stop"}]}
        handler.send(200, {**answer, "usage": {"prompt_tokens": len(MODEL.prompts[2]["input_ids"])}})

    server.answer = chat
    out = tmp_path / "trace.safetensors"
    arguments = ["--api", "chat", "--checkpoint", TINY, "--chat", "Hi, is the user on?"]
    done = record(server, out, *arguments)
    assert done.returncode == 0, done.stderr
    tensors = load_file(out)
    assert tensors["p00.input_ids"].tolist() == MODEL.prompts[2]["input_ids"]
    assert tensors["p00.gen.top_ids"].tolist() == [[vocab["\u00c3"], token[" the"]]]
    # another template on the server
    done = record(server, tmp_path / "other.safetensors", *arguments, "--system", "Be brief.")
    assert done.returncode == 3 and "tokens; this checkpoint's tokenizer and template make" in done.stderr


def test_tokens_alone(server, tiny_pack, tmp_path):
    def bare(handler, body):
        assert "logprobs" not in body
        ids = MODEL.prompts[0]["generated"][:4]
        handler.send(200, {"choices": [{"token_ids": ids, "prompt_token_ids": body["prompt"], "logprobs": None}]})

    server.answer = bare
    out = tmp_path / "trace.safetensors"
    given = ["--server", "vllm", "--checkpoint", TINY, "--ids", IDS, "--logprobs", "0", "--max-new-tokens", "4"]
    done = record(server, out, *given)
    assert done.returncode == 0, done.stderr
    report = validated(tiny_pack, out)
    assert report["verdict"] == "inside" and report["choices"][0]["compared"] == 4


# ---- every way in which a server fails ---------------------------------------------------------------------------------


def sends(status, body, headers=(), length=None):
    return lambda handler, asked: handler.send(status, body, headers, length)


def bent_vllm(bend):
    def answer(handler, body):
        sent = {}
        kept, handler.send = handler.send, lambda status, told, *rest: sent.update(told)
        vllm(handler, body)
        handler.send = kept
        bend(sent["choices"][0], sent)
        handler.send(200, sent)

    return answer


def hang(handler, body):
    time.sleep(3)


def hang_up(handler, body):
    handler.connection.shutdown(socket.SHUT_RDWR)


FAILURES = {
    "no key": (401, sends(401, {"error": {"message": "no"}}), ["HTTP 401", "OPENAI_API_KEY", "The server says: no"]),
    "not found": (404, sends(404, {"error": {"message": "The model `x` does not exist."}}), ["HTTP 404", "`x`", "--model"]),
    "too many": (429, sends(429, {"detail": "slow down"}, [("Retry-After", "7200")]), ["HTTP 429", "wait 7200 s", "slow down"]),
    "500": (500, sends(500, b"<html>boom"), ["HTTP 500", "the server failed", "boom"]),
    "503": (503, sends(503, {}, [("Retry-After", "0")]), ["HTTP 503", "trying again in 0 s"]),
    "redirect": (302, sends(302, b"", [("Location", "http://elsewhere/v1")]), ["HTTP 302", "http://elsewhere/v1"]),
    "no json": (200, sends(200, b"<html>hello"), ["is no JSON", "<html>hello"]),
    "a list": (200, sends(200, []), ["no JSON object"]),
    "an error that is called a success": (200, sends(200, {"error": {"message": "bad"}}), ["the server says", "bad"]),
    "truncated": (200, sends(200, b'{"choices": [', length=4000), ["ended in the middle"]),
    "hangs": (0, hang, ["no answer within 1", "--timeout"]),
    "hangs up": (0, hang_up, ["connection"]),
    "no choice": (200, sends(200, {"choices": []}), ["not one choice"]),
    "choice of another kind": (200, sends(200, {"choices": [{"logprobs": 3}]}), ["not what this interface's"]),
    "no logprobs": (200, bent_vllm(lambda c, b: c.update(logprobs=None)), ["no log-probabilities", "--logprobs 0"]),
    "half the logprobs": (
        200,
        bent_vllm(lambda c, b: c["logprobs"].update(top_logprobs=None)),
        ["no log-probabilities"],
    ),
    "other prompt": (200, bent_vllm(lambda c, b: c.update(prompt_token_ids=[1, 2])), ["read the prompt as tokens [1, 2]"]),
    "other length": (200, bent_vllm(lambda c, b: b.update(usage={"prompt_tokens": 6})), ["read the prompt as 6 tokens"]),
    "half told": (
        200,
        bent_vllm(lambda c, b: b["usage"].update(completion_tokens=2)),
        ["generated 2 tokens, and told 1"],
    ),
    "nothing generated": (
        200,
        bent_vllm(lambda c, b: c.update(token_ids=[], logprobs={"tokens": [], "token_logprobs": [], "top_logprobs": []})),
        ["generated nothing"],
    ),
    "too much generated": (200, bent_vllm(lambda c, b: c.update(token_ids=[1, 2])), ["generated 2 tokens; 1 were asked"]),
    "sampled": (
        200,
        bent_vllm(lambda c, b: (c.update(token_ids=[7]), c["logprobs"].update(tokens=["token_id:7"], token_logprobs=[-9.0]))),
        ["step 0 is not greedy"],
    ),
    "not logarithms": (
        200,
        bent_vllm(lambda c, b: c["logprobs"].update(token_logprobs=[0.5])),
        ["greater than 0"],
    ),
    "words for numbers": (
        200,
        bent_vllm(lambda c, b: c["logprobs"].update(token_logprobs=["0.5"])),
        ["wanted a number"],
    ),
    "words for ids": (200, bent_vllm(lambda c, b: c.update(token_ids=["7"])), ["for a token id"]),
}


@pytest.mark.parametrize("what", FAILURES)
def test_failures_are_clear_and_leave_nothing(server, tmp_path, what):
    _, server.answer, said = FAILURES[what]
    out = tmp_path / "trace.safetensors"
    limits = ["--timeout", "1", "--retries", "1"]
    done = record(server, out, "--server", "vllm", "--model", "tiny", "--ids", IDS, *limits)
    assert done.returncode in (1, 3) and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("error: ") == 1 and all(word in done.stderr for word in said), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        given = ["--server", "vllm", "--model", "tiny", "--dtype", "float32", "--url", url, "--ids", "1"]
        done = script("record_server.py", tmp_path / "trace.safetensors", *given)
    assert done.returncode == 1 and "connection refused: is the server running" in done.stderr


def test_after_a_wait_it_goes_on(server, tmp_path):
    def busy_once(handler, body):
        if len(server.asked) == 1:
            return handler.send(429, {}, [("Retry-After", "1")])
        return vllm(handler, body)

    server.answer = busy_once
    begun = time.monotonic()
    done = record(server, tmp_path / "trace.safetensors", "--server", "vllm", "--ids", IDS)
    assert done.returncode == 0 and "trying again in 1 s" in done.stderr, done.stderr
    assert len(server.asked) == 2 and time.monotonic() - begun >= 1


def test_the_key_is_sent_and_never_told(server, tmp_path):
    server.answer = lambda handler, body: handler.send(401, {"error": {"message": f"Incorrect API key: {SECRET}"}})
    out = tmp_path / "trace.safetensors"
    done = record(server, out, "--server", "vllm", "--model", "tiny", "--ids", IDS, key=SECRET)
    assert server.asked[0][2] == f"Bearer {SECRET}"
    assert "Incorrect API key: ***" in done.stderr and SECRET not in done.stderr + done.stdout
    server.answer = vllm
    assert record(server, out, "--server", "vllm", "--ids", IDS, key=SECRET).returncode == 0
    assert SECRET not in out.with_suffix(".json").read_text() and SECRET.encode() not in out.read_bytes()
    done = record(server, out, "--api-key-env", "NO_SUCH_VARIABLE", "--ids", IDS)
    assert done.returncode == 2 and "NO_SUCH_VARIABLE" in done.stderr


def test_the_only_model_is_taken(server, tmp_path):
    server.answer = vllm
    given = ["--server", "vllm", "--ids", IDS]
    assert record(server, tmp_path / "one.safetensors", *given).returncode == 0
    assert server.asked[0][1]["model"] == "tiny"
    server.models = ["a", "b"]
    done = record(server, tmp_path / "two.safetensors", *given)
    assert done.returncode == 2 and "serves a, b" in done.stderr


def test_what_is_there_is_not_replaced(server, tmp_path):
    server.answer = vllm
    out = tmp_path / "trace.safetensors"
    out.with_suffix(".json").write_text("mine")
    done = record(server, out, "--server", "vllm", "--ids", IDS)
    assert done.returncode == 1 and "exists; --overwrite" in done.stderr and not server.asked
    assert record(server, out, "--server", "vllm", "--ids", IDS, "--overwrite").returncode == 0
    assert json.loads(out.with_suffix(".json").read_text())["settings"]["values"] == "log_probabilities"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "no prompt"),
        (["--ids", "1,x"], 2, "no list of token ids"),
        (["--text", "Hi"], 2, "--checkpoint"),
        (["--ids", "1", "--prompt-logprobs", "--api", "chat"], 2, "--prompt-logprobs"),
        (["--ids", "1", "--prompt-logprobs", "--server", "llama-cpp-python"], 2, "wrong rows"),
        (["--ids", "1", "--url", "localhost:8000"], 2, "no address"),
        (["--chat", "Hi", "--checkpoint", CHECKPOINTS["tiny-text"]], 3, "no tokenizer"),
    ],
)
def test_command_lines(server, tmp_path, arguments, status, said):
    done = record(server, tmp_path / "trace.safetensors", *arguments)
    assert done.returncode == status and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_prompt_files(server, tmp_path):
    server.answer = vllm
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([PROMPT, {"ids": PROMPT, "note": "again [ 1,  2 ]"}, {"chat": "Hi, is the user on?"}]))
    out = tmp_path / "trace.safetensors"
    given = ["--server", "vllm", "--checkpoint", TINY, "--prompts", prompts]
    done = record(server, out, *given)
    assert done.returncode == 0, done.stderr
    listed = json.loads(out.with_suffix(".json").read_text())["prompts"]
    assert [p["input_ids"] for p in listed] == [PROMPT, PROMPT, MODEL.prompts[2]["input_ids"]]
    assert listed[1]["note"] == "again [ 1,  2 ]" and listed[2]["rendered"].startswith("<|im_start|>user")
    for text in ("{}", "[{}]", '[["a"]]', "[[-1]]", "[", '[{"ids": [1], "text": "both"}]', '[{"text": 5}]'):
        prompts.write_text(text)
        done = record(server, tmp_path / "no.safetensors", *given)
        assert done.returncode == 3 and "prompts.json" in done.stderr and "Traceback" not in done.stderr, done.stderr
    lines = tmp_path / "prompts.txt"
    lines.write_text(f"# a comment\n{IDS}\n\non the user\n")
    out = tmp_path / "lines.safetensors"
    server.answer = lambda handler, body: words(handler, body, [{"user": -0.1}])
    done = record(server, out, "--checkpoint", TINY, "--prompts", lines)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.with_suffix(".json").read_text())["prompts"][1]["text"] == "on the user"


# ---- vLLM's offline class, as its documentation has it ------------------------------------------------------------------

VLLM_MODULE = '''
import json, os
from types import SimpleNamespace as Made
__version__ = "0.0"
class SamplingParams:
    def __init__(self, **given):
        assert given["temperature"] == 0 and given["detokenize"] is False
        self.given = given
class LLM:
    def __init__(self, **given):
        assert given["enable_prefix_caching"] is False
    def generate(self, prompts, sampling):
        told = json.loads(os.environ["VLLM_ANSWER"])
        row = lambda pairs: {int(i): Made(logprob=v, rank=1) for i, v in pairs}
        for prompt in prompts:
            made = Made(token_ids=told["ids"], logprobs=[row(r) for r in told["steps"]], finish_reason="length")
            after = [None, *(row(r) for r in told["after"])] if sampling.given["prompt_logprobs"] else None
            yield Made(prompt_token_ids=prompt["prompt_token_ids"], prompt_logprobs=after, outputs=[made])
'''


def test_offline_vllm(tiny_pack, tmp_path):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/vllm.py").write_text(VLLM_MODULE)
    rows = [best(row, 4) for row in MODEL.rows(PROMPT)]
    told = {"ids": [rows[-1][0][0]], "steps": rows[-1:], "after": rows[:-1]}
    out = tmp_path / "trace.safetensors"
    given = [TINY, out, "--ids", IDS, "--dtype", "float32", "--logprobs", "4", "--max-new-tokens", "1"]
    env = {"VLLM_ANSWER": json.dumps(told)}
    done = script("record_vllm.py", *given, "--prompt-logprobs", env=env, path=[tmp_path / "modules"])
    assert done.returncode == 0, done.stderr
    ranks = next(row for row in validated(tiny_pack, out)["choices"] if row["choice"] == "token_ranks")
    assert ranks["compared"] == len(PROMPT)
    told["ids"] = [rows[-1][1][0]]
    env = {"VLLM_ANSWER": json.dumps(told)}
    done = script("record_vllm.py", *given, "--overwrite", env=env, path=[tmp_path / "modules"])
    assert done.returncode == 3 and "not greedy" in done.stderr
    done = script("record_vllm.py", *given, "--overwrite")
    assert done.returncode == 1 and "vLLM is not installed" in done.stderr


# ---- what record_transformers.py says before it needs torch --------------------------------------------------------------


def test_memory_is_told_from_the_headers(tmp_path):
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "trace.safetensors"
    given = [checkpoint, out, "--ids", "1,2,3", "--max-new-tokens", "5", "--dry-run"]
    shutil.copytree(CHECKPOINTS["tiny-text"], checkpoint)
    # a header of the real size, without its bytes: 3 GiB of bf16 in the thinker, as much in the talker
    shape, length = [3, 1 << 29], 3 << 30
    names = ["thinker.model.layers.0.mlp.experts.0.up_proj.weight", "talker.model.norm.weight"]
    offsets = [[0, length], [length, 2 * length]]
    entries = {n: {"dtype": "BF16", "shape": shape, "data_offsets": o} for n, o in zip(names, offsets, strict=True)}
    header = json.dumps(entries).encode()
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (checkpoint / "model.safetensors.index.json").unlink()
    done = script("record_transformers.py", *given, "--dtype", "bfloat16")
    assert done.returncode == 0 and "weights 3.00 GiB" in done.stderr and "while loading 1.00 GiB" in done.stderr
    done = script("record_transformers.py", *given)
    assert "weights 6.00 GiB" in done.stderr and "3.00 GiB of files" in done.stderr, done.stderr
    (checkpoint / "model.safetensors").write_bytes(b"\xff" * 100)
    done = script("record_transformers.py", *given)
    assert done.returncode == 3 and "cannot read the header" in done.stderr
    (checkpoint / "config.json").write_text('{"model_type": "llama"}')
    done = script("record_transformers.py", *given)
    assert done.returncode == 3 and "'llama'" in done.stderr and "qwen3_omni_moe" in done.stderr


@pytest.mark.parametrize(
    ("version", "said"),
    [("5.0.0", "random numbers"), ("5.0.1rc2", "5.0.1rc2 is refused"), ("4.56.2", "too old")],
)
def test_versions_that_do_not_work_are_refused(tmp_path, version, said):
    metadata = tmp_path / "modules" / f"transformers-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n")
    given = [CHECKPOINTS["tiny-text"], tmp_path / "trace.safetensors", "--ids", "1,2,3"]
    done = script("record_transformers.py", *given, path=[tmp_path / "modules"])
    assert done.returncode == 1 and said in done.stderr and version in done.stderr, done.stderr
    assert not (tmp_path / "trace.safetensors").exists()

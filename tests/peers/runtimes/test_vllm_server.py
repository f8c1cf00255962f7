"""Exports that vLLM serves: `segpack validate --server`, and the experts of a model on two ranks behind one address.

Checkpoint, traces and precision are those of test_runtimes.py. Each server is vLLM's own command (vllm_command.py), in float32,
and takes a minute to start.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import SEGPACK, free_port, segpack
from test_runtimes import CHECKPOINT, HERE, TOLERANCE, changed, text_cases

CASES = [(case["ids"], wanted["ids"]) for _, case, wanted in text_cases()]
TOKENS = len(CASES[0][1])
START = 900  # seconds
OPTIONS = ["--dtype", "float32", "--seed", "0", "--enforce-eager", "--no-enable-prefix-caching", "--max-model-len", "256",
           "--served-model-name", "text"]  # fmt: skip


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Packs of the checkpoint, and of the one with a changed expert."""
    folder = tmp_path_factory.mktemp("served")
    made = {"right": folder / "right", "changed": folder / "changed"}
    segpack("pack", CHECKPOINT, "-o", made["right"], "--no-provenance")
    segpack("pack", changed(folder / "checkpoint"), "-o", made["changed"], "--no-provenance")
    return made


@contextlib.contextmanager
def vllm(folder, *processes):
    """Starts vLLM's command once for each list of a model and options; the first one serves, at the address that is given."""
    port, started = free_port(), []
    interpreter = Path(os.environ["RUNTIMES_VENVS"]) / "vllm/bin/python"
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        for number, options in enumerate(processes):
            log = folder / f"{number}.log"
            address = [] if number else ["--host", "127.0.0.1", "--port", str(port)]
            command = [interpreter, "-B", HERE / "vllm_command.py", "serve", *options, *OPTIONS, *address]
            with log.open("wb") as file:
                # a group of its own: it ends with all of its workers
                started.append((log, subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)))
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + START
        while not answers(f"{url}/health"):
            for log, process in started:
                assert process.poll() is None and time.monotonic() < end, f"vLLM does not start: {log.read_text()[-3000:]}"
            time.sleep(1)
        yield url
    finally:
        for _, process in started:
            process.terminate()
        for _, process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url):
    try:
        with DIRECT.open(url, timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


# no proxy is asked for this machine
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def completion(url, ids):
    body = {"model": "text", "prompt": ids, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with DIRECT.open(request, timeout=START) as answer:
            (choice,) = json.load(answer)["choices"]
    except urllib.error.HTTPError as error:
        pytest.fail(f"{error}: {error.read().decode()}")
    return choice["token_ids"]


def equal_tokens(url):
    """Of the official class's."""
    return sum(a == b for ids, wanted in CASES for a, b in zip(completion(url, ids), wanted))


def validate(pack, url, *more):
    """The exit status and the report of a comparison with the server."""
    command = [SEGPACK, "validate", pack, "--server", url, "--server-kind", "vllm", "--served-dtype", "float32", "--max-new-tokens",
               str(TOKENS), *more, "--json", "--quiet"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"NO_PROXY": "*"})
    assert done.returncode in (0, 3), done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


def judged(report):
    (tokens,) = (row for row in report["choices"] if row["choice"] == "greedy_tokens")
    (values,) = report["values"]
    return tokens["equal"], tokens["compared"], values["max_abs"]


def by_ids():
    return [part for ids, _ in CASES for part in ("--prompt-ids", ",".join(map(str, ids)))]


def test_validate_judges_what_vllm_serves(packs, tmp_path, capsys):
    segpack("export", packs["right"], "--to", "qwen3-moe", "-o", tmp_path / "text")
    with vllm(tmp_path, [tmp_path / "text"]) as url:
        assert equal_tokens(url) == len(CASES) * TOKENS
        for more in (by_ids(), ["--prompt", "the user is on"], ["--chat", "--prompt", "Hi, is the user on?"]):
            status, report = validate(packs["right"], url, *more)
            equal, compared, largest = judged(report)
            with capsys.disabled():
                print(f"\n    {equal} of {compared} tokens equal, log-probabilities within {largest:.1e}")
            assert (status, report["verdict"]) == (0, "inside")
            assert equal == compared == TOKENS * max(1, more.count("--prompt-ids"))
            assert report["tolerance"] == TOLERANCE
        status, report = validate(packs["changed"], url, *by_ids())
        assert (status, report["verdict"]) == (3, "outside")


def test_validate_sees_one_changed_expert_that_vllm_serves(packs, tmp_path):
    segpack("export", packs["changed"], "--to", "qwen3-moe", "-o", tmp_path / "text")
    with vllm(tmp_path, [tmp_path / "text"]) as url:
        status, report = validate(packs["right"], url, *by_ids())
        assert (status, report["verdict"]) == (3, "outside")
        assert judged(report)[2] > TOLERANCE


@contextlib.contextmanager
def two_ranks(folder, models, *more):
    """Node 0 serves, node 1 has no server, as docs/exporting.md has it."""
    common = ["--enable-expert-parallel", "--data-parallel-size", "2", "--data-parallel-size-local", "1", "--data-parallel-address",
              "127.0.0.1", "--data-parallel-rpc-port", str(free_port()), *more]  # fmt: skip
    first, second = ([model, *common] for model in models)
    with vllm(folder, [*first, "--api-server-count", "1"], [*second, "--headless", "--data-parallel-start-rank", "1"]) as url:
        yield url


def requests_of_each_rank(url):
    with DIRECT.open(f"{url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    wanted = [line for line in lines if line.startswith("vllm:request_success_total{") and 'finished_reason="length"' in line]
    return sorted(float(line.rpartition(" ")[2]) for line in wanted)


@pytest.mark.parametrize("form", ["shares", "vllm_reads_its_part"])
def test_two_ranks_behind_one_vllm_server_compute_what_the_official_class_does(packs, form, tmp_path):
    models, more = [tmp_path / "rank0", tmp_path / "rank1"], []
    if form == "shares":
        for rank, model in enumerate(models):
            segpack("export", packs["right"], "--to", "qwen3-moe", "-o", model, "--expert-parallel", f"{rank}/2")
    else:
        models, more = [tmp_path / "text"] * 2, ["--enable-ep-weight-filter"]
        segpack("export", packs["right"], "--to", "qwen3-moe", "-o", models[0])
    with two_ranks(tmp_path, models, *more) as url:
        assert equal_tokens(url) == len(CASES) * TOKENS
        status, report = validate(packs["right"], url, *by_ids())
        assert (status, report["verdict"]) == (0, "inside")
        assert min(requests_of_each_rank(url)) > 0, "one rank answered everything"
    for rank in range(2):
        log = (tmp_path / f"{rank}.log").read_text()
        assert f"[EP Rank {rank}/2] Expert parallelism is enabled" in log
        assert (f"ep_rank={rank}, loading 4/8 experts" in log) == (form != "shares")


def test_vllm_serves_the_share_of_another_rank_and_says_nothing(packs, tmp_path):
    model = tmp_path / "rank0"
    segpack("export", packs["right"], "--to", "qwen3-moe", "-o", model, "--expert-parallel", "0/2")
    with two_ranks(tmp_path, [model, model]) as url:
        assert equal_tokens(url) < len(CASES) * TOKENS

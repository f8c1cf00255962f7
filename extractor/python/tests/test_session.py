"""Sessions: the tokens of the official model, streams, and how they end."""

import json
import signal
import subprocess
import sys
import threading

import pytest

import segpack
from conftest import ROOT

TRACE = json.loads((ROOT / "extractor/demo/trace/tiny-full.float32.json").read_bytes())["prompts"]


def test_the_text_is_that_of_the_official_model(place):
    with segpack.Session(place) as session:
        assert session.device == "cpu" and session.context_length > 0
        for prompt in TRACE:
            wanted = prompt["generated"]
            generation = session.generate(prompt["input_ids"], max_new_tokens=len(wanted), stop_ids=[])
            assert generation.ids == wanted
            assert generation.prompt_ids == prompt["input_ids"]
            assert generation.summary["device"] == "cpu"


def test_tokens_come_one_by_one_and_then_the_whole(raw):
    prompt = TRACE[0]
    with segpack.Session(raw) as session:
        stream = session.stream(prompt["input_ids"], max_new_tokens=6, stop_ids=[], top_logits=2)
        first = next(stream)
        with pytest.raises(segpack.UsageError, match="not complete"):
            stream.generation  # noqa: B018
        tokens = [first, *stream]
        assert [t.id for t in tokens] == prompt["generated"][:6] == stream.generation.ids
        assert [t.index for t in tokens] == list(range(6))
        assert all(t.top[0].id == t.id and len(t.top) == 2 for t in tokens)
        assert stream.generation.stop_reason == "max_new_tokens"
        assert list(stream) == []


def test_texts_and_chats_are_prompts(raw):
    with segpack.Session(raw) as session:
        text = session.generate("Hi, is the user on?", max_new_tokens=12)
        assert text.ids == [101, 105, 105, 105, 27, 286, 212, 200, 27, 178, 27, 178]  # as README's demo
        assert len(text.prompt_ids) == 10
        with pytest.raises(segpack.UsageError, match="no chat"):
            session.generate([1, 2], chat=True)


def test_a_seed_gives_the_same_text_again(raw):
    options = {"max_new_tokens": 8, "temperature": 1.5, "top_k": 20, "top_p": 0.9}
    with segpack.Session(raw) as session:
        one, same, other = (session.generate([5, 9], seed=seed, **options).ids for seed in (1, 1, 2))
    assert one == same != other


def test_weights_stay_loaded_while_there_is_room(raw):
    with segpack.Session(raw, positions=64, longest_prompt=16) as session:
        first = session.generate([5, 9, 200], max_new_tokens=8, stop_ids=[])
        again = session.generate([5, 9, 200], max_new_tokens=8, stop_ids=[])
        assert again.ids == first.ids
        before, after = first.summary["bytes_read"], again.summary["bytes_read"]
        assert before > 0 and after - before < before / 100  # rows of the embedding alone are read again
        longer = session.generate([5, 9, 200] * 10, max_new_tokens=8, stop_ids=[])
        assert len(longer.ids) == 8


def test_a_stream_that_is_closed_or_forgotten_leaves_the_session_to_others(raw):
    with segpack.Session(raw) as session:
        with session.stream([5, 9], max_new_tokens=50_000, stop_ids=[]) as stream:
            next(stream)
        assert list(stream) != []  # what was under way
        assert stream.generation.stop_reason == "caller" or len(stream.generation.ids) < 50_000
        del stream
        next(session.stream([5, 9], max_new_tokens=50_000, stop_ids=[]))
        assert len(session.generate([5, 9], max_new_tokens=3, stop_ids=[]).ids) == 3


def test_what_cannot_be_is_an_error_with_its_hint(raw):
    pack = segpack.Pack(raw)
    for wrong in ({"device": "tpu"}, {"compute": "f8"}, {"check": "now"}, {"memory": "much"}, {"threads": 0}):
        with pytest.raises(segpack.UsageError):
            segpack.Session(pack, **wrong)
    with segpack.Session(pack, memory=1000) as session:
        with pytest.raises(segpack.EnvironmentFailure, match="memory budget") as caught:
            session.generate([5, 9])
        assert caught.value.hint.startswith("memory=")
    enough = int(caught.value.hint.split()[0].removeprefix("memory="))
    with segpack.Session(pack, memory=enough) as session:
        assert session.generate([5, 9], max_new_tokens=128, stop_ids=[]).ids
        with pytest.raises(segpack.SegpackError, match="vocabulary"):
            session.generate([5, 1_000_000])
        with pytest.raises(segpack.UsageError, match="temperature"):
            session.generate([5, 9], temperature=-1.0)
        assert len(session.generate([5, 9], max_new_tokens=1).ids) == 1  # it goes on after errors
    with pytest.raises(segpack.UsageError, match="closed"):
        session.generate([5, 9])


def test_a_damaged_expert_ends_the_text_with_an_error(damaged):
    place, tensor = damaged
    with segpack.Session(place, check="always") as session:
        with pytest.raises(segpack.DamagedError, match="BLAKE3") as caught:
            session.generate([5, 9, 200] * 20, max_new_tokens=1)
    assert caught.value.file == place / tensor.file


def test_two_sessions_run_side_by_side(raw):
    pack, wanted, found = segpack.Pack(raw), TRACE[0], []

    def work():
        with segpack.Session(pack, threads=1) as session:
            found.append(session.generate(wanted["input_ids"], max_new_tokens=6, stop_ids=[]).ids)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted["generated"][:6]] * 2


INTERRUPTED = """
import signal, sys, segpack
session = segpack.Session(sys.argv[1])
try:
    for token in session.stream([5, 9], max_new_tokens=60_000, stop_ids=[]):
        if token.index == 0:
            print("begun", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(len(session.generate([5, 9], max_new_tokens=3, stop_ids=[]).ids), flush=True)
"""


def test_ctrl_c_ends_a_generation_and_the_session_can_be_used_on(raw):
    started = subprocess.Popen([sys.executable, "-c", INTERRUPTED, raw], stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout.readline() == "begun\n"
        started.send_signal(signal.SIGINT)
        assert started.communicate(timeout=60)[0] == "interrupted\n3\n"
        assert started.returncode == 0
    finally:
        started.kill()  # or it would compute for minutes where it does not listen

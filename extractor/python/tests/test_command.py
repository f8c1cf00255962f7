"""The command that the wheel brings: statuses, pipes, Ctrl-C and closed streams as of the program itself."""

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest

from conftest import CHECKPOINT, COMMAND, command


def test_data_goes_to_standard_output_whole(raw):
    info = command("info", raw, "--json")
    assert json.loads(info.stdout)["counts"]["tensors"] == 414
    # the last line of bytes has no end: nothing may be left in a buffer
    name = "thinker.model.embed_tokens.weight"
    assert len(command("cat", raw, name).stdout) == 320 * 48 * 2


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--nope"], 2), (["verify", "/nowhere"], 1), (["info", CHECKPOINT], 3), (["--help"], 0)]
)
def test_the_exit_status_is_that_of_the_program(arguments, status):
    done = command(*arguments, status=status)
    assert b"Traceback" not in done.stderr
    assert bool(done.stderr) == (status != 0)


def test_a_usage_error_is_a_document_with_json():
    report = json.loads(command("info", "--json", "--nope", status=2).stdout)
    assert report["error"] and report["exit_status"] == 2


def test_a_closed_pipe_is_success(raw):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([COMMAND, "ls", raw, "--tensors"], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_with_standard_output_closed_nothing_is_written_elsewhere(tmp_path):
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" pack "$1" -o "$2" >&-', COMMAND, CHECKPOINT, tmp_path / "pack"],
        stderr=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    command("verify", tmp_path / "pack", "--sums")


def test_what_was_closed_is_opened_so_that_no_file_takes_its_number(raw):
    with waiting(["sh", "-c", 'exec "$0" run "$1" >&-', COMMAND, raw]) as started:
        assert os.readlink(f"/proc/{started.pid}/fd/1") == os.devnull
        started.terminate()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_its_status(raw, sent, status):
    with waiting([COMMAND, "run", raw]) as started:
        assert catches(started.pid, signal.SIGINT)
        started.send_signal(sent)
        assert started.wait(timeout=20) == status
        assert started.stderr.read().splitlines()[-1] == b"error: interrupted"


def test_an_ignored_signal_stays_ignored(raw):
    with waiting(["sh", "-c", 'trap "" INT; exec "$0" run "$1"', COMMAND, raw]) as started:
        assert not catches(started.pid, signal.SIGINT)
        started.send_signal(signal.SIGINT)
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=20) == 143


@contextmanager
def waiting(arguments):
    """A run that waits for its prompt, which never comes, and listens for signals."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, **streams) as started:
        end = time.monotonic() + 20
        # Python itself catches SIGINT alone
        while not catches(started.pid, signal.SIGTERM):
            assert started.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        yield started


def catches(process, number):
    """Whether a process has a handler of this signal."""
    with open(f"/proc/{process}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return bool(int(fields["SigCgt"], 16) >> (number - 1) & 1)

"""Packs on a web server, which is a thread of this very process: it can only answer while native code has let go of the
interpreter."""

import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import segpack


class Ranges(BaseHTTPRequestHandler):
    """Serves the files of a folder, by ranges."""

    protocol_version = "HTTP/1.1"

    def __init__(self, folder, *arguments):
        self.folder = folder
        super().__init__(*arguments)

    def do_GET(self):  # noqa: N802
        self.answer(with_body=True)

    def do_HEAD(self):  # noqa: N802
        self.answer(with_body=False)

    def answer(self, with_body):
        file = self.folder / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        wanted = self.headers.get("Range")
        first, last = 0, len(data) - 1
        if wanted:
            begin, end = wanted.removeprefix("bytes=").split("-")
            first, last = int(begin), min(int(end or last), last)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("ETag", '"one"')
        self.end_headers()
        if with_body:
            self.wfile.write(data[first : last + 1])

    def log_message(self, *_):
        pass


@pytest.fixture
def address(raw):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, raw))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_opening_reading_verifying_and_running_leave_the_interpreter_to_other_threads(address, raw):
    pack, local = segpack.Pack(address), segpack.Pack(raw)
    assert pack.manifest_sha256 == local.manifest_sha256
    name = "thinker.model.layers.1.mlp.experts.5.up_proj.weight"
    assert pack[name].tobytes() == local[name].tobytes()
    assert pack.verify(mode="quick").ok
    with segpack.Session(pack) as session:
        assert len(session.generate([5, 9, 200], max_new_tokens=2).ids) == 2


def test_a_server_that_does_not_have_it_is_an_error(address):
    with pytest.raises(segpack.SegpackError):
        segpack.Pack(address + "nothing")

"""JSON over HTTP with the standard library; whatever goes wrong becomes one clear message."""

import email.utils
import http.client
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from ._trace_file import Failure

MOST_BYTES = 1 << 28
LONGEST_WAIT_S = 60


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected request would carry the key to another place."""

    def redirect_request(self, request, file, code, message, headers, url):
        return None


def one_line(text, most=300):
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= most else f"{text[:most]}…"


def wait_of(headers):
    """Seconds that a server asks for; none where it does not, or not understandably."""
    value = (headers.get("Retry-After") or "").strip()
    if value.isdecimal():
        return int(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


class Client:
    def __init__(self, url, key_variable, timeout, retries):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise Failure(f"{url!r} is no address of a server, such as http://127.0.0.1:8000/v1", status=2)
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self.key, self.key_variable = os.environ.get(key_variable, ""), key_variable
        self.opener = urllib.request.build_opener(NoRedirects)
        self.software = None

    def root(self):
        """The address without /v1, where the servers' own interfaces are."""
        return self.url.removesuffix("/v1")

    def failure(self, message, status=1):
        """A Failure without the key, which a server may repeat."""
        return Failure(message.replace(self.key, "***") if self.key else message, status)

    def post(self, url, body):
        return self.answer(url, json.dumps(body).encode())

    def models(self):
        """Names of the models that it serves; none where it does not tell."""
        try:
            listed = self.answer(f"{self.url}/models")
            return [model["id"] for model in listed["data"]]
        except (Failure, KeyError, TypeError):
            return []

    def answer(self, url, body=None):
        for left in range(self.retries, -1, -1):
            try:
                return self.parse(url, self.exchange(url, body))
            except urllib.error.HTTPError as error:
                self.retry_or_fail(url, error, left)
        raise self.failure(f"{url}: no answer")

    def exchange(self, url, body):
        headers = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "segpack-reference"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(url, data=body, headers=headers)
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                self.software = response.headers.get("Server")
                read = response.read(MOST_BYTES + 1)
                # read(n) does not notice that a body ends early
                promised = response.headers.get("Content-Length")
                if promised and promised.isdecimal() and len(read) < min(int(promised), MOST_BYTES):
                    raise http.client.IncompleteRead(read, int(promised) - len(read))
        except urllib.error.HTTPError:
            raise
        except http.client.IncompleteRead as error:
            raise self.failure(f"{url}: the connection ended in the middle of the answer ({error})") from None
        except urllib.error.URLError as error:
            raise self.failure(f"{url}: {self.unreachable(error.reason)}") from None
        except (OSError, http.client.HTTPException) as error:
            raise self.failure(f"{url}: {self.unreachable(error)}") from None
        if len(read) > MOST_BYTES:
            raise self.failure(f"{url}: the answer is longer than {MOST_BYTES} bytes")
        return read

    def unreachable(self, reason):
        if isinstance(reason, ConnectionRefusedError):
            return "connection refused: is the server running, and is this its port?"
        if isinstance(reason, (socket.timeout, TimeoutError)):
            return f"no answer within {self.timeout} s; --timeout waits longer"
        return f"the connection failed: {one_line(str(reason)) or type(reason).__name__}"

    def parse(self, url, body):
        try:
            answer = json.loads(body)
        except ValueError:
            begin = one_line(body[:200].decode("utf-8", "replace"))
            raise self.failure(f"{url}: the answer is no JSON; it begins {begin!r}", 3) from None
        if not isinstance(answer, dict):
            raise self.failure(f"{url}: the answer is no JSON object", 3)
        if answer.get("error"):
            raise self.failure(f"{url}: the server says {one_line(json.dumps(answer['error']))}")
        return answer

    def retry_or_fail(self, url, error, left):
        wait = wait_of(error.headers)
        said = self.said(error)
        if error.code in (429, 503) and left and (wait is None or wait <= LONGEST_WAIT_S):
            wait = 1 if wait is None else wait
            print(f"HTTP {error.code}; trying again in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)
            return
        asked = "" if wait is None else f"; it asks to wait {wait:.0f} s"
        raise self.failure(f"{url}: HTTP {error.code}{self.meaning(error)}{asked}{said}") from None

    def meaning(self, error):
        if error.code == 401:
            has = "the key was refused" if self.key else "no key was sent"
            return f", {has}: set the environment variable {self.key_variable}"
        if error.code == 404:
            return ", no such address or model: --url ends in /v1 for most servers, --model names what is served"
        if error.code == 429:
            return ", too many requests"
        if 300 <= error.code < 400:
            return f", redirected to {one_line(error.headers.get('Location') or '?')}: give that as --url"
        return ", the server failed" if error.code >= 500 else ""

    def said(self, error):
        try:
            body = error.read(10_000).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            return ""
        try:
            told = json.loads(body)
            told = told.get("error", told) if isinstance(told, dict) else told
            body = told.get("message", json.dumps(told)) if isinstance(told, dict) else str(told)
        except ValueError:
            pass
        return f". The server says: {one_line(str(body))}" if str(body).strip() else ""

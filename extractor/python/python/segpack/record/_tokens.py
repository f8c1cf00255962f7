"""Which token a server's words stand for. Never a guess: what two tokens could be is none."""

import re

from ._trace_file import Failure


def byte_alphabet():
    """The characters that byte-level BPE writes for bytes: printable ones stand for themselves, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (b for b in range(256) if b not in printable)
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


class Vocabulary:
    """`lossy`: how the server writes bytes that are no UTF-8, as names of Python's error handlers."""

    def __init__(self, tokenizer, lossy):
        alphabet = byte_alphabet()
        added = {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
        self.by_bytes, self.by_text = {}, {}
        for text, number in tokenizer.get_vocab().items():
            if number in added or not all(c in alphabet for c in text):
                written = added.get(number, text).encode()
            else:
                written = bytes(alphabet[c] for c in text)
            self.by_bytes.setdefault(written, set()).add(number)
            for text in {written.decode("utf-8", errors) for errors in lossy}:
                self.by_text.setdefault(text, set()).add(number)

    def candidates(self, text, written=None):
        if match := re.fullmatch(r"token_id:(\d+)", text or ""):
            return {int(match.group(1))}
        if written:
            return self.by_bytes.get(bytes(written), set())
        if (text or "").startswith("bytes:\\x"):
            return self.by_bytes.get(bytes.fromhex(text[6:].replace("\\x", "")), set())
        return self.by_text.get(text, set())

    def maybe(self, text, written=None):
        found = self.candidates(text, written)
        return next(iter(found)) if len(found) == 1 else None

    def surely(self, text, written=None):
        found = self.candidates(text, written)
        if len(found) == 1:
            return next(iter(found))
        many = f"could be any of the tokens {sorted(found)[:5]}{' …' if len(found) > 5 else ''}" if found else "is no token"
        raise Failure(
            f"the server chose {text!r}, which {many}: the trace would be a guess. Record from an interface that tells "
            "ids: --server vllm, sglang or llama.cpp"
        )


class OnlyIds:
    """Where there is no tokenizer: ids are known, words are not."""

    maybe_id = re.compile(r"token_id:(\d+)")

    def maybe(self, text, written=None):
        match = self.maybe_id.fullmatch(text or "")
        return int(match.group(1)) if match else None

    def surely(self, text, written=None):
        found = self.maybe(text, written)
        if found is None:
            raise Failure(f"the server chose {text!r}; give --checkpoint, whose tokenizer tells which token that is")
        return found

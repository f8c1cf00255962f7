"""Running models from their packs."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from . import _native
from ._errors import UsageError
from ._pack import Pack


@dataclass(frozen=True)
class Candidate:
    """A candidate for the next token.

    Attributes:
        id: its token id.
        text: its text; an incomplete character is U+FFFD.
        logit: its logit.
        probability: its probability among all tokens, at temperature 1.
    """

    id: int
    text: str
    logit: float
    probability: float


@dataclass(frozen=True)
class Token:
    """A token that was generated.

    Attributes:
        index: its number, from 0.
        id: its token id.
        text: the text that it completes: half a character waits for its rest, special tokens are left out.
        is_stop: whether it ends the text.
        top: the most likely candidates, best first, as many as were asked for.
    """

    index: int
    id: int
    text: str
    is_stop: bool
    top: tuple[Candidate, ...]


@dataclass(frozen=True)
class Generation:
    """A generated text.

    Attributes:
        ids: the new token ids, with the one that ended the text.
        text: their text, special tokens left out; empty where the pack has no tokenizer.
        stop_reason: why there are no more.
        prompt_ids: the token ids of the prompt.
        summary: times, memory, use of experts, as the last line of ``segpack run --json``
            (``schemas/run-summary.schema.json``).
    """

    ids: list[int]
    text: str
    stop_reason: str
    prompt_ids: list[int]
    summary: dict[str, Any]


class Stream(Iterator[Token]):
    """The tokens of a text, as they are generated. Closing it, or leaving its ``with`` block, ends the text."""

    def __init__(self, native: _native.Stream) -> None:
        self._native = native
        self._generation: Generation | None = None

    def __next__(self) -> Token:
        if self._generation is not None:
            raise StopIteration
        kind, document = self._native.next()
        if kind == "token":
            return _token(document)
        self._generation = _generation(document)
        raise StopIteration

    @property
    def generation(self) -> Generation:
        """The whole text, once the last token came.

        Raises:
            UsageError: there may be more tokens.
        """
        if self._generation is None:
            raise UsageError("the text is not complete", hint="iterate over the stream to its end first")
        return self._generation

    def close(self) -> None:
        """Ends the text after the token that is under way."""
        self._native.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        self.close()


class Session:
    """A model that runs from its pack; experts are loaded when they are needed, within a memory budget.

    The model is opened with the first prompt, on a thread of its own, and its weights stay loaded for those that
    follow, as long as they need no more positions than it has. Prompts are answered one after the other. Ctrl-C
    ends a generation with ``KeyboardInterrupt``; the session can be used on.

    Args:
        pack: the pack, or its place.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``.
        memory: memory budget of the process in bytes, or ``"unlimited"``; what the model needs, at most 7/8 of
            the available memory, if not given.
        device_memory: GPU memory to use, in bytes; all that is free if not given.
        expert_cache: how many experts stay in memory at most.
        threads: threads that compute; one per core, at most 16, if not given.
        compute: precision of activations: ``"f32"``, or ``"bf16"`` as the official code rounds.
        check: when the digests of segments are compared: ``"always"``, ``"first"`` or ``"never"``.
        positions: positions to reserve at least: prompts that grow then find the model still open.
        longest_prompt: tokens of the longest prompt that the model is opened for, likewise.

    Raises:
        SegpackError: the model cannot be run, or the device or the memory is not to be had.
    """

    def __init__(
        self,
        pack: "Pack | str | os.PathLike[str]",
        *,
        device: str = "cpu",
        memory: "int | Literal['unlimited'] | None" = None,
        device_memory: "int | None" = None,
        expert_cache: "int | None" = None,
        threads: "int | None" = None,
        compute: Literal["f32", "bf16"] = "f32",
        check: Literal["always", "first", "never"] = "always",
        positions: "int | None" = None,
        longest_prompt: "int | None" = None,
    ) -> None:
        self.pack = pack if isinstance(pack, Pack) else Pack(pack)
        settings = {
            "device": device,
            "memory": memory,
            "device_memory": device_memory,
            "expert_cache": expert_cache,
            "threads": threads,
            "compute": compute,
            "check": check,
            "positions": positions,
            "longest_prompt": longest_prompt,
        }
        self._native = _native.Session(self.pack._native, settings)

    @property
    def device(self) -> str:
        """Where the model runs: ``cpu``, or ``cuda:`` with number and name."""
        return self._native.device

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return self._native.context_length

    def stream(
        self,
        prompt: "str | Sequence[int] | Sequence[Mapping[str, Any]]",
        *,
        chat: bool = False,
        system: "str | None" = None,
        enable_thinking: "bool | None" = None,
        max_new_tokens: int = 128,
        temperature: "float | None" = None,
        top_k: "int | None" = None,
        top_p: "float | None" = None,
        seed: "int | None" = None,
        stop_ids: "Sequence[int] | None" = None,
        top_logits: int = 0,
        preload: bool = False,
    ) -> Stream:
        """Begins to continue a prompt, and returns the tokens as they come.

        Args:
            prompt: a text, token ids, or the messages of a chat as transformers' ``apply_chat_template`` takes them,
                audio, images and videos among their parts by path.
            chat: whether a text is a message of the user, to be answered through the checkpoint's chat template.
            system: a message of the system before it; implies ``chat``.
            enable_thinking: what the template gets under this name.
            max_new_tokens: maximum number of tokens; the model's context length ends the text, too.
            temperature, top_k, top_p, seed: random sampling where any of them is given; greedy otherwise. The same
                seed gives the same text.
            stop_ids: token ids that end the text; those of the checkpoint if not given.
            top_logits: how many candidates to tell of each token.
            preload: whether as many weights as fit are loaded before the prompt.
        """
        settings: dict[str, Any] = {
            "messages": _messages(prompt, chat, system),
            "enable_thinking": enable_thinking,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
            "stop_ids": None if stop_ids is None else list(stop_ids),
            "top_logits": top_logits,
            "preload": preload,
        }
        bare = prompt if isinstance(prompt, str) or settings["messages"] is not None else list(prompt)
        return Stream(self._native.stream(bare, settings))

    def generate(self, prompt: "str | Sequence[int] | Sequence[Mapping[str, Any]]", **options: Any) -> Generation:
        """Continues a prompt and returns the whole text. Takes the options of :meth:`stream`."""
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.generation

    def close(self) -> None:
        """Ends what is under way and gives the memory back."""
        self._native.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Session({self.pack.place!r}, device={self.device!r})"


def _messages(
    prompt: "str | Sequence[int] | Sequence[Mapping[str, Any]]", chat: bool, system: "str | None"
) -> "str | None":
    """The chat as JSON; `None` where the prompt is no chat."""
    if isinstance(prompt, str):
        if not chat and system is None:
            return None
        messages: list[Any] = [{"role": "user", "content": prompt}]
    elif prompt and isinstance(prompt[0], Mapping):
        messages = list(prompt)
    else:
        if chat or system is not None:
            raise UsageError("token ids are no chat", hint="give a text, or messages")
        return None
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return json.dumps(messages)


def _token(document: dict[str, Any]) -> Token:
    top = tuple(Candidate(c["id"], c["text"], c["logit"], c["probability"]) for c in document.get("top", ()))
    return Token(document["index"], document["id"], document["text"], document["stop"], top)


def _generation(document: dict[str, Any]) -> Generation:
    return Generation(
        ids=document["ids"],
        text=document["text"],
        stop_reason=document["stop_reason"],
        prompt_ids=document["prompt_ids"],
        summary=document,
    )

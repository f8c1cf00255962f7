"""The interfaces that servers have, each as what to ask and how to read the answer.

Documentation: OpenAI's API reference (completions, chat completions: `logprobs`, `top_logprobs`, `echo`); vLLM's "OpenAI-
Compatible Server" (`return_token_ids`, `return_tokens_as_token_ids`, `prompt_logprobs`); SGLang's "Native APIs" and
"Sampling Parameters" (`/generate`); tools/server/README.md of llama.cpp (`/completion`).
"""

import math
from dataclasses import dataclass, field

from ._trace_file import Failure

LEAST = -9999.0  # what vLLM writes for minus infinity


@dataclass
class Answer:
    """`steps` and `after_prompt` are rows of (id or None, log-probability), empty where nothing was asked for. Of the steps
    `unlisted` the server, as it documents, lists nothing."""

    ids: list
    steps: list = field(default_factory=list)
    after_prompt: list = field(default_factory=list)
    prompt_ids: list | None = None
    prompt_count: int | None = None
    notes: dict = field(default_factory=dict)
    unlisted: set = field(default_factory=set)


def number(value, what):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Failure(f"the server's answer has {value!r} for {what}; wanted a number")
    return float(value)


def token_id(value):
    if type(value) is not int or value < 0:
        raise Failure(f"the server's answer has {value!r} for a token id")
    return value


def first_choice(body):
    choices = body.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Failure("the server's answer has not one choice")
    return choices[0]


def without_logprobs():
    return Failure(
        "the server's answer has no log-probabilities: it does not support them, or not here (try --api, or a server "
        "option). --logprobs 0 records the tokens alone"
    )


def usage_count(body):
    usage = body.get("usage")
    return usage.get("prompt_tokens") if isinstance(usage, dict) else None


def base_notes(body, choice):
    notes = {"served_model": body.get("model"), "finish_reason": choice.get("finish_reason")}
    usage = body.get("usage")
    notes["completion_tokens"] = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return {key: value for key, value in notes.items() if isinstance(value, (str, int))}


def common(args):
    return {"model": args.model, "max_tokens": args.max_new_tokens, "temperature": 0}


VLLM = {
    "return_tokens_as_token_ids": True,
    "return_token_ids": True,
    # the model's generation_config.json would be applied otherwise
    "repetition_penalty": 1.0,
    "skip_special_tokens": False,
}


class Completions:
    """/v1/completions"""

    def __init__(self, args, vocabulary):
        self.args, self.vocabulary = args, vocabulary

    def path(self, client):
        return f"{client.url}/completions"

    def ask(self, prompt):
        args = self.args
        body = common(args) | {"prompt": prompt["rendered"] if args.server == "llama-cpp-python" else prompt["ids"]}
        if args.logprobs:
            body["logprobs"] = args.logprobs
        if args.server == "vllm":
            body |= VLLM | ({"prompt_logprobs": args.logprobs} if args.prompt_logprobs else {})
        elif args.prompt_logprobs:
            body["echo"] = True
        if args.server == "llama-cpp-python":
            body["repeat_penalty"] = 1.0  # its default is 1.1
        return body

    def read(self, body, prompt):
        choice = first_choice(body)
        ids = choice.get("token_ids")
        told = choice.get("logprobs")
        notes = base_notes(body, choice)
        answer = Answer([], prompt_ids=choice.get("prompt_token_ids"), prompt_count=usage_count(body), notes=notes)
        if told is None and (self.args.logprobs or ids is None):
            raise without_logprobs()
        rows = self.rows(told) if told else []
        if self.args.prompt_logprobs and self.args.server != "vllm":
            count = len(prompt["ids"])
            answer.prompt_ids = [self.vocabulary.surely(row[0]) for row in rows[:count]]
            # the first token of a prompt follows nothing
            answer.after_prompt = [self.listed(row) for row in rows[1:count]]
            rows = rows[count:]
        elif self.args.prompt_logprobs:
            answer.after_prompt = prompt_rows(choice.get("prompt_logprobs"))
        answer.ids = [token_id(i) for i in ids] if ids is not None else [self.vocabulary.surely(r[0]) for r in rows]
        if self.args.logprobs and len(rows) == len(answer.ids):
            answer.steps = [self.listed(row, one) for row, one in zip(rows, answer.ids, strict=True)]
        return answer

    @staticmethod
    def rows(told):
        columns = [told.get(name) for name in ("tokens", "token_logprobs", "top_logprobs")]
        if not all(isinstance(column, list) for column in columns) or len({len(c) for c in columns}) != 1:
            raise without_logprobs()
        return list(zip(*columns, strict=True))

    def listed(self, row, one=None):
        text, logprob, top = row
        best = (self.vocabulary.surely(text) if one is None else one, number(logprob, "a log-probability"))
        others = [(name, value) for name, value in (top or {}).items() if name != text]
        return [best, *((self.vocabulary.maybe(name), number(value, name)) for name, value in others)]


def prompt_rows(told):
    """vLLM's `prompt_logprobs`: by id, none for the first token."""
    if not isinstance(told, list) or not told:
        raise without_logprobs()
    return [[(token_id(int(i)), number(entry["logprob"], i)) for i, entry in row.items()] for row in told[1:]]


class Chat:
    """/v1/chat/completions"""

    def __init__(self, args, vocabulary):
        self.args, self.vocabulary = args, vocabulary

    def path(self, client):
        return f"{client.url}/chat/completions"

    def ask(self, prompt):
        if "messages" not in prompt:
            raise Failure("--api chat takes --chat prompts only", status=2)
        body = common(self.args) | {"messages": prompt["messages"]}
        if self.args.logprobs:
            body |= {"logprobs": True, "top_logprobs": self.args.logprobs}
        if self.args.server == "vllm":
            body |= VLLM
        if self.args.server == "llama-cpp-python":
            body["repeat_penalty"] = 1.0
        return body

    def read(self, body, prompt):
        choice = first_choice(body)
        told = (choice.get("logprobs") or {}).get("content")
        ids = choice.get("token_ids")
        if not isinstance(told, list) and (self.args.logprobs or ids is None):
            raise without_logprobs()
        known = ids if isinstance(ids, list) and len(ids) == len(told or []) else [None] * len(told or [])
        steps = [self.listed(entry, one) for entry, one in zip(told or [], known, strict=True)]
        ids = [token_id(i) for i in ids] if ids is not None else [step[0][0] for step in steps]
        asked = body.get("prompt_token_ids")
        steps = steps if self.args.logprobs else []
        return Answer(ids, steps, [], asked, usage_count(body), base_notes(body, choice))

    def listed(self, entry, one=None):
        chosen = self.vocabulary.surely(entry.get("token"), entry.get("bytes")) if one is None else token_id(one)
        row = [(chosen, number(entry.get("logprob"), "a log-probability"))]
        for other in entry.get("top_logprobs") or []:
            one = self.vocabulary.maybe(other.get("token"), other.get("bytes"))
            if one != chosen and other.get("token") != entry.get("token"):
                row.append((one, number(other.get("logprob"), "a log-probability")))
        return row


class SGLang:
    """SGLang's /generate"""

    def __init__(self, args, vocabulary):
        self.args = args

    def path(self, client):
        return f"{client.root()}/generate"

    def ask(self, prompt):
        args = self.args
        sampling = {"temperature": 0, "max_new_tokens": args.max_new_tokens, "repetition_penalty": 1.0}
        start = 0 if args.prompt_logprobs else -1
        body = {"input_ids": prompt["ids"], "sampling_params": sampling, "return_logprob": True}
        return body | {"top_logprobs_num": args.logprobs, "logprob_start_len": start}

    def read(self, body, prompt):
        told = body.get("meta_info")
        if not isinstance(told, dict) or not isinstance(told.get("output_token_logprobs"), list):
            raise without_logprobs()
        chosen = [self.entry(entry) for entry in told["output_token_logprobs"]]
        answer = Answer([i for i, _ in chosen], prompt_count=told.get("prompt_tokens"))
        if self.args.logprobs:
            answer.steps = self.merged(chosen, told.get("output_top_logprobs"))
        if self.args.prompt_logprobs:
            given = told.get("input_token_logprobs") or []
            answer.prompt_ids = [token_id(entry[1]) for entry in given]
            followed = [self.entry(entry) for entry in given[1:]]
            answer.after_prompt = self.merged(followed, (told.get("input_top_logprobs") or [])[1:])
        reason = told.get("finish_reason")
        answer.notes = {"finish_reason": reason.get("type")} if isinstance(reason, dict) else {}
        return answer

    @staticmethod
    def entry(entry):
        if not isinstance(entry, list) or len(entry) < 2:
            raise Failure(f"the server's answer has {entry!r} for a token and its log-probability")
        return token_id(entry[1]), number(entry[0], "a log-probability")

    def merged(self, chosen, top):
        if not isinstance(top, list) or len(top) != len(chosen):
            raise without_logprobs()
        rows = [dict([one, *(self.entry(entry) for entry in row or [])]) for one, row in zip(chosen, top, strict=True)]
        return [list(row.items()) for row in rows]


def slots(some, all_ids):
    """The first slots in `all_ids` that `some` can stand in, in order."""
    numbered = iter(enumerate(all_ids))
    found = [next((slot for slot, other in numbered if other == one), None) for one in some]
    if None in found:
        raise Failure(f"the server's log-probabilities are of tokens {some}, which do not follow each other in {all_ids}")
    return found


def in_their_slots(rows, ids):
    """A row for each token, and the steps that have none: llama.cpp lists nothing of a token whose text ends within a character.
    A row that could be of several equal tokens is left out."""
    chosen = [row[0][0] for row in rows]
    last = [len(ids) - 1 - slot for slot in reversed(slots(chosen[::-1], ids[::-1]))]
    known = {slot: row for slot, other, row in zip(slots(chosen, ids), last, rows, strict=True) if slot == other}
    return [known.get(step, []) for step in range(len(ids))], set(range(len(ids))) - known.keys()


class LlamaCpp:
    """/completion of llama.cpp's own server"""

    def __init__(self, args, vocabulary):
        self.args = args

    def path(self, client):
        return f"{client.root()}/completion"

    def ask(self, prompt):
        args = self.args
        # a temperature below 0 is greedy, with probabilities straight from the logits
        body = {"prompt": prompt["ids"], "n_predict": args.max_new_tokens, "temperature": -1, "return_tokens": True}
        plain = {"samplers": ["temperature"], "repeat_penalty": 1.0, "cache_prompt": False, "stream": False}
        return body | plain | {"n_probs": args.logprobs, "post_sampling_probs": False}

    def read(self, body, prompt):
        told = body.get("completion_probabilities")
        if self.args.logprobs:
            if not isinstance(told, list):
                raise without_logprobs()
            rows = [self.listed(entry) for entry in told]
            ids = [token_id(i) for i in body.get("tokens") or []] or [row[0][0] for row in rows]
            steps, unlisted = in_their_slots(rows, ids)
        else:
            ids, steps, unlisted = [token_id(i) for i in body.get("tokens") or []], [], set()
        notes = {"served_model": body.get("model"), "finish_reason": body.get("stop_type")}
        notes = {key: value for key, value in notes.items() if isinstance(value, str)}
        return Answer(ids, steps, [], None, body.get("tokens_evaluated"), notes, unlisted)

    @staticmethod
    def listed(entry):
        row = {}
        for one in [entry, *entry.get("top_logprobs", [])]:
            row.setdefault(token_id(one.get("id")), number(one.get("logprob"), "a log-probability"))
        return list(row.items())


INTERFACES = {"completions": Completions, "chat": Chat, "sglang": SGLang, "llama.cpp": LlamaCpp}


def check(answer, prompt, args):
    """The trace has what a greedy decoder chose after exactly this prompt, or nothing."""
    wanted = prompt["ids"]
    if answer.prompt_ids is not None and answer.prompt_ids != wanted:
        raise Failure(f"the server read the prompt as tokens {answer.prompt_ids[:8]} …, not as {wanted[:8]} …")
    if answer.prompt_count is not None and answer.prompt_count != len(wanted):
        raise Failure(
            f"the server read the prompt as {answer.prompt_count} tokens; this checkpoint's tokenizer and template make "
            f"{len(wanted)} of it"
        )
    if not answer.ids:
        raise Failure("the server generated nothing")
    if len(answer.ids) > args.max_new_tokens:
        raise Failure(f"the server generated {len(answer.ids)} tokens; {args.max_new_tokens} were asked for")
    written, ended = answer.notes.get("completion_tokens"), answer.notes.get("finish_reason") == "stop"
    # the token that ends the text is counted by some and listed by others
    if type(written) is int and written not in (len(answer.ids), len(answer.ids) + ended):
        raise Failure(f"the server generated {written} tokens, and told {len(answer.ids)} of them")
    if args.logprobs and len(answer.steps) != len(answer.ids):
        raise Failure(f"the server's answer has {len(answer.ids)} tokens and log-probabilities of {len(answer.steps)}")
    if args.prompt_logprobs and len(answer.after_prompt) != len(wanted) - 1:
        raise Failure(f"the server's answer has log-probabilities of {len(answer.after_prompt)} prompt tokens")
    # servers add the token that a prompt has, however unlikely: that is no rank
    answer.steps = [ranked(row)[: args.logprobs] for row in answer.steps]
    answer.after_prompt = [ranked(row)[: args.logprobs] for row in answer.after_prompt]
    for step, (chosen, row) in enumerate(zip(answer.ids, answer.steps, strict=False)):
        if step in answer.unlisted:
            continue
        greatest = row[0][1] if row else math.inf
        own = max((value for one, value in row if one == chosen), default=-math.inf)
        if own < greatest:
            raise Failure(
                f"step {step} is not greedy: the server chose token {chosen} of log-probability {own:.4f}, and one of "
                f"{greatest:.4f} was likelier. It samples, penalises repetition, or tells other steps' numbers"
            )


def ranked(row):
    """Best first; what is as good as impossible tells nothing."""
    known = [(one, value) for one, value in row if math.isfinite(value) and value > LEAST]
    if any(value > 1e-3 for _, value in known):
        raise Failure("the server's log-probabilities are greater than 0")
    return sorted(known, key=lambda pair: -pair[1])

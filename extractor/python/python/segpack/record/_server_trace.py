"""A trace of tokens and log-probabilities, from answers of servers."""

import importlib.metadata
import math
import platform

import numpy
from safetensors.numpy import save_file

from . import _prompts as prompt_input
from . import _trace_file as trace_file


def rows_of(rows):
    """Ids and log-probabilities of equally long rows: -1 is a token that was not identified, NaN ends a row."""
    width = max(len(row) for row in rows)
    padded = [[*row, *[(None, math.nan)] * (width - len(row))] for row in rows]
    ids = [[-1 if one is None else one for one, _ in row] for row in padded]
    return numpy.array(ids, dtype="int64"), numpy.array([[v for _, v in row] for row in padded], dtype="float32")


def tensors_of(prompt_number, prompt, answer):
    tensors = {"input_ids": numpy.array(prompt["ids"], "int64"), "gen.ids": numpy.array(answer.ids, "int64")}
    for kind, rows in (("gen", answer.steps), ("prompt", answer.after_prompt)):
        if rows:
            tensors[f"{kind}.top_ids"], tensors[f"{kind}.top_logprobs"] = rows_of(rows)
    return {f"p{prompt_number:02d}.{name}": tensor for name, tensor in tensors.items()}


def entry_of(number, prompt, answer):
    rows = [*answer.steps, *answer.after_prompt]
    unknown = sum(one is None for row in rows for one, _ in row)
    entry = {"prompt": number, **prompt_input.notes(prompt), "input_ids": prompt["ids"], "generated": answer.ids}
    return entry | answer.notes | ({"unidentified": unknown} if unknown else {})


def write(out, prompts, answers, settings, checkpoint):
    tensors, entries = {}, []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tensors |= tensors_of(number, prompt, answer)
        entries.append(entry_of(number, prompt, answer))
    versions = {name: importlib.metadata.version(name) for name in ("safetensors", "numpy")}
    document = {
        "settings": {"level": "logits", "values": "log_probabilities", "decoding": "greedy", **settings},
        "versions": {"python": platform.python_version(), **versions},
        **(trace_file.origin(checkpoint) if checkpoint else {"checkpoint": {}}),
        "prompts": entries,
    }
    trace_file.write(out, tensors, document, save_file)

"""Prompts from the command line and from files, and the checkpoint's own tokenizer and chat template."""

import json
import os
import re
from pathlib import Path

from ._trace_file import Failure


def add_arguments(parser):
    group = parser.add_argument_group("prompts, in this order")
    group.add_argument("--ids", action="append", default=[], metavar="IDS", help='token ids, such as "1,2,3"; repeatable')
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help=".json: a list of lists of ids, or of objects with ids, text or chat (what else they have goes into the "
        "trace); any other file: a prompt per line, ids or raw text",
    )
    group.add_argument("--chat", action="append", default=[], metavar="TEXT", help="a user's message; repeatable")
    group.add_argument("--text", action="append", default=[], metavar="TEXT", help="text without a template; repeatable")
    group.add_argument("--system", metavar="TEXT", help="a system message for the --chat prompts")


def parse_ids(text):
    if not re.fullmatch(r"\s*\d+([,\s]+\d+)*\s*", text):
        raise Failure(f"{text!r} is no list of token ids, such as 1,2,3", status=2)
    return [int(number) for number in re.findall(r"\d+", text)]


def from_json(text, path):
    try:
        items = json.loads(text)
    except ValueError as error:
        raise Failure(f"{path}: {error}") from error
    if not isinstance(items, list):
        raise Failure(f"{path}: wanted a list of prompts")
    for number, item in enumerate(items):
        item = {"ids": item} if isinstance(item, list) else item
        if not isinstance(item, dict) or len({"ids", "text", "chat"} & item.keys()) != 1:
            raise Failure(f"{path}: prompt {number} has not exactly one of ids, text and chat")
        if not all(isinstance(item.get(key, ""), str) for key in ("text", "chat")):
            raise Failure(f"{path}: the text of prompt {number} is none")
        ids = item.get("ids", [])
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            raise Failure(f"{path}: the ids of prompt {number} are not token ids")
        yield dict(item)


def from_lines(text):
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            is_ids = re.fullmatch(r"\s*\d+([,\s]+\d+)*\s*", line)
            yield {"ids": parse_ids(line)} if is_ids else {"text": line}


def read(args):
    """All prompts: dicts with one of `ids`, `text` and `chat`."""
    prompts = [{"ids": parse_ids(text)} for text in args.ids]
    if args.prompts:
        path = Path(args.prompts)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Failure(f"cannot read {path}: {error}", status=1) from error
        prompts += from_json(text, path) if path.suffix == ".json" else from_lines(text)
    prompts += [{"chat": text} for text in args.chat] + [{"text": text} for text in args.text]
    if not prompts:
        raise Failure("no prompt: give --ids, --prompts, --chat or --text", status=2)
    return prompts


TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def load_tokenizer(folder):
    # transformers makes an empty one of nothing
    if not any((Path(folder) / name).exists() for name in TOKENIZER_FILES):
        raise Failure(f"{folder}: has no tokenizer ({', '.join(TOKENIZER_FILES)}); give prompts as ids")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # that there is no torch does not matter here
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise Failure(f"{folder}: has no tokenizer that transformers can load ({error}); give prompts as ids") from error
    if not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = template_beside(Path(folder))
    return tokenizer


def template_beside(folder):
    """The template of a processor, which a tokenizer alone does not read."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").exists():
        return json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    return None


def messages_of(prompt, system):
    system = [{"role": "system", "content": system}] if system else []
    return [*system, {"role": "user", "content": prompt["chat"]}]


def tokenize(prompts, folder, system, tokenizer=None):
    """Gives every prompt its `ids`; `rendered` is the text that they stand for. The tokenizer, where one was needed."""
    for number, prompt in enumerate(prompts):
        if "ids" not in prompt:
            tokenizer = tokenizer or load_tokenizer(folder)
            prompt["rendered"] = prompt.get("text")
            if "chat" in prompt:
                if not tokenizer.chat_template:
                    raise Failure(f"{folder}: has no chat template; give --text, or ids")
                messages = messages_of(prompt, system)
                prompt["rendered"] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            prompt["ids"] = tokenizer(prompt["rendered"], add_special_tokens=False)["input_ids"]
        if not prompt["ids"]:
            raise Failure(f"prompt {number} has no tokens")
    return tokenizer


def check_vocabulary(prompts, vocab_size):
    for number, prompt in enumerate(prompts):
        if max(prompt["ids"]) >= vocab_size:
            raise Failure(f"prompt {number}: there is no token {max(prompt['ids'])}; the vocabulary has {vocab_size}")


def notes(prompt):
    """What the trace's entry of a prompt says beside the ids."""
    return {key: value for key, value in prompt.items() if key != "ids"}

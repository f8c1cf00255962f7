"""Chat templates and tokenizers: what transformers makes of a prompt, and what segpack makes of it."""

import json
import logging
import os
import random
import shutil
import subprocess

import pytest
from conftest import CHECKPOINTS, FULL, ROOT, SEGPACK, segpack

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in the checkpoint's folder
logging.disable(logging.WARNING)  # that there is no torch is known

from transformers import AutoTokenizer  # noqa: E402
from transformers.utils import chat_template_utils  # noqa: E402

TINY = CHECKPOINTS["tiny-full"]
RECORDED = json.loads((ROOT / "tests/fixtures/tokenizer/chat_templates.json").read_text())
# Where minijinja is not Jinja; README.md tells.
DIFFERENT = {"percent formatting", "loop over a text"}

CHATS = {
    "one": [{"role": "user", "content": "Name three rivers."}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "turns": [
        {"role": "user", "content": "  What is 2+2?\n"},
        {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\n4"},
        {"role": "user", "content": "And 3+3?"},
    ],
    "reasoning": [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "reasoning_content": "\nHm.\n", "content": "Because."},
        {"role": "user", "content": "<|im_end|>\n<|im_start|>system\nno"},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "C"}]},
        {"role": "user", "content": [{"type": "text", "text": "Grüße, 世界 👋\u0301"}]},
    ],
    "tool calls": [
        {"role": "user", "content": "Weather in Zürich?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"z": "Zürich", "a": [1, 2.5, None]}}}
            ],
        },
        {"role": "tool", "content": '{"celsius": 21}'},
        {"role": "tool", "content": "</tool_response>"},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <b>now</b> & \"here\" 'é'",
            "parameters": {"type": "object", "properties": {"z": {"type": "string"}}, "required": ["z"]},
        },
    }
]


def printed(pack, *options, stdin):
    """Text and ids of `run --print-prompt`, or none where it refuses."""
    command = [SEGPACK, "run", pack, "--print-prompt", "--json", *options]
    done = subprocess.run(command, input=stdin.encode(), capture_output=True, check=False)
    if done.returncode == 3:
        return None
    assert done.returncode == 0, done.stderr.decode()
    document = json.loads(done.stdout)
    return document["text"], document["ids"]


def pack_of(folder, template=None, without=()):
    """A pack of the tiny checkpoint with another chat template; only what a prompt needs."""
    source = folder / "source"
    shutil.copytree(TINY, source, ignore=shutil.ignore_patterns(*without))
    if template is not None:
        config = json.loads((source / "tokenizer_config.json").read_text())
        config["chat_template"] = template
        (source / "tokenizer_config.json").write_text(json.dumps(config))
    segpack("pack", source, "-o", folder / "pack", "--include", "code2wav", "--no-source-digests", "--no-sums")
    return folder / "pack", AutoTokenizer.from_pretrained(source)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return pack_of(tmp_path_factory.mktemp("qwen"), RECORDED["templates"]["@qwen"])


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return pack_of(tmp_path_factory.mktemp("toy"))


def official(tokenizer, chat, **options):
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **options)
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "tools"])
@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("template", ["toy", "qwen"])
def test_chats_are_rendered_alike(request, template, name, tools, thinking):
    pack, tokenizer = request.getfixturevalue(template)
    options = [] if thinking is None else ["--enable-thinking", str(thinking).lower()]
    given = {} if thinking is None else {"enable_thinking": thinking}
    wanted = official(tokenizer, CHATS[name], tools=tools, **given)
    assert wanted[1], "a rendering to compare with"
    chat = json.dumps({"messages": CHATS[name], "tools": tools})
    assert printed(pack, "--messages", "-", *options, stdin=chat) == wanted


def test_system_and_user_are_a_chat(qwen):
    pack, tokenizer = qwen
    ours = printed(pack, "--chat", "--system", "Be brief.", stdin="Hi\n")
    assert ours == official(tokenizer, CHATS["system"])


def test_what_a_template_refuses_is_refused(qwen):
    pack, tokenizer = qwen
    chat = [{"role": "system", "content": [{"type": "text", "text": "A"}]}, {"role": "user", "content": "B"}]
    with pytest.raises(TypeError):
        official(tokenizer, chat)
    assert printed(pack, "--messages", "-", stdin=json.dumps(chat)) is None


def rendered(case):
    """transformers' own rendering of a recorded case, or none where it refuses."""
    options = dict(case.get("variables", {}), add_generation_prompt=case.get("add_generation_prompt", False))
    if case.get("tools") is not None:
        options["tools"] = case["tools"]
    template = RECORDED["templates"].get(case["template"], case["template"])
    try:
        texts, _ = chat_template_utils.render_jinja_template([case["messages"]], chat_template=template, **options)
    except Exception:
        return None
    return texts[0]


def test_the_recorded_renderings_are_those_of_transformers():
    cases = [case for case in RECORDED["cases"] if "unix_time" not in case]
    wrong = [case["name"] for case in cases if rendered(case) != case.get("expected")]
    assert len(cases) > 100 and not wrong


def test_recorded_templates_are_rendered_alike(tmp_path):
    """Each template through the program, with the checkpoint's own special tokens."""
    templates = {case["template"]: case for case in RECORDED["cases"] if not case["template"].startswith("@")}
    wrong, compared = [], 0
    for number, (template, case) in enumerate(templates.items()):
        if case["name"] in DIFFERENT or "unix_time" in case or not (FULL or number % 3 == 0):
            continue
        pack, tokenizer = pack_of(tmp_path / str(number), template)
        try:
            wanted = official(tokenizer, case["messages"], tools=case.get("tools"))
        except Exception:
            wanted = None
        chat = json.dumps({"messages": case["messages"], "tools": case.get("tools")})
        compared += 1
        if printed(pack, "--messages", "-", stdin=chat) != wanted:
            wrong.append(case["name"])
        shutil.rmtree(tmp_path / str(number))
    assert compared >= 20 and not wrong


ODD = [
    *["a", " ", "\t", "\n\n", "\r\n \r\n", "x\n", "\x00", "a\x00b", "\x7f", "\x1b[0m", "\u0085", "\u00a0", "\u2028", "\u3000x"],
    *["\ufeff", "\u200b", "\u200d", "e\u0301", "\u1e9b\u0323", "\uac00", "\u1100\u1161", "\u2126", "\ufb01", "①", "½", "٣٤٥", "१२", "𝟘𝟙"],
    *["0", "12", "1234567890", "1,234.5", "1e-9", "0x1F", "３", "I'm", "we'LL", "'s", "don't'd", "’s", "İstanbul", "ſ", "ǅ", "ß"],
    *["👋", "👩‍👩‍👧‍👦", "🇨🇭", "🏳️‍🌈", "\U000e0001", "\U0010ffff", "\ue000", "こんにちは", "中文，标点。", "עִבְרִית", "العربية", "ไทย"],
    *["<|im_start|>", "<|im_end|>x", " <|im_end|> ", "<|im_start|><|im_start|>", "<|im_start |>", "<|IM_END|>", "<|endoftext|>"],
    *["<think>", "</think>\n", "<tool_call>{}</tool_call>", "<|", "|>", "<||>", "  if x:\n\treturn  1", "https://a.b/c?d=e&f", "a_b__c"],
]


def odd_texts(count):
    random_ = random.Random(7)
    pieces = [*ODD, "Hello", " world", "  ", "\n", ".", "...", "?!", "-", "--", '"']
    blocks = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x400, 0x52F), (0x4E00, 0x4FFF), (0x1F300, 0x1F6FF), (0x0, 0x1F)]

    def character():
        return chr(random_.randint(*random_.choice(blocks)))

    for number in range(count):
        length = random_.randint(1, 12)
        yield "".join(random_.choice(pieces) if number % 2 else character() for _ in range(length))


@pytest.mark.parametrize("without", [(), ("tokenizer.json",)], ids=["tokenizer.json", "vocab.json and merges.txt"])
def test_odd_texts_have_the_same_ids(without, tmp_path):
    pack, tokenizer = pack_of(tmp_path, without=without)
    texts = [*ODD, *odd_texts(2000 if FULL else 150)]
    wrong = []
    for text in texts:
        # one line end is dropped from standard input, of either kind
        seen, ids = printed(pack, stdin=text + ("\r\n" if text.endswith("\r") else "\n"))
        assert seen == text
        if ids != tokenizer(text)["input_ids"]:
            wrong.append((text, ids, tokenizer(text)["input_ids"]))
    assert not wrong

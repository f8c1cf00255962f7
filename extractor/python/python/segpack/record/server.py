"""Records what a server generates greedily, and the log-probabilities of its best tokens, as a trace for
`segpack validate PACK --reference`.

  record_server.py OUT.safetensors --server vllm --url http://127.0.0.1:8000/v1 --checkpoint CHECKPOINT \\
      --dtype bfloat16 --chat "Name three rivers." --max-new-tokens 64
  record_server.py OUT.safetensors --server llama.cpp --url http://127.0.0.1:8080 --checkpoint CHECKPOINT --dtype q8_0 …

--server openai is for any other server with OpenAI's interface, such as DashScope
(--api chat --url https://dashscope-intl.aliyuncs.com/compatible-mode/v1 --api-key-env DASHSCOPE_API_KEY). The key is taken from an
environment variable, and is never printed or written.
"""

import argparse
import os
import sys
from pathlib import Path

from . import _interfaces as interfaces
from . import _prompts as prompt_input
from . import _server_trace as server_trace
from . import _tokens as tokens
from . import _trace_file as trace_file
from ._server_client import Client
from ._trace_file import Failure

# How they write tokens that are no UTF-8. Of one that is not known, all ways are.
LOSSY = {"openai": ("replace", "ignore"), "vllm": ("replace",), "llama-cpp-python": ("ignore",)}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="OUT.safetensors; OUT.json is written beside it")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="default %(default)s")
    parser.add_argument(
        "--server",
        choices=["openai", "vllm", "sglang", "llama.cpp", "llama-cpp-python"],
        default="openai",
        help="what is asked, and how: vllm, sglang and llama.cpp tell token ids, the others words (default openai)",
    )
    parser.add_argument("--api", choices=["completions", "chat"], default="completions", help="of OpenAI's interfaces")
    parser.add_argument("--model", help="its name there (default: the only one that it serves)")
    parser.add_argument("--api-key-env", metavar="NAME", default="OPENAI_API_KEY", help="default %(default)s")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="the checkpoint that the served model is or was made from: its tokenizer is used, its digests are recorded",
    )
    parser.add_argument(
        "--dtype",
        required=True,
        help="what the server computes in: float32 (weights, and keys and values too), bfloat16, float16, q8_0, fp8 …; "
        "`segpack validate` judges float32, and the others with --tolerance",
    )
    prompt_input.add_arguments(parser)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--logprobs", type=int, help="best tokens per step (default 5; 10 of vllm, sglang, llama.cpp)")
    parser.add_argument("--prompt-logprobs", action="store_true", help="also of the prompt's tokens, where a server tells")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="of one answer (default 600)")
    parser.add_argument("--retries", type=int, default=3, help="after HTTP 429 and 503 (default 3)")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    if args.logprobs is None:
        args.logprobs = 10 if args.server in ("vllm", "sglang", "llama.cpp") else 5
    if args.max_new_tokens < 1 or args.logprobs < 0 or args.retries < 0 or not args.timeout > 0:
        parser.error("--max-new-tokens must be at least 1, --logprobs and --retries 0, --timeout more than 0")
    args.interface = args.server if args.server in ("sglang", "llama.cpp") else args.api
    if args.prompt_logprobs and (args.interface in ("chat", "llama.cpp") or not args.logprobs):
        parser.error("--prompt-logprobs needs --logprobs, and the completions interface or sglang")
    if args.prompt_logprobs and args.server == "llama-cpp-python":
        parser.error("llama-cpp-python tells the wrong rows for a prompt's tokens; record without --prompt-logprobs")
    if args.api_key_env not in os.environ and args.api_key_env != "OPENAI_API_KEY":
        parser.error(f"the environment variable {args.api_key_env} is not set")
    return args


def prepare(args):
    """Prompts with ids, and what finds the tokens behind words."""
    prompts = prompt_input.read(args)
    for prompt in prompts:
        if "chat" in prompt:
            prompt["messages"] = prompt_input.messages_of(prompt, args.system)
    by_ids = args.server in ("vllm", "sglang", "llama.cpp")
    if not args.checkpoint:
        if any("ids" not in prompt for prompt in prompts):
            raise Failure("--text and --chat need --checkpoint, whose tokenizer makes tokens of them", status=2)
        return prompts, tokens.OnlyIds()
    tokenizer = prompt_input.tokenize(prompts, args.checkpoint, args.system)
    if by_ids:
        return prompts, tokens.OnlyIds()
    tokenizer = tokenizer or prompt_input.load_tokenizer(args.checkpoint)
    if args.server == "llama-cpp-python":
        for prompt in prompts:  # it takes no ids
            prompt.setdefault("rendered", tokenizer.decode(prompt["ids"]))
            if tokenizer(prompt["rendered"], add_special_tokens=False)["input_ids"] != prompt["ids"]:
                raise Failure("llama-cpp-python takes text only, and these ids are not what a text becomes")
    return prompts, tokens.Vocabulary(tokenizer, LOSSY[args.server])


def choose_model(args, client):
    if args.model or args.interface in ("sglang", "llama.cpp"):
        return args.model
    served = client.models()
    if len(served) != 1:
        raise Failure(f"give --model; {client.url} serves {', '.join(served) or 'no model that it would name'}", status=2)
    return served[0]


def record(args, client, prompts, vocabulary):
    interface = interfaces.INTERFACES[args.interface](args, vocabulary)
    for number, prompt in enumerate(prompts):
        try:
            try:
                body = client.post(interface.path(client), interface.ask(prompt))
                answer = interface.read(body, prompt)
            except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
                raise Failure(f"the server's answer is not what this interface's documentation says ({error!r})") from error
            interfaces.check(answer, prompt, args)
        except Failure as failure:
            raise client.failure(f"prompt {number}: {failure}", failure.status) from None
        print(f"prompt {number}: {len(prompt['ids'])} tokens, {len(answer.ids)} more", file=sys.stderr)
        yield answer


def main():
    args = arguments()
    out = trace_file.output_path(args.out, args.overwrite)
    prompts, vocabulary = prepare(args)
    client = Client(args.url, args.api_key_env, args.timeout, args.retries)
    args.model = choose_model(args, client)
    answers = list(record(args, client, prompts, vocabulary))
    settings = {
        "dtype": args.dtype,
        "server": args.server,
        "interface": args.interface,
        "software": client.software,
        "model": args.model,
        "max_new_tokens": args.max_new_tokens,
        "top": args.logprobs,
    }
    for prompt in prompts:
        prompt.pop("messages", None)
    server_trace.write(out, prompts, answers, settings, args.checkpoint)
    print(f"{out}: {len(prompts)} prompts", file=sys.stderr)


if __name__ == "__main__":
    trace_file.run(main)

"""Records what vLLM's offline class generates greedily, and the log-probabilities of its best tokens, as a trace for
`segpack validate PACK --reference`. Run on vLLM 0.32.0's build for CPUs, in float32.

  record_vllm.py CHECKPOINT OUT.safetensors --chat "Name three rivers." --dtype bfloat16 --tensor-parallel-size 2
"""

import argparse
from pathlib import Path

from . import _interfaces as interfaces
from . import _prompts as prompt_input
from . import _server_trace as server_trace
from . import _trace_file as trace_file
from ._trace_file import Failure


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a folder that vLLM loads")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        dest="source",
        help="the checkpoint that CHECKPOINT was made from: its digests are recorded (default: those of CHECKPOINT)",
    )
    parser.add_argument("out", help="OUT.safetensors; OUT.json is written beside it")
    prompt_input.add_arguments(parser)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--logprobs", type=int, default=10, help="best tokens per step (vLLM allows 20 by default)")
    parser.add_argument("--prompt-logprobs", action="store_true", help="also of the prompt's tokens")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    if args.max_new_tokens < 1 or args.logprobs < 1:
        parser.error("--max-new-tokens and --logprobs must be at least 1")
    return args


def pairs(row):
    """Of id → Logprob."""
    return [(int(one), float(entry.logprob)) for one, entry in row.items()]


def read(output):
    """A RequestOutput as an answer."""
    (made,) = output.outputs
    after_prompt = [pairs(row) for row in (output.prompt_logprobs or [None])[1:]]
    notes = {"finish_reason": made.finish_reason} if made.finish_reason else {}
    steps = [pairs(row) for row in made.logprobs or []]
    return interfaces.Answer(list(made.token_ids), steps, after_prompt, list(output.prompt_token_ids), None, notes)


def main():
    args = arguments()
    out = trace_file.output_path(args.out, args.overwrite)
    prompts = prompt_input.read(args)
    prompt_input.tokenize(prompts, args.checkpoint, args.system)
    try:
        import vllm
    except ImportError as error:
        raise Failure("vLLM is not installed: https://docs.vllm.ai has the ways to install it", status=1) from error
    limits = {"max_model_len": args.max_model_len} if args.max_model_len else {}
    llm = vllm.LLM(
        model=str(args.checkpoint),
        dtype=args.dtype,
        tensor_parallel_size=args.tensor_parallel_size,
        seed=0,
        enforce_eager=True,
        # what was computed for one prompt is not taken for another: prompt log-probabilities need all of it
        enable_prefix_caching=False,
        **limits,
    )
    sampling = vllm.SamplingParams(
        temperature=0,
        max_tokens=args.max_new_tokens,
        logprobs=args.logprobs,
        prompt_logprobs=args.logprobs if args.prompt_logprobs else None,
        detokenize=False,
    )
    outputs = llm.generate([{"prompt_token_ids": prompt["ids"]} for prompt in prompts], sampling)
    answers = [read(output) for output in outputs]
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        try:
            interfaces.check(answer, prompt, args)
        except Failure as failure:
            raise Failure(f"prompt {number}: {failure}", failure.status) from None
    settings = {
        "dtype": args.dtype,
        "server": "vllm offline",
        "software": f"vllm {vllm.__version__}",
        "max_new_tokens": args.max_new_tokens,
        "top": args.logprobs,
    }
    server_trace.write(out, prompts, answers, settings, args.source or args.checkpoint)


if __name__ == "__main__":
    trace_file.run(main)

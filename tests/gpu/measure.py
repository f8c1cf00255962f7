#!/usr/bin/env python3
"""Compares `segpack bench --device cuda --json` with what this GPU can do, and with the official class on it.

  measure.py BENCH.json CHECKPOINT

Limits are measured here with torch: the rate of copies (bytes read and written), and of a large bf16 matrix product.
A roofline is max(bytes / copy rate, operations / matrix rate).
"""

import json
import pathlib
import sys
import time

import torch


def best_of(times, work):
    """Seconds of the fastest run, the device waited for."""
    seconds = []
    for _ in range(times):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def limits():
    size = 2 << 30
    a, b = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    copy = 2 * size / best_of(10, lambda: b.copy_(a))
    del a, b
    n = 8192
    x, y = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return copy, 2 * n**3 / best_of(10, lambda: x @ y)


def official(checkpoint, prompts, steps):
    """Tokens per second of the official class: decoding after one token, and prefilling."""
    from transformers import AutoConfig, Qwen3MoeForCausalLM

    config = AutoConfig.from_pretrained(checkpoint)
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen3MoeForCausalLM(config).eval()
    ids = lambda n: torch.randint(0, config.vocab_size, (1, n), device="cuda")
    rates = {"prefill": {}}
    with torch.inference_mode():
        for n in prompts:
            x = ids(n)
            work = lambda: model(x, logits_to_keep=1)
            best_of(2, work)
            rates["prefill"][n] = n / best_of(3, work)
        def decode():
            out = model(ids(1), use_cache=True)
            for _ in range(steps):
                token = out.logits[:, -1:].argmax(-1)
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
        best_of(1, decode)
        rates["decode"] = steps / best_of(3, decode)
    return rates


def main():
    bench = json.loads(pathlib.Path(sys.argv[1]).read_text())
    copy, peak = limits()
    print(f"{bench['device']}: copies {copy / 1e9:.0f} GB/s, bf16 products {peak / 1e12:.0f} TFLOP/s (torch)")
    resident = bench["resident"]
    prompts = [p["tokens"] for p in resident["prefill"]]
    try:
        other = official(sys.argv[2], prompts, 32)
    except Exception as error:  # told, and failed for
        print(f"the official class cannot be measured: {error}")
        other = None
    wanted = {"decode": 0.5, 512: 0.5, 2048: 0.3}
    failed = other is None

    def line(what, rate, limit, theirs):
        nonlocal failed
        share, least = rate / limit, wanted.get(what)
        good = (least is None or share >= least) and (theirs is None or rate > theirs)
        failed |= not good
        beside = "" if theirs is None else f", official class {theirs:.1f}"
        print(f"{what}: {rate:.1f} tokens/s, {100 * share:.1f} % of the roofline{beside}{'' if good else '  NOT REACHED'}")

    decode_limit = 1 / max(bench["bytes_per_token"] / copy, bench["operations_per_token"] / peak)
    line("decode", resident["greedy_tokens_per_second"], decode_limit, other and other["decode"])
    print(f"decode with logits to the host: {resident['decode_tokens_per_second']:.1f} tokens/s")
    for p in resident["prefill"]:
        n = p["tokens"]
        limit = n / max(bench["weights"] / copy, n * bench["operations_per_token"] / peak)
        line(n, p["tokens_per_second"], limit, other and other["prefill"][n])
    for d in bench["on_demand"]:
        print(
            f"in {d['device_memory'] / 1e9:.1f} GB: {d['decode_tokens_per_second']:.1f} tokens/s, "
            f"{d['bytes_copied_per_token'] / 1e6:.1f} MB over PCIe a token, {100 * d['hit_rate']:.1f} % hits"
        )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

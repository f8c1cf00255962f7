#!/usr/bin/env python3
"""Compares `segpack bench --device cuda --json` with what this GPU can do, and with the official class on it.

  measure.py BENCH.json CHECKPOINT [--device cpu]

Limits are measured here with torch: the rate of copies (bytes read and written), and of a large bf16 matrix product.
A roofline is max(bytes / copy rate, operations / matrix rate). Of a token the bytes are the weights that it reads; of a
prompt they are all weights, and the operations those of the products with weights: attention's own are left out, which makes
the roofline higher and the share lower.

--device cpu tries this script without a GPU, in small: its figures mean nothing and are not judged.
"""

import argparse
import json
import pathlib
import sys
import time

import torch

# shares of the roofline that are to be reached
LEAST = {"decode": 0.5, 512: 0.5, 2048: 0.3}
# tokens that the official class generates
STEPS = 32


class Machine:
    """The device that is measured on."""

    def __init__(self, device):
        self.device = device
        self.small = device == "cpu"

    def wait(self):
        if self.device != "cpu":
            torch.cuda.synchronize()

    def best_of(self, times, work):
        """Seconds of the fastest run, the device waited for."""
        seconds = []
        for _ in range(times):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    def limits(self):
        """Bytes per second of a copy, read and written; operations per second of a product."""
        size, n = (64 << 20, 512) if self.small else (2 << 30, 8192)
        a, b = (torch.ones(size, dtype=torch.uint8, device=self.device) for _ in range(2))
        copy = 2 * size / self.best_of(10, lambda: b.copy_(a))
        del a, b
        x, y = (torch.randn(n, n, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return copy, 2 * n**3 / self.best_of(10, lambda: x @ y)

    def official(self, checkpoint, prompts):
        """Tokens per second of the official class, bf16, its defaults: decoding from a short context, and prefilling."""
        from transformers import AutoConfig, Qwen3MoeForCausalLM

        config = AutoConfig.from_pretrained(checkpoint)
        torch.manual_seed(1)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(self.device):
            model = Qwen3MoeForCausalLM(config).eval()
        for name, parameter in model.named_parameters():
            if parameter.dtype != torch.bfloat16 or not parameter.isfinite().all():
                raise ValueError(f"{name} is {parameter.dtype}, or not finite")
        kinds = [getattr(config, f"_{kind}_implementation", "?") for kind in ("attn", "experts")]
        print(f"official class: attention {kinds[0]}, experts {kinds[1]}")
        ids = lambda n: torch.randint(0, config.vocab_size, (1, n), device=self.device)
        rates = {}
        with torch.inference_mode():
            for n in prompts:
                x = ids(n)
                work = lambda: model(x, logits_to_keep=1)
                self.best_of(2, work)
                rates[n] = n / self.best_of(3, work)

            def decode():
                out = model(ids(1), use_cache=True)
                for _ in range(STEPS):
                    token = out.logits[:, -1:].argmax(-1)
                    out = model(token, past_key_values=out.past_key_values, use_cache=True)

            self.best_of(1, decode)
            rates["decode"] = (STEPS + 1) / self.best_of(3, decode)
        return rates


class Verdict:
    """Prints figures beside what they are compared with, and judges them if it is to."""

    def __init__(self, theirs, judged):
        self.theirs = theirs
        self.judged = judged
        self.failed = theirs is None

    def line(self, key, rate, limit):
        share, least = rate / limit, LEAST.get(key)
        theirs = self.theirs and self.theirs[key]
        good = not self.judged or ((least is None or share >= least) and (theirs is None or rate > theirs))
        self.failed |= not good
        name = key if key == "decode" else f"prompt of {key}"
        wanted = "" if least is None else f" (wanted {100 * least:.0f} %)"
        beside = "" if theirs is None else f", official class {theirs:.1f}: {rate / theirs:.2f} times as fast"
        print(f"{name}: {rate:.1f} tokens/s, {100 * share:.1f} % of the roofline{wanted}{beside}{'' if good else '  NOT REACHED'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=pathlib.Path)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments = parser.parse_args()
    bench = json.loads(arguments.bench.read_text())
    machine = Machine(arguments.device)
    copy, peak = machine.limits()
    print(f"{bench['device']}: copies {copy / 1e9:.0f} GB/s, bf16 products {peak / 1e12:.3g} TFLOP/s (torch, {machine.device})")
    resident = bench["resident"]
    print(f"{bench['weights'] / 1e9:.2f} GB of weights, loaded in {resident['load_seconds']:.1f} s; "
          f"{bench['bytes_per_token'] / 1e9:.3f} GB and {bench['operations_per_token'] / 1e9:.3f} GFLOP a token")
    try:
        theirs = machine.official(arguments.checkpoint, [p["tokens"] for p in resident["prefill"]])
    except Exception as error:  # told, and failed for
        print(f"the official class cannot be measured: {type(error).__name__}: {error}")
        theirs = None
    verdict = Verdict(theirs, judged=not machine.small)
    roofline = lambda bytes, operations: 1 / max(bytes / copy, operations / peak)
    verdict.line(
        "decode",
        resident["greedy_tokens_per_second"],
        roofline(bench["bytes_per_token"], bench["operations_per_token"]),
    )
    print(f"decode with logits to the host: {resident['decode_tokens_per_second']:.1f} tokens/s")
    for p in resident["prefill"]:
        n = p["tokens"]
        verdict.line(n, p["tokens_per_second"], n * roofline(bench["weights"], n * bench["operations_per_token"]))
    for d in bench["on_demand"]:
        print(
            f"in {d['device_memory'] / 1e9:.2f} GB of the GPU ({d['expert_slots']} experts): "
            f"{d['decode_tokens_per_second']:.1f} tokens/s, {d['bytes_copied_per_token'] / 1e6:.1f} MB over PCIe and "
            f"{d['bytes_read_per_token'] / 1e6:.1f} MB from the pack a token, {100 * d['hit_rate']:.1f} % hits"
        )
    if machine.small:
        print("tried on the CPU: no figure here says anything of a GPU, and none was judged")
    sys.exit(1 if verdict.failed else 0)


if __name__ == "__main__":
    main()

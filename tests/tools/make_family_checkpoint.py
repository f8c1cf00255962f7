#!/usr/bin/env python3
"""Makes a tiny checkpoint of random numbers of any family that transformers has a class of.

  make_family_checkpoint.py CONFIG.json OUT [--seed N]

The class is the first of `architectures`; its own save_pretrained writes the tensors, and the configuration is copied as it
is. Numbers are large enough that every part of the model has a say in the logits, and routers are scaled up: of routers
near zero all experts are nearly equal, and ties hide errors.
"""

import argparse
import json
import os
import shutil
import tempfile
import zlib
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

KEPT_IN_F32 = ("e_score_correction_bias", "gate.wg.weight")
ROUTERS = ("mlp.gate.weight", "gate.wg.weight", "router.weight", "router.layer.weight")


def filled(name, tensor, seed, torch):
    """Numbers that depend on the name and the seed alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    numbers = torch.randn(tensor.shape, generator=generator)
    if "norm" in name and name.endswith("weight"):
        return 1 + numbers / 4
    if name.endswith("e_score_correction_bias"):
        return numbers / 4
    if name.endswith(("bias", "sinks")):
        return numbers / 2
    if "embed_tokens" in name:
        return numbers
    # the last side but one of stacked experts that are not transposed is rows, as in a matrix
    spread = numbers * tensor.shape[-1] ** -0.5
    return spread * 4 if name.endswith(ROUTERS) else spread


def model_of(config, torch):
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        read = transformers.AutoConfig.from_pretrained(folder)
    read._attn_implementation = "eager"
    return getattr(transformers, config["architectures"][0])(read)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    import torch

    model = model_of(json.loads(args.config.read_text()), torch)
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in model.state_dict()}
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *buffers.items()]:
            tensor.copy_(filled(name, tensor, args.seed, torch))
        kept = {n: t.clone() for n, t in model.state_dict().items() if n.endswith(KEPT_IN_F32)}
        model.to(torch.bfloat16)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in kept:
                tensor.data = kept[name]
    args.out.mkdir(parents=True)
    model.save_pretrained(args.out)
    shutil.copyfile(args.config, args.out / "config.json")
    (args.out / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes a checkpoint of the shape of Qwen3-Omni's text model (as plain Qwen3-MoE) with random weights, for measurements.

  make_model.py OUT --layers N [--small]

A layer takes 1.24 GB, embedding and head 1.25 GB together. --small is for trying the scripts.
"""

import argparse
import json
import pathlib
import struct

import torch

FULL = dict(hidden=2048, heads=32, kv_heads=4, head_dim=128, experts=128, best=8, inner=768, vocab=151936)
SMALL = dict(hidden=128, heads=4, kv_heads=2, head_dim=64, experts=16, best=4, inner=64, vocab=1024)


def config(size, layers):
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "eos_token_id": size["vocab"] - 1,
        "head_dim": size["head_dim"],
        "hidden_act": "silu",
        "hidden_size": size["hidden"],
        "intermediate_size": size["inner"],
        "max_position_embeddings": 32768,
        "mlp_only_layers": [],
        "moe_intermediate_size": size["inner"],
        "norm_topk_prob": True,
        "num_attention_heads": size["heads"],
        "num_experts": size["experts"],
        "num_experts_per_tok": size["best"],
        "num_hidden_layers": layers,
        "num_key_value_heads": size["kv_heads"],
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": size["vocab"],
    }


def layer_tensors(size, layer):
    """Names and shapes of one layer."""
    h, q, k = size["hidden"], size["heads"] * size["head_dim"], size["kv_heads"] * size["head_dim"]
    base = f"model.layers.{layer}"
    yield f"{base}.input_layernorm.weight", (h,)
    yield f"{base}.post_attention_layernorm.weight", (h,)
    yield f"{base}.self_attn.q_norm.weight", (size["head_dim"],)
    yield f"{base}.self_attn.k_norm.weight", (size["head_dim"],)
    yield f"{base}.self_attn.q_proj.weight", (q, h)
    yield f"{base}.self_attn.k_proj.weight", (k, h)
    yield f"{base}.self_attn.v_proj.weight", (k, h)
    yield f"{base}.self_attn.o_proj.weight", (h, q)
    yield f"{base}.mlp.gate.weight", (size["experts"], h)
    for expert in range(size["experts"]):
        for name, shape in (("gate_proj", (size["inner"], h)), ("up_proj", (size["inner"], h)), ("down_proj", (h, size["inner"]))):
            yield f"{base}.mlp.experts.{expert}.{name}.weight", shape


def values(name, shape, device):
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape, device=device) * 0.02).to(torch.bfloat16).cpu()


def write_shard(path, tensors, device):
    header, at = {}, 0
    for name, shape in tensors:
        length = 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            file.write(values(name, shape, device).view(torch.uint8).numpy())
    return at


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    size = SMALL if arguments.small else FULL
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    arguments.out.mkdir(parents=True)
    (arguments.out / "config.json").write_text(json.dumps(config(size, arguments.layers), indent=2))
    (arguments.out / "generation_config.json").write_text(json.dumps({"eos_token_id": size["vocab"] - 1}))
    table = (size["vocab"], size["hidden"])
    outside = [("model.embed_tokens.weight", table), ("model.norm.weight", (size["hidden"],)), ("lm_head.weight", table)]
    shards = [outside] + [list(layer_tensors(size, layer)) for layer in range(arguments.layers)]
    index, total = {}, 0
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        total += write_shard(arguments.out / name, tensors, device)
        index.update({tensor: name for tensor, _ in tensors})
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (arguments.out / "model.safetensors.index.json").write_text(json.dumps(document))
    print(f"{total / 1e9:.2f} GB in {len(shards)} shards")


if __name__ == "__main__":
    main()

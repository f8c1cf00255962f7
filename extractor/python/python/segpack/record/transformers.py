"""Records what the official classes of transformers compute, as a trace for `segpack validate PACK --reference`.

  record_transformers.py CHECKPOINT OUT.safetensors --chat "Name three rivers." --dtype bfloat16 --device-map auto \\
      --max-new-tokens 64 --level router

Qwen3-Omni-MoE: the text thinker (Qwen3OmniMoeThinkerForConditionalGeneration); talker and code2wav are never loaded.
Qwen3-MoE: Qwen3MoeForCausalLM. transformers 4.57 or 5.1 and later; nothing is downloaded. Other families that segpack
runs, Qwen3-VL-MoE with text alone: transformers 5.23, whose classes they were written after.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import resource
import struct
import sys
from pathlib import Path

from . import _prompts as prompt_input
from . import _trace_file as trace_file
from ._trace_file import Failure

CLASSES = {
    "qwen3_omni_moe": ("Qwen3OmniMoeThinkerForConditionalGeneration", "thinker."),
    "qwen3_moe": ("Qwen3MoeForCausalLM", ""),
    "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration", ""),
    "qwen2_moe": ("Qwen2MoeForCausalLM", ""),
    "mixtral": ("MixtralForCausalLM", ""),
    "olmoe": ("OlmoeForCausalLM", ""),
    "glm4_moe": ("Glm4MoeForCausalLM", ""),
    "dots1": ("Dots1ForCausalLM", ""),
    "hunyuan_v1_moe": ("HunYuanMoEV1ForCausalLM", ""),
    "ernie4_5_moe": ("Ernie4_5_MoeForCausalLM", ""),
    "granitemoe": ("GraniteMoeForCausalLM", ""),
    "gpt_oss": ("GptOssForCausalLM", ""),
}
# what routes itself as Qwen3-MoE does: the greatest probabilities, and the logits of a plain product
PLAIN_ROUTERS = ("qwen3_omni_moe", "qwen3_moe")
SIGMOID_ROUTERS = ("glm4_moe", "dots1")
# what a family calls the experts that each token visits
PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_k")
NOT_LOADED = ("talker.", "code2wav.")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
STORED_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1}
FACTS = """vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim num_experts
    num_experts_per_tok moe_intermediate_size intermediate_size norm_topk_prob mlp_only_layers decoder_sparse_step
    attention_bias rms_norm_eps""".split()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the checkpoint's folder")
    parser.add_argument("out", help="OUT.safetensors; OUT.json is written beside it")
    prompt_input.add_arguments(parser)
    parser.add_argument("--max-new-tokens", type=int, default=32, help="greedy tokens after each prompt (default 32)")
    parser.add_argument("--stop-id", type=int, help="end at this token; without it all tokens are generated")
    parser.add_argument("--top", type=int, default=10, help="best logits kept of every generated token (default 10)")
    parser.add_argument("--dtype", choices=list(DTYPE_BYTES), default="float32")
    parser.add_argument(
        "--level",
        choices=["logits", "router", "full"],
        default="full",
        help="logits: tokens and logits; router: also the routers' logits, choices and the final norm; full: also the "
        "hidden states of every layer (default)",
    )
    parser.add_argument("--device-map", metavar="MAP", help="auto, cpu, cuda, cuda:1 … (auto needs accelerate)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1, which is repeatable)")
    parser.add_argument("--no-digests", action="store_true", help="do not hash the checkpoint's files")
    parser.add_argument("--dry-run", action="store_true", help="say how much memory it takes, and end")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    if args.max_new_tokens < 0 or args.top < 2 or args.threads < 1:
        parser.error("--max-new-tokens must be at least 0, --top 2, --threads 1")
    return args


# ---- what it will take -----------------------------------------------------------------------------------------------


def read_config(folder):
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(f"cannot read {folder / 'config.json'}: {error}", status=1) from error
    kind = config.get("model_type")
    if kind not in CLASSES:
        raise Failure(f"{folder}: model_type is {kind!r}; wanted one of {', '.join(CLASSES)}")
    return config


def text_config(config):
    if config["model_type"] == "qwen3_omni_moe":
        return config["thinker_config"]["text_config"]
    return config.get("text_config", config)


def head_width(text):
    return text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]


def chosen_experts(config):
    """How many experts each token visits; a list per layer has one number throughout."""
    given = next(getattr(config, key) for key in PER_TOKEN if getattr(config, key, None) is not None)
    return given if isinstance(given, int) else given[0]


def shard_header(path):
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > 100 << 20:
                raise ValueError(f"its header would be {length} bytes")
            header = json.loads(file.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise Failure(f"cannot read the header of {path}: {error}") from error
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def shards(folder):
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return sorted({folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    return [folder / "model.safetensors"]


def elements(entry):
    count = 1
    for side in entry["shape"]:
        count *= side
    return count


def memory_needed(folder, config, dtype, positions):
    """Bytes by part, from the shards' headers. Weights are converted to the dtype while they are loaded."""
    prefix = CLASSES[config["model_type"]][1]
    size, text = DTYPE_BYTES[dtype], text_config(config)
    weights = expert = stored = 0
    for path in shards(folder):
        for name, entry in shard_header(path).items():
            if name.startswith(prefix):
                weights += elements(entry) * size
                stored += elements(entry) * STORED_BYTES.get(entry["dtype"], size)
                if ".mlp.experts." in name:
                    expert += elements(entry) * size
    if not weights:
        raise Failure(f"{folder}: has no tensor whose name begins with {prefix!r}")
    heads = text["num_attention_heads"]
    cache = 2 * text["num_hidden_layers"] * text.get("num_key_value_heads", heads) * head_width(text) * size
    return {
        "weights": weights,
        # transformers 5 stacks the experts of a layer from single tensors
        "while loading": expert // max(text["num_hidden_layers"], 1),
        "keys and values": cache * positions,
        # once as computed, once as float32 for the choice of tokens
        "logits": text["vocab_size"] * positions * (size + 4),
        "stored": stored,
    }


def gib(count):
    return f"{count / (1 << 30):.2f} GiB"


def tell_memory(needed, dtype):
    total = sum(count for part, count in needed.items() if part != "stored")
    parts = ", ".join(f"{part} {gib(count)}" for part, count in needed.items() if part != "stored")
    print(f"memory needed in {dtype}: {gib(total)} ({parts}), and about 1 GiB for Python and torch", file=sys.stderr)
    print(f"{gib(needed['stored'])} of files are mapped while loading; the system takes those pages back", file=sys.stderr)
    try:
        available = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text()).group(1)) << 10
        print(f"memory available: {gib(available)}", file=sys.stderr)
    except (OSError, AttributeError):
        pass
    return total


def tell_peak(torch):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak <<= 0 if sys.platform == "darwin" else 10
    told = {"resident": peak}
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        told[f"cuda:{device}"] = torch.cuda.max_memory_allocated(device)
    print("peak memory: " + ", ".join(f"{name} {gib(count)}" for name, count in told.items()), file=sys.stderr)
    return told


# ---- the model -------------------------------------------------------------------------------------------------------


def check_version():
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError as error:
        raise Failure("transformers is not installed: pip install -r requirements-transformers.txt", status=1) from error
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) == (5, 0):
        raise Failure(
            f"transformers {version} is refused: the release candidates of 5.0 leave every expert of this model at random "
            "numbers, and 5.0.0 cannot build the full class (the talker's config has no use_sliding_window). Install 4.57 "
            "or 5.1 and later",
            status=1,
        )
    if (major, minor) < (4, 57):
        raise Failure(f"transformers {version} is too old: Qwen3-Omni-MoE works from 4.57 on, and in 5.1 and later", 1)
    return major


def load_model(args, config, major, torch):
    import transformers

    # what is missing or left over is said once, by check_loaded
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    name, _ = CLASSES[config["model_type"]]
    dtype = getattr(torch, args.dtype)
    settings = {"dtype": dtype, "attn_implementation": "eager", "local_files_only": True}
    is_fp8 = (config.get("quantization_config") or {}).get("quant_method") == "fp8"
    if is_fp8:
        # dequantised weights have the checkpoint's dtype whatever is asked for: all is turned to the other one below
        settings["dtype"] = torch.bfloat16
        settings["quantization_config"] = transformers.FineGrainedFP8Config(
            dequantize=True, weight_block_size=config["quantization_config"]["weight_block_size"]
        )
    if major >= 5:
        settings["experts_implementation"] = "eager"
    if args.device_map:
        settings["device_map"] = args.device_map
    try:
        loaded = getattr(transformers, name).from_pretrained(args.checkpoint, output_loading_info=True, **settings)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        told = " ".join(str(error).split())
        raise Failure(f"{args.checkpoint}: {name} does not load: {told[:500]}") from error
    model, info = loaded
    check_loaded(args.checkpoint, info)
    return (model.to(dtype) if is_fp8 else model).eval()


def check_loaded(folder, info):
    """Whatever is missing was made up from random numbers; whatever is left over says that this is another model."""
    unexpected = [key for key in info["unexpected_keys"] if not key.startswith(NOT_LOADED)]
    for what, keys in (
        ("missing from the checkpoint", info["missing_keys"]),
        ("of another shape", info["mismatched_keys"]),
        ("not expected by the class", unexpected),
    ):
        if keys:
            names = ", ".join(sorted(key if isinstance(key, str) else str(key[0]) for key in keys)[:5])
            raise Failure(f"{folder}: {len(keys)} parameters are {what}: {names}{' …' if len(keys) > 5 else ''}")


def text_model(model):
    """The decoder: its place in the tree depends on the version, its parts do not."""
    parts = ("embed_tokens", "layers", "norm", "rotary_emb")
    found = [m for _, m in model.named_modules() if all(hasattr(m, part) for part in parts)]
    if len(found) != 1:
        raise Failure(f"{len(found)} modules look like the text model; this version of transformers is not known")
    return found[0]


def expert_block(layer):
    """What follows attention in a layer; one family calls it otherwise."""
    return layer.mlp if hasattr(layer, "mlp") else layer.block_sparse_moe


def router_of(block):
    """The module that chooses experts; a dense block has none."""
    return getattr(block, "gate", None) or getattr(block, "router", None)


class Recorder:
    """Keeps what passes through the layers, by hooks on modules that every version has."""

    def __init__(self, model, level, torch, family="qwen3_moe"):
        self.torch, self.kept, self.is_on, self.family = torch, {}, False, family
        self.text = text_model(model)
        self.layers = list(self.text.layers)
        if level == "full":
            self.text.embed_tokens.register_forward_hook(self.output("embed"))
        if level != "logits":
            self.text.norm.register_forward_hook(self.output("norm"))
        self.text.rotary_emb.register_forward_pre_hook(self.positions, with_kwargs=True)
        for number, layer in enumerate(self.layers):
            if level == "full":
                layer.register_forward_hook(self.output(f"layer.{number}.hidden"))
                layer.self_attn.register_forward_hook(self.output(f"layer.{number}.attn_out"))
                expert_block(layer).register_forward_hook(self.output(f"layer.{number}.mlp_out"))
            block = expert_block(layer)
            if router_of(block) is not None:
                router_of(block).register_forward_hook(self.router(f"layer.{number}.router_logits"))
                # a list of experts has no forward pass of its own; then the choice is computed from the logits
                if not isinstance(block.experts, torch.nn.ModuleList):
                    block.experts.register_forward_pre_hook(self.choice(f"layer.{number}"), with_kwargs=True)

    def keep(self, name, rows):
        if self.is_on:
            self.kept.setdefault(name, []).append(rows.detach().reshape(-1, rows.shape[-1]).cpu())

    def output(self, name):
        return lambda module, inputs, output: self.keep(name, output[0] if isinstance(output, tuple) else output)

    def router(self, name):
        # what the router of Qwen3-MoE returns differs between versions; its logits are this product in all of them
        def hook(module, inputs, output):
            if self.family not in PLAIN_ROUTERS:
                self.keep(name, output[0])
                return
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            self.keep(name, self.torch.nn.functional.linear(rows, module.weight))

        return hook

    def choice(self, layer):
        def hook(module, args, kwargs):
            given = [value for value in (*args, *kwargs.values()) if self.torch.is_tensor(value)]
            ids = [value for value in given[1:] if not value.is_floating_point()]
            weights = [value for value in given[1:] if value.is_floating_point()]
            if len(ids) == 1 and len(weights) == 1 and weights[0].shape == ids[0].shape:
                self.keep(f"{layer}.topk_ids", ids[0].long())
                self.keep(f"{layer}.topk_weights", weights[0])

        return hook

    def positions(self, module, args, kwargs):
        if self.is_on:
            ids = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
            rows = ids.reshape(-1, ids.shape[-1]).expand(3, -1)
            self.kept.setdefault("position_ids", []).append(rows.detach().long().cpu())

    def take(self):
        along = lambda name: 1 if name == "position_ids" else 0  # noqa: E731
        taken = {name: self.torch.cat(parts, dim=along(name)) for name, parts in self.kept.items()}
        self.kept = {}
        return taken

    def add_choices(self, taken):
        """Probabilities, and, where no module was asked for it, which experts were chosen. Says who chose."""
        torch, config, source = self.torch, self.text.config, "official"
        is_plain = self.family in PLAIN_ROUTERS
        for number in range(len(self.layers)):
            logits = taken.get(f"layer.{number}.router_logits")
            if logits is None:
                continue
            is_sigmoid = self.family in SIGMOID_ROUTERS
            probabilities = logits.float().sigmoid() if is_sigmoid else torch.softmax(logits.float(), dim=-1)
            taken[f"layer.{number}.router_probs"] = probabilities
            if not is_plain:
                # biases and groups have their say in the choice: it is the official one, or none
                if f"layer.{number}.topk_ids" not in taken:
                    raise Failure(f"layer {number} does not say which experts it chooses")
                continue
            weights, ids = probabilities.topk(config.num_experts_per_tok, dim=-1)
            if f"layer.{number}.topk_ids" in taken:
                official = probabilities.gather(-1, taken[f"layer.{number}.topk_ids"])
                # by probability: which of two equal ones is chosen is nobody's rule
                if not torch.allclose(official, weights, rtol=1e-5, atol=1e-7):
                    raise Failure(f"layer {number} chooses experts by another rule than the greatest probabilities")
                continue
            source = "recomputed"
            if config.norm_topk_prob:
                weights = weights / weights.sum(dim=-1, keepdim=True)
            taken[f"layer.{number}.topk_ids"] = ids
            taken[f"layer.{number}.topk_weights"] = weights.to(logits.dtype)
        return source


# ---- recording -------------------------------------------------------------------------------------------------------

ROUTER_PARTS = ("router_logits", "router_probs", "topk_ids", "topk_weights", "norm", "position_ids")


def belongs(name, level):
    always = name in ("input_ids", "logits") or name.startswith("gen.")
    return always or level == "full" or (level == "router" and name.endswith(ROUTER_PARTS))


def record_prompt(model, recorder, ids, args, torch):
    """One pass over the prompt with everything kept, then greedy generation by the class's own loop."""
    given = torch.tensor([ids], device=recorder.text.embed_tokens.weight.device)
    mask = torch.ones_like(given)
    recorder.is_on = True
    output = model(input_ids=given, attention_mask=mask, use_cache=False)
    tensors = recorder.take()
    entry = {"router_source": recorder.add_choices(tensors)}
    tensors |= {"input_ids": given[0].cpu(), "logits": output.logits[0].cpu()}
    if args.max_new_tokens:
        made = model.generate(
            input_ids=given,
            attention_mask=mask,
            do_sample=False,
            num_beams=1,
            max_new_tokens=args.max_new_tokens,
            eos_token_id=args.stop_id,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        generated = made.sequences[0, len(ids) :].cpu()
        steps = recorder.take()
        recorder.add_choices(steps)
        logits = torch.stack([row[0].float().cpu() for row in made.logits])
        if not torch.equal(logits.argmax(dim=-1), generated):
            raise Failure("the class's generate() does not take the best token; the trace would not be greedy")
        best = logits.topk(min(args.top, logits.shape[-1]), dim=-1)
        tensors |= {"gen.ids": generated, "gen.top_ids": best.indices, "gen.top_logits": best.values}
        entry |= generation_notes(steps, len(ids), best.values, recorder)
        entry["generated"] = generated.tolist()
        for number in range(len(recorder.layers)):
            if f"layer.{number}.topk_ids" in steps:
                tensors[f"gen.layer.{number}.topk_ids"] = steps[f"layer.{number}.topk_ids"][len(ids) :]
    recorder.is_on = False
    return {name: t.contiguous() for name, t in tensors.items() if belongs(name, args.level)}, entry


def generation_notes(steps, tokens, best, recorder):
    gaps = [round(gap, 5) for gap in (best[:, 0] - best[:, 1]).tolist()]
    notes = {"gap": gaps, "min_gap": min(gaps)}
    chosen, margins = chosen_experts(recorder.text.config), []
    # where a bias has its say, the distance of logits is none of the choice
    by_logits = recorder.family not in SIGMOID_ROUTERS and recorder.family != "ernie4_5_moe"
    for name, logits in steps.items() if by_logits else ():
        if name.endswith("router_logits") and logits.shape[-1] > chosen:
            cut = logits.float().topk(chosen + 1, dim=-1).values
            margins.append((cut[:, -2] - cut[:, -1]).min().item())
    return notes | ({"min_router_margin": round(min(margins), 6)} if margins else {})


def record_all(model, prompts, args, torch, family):
    recorder = Recorder(model, args.level, torch, family)
    prompt_input.check_vocabulary(prompts, recorder.text.config.vocab_size)
    tensors, entries = {}, []
    with torch.no_grad():
        for number, prompt in enumerate(prompts):
            recorded, entry = record_prompt(model, recorder, prompt["ids"], args, torch)
            tensors |= {f"p{number:02d}.{name}": tensor for name, tensor in recorded.items()}
            entries.append({"prompt": number, **prompt_input.notes(prompt), "input_ids": prompt["ids"], **entry})
            print(f"prompt {number}: {len(prompt['ids'])} tokens, {len(entry.get('generated', []))} more", file=sys.stderr)
    return recorder.text.config, tensors, entries


def versions(torch):
    names = ("transformers", "safetensors", "tokenizers", "accelerate")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpu = torch.backends.cpu.get_cpu_capability()
    machine = {"machine": platform.machine(), "cpu_capability": cpu}
    return {"python": platform.python_version(), "torch": torch.__version__, **found, **machine}


def main():
    args = arguments()
    config = read_config(args.checkpoint)
    out = trace_file.output_path(args.out, args.overwrite or args.dry_run)
    prompts = prompt_input.read(args)
    prompt_input.tokenize(prompts, args.checkpoint, args.system)
    positions = max(len(prompt["ids"]) for prompt in prompts) + args.max_new_tokens
    needed = tell_memory(memory_needed(args.checkpoint, config, args.dtype, positions), args.dtype)
    if args.dry_run:
        return
    major = check_version()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    model = load_model(args, config, major, torch)
    text, tensors, entries = record_all(model, prompts, args, torch, config["model_type"])
    settings = {
        "dtype": args.dtype,
        "device": args.device_map or "cpu",
        "threads": args.threads,
        "level": args.level,
        "class": type(model).__name__,
        "attn_implementation": "eager",
        "experts_implementation": "eager" if major >= 5 else None,
        "max_new_tokens": args.max_new_tokens,
        "eos_token_id": args.stop_id,
        "top": args.top,
        "decoding": "greedy (do_sample=False, num_beams=1), KV cache on",
        "memory": {"needed": needed, "peak": tell_peak(torch)},
    }
    document = {
        "settings": settings,
        "versions": versions(torch),
        "model": {name: getattr(text, name, None) for name in FACTS},
        **trace_file.origin(args.checkpoint, not args.no_digests),
        "prompts": entries,
    }
    trace_file.write(out, tensors, document, save_file)
    print(f"{out}: {len(tensors)} tensors of {len(prompts)} prompts", file=sys.stderr)


if __name__ == "__main__":
    trace_file.run(main)

"""Exports in the official classes of transformers: every key there and used, and the logits of the recorded traces."""

import json

import pytest
import torch
import transformers
from conftest import ROOT, segpack
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeForCausalLM, Qwen3OmniMoeForConditionalGeneration

TRACES = {
    "tiny-full": ROOT / "extractor/demo/trace/tiny-full.float32.safetensors",
    "tiny-text": ROOT / "tests/fixtures/traces/tiny-text.float32.safetensors",
}
TOLERANCE = 3e-4  # the strict gate for 3 layers
torch.set_num_threads(1)


def load(cls, folder, dtype=torch.float32):
    """The model, if nothing at all is missing, left over or misshaped."""
    name = "dtype" if transformers.__version__ >= "4.56" else "torch_dtype"
    model, info = cls.from_pretrained(folder, attn_implementation="eager", output_loading_info=True, **{name: dtype})
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[what], f"{what}: {info[what]}"
    return model.eval()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids[None]).logits[0]


def prompts(trace):
    return sorted(name.removesuffix(".input_ids") for name in trace if name.startswith("p") and name.endswith(".input_ids"))


def assert_inside(model, trace):
    """Logits of the prompts, and every greedy token, as recorded. Returns all logits."""
    seen = []
    assert prompts(trace)
    for prompt in prompts(trace):
        ids, greedy = trace[f"{prompt}.input_ids"], trace[f"{prompt}.gen.ids"]
        whole = logits(model, torch.cat([ids, greedy[:-1]]))
        difference = (whole[: len(ids)] - trace[f"{prompt}.logits"]).abs().max().item()
        assert difference <= TOLERANCE, f"{prompt}: {difference}"
        assert torch.equal(whole[len(ids) - 1 :].argmax(-1), greedy), prompt
        seen.append(whole)
    return seen


def export(pack, out, *options):
    segpack("export", pack.folder, "-o", out, *options)
    return out


@pytest.fixture(params=[(name, codec) for name in TRACES for codec in ("raw", "bf16-rans")], ids="-".join)
def packed(request, packs):
    return packs[request.param], load_file(TRACES[request.param[0]])


def test_the_thinker_and_its_text_part_give_the_logits_of_the_traces(packed, tmp_path):
    pack, trace = packed
    thinker = load(Qwen3OmniMoeForConditionalGeneration,
                   export(pack, tmp_path / "thinker", "--to", "hf", "--component", "thinker", "--max-shard-size", "100kB"))
    assert not hasattr(thinker, "talker") or thinker.talker is None
    text = load(AutoModelForCausalLM, export(pack, tmp_path / "text", "--to", "qwen3-moe", "--max-shard-size", "100kB"))
    assert type(text) is Qwen3MoeForCausalLM
    omni, plain = assert_inside(thinker.thinker, trace), assert_inside(text, trace)
    assert all(torch.equal(a, b) for a, b in zip(omni, plain)), "not the same bits"


def test_a_whole_model_loads_with_talker_and_vocoder(packs, tmp_path):
    pack = packs["tiny-full", "bf16-rans"]
    model = load(Qwen3OmniMoeForConditionalGeneration, export(pack, tmp_path / "out", "--to", "hf"))
    assert model.has_talker and model.code2wav is not None
    assert_inside(model.thinker, load_file(TRACES["tiny-full"]))


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_the_configuration_names_the_dtype(packs, tmp_path, dtype):
    pack = packs["tiny-text", "raw"]
    out = export(pack, tmp_path / "out", "--to", "qwen3-moe", "--dtype", dtype)
    wanted = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    model = load(AutoModelForCausalLM, out, "auto")
    assert {p.dtype for p in model.parameters()} == {wanted}
    if dtype == "f32":
        assert_inside(model, load_file(TRACES["tiny-text"]))


@pytest.mark.parametrize("ranks", [1, 3, 5])
def test_the_shares_of_all_ranks_are_the_model(packs, tmp_path, ranks):
    pack = packs["tiny-full", "raw"]
    for target, options, cls in [("qwen3-moe", [], AutoModelForCausalLM),
                                 ("hf", ["--component", "thinker"], Qwen3OmniMoeForConditionalGeneration)]:
        union = {}
        for rank in range(ranks):
            out = tmp_path / f"{target}-{rank}"
            export(pack, out, "--to", target, *options, "--expert-parallel", f"{rank}/{ranks}")
            for name, tensor in load_file(out / "model.safetensors").items():
                assert ".experts." not in name or name not in union, f"{name} is on two ranks"
                assert name not in union or torch.equal(union[name], tensor), name
                union[name] = tensor
        save_file(union, out / "model.safetensors", metadata={"format": "pt"})
        model = load(cls, out)
        assert_inside(model.thinker if target == "hf" else model, load_file(TRACES["tiny-full"]))


def test_the_configuration_says_what_the_thinkers_says(packs, tmp_path):
    """Every key that both classes read has the same value, whichever version reads it."""
    out = export(packs["tiny-text", "raw"], tmp_path / "out", "--to", "qwen3-moe")
    plain = AutoConfig.from_pretrained(out)
    thinker = AutoConfig.from_pretrained(packs["tiny-text", "raw"].checkpoint).thinker_config.text_config
    for key in ["hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "head_dim", "num_experts", "num_experts_per_tok", "norm_topk_prob", "hidden_act",
                "rms_norm_eps", "vocab_size", "max_position_embeddings", "attention_bias", "decoder_sparse_step",
                "mlp_only_layers", "tie_word_embeddings"]:
        assert getattr(plain, key) == getattr(thinker, key), key
    rope = [getattr(c, "rope_parameters", None) or {"rope_theta": c.rope_theta} for c in (plain, thinker)]
    assert rope[0]["rope_theta"] == rope[1]["rope_theta"] == 1_000_000
    assert plain.eos_token_id == json.loads((out / "generation_config.json").read_bytes())["eos_token_id"]

"""torch loads packs: `load_state_dict` of a module, without a copy where the pack is raw. With --heavy alone."""

import os

import pytest

import segpack

if os.environ.get("SEGPACK_HEAVY") != "true":
    pytest.skip("run with --heavy: it installs torch, 200 MB", allow_module_level=True)

import torch
from safetensors.torch import load_file

from conftest import CHECKPOINT

LAYER = "thinker.model.layers.0."


class Attention(torch.nn.Module):
    """The projections and norms of one layer of the tiny checkpoint, under their own names."""

    def __init__(self):
        super().__init__()
        sizes = {"q_proj": (48, 128), "k_proj": (48, 64), "v_proj": (48, 64), "o_proj": (128, 48)}
        self.self_attn = torch.nn.Module()
        for name, (inner, outer) in sizes.items():
            setattr(self.self_attn, name, torch.nn.Linear(inner, outer, bias=False, dtype=torch.bfloat16))
        for name in ("q_norm", "k_norm"):
            setattr(self.self_attn, name, torch.nn.RMSNorm(32, dtype=torch.bfloat16))


def test_load_state_dict_takes_it(place):
    state = segpack.Pack(place).state_dict(f"{LAYER}self_attn.")
    module = Attention()
    missing, unexpected = module.load_state_dict({f"self_attn.{k}": v for k, v in state.items()})
    assert not missing and not unexpected
    wanted = load_shards()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, wanted[LAYER + name])


def test_all_tensors_are_those_of_the_checkpoint(place):
    state, wanted = segpack.Pack(place).state_dict(), load_shards()
    assert set(state) == set(wanted)
    for name, tensor in state.items():
        assert tensor.dtype == wanted[name].dtype and tensor.shape == wanted[name].shape
        assert torch.equal(tensor.view(torch.uint8), wanted[name].view(torch.uint8)), name


def test_writing_to_a_view_changes_neither_the_file_nor_the_arrays(raw):
    pack = segpack.Pack(raw)
    name = "thinker.model.embed_tokens.weight"
    tensor = pack.state_dict(name, strip=False)[name]
    tensor.zero_()
    assert pack[name].any() and segpack.Pack(raw)[name].any()
    assert pack.verify().ok


def test_a_prefix_that_nothing_has_is_an_error(raw):
    with pytest.raises(segpack.UsageError, match="begins with"):
        segpack.Pack(raw).state_dict("nothing.")


def load_shards():
    tensors = {}
    for shard in sorted(CHECKPOINT.glob("*.safetensors")):
        tensors |= load_file(shard)
    return tensors

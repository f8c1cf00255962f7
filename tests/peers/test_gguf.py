"""GGUF exports read by gguf-py, llama.cpp's own package."""

import gguf
import ml_dtypes
import numpy as np
import pytest
from conftest import segpack
from gguf import GGMLQuantizationType as Type
from safetensors import safe_open

NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.gate",
}
OUTSIDE = {"token_embd": "thinker.model.embed_tokens", "output_norm": "thinker.model.norm", "output": "thinker.lm_head"}


def source(pack):
    """Every tensor of the checkpoint, as float32."""
    found = {}
    for shard in sorted(pack.checkpoint.glob("*.safetensors")):
        with safe_open(shard, "np") as file:
            found |= {name: file.get_tensor(name).view(ml_dtypes.bfloat16).astype(np.float32) for name in file.keys()}
    return found


def wanted(name, tensors):
    """What the checkpoint has for a tensor of the GGUF file."""
    stem = name.removesuffix(".weight")
    if stem in OUTSIDE:
        return tensors[f"{OUTSIDE[stem]}.weight"]
    _, layer, part = stem.split(".")
    at = f"thinker.model.layers.{layer}"
    if part in NAMES:
        return tensors[f"{at}.{NAMES[part]}.weight"]
    matrix = part.removeprefix("ffn_").removesuffix("_exps")
    experts = sum(name.startswith(f"{at}.mlp.experts.") for name in tensors) // 3
    return np.stack([tensors[f"{at}.mlp.experts.{e}.{matrix}_proj.weight"] for e in range(experts)])


def export(pack, out, *options):
    segpack("export", pack.folder, "--to", "gguf", "-o", out, *options)
    return gguf.GGUFReader(out)


@pytest.mark.parametrize("dtype", ["keep", "f16", "f32", "q8_0"])
def test_gguf_py_reads_every_tensor_as_the_source_has_it(pack, tmp_path, dtype):
    reader, tensors = export(pack, tmp_path / "m.gguf", "--dtype", dtype), source(pack)
    assert len(reader.tensors) == 3 + 12 * 3
    kinds = set()
    for tensor in reader.tensors:
        values = wanted(tensor.name, tensors)
        assert tensor.shape.tolist() == list(reversed(values.shape)), tensor.name
        # bit for bit what gguf-py makes of the same values
        assert np.array_equal(tensor.data.view(np.uint8).ravel(),
                              gguf.quants.quantize(values, tensor.tensor_type).view(np.uint8).ravel()), tensor.name
        if tensor.tensor_type in (Type.F32, Type.BF16):
            assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), values), tensor.name
        kinds.add(tensor.tensor_type)
    assert kinds == {"keep": {Type.F32, Type.BF16}, "f16": {Type.F32, Type.F16}, "f32": {Type.F32},
                     "q8_0": {Type.F32, Type.F16, Type.Q8_0}}[dtype]


def test_metadata_has_the_types_of_llama_cpp(raw, tmp_path):
    reader = export(raw, tmp_path / "m.gguf")
    value = {key: field.contents() for key, field in reader.fields.items()}
    assert value["general.architecture"] == "qwen3moe"
    assert reader.alignment == 32
    assert value["qwen3moe.block_count"] == 3
    types = {key: field.types[0].name for key, field in reader.fields.items()}
    assert types["qwen3moe.rope.freq_base"] == "FLOAT32" and types["general.file_type"] == "UINT32"
    if value["tokenizer.ggml.model"] == "none":
        assert value["qwen3moe.vocab_size"] == 320
    else:
        assert len(value["tokenizer.ggml.tokens"]) == len(value["tokenizer.ggml.token_type"]) == 320


@pytest.mark.parametrize("dtype", ["q4_0", "q5_0", "q4_k_m", "q5_k_s", "q6_k"])
def test_gguf_py_reads_blocks_that_are_as_near_to_the_source_as_its_own(raw, tmp_path, dtype):
    # rows of these checkpoints are no blocks of 256: heavy/test_gguf_blocks.py has those
    reader, tensors = export(raw, tmp_path / "m.gguf", "--dtype", dtype), source(raw)
    kinds = set()
    for tensor in reader.tensors:
        kind, values = tensor.tensor_type, wanted(tensor.name, tensors)
        kinds.add(kind.name)
        seen = gguf.dequantize(tensor.data, kind).reshape(values.shape)
        own = gguf.dequantize(gguf.quants.quantize(values, kind), kind).reshape(values.shape)
        errors = [np.sqrt(np.mean((made.astype(np.float64) - values) ** 2)) for made in (seen, own)]
        # gguf-py rounds in double precision
        assert errors[0] <= errors[1] * 1.001, (tensor.name, kind.name, errors)
    assert kinds & {"Q4_0", "Q5_0", "Q5_1", "Q8_0"}

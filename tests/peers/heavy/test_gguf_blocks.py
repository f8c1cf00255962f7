"""Quantized GGUF exports beside what llama.cpp's own quantizer makes of the BF16 export of the same pack.

By hand, as all that is heavy. Needs SEGPACK_LLAMA_PYTHON, an interpreter with llama-cpp-python 0.3.36; fails without.
"""

import json
import os
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, segpack
from gguf import GGUFReader, GGUFWriter, dequantize

HERE = Path(__file__).parent
# --dtype and llama_ftype
MIXES = {"q4_0": 2, "q8_0": 7, "q5_0": 8, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18}
# mixes that have no Q4_K and Q5_K: the same bytes as llama.cpp's
SAME = {"q4_0", "q8_0", "q5_0", "q6_k"}
# layers, hidden size, width of experts, experts, tied: all rows in blocks of 256; odd widths, few layers and eight experts; a tied
# head and rows that are no multiple of 32 anywhere in an expert
SHAPES = {"even": (17, 256, 256, 4, False), "eight": (3, 512, 96, 8, False), "odd": (9, 256, 40, 4, True)}


def llama(script, *arguments, stdin=None):
    interpreter = os.environ.get("SEGPACK_LLAMA_PYTHON")
    if not interpreter:
        pytest.fail(f"SEGPACK_LLAMA_PYTHON is not set: {__doc__}")
    command = [interpreter, HERE / script, *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def weights(name, shape):
    """Like trained ones: about normal, with a few outliers, as the bits of bf16."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    values = 1 + random.normal(0, 0.1, shape) if "norm" in name else random.standard_t(6, shape) * shape[-1] ** -0.5
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def checkpoint(folder, layers, hidden, width, experts, tied):
    """A Qwen3MoeForCausalLM of these sizes."""
    vocabulary, heads, keys, head = 512, hidden // 64, 2, 64
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden]}
    if not tied:
        shapes["lm_head.weight"] = [vocabulary, hidden]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for part, rows, columns in [("q", heads * head, hidden), ("k", keys * head, hidden), ("v", keys * head, hidden),
                                    ("o", hidden, heads * head)]:
            shapes[f"{at}.self_attn.{part}_proj.weight"] = [rows, columns]
        shapes |= {f"{at}.self_attn.{part}_norm.weight": [head] for part in "qk"}
        shapes |= {f"{at}.{part}_layernorm.weight": [hidden] for part in ("input", "post_attention")}
        shapes[f"{at}.mlp.gate.weight"] = [experts, hidden]
        for expert in range(experts):
            shapes |= {f"{at}.mlp.experts.{expert}.{part}_proj.weight": [width, hidden] for part in ("gate", "up")}
            shapes[f"{at}.mlp.experts.{expert}.down_proj.weight"] = [hidden, width]
    header, data = {"__metadata__": {"format": "pt"}}, []
    for name, shape in shapes.items():
        start = sum(map(len, data))
        data.append(weights(name, shape).tobytes())
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, start + len(data[-1])]}
    head_bytes = json.dumps(header).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(head_bytes).to_bytes(8, "little") + head_bytes + b"".join(data))
    config = dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", torch_dtype="bfloat16", vocab_size=vocabulary,
                  hidden_size=hidden, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=heads,
                  num_key_value_heads=keys, head_dim=head, num_experts=experts, num_experts_per_tok=2,
                  moe_intermediate_size=width, mlp_only_layers=[], decoder_sparse_step=1, norm_topk_prob=True,
                  attention_bias=False, tie_word_embeddings=tied, rope_theta=10000.0, rms_norm_eps=1e-6, hidden_act="silu")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=SHAPES)
def packed(request, tmp_path_factory):
    """A folder with a pack and its BF16 export."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint(folder / "checkpoint", *SHAPES[request.param])
    segpack("pack", folder / "checkpoint", "-o", folder / "pack", "--no-provenance")
    segpack("export", folder / "pack", "--to", "gguf", "-o", folder / "bf16.gguf")
    return folder


# importance has a say, and llama.cpp's mix of this name has the same types with it
WEIGHTED = ["q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"]
CHUNKS = np.random.default_rng(7).integers(0, 512, (4, 64)).tolist()


@pytest.fixture(scope="module")
def matrix(packed):
    """What llama.cpp collects on some ids, as its `imatrix` writes it."""
    segpack("export", packed / "pack", "--to", "gguf", "-o", packed / "f32.gguf", "--dtype", "f32")
    collected = json.loads(llama("llama_imatrix.py", packed / "f32.gguf", stdin=json.dumps({"chunks": CHUNKS})))
    writer = GGUFWriter(packed / "imatrix.gguf", "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["ids"])
    writer.add_uint32("imatrix.chunk_count", len(CHUNKS))
    writer.add_uint32("imatrix.chunk_size", len(CHUNKS[0]))
    for name, of in sorted(collected.items()):
        counts = np.array(of["counts"], np.float32).reshape(-1, 1)
        writer.add_tensor(f"{name}.in_sum2", np.array(of["sums"], np.float32).reshape(len(counts), -1))
        writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return packed / "imatrix.gguf"


def test_a_recorded_matrix_is_what_llama_cpp_collects(packed, matrix, capsys):
    recorded = packed / "recorded.gguf"
    ids = ",".join(str(i) for chunk in CHUNKS for i in chunk)
    segpack("run", packed / "pack", "--compute", "f32", "--prompt-ids", ids, "--imatrix-out", recorded, "--imatrix-chunk", len(CHUNKS[0]))
    ours, wanted = ({name: t.data.ravel().astype(np.float64) for name, t in tensors(path).items()} for path in (recorded, matrix))
    assert ours.keys() == wanted.keys()
    largest = 0
    for name, numbers in wanted.items():
        if name.endswith(".counts"):
            assert ours[name].tolist() == numbers.tolist(), name
        else:
            largest = max(largest, (np.abs(ours[name] - numbers) / np.maximum(numbers, 1e-3 * numbers.mean())).max())
    with capsys.disabled():
        print(f"\n    {len(wanted) // 2} tensors, the same counts; sums differ by {largest:.1e} of themselves at most")
    assert largest <= 1e-3


@pytest.mark.parametrize("dtype", WEIGHTED)
def test_with_a_matrix_types_are_llama_cpps_and_errors_not_larger(packed, matrix, dtype, capsys):
    ours, theirs = packed / f"{dtype}.weighted.gguf", packed / f"{dtype}.weighted.llama.gguf"
    segpack("export", packed / "pack", "--to", "gguf", "-o", ours, "--dtype", dtype, "--imatrix", matrix)
    llama("llama_quantize.py", packed / "bf16.gguf", theirs, MIXES[dtype], matrix)
    compare(packed, tensors(ours), tensors(theirs), capsys)


def tensors(path):
    return {t.name: t for t in GGUFReader(path).tensors}


def values(tensor):
    return dequantize(tensor.data, tensor.tensor_type).astype(np.float64).ravel()


def compare(packed, ours, theirs, capsys):
    """Types are equal and no error is larger than llama.cpp's; how many tensors are the same bytes."""
    assert {n: t.tensor_type.name for n, t in ours.items()} == {n: t.tensor_type.name for n, t in theirs.items()}
    source, ratios, same, kinds = tensors(packed / "bf16.gguf"), [], 0, {}
    for name, tensor in ours.items():
        wanted = values(source[name])
        errors = [np.sqrt(np.mean((values(t[name]) - wanted) ** 2)) for t in (ours, theirs)]
        same += np.array_equal(tensor.data, theirs[name].data)
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
        if errors[0] or errors[1]:
            ratios.append(errors[0] / errors[1])
    with capsys.disabled():
        print(f"\n    {kinds}; {same} of {len(ours)} tensors byte for byte; error over llama.cpp's: "
              f"{min(ratios):.4f} to {max(ratios):.4f}, mean {np.mean(ratios):.5f}")
    assert max(ratios) <= 1.01
    return same


@pytest.mark.parametrize("dtype", MIXES)
def test_types_are_llama_cpps_and_errors_not_larger(packed, dtype, capsys):
    ours, theirs = packed / f"{dtype}.gguf", packed / f"{dtype}.llama.gguf"
    segpack("export", packed / "pack", "--to", "gguf", "-o", ours, "--dtype", dtype)
    llama("llama_quantize.py", packed / "bf16.gguf", theirs, MIXES[dtype])
    file_types = [GGUFReader(path).fields["general.file_type"].contents() for path in (ours, theirs)]
    assert file_types == [MIXES[dtype]] * 2
    ours, theirs = tensors(ours), tensors(theirs)
    same = compare(packed, ours, theirs, capsys)
    assert dtype not in SAME or same == len(ours)


# a fixed text by its bytes, which are ids of these vocabularies, in four windows of 256
TEXT = list((ROOT / "LICENSE-APACHE").read_bytes()[:1024])
WINDOWS = [TEXT[at : at + 256] for at in range(0, len(TEXT), 256)]


def log_probabilities(model):
    """Of all ids, behind each id of the windows but their last ones."""
    stdin = json.dumps({"prompts": [], "tokens": 0, "texts": [], "scored": [window[:-1] for window in WINDOWS]})
    rows = np.concatenate([np.array(rows) for rows in json.loads(llama("llama_greedy.py", model, stdin=stdin))["logits"]])
    rows -= rows.max(1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(1, keepdims=True))


@pytest.fixture(scope="module")
def unquantized(packed):
    return log_probabilities(packed / "bf16.gguf")


@pytest.mark.parametrize("dtype", ["q4_0", "q5_0", "q4_k_m", "q5_k_m", "q6_k"])
def test_perplexity_is_that_of_llama_cpps_own_file(packed, unquantized, dtype, capsys):
    ours, theirs = (log_probabilities(packed / name) for name in (f"{dtype}.gguf", f"{dtype}.llama.gguf"))
    following = [i for window in WINDOWS for i in window[1:]]
    losses = [-rows[np.arange(len(following)), following] for rows in (unquantized, ours, theirs)]
    perplexities = [np.exp(loss.mean()) for loss in losses]
    # of all words that could follow, not only of the one that did: far more exact
    lost = [(np.exp(unquantized) * (unquantized - rows)).sum(1).mean() for rows in (ours, theirs)]
    noise = losses[0].std(ddof=1) / len(following) ** 0.5
    with capsys.disabled():
        print(f"\n    perplexity {perplexities[1]:.1f}, of llama.cpp's file {perplexities[2]:.1f}, of BF16 {perplexities[0]:.1f}; mean losses "
              f"{losses[1].mean() - losses[2].mean():+.1e} apart, standard error {noise:.1e}; divergence {lost[0]:.2e} and {lost[1]:.2e}")
    assert abs(losses[1].mean() - losses[2].mean()) <= noise
    assert lost[0] <= 1.1 * lost[1]
    if dtype in SAME:
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", MIXES)
def test_llama_cpp_loads_it_and_goes_on_as_with_its_own_file(packed, dtype, capsys):
    stdin = json.dumps({"prompts": [[3, 14, 15, 92, 65], list(range(100, 120))], "tokens": 16, "texts": []})
    made = [json.loads(llama("llama_greedy.py", packed / name, stdin=stdin))["generated"]
            for name in (f"{dtype}.gguf", f"{dtype}.llama.gguf")]
    assert all(len(ids) == 16 and all(0 <= i < 512 for i in ids) for ids in made[0])
    if dtype in SAME:
        assert made[0] == made[1]
        return
    # random weights, whose near ties fall either way where last bits differ: reported, not judged
    alike = [next((i for i, (a, b) in enumerate(zip(*pair)) if a != b), 16) for pair in zip(*made)]
    with capsys.disabled():
        print(f"\n    tokens before the first that differs, of 16: {alike}")

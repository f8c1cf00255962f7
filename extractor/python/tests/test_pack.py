"""Packs as mappings: every dtype and codec, without a copy where the pack is raw."""

import gc
import os
import pickle
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import segpack
from conftest import CHECKPOINT, DTYPES, PACKED, command, find
from segpack import _native

EMBEDDING = "thinker.model.embed_tokens.weight"


def shards():
    tensors = {}
    for shard in sorted(CHECKPOINT.glob("*.safetensors")):
        tensors |= load_file(shard)
    return tensors


def test_every_tensor_is_what_safetensors_reads_from_the_checkpoint(place):
    pack, wanted = segpack.Pack(place), shards()
    assert set(pack) == set(wanted) and len(pack) == len(wanted) == 414
    for name, array in pack.items():
        assert array.dtype == wanted[name].dtype and array.shape == wanted[name].shape
        assert array.tobytes() == wanted[name].tobytes(), name


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_every_dtype_is_read(every_dtype, codec, tmp_path):
    checkpoint, tensors, header = every_dtype
    tolerant = ["--allow-unclassified", "--allow-unaudited"]
    command("pack", checkpoint, "-o", tmp_path / "pack", "--codec", codec, *tolerant)
    pack = segpack.Pack(tmp_path / "pack")
    assert set(pack) == set(tensors)
    for name, (dtype, shape) in header.items():
        assert bytes(pack.read(name)) == tensors[name]
        if dtype in PACKED:
            with pytest.raises(segpack.UsageError, match=dtype):
                pack[name]
            continue
        wanted = np.frombuffer(tensors[name], DTYPES[dtype]).reshape(shape)
        assert pack[name].dtype == DTYPES[dtype] and pack[name].shape == tuple(shape)
        assert pack[name].tobytes() == wanted.tobytes()


def test_no_dtype_is_forgotten():
    assert set(_native.dtypes()) == set(DTYPES) | set(PACKED)


def test_arrays_of_a_raw_pack_are_views_of_its_mapped_file(raw):
    pack = segpack.Pack(raw)
    one, other = pack[EMBEDDING], pack[EMBEDDING]
    assert np.shares_memory(one, other)
    assert not one.flags.writeable and not one.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        one[0, 0] = 1
    file, offset = find(raw, EMBEDDING)
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line for line in maps if str(file) in line]
    begin, end = (int(number, 16) for number in mapped[0].split()[0].split("-"))
    at = one.__array_interface__["data"][0]
    assert begin + offset == at and at + one.nbytes <= end


def test_arrays_outlive_their_pack(raw):
    pack = segpack.Pack(raw)
    array, wanted = pack[EMBEDDING], pack[EMBEDDING].tobytes()
    gone = weakref.ref(pack)
    del pack
    gc.collect()
    assert gone() is None
    assert array.tobytes() == wanted


def test_decoded_arrays_are_writable_and_nobody_elses(coded):
    pack = segpack.Pack(coded)
    array = pack[EMBEDDING]
    before = array[0, 0]
    array[0, 0] = 7
    assert pack[EMBEDDING][0, 0] == before


def test_what_the_manifest_says_of_a_tensor_is_told(raw):
    pack = segpack.Pack(raw)
    tensor = pack.tensor("thinker.model.layers.1.mlp.experts.5.up_proj.weight")
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("BF16", (24, 48), 24 * 48 * 2)
    assert (tensor.component, tensor.role, tensor.part) == ("thinker.text", "expert_up", "weight")
    assert (tensor.layer, tensor.expert, tensor.codec) == (1, 5, "raw")
    assert tensor.segment == "thinker.text.layers.1.experts.5"
    assert tensor.source_tensor == tensor.name and tensor.source_file.endswith(".safetensors")
    assert [t.name for t in pack.tensors()] == list(pack)
    assert pack.info["counts"]["tensors"] == 414
    assert pack.info["manifest_sha256"] == pack.manifest_sha256
    assert b"qwen3_omni_moe" in pack.file("config.json")


def test_experts_of_a_layer_are_listed_and_read(place):
    pack = segpack.Pack(place)
    experts = pack.experts(1, "thinker.text")
    assert list(experts) == list(range(8))
    assert set(experts[5]) == {"gate", "up", "down"}
    assert experts[5]["up"].shape == (24, 48)
    name = "thinker.model.layers.1.mlp.experts.5.up_proj.weight"
    assert experts[5].tensor_names["up"] == name
    assert experts[5]["up"].tobytes() == pack[name].tobytes()


def test_experts_of_several_components_have_to_be_named(raw):
    pack = segpack.Pack(raw)
    with pytest.raises(segpack.UsageError, match="several components") as caught:
        pack.experts(0)
    assert "pack.experts(layer, component)" in caught.value.hint
    with pytest.raises(segpack.UsageError, match="no experts"):
        pack.experts(99)


def test_a_name_that_is_not_there_is_a_key_error_with_the_nearest(raw):
    pack = segpack.Pack(raw)
    assert "nothing" not in pack and 7 not in pack and pack.get("nothing") is None
    with pytest.raises(KeyError) as caught:
        pack["thinker.model.embed_token.weight"]
    assert isinstance(caught.value, segpack.UsageError)
    assert caught.value.tensor == "thinker.model.embed_token.weight"
    assert EMBEDDING in caught.value.hint


def test_a_pack_travels_to_another_process_by_its_place(raw):
    pack = segpack.Pack(raw)
    again = pickle.loads(pickle.dumps(pack))
    assert again.manifest_sha256 == pack.manifest_sha256 and list(again) == list(pack)


def test_a_pack_that_is_another_one_is_refused(raw):
    with pytest.raises(segpack.DamagedError) as caught:
        segpack.Pack(raw, manifest_sha256="0" * 64)
    assert caught.value.file == raw / "manifest.json" and caught.value.exit_status == 3
    with pytest.raises(segpack.UsageError, match="64 hex digits"):
        segpack.Pack(raw, manifest_sha256="xyz")


@pytest.mark.parametrize("check", ["first", "always"])
def test_a_damaged_tensor_is_an_error_that_names_it_and_the_others_are_read(damaged, check):
    place, tensor = damaged
    pack = segpack.Pack(place, check=check)
    assert pack[EMBEDDING].shape == (320, 48)
    for _ in range(2):  # what was damaged once is not taken for checked
        with pytest.raises(segpack.DamagedError, match="SHA-256") as caught:
            pack[tensor.name]
    assert caught.value.tensor == tensor.name
    assert caught.value.file == place / tensor.file
    assert "repair" in caught.value.hint and "hint: " in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).tensor == tensor.name


def test_checks_can_be_left_out(damaged):
    place, tensor = damaged
    assert segpack.Pack(place, check="never")[tensor.name].shape == (24, 48)
    with pytest.raises(segpack.UsageError, match="check"):
        segpack.Pack(place, check="sometimes")


def test_a_file_that_was_cut_is_an_error_and_not_a_signal(damaged):
    place, tensor = damaged
    os.truncate(place / tensor.file, 5000)
    with pytest.raises(segpack.DamagedError, match="5000 bytes") as caught:
        segpack.Pack(place, check="never")[tensor.name]
    assert caught.value.file == place / tensor.file


def test_a_link_in_the_place_of_a_file_is_not_followed(damaged, tmp_path):
    place, tensor = damaged
    file = place / tensor.file
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(segpack.SegpackError):
        segpack.Pack(place, check="never")[tensor.name]
    file.unlink()
    with pytest.raises(segpack.DamagedError, match="cannot open"):
        segpack.Pack(place, check="never")[tensor.name]


def test_what_is_no_pack_says_what_it_is(tmp_path):
    with pytest.raises(segpack.DamagedError, match="is a checkpoint") as caught:
        segpack.Pack(CHECKPOINT)
    assert caught.value.file == CHECKPOINT and "segpack pack" in caught.value.hint
    with pytest.raises(segpack.SegpackError) as caught:
        segpack.Pack(tmp_path / "nothing")
    assert caught.value.file == tmp_path / "nothing"
    assert caught.value.causes and "No such file" in caught.value.causes[0]


def test_a_stacked_tensor_is_read_as_the_checkpoint_has_it(folder):
    checkpoint, place = stacked(folder)
    pack, wanted = segpack.Pack(place), load_file(checkpoint / "model.safetensors")
    stacks = set(wanted) - set(pack)
    assert stacks, "nothing is stacked in this checkpoint"
    for name in stacks:
        assert name in pack
        assert pack[name].shape == wanted[name].shape
        assert pack[name].tobytes() == wanted[name].tobytes()


def stacked(folder):
    """The tiny checkpoint with all experts of a layer in two tensors, as transformers 5 saves them, and its pack."""
    checkpoint, place = folder / "stacked", folder / "stacked.segpack"
    checkpoint.mkdir()
    tensors = shards()
    prefixes = sorted({name.split(".mlp.experts.")[0] for name in tensors if ".mlp.experts." in name})
    for prefix in prefixes:
        experts = sum(name.startswith(f"{prefix}.mlp.experts.") for name in tensors) // 3
        of = [
            [tensors.pop(f"{prefix}.mlp.experts.{n}.{m}_proj.weight") for m in ("gate", "up", "down")]
            for n in range(experts)
        ]
        tensors[f"{prefix}.mlp.experts.gate_up_proj"] = np.stack([np.concatenate([gate, up]) for gate, up, _ in of])
        tensors[f"{prefix}.mlp.experts.down_proj"] = np.stack([down for *_, down in of])
    save_file(tensors, checkpoint / "model.safetensors")
    for file in CHECKPOINT.glob("*.json"):
        if file.name != "model.safetensors.index.json":
            shutil.copy(file, checkpoint)
    command("pack", checkpoint, "-o", place)
    return checkpoint, place

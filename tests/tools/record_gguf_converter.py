#!/usr/bin/env python3
"""Records what llama.cpp's own converter makes of a checkpoint: metadata, and each tensor's type, shape and SHA-256.

  record_gguf_converter.py LLAMA_CPP CHECKPOINT OUT.json [--pre NAME] [--mmproj]

LLAMA_CPP is the folder vendor/llama.cpp of the source distribution of llama-cpp-python, which has conversion/ and gguf-py/.
A checkpoint without a tokenizer is converted with a tokenizer of the kind "none": the converter itself gives up on such a one.
--pre names the pre-tokenizer: the converter knows those of published vocabularies, by a hash of what they make of a text.
--mmproj records the file of the encoders. That of Qwen3-Omni is not made as it stands in llama-cpp-python 0.3.36: its class puts
the prefix "model." before "visual.", which its parent takes off elsewhere, and no tensor is found by such a name. Here the prefix
stays away.
Shapes are outermost side first. Keys that name the checkpoint's folder are left out.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

DTYPES = {"bf16": "MOSTLY_BF16", "f16": "MOSTLY_F16", "f32": "ALL_F32", "q8_0": "MOSTLY_Q8_0"}
OF_THE_FOLDER = ("general.name", "general.basename", "general.finetune", "general.version", "general.organization")


def without_prefix(modify):
    """The class's method, for names as its parent knows them."""
    def modified(self, data, name, layer):
        return modify(self, data, name.replace("thinker.visual.", "visual."), layer)
    return modified


def convert(checkpoint, out, dtype, pre, is_mmproj):
    """Runs the converter on a folder."""
    import gguf
    import torch
    from conversion import get_model_class
    from conversion.base import ModelBase, ModelType, get_model_architecture

    hparams = ModelBase.load_hparams(checkpoint, False)
    model_type = ModelType.MMPROJ if is_mmproj else ModelType.TEXT
    model_class = get_model_class(get_model_architecture(hparams, model_type), mmproj=is_mmproj)
    if is_mmproj:
        model_class.modify_tensors = without_prefix(model_class.modify_tensors)
    elif not any((checkpoint / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        model_class.set_vocab = model_class._set_vocab_none
    if pre and not is_mmproj:
        model_class.get_vocab_base_pre = lambda self, tokenizer: pre
    with torch.inference_mode():
        model_class(checkpoint, gguf.LlamaFileType[DTYPES[dtype]], out).write()


def read(path):
    """Metadata with types, and tensors with types, shapes and digests."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    metadata = {key: [*[t.name for t in field.types], field.contents()] for key, field in reader.fields.items()
                if not key.startswith("GGUF.") and key not in OF_THE_FOLDER}
    tensors = {t.name: [t.tensor_type.name, t.shape.tolist()[::-1], hashlib.sha256(t.data.tobytes()).hexdigest()]
               for t in reader.tensors}
    return {"metadata": metadata, "tensors": tensors}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pre")
    parser.add_argument("--mmproj", action="store_true")
    args = parser.parse_args()
    sys.path[:0] = [str(args.llama_cpp / "gguf-py"), str(args.llama_cpp)]
    recorded = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            out = Path(folder) / f"{dtype}.gguf"
            convert(args.checkpoint, out, dtype, args.pre, args.mmproj)
            recorded[dtype] = read(out)
    lines = [f'"{dtype}": {{"metadata": {json.dumps(of["metadata"])},\n"tensors": {{\n' +
             ",\n".join(f'"{name}": {json.dumps(tensor)}' for name, tensor in of["tensors"].items()) + "}}"
             for dtype, of in recorded.items()]
    args.out.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()

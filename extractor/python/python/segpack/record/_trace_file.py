"""A trace: one .safetensors file and one .json file beside it. `runtime-min/reference/README.md` has the format."""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

FORMAT = "qwen3-omni-thinker-trace-1"


class Failure(Exception):
    """Something to tell the user in one message. Exit status 1: environment or output; 3: the input is at fault."""

    def __init__(self, message, status=3):
        super().__init__(message)
        self.status = status


def run(main):
    """Runs a script; whatever is a Failure ends in one line and its exit status."""
    try:
        main()
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(failure.status)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


def digest(path):
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()


def checkpoint_files(folder, hashed=True):
    """Name → length and SHA-256 of the files of a checkpoint, by which `segpack validate` knows whose trace it is."""
    files = sorted(p for p in Path(folder).iterdir() if p.suffix in (".safetensors", ".json") and p.is_file())
    return {p.name: {"size": p.stat().st_size, "sha256": digest(p) if hashed else None} for p in files}


# `segpack export` writes it into every file of weights: the identity of the pack that it is of
MANIFEST_SHA256 = "segpack.manifest_sha256"


def safetensors_metadata(path):
    """`__metadata__` of a file."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= 100_000_000:
            raise Failure(f"{path}: is no safetensors file: its header would have {length} bytes")
        header = json.loads(file.read(length))
    return header.get("__metadata__", {})


def gguf_metadata(path):
    """Pairs of a GGUF file whose values are texts."""
    widths = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    text, array = 8, 9

    with open(path, "rb") as file:

        def number(size):
            return int.from_bytes(file.read(size), "little")

        def skip(kind, count=1):
            if kind in widths:
                file.seek(widths[kind] * count, os.SEEK_CUR)
                return
            for _ in range(count):
                if kind == text:
                    file.seek(number(8), os.SEEK_CUR)
                elif kind == array:
                    inner = number(4)
                    skip(inner, number(8))
                else:
                    raise Failure(f"{path}: a value of GGUF type {kind}, which the format does not have")

        if file.read(4) != b"GGUF" or number(4) not in (2, 3):
            raise Failure(f"{path}: is no GGUF file of version 2 or 3")
        number(8)
        pairs = {}
        for _ in range(number(8)):
            key, kind = file.read(number(8)).decode(), number(4)
            if kind == text:
                pairs[key] = file.read(number(8)).decode(errors="replace")
            else:
                skip(kind)
        return pairs


def exported_from(checkpoint):
    """The SHA-256 of the manifest of the pack that a folder was exported from; None where it was no export. All files of
    weights have to be of one pack."""
    read = {".safetensors": safetensors_metadata, ".gguf": gguf_metadata}
    files = [p for p in sorted(Path(checkpoint).iterdir()) if p.suffix in read and p.is_file()]
    found = {p.name: read[p.suffix](p).get(MANIFEST_SHA256) for p in files}
    packs = set(found.values())
    if len(packs) > 1:
        told = ", ".join(f"{name}: {pack or 'no export'}" for name, pack in found.items())
        raise Failure(f"{checkpoint}: files of different packs ({told})")
    return packs.pop() if packs else None


def origin(checkpoint, hashed=True):
    """What a trace says of the weights that it was recorded from."""
    pack = exported_from(checkpoint)
    files = {"checkpoint": checkpoint_files(checkpoint, hashed)}
    return files | ({"exported_from": pack} if pack else {})


def origin_digests(checkpoint, hashed=True):
    """`origin` as traces of media and speech have it: digests alone."""
    told = origin(checkpoint, hashed)
    files = told["checkpoint"].items()
    return told | {"checkpoint": {name: entry["sha256"] for name, entry in files if entry["sha256"]}}


def output_path(given, overwrite):
    """Where the tensors go. Asked for before hours of computing, not after."""
    path = Path(given)
    if path.suffix != ".safetensors":
        raise Failure(f"{path}: give the output a name that ends in .safetensors", status=2)
    if not path.parent.is_dir():
        raise Failure(f"{path}: there is no folder {path.parent}", status=1)
    taken = [p for p in (path, path.with_suffix(".json")) if p.exists()]
    if taken and not overwrite:
        raise Failure(f"{taken[0]} exists; --overwrite replaces it", status=1)
    return path


def readable(document):
    """JSON with every list of numbers on one line."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    flat = lambda match: re.sub(r"\s+", " ", match.group()).replace("[ ", "[").replace(" ]", "]")  # noqa: E731
    # a string has no line break of its own, so that none is touched
    return re.sub(r"\[\n[\s\d.,eE+-]*\]", flat, text) + "\n"


def write(path, tensors, document, save_file, form=FORMAT):
    """Both files, whole or not at all. The .json file comes last: where it is, both are."""
    description = path.with_suffix(".json")
    partial = [p.with_name(f"{p.name}.partial") for p in (path, description)]
    document = {"format": form, "trace": path.name, **document}
    try:
        save_file(tensors, str(partial[0]), metadata={"format": form})
        partial[1].write_text(readable(document), encoding="utf-8")
        for file in partial:
            file.chmod(0o644)
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        description.unlink(missing_ok=True)
        partial[0].replace(path)
        partial[1].replace(description)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error}", status=1) from error
    finally:
        for file in partial:
            file.unlink(missing_ok=True)

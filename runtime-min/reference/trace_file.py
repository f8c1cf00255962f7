"""A trace: one .safetensors file and one .json file beside it. README.md has the format."""

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


def write(path, tensors, document, save_file):
    """Both files, whole or not at all. The .json file comes last: where it is, both are."""
    description = path.with_suffix(".json")
    partial = [p.with_name(f"{p.name}.partial") for p in (path, description)]
    document = {"format": FORMAT, "trace": path.name, **document}
    try:
        save_file(tensors, str(partial[0]), metadata={"format": FORMAT})
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

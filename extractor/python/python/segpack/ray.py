"""Packs one checkpoint with the workers of a Ray cluster: each packs a part, then the parts are joined.

    python -m segpack.ray hf://Qwen/Qwen3-Omni-30B-A3B-Instruct -o /shared/omni.segpack --parts 8 \\
        --folder /shared/parts -- --codec bf16-rans

Edit nothing; give the folder of the parts (one that all workers see) and what follows `--` to `segpack pack`. The
program `segpack` has to be on every worker, under the name that --segpack gives. A task that fails is tried again by Ray
and goes on where it was. Needs Ray 2 (`pip install ray`).
"""

import argparse
import subprocess
import sys
from pathlib import Path

import ray

# workers need Ray and the program alone, not this package
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@ray.remote(max_retries=3, retry_exceptions=True)
def pack_part(program, checkpoint, part, of, folder, options):
    """Packs part `part` of `of` into a folder of its own below `folder`; returns that folder."""
    out = Path(folder) / str(part)
    out.parent.mkdir(parents=True, exist_ok=True)
    share = ["--part", f"{part}/{of}", "--resume"]
    run([program, "pack", str(checkpoint), "-o", str(out), *share, *options])
    return str(out)


def run(command):
    """Runs a command; what it says on standard error is the message of its failure."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def pack(checkpoint, out, parts, folder, options=(), *, program="segpack", cpus=1, join_options=("--move",)):
    """Packs `checkpoint` into `out` by `parts` tasks of `cpus` cores each; Ray is initialised by the caller.

    `folder` is where the parts lie meanwhile; `options` are those of `segpack pack`. Returns what `segpack join` printed.
    """
    task = pack_part.options(num_cpus=cpus)
    jobs = ["--jobs", str(cpus)]
    tasks = [
        task.remote(program, checkpoint, part, parts, folder, [*jobs, *options]) for part in range(1, parts + 1)
    ]
    folders = ray.get(tasks)
    return run([program, "join", *folders, "-o", str(out), *join_options])


def split(words):
    """The words before `--`, and those after it."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder that all workers see, or an address such as hf://OWNER/NAME")
    parser.add_argument("-o", "--output", required=True, help="the pack")
    parser.add_argument("--parts", type=int, required=True, help="how many parts")
    parser.add_argument("--folder", required=True, help="a folder for the parts, on the file system of the pack")
    parser.add_argument("--cpus", type=int, default=4, help="cores of one task (4)")
    parser.add_argument("--segpack", default="segpack", help="the program on the workers")
    parser.add_argument("--address", default=None, help="of the cluster; without it, RAY_ADDRESS or this machine")
    # argparse takes no options after --, where positional arguments came before others
    words, options = split(sys.argv[1:])
    arguments = parser.parse_args(words)
    ray.init(address=arguments.address)
    said = pack(
        arguments.checkpoint,
        arguments.output,
        arguments.parts,
        arguments.folder,
        options,
        program=arguments.segpack,
        cpus=arguments.cpus,
    )
    print(said, end="")


if __name__ == "__main__":
    main()

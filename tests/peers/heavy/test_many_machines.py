"""One checkpoint packed by many: the scripts of extractor/deploy, with Ray as it is, and stand-ins for the other two.

Ray runs here with two local workers. The Kubernetes manifest is validated against the published schema (kubernetes-validate);
no cluster has run it. The Slurm script runs with stand-ins for `sbatch` and `srun`, below; no Slurm has run it.
"""

import os
import stat
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from conftest import CHECKPOINTS, ROOT, SEGPACK, segpack

DEPLOY = ROOT / "extractor/deploy"
OPTIONS = ["--codec", "bf16-rans"]

# `sbatch` writes down what it was asked for, and runs an array's tasks in the wrong order; `srun` is the command alone
SBATCH = """#!/bin/sh
echo "$*" >> "$LOG"
for word; do case "$word" in
    --array=1-*) array=${word#--array=1-} ;;
    --dependency=*) joins=yes ;;
esac; script=$word; done
if [ -n "${array-}" ]; then
    k=$array
    while [ "$k" -gt 0 ]; do
        SLURM_JOB_ID=$((100 + k)) SLURM_ARRAY_TASK_ID=$k SLURM_CPUS_PER_TASK=1 "$script" >&2 || exit 1
        k=$((k - 1))
    done
    echo "100;cluster"
else
    SLURM_JOB_ID=200 "$script" >&2 || exit 1
    echo 200
fi
"""
SRUN = '#!/bin/sh\nexec "$@"\n'


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "pack"
    segpack("pack", CHECKPOINTS["tiny-full"], "-o", out, *OPTIONS)
    return out


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def ray_pack(out, folder, *options):
    """Runs the script as its user does, on a Ray of its own with a worker for each of two parts."""
    command = [sys.executable, DEPLOY / "ray_pack.py", CHECKPOINTS["tiny-full"], "-o", out, "--parts", "2"]
    command += ["--folder", folder, "--cpus", "1", "--segpack", SEGPACK, "--", *OPTIONS, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_two_ray_workers_and_a_join_give_the_pack_of_one_machine(whole, tmp_path):
    done = ray_pack(tmp_path / "pack", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    assert "joined of 2 parts" in done.stdout
    assert files(tmp_path / "pack") == files(whole)
    assert not list((tmp_path / "parts").iterdir()), "the parts were moved"
    # what fails says why
    done = ray_pack(tmp_path / "none", tmp_path / "parts", "--include", "x")
    assert done.returncode != 0
    assert "no component of this checkpoint" in done.stderr


def script(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_slurm_script_packs_every_part_and_joins_them_with_stand_ins_for_slurm(whole, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    script(tools, "sbatch", SBATCH)
    script(tools, "srun", SRUN)
    (tools / "segpack").symlink_to(SEGPACK)
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "N": "3",
        "CKPT": str(CHECKPOINTS["tiny-full"]),
        "PARTS": str(tmp_path / "parts"),
        "OUT": str(tmp_path / "pack"),
    }
    done = subprocess.run([DEPLOY / "slurm_pack.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    array, join = (tmp_path / "log").read_text().splitlines()
    assert "--array=1-3" in array
    assert "--dependency=afterok:100 " in join
    assert files(tmp_path / "pack") == files(whole)


def jobs():
    return list(yaml.safe_load_all((DEPLOY / "kubernetes_pack.yaml").read_text()))


def test_the_kubernetes_manifest_is_valid_and_says_one_number_of_parts():
    for job in jobs():
        kubernetes_validate.validate(job, "1.31", strict=True)
    pack, join = (job["spec"] for job in jobs())
    assert pack["completionMode"] == "Indexed"
    assert pack["completions"] == pack["parallelism"]
    for spec in (pack, join):
        container = spec["template"]["spec"]["containers"][0]
        (of,) = [e["value"] for e in container["env"] if e["name"] == "N"]
        assert int(of) == pack["completions"]


def test_the_commands_of_the_kubernetes_manifest_pack_and_join(whole, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "segpack").symlink_to(SEGPACK)
    pack, join = (job["spec"]["template"]["spec"]["containers"][0]["command"] for job in jobs())
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "N": "2",
        "CKPT": str(CHECKPOINTS["tiny-full"]),
        "OPTIONS": " ".join(OPTIONS),
        "OUT": str(tmp_path / "data/omni.segpack"),
    }

    def run(command, **more):
        here = [*command[:2], command[2].replace("/data/", f"{tmp_path}/data/")]
        subprocess.run(here, env={**environment, **more}, check=True, capture_output=True)

    Path(tmp_path / "data/parts").mkdir(parents=True)
    for index in ("1", "0"):
        run(pack, JOB_COMPLETION_INDEX=index)
    run(join)
    assert files(tmp_path / "data/omni.segpack") == files(whole)
    run(join)  # a pod that is started again finds the pack

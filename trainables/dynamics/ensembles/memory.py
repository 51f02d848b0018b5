"""How many trajectories a device holds at once."""

from __future__ import annotations

import torch

from trainables.dynamics.ensembles.backend import Backend
from trainables.dynamics.ensembles.choose import Trial
from trainables.trajectory import Bench

#: More of them at once gain nothing: on a processor larger stacks leave the cache.
MOST = {"cpu": 64, "cuda": 1024}
#: Share of a GPU's free memory that a stack may fill.
SHARE = 0.8
#: Numbers in float64 that a step holds for each parameter of a trajectory, diagnostics included.
COPIES = 16
#: Memory on a processor that a stack may fill: it is other people's too.
CPU_BYTES = 2**30


def most_trajectories(bench: Bench, backend: Backend) -> int:
    """Trajectories that fit on the device of a bench, at least 1.

    On a GPU from the memory that a step of a few trajectories took; on a processor, where a
    backend works through them in chunks, from their parameters alone.
    """
    trial = Trial.of(bench)
    count = len(trial.stack[0])
    numbers = sum(p.numel() for p in trial.stack) // count
    needed, free = 8.0 * COPIES * numbers, float(CPU_BYTES)
    if bench.inputs.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.inputs.device)
        before = torch.cuda.memory_allocated(bench.inputs.device)
        try:
            trial.dependence(backend)
        except torch.OutOfMemoryError:
            return 1
        peak = torch.cuda.max_memory_allocated(bench.inputs.device)
        needed += (peak - before) / count
        free = SHARE * torch.cuda.mem_get_info(bench.inputs.device)[0]
    return max(min(int(free / needed), MOST.get(bench.inputs.device.type, 1)), 1)

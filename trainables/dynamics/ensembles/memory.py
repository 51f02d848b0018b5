"""How many trajectories a device holds at once."""

from __future__ import annotations

import torch

from trainables.dynamics.ensembles.backend import Backend
from trainables.dynamics.ensembles.choose import TRIAL, Trial
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
    numbers = sum(p.numel() for p in bench.network(0, bench.dtype).parameters())
    needed, free = 8.0 * COPIES * numbers, float(CPU_BYTES)
    if bench.inputs.device.type == "cuda":
        trial = Trial.of(bench)
        torch.cuda.reset_peak_memory_stats(bench.inputs.device)
        before = torch.cuda.memory_allocated(bench.inputs.device)
        try:
            trial.results(backend, list(range(TRIAL)))
        except torch.OutOfMemoryError:
            return 1
        peak = torch.cuda.max_memory_allocated(bench.inputs.device)
        needed += (peak - before) / TRIAL
        free = SHARE * torch.cuda.mem_get_info(bench.inputs.device)[0]
    return max(min(int(free / needed), MOST.get(bench.inputs.device.type, 1)), 1)

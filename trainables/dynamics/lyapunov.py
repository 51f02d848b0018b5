"""Finite-time Lyapunov exponent of the training map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainables.domain import Point, Training
from trainables.tasks import Task
from trainables.trajectory import Bench, Trajectory, deterministic


def lyapunov_exponent(
    task: Task, point: Point, training: Training, seed: int, window: float = 0.5
) -> float:
    """Mean rate at which a small perturbation grows per step, late in a training.

    A second trajectory starts sqrt(u) ||theta|| away in a random direction, sees the same batches
    and is pulled back to that distance along its own direction after every step (momentum and
    Adam's moments by the same factor). The exponent is the mean of ln(||d'|| / ||d||) over the
    last steps. It is negative in the periodic windows of the restrained regime and slightly
    positive in the drift along flat directions, so it describes a training but decides no label.

    Args:
        task: the task.
        point: where to train.
        training: how; its first k is used.
        seed: seed of initial weights, data order and perturbation.
        window: share of the steps, from the end, that the mean is taken over.

    Returns:
        The exponent per step; NaN if the training blew up.
    """
    with deterministic(training.device):
        bench = Bench.of(task, training)
        base, other = (Trajectory(bench, point, training.ks[0], seed) for _ in range(2))
        generator = torch.Generator().manual_seed(seed)
        size = math.sqrt(np.finfo(training.dtype).eps / 2)
        distance = _restart(base, other, size, generator)
        rates = []
        for step in range(training.steps):
            rows = bench.batch(seed, step)
            base.step(rows)
            other.step(rows)
            moved = _norm(_differences(base.parameters, other.parameters))
            if not math.isfinite(moved):
                return math.nan
            if moved == 0:
                distance = _restart(base, other, size, generator)
                continue
            rates.append((step, math.log(moved / distance)))
            distance = _pull_back(base, other, size * _norm(base.parameters) / moved)
        late = [rate for step, rate in rates if step >= (1 - window) * training.steps]
        return float(np.mean(late)) if late else math.nan


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float((t.detach().double() ** 2).sum()) for t in tensors))


def _differences(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    return [b.detach().double() - a.detach().double() for a, b in zip(first, second, strict=True)]


@torch.no_grad()
def _restart(base: Trajectory, other: Trajectory, size: float, generator: torch.Generator) -> float:
    """Put `other` at a random point at the right distance; the distance as rounded is returned."""
    noise = [
        torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
        for p in base.parameters
    ]
    factor = size * _norm(base.parameters) / _norm(noise)
    for p, q, d in zip(base.parameters, other.parameters, noise, strict=True):
        q.copy_(p.double() + factor * d)
    other.slots = [tuple(t.clone() for t in slots) for slots in base.slots]
    return _norm(_differences(base.parameters, other.parameters))


@torch.no_grad()
def _pull_back(base: Trajectory, other: Trajectory, factor: float) -> float:
    for p, q in zip(base.parameters, other.parameters, strict=True):
        q.copy_(p.double() + factor * (q.double() - p.double()))
    other.slots = [
        tuple(
            (a.double() + factor * (b.double() - a.double())).to(a.dtype)
            for a, b in zip(mine, theirs, strict=True)
        )
        for mine, theirs in zip(base.slots, other.slots, strict=True)
    ]
    return _norm(_differences(base.parameters, other.parameters))

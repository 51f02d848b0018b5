"""Finite-time Lyapunov exponent of the training map, by a renormalised neighbour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.domain import Point, Training
from trainables.tasks import Task
from trainables.trajectory import Bench, Trajectory, deterministic


class Neighbour:
    """A training that starts sqrt(u) ||theta|| beside another and is kept at that distance.

    It sees the same batches and the same k. After every step it is pulled back to sqrt(u)
    ||theta|| along its own direction; the optimiser's and the stabiliser's state and the network's
    buffers by the same factor, for they are part of what the map acts on.

    Args:
        base: the trajectory to go beside, before its first step.
    """

    def __init__(self, base: Trajectory) -> None:
        self.base = base
        bench = base.bench
        self.other = Trajectory(bench, base.point, base.k, base.seed, base.order)
        self._size = math.sqrt(bench.roundoff)
        self._restarts = 0
        self._distance = self._restart()
        #: Ln of the growth of the distance at each step; infinite where it began anew.
        self.rates: list[float] = []

    def step(self, rows: Tensor | slice) -> None:
        """One update, made after the base has made its own on the same rows."""
        self.other.step(rows)
        moved = _norm(_differences(self.base.parameters, self.other.parameters))
        alive = math.isfinite(_norm(self.base.parameters))
        if not alive or self._distance == 0:
            self.rates.append(math.nan)
        elif moved == 0 or not math.isfinite(moved):
            # Squeezed below the last bit, or thrown off by a state that is not of this map: begin
            # anew, without a rate for this step.
            self._distance = self._restart()
            self.rates.append(math.inf)
        else:
            self.rates.append(math.log(moved / self._distance))
            self._distance = self._pull_back(self._size * _norm(self.base.parameters) / moved)

    @torch.no_grad()
    def _restart(self) -> float:
        """Put the neighbour at a random point at the right distance; the rounded distance."""
        generator = torch.Generator().manual_seed(self.base.seed + self._restarts)
        self._restarts += 1
        noise = random_like(self.base.parameters, generator)
        factor = self._size * _norm(self.base.parameters) / _norm(noise)
        state = self.base.state_dict()
        self.other.load_state_dict(state)
        for p, q, d in zip(self.base.parameters, self.other.parameters, noise, strict=True):
            q.copy_(p.double() + factor * d)
        return _norm(_differences(self.base.parameters, self.other.parameters))

    @torch.no_grad()
    def _pull_back(self, factor: float) -> float:
        for p, q in zip(self.base.parameters, self.other.parameters, strict=True):
            q.copy_(pulled(p, q, factor))
        self.other.slots = [
            tuple(pulled(a, b, factor) for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(self.base.slots, self.other.slots, strict=True)
        ]
        for b, c in zip(self.base.buffers, self.other.buffers, strict=True):
            if c.is_floating_point() and not torch.equal(b, c):
                c.copy_(pulled(b, c, factor))
        if self.base.action is not None and self.other.action is not None:
            mine, theirs = self.base.action.state_dict(), self.other.action.state_dict()
            state = {name: pulled(mine[name], theirs[name], factor) for name in mine}
            self.other.action.load_state_dict(state)
        return _norm(_differences(self.base.parameters, self.other.parameters))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "other": self.other.state_dict(),
            "restarts": self._restarts,
            "distance": self._distance,
            "rates": list(self.rates),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, to the bit. The base is restored by its owner."""
        self.other.load_state_dict(state["other"])
        self._restarts, self._distance = state["restarts"], state["distance"]
        self.rates = list(state["rates"])


def mean_rate(rates: Sequence[float]) -> float | None:
    """Mean of rates of growth, those of steps with a fresh start (infinite ones) left out.

    Returns:
        None if a rate is NaN (the training blew up), or none was measured.
    """
    late = np.array(rates, dtype=np.float64)
    late = late[late != math.inf]
    return float(late.mean()) if len(late) and np.isfinite(late).all() else None


def lyapunov_exponent(
    task: Task, point: Point, training: Training, seed: int, window: float = 0.5
) -> float:
    """Mean rate at which a small perturbation grows per step, late in a training.

    It is negative in the periodic windows of the restrained regime and slightly positive in the
    drift along flat directions, so it describes a training but decides no label.

    Args:
        task: the task.
        point: where to train.
        training: how; its first k is used.
        seed: seed of initial weights, data order and perturbation.
        window: share of the steps, from the end, that the mean is taken over.

    Returns:
        The exponent per step; NaN if the training blew up.
    """
    with deterministic(training.device, training.dtype == "tfloat32"):
        bench = Bench.of(task, training)
        base = Trajectory(bench, point, training.ks[0], seed)
        neighbour = Neighbour(base)
        steps = training.steps_of(point.lr)
        for step in range(steps):
            rows = bench.batch(seed, step)
            base.step(rows)
            neighbour.step(rows)
        exponent = mean_rate(neighbour.rates[math.ceil((1 - window) * steps) :])
    return math.nan if exponent is None else exponent


def pulled(mine: Tensor, theirs: Tensor, factor: float | Tensor) -> Tensor:
    """What lies a factor as far from mine as theirs does, computed in float64.

    Second moments are not negative, and their roots are taken: what is nowhere negative stays so.

    Args:
        mine: (...), or (pairs, ...) with a tensor of factors.
        theirs: like `mine`.
        factor: a number, or (pairs,) in float64.
    """
    if not isinstance(factor, Tensor):
        one = torch.tensor([factor], dtype=torch.float64, device=mine.device)
        return pulled(mine[None], theirs[None], one)[0]
    column = factor.reshape(-1, *[1] * (mine.ndim - 1))
    moved = mine.double() + column * (theirs.double() - mine.double())
    negative = (torch.minimum(mine, theirs) < 0).reshape(len(mine), -1).any(1)
    kept = torch.where(negative.reshape(column.shape), moved, moved.clamp_min(0))
    return kept.to(mine.dtype)


def random_like(tensors: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Standard normal numbers in float64, the same on every device."""
    return [
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device) for t in tensors
    ]


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float((t.detach().double() ** 2).sum()) for t in tensors))


def _differences(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    return [b.detach().double() - a.detach().double() for a, b in zip(first, second, strict=True)]

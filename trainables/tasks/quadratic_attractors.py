"""Switching quadratic attractors (Fang et al. 2022, section 3.3, Fig. 1).

Each step descends on 1/2 ||x - a||^2 with a drawn from four noisy attractors about the origin, the
minimum of their mean. The switching, like that of mini-batches, makes SGD oscillate; the stability
regulariser is to damp it, and a moving anchor to let it converge all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.losses import SQUARED_ERROR, Loss
from trainables.options import number_from, whole


@dataclass(frozen=True)
class QuadraticAttractors:
    """Four attractors at (+-1, +-1); the start is N(0, 1).

    The paper names neither places nor noise; these are stabmap's own. The picks are an order of
    `samples` noisy places, new in each epoch. The noise of opposite attractors is opposite, so
    that the mean of all places is the origin but for rounding.

    Args:
        samples: noisy places in all, a multiple of 4.
        noise: standard deviation of a place about its attractor, in each direction, >= 0.
    """

    samples: int = 400
    noise: float = 0.1

    name: ClassVar[str] = "quadratic-attractors"
    source: ClassVar[str] = "Fang et al. 2022, section 3.3, Fig. 1 (places and noise our own)"
    needs: ClassVar[str | None] = None
    metric_name: ClassVar[str] = "distance from the minimum, the origin"
    regularised_layer: ClassVar[str | None] = ""
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = SQUARED_ERROR
    batch: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        mistakes = [
            *whole("task.samples", self.samples, 4, 10**6),
            *number_from("task.noise", self.noise, 0, 1e6),
        ]
        if not mistakes and self.samples % 4:
            law, remedy = "a multiple of 4: one for each attractor", f"use {self.samples // 4 * 4}"
            mistakes.append(Mistake("task.samples", self.samples, law, remedy))
        if mistakes:
            raise InputError(mistakes)

    def module(self, seed: int) -> nn.Module:
        """A linear layer without bias on the input 1: its two weights are the state x."""
        with torch.random.fork_rng(devices=[]):  # PyTorch's own starting values are not wanted
            layer = nn.Linear(1, 2, bias=False, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.random.RandomState(seed).randn(2, 1)))
        return layer

    def train_data(self) -> tuple[Tensor, Tensor]:
        """Ones, (samples, 1), and the noisy places, (samples, 2)."""
        random = np.random.RandomState(0)
        half = np.tile([[1.0, 1.0], [1.0, -1.0]], (self.samples // 4, 1))
        half += self.noise * random.randn(*half.shape)
        places = torch.from_numpy(np.concatenate([half, -half]))
        return torch.ones(self.samples, 1).double(), places

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The input 1 and the origin."""
        return torch.ones(1, 1).double(), torch.zeros(1, 2).double()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Distance from the origin."""
        return float((outputs - targets).norm(dim=1).max())

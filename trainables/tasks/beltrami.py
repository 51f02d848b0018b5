"""The Beltrami flow of a noisy signal as gradient descent (Sun et al. 2024, section 3.2, Fig. 2).

Explicit Euler for u_t = (s / sqrt(s^2 + delta^2))_x + r (I - u) with s = u_x, distance of two
points 1 and no flux through the ends is gradient descent with lr = dt on

    sum r/2 (I - u)^2 + sum sqrt(s^2 + delta^2)                                         (eq. 4).

The flux is bounded, so a step that is too large for the diffusion is restrained, and only one that
is too large for the data term diverges (`analysis.theory.beltrami_divergence_bound`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import InputError
from trainables.losses import Loss
from trainables.options import number_from, whole


class Line(nn.Module):
    """Values on a line, all of them parameters.

    Args:
        values: their initial values, (1, points).
    """

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, inputs: Tensor) -> Tensor:
        """The values, (batch, points), whatever the inputs are."""
        return self.values.expand(len(inputs), -1)


@dataclass(frozen=True)
class Beltrami:
    """The Beltrami flow of a box with noise, from the noisy signal itself.

    The paper names no settings for its Fig. 2. These defaults are stabmap's own; they show what the
    figure shows: restrained at 10 and 100 times the bound of the linearised equation, divergent at
    1000 times.

    Args:
        points: number of points.
        delta: rounds off the absolute value of the slope, > 0.
        fidelity: weight r of the data term, >= 0.
        noise_seed: seed of the noise in the signal.
    """

    points: int = 200
    delta: float = 0.01
    fidelity: float = 1.0
    noise_seed: int = 0

    name: ClassVar[str] = "beltrami"
    source: ClassVar[str] = "Sun et al. 2024, section 3.2, Fig. 2 (settings our own)"
    needs: ClassVar[str | None] = None
    metric_name: ClassVar[str] = "largest distance from the signal"
    regularised_layer: ClassVar[str | None] = None
    stand_in: ClassVar[str | None] = None
    batch: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        mistakes = [
            *whole("task.points", self.points, 3, 65536),
            *number_from("task.delta", self.delta, 1e-12, 1e12),
            *number_from("task.fidelity", self.fidelity, 0, 1e12),
            *whole("task.noise_seed", self.noise_seed, 0, 2**32 - 1),
        ]
        if mistakes:
            raise InputError(mistakes)

    @property
    def loss(self) -> Loss:
        """Data term and length of the graph, each a sum over the line."""
        return Loss("beltrami-energy", self._energy)

    def module(self, seed: int) -> nn.Module:
        """The noisy signal, whatever the seed."""
        return Line(self._signal())

    def train_data(self) -> tuple[Tensor, Tensor]:
        """The signal, as input and as target."""
        return self._signal(), self._signal()

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The training data: there are no others."""
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Largest distance from the signal."""
        return float((outputs - targets).abs().max())

    def _energy(self, u: Tensor, signal: Tensor) -> Tensor:
        slope = torch.diff(u)
        length = torch.hypot(slope, torch.full_like(slope, self.delta)).sum()
        return (self.fidelity / 2 * ((signal - u) ** 2).sum() + length) / len(u)

    def _signal(self) -> Tensor:
        """1 from 3/10 to 7/10 of the line and 0 elsewhere, with noise of size 1/10, (1, points)."""
        place = np.arange(self.points) / self.points
        noise = np.random.RandomState(self.noise_seed).randn(self.points)
        box = ((place >= 0.3) & (place < 0.7)).astype(np.float64)
        return torch.from_numpy(box + 0.1 * noise)[None]

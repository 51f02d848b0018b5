"""Tiny tasks with known answers, shared by the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainables.losses import MEAN_SQUARED_ERROR, Loss


@dataclass(frozen=True)
class Bowl:
    """1/2 sum_i h_i (w_i - 1)^2: one linear layer without bias, gradient descent in closed form.

    The data are chosen so that the mean squared error has exactly these curvatures.
    """

    curvatures: tuple[float, ...] = (1.0, 0.5)
    start: float = 2.0

    name: ClassVar[str] = "bowl"
    metric_name: ClassVar[str] = "first output"
    regularised_layer: ClassVar[str] = ""
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = MEAN_SQUARED_ERROR
    batch: ClassVar[int | None] = None

    def module(self, seed: int) -> nn.Module:
        size = len(self.curvatures)
        layer = nn.Linear(size, 1, bias=False, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            noise = torch.rand(1, size, generator=generator, dtype=torch.float64)
            layer.weight.copy_(self.start + 0.1 * noise)
        return layer

    def train_data(self) -> tuple[Tensor, Tensor]:
        size = len(self.curvatures)
        rows = torch.diag(torch.tensor(self.curvatures, dtype=torch.float64).mul(size / 2).sqrt())
        return rows, rows.sum(1, keepdim=True)

    def test_data(self) -> tuple[Tensor, Tensor]:
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        return float(outputs[0, 0])


class _Noisy(nn.Module):
    """A linear layer with dropout from the global generator, which nobody seeds."""

    def __init__(self, layer: nn.Module, rate: float) -> None:
        super().__init__()
        self.layer = layer
        self.dropout = nn.Dropout(rate)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(self.dropout(inputs))
        return outputs


@dataclass(frozen=True)
class NoisyBowl(Bowl):
    """A bowl whose training differs from call to call."""

    rate: float = 0.3

    name: ClassVar[str] = "noisy-bowl"

    def module(self, seed: int) -> nn.Module:
        return _Noisy(super().module(seed), self.rate)


@dataclass(frozen=True)
class SpiedBowl(Bowl):
    """A bowl that calls `spy` whenever a network is made."""

    spy: Callable[[], None] = lambda: None

    name: ClassVar[str] = "spied-bowl"

    def module(self, seed: int) -> nn.Module:
        self.spy()
        return super().module(seed)

"""A task whose training takes a fixed time and no processor: what is left is stabmap's own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainables.losses import MEAN_SQUARED_ERROR, Loss


class Slow(nn.Module):
    """One weight, and a rest at each update."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, late."""
        if torch.is_grad_enabled():
            time.sleep(self.seconds)
        outputs: Tensor = self.linear(x)
        return outputs


@dataclass(frozen=True)
class Sleeper:
    """A line through one point, learnt at leisure.

    Args:
        seconds: of an update.
    """

    seconds: float = 0.01

    name: ClassVar[str] = "sleeper"
    metric_name: ClassVar[str] = "loss"
    regularised_layer: ClassVar[str] = "linear"
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = MEAN_SQUARED_ERROR
    batch: ClassVar[int | None] = None

    def module(self, seed: int) -> nn.Module:
        """The network."""
        torch.manual_seed(seed)
        return Slow(self.seconds)

    def train_data(self) -> tuple[Tensor, Tensor]:
        """Four times the same point."""
        ones = torch.ones(4, 1, dtype=torch.float64)
        return ones, ones

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The same."""
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Mean squared error."""
        return float((outputs - targets).square().mean())

"""The three scalar functions of "Step size matters" (Nar and Sastry 2018, section 1).

1. (2/3) |x|^(3/2): almost every start ends in the cycle of +-lr^2 / 4. The function has one value
   on it, so the verdict sees a loss at rest and says stable; the metric tells.
2. (x^2 + 1) (x - 1)^2 (x - 2)^2: the learning rate chooses between the minima 1 and 2.
3. x^power: the learning rate decides which starts converge.

What is known in closed form is in `analysis.theory.scalar_examples`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.losses import Loss
from trainables.options import number_from, whole


@dataclass(frozen=True)
class ScalarExample:
    """Gradient descent on a function of one number.

    Args:
        number: which of the examples, 1, 2 or 3.
        low: smallest start; starts are uniform from `low` to `high`, one a seed.
        high: largest start, >= `low`; equal to it for one start.
        power: of example 3, even, >= 4.
    """

    number: int = 2
    low: float = 0.6
    high: float = 2.2
    power: int = 4

    name: ClassVar[str] = "scalar-example"
    source: ClassVar[str] = "Nar and Sastry 2018, section 1, examples 1 to 3"
    needs: ClassVar[str | None] = None
    metric_name: ClassVar[str] = "x"
    regularised_layer: ClassVar[str | None] = ""
    stand_in: ClassVar[str | None] = None
    batch: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        mistakes = [
            *whole("task.number", self.number, 1, 3),
            *number_from("task.low", self.low, -1e6, 1e6),
            *number_from("task.high", self.high, -1e6, 1e6),
            *whole("task.power", self.power, 4, 64),
        ]
        if not mistakes and self.low > self.high:
            law = f"at most task.high, {self.high:g}"
            mistakes.append(Mistake("task.low", self.low, law, "exchange them"))
        if not mistakes and self.power % 2:
            law = "even, or there is no minimum"
            mistakes.append(Mistake("task.power", self.power, law, f"use {self.power + 1}"))
        if mistakes:
            raise InputError(mistakes)

    @property
    def loss(self) -> Loss:
        """The function of x, which is the output."""
        return Loss(f"scalar-example-{self.number}", self._mean)

    def module(self, seed: int) -> nn.Module:
        """A linear layer without bias on the input 1: its weight is x."""
        with torch.random.fork_rng(devices=[]):  # PyTorch's own starting values are not wanted
            layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        share = np.random.RandomState(seed).random_sample()
        start = self.low + (self.high - self.low) * share
        nn.init.constant_(layer.weight, min(start, self.high))
        return layer

    def train_data(self) -> tuple[Tensor, Tensor]:
        """The input 1 and the least value of the function, 0; both (1, 1)."""
        return torch.ones(1, 1).double(), torch.zeros(1, 1).double()

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The training data: there are no others."""
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Where x is."""
        return float(outputs.mean())

    def _mean(self, x: Tensor, _targets: Tensor) -> Tensor:
        if self.number == 1:
            return (2 / 3 * x.abs() ** 1.5).mean()
        if self.number == 2:
            return ((x**2 + 1) * ((x - 1) * (x - 2)) ** 2).mean()
        return (x**self.power).mean()

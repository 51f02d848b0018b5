"""A two-layer ReLU network fitted to another one (Nar and Sastry 2018, section 4, theorem 4).

f(x) = W g(V x - b) with g the ReLU and b fixed. Gradient descent on factor sum_i (f(x_i) - y_i)^2
converges only to networks with |x_i| |f(x_i)| <= 1 / (2 factor lr) for all i
(`analysis.theory.relu_output_bound`); at larger rates it alternates between two networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import InputError
from trainables.losses import Loss, summed_squares
from trainables.options import number_from, whole


class ReLUFit(nn.Module):
    """W g(V x - b) for numbers x.

    Args:
        output: W, (1, units).
        hidden: V, (units, 1).
        thresholds: b, (units,), which are not trained.
    """

    thresholds: Tensor

    def __init__(self, output: Tensor, hidden: Tensor, thresholds: Tensor) -> None:
        super().__init__()
        units = len(thresholds)
        with torch.random.fork_rng(devices=[]):  # PyTorch's own starting values are not wanted
            self.hidden = nn.Linear(1, units, bias=False, dtype=torch.float64)
            self.output = nn.Linear(units, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.hidden.weight.copy_(hidden)
            self.output.weight.copy_(output)
        self.register_buffer("thresholds", thresholds)

    def forward(self, x: Tensor) -> Tensor:
        """f(x), (..., 1), for x of (..., 1)."""
        values: Tensor = self.output(torch.relu(self.hidden(x) - self.thresholds))
        return values


@dataclass(frozen=True)
class TwoLayerReLU:
    """A network learns another of its kind, with the same b, on x = 0, 1/N, ..., 1 - 1/N.

    All weights and thresholds are N(0, 1). The paper's own draws cannot be had (TensorFlow 1), and
    what happens differs from draw to draw.

    Args:
        points: number N of samples.
        units: hidden units.
        factor: what the sum of squared errors is multiplied with: 1 in the experiment, 1/2 in the
            theorem. A loss of N times fewer points allows an N times larger lr.
        teacher_seed: seed of the other network and of b.
    """

    points: int = 1000
    units: int = 20
    factor: float = 1.0
    teacher_seed: int = 0

    name: ClassVar[str] = "two-layer-relu"
    source: ClassVar[str] = "Nar and Sastry 2018, section 4, theorem 4 and its experiment"
    needs: ClassVar[str | None] = None
    metric_name: ClassVar[str] = "largest |x| |f(x)|, which the learning rate bounds"
    regularised_layer: ClassVar[str | None] = "output"
    stand_in: ClassVar[str | None] = None
    batch: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        mistakes = [
            *whole("task.points", self.points, 1, 10**6),
            *whole("task.units", self.units, 1, 4096),
            *number_from("task.factor", self.factor, 1e-9, 1e9),
            *whole("task.teacher_seed", self.teacher_seed, 0, 2**32 - 1),
        ]
        if mistakes:
            raise InputError(mistakes)

    @property
    def loss(self) -> Loss:
        """`factor` times the sum of squared errors."""
        return summed_squares(self.factor)

    def module(self, seed: int) -> nn.Module:
        """The network with W and V from the seed and the other network's b."""
        return self._network(np.random.RandomState(seed))

    def train_data(self) -> tuple[Tensor, Tensor]:
        """All x and what the other network makes of them, each as one sample (1, points, 1)."""
        x = torch.arange(self.points).double()[None, :, None] / self.points
        # A generator of a pair of numbers, so that no replicate starts as the other network.
        teacher = self._network(np.random.RandomState([self.teacher_seed, 1]))
        with torch.no_grad():
            return x, teacher(x)

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The training data: there are no others."""
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Largest |x| |f(x)|."""
        x = torch.arange(self.points).to(outputs) / self.points
        return float((x * outputs[0, :, 0].abs()).max())

    def _network(self, random: np.random.RandomState) -> ReLUFit:
        thresholds = np.random.RandomState([self.teacher_seed, 0]).randn(self.units)
        output, hidden = random.randn(1, self.units), random.randn(self.units, 1)
        return ReLUFit(*(torch.from_numpy(a) for a in (output, hidden, thresholds)))

"""The heat equation on a line as gradient descent (Sun et al. 2024, section 3.1, Fig. 1).

Explicit Euler for u_t = u_xx with step dt is gradient descent with lr = dt on the energy
1/2 sum_i (u_(i+1) - u_i)^2 (distance of two points 1). Its sharpness is known, so the largest
bounded step is too: `analysis.theory.heat_dirichlet_bound`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainables.domain import InputError
from trainables.losses import Loss
from trainables.options import whole


class HeldLine(nn.Module):
    """Values on a line whose two ends are held; the inner values are the parameters.

    Args:
        inner: their initial values, (1, points - 2).
    """

    def __init__(self, inner: Tensor) -> None:
        super().__init__()
        self.inner = nn.Parameter(inner)

    def forward(self, ends: Tensor) -> Tensor:
        """All values, (batch, points), for values at the ends, (batch, 2)."""
        return torch.cat([ends[:, :1], self.inner.expand(len(ends), -1), ends[:, 1:]], 1)


def _energy(u: Tensor, _targets: Tensor) -> Tensor:
    return 0.5 * (torch.diff(u) ** 2).sum() / len(u)


@dataclass(frozen=True)
class Heat:
    """The heat equation from a triangle with slopes of 1/10; the start is the same for every seed.

    Args:
        points: number of points with both ends (31 in the paper).
    """

    points: int = 31

    name: ClassVar[str] = "heat"
    source: ClassVar[str] = "Sun et al. 2024, section 3.1, Fig. 1"
    needs: ClassVar[str | None] = None
    metric_name: ClassVar[str] = "largest absolute value on the line (0 at the minimum)"
    regularised_layer: ClassVar[str | None] = None
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = Loss("heat-energy", _energy)
    batch: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        mistakes = list(whole("task.points", self.points, 3, 65536))
        if mistakes:
            raise InputError(mistakes)

    def module(self, seed: int) -> nn.Module:
        """The triangle."""
        index = torch.arange(1, self.points - 1, dtype=torch.float64)
        return HeldLine(torch.minimum(index, self.points - 1 - index)[None] / 10)

    def train_data(self) -> tuple[Tensor, Tensor]:
        """The values at the ends, 0, and what the values tend to, 0 too."""
        return torch.zeros(1, 2).double(), torch.zeros(1, self.points).double()

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The training data: there are no others."""
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Largest distance from the minimum."""
        return float((outputs - targets).abs().max())

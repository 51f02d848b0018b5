"""Addition modulo a prime, learnt from a share of all pairs: grokking.

Prieto et al. 2025, "Grokking at the edge of numerical stability": a network with two hidden layers
of 200 units, 113 x 113 pairs of which 40 % are trained on, full batches, AdamW. Without weight
decay or a stabiliser the softmax saturates in floating point and the held-out accuracy stays low.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.losses import CROSS_ENTROPY, Loss
from trainables.options import whole


@dataclass(frozen=True)
class ModularAddition:
    """Classes (a + b) mod p of pairs, each number one-hot; PyTorch's default weights.

    Args:
        modulus: p; all p^2 pairs are there.
        train_share: share of the pairs that is trained on, drawn once.
        width: units of each of the two hidden layers.
        batch_size: mini-batch size, or None for full-batch gradient descent.
    """

    modulus: int = 113
    train_share: float = 0.4
    width: int = 200
    batch_size: int | None = None

    name: ClassVar[str] = "modular-addition"
    source: ClassVar[str] = "Prieto et al. 2025, section 2"
    needs: ClassVar[str | None] = None
    metric_name: ClassVar[str] = "accuracy on held-out pairs"
    regularised_layer: ClassVar[str] = "output"
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = CROSS_ENTROPY

    def __post_init__(self) -> None:
        mistakes = list(whole("task.modulus", self.modulus, 2, 1024))
        mistakes += whole("task.width", self.width, 1, 65536)
        share = self.train_share
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not number or not 0 < share < 1:
            law = "a number in (0, 1)"
            mistakes.append(Mistake("task.train_share", share, law, "use 0.4"))
        elif not mistakes and not 0 < self._count < self.modulus**2:
            law = f"leaves {self._count} of {self.modulus**2} pairs to train on"
            mistakes.append(Mistake("task.train_share", share, law, "use 0.4"))
        if self.batch_size is not None and not mistakes:
            mistakes += whole("task.batch_size", self.batch_size, 1, self._count)
        if mistakes:
            raise InputError(mistakes)

    @property
    def batch(self) -> int | None:
        """Mini-batch size."""
        return self.batch_size

    @property
    def _count(self) -> int:
        """Pairs that are trained on."""
        return int(self.train_share * self.modulus**2)

    def module(self, seed: int) -> nn.Module:
        """The network with initial weights from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: OrderedDict[str, nn.Module] = OrderedDict(
                hidden1=nn.Linear(2 * self.modulus, self.width),
                relu1=nn.ReLU(),
                hidden2=nn.Linear(self.width, self.width),
                relu2=nn.ReLU(),
                output=nn.Linear(self.width, self.modulus),
            )
            return nn.Sequential(layers).double()

    def train_data(self) -> tuple[Tensor, Tensor]:
        """Rows of two one-hot numbers, (pairs, 2 p), and their sums."""
        return self._pairs(slice(self._count))

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The other pairs."""
        return self._pairs(slice(self._count, None))

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Share of pairs whose largest output is the right one."""
        return float((outputs.argmax(1) == targets).double().mean())

    def _pairs(self, part: slice) -> tuple[Tensor, Tensor]:
        order = np.random.RandomState(0).permutation(self.modulus**2)[part]
        pairs = torch.from_numpy(np.stack(np.divmod(order, self.modulus), 1))
        return F.one_hot(pairs, self.modulus).flatten(1).double(), pairs.sum(1) % self.modulus

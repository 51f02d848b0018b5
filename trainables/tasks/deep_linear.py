"""Deep linear networks (Nar and Sastry 2018, "Step size matters", sections 2 and 3).

Gradient descent on 1/2 ||W_L ... W_1 - R||^2 (Frobenius norm), which is the paper's
1/(2 N) sum_i ||R x_i - W_L ... W_1 x_i||^2 for whitened inputs. R is symmetric with eigenvalues of
one's choice. From the identity and for lr at most 1 / (L rho^(2 (L - 1) / L)), rho the largest
eigenvalue, the product tends to R, or to the closest positive semidefinite matrix (theorems 2 and
3); a solution with equal layers attracts up to twice that (`analysis.theory.deep_linear_lr_bound`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import InputError
from trainables.losses import Loss, summed_squares
from trainables.options import as_numbers, choice, numbers, whole


@dataclass(frozen=True)
class DeepLinear:
    """A product of square matrices that is to become R.

    Args:
        depth: number L of layers.
        eigenvalues: of R (its size follows), at least one.
        start: `identity` for every layer, or `random`: N(0, 1 / size) for every entry.
        basis_seed: seed of a random orthonormal basis of R; None for a diagonal R. In a rotated
            basis the layers differ by rounding errors, which lead away from the limit of theorem 3.
    """

    depth: int = 3
    eigenvalues: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5, 0.1)
    start: str = "identity"
    basis_seed: int | None = None

    name: ClassVar[str] = "deep-linear"
    source: ClassVar[str] = "Nar and Sastry 2018, sections 2 and 3, theorems 1 to 3"
    needs: ClassVar[str | None] = None
    metric_name: ClassVar[str] = "distance of the product from the target (Frobenius norm)"
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = summed_squares(0.5)
    batch: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "eigenvalues", as_numbers(self.eigenvalues))
        mistakes = [
            *whole("task.depth", self.depth, 1, 64),
            *numbers("task.eigenvalues", self.eigenvalues, 256),
            *choice("task.start", self.start, ("identity", "random")),
        ]
        if self.basis_seed is not None:
            mistakes += whole("task.basis_seed", self.basis_seed, 0, 2**32 - 1)
        if mistakes:
            raise InputError(mistakes)

    @property
    def regularised_layer(self) -> str | None:
        """The last layer."""
        return f"layer{self.depth}"

    def module(self, seed: int) -> nn.Module:
        """Linear layers without biases, `layer1` to the last."""
        size, random = len(self.eigenvalues), np.random.RandomState(seed)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number in range(1, self.depth + 1):
            weight = np.eye(size)
            if self.start == "random":
                weight = random.randn(size, size) / np.sqrt(size)
            with torch.random.fork_rng(devices=[]):  # PyTorch's own starting values are not wanted
                layer = nn.Linear(size, size, bias=False, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(weight))
            layers[f"layer{number}"] = layer
        return nn.Sequential(layers)

    def train_data(self) -> tuple[Tensor, Tensor]:
        """The unit vectors and what R makes of them, each as one sample (1, size, size)."""
        size = len(self.eigenvalues)
        target = np.diag(self.eigenvalues)
        if self.basis_seed is not None:
            entries = np.random.RandomState(self.basis_seed).randn(size, size)
            basis = np.linalg.qr(entries)[0]
            target = basis @ target @ basis.T
        return torch.eye(size).double()[None], torch.from_numpy(target)[None]

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The training data: there are no others."""
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Frobenius norm of the error."""
        return float((outputs - targets).norm())

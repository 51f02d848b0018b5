"""The stability regulariser as the authors' program computes it: full matrix, two passes.

C <- C A with explicit (m + n) x (m + n) matrices, sigma_1 from a singular value decomposition, and
a second backward pass for the penalty (Fang et al. 2022). Kept to repeat their runs and to hold
the closed form against: it costs O((m + n)^3) a step and at small displacements loses the
penalty's digits in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from trainables.dynamics.stabilisers.stability import Product, Stability, one_step_matrix


class FullProduct(Product):
    """The product C as a whole matrix."""

    def _ahead(self, update: Tensor) -> Tensor:
        one = one_step_matrix(update, self.decay)
        product = self.state.get("product")
        if product is None:
            return one
        return one @ product if self.order == "left" else product @ one

    def penalty(self, update: Tensor) -> Tensor:
        """relu(sigma_1 - 1) of C once `update` is made, differentiable by the update."""
        ahead = self._ahead(update)
        if not bool(torch.isfinite(ahead).all()):
            return ahead.sum() * math.nan  # blown up: a decomposition would only raise
        return torch.relu(torch.linalg.svd(ahead)[1][0] - 1)

    def pull(self, update: Tensor) -> Tensor:
        """Derivative of `penalty` by the update, through the decomposition."""
        leaf = update.detach().requires_grad_()
        with torch.enable_grad():
            (pull,) = torch.autograd.grad(self.penalty(leaf), leaf)
        return pull

    def accumulate(self, update: Tensor) -> None:
        """C <- A C, or C A."""
        self.state = {"product": self._ahead(update)}


@dataclass(frozen=True)
class StabilityReference(Stability):
    """`stability` with the singular value decomposition, by default in the program's right order.

    Its options are those of `stability`.
    """

    order: Literal["left", "right"] = "right"

    name: ClassVar[str] = "stability-reference"
    two_passes: ClassVar[bool] = True

    def product(self, decay: float) -> Product:
        """The product of one layer's updates, at the anchor."""
        return FullProduct(self.order, decay)

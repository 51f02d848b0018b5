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

from trainables.dynamics.layers import as_matrix
from trainables.dynamics.stabilisers.stability import Parts, Product, Stability, one_step_matrix


class FullProduct(Product):
    """The product C as a whole matrix."""

    def reset(self) -> None:
        """Make the present parameters the anchor: C = I."""
        self._product: Tensor | None = None

    def _multiplied(self, update: Parts) -> Tensor:
        one = one_step_matrix(as_matrix(update), self.decay)
        if self._product is None:
            return one
        return one @ self._product if self.order == "left" else self._product @ one

    def penalty(self, update: Parts) -> Tensor:
        """relu(sigma_1 - 1) of C once `update` is made, differentiable by the update."""
        ahead = self._multiplied(update)
        if not bool(torch.isfinite(ahead).all()):
            return ahead.sum() * math.nan  # blown up: a decomposition would only raise
        # LAPACK knows no bfloat16.
        wide = ahead.float() if ahead.dtype == torch.bfloat16 else ahead
        return torch.relu(torch.linalg.svd(wide)[1][0] - 1)

    def pull(self, update: Parts, strength: float = 1.0) -> Parts:
        """Derivative of strength x `penalty` by the update, through the decomposition."""
        leaves = [part.detach().requires_grad_() for part in update]
        with torch.enable_grad():
            return torch.autograd.grad(strength * self.penalty(leaves), leaves)

    def accumulate(self, update: Parts) -> None:
        """C <- A C, or C A."""
        self._product = self._multiplied(update)

    def state(self) -> dict[str, Tensor]:
        """The matrix."""
        return {} if self._product is None else {"product": self._product}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        self._product = state.get("product")


@dataclass(frozen=True)
class StabilityReference(Stability):
    """`stability` with the singular value decomposition, by default in the program's right order.

    Its options are those of `stability`.
    """

    order: Literal["left", "right"] = "right"

    name: ClassVar[str] = "stability-reference"
    two_passes: ClassVar[bool] = True

    @property
    def stacks(self) -> bool:
        """No: it makes two passes, as the program does."""
        return False

    def product(self, decay: float) -> Product:
        """The product of one layer's updates, at the anchor."""
        return FullProduct(self.order, decay)

"""Losses, each with the gradient by the outputs in closed form where it has a simple one.

Every loss is a mean over the batch. `output_gradient` is itself differentiable: the stability
regulariser differentiates the predicted update through it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from trainables.dynamics.stabiliser import OutputGradient


@dataclass(frozen=True)
class Loss:
    """A named loss: `value(outputs, targets)` is a scalar mean over the batch."""

    name: str
    output_gradient: OutputGradient | None = None

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of the batch."""
        return _VALUES[self.name](outputs, targets)


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets)


def _half_sum_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * ((outputs - targets) ** 2).sum(1).mean()


def _absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.l1_loss(outputs, targets)


def _binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


_VALUES = {
    "mean-squared-error": _squared,
    "squared-error": _half_sum_squared,
    "absolute-error": _absolute,
    "binary-cross-entropy": _binary_cross_entropy,
    "cross-entropy": _cross_entropy,
}

#: Mean over the batch and the outputs of (o - t)^2.
MEAN_SQUARED_ERROR = Loss("mean-squared-error", lambda o, t: 2 * (o - t) / o.numel())
#: Mean over the batch of 1/2 ||o - t||^2, the sum over the outputs (Cohen et al. 2021).
SQUARED_ERROR = Loss("squared-error", lambda o, t: (o - t) / len(o))
#: Mean over the batch and the outputs of |o - t|.
ABSOLUTE_ERROR = Loss("absolute-error", lambda o, t: (o - t).detach().sign() / o.numel())
#: Cross-entropy of logits; targets are class numbers. The regulariser uses its generic mode.
CROSS_ENTROPY = Loss("cross-entropy")
#: Binary cross-entropy of logits. The regulariser uses its generic mode.
BINARY_CROSS_ENTROPY = Loss("binary-cross-entropy")

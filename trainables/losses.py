"""Losses, each with the gradient by the outputs in closed form where it has a simple one.

Every loss is a mean over the batch. `output_gradient` is itself differentiable: the stability
regulariser differentiates the predicted update through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch.nn.functional as F
from torch import Tensor

#: Of outputs and targets.
OfOutputs = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """A named loss.

    Args:
        name: name in messages.
        value: scalar of (outputs, targets), a mean over the batch.
        output_gradient: dvalue/doutputs as a differentiable function; None where there is no
            simple one.
    """

    name: str
    value: OfOutputs
    output_gradient: OfOutputs | None = None


#: Mean over the batch and the outputs of (o - t)^2.
MEAN_SQUARED_ERROR = Loss("mean-squared-error", F.mse_loss, lambda o, t: 2 * (o - t) / o.numel())
#: Mean over the batch (and positions, where outputs have them) of 1/2 ||o - t||^2, the sum over the
#: outputs (Cohen et al. 2021).
SQUARED_ERROR = Loss(
    "squared-error",
    lambda o, t: 0.5 * ((o - t) ** 2).sum(1).mean(),
    lambda o, t: (o - t) * (o.shape[1] / o.numel()),
)
#: Mean over the batch and the outputs of |o - t|.
ABSOLUTE_ERROR = Loss("absolute-error", F.l1_loss, lambda o, t: (o - t).detach().sign() / o.numel())
#: Cross-entropy of logits; targets are class numbers. The regulariser uses its generic mode.
CROSS_ENTROPY = Loss("cross-entropy", F.cross_entropy)
#: Binary cross-entropy of logits. The regulariser uses its generic mode.
BINARY_CROSS_ENTROPY = Loss("binary-cross-entropy", F.binary_cross_entropy_with_logits)
#: For networks that return their loss themselves, one number or one a sample. The regulariser uses
#: its generic mode.
OWN_LOSS = Loss("own-loss", lambda outputs, _: outputs.mean())


@lru_cache(maxsize=16)
def summed_squares(factor: float) -> Loss:
    """Mean over the batch of factor ||o - t||^2, the sum over all outputs and positions.

    For full-batch fits whose learning rate is that of a sum: put all samples at positions of one.
    """
    return Loss(
        "summed-squares",
        lambda o, t: factor * ((o - t) ** 2).sum() / len(o),
        lambda o, t: 2 * factor * (o - t) / len(o),
    )

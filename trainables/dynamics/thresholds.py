"""How much curvature each optimiser tolerates, and what its preconditioner does to it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.dynamics.optimisers import Optimiser


def stability_ratio(optimiser: Optimiser, eigenvalue: float) -> float:
    """Sharpness over the largest that a quadratic bowl allows: above 1 the minimum repels.

    Linear stability of the optimiser on a quadratic with this curvature: eta (h + lambda) <= 2 for
    gradient descent; Cohen et al. 2021 (appendix B) with momentum, and with coupled or decoupled
    weight decay lambda.

    Args:
        optimiser: the update rule (lr, momentum, weight decay).
        eigenvalue: top Hessian eigenvalue of the loss without decay; for Adam of the
            preconditioned Hessian, the decay included where it is coupled.
    """
    lr, decay, beta = optimiser.lr, optimiser.weight_decay, optimiser.momentum
    coupled = optimiser.decay == "coupled"
    if optimiser.name == "adam":
        curvature = (1 - beta) * lr * eigenvalue
        return (curvature + (0 if coupled else (1 + beta) * lr * decay)) / (2 + 2 * beta)
    if optimiser.name == "nesterov":
        if coupled:
            return lr * (1 + 2 * beta) * (eigenvalue + decay) / (2 + 2 * beta)
        return (lr * (1 + 2 * beta) * eigenvalue / (1 + beta) + lr * decay) / 2
    if coupled:
        return lr * (eigenvalue + decay) / (2 + 2 * beta)
    return lr * (eigenvalue + (1 + beta) * decay) / (2 + 2 * beta)


def adam_scaling(optimiser: Optimiser, second_moment: Tensor, count: int) -> NDArray[np.float64]:
    """P^(-1/2) of Adam after `count` steps, P = diag(sqrt(v_hat) + eps).

    Args:
        optimiser: Adam's constants.
        second_moment: v, all parameters in one row.
        count: steps made so far, >= 1.
    """
    corrected = second_moment.double() / (1 - optimiser.beta2**count)
    scale = (torch.sqrt(corrected) + optimiser.eps) ** -0.5
    return np.asarray(scale.cpu().numpy(), dtype=np.float64)

"""How much curvature each optimiser tolerates, and what its preconditioner does to it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.dynamics.optimisers import Optimiser, Slots


def stability_ratio(optimiser: Optimiser, eigenvalue: float) -> float:
    """Sharpness over the largest that a quadratic bowl allows: above 1 the minimum repels.

    Linear stability of the optimiser on a quadratic with this curvature: eta (h + lambda) <= 2 for
    gradient descent; Cohen et al. 2021 (appendix B) with momentum, and with coupled or decoupled
    weight decay lambda. Adaptive optimisers are taken with their preconditioner held (Cohen et
    al. 2022).

    Args:
        optimiser: the update rule (lr, momentum, weight decay).
        eigenvalue: top Hessian eigenvalue of the loss without decay; for adaptive optimisers of
            the preconditioned Hessian, the decay included where it is coupled.
    """
    lr, decay, beta = optimiser.lr, optimiser.weight_decay, optimiser.momentum
    coupled = optimiser.coupled
    if optimiser.name == "adam":
        curvature = (1 - beta) * lr * eigenvalue
        return (curvature + (0 if coupled else (1 + beta) * lr * decay)) / (2 + 2 * beta)
    if optimiser.name == "nesterov":
        if coupled:
            return lr * (1 + 2 * beta) * (eigenvalue + decay) / (2 + 2 * beta)
        return (lr * (1 + 2 * beta) * eigenvalue / (1 + beta) + lr * decay) / 2
    if optimiser.name in ("rmsprop", "adadelta"):
        return lr * (eigenvalue + (0 if coupled else (1 + beta) * decay)) / (2 + 2 * beta)
    if coupled:
        return lr * (eigenvalue + decay) / (2 + 2 * beta)
    return lr * (eigenvalue + (1 + beta) * decay) / (2 + 2 * beta)


def largest_stable_eigenvalue(optimiser: Optimiser) -> float:
    """The eigenvalue whose `stability_ratio` is 1; infinite next to a learning rate of 0."""
    # The ratio is a straight line; next to a large decay its slope would drown in rounding.
    step = max(1.0, optimiser.weight_decay)
    none, one = (stability_ratio(optimiser, eigenvalue) for eigenvalue in (0.0, step))
    return step * (1 - none) / (one - none) if one > none else math.inf


def preconditioner_scaling(
    optimiser: Optimiser, slots: Sequence[Slots], count: int
) -> Tensor | None:
    """Diagonal of P^(-1/2), with the update lr P^(-1) g at the present state held.

    P = diag(sqrt(v_hat) + eps) for Adam (Cohen et al. 2022; its factor 1 - beta_1^t is dropped,
    as it is 1 after the first steps), diag(sqrt(v) + eps) for RMSprop, and diag(sqrt(v + eps) /
    sqrt(delta + eps)) for AdaDelta with delta its mean square of updates.

    Args:
        optimiser: the update rule.
        slots: its state, one entry a parameter.
        count: number of steps made so far, >= 1.

    Returns:
        All parameters in one row, float64; None for optimisers without a preconditioner.
    """
    if optimiser.beta2 is None or optimiser.eps is None:
        return None
    where = 1 if optimiser.name == "adam" else 0
    second = torch.cat([s[where].reshape(-1) for s in slots]).double()
    if optimiser.name == "adadelta":
        moved = torch.cat([s[1].reshape(-1) for s in slots]).double()
        return ((second + optimiser.eps) / (moved + optimiser.eps)) ** -0.25
    if optimiser.name == "adam":
        second = second / (1 - optimiser.beta2**count)
    return (torch.sqrt(second) + optimiser.eps) ** -0.5

"""Thresholds of linear stability on quadratic bowls (Cohen et al. 2021, appendix B, and 2022)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def quadratic_threshold(
    lr: float,
    optimiser: str = "sgd",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decay: str = "coupled",
) -> float:
    """Largest Hessian eigenvalue of the undecayed loss at which a quadratic bowl still attracts.

    2 / lr for gradient descent; (2 + 2 b) / lr with heavy-ball momentum b; (2 + 2 b) /
    (lr (1 + 2 b)) with Nesterov momentum; for Adam the bound (2 + 2 b) / ((1 - b) lr) holds for
    the preconditioned Hessian. Weight decay takes its share (Cohen et al. 2021 and 2022).

    Args:
        lr: learning rate, > 0.
        optimiser: `sgd`, `nesterov` or `adam`.
        momentum: b in [0, 1).
        weight_decay: lambda >= 0.
        decay: `coupled` or `decoupled`.
    """
    b, lam = momentum, weight_decay
    coupled = decay == "coupled"
    if optimiser == "adam":
        free = (2 + 2 * b) / lr - (0 if coupled else (1 + b) * lam)
        return free / (1 - b) - (lam if coupled else 0)
    if optimiser == "nesterov":
        if coupled:
            return (2 + 2 * b) / (lr * (1 + 2 * b)) - lam
        return (1 + b) * (2 - lr * lam) / (lr * (1 + 2 * b))
    return (2 + 2 * b) / lr - (lam if coupled else (1 + b) * lam)


def decay_bound(
    weight_decay: ArrayLike, optimiser: str = "sgd", momentum: float = 0.0, decay: str = "coupled"
) -> Array:
    """Learning rate above which weight decay alone throws parameters without curvature outwards.

    2 / lambda for gradient descent. The bound is where `quadratic_threshold` falls to 0; for
    coupled Adam there is none, since its steps do not grow with the gradient.

    Args:
        weight_decay: lambda, any shape; 0 gives infinity.
        optimiser: `sgd`, `nesterov` or `adam`.
        momentum: b in [0, 1).
        decay: `coupled` or `decoupled`.
    """
    lam = np.asarray(weight_decay, dtype=np.float64)
    if optimiser == "adam" and decay == "coupled":
        return np.full_like(lam, np.inf)
    factor = 2.0
    if optimiser == "sgd":
        factor = 2 + 2 * momentum if decay == "coupled" else 2.0
    elif optimiser == "nesterov" and decay == "coupled":
        factor = (2 + 2 * momentum) / (1 + 2 * momentum)
    with np.errstate(divide="ignore"):
        return factor / lam

"""Closed-form stability bounds, to lay over measured maps.

Sources: Sun et al. 2024 (JMLR 25(174)), section 5.4, for the one-layer CNN, here from the exact
reduction to one dimension; Cohen et al. 2021, appendix B, for quadratic bowls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

Array = NDArray[np.float64]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _swish(x: float) -> tuple[float, float, float]:
    """Value and first two derivatives of x sigmoid(x)."""
    s = _sigmoid(x)
    ds = s * (1 - s)
    return x * s, s + x * ds, ds * (2 + x * (1 - 2 * s))


@dataclass(frozen=True)
class OneLayerCNN:
    """Exact phases of gradient descent on the one-layer CNN with a checkerboard image.

    Every patch is +c or -c, so only the kernel's component along c sees the data: with
    kappa = <K, c> and p the share of + patches, G(x) = p swish(x) + (1 - p) swish(-x),

        kappa <- kappa - lr [(sigmoid(G(kappa)) - 1) w^2 G'(kappa) + weight_decay kappa],

    and every other component is multiplied by 1 - lr weight_decay.

    Args:
        weight_decay: coupled weight decay lambda, > 0.
        width: side w of the kernel.
        share: p; 1/2 in the limit of a large image.
    """

    weight_decay: float
    width: int = 32
    share: float = 0.5

    def _mixture(self, x: float) -> tuple[float, float, float]:
        plus, minus = _swish(x), _swish(-x)
        p, q = self.share, 1 - self.share
        return (
            p * plus[0] + q * minus[0],
            p * plus[1] - q * minus[1],
            p * plus[2] + q * minus[2],
        )

    def gradient(self, kappa: float) -> float:
        """Derivative that drives kappa, with weight decay."""
        value, slope, _ = self._mixture(kappa)
        return (_sigmoid(value) - 1) * self.width**2 * slope + self.weight_decay * kappa

    def curvature(self, kappa: float) -> float:
        """Hessian eigenvalue along c at kappa, with weight decay."""
        value, slope, bend = self._mixture(kappa)
        y = _sigmoid(value)
        return self.width**2 * (y * (1 - y) * slope**2 - (1 - y) * bend) + self.weight_decay

    @property
    def equilibrium(self) -> float:
        """kappa* > 0 at the minimum of the loss; 0 where weight decay wins."""
        low = 1e-6
        if self.gradient(low) >= 0:
            return 0.0
        high = 1.0
        while self.gradient(high) < 0:
            high *= 2
        return float(brentq(self.gradient, low, high, xtol=1e-14, rtol=1e-14))

    @property
    def sharpness(self) -> float:
        """Largest Hessian eigenvalue at the minimum, weight decay included."""
        return max(self.curvature(self.equilibrium), self.weight_decay)

    @property
    def largest_stable_lr(self) -> float:
        """Boundary between stable and restrained: 2 / sharpness at the minimum."""
        return 2 / self.sharpness

    @property
    def largest_bounded_lr(self) -> float:
        """Boundary between restrained and divergent: 2 / weight_decay."""
        return 2 / self.weight_decay


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


@dataclass(frozen=True)
class Overlay:
    """A bound on the learning rate as a function of weight decay, to be drawn over a map."""

    label: str
    lr: Callable[[Array], Array]
    exact: bool


def overlays(
    task: str, task_options: dict[str, object], optimiser: str, momentum: float, decay: str
) -> list[Overlay]:
    """The bounds that hold for a task and an optimiser."""
    drawn = []
    if task == "one-layer-cnn" and optimiser == "sgd" and momentum == 0 and decay == "coupled":
        width = int(str(task_options.get("kernel", 32)))

        def stable(weight_decay: Array) -> Array:
            return np.array(
                [OneLayerCNN(max(w, 1e-9), width).largest_stable_lr for w in weight_decay]
            )

        drawn.append(Overlay("theory: 2 / sharpness", stable, exact=True))
    bound = decay_bound(np.ones(1), optimiser, momentum, decay)
    if np.isfinite(bound).all():
        text = f"theory: {bound[0]:.3g} / weight decay"
        drawn.append(
            Overlay(text, lambda w: decay_bound(w, optimiser, momentum, decay), exact=False)
        )
    return drawn

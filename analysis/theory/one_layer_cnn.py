"""Exact phases of the non-linear one-layer CNN on a checkerboard (Sun et al. 2024, section 5.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import brentq


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

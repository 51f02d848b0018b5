"""How good a map is: what it expects of itself, and what an independent audit found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, qmc

from analysis.surface import ZERO_SHARE, Field, Surface
from trainables.domain import Axis
from trainables.threads import one_thread

Array = NDArray[np.float64]

#: Points of the box and draws of both boundaries behind an estimate, and its interval.
BOX = 512
DRAWS = 256
INTERVAL = (0.05, 0.95)
#: Probability that an audit's bound is wrong.
LEVEL = 0.05


@dataclass(frozen=True)
class Audit:
    """Trainings at random points, chosen without looking at any result, against the map.

    Args:
        points: how many.
        errors: how many fell in another regime than the map without them holds most probable.
        level: probability that the bound below is wrong.
    """

    points: int
    errors: int
    level: float = LEVEL

    @property
    def bound(self) -> float:
        """Upper confidence bound of the misclassified share of the box (Clopper-Pearson)."""
        if self.errors == self.points:
            return 1.0
        return float(beta.ppf(1 - self.level, self.errors + 1, self.points - self.errors))


def audit_size(tolerance: float, level: float = LEVEL) -> int:
    """The least points with which an audit without an error bounds the share by `tolerance`."""
    return math.ceil(math.log(level) / math.log1p(-tolerance))


def audit_level(number: int, tolerance: float | None) -> float:
    """Probability that the bound of audit 1, 2, ... is wrong.

    Half as much each time where a tolerance asks for audits until one agrees, so that any of them
    is wrong with probability LEVEL at most.
    """
    return LEVEL if tolerance is None else LEVEL / 2**number


@dataclass(frozen=True)
class Quality:
    """What is known of a map's errors.

    Args:
        misclassified: share of the box that the fitted model expects the map to have wrong. An
            estimate by the model itself, good to a factor of two or three.
        interval: 5 % and 95 % quantiles of that share over draws of both boundaries.
        audit: the last audit; None where there was none.
        notes: what a reader has to know, in words: boundaries that were not seen, regimes that
            were not found.
    """

    misclassified: float
    interval: tuple[float, float]
    audit: Audit | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        low, high = self.interval
        lines = [
            f"expected to be misclassified: {self.misclassified:.1%} of the box "
            f"({low:.1%} to {high:.1%} by the model itself)"
        ]
        if self.audit is None:
            lines.append("audit: none")
        else:
            found = self.audit
            lines.append(
                f"audit: {found.errors} of {found.points} random points misclassified, so at most "
                f"{found.bound:.1%} of the box with {1 - found.level:.4g} confidence"
            )
        return "\n".join([*lines, *self.notes])


def box_points(axes: Sequence[Axis], count: int, seed: int = 0) -> Array:
    """(count, axes) values that cover the box evenly; count is a power of 2."""
    free = sum(axis.free for axis in axes)
    draws = iter(qmc.Sobol(max(free, 1), scramble=True, rng=seed).random(count).T)
    values = []
    for axis in axes:
        unit = next(draws) if axis.free else np.zeros(count)
        if axis.zero:
            at_zero = unit < ZERO_SHARE
            unit = np.where(at_zero, -1.0, (unit - ZERO_SHARE) / (1 - ZERO_SHARE))
        values.append(axis.from_unit(unit))
    return np.stack(values, axis=1)


def misclassified(surface: Surface, x: Array, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Share of points that a map expects to have wrong.

    Args:
        surface: the fitted model.
        x: (n, d) unit coordinates that stand for the box.
        seed: of the draws.

    Returns:
        Mean, and its quantiles over joint draws of both boundaries: an error next to another is
        likely where the boundary runs elsewhere, which single probabilities do not show.
    """
    drawn = drawn_regimes(surface, x, seed)
    shown = surface.probabilities(x).argmax(1)
    shares = (drawn != shown).mean(1)
    low, high = np.quantile(shares, INTERVAL)
    return float(shares.mean()), (float(low), float(high))


def drawn_regimes(
    surface: Surface, x: Array, seed: int = 0, draws: int = DRAWS
) -> NDArray[np.int_]:
    """Regimes at points, (draws, n) indices, by joint draws of both boundaries."""
    random = np.random.default_rng(seed)
    fields = surface.stable, surface.bounded
    stable, bounded = (_draws(field, x, random, draws) for field in fields)
    return np.where(bounded < 0, 2, np.where(stable < 0, 1, 0))


def _draws(field: Field, x: Array, random: np.random.Generator, draws: int) -> Array:
    """(draws, n) joint draws of the latent function."""
    prior = field.process.hyperparameters
    with one_thread():
        mean, half = field.process.half(x - 0.5)
        covariance = prior.covariance(x - 0.5, x - 0.5) - half.T @ half
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        drawn: Array = mean + random.normal(size=(draws, len(x))) @ root.T
    return drawn


def notes(surface: Surface, x: Array) -> tuple[str, ...]:
    """What was not found in the box, and how likely it is there all the same.

    Args:
        surface: the fitted model.
        x: (n, d) unit coordinates that stand for the box.
    """
    likely = surface.probabilities(x).max(0)
    found = []
    if surface.bounded.only > 0:
        found.append(
            "no training diverged: the boundary to divergence lies outside the box, if anywhere "
            f"(probability of divergence at most {likely[2]:.2f} in it)"
        )
    elif surface.bounded.only < 0:
        found.append("every training diverged: the whole box lies beyond the boundary")
    if surface.stable.only > 0:
        found.append("every training was stable: both boundaries lie outside the box, if anywhere")
        del found[:-1]
    elif surface.stable.only < 0:
        found.append(
            "no training was stable: the stable region lies outside the box, if anywhere "
            f"(probability of stability at most {likely[0]:.2f} in it)"
        )
    elif np.array_equal(surface.stable.labels, surface.bounded.labels):
        found.append(
            "no restrained training was seen: stable trainings border on divergent ones, or the "
            f"restrained region is thinner than the points lie (its probability is at most "
            f"{likely[1]:.2f} in the box)"
        )
    return tuple(found)

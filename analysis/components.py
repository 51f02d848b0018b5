"""Variance components of crossed tables: analysis of variance, by the method of moments.

A table holds one number for each combination of levels of three factors, all taken at random: seed
(w), data order (o), perturbation integer (k). Each effect's mean square is expected to be the sum
of the variances of all effects that contain it, times how many numbers share one of their levels
(Searle, Casella and McCulloch, Variance Components, 1992, chapter 4). The equations are solved for
the variances. Mean squares of several tables are pooled, each weighted with its degrees of freedom.

An interval is that of a generalised pivotal quantity (Weerahandi, JASA 88, 1993): each mean square
is replaced by its sum of squares over draws of a chi-square, and quantiles are taken of the result.
For a single mean square this is the exact interval. Both take the effects for normal.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

Array = NDArray[np.float64]

#: The factors, one letter an axis of a table.
FACTORS = "wok"
#: Draws behind an interval, and their seed.
DRAWS = 20_000
SEED = 0


@dataclass(frozen=True)
class Component:
    """One variance component.

    Args:
        variance: the estimate, in the square of the metric's unit; 0 where it came out below.
        low: lower end of its interval.
        high: upper end.
        degrees: degrees of freedom of the mean square that it is read from: with few the interval
            is wide.
        truncated: whether the estimate came out below 0, which a variance cannot be.
    """

    variance: float
    low: float
    high: float
    degrees: int
    truncated: bool

    @property
    def sd(self) -> float:
        """Standard deviation, in the metric's unit."""
        return float(np.sqrt(self.variance))


class MeanSquares:
    """Sums of squares and degrees of freedom of all effects, pooled over tables.

    Args:
        tables: each (seeds, orders, ks), finite; orders and ks are the same in all.
    """

    def __init__(self, tables: Sequence[Array]) -> None:
        self.levels = {
            name: float(np.mean([table.shape[i] for table in tables]))
            for i, name in enumerate(FACTORS)
        }
        self.effects = [
            "".join(names) for n in (1, 2, 3) for names in itertools.combinations(FACTORS, n)
        ]
        self.squares = dict.fromkeys(self.effects, 0.0)
        self.degrees = dict.fromkeys(self.effects, 0)
        for table in tables:
            for effect in self.effects:
                square, degrees = _sum_of_squares(table, effect)
                self.squares[effect] += square
                self.degrees[effect] += degrees

    def within(self, factor: str, confidence: float) -> Component | None:
        """Variance over a factor's levels with all others held: all effects that contain it.

        None where no table has two levels of it. The interval is exact if the factor does the same
        nowhere: then nothing ties the tables' numbers together.
        """
        effects = [effect for effect in self.effects if factor in effect]
        degrees = sum(self.degrees[effect] for effect in effects)
        if not degrees:
            return None
        square = sum(self.squares[effect] for effect in effects)
        high, low = chi2.ppf([(1 - confidence) / 2, (1 + confidence) / 2], degrees)
        ends = float(square / low), float(square / high)
        return Component(square / degrees, *ends, degrees, False)

    def component(self, effect: str, confidence: float) -> Component | None:
        """The variance of one effect; None where some mean square has no degree of freedom."""
        varied = [name for name in FACTORS if self.levels[name] > 1]
        if not set(effect) <= set(varied):
            return None
        above = [e for e in self.effects if set(effect) <= set(e) <= set(varied)]
        if not all(self.degrees[e] for e in above):
            return None
        shared = np.prod([self.levels[name] for name in FACTORS if name not in effect])
        random = np.random.default_rng(SEED)
        estimate, drawn = 0.0, np.zeros(DRAWS)
        for e in above:
            weight = (-1) ** (len(e) - len(effect)) / shared
            estimate += float(weight * self.squares[e] / self.degrees[e])
            drawn += weight * self.squares[e] / random.chisquare(self.degrees[e], DRAWS)
        ends = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
        low, high = (float(max(end, 0.0)) for end in ends)
        return Component(max(estimate, 0.0), low, high, self.degrees[effect], estimate < 0)


def _sum_of_squares(table: Array, effect: str) -> tuple[float, int]:
    """What the means over an effect's levels add to those of its parts, squared and summed up."""
    axes = {name: i for i, name in enumerate(FACTORS)}
    own = np.zeros([1] * len(FACTORS))
    for n in range(len(effect) + 1):
        for part in itertools.combinations(effect, n):
            others = tuple(axes[name] for name in FACTORS if name not in part)
            own = own + (-1) ** (len(effect) - n) * table.mean(axis=others, keepdims=True)
    degrees = int(np.prod([table.shape[axes[name]] - 1 for name in effect]))
    return float(np.square(own).sum() * table.size / own.size), degrees

"""How `boundary.py` scores a map: error along a search, "runs to x %", and calibration."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
#: Points (n, d) that were run, and their labels (n,).
Sample = tuple[Array, Labels]
#: Checks of one search, in order: runs so far and misclassified share.
Curve = list[tuple[int, float]]

#: A check counts only if the next one is at most this many times the target.
SLACK = 1.25


def runs_to(curve: Curve, target: float) -> int | None:
    """Runs at the first check with an error of at most `target` that is not a fluke.

    The next check must be at most `SLACK` times the target, so the last one never counts.
    """
    for (runs, error), (_, following) in itertools.pairwise(curve):
        if error <= target and following <= SLACK * target:
            return runs
    return None


def error_at(curve: Curve, runs: int) -> float | None:
    """Error at the last check up to so many runs; None if the search ended before."""
    if not curve or curve[-1][0] < runs:
        return None
    return next((error for checked, error in reversed(curve) if checked <= runs), None)


def middle(values: Iterable[float | None]) -> float | None:
    """Median of one or more, the upper of two; None counts as more than any number."""
    ranked = sorted(np.inf if value is None else value for value in values)
    found = ranked[len(ranked) // 2]
    return None if found == np.inf else found


def nearest_curve(search: Iterable[Sample], at: Array, truth: Labels) -> Curve:
    """The curve of a search whose map is the label of the nearest point.

    Args:
        search: what was run, at every check.
        at: unit coordinates (m, d) of the points that are scored.
        truth: their labels, (m,).
    """
    return [(len(x), float((nearest_labels(x, found, at) != truth).mean())) for x, found in search]


def nearest_labels(x: Array, found: Labels, at: Array) -> Labels:
    """Label of the nearest of the points x at each of `at`."""
    return np.asarray(found[KDTree(x).query(at)[1]])


def reliability(probabilities: Array, truth: Labels, bins: int = 20) -> tuple[Array, Array, Array]:
    """Confidence against accuracy in equal bins of the largest probability.

    Args:
        probabilities: (m, regimes).
        truth: labels, (m,).
        bins: number of bins between 0 and 1.

    Returns:
        Share of the points, mean largest probability and share of right labels in each bin, the
        latter two NaN where a bin is empty.
    """
    surest = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    which = np.minimum((surest * bins).astype(int), bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (
            np.bincount(which, weights=values, minlength=bins) / count for values in (surest, right)
        )
    return count / len(truth), confidence, accuracy


def calibration_error(probabilities: Array, truth: Labels, bins: int = 20) -> float:
    """Expected calibration error: mean of |accuracy - confidence| over `reliability`'s bins.

    Guo et al., ICML 2017, equation 3.
    """
    share, confidence, accuracy = reliability(probabilities, truth, bins)
    return float(np.nansum(share * np.abs(accuracy - confidence)))

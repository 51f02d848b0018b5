"""Which points to evaluate next: those from which the map is expected to gain most.

The misclassified volume of a map is the mean over the box of the probability that a sign is not the
more probable one. A label at a candidate would change that probability everywhere near it. How much
it would drop on average over both labels is computed for each candidate, and the best one taken
(stepwise uncertainty reduction: Bect et al., Statistics and Computing 22, 2012; here for labels).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from analysis.expectation_propagation import label_moments
from analysis.gaussian_process import JITTER
from analysis.surface import Field, Surface
from trainables.threads import one_thread

Array = NDArray[np.float64]

#: Candidates whose expected drops are computed at once.
ROWS = 16


class Outlook:
    """What candidates would tell about a box.

    Args:
        surface: what is known.
        candidates: (m, d) unit coordinates.
        box: (q, d) unit coordinates that stand for the box.
    """

    def __init__(self, surface: Surface, candidates: Array, box: Array) -> None:
        with one_thread():
            self._fields = [
                _FieldOutlook(field, candidates, box) for field in (surface.stable, surface.bounded)
            ]
        self._taken = np.zeros(len(candidates), dtype=bool)

    def best(self) -> tuple[float, int]:
        """The largest expected drop of the misclassified volume of the box, and its candidate."""
        drop = np.where(self._taken, -np.inf, sum(field.drop() for field in self._fields))
        index = int(np.argmax(drop))
        return float(drop[index]), index

    def take(self, index: int) -> None:
        """Go on as if the labels of a candidate were known, whichever they are."""
        self._taken[index] = True
        for field in self._fields:
            field.take(index)


class _FieldOutlook:
    """One field at candidates and box: the covariances change by two vectors a label."""

    def __init__(self, field: Field, candidates: Array, box: Array) -> None:
        prior, one, two = field.process.hyperparameters, candidates - 0.5, box - 0.5
        self.mean, half = field.process.half(one)
        self.covariance = prior.covariance(one, one) - half.T @ half
        self.there, half_there = field.process.half(two)
        self.cross = prior.covariance(one, two) - half.T @ half_there
        self.variance_there = np.maximum(prior.prior_variance(two) - (half_there**2).sum(0), JITTER)

    def drop(self) -> Array:
        """Expected drop of the mean over the box of the smaller probability, by candidate."""
        variance = np.maximum(np.diag(self.covariance), JITTER)
        labels = [label_moments(np.array(y), self.mean, variance) for y in (1.0, -1.0)]
        now = ndtr(-np.abs(self.there) / np.sqrt(self.variance_there))
        rows = range(0, len(self.mean), ROWS)
        return np.concatenate([self._drop(slice(i, i + ROWS), labels, now) for i in rows])

    def _drop(self, rows: slice, labels: Sequence[tuple[Array, Array, Array]], now: Array) -> Array:
        """The same for some candidates: few enough for the arrays to stay near the processor."""
        cross = self.cross[rows]
        expected, square = np.zeros(cross.shape), cross**2
        for log_z, slope, bend in labels:
            mean = cross * slope[rows, None]
            mean += self.there
            after = square * np.minimum(bend[rows], 0)[:, None]
            after += self.variance_there
            np.maximum(after, JITTER, out=after)
            np.sqrt(after, out=after)
            np.abs(mean, out=mean)
            mean /= after
            np.negative(mean, out=mean)
            ndtr(mean, out=mean)
            mean *= np.exp(log_z[rows])[:, None]
            expected += mean
        # On average a label does no harm. Approximate moments say otherwise of unlikely labels,
        # which would keep the search away from what it has not seen.
        drop: Array = np.maximum(now - expected, 0).mean(1)
        return drop

    def take(self, index: int) -> None:
        """Means stay, covariances shrink as much as the two labels make them on average."""
        mean, variance = self.mean[index], np.array(max(self.covariance[index, index], JITTER))
        gain = 0.0
        for label in (1.0, -1.0):
            log_z, _, bend = label_moments(np.array(label), mean, variance)
            gain += float(np.exp(log_z) * max(-bend, 0.0))
        column, row = self.covariance[:, index].copy(), self.cross[index].copy()
        self.covariance -= gain * np.outer(column, column)
        self.cross -= gain * np.outer(column, row)
        self.variance_there = np.maximum(self.variance_there - gain * row**2, JITTER)


def choose(outlooks: Sequence[Outlook], count: int) -> list[tuple[int, int]]:
    """The best candidates one after the other, each in the light of those before it.

    Args:
        outlooks: one for each part of the space that has a model of its own, all of one volume.
        count: how many to choose.

    Returns:
        Pairs (outlook, candidate) without repetition; fewer where there are no more candidates.
    """
    chosen = []
    for _ in range(count):
        drops = [outlook.best() for outlook in outlooks]
        part = max(range(len(drops)), key=lambda i: drops[i][0])
        drop, index = drops[part]
        if drop == -np.inf:
            break
        outlooks[part].take(index)
        chosen.append((part, index))
    return chosen

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
Indices = NDArray[np.intp]

#: Pairs of a candidate and a point of the box that are computed at once: they stay near the
#: processor.
PAIRS = 8192
#: Shares of the box, as both fields see it, on which candidates are compared one after the other.
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
#: What rounding may add to a bound, as a share of the misclassified volume.
ROUNDING = 1e-9


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
        """The largest expected drop of the misclassified volume of the box, and its candidate.

        Nowhere can the probability of an error drop by more than it is. So candidates are compared
        where most of the misclassified volume lies, and elsewhere those only that may be best.
        """
        drop = np.full(len(self._taken), -np.inf)
        likely = self._likely(np.flatnonzero(~self._taken))
        one, two = self._fields
        drop[likely] = one.drop(likely) + two.drop(likely)
        index = int(np.argmax(drop))
        return float(drop[index]), index

    def _likely(self, candidates: Indices) -> Indices:
        """Those of some candidates that may have the largest expected drop."""
        # Where one field is in doubt the other seldom is, so that each has places of its own.
        doubt = np.concatenate([field.doubt for field in self._fields])
        order, places = np.argsort(-doubt), len(doubt) // len(self._fields)
        beyond = np.append(doubt[order][::-1].cumsum()[::-1], 0.0)
        found, begin = np.zeros(len(candidates)), 0
        for end in (int(share * len(order)) for share in SHARES):
            if end > begin and len(candidates) > 1:
                pairs = order[begin:end]
                for index, field in enumerate(self._fields):
                    here = pairs[pairs // places == index] % places
                    if len(here):
                        found += field.drop(candidates, here) * len(here)
                worse = found + beyond[end] + ROUNDING * beyond[0] < found.max()
                candidates, found, begin = candidates[~worse], found[~worse], end
        return candidates

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
        self._see()

    def _see(self) -> None:
        """What follows from means and variances."""
        variance = np.maximum(np.diag(self.covariance), JITTER)
        self._labels = [label_moments(np.array(y), self.mean, variance) for y in (1.0, -1.0)]
        #: Probability that the sign is not the more probable one, at each point of the box.
        self.doubt: Array = ndtr(-np.abs(self.there) / np.sqrt(self.variance_there))

    def drop(self, candidates: Indices | None = None, places: Indices | None = None) -> Array:
        """Expected drop of the mean of `doubt`, by candidate.

        Args:
            candidates: indices; None for all.
            places: indices of points of the box to take the mean over; None for all.
        """
        if candidates is None:
            candidates = np.arange(len(self.mean))
        count = len(self.there) if places is None else len(places)
        rows = max(PAIRS // count, 1)
        parts = [candidates[i : i + rows] for i in range(0, max(len(candidates), 1), rows)]
        return np.concatenate([self._drop(part, places) for part in parts])

    def _drop(self, rows: Indices, places: Indices | None) -> Array:
        there, variance_there, doubt = self.there, self.variance_there, self.doubt
        cross = self.cross[rows]
        if places is not None:
            there, variance_there, doubt = there[places], variance_there[places], doubt[places]
            cross = cross.take(places, axis=1)
        expected, square = np.zeros(cross.shape), cross**2
        for log_z, slope, bend in self._labels:
            mean = cross * slope[rows, None]
            mean += there
            after = square * np.minimum(bend[rows], 0)[:, None]
            after += variance_there
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
        drop: Array = np.maximum(doubt - expected, 0).mean(1)
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
        self._see()


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

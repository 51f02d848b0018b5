"""The fitted model of the two margins, which both the map and the search draw on.

A fit is a function of the points and their order alone, so a search and a map of the same points
hold the same model to the bit, whatever either of them fitted before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from analysis.expectation_propagation import label_probability
from analysis.gaussian_process import Classifier, Hyperparameters, fit
from trainables.domain import Axis, InputError, Mistake
from trainables.threads import one_thread

Array = NDArray[np.float64]

#: Value of a column that indicates a category, such as the extra level at 0. Smaller than the width
#: of the box: a field differs less between categories than across it, until the labels say so.
INDICATOR = 0.3
#: Share of the box that is an extra level at 0.
ZERO_SHARE = 1 / 8
#: New points after which hyperparameters are fitted anew: up to ALWAYS points at every step, beyond
#: it each time their number has grown by a factor, or by MOST.
STEP = 8
ALWAYS = 64
GROWTH = 1.25
MOST = 256
#: Hyperparameters are climbed to from those of this many times fewer points, or of still fewer.
ANCHORS = 1.5
#: Points that hyperparameters are fitted to, and that a process is made of, up to MOST more.
ENOUGH = 256
LIMIT = 1000
#: Fits that are remembered.
REMEMBERED = 64
#: Points that are predicted at once: memory stays small.
CHUNK = 2048


class Field:
    """Where one margin is positive.

    Args:
        x: unit coordinates, (n, d); see `columns`.
        labels: +1 where the margin is positive or 0, -1 where it is negative, (n,).
        indicators: how many of the last columns indicate categories.
    """

    def __init__(self, x: Array, labels: Array, indicators: int = 0) -> None:
        with one_thread():
            self.process = _process(_Labelled.of(x, labels, indicators))
        self.labels = labels
        #: The sign of all labels where there is only one, else 0.
        self.only = float(labels[0]) if abs(labels.sum()) == len(labels) else 0.0

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and variance of the latent function at (m, d) unit coordinates."""
        parts = [x[i : i + CHUNK] for i in range(0, max(len(x), 1), CHUNK)]
        with one_thread():
            means, variances = zip(
                *(self.process.predict(part - 0.5) for part in parts), strict=True
            )
        return np.concatenate(means), np.concatenate(variances)

    def probability(self, x: Array) -> Array:
        """(m,) probabilities that a training at (m, d) unit coordinates has a positive margin."""
        return label_probability(*self.predict(x))


@dataclass(frozen=True)
class Surface:
    """Both margins as functions of unit coordinates, with the probabilities of the regimes.

    Args:
        stable: field that is positive where trainings are stable.
        bounded: field that is positive where they do not diverge.
    """

    stable: Field
    bounded: Field

    @classmethod
    def fit(cls, x: Array, margins: Array, indicators: int = 0) -> Surface:
        """Fit both fields.

        Args:
            x: (n, d) unit coordinates; see `columns`.
            margins: (n, 2) margins, stable then bounded; only their signs matter. Margins that are
                not a number count as negative.
            indicators: how many of the last columns indicate categories.

        Raises:
            InputError: there is no point to fit.
        """
        if not len(x):
            law, remedy = "a map needs at least one finished point", "wait for the first results"
            raise InputError([Mistake("points", 0, law, f"{remedy}, or run the sweep")])
        return cls(*(Field(x, labels, indicators) for labels in _labels(margins)))

    def probabilities(self, x: Array) -> Array:
        """(m, 3) probabilities of stable, restrained and divergent at (m, d) unit coordinates."""
        return regime_probabilities(*self.signs(x).T)

    def quantiles(self, x: Array) -> Array:
        """(m, 2) normal quantiles of `signs` at (m, d) unit coordinates: smoother than these."""
        fields = (self.stable.predict(x), self.bounded.predict(x))
        return np.stack([mean / np.sqrt(1 + variance) for mean, variance in fields], axis=-1)

    @property
    def points(self) -> Array:
        """(n, d) unit coordinates of the points that the processes are made of: their kinks."""
        made_of = (self.stable.process.inputs, self.bounded.process.inputs)
        return np.unique(np.concatenate(made_of), axis=0) + 0.5

    def signs(self, x: Array) -> Array:
        """(m, 2) probabilities of the labels stable and bounded at (m, d) unit coordinates."""
        return np.stack([self.stable.probability(x), self.bounded.probability(x)], axis=-1)


def _labels(margins: Array) -> tuple[Array, Array]:
    """Labels of the two fields, each (n,), from (n, 2) margins."""
    positive = margins >= 0
    return np.where(positive.all(1), 1.0, -1.0), np.where(positive[:, 1], 1.0, -1.0)


def regime_probabilities(stable: Array, bounded: Array) -> Array:
    """(m, 3) probabilities of the regimes from those of the two labels, each (m,)."""
    first = stable * bounded
    return np.stack([first, bounded - first, 1 - bounded], axis=-1)


def columns(axes: Sequence[Axis], points: Array) -> tuple[Array, int]:
    """Points as the model sees them.

    Args:
        axes: the axes; only the free ones enter.
        points: (n, axes) values.

    Returns:
        (n, d) unit coordinates, and how many of the last columns indicate an extra level at 0,
        which lies at the low end of its axis. One column of zeros if no axis is free.
    """
    ranges, switches = [], []
    for axis, values in zip(axes, points.T, strict=True):
        if axis.free:
            coordinate = axis.to_unit(values)
            if axis.zero:
                at_zero = values == 0
                coordinate = np.where(at_zero, 0.0, coordinate)
                switches.append(INDICATOR * at_zero + 0.5)
            ranges.append(coordinate)
    if not ranges:
        return np.zeros((len(points), 1)), 0
    return np.stack([*ranges, *switches], axis=1), len(switches)


# --------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class _Labelled:
    """Labelled points as a key: what is fitted to them is a function of it."""

    x: bytes
    labels: bytes
    d: int
    indicators: int

    @classmethod
    def of(cls, x: Array, labels: Array, indicators: int) -> _Labelled:
        centred = np.ascontiguousarray(x, dtype=np.float64) - 0.5
        return cls(centred.tobytes(), labels.astype(np.float64).tobytes(), x.shape[1], indicators)

    def arrays(self) -> tuple[Array, Array]:
        return np.frombuffer(self.x).reshape(-1, self.d), np.frombuffer(self.labels)

    def first(self, count: int) -> _Labelled:
        x, labels = self.arrays()
        return _Labelled(x[:count].tobytes(), labels[:count].tobytes(), self.d, self.indicators)


def fitted_at(count: int) -> int:
    """Of `count` points, the first how many decide the hyperparameters."""
    if count <= STEP:
        return count
    level = STEP
    while (following := _following(level)) <= count:
        level = following
    return level


def _following(level: int) -> int:
    grown = int(level * GROWTH) if level >= ALWAYS else 0
    return min(max(level + STEP, grown), level + MOST)


@lru_cache(maxsize=4)
def _process(given: _Labelled) -> Classifier:
    x, labels = given.arrays()
    base = fitted_at(len(x))
    # Beyond LIMIT points those that say least are left out: the far ones from a boundary.
    kept = np.r_[representatives(x[:base], labels[:base], LIMIT), base : len(x)]
    start = None
    if len(x) > base:
        precision, shift = _sites(given.first(base))
        start = _extended(precision, len(kept)), _extended(shift, len(kept))
    return Classifier(x[kept], labels[kept], _hyperparameters(given.first(base)), start)


@lru_cache(maxsize=32)
def _sites(given: _Labelled) -> tuple[Array, Array]:
    """Precisions and shifts alone: the matrices of a process are large."""
    sites = _process(given).sites
    return sites.precision, sites.shift


def _extended(values: Array, count: int) -> Array:
    return np.concatenate([values, np.zeros(count - len(values))])


def _hyperparameters(given: _Labelled) -> Hyperparameters:
    found = _FITTED.get(given)
    if found is None:
        x, labels = given.arrays()
        kept = representatives(x, labels, ENOUGH)
        near = None
        if (fewer := anchor(len(x))) is not None:
            near = _hyperparameters(given.first(fewer))
        found = fit(x[kept], labels[kept], given.indicators, near)
    remember({given: found})
    return found


#: Hyperparameters that were fitted, those last asked for at the end; and who may touch them.
Fitted = dict[_Labelled, Hyperparameters]
_FITTED: Fitted = {}
_LOCK = Lock()


def fitted(x: Array, margins: Array, indicators: int, field: int) -> Fitted:
    """What takes longest of `Surface.fit`, for another process to `remember`.

    Args:
        x: as `Surface.fit` takes it, at least one point.
        margins: likewise.
        indicators: likewise.
        field: 0 for the stable one, 1 for the bounded one.
    """
    given = _Labelled.of(x, _labels(margins)[field], indicators).first(fitted_at(len(x)))
    with one_thread():
        return {given: _hyperparameters(given)}


def remember(found: Fitted) -> None:
    """Take what was `fitted` in another process, instead of fitting it anew."""
    with _LOCK:
        for given, hyperparameters in found.items():
            _FITTED.pop(given, None)
            _FITTED[given] = hyperparameters
        for oldest in list(_FITTED)[: max(len(_FITTED) - REMEMBERED, 0)]:
            del _FITTED[oldest]


def anchor(count: int) -> int | None:
    """Of how many first points the hyperparameters are fitted before those of `count` points.

    A number that they are fitted at in any case, as a search finds them.
    """
    fewer = fitted_at(int(count / ANCHORS))
    return fewer if fewer >= ALWAYS else None


def representatives(x: Array, labels: Array, count: int) -> NDArray[np.int_]:
    """Which of n labelled points to keep: half of `count` next to the other label, half anywhere.

    Args:
        x: (n, d) points.
        labels: (n,) labels.
        count: how many to keep, at most.

    Returns:
        Increasing indices.
    """
    n = len(x)
    if n <= count:
        return np.arange(n)
    distance = np.full(n, np.inf)
    for sign in (1.0, -1.0):
        here, there = labels == sign, labels == -sign
        if here.any() and there.any():
            distance[here] = KDTree(x[there]).query(x[here])[0]
    near = np.argsort(distance, kind="stable")[: count // 2]
    rest = np.setdiff1d(np.arange(n), near)
    spread = rest[np.linspace(0, len(rest) - 1, count - len(near)).astype(int)]
    return np.sort(np.concatenate([near, spread]))

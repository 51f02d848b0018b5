"""The fitted model of the two margins, which both the map and the search draw on.

A fit is a function of the points and their order alone, so a search and a map of the same points
hold the same model to the bit, whatever either of them fitted before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from analysis.expectation_propagation import LOG_LAPSE, label_moments, label_probability
from analysis.gaussian_process import Classifier, Hyperparameters, fit
from analysis.graded import Graded
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
#: Sizes of margins count until forecasts by the labels alone are better by so many nats in all.
PATIENCE = 4.0
#: Fits that are remembered.
REMEMBERED = 128
#: Points that are predicted at once: memory stays small.
CHUNK = 2048


class Field:
    """Where one margin is positive.

    Args:
        x: unit coordinates, (n, d); see `columns`.
        labels: +1 where the margin is positive or 0, -1 where it is negative, (n,).
        indicators: how many of the last columns indicate categories.
        sizes: of the margins, (n,), not finite where they say nothing; None for labels alone. They
            count where they help to forecast labels.
    """

    def __init__(
        self, x: Array, labels: Array, indicators: int = 0, sizes: Array | None = None
    ) -> None:
        with one_thread():
            self.process = _process(_chosen(_Labelled.of(x, labels, indicators, sizes)))
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
    def fit(cls, x: Array, margins: Array, indicators: int = 0, *, sizes: bool = True) -> Surface:
        """Fit both fields.

        Args:
            x: (n, d) unit coordinates; see `columns`.
            margins: (n, 2) margins, stable then bounded. Those that are not a number count as
                negative.
            indicators: how many of the last columns indicate categories.
            sizes: whether sizes of margins near a boundary count, where they help to forecast the
                labels of later points; otherwise only signs do. Those of stable margins count on
                both sides, where a training stays bounded, and those of bounded margins where it
                diverges: bounded trainings do not tell by their growth how near they are.

        Raises:
            InputError: there is no point to fit.
        """
        if not len(x):
            law, remedy = "a map needs at least one finished point", "wait for the first results"
            raise InputError([Mistake("points", 0, law, f"{remedy}, or run the sweep")])
        seen = (_observed(margins, field, sizes) for field in (0, 1))
        return cls(*(Field(x, labels, indicators, known) for labels, known in seen))

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


def _observed(margins: Array, field: int, sizes: bool) -> tuple[Array, Array | None]:
    """Labels of one field, and if they are to count the sizes of its margins."""
    return _labels(margins)[field], _sizes(margins)[field] if sizes else None


def _labels(margins: Array) -> tuple[Array, Array]:
    """Labels of the two fields, each (n,), from (n, 2) margins."""
    positive = margins >= 0
    return np.where(positive.all(1), 1.0, -1.0), np.where(positive[:, 1], 1.0, -1.0)


def _sizes(margins: Array) -> tuple[Array, Array]:
    """Sizes of the margins of both fields, each (n,), where they say something."""
    stable, bounded = margins.T
    diverges = ~(bounded >= 0)
    return (
        np.where(diverges, np.inf, np.abs(stable)),
        np.where(diverges, np.abs(bounded), np.inf),
    )


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
    sizes: bytes
    d: int
    indicators: int

    @classmethod
    def of(cls, x: Array, labels: Array, indicators: int, sizes: Array | None = None) -> _Labelled:
        centred = np.ascontiguousarray(x, dtype=np.float64) - 0.5
        known = np.empty(0) if sizes is None else sizes
        where, seen, far = (part.astype(np.float64).tobytes() for part in (centred, labels, known))
        return cls(where, seen, far, x.shape[1], indicators)

    def arrays(self) -> tuple[Array, Array]:
        return np.frombuffer(self.x).reshape(-1, self.d), np.frombuffer(self.labels)

    @property
    def graded(self) -> Graded | None:
        """The sizes that count; None without a boundary to be near to."""
        labels, sizes = np.frombuffer(self.labels), np.frombuffer(self.sizes)
        if not len(sizes) or abs(labels.sum()) == len(labels):
            return None
        return Graded.of(labels, sizes)

    def __len__(self) -> int:
        return len(self.arrays()[1])

    def first(self, count: int) -> _Labelled:
        x, labels = self.arrays()
        parts = x, labels, np.frombuffer(self.sizes)
        where, seen, far = (part[:count].tobytes() for part in parts)
        return _Labelled(where, seen, far, self.d, self.indicators)

    def plain(self) -> _Labelled:
        """The labels alone."""
        return replace(self, sizes=b"")


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
    found = _hyperparameters(given.first(base))
    graded, fitted_to = given.graded, given.first(base).graded
    if graded is not None:
        # Scales are those of the first points: a side that they had no sizes of has none.
        same = fitted_to is not None and fitted_to.signs == graded.signs
        graded = graded.of_rows(kept) if same else None
    return Classifier(x[kept], labels[kept], found, start, graded)


def _chosen(given: _Labelled) -> _Labelled:
    """With sizes, if they do not make forecasts worse; else the labels alone.

    Each few points are forecast from those before them, once with sizes and once without. What the
    first ALWAYS points say is final.
    """
    if not given.sizes:
        return given
    gain = sum(
        _gain(given.first(count), count - STEP)
        for count in range(2 * STEP, min(len(given), ALWAYS) + 1, STEP)
    )
    return given if gain >= -PATIENCE else given.plain()


@lru_cache(maxsize=4 * REMEMBERED)
def _gain(given: _Labelled, known: int) -> float:
    """By how much sizes make the labels after the `known` first points more probable, in nats."""
    before = given.first(known)
    if before.graded is None:
        return 0.0
    x, labels = (part[known:] for part in given.arrays())
    with_sizes, without = (
        label_moments(labels, *_process(one).predict(x), LOG_LAPSE)[0].sum()
        for one in (before, before.plain())
    )
    return float(with_sizes - without)


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
        graded, near = given.graded, None
        if (fewer := anchor(len(x))) is not None:
            near = _hyperparameters(given.first(fewer))
        elif graded is not None:
            near = _hyperparameters(given.plain())
        if graded is not None:
            graded = graded.of_rows(kept)
        found = fit(x[kept], labels[kept], given.indicators, near, graded)
    remember({given: found})
    return found


#: Hyperparameters that were fitted, those last asked for at the end; and who may touch them.
Fitted = dict[_Labelled, Hyperparameters]
_FITTED: Fitted = {}
_LOCK = Lock()


def fitted(x: Array, margins: Array, indicators: int, field: int, *, sizes: bool = True) -> Fitted:
    """What takes longest of `Surface.fit`, for another process to `remember`.

    Args:
        x: as `Surface.fit` takes it, at least one point.
        margins: likewise.
        indicators: likewise.
        field: 0 for the stable one, 1 for the bounded one.
        sizes: likewise.
    """
    labels, known = _observed(margins, field, sizes)
    given = _Labelled.of(x, labels, indicators, known)
    # What the choice is made from, and the next one will be: see `_chosen`.
    before = [given.first(count) for count in range(STEP, min(len(x) + 1, ALWAYS), STEP)]
    forecasters = [one for part in before if part.graded for one in (part, part.plain())]
    with one_thread():
        chosen = _chosen(given).first(fitted_at(len(x)))
        return {one: _hyperparameters(one) for one in (chosen, *forecasters)}


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

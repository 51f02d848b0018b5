"""Looking ahead: what a label is expected to bring, against fitting again with either label."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import qmc

from analysis.expectation_propagation import LAPSE, label_moments
from analysis.gaussian_process import Classifier
from analysis.lookahead import Outlook, _FieldOutlook, choose
from analysis.surface import Field, Surface

Array = NDArray[np.float64]

LABELS = (1.0, -1.0)


def sobol(count: int, seed: int, d: int = 2) -> Array:
    points: Array = qmc.Sobol(d, scramble=True, rng=seed).random(count)
    return points


def margins_at(x: Array) -> Array:
    """Two slanted straight boundaries."""
    across = x[:, 0] + 0.4 * x[:, 1]
    return np.stack([0.5 - across, 0.95 - across], axis=1)


X = sobol(32, 0)
BOX = sobol(256, 1)
#: Anywhere, and close to either boundary.
CANDIDATES = np.concatenate(
    [sobol(8, 2), [[0.45, 0.15], [0.2, 0.7], [0.85, 0.25], [0.6, 0.9]]],
)


@pytest.fixture(scope="module")
def surface() -> Surface:
    return Surface.fit(X, margins_at(X))


@pytest.fixture(params=["stable", "bounded"])
def field(request: pytest.FixtureRequest, surface: Surface) -> Field:
    found: Field = getattr(surface, request.param)
    return found


def doubt(mean: Array, variance: Array) -> Array:
    """Probabilities that a sign is not the likelier one."""
    found: Array = ndtr(-np.abs(mean) / np.sqrt(variance))
    return found


def volume(mean: Array, variance: Array) -> float:
    """The mean of these."""
    return float(doubt(mean, variance).mean())


# --------------------------------------------------------------------------- one field


def outcomes(mean: float, variance: float) -> list[tuple[float, float, float]]:
    """By quadrature: probability of each label, and mean and variance of f once it is seen."""
    f, step = np.linspace(-9, 9, 40_001, retstep=True)
    density = np.exp(-0.5 * f**2) / np.sqrt(2 * np.pi) * step
    f = mean + f * np.sqrt(variance)
    found = []
    for label in LABELS:
        seen = density * (LAPSE + (1 - 2 * LAPSE) * ndtr(label * f))
        chance, first = seen.sum(), (seen * f).sum() / seen.sum()
        second = (seen * (f - first) ** 2).sum() / chance
        # A lapse widens what is known; propagation leaves it at that, and so does the outlook.
        found.append((chance, first, min(second, variance)))
    return found


def test_drop_by_quadrature(field: Field) -> None:
    """The first two moments of f in the box after a label are those of the exact posterior."""
    outlook = _FieldOutlook(field, CANDIDATES, BOX)
    now = doubt(outlook.there, outlook.variance_there)
    for index, drop in enumerate(outlook.drop()):
        mean, variance = outlook.mean[index], outlook.covariance[index, index]
        slope = outlook.cross[index] / variance
        after = np.zeros(len(BOX))
        for chance, first, second in outcomes(mean, variance):
            there = outlook.there + slope * (first - mean)
            after += chance * doubt(there, outlook.variance_there - slope**2 * (variance - second))
        assert np.maximum(now - after, 0).mean() == pytest.approx(drop, rel=1e-4, abs=1e-8)


def test_take_by_quadrature(field: Field) -> None:
    """Variances and covariances shrink to their averages over both labels; means stay."""
    for index in range(len(CANDIDATES)):
        outlook, old = (_FieldOutlook(field, CANDIDATES, BOX) for _ in range(2))
        outlook.take(index)
        variance = old.covariance[index, index]
        left = sum(c * second for c, _, second in outcomes(old.mean[index], variance))
        share = (variance - left) / variance**2
        column, row = old.covariance[index], old.cross[index]
        close = {"rtol": 1e-4, "atol": 1e-4 * variance}
        np.testing.assert_allclose(
            outlook.covariance, old.covariance - share * np.outer(column, column), **close
        )
        np.testing.assert_allclose(
            outlook.cross, old.cross - share * np.outer(column, row), **close
        )
        np.testing.assert_allclose(
            outlook.variance_there, old.variance_there - share * row**2, **close
        )
        np.testing.assert_array_equal(outlook.mean, old.mean)
        np.testing.assert_array_equal(outlook.there, old.there)


class Refitted:
    """Brute force: the process is made again with one label more and the same hyperparameters.

    Args:
        surface: where the hyperparameters come from; its plane is made flatter, so that labels are
            mixed in a wider zone, and a label moves the factors of the others less.
        bounded: which of the two fields.
        plane: variance of the plane.
    """

    def __init__(self, surface: Surface, bounded: bool, plane: float) -> None:
        field = surface.bounded if bounded else surface.stable
        self._at = replace(field.process.hyperparameters, plane=plane)
        self._labels = np.where(margins_at(X)[:, int(bounded)] >= 0, 1.0, -1.0)
        self.process = Classifier(X - 0.5, self._labels, self._at)

    def outcomes(self, place: Array, at: Array) -> list[tuple[float, Array, Array]]:
        """Probability of each label at a place, and means and variances elsewhere with it."""
        mean, variance = self.process.predict(place[None] - 0.5)
        x = np.concatenate([X, place[None]]) - 0.5
        found = []
        for label in LABELS:
            chance = float(np.exp(label_moments(np.array(label), mean, variance)[0])[0])
            process = Classifier(x, np.append(self._labels, label), self._at)
            found.append((chance, *process.predict(at - 0.5)))
        return found

    def drop(self, place: Array) -> float:
        """Expected drop of the misclassified volume of the box."""
        now = volume(*self.process.predict(BOX - 0.5))
        return now - sum(chance * volume(*there) for chance, *there in self.outcomes(place, BOX))


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize(("plane", "tolerance"), [(30.0, 0.2), (300.0, 0.2), (3000.0, 0.3)])
def test_drop_is_what_fitting_again_brings(
    surface: Surface, bounded: bool, plane: float, tolerance: float
) -> None:
    """The same ranking, and the same size but for what a label changes in the others' factors."""
    brute = Refitted(surface, bounded, plane)
    expected = np.array([brute.drop(place) for place in CANDIDATES])
    found = _FieldOutlook(cast(Field, brute), CANDIDATES, BOX).drop()
    worth = expected > 0.3 * expected.max()
    assert worth.sum() >= 3
    for one, two in itertools.permutations(range(len(CANDIDATES)), 2):
        if expected[one] > 1.25 * expected[two] and worth[one]:
            assert found[one] > found[two]
    np.testing.assert_allclose(found[worth], expected[worth], rtol=tolerance)


@pytest.mark.parametrize("bounded", [False, True])
def test_taking_shrinks_variances_as_fitting_again_does(surface: Surface, bounded: bool) -> None:
    """On average over both labels, in the box and at the other candidates."""
    brute = Refitted(surface, bounded, plane=30.0)
    places = np.concatenate([BOX, CANDIDATES])
    for index, place in enumerate(CANDIDATES):
        outlook = _FieldOutlook(cast(Field, brute), CANDIDATES, BOX)
        before = np.concatenate([outlook.variance_there, np.diag(outlook.covariance)])
        outlook.take(index)
        after = np.concatenate([outlook.variance_there, np.diag(outlook.covariance)])
        expected = sum(chance * variance for chance, _, variance in brute.outcomes(place, places))
        np.testing.assert_allclose(after, expected, rtol=0.05, atol=0.01 * before.max())


def test_taken_candidates_are_taken_everywhere(field: Field) -> None:
    """Covariances with the box and among candidates agree where both hold the same points."""
    outlook = _FieldOutlook(field, CANDIDATES, np.concatenate([CANDIDATES, BOX]))
    for index in (8, 3, 8):
        outlook.take(index)
        np.testing.assert_allclose(
            outlook.cross[:, : len(CANDIDATES)], outlook.covariance, rtol=1e-6, atol=1e-6
        )
        variances = np.diag(outlook.covariance)
        np.testing.assert_allclose(
            outlook.variance_there[: len(CANDIDATES)], variances, rtol=1e-4, atol=1e-4
        )
    assert np.linalg.eigvalsh(outlook.covariance).min() > -1e-6 * variances.max()


def test_a_label_brings_less_where_one_was_taken(field: Field) -> None:
    outlook = _FieldOutlook(field, CANDIDATES, BOX)
    for _ in range(3):
        drop = outlook.drop()
        best = int(np.argmax(drop))
        outlook.take(best)
        assert outlook.drop()[best] < drop[best]


def test_sure_places_bring_nothing(surface: Surface) -> None:
    """Corners that many labels surround, and points that were seen there."""
    sure = np.array([[0.02, 0.02], [0.05, 0.1]])
    outlook = _FieldOutlook(surface.bounded, np.concatenate([sure, CANDIDATES]), BOX)
    drop = outlook.drop()
    assert drop[:2].max() < 0.1 * drop.max()


@pytest.mark.parametrize("count", [8, 16, 32])
def test_what_was_not_seen_is_worth_a_look(count: int) -> None:
    """All labels equal: in a corner far from them an unlikely one would change much."""
    x = 0.2 + 0.6 * sobol(count, 4)
    field = Field(x, np.ones(count))
    corners = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert _FieldOutlook(field, corners, BOX).drop().min() > 1e-4


@settings(max_examples=10)
@given(seed=st.integers(0, 2**16), count=st.integers(1, 12))
def test_any_labels(seed: int, count: int) -> None:
    """A single label, labels of one sign and random ones: numbers, and no larger than all doubt."""
    random = np.random.default_rng(seed)
    x = random.random((count, 2))
    field = Field(x, np.where(random.random(count) < 0.5, 1.0, -1.0))
    outlook = _FieldOutlook(field, random.random((16, 2)), BOX)
    for index in (3, 3, 7):
        drop = outlook.drop()
        assert drop.min() >= 0
        assert drop.max() < volume(outlook.there, outlook.variance_there)
        outlook.take(index)


# --------------------------------------------------------------------------- both fields


def test_best_is_the_largest_drop_of_both_fields(surface: Surface) -> None:
    fields = [_FieldOutlook(f, CANDIDATES, BOX) for f in (surface.stable, surface.bounded)]
    total = fields[0].drop() + fields[1].drop()
    drop, index = Outlook(surface, CANDIDATES, BOX).best()
    assert drop == total.max()
    assert index == total.argmax()


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**16),
    count=st.integers(1, 24),
    candidates=st.integers(1, 70),
    places=st.sampled_from([1, 2, 7, 33, 200]),
)
def test_no_candidate_that_was_left_out_is_better(
    seed: int, count: int, candidates: int, places: int
) -> None:
    """Those that are compared on a part of the box only: the best of all is found, to the bit."""
    random = np.random.default_rng(seed)
    x = random.random((count, 2))
    noise = random.choice([0.0, 0.3])
    margins = np.stack([0.4 - x[:, 0], 0.8 - x[:, 0] * x[:, 1]], axis=1)
    margins += noise * random.normal(size=margins.shape)
    told = Surface.fit(x, margins)
    outlook = Outlook(told, random.random((candidates, 2)), random.random((places, 2)))
    for _ in range(min(candidates, 6)):
        one, two = outlook._fields
        every = np.where(outlook._taken, -np.inf, one.drop() + two.drop())
        drop, index = outlook.best()
        assert (drop, index) == (every.max(), int(every.argmax()))
        outlook.take(index)


def test_few_candidates_are_looked_at_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where boundaries are known well, most of the box is sure, and most candidates are no use."""
    known = sobol(128, 3)
    outlook = Outlook(Surface.fit(known, margins_at(known)), sobol(256, 6)[:192], sobol(512, 7))
    looked, drop = list[int](), _FieldOutlook.drop

    def counted(self: _FieldOutlook, candidates: Any = None, places: Any = None) -> Array:
        looked.append(len(candidates) * (512 if places is None else len(places)))
        return drop(self, candidates, places)

    monkeypatch.setattr(_FieldOutlook, "drop", counted)
    outlook.best()
    assert sum(looked) < 0.3 * 2 * 192 * 512


def test_choices_are_greedy(surface: Surface) -> None:
    """Each is the best of those left, once the ones before it are taken."""
    chosen = choose([Outlook(surface, CANDIDATES, BOX)], 5)
    fields = [_FieldOutlook(f, CANDIDATES, BOX) for f in (surface.stable, surface.bounded)]
    left = list(range(len(CANDIDATES)))
    for part, index in chosen:
        drop = fields[0].drop() + fields[1].drop()
        assert part == 0
        assert index == max(left, key=lambda i: drop[i])
        left.remove(index)
        for one in fields:
            one.take(index)


def test_choices_spread() -> None:
    """Of many candidates near the best one, only one is chosen.

    By signs: where sizes leave only noise, a second look at the same place is worth as much.
    """
    surface = Surface.fit(X, margins_at(X), sizes=False)
    best = CANDIDATES[Outlook(surface, CANDIDATES, BOX).best()[1]]
    crowd = best + 1e-3 * sobol(16, 5)
    chosen = choose([Outlook(surface, np.concatenate([crowd, CANDIDATES]), BOX)], 3)
    assert sum(index < len(crowd) for _, index in chosen) == 1


def test_no_candidate_is_chosen_twice(surface: Surface) -> None:
    chosen = choose([Outlook(surface, CANDIDATES, BOX)], 99)
    assert sorted(chosen) == [(0, i) for i in range(len(CANDIDATES))]
    assert choose([Outlook(surface, CANDIDATES, BOX)], 0) == []
    same = np.tile(CANDIDATES[:1], (4, 1))
    assert len(set(choose([Outlook(surface, same, BOX)], 4))) == 4


def test_what_is_pending_is_taken(surface: Surface) -> None:
    """A point that is being evaluated is not chosen, nor is its neighbour."""
    [(_, first)] = choose([Outlook(surface, CANDIDATES, BOX)], 1)
    beside = CANDIDATES[first] + 1e-3
    candidates = np.concatenate([CANDIDATES, [beside]])
    alone = Outlook(surface, candidates, BOX)
    told = Outlook(surface, candidates, BOX)
    told.take(first)
    assert alone.best()[0] > told.best()[0]
    _, second = told.best()
    assert second not in (first, len(CANDIDATES))


def test_two_outlooks(surface: Surface) -> None:
    """The part of the space with more to learn is served first, both in time."""
    known = np.concatenate([X, sobol(128, 3)])
    other = Surface.fit(known, margins_at(known))
    outlooks = [Outlook(other, CANDIDATES, BOX), Outlook(surface, CANDIDATES, BOX)]
    drops = [outlook.best()[0] for outlook in outlooks]
    assert drops[1] > 2 * drops[0]
    chosen = choose(outlooks, 99)
    assert chosen[0][0] == 1
    assert len(set(chosen)) == len(chosen) == 2 * len(CANDIDATES)
    alone = choose([Outlook(surface, CANDIDATES, BOX)], 99)
    assert [index for part, index in chosen if part == 1] == [index for _, index in alone]

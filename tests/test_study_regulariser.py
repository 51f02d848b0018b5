"""The arithmetic of the study of the stability regulariser, against counting and closed forms."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from scipy.stats import t

from studies.regulariser import comparable, difference, finals, reached, spread_ratio
from trainables.domain import Curve, Margins, Point, PointResult, Reason, Replicate, Verdict

CALM = Verdict(Margins(0.5, 0.5), Reason.SETTLED, 0)


def result(*curves: tuple[float, ...]) -> PointResult:
    """A point whose runs have these accuracies after 50, 100, ... updates."""
    runs = []
    for seed, values in enumerate(curves):
        steps = tuple(50 * (i + 1) for i in range(len(values)))
        metric = values[-1] if values else None
        runs.append(
            Replicate(seed, CALM, 100, {"metric": metric}, {"metric": Curve(steps, values)})
        )
    return PointResult(Point(0.1), tuple(runs))


def test_a_run_that_blew_up_has_no_accuracy() -> None:
    assert finals(result((0.1, 0.6), ())).tolist() == [0.6, 0.0]


def test_the_first_look_at_or_above_the_benchmark_counts() -> None:
    found = reached(result((0.1, 0.5, 0.2), (0.4, 0.4, 0.6), (0.1, 0.2, 0.3), ()), 0.5)
    assert found == [100, 150, None, None]


def test_the_interval_of_a_difference_is_the_t_distributions() -> None:
    first, second = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    gap, low, high = difference(first, second)
    # Equal variances and sizes: Welch's degrees of freedom are Student's.
    half = t.ppf(0.975, 4) * math.sqrt(2 * 0.01 / 3)
    assert gap == pytest.approx(0.4)
    assert (low, high) == pytest.approx((0.4 - half, 0.4 + half))
    assert difference(first[:1], second[:1] * 1.0) == pytest.approx((0.4, 0.4, 0.4))


def test_a_stricter_level_has_a_wider_interval() -> None:
    first, second = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    half = t.ppf(0.995, 4) * math.sqrt(2 * 0.01 / 3)
    assert difference(first, second, 0.01) == pytest.approx((0.4, 0.4 - half, 0.4 + half))


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ([(0.0, -0.09, 0.09), (0.05, 0.01, 0.1)], "agrees"),  # surely close, if not equal
        ([(0.0, -0.09, 0.11)], "not testable here"),
        ([(0.0, -0.09, 0.09), (0.3, 0.2, 0.4)], "differs"),
        ([(-0.3, -0.4, -0.2)], "differs"),
    ],
)
def test_comparable_is_what_is_surely_close(
    gaps: list[tuple[float, float, float]], said: str
) -> None:
    assert comparable(gaps) == said


def test_runs_weigh_the_same_where_points_have_more_of_them() -> None:
    first = [np.array([0.0, 1.0]), np.array([0.4, 0.5, 0.6, 0.5])]
    second = [np.array([0.2, 0.4, 0.3]), np.array([0.1, 0.9, 0.1, 0.9])]
    squares = [
        sum(sum((v - statistics.mean(g)) ** 2 for v in g.tolist()) for g in groups)
        for groups in (first, second)
    ]
    ratio, _ = spread_ratio(list(zip(first, second, strict=True)))
    assert ratio == pytest.approx(math.sqrt((squares[1] / (2 + 3)) / (squares[0] / (1 + 3))))


def test_spreads_are_compared_by_counting_all_permutations() -> None:
    pairs = [(np.array([0.1, 0.5, 0.95]), np.array([0.50, 0.51, 0.53]))]
    ratio, p = spread_ratio(pairs)
    assert ratio == pytest.approx(np.std([0.50, 0.51, 0.53]) / np.std([0.1, 0.5, 0.95]))
    away = [abs(v - np.median(group)) for group in pairs[0] for v in group]
    gaps = [
        sum(away[i] for i in chosen) / 3 - sum(away[i] for i in range(6) if i not in chosen) / 3
        for chosen in itertools.combinations(range(6), 3)
    ]
    seen = gaps[0]
    above = np.mean([g >= seen - 1e-12 for g in gaps])
    below = np.mean([g <= seen + 1e-12 for g in gaps])
    assert p == pytest.approx(min(1, 2 * min(above, below)))

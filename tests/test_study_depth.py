"""The arithmetic of the study of depth, against counting all cases."""

from __future__ import annotations

from itertools import combinations, product
from math import comb, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.depth import below_edges, fewer, order

DRAWS = 3
COUNTS = st.lists(st.tuples(*[st.integers(0, DRAWS)] * 2), min_size=1, max_size=3)


def counted(first: list[int], second: list[int]) -> float:
    """The same by giving the trials at each rate to the two groups in all ways."""
    ways = []
    for one, other in zip(first, second, strict=True):
        trials = [True] * (one + other) + [False] * (2 * DRAWS - one - other)
        ways.append([sum(trials[i] for i in c) for c in combinations(range(2 * DRAWS), DRAWS)])
    sums = [sum(way) for way in product(*ways)]
    assert len(sums) == comb(2 * DRAWS, DRAWS) ** len(first)
    fewest, most = (sum(keep(s) for s in sums) for keep in (sum(second).__ge__, sum(second).__le__))
    return min(1.0, 2 * min(fewest, most) / len(sums))


@given(COUNTS)
def test_p_counts_all_ways_to_deal_the_trials(pairs: list[tuple[int, int]]) -> None:
    first, second = ([pair[i] for pair in pairs] for i in (0, 1))
    p = fewer(first, second, DRAWS)
    assert p == pytest.approx(counted(first, second), rel=1e-9)
    assert fewer(second, first, DRAWS) == pytest.approx(p, rel=1e-9)


def test_p_of_one_rate_is_fishers() -> None:
    """All five of one side, none of the other: 2 / 252."""
    assert fewer([5], [0], 5) == pytest.approx(2 / 252)
    assert fewer([5, 0], [0, 5], 5) == 1.0


def test_what_is_stable_again_above_both_edges_does_not_count() -> None:
    """Of five draws: the first network is stable up to the second rate, the other to the third."""
    counts = np.array([[5, 3, 2, 5, 5], [4, 4, 3, 2, 5]])
    assert below_edges(counts, 5).tolist() == [10, 11]
    assert below_edges(counts[::-1], 5).tolist() == [11, 10]
    assert below_edges(np.array([[2, 5], [1, 5]]), 5).tolist() == [0, 0]


def dealt(first: list[int], second: list[int]) -> float:
    """p of the order by dealing the draws in all ways, each as often as chance has it."""
    found = below_edges(np.array([first, second]), DRAWS)
    total, even = [a + b for a, b in zip(first, second, strict=True)], 0
    ways = [range(max(0, t - DRAWS), min(t, DRAWS) + 1) for t in total]
    for deal in product(*ways):
        often = prod(
            comb(t, one) * comb(2 * DRAWS - t, DRAWS - one)
            for t, one in zip(total, deal, strict=True)
        )
        other = [t - one for t, one in zip(total, deal, strict=True)]
        new = below_edges(np.array([deal, other]), DRAWS)
        even += often * bool(abs(new[1] - new[0]) >= abs(found[1] - found[0]))
    return float(even / comb(2 * DRAWS, DRAWS) ** len(total))


@settings(max_examples=25)
@given(COUNTS)
def test_p_of_an_order_is_that_of_all_deals(pairs: list[tuple[int, int]]) -> None:
    first, second = ([pair[i] for pair in pairs] for i in (0, 1))
    one, other, p = order(first, second, DRAWS)
    assert p == pytest.approx(dealt(first, second), abs=0.01)
    assert order(second, first, DRAWS) == (other, one, p)

"""The arithmetic of the study of depth, against counting all cases."""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.depth import fewer

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

"""The arithmetic of the study of GAN and crowd counting, by hand."""

from __future__ import annotations

import math
from itertools import product

import pytest

from studies.gan_and_crowd import Trained, agreement, changes, edge


def trained(regimes: str, metric: float = 1.0, draw: int = 0) -> list[Trained]:
    names = {"s": "stable", "r": "restrained", "d": "divergent"}
    return [Trained(10.0**i, draw, names[c], metric, 2.0) for i, c in enumerate(regimes)]


def test_edges() -> None:
    some = trained("ssrsd")
    assert edge(some[::-1], "stable") == (10, 100)
    assert edge(some, "bounded") == (1000, 10_000)
    assert edge(some, "workable") == (1000, 10_000)
    assert edge(trained("sss"), "bounded") == (100, math.inf)
    assert edge(trained("dss"), "stable") == (0, 1)
    assert edge(trained("sss", metric=2.0), "workable") == (0, 1)


def test_changes_are_an_exact_test_of_the_pairs_that_change() -> None:
    plain, now = trained("rrrrrrs"), trained("sssssrr")
    gained, lost, p = changes(plain, now[::-1], "stable")
    assert (gained, lost) == (5, 1)
    ways = [sum(flips) for flips in product((0, 1), repeat=6)]
    assert p == pytest.approx(sum(n in (0, 1, 5, 6) for n in ways) / len(ways))
    assert changes(plain, now, "bounded") == (0, 0, 1.0)


def test_draws_are_kept_apart() -> None:
    plain = [*trained("s"), *trained("r", draw=1)]
    assert changes(plain, [*trained("r"), *trained("s", draw=1)], "stable")[:2] == (1, 1)


def test_only_a_significant_change_says_something() -> None:
    assert agreement(6, 0, 0.03) == "agrees"
    assert agreement(0, 6, 0.03) == "differs"
    assert agreement(3, 0, 0.25) == "not testable here"

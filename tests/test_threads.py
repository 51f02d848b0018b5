"""One thread for linear algebra, whoever else computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from threading import Event, Thread

import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic import forget_fits
from threadpoolctl import threadpool_info, threadpool_limits

from analysis.surface import Surface
from trainables.threads import one_thread
from trainables.trajectory import deterministic


def linear_algebra() -> set[int]:
    """Threads of each library for linear algebra, as threadpoolctl sees them."""
    return {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"}


@pytest.mark.parametrize("second", [one_thread, partial(deterministic, "cpu")])
def test_the_limit_holds_until_the_last_one_is_out(
    second: Callable[[], AbstractContextManager[None]],
) -> None:
    """One comes, a fit or a training comes, the first goes: the other is still on one thread."""
    inside, leave = Event(), Event()

    def first() -> None:
        with one_thread():
            inside.set()
            leave.wait(30)

    with threadpool_limits(2):
        before = linear_algebra()
        thread = Thread(target=first)
        thread.start()
        assert inside.wait(30)
        with second():
            leave.set()
            thread.join(30)
            assert linear_algebra() == {1}
        assert linear_algebra() == before != {1}


def test_the_first_may_leave_first_and_anyone_may_come_next() -> None:
    """threadpoolctl heeds one thread alone unless told otherwise."""
    seen: list[set[int]] = []

    def inside() -> None:
        with one_thread():
            seen.append(linear_algebra())
        seen.append(linear_algebra())

    with threadpool_limits(2):
        before = linear_algebra()
        for thread in (Thread(target=inside), Thread(target=inside)):
            thread.start()
            thread.join(30)
        inside()
    assert seen == 3 * [{1}, before]


def test_an_error_inside_lifts_the_limit() -> None:
    with threadpool_limits(2):
        before = linear_algebra()
        with pytest.raises(ZeroDivisionError), one_thread():
            print(1 / 0)
        with one_thread(), one_thread():
            assert linear_algebra() == {1}
        assert linear_algebra() == before != {1}


def test_surfaces_fitted_at_once_are_those_fitted_alone() -> None:
    """To the bit, as when a page of maps is asked for while a search goes on."""
    random = np.random.default_rng(0)
    places = [random.random((40, 2)) for _ in range(6)]
    asked = random.random((50, 2))

    def fitted(x: NDArray[np.float64]) -> bytes:
        margins = np.stack([0.5 - x[:, 0], 0.8 - x[:, 0] * x[:, 1]], axis=1)
        return Surface.fit(x, margins).probabilities(asked).tobytes()

    with threadpool_limits(2), ThreadPoolExecutor(len(places)) as pool:
        together = list(pool.map(fitted, places))
    forget_fits()
    assert [fitted(x) for x in places] == together

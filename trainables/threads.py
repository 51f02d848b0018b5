"""One thread for linear algebra: more cost time here, and show in the last bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any


@lru_cache(maxsize=1)
def _libraries() -> Any:
    """The libraries for linear algebra, and OpenMP; None where nothing limits them."""
    try:
        import scipy.linalg  # noqa: F401  its library is to be found below
        from threadpoolctl import ThreadpoolController
    except ImportError:  # a bare GPU machine, which fits and diagnoses nothing with them
        return None
    # Looking for the loaded libraries takes milliseconds; numpy's and scipy's do not change.
    found = ThreadpoolController()
    return found.select(user_api="blas"), found.select(user_api="openmp")


_LOCK = Lock()


@dataclass
class _Limit:
    """How many are inside `one_thread`, and what the first of them found."""

    inside: int = 0
    found: Any = None


_LIMIT = _Limit()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit numpy and scipy to one thread; once nobody is inside, the former numbers come back."""
    if _libraries() is None:
        yield
        return
    blas, openmp = _libraries()
    own = openmp.limit(limits=1)  # each thread has numbers of its own there
    # Those for linear algebra are the process's: who leaves first must not lift the limit for who
    # still computes.
    with _LOCK:
        if _LIMIT.inside == 0:
            _let_anyone_set()
            _LIMIT.found = blas.limit(limits=1)
        _LIMIT.inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _LIMIT.inside -= 1
            if _LIMIT.inside == 0:
                _let_anyone_set()
                _LIMIT.found.restore_original_limits()
                _let_anyone_set()
        own.restore_original_limits()


def _let_anyone_set() -> None:
    """Of all threads threadpoolctl heeds the first that set a number, until this is called."""
    from threadpoolctl import OpenBLASController

    OpenBLASController.clear_controlling_thread(force=True)

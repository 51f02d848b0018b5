"""One thread for linear algebra: more cost time here, and show in the last bits of a map."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import scipy.linalg  # noqa: F401  its library is to be found below
from threadpoolctl import OpenBLASController, ThreadpoolController


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    # Looking for the loaded libraries takes milliseconds; numpy's and scipy's do not change.
    return ThreadpoolController()


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
    # The numbers are the process's: the first to leave must not lift them for who still computes.
    # Builds with OpenMP have them for each thread, so all that come set their own too.
    with _LOCK:
        if _LIMIT.inside == 0:
            _let_anyone_set()
        mine = _libraries().limit(limits=1)
        if _LIMIT.inside == 0:
            _LIMIT.found = mine
        _LIMIT.inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _LIMIT.inside -= 1
            if mine is not _LIMIT.found:
                mine.restore_original_limits()
            if _LIMIT.inside == 0:
                _let_anyone_set()
                _LIMIT.found.restore_original_limits()
                _let_anyone_set()


def _let_anyone_set() -> None:
    """Of all threads threadpoolctl heeds the first that set a number, until this is called."""
    OpenBLASController.clear_controlling_thread(force=True)

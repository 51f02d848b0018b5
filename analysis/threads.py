"""One thread for linear algebra: more cost time here, and show in the last bits of a map."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import scipy.linalg  # noqa: F401  its library is to be found below
from threadpoolctl import ThreadpoolController


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    # Looking for the loaded libraries takes milliseconds; numpy's and scipy's do not change.
    return ThreadpoolController()


def one_thread() -> AbstractContextManager[Any]:
    """Limit numpy and scipy to one thread; the former numbers come back afterwards."""
    limits: AbstractContextManager[Any] = _libraries().limit(limits=1)
    return limits

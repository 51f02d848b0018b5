"""Locks on files: who runs the sweep in a folder, and who makes the tables of a database."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_held(folder: Path) -> bool:
    """Whether a driver holds the lock of a sweep's folder."""
    try:
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextmanager
def alone(address: str) -> Iterator[None]:
    """One process at a time: two that begin together would both make the same tables.

    Args:
        address: of a database. Only that of a sqlite file is kept to one process.
    """
    if not address.startswith("sqlite:///"):
        yield
        return
    with Path(address.removeprefix("sqlite:///") + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

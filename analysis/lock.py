"""Whether a process runs the sweep in a folder: the one that does holds the folder's lock."""

from __future__ import annotations

import fcntl
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

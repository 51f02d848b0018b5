"""How often a map on the way is drawn."""

from __future__ import annotations

import time

#: Least seconds between two drawings on the way, and how much longer than a drawing that is.
DRAW_SECONDS = 60.0
DRAW_SHARE = 20.0


class Pace:
    """Says when a map on the way is to be drawn: now and then, and never most of the time."""

    def __init__(self) -> None:
        self._next = time.monotonic() + DRAW_SECONDS

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next

    def took(self, seconds: float) -> None:
        """A drawing took so long."""
        self._next = time.monotonic() + max(DRAW_SECONDS, DRAW_SHARE * seconds)

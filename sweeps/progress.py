"""One line that says how far a sweep is: rewritten on a terminal, repeated elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import IO

from trainables.domain import PointResult, Regime

#: Seconds between lines where the output is no terminal.
LINE_SECONDS = 10.0


class Progress:
    """Counts points and regimes, and says how long the rest will take.

    Args:
        total: points in the budget, or None where only time ends the sweep.
        wall_time: seconds in the budget, or None.
        stream: where to write; None writes nothing.
    """

    def __init__(
        self, total: int | None, wall_time: float | None, stream: IO[str] | None = sys.stderr
    ) -> None:
        self._total = total
        self._wall_time = wall_time
        self._stream = stream
        self._terminal = stream is not None and stream.isatty()
        self._counts: Counter[Regime] = Counter()
        self._trained = 0
        self._begin = time.monotonic()
        self._last = -LINE_SECONDS
        self._stop = threading.Event()
        self.note: str | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin the clock; on a terminal the line is redrawn every second from now on."""
        self._begin = time.monotonic()
        if self._terminal:
            self._thread = threading.Thread(target=self._redraw, daemon=True)
            self._thread.start()

    def add(self, result: PointResult, trained: bool) -> None:
        """Count a result; `trained` says whether it cost time in this run."""
        self._counts[result.verdict.regime] += 1
        self._trained += trained
        now = time.monotonic()
        if not self._terminal and self._stream is not None and now - self._last >= LINE_SECONDS:
            self._last = now
            self._print(f"{self.line()}\n")

    def counts(self) -> dict[str, int]:
        """Number of points of each regime so far."""
        return {regime.value: self._counts[regime] for regime in Regime}

    def left(self) -> float | None:
        """Estimated seconds to the end; None where nothing is known yet."""
        spent = time.monotonic() - self._begin
        estimates = []
        if self._total and self._trained:
            estimates.append(spent / self._trained * (self._total - self._counts.total()))
        if self._wall_time:
            estimates.append(max(self._wall_time - spent, 0.0))
        return min(estimates, default=None)

    def say(self, note: str | None) -> None:
        """Show what the sweep waits for, once; None takes it back."""
        if note is not None and self.note is None:
            self._print(f"{note}\n")
        self.note = note

    def line(self) -> str:
        """What is shown."""
        done = self._counts.total()
        of = f"/{self._total}" if self._total else ""
        regimes = "  ".join(f"{regime} {count}" for regime, count in self.counts().items())
        return f"points {done}{of}  {regimes}  {self._clock()}"

    def _clock(self) -> str:
        left = self.left()
        if left is None:
            return f"{clock(time.monotonic() - self._begin)} so far"
        return f"about {clock(left)} left"

    def _redraw(self) -> None:
        while not self._stop.wait(1.0):
            self._print(self.line())

    def stop(self) -> None:
        """Write the last state and end the line."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._print(f"{self.line()}\n")

    def _print(self, text: str) -> None:
        """Instead of the line that is redrawn, on a terminal."""
        if self._stream is not None:
            with suppress(OSError):  # a terminal that was closed
                lead = "\r\x1b[K" if self._terminal else ""
                print(lead + text, end="", file=self._stream, flush=True)


def clock(seconds: float) -> str:
    """A time as people write it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"

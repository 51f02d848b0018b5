"""What the machines of a sweep are busy with, on its way to MLflow."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

#: Seconds between two samples of a machine that are kept, and between two requests.
SAMPLE_SECONDS = 10.0
#: Samples that wait while MLflow is away, at most; the oldest go first.
LONGEST = 10_000


@dataclass(frozen=True)
class Sample:
    """What was seen of a machine: name, value, and when, in seconds since the epoch."""

    name: str
    value: float
    at: float


class Machines:
    """Collects samples, one a machine every few seconds, until they are written together.

    MLflow shows metrics that begin with `system/` on a page of their own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard: dict[str, float] = {}
        self._waiting: deque[Sample] = deque(maxlen=LONGEST)
        self._asked = False
        self._written = -math.inf

    def add(self, machine: str, usage: Sequence[tuple[str, float]]) -> bool:
        """Take a sample.

        Returns:
            Whether it is time to write what waits.
        """
        name, now = re.sub(r"[^\w.-]", "_", machine)[:100], time.monotonic()
        second = time.time()
        with self._lock:
            for key, value in usage:
                full = f"system/{name}/{key}"
                # Each worker of a machine says the same.
                early = now - self._heard.get(full, -math.inf) < SAMPLE_SECONDS
                if not early and math.isfinite(value):
                    self._heard[full] = now
                    self._waiting.append(Sample(full, value, second))
            if not self._waiting or self._asked or now - self._written < SAMPLE_SECONDS:
                return False
            self._asked, self._written = True, now
            return True

    @contextmanager
    def waiting(self) -> Iterator[list[Sample]]:
        """What is to be written; it waits on if that fails."""
        with self._lock:
            taken = list(self._waiting)
        yield taken
        with self._lock:
            for _ in range(min(len(taken), len(self._waiting))):
                self._waiting.popleft()
            self._asked = False

"""Keeps the state of a running sweep on disk, and hears what other processes ask of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from sweeps.store import Store

#: Seconds between two looks at what is asked, and between two reports.
LOOK_SECONDS = 1.0
REPORT_SECONDS = 5.0


class Heartbeat:
    """A thread beside the sweep, for as long as the `with` block lasts.

    Args:
        store: where the facts are kept and questions come in.
        facts: the state as it is now.
        asked: is told the word (`pause` or `stop`) that another process has left.
    """

    def __init__(
        self, store: Store, facts: Callable[[], dict[str, Any]], asked: Callable[[str], None]
    ) -> None:
        self._store = store
        self._facts = facts
        self._asked = asked
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="stabmap-heartbeat", daemon=True)

    def _work(self) -> None:
        reported = -REPORT_SECONDS
        while True:
            now = time.monotonic()
            if now - reported >= REPORT_SECONDS:
                reported = now
                with suppress(Exception):  # a full disk, Ray away: a request must still be heard
                    self._store.remember(**self._facts())
            if self._over.wait(LOOK_SECONDS):
                return
            if word := self._store.asked():
                with suppress(OSError):
                    self._store.answer()
                self._asked(word)

    def __enter__(self) -> None:
        self._store.answer()  # what was asked of a process that is gone
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

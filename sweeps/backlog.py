"""Records on their way to a service that may be away: in order, in the background, until taken."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from trainables.messages import first_line

Record = TypeVar("Record")

_log = logging.getLogger("stabmap")

#: Seconds before the next try after so many failures in a row; then the last.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
#: Seconds that a record waits for others: a transaction costs more than what it holds.
GATHER = 0.5
#: Records that are written together, at most.
TOGETHER = 256
#: Seconds beyond the patience that a single write may take at the end: a connection can hang.
HANGING = 60.0


class Backlog(Generic[Record]):
    """Writes records on a thread of its own, in their order, however often that takes.

    Nobody waits for it. What it holds is on disk already (the store's log), so nothing is lost if
    the process ends first: the next call of the sweep writes what is missing.

    Args:
        service: its name in messages.
        write: takes records in order. After an error it is called again with the same ones, so it
            has to leave out what was taken before the error.
        refused: whether an error is about the record and not about the service. Such a record is
            left out, with a warning.
    """

    def __init__(
        self,
        service: str,
        write: Callable[[Sequence[Record]], None],
        refused: Callable[[Exception], bool] = lambda error: False,
    ) -> None:
        self._service = service
        self._write = write
        self._refused = refused
        self._waiting: deque[Record] = deque()
        self._changed = threading.Condition()
        self._closing: float | None = None
        self._alone = 0
        self._failures = 0
        self._taken_at = time.monotonic()
        self._left_out = 0
        self._thread = threading.Thread(target=self._work, name=f"stabmap-{service}", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, record: Record) -> None:
        """Have a record written."""
        with self._changed:
            self._waiting.append(record)
            self._changed.notify()

    def __len__(self) -> int:
        """Number of records that were not taken yet."""
        return len(self._waiting)

    @property
    def away(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def close(self, patience: float) -> int:
        """Write what is left.

        Args:
            patience: seconds after which a service that takes nothing is waited for no longer.

        Returns:
            Number of records that were not taken.
        """
        with self._changed:
            self._closing = time.monotonic() + patience
            self._changed.notify()
        while self._thread.is_alive():
            until = max(self._closing, self._taken_at + patience) + HANGING
            if time.monotonic() >= until:
                break  # the thread is a daemon: it ends with the process
            self._thread.join(min(1.0, until - time.monotonic()))
        return len(self._waiting) + self._left_out

    def _work(self) -> None:
        while records := self._gather():
            try:
                self._write(records)
            except Exception as error:  # the record must never stop the sweep
                if not self._failed(error, records):
                    return
                continue
            if self._failures:
                _log.warning("%s is back", self._service)
            self._failures = 0
            self._alone = max(0, self._alone - 1)
            self._taken(len(records))

    def _gather(self) -> list[Record]:
        """What is to be written next: what comes within a moment; nothing at the end of all."""
        with self._changed:
            while not self._waiting and self._closing is None:
                self._changed.wait()
            until = time.monotonic() + GATHER
            while self._closing is None and (left := until - time.monotonic()) > 0:
                if len(self._waiting) >= TOGETHER:
                    break
                self._changed.wait(left)
            return list(islice(self._waiting, 1 if self._alone else TOGETHER))

    def _taken(self, count: int) -> None:
        with self._changed:
            for _ in range(count):
                self._waiting.popleft()
            self._taken_at = time.monotonic()

    def _failed(self, error: Exception, records: list[Record]) -> bool:
        """After an error: wait; False where there is nothing more to wait for."""
        first = first_line(error)
        if self._refused(error):
            if len(records) > 1:
                self._alone = len(records)  # one by one, to find those that are meant
                return True
            _log.warning("%s refuses a record: %s", self._service, first)
            self._left_out += 1
            self._taken(1)
            return True
        self._failures += 1
        if self._failures == 1:
            _log.warning(
                "%s does not answer (%s); what it misses is kept on disk and written later",
                self._service,
                first or type(error).__name__,
            )
        return self._rest(PAUSES[min(self._failures, len(PAUSES)) - 1])

    def _rest(self, pause: float) -> bool:
        """Sleep, less at the end of the sweep; False when the patience is used up."""
        with self._changed:
            until = time.monotonic() + pause
            while (left := until - time.monotonic()) > 0:
                if self._closing is not None:
                    if time.monotonic() >= self._closing:
                        return False
                    left = min(left, 1.0)
                    until = min(until, time.monotonic() + left)
                self._changed.wait(left)
            return True

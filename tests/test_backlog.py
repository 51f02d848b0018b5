"""Records reach a service that fails at random: each once, in order, however it fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps import backlog
from sweeps.backlog import Backlog


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "PAUSES", (0.001, 0.002))
    monkeypatch.setattr(backlog, "GATHER", 0.002)
    monkeypatch.setattr(backlog, "TOGETHER", 5)


class Service:
    """Takes some of the records, then fails as often as it is told to."""

    def __init__(self, failures: Sequence[int], bad: Sequence[int] = ()) -> None:
        self.taken: list[int] = []
        self._failures = list(failures)
        self._bad = bad

    def write(self, records: Sequence[int]) -> None:
        new = [record for record in records if record not in self.taken]
        for record in new:
            if record in self._bad:
                raise ValueError(f"{record} is wrong")
            if self._failures and self._failures[0] == 0:
                self._failures.pop(0)
                raise ConnectionError("gone\nfor now")
            if self._failures:
                self._failures[0] -= 1
            self.taken.append(record)


@settings(max_examples=30)
@given(
    count=st.integers(0, 30),
    failures=st.lists(st.integers(0, 6), max_size=8),
    bad=st.lists(st.integers(0, 29), max_size=3),
)
def test_each_record_once_and_in_order(count: int, failures: list[int], bad: list[int]) -> None:
    service = Service(failures, bad)
    waiting = Backlog[int]("it", service.write, lambda error: isinstance(error, ValueError))
    waiting.start()
    for record in range(count):
        waiting.put(record)
    refused = {record for record in bad if record < count}
    assert waiting.close(patience=60.0) == len(refused)
    assert service.taken == [record for record in range(count) if record not in refused]


def test_nobody_waits_for_a_service_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """Putting never blocks, closing gives up after the patience, and one line is said."""
    gone = threading.Event()

    def write(records: Sequence[int]) -> None:
        if not gone.is_set():
            raise ConnectionError("http://me:hunter2@host is away")

    waiting = Backlog[int]("MLflow", write)
    waiting.start()
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING):
        for record in range(2000):
            waiting.put(record)
        assert time.monotonic() - begin < 1.0
        while not waiting.away:
            time.sleep(0.001)
        assert waiting.close(patience=0.05) == len(waiting) == 2000
    [said] = caplog.messages
    assert "MLflow does not answer" in said and "hunter2" not in said


def test_the_return_of_a_service_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    service = Service([2, 0, 0])
    waiting = Backlog[int]("MLflow", service.write)
    with caplog.at_level(logging.WARNING):
        waiting.start()
        for record in range(12):
            waiting.put(record)
        assert waiting.close(patience=60.0) == 0
    assert service.taken == list(range(12))
    assert [m.partition(" (")[0] for m in caplog.messages] == [
        "MLflow does not answer",
        "MLflow is back",
    ]


def test_closing_waits_for_no_write_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose network is gone says nothing; the end of the sweep may not wait for it."""
    monkeypatch.setattr(backlog, "HANGING", 0.1)
    hanging, over = threading.Event(), threading.Event()

    def write(records: Sequence[int]) -> None:
        hanging.set()
        over.wait(60)

    waiting = Backlog[int]("it", write)
    waiting.start()
    waiting.put(1)
    assert hanging.wait(60)
    begin = time.monotonic()
    assert waiting.close(patience=0.1) == 1
    assert time.monotonic() - begin < 30
    over.set()


def test_closing_what_was_never_begun() -> None:
    waiting = Backlog[int]("it", Service([]).write)
    waiting.put(1)
    assert waiting.close(patience=1.0) == 1

"""A full disk: the message names it, and the sweep goes on when there is space again."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic import LR, margins_at, measure, result_of, spec_of

from sweeps import runner
from sweeps.runner import _Session
from sweeps.searcher import PackSearcher
from sweeps.spec import SweepSpec
from sweeps.store import Entry, Store
from sweeps.tracking import Tracker
from trainables.domain import Point, PointResult, UnreachableError


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)], capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("a file system of its own cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            while True:
                try:
                    if file.write(b"x" * size) < size:
                        break
                except OSError:
                    break
    return path


def spec_on(disk: Path, elsewhere: Path) -> SweepSpec:
    return spec_of(
        {"lr": LR},
        folder=str(disk),
        search="sobol",
        budget={"points": 24},
        database=f"sqlite:///{elsewhere / 'stabmap.db'}",
        tracking={"address": f"sqlite:///{elsewhere / 'mlflow.db'}"},
    )


def test_a_result_that_does_not_fit_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    """All results of a report or none, and the same bytes as on a large disk afterwards."""
    spec = spec_on(small_disk, tmp_path)
    entries = [Entry(measure(Point(0.1 + i)), 0, 1.0) for i in range(40)]
    with Store(spec) as store:
        store.extend(entries[:3])
        path = store.folder / "results.jsonl"
        before = path.read_bytes()
        filler = fill(small_disk)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                store.extend(entries[3:])
            assert path.read_bytes() == before and len(store) == 3
        filler.unlink()
        store.extend(entries[3:])
        assert path.read_bytes() == b"".join(entry.line() for entry in entries)
    with Store(spec) as store:
        assert list(store.entries.values()) == entries


def session_on(spec: SweepSpec, store: Store, stream: io.StringIO) -> _Session:
    session = _Session(spec, store, Tracker(spec), stream)
    session._open()
    return session


def large(point: Point) -> PointResult:
    """A result that does not fit behind the last one in its page of the disk."""
    return result_of(point, margins_at(point), replicates=20)


def report(searcher: PackSearcher, name: str) -> None:
    """A pack that is trained at once."""
    pack = searcher.suggest(name)
    results = [
        [number, large(Point(*values)).to_dict()]
        for number, values in zip(pack["numbers"], pack["points"], strict=True)
    ]
    searcher.on_trial_complete(name, {"results": results})


def test_the_sweep_waits_for_space(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "DISK_SECONDS", 0.01)
    spec, said = spec_on(small_disk, tmp_path), io.StringIO()
    with Store(spec) as store:
        session = session_on(spec, store, said)
        report(session.searcher, "a")
        filler = fill(small_disk)
        waiting = threading.Thread(target=report, args=(session.searcher, "b"))
        waiting.start()
        deadline = time.monotonic() + 30
        while session.progress.note is None and time.monotonic() < deadline:
            time.sleep(0.01)
        session._begin = session.searcher.heard_at = time.monotonic() - 1000
        time.sleep(0.1)
        assert waiting.is_alive() and len(store) == 4
        assert session._facts()["note"].startswith("the disk of")  # and not that no worker reports
        filler.unlink()
        waiting.join(30)
        assert not waiting.is_alive() and len(store) == 8
        assert session.searcher.failure is None and session.progress.note is None
        session._close("FINISHED", "complete")
    [line] = [text for text in said.getvalue().splitlines() if "disk" in text]
    assert line.startswith(f"the disk of {store.folder} is full (0.0 MiB free): 4 results wait;")
    assert line.endswith("make space there and the sweep goes on")


def test_stopping_does_not_wait_for_space(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "DISK_SECONDS", 0.01)
    spec = spec_on(small_disk, tmp_path)
    with Store(spec) as store:
        session = session_on(spec, store, io.StringIO())
        fill(small_disk)
        threading.Timer(0.1, session._end, ["stop"]).start()
        report(session.searcher, "a")
        assert isinstance(session.searcher.failure, OSError)
        told = runner._not_kept(session.searcher.failure, spec, 0)
        assert isinstance(told, UnreachableError) and str(small_disk) in str(told)
        session._close("FAILED", "failed")


def test_other_errors_of_a_disk_end_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_on(tmp_path, tmp_path)
    with Store(spec) as store:
        session = session_on(spec, store, io.StringIO())

        def broken(number: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", broken)
        report(session.searcher, "a")
        assert isinstance(session.searcher.failure, OSError)
        session._close("FAILED", "failed")

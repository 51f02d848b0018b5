"""However a sweep ends, its folder says so, and another process is heard until then."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from recorded import spec_in
from synthetic import measure

from sweeps import heartbeat, runner
from sweeps.database import database_address
from sweeps.heartbeat import Heartbeat
from sweeps.progress import Progress
from sweeps.runner import _deaf_to_hang_ups, _Session, check_surroundings, execute
from sweeps.status import CONTROL, read_status
from sweeps.store import Store, facts_in
from sweeps.tracking import Tracker
from trainables.domain import InputError, Point, StabmapError, UnreachableError


def ctrl_c(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("moment", ["replay", "Ray"])
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_before_the_first_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, times: int
) -> None:
    """The first waits until Ray is there: it dies with its process if it is cut off on the way."""

    def pressed(*_: Any) -> None:
        for _time in range(times):
            ctrl_c()
        reached.append(moment)

    @contextmanager
    def starting(*_: Any) -> Iterator[Path]:
        pressed()
        yield tmp_path

    spec, reached = spec_in(tmp_path), list[str]()
    tracker = Tracker(spec)
    with Store(spec) as store:
        session = _Session(spec, store, tracker, None)
        if moment == "replay":
            monkeypatch.setattr(session.searcher, "_look_ahead", pressed)
        else:
            monkeypatch.setattr(runner, "_ray", starting)
        monkeypatch.setattr(session, "_train", lambda _: pytest.fail("nothing is to be trained"))
        outcome = session.run("local")
        folder = store.folder
    assert len(reached) == (times == 1)
    assert outcome.ending == read_status(folder).state == "interrupted"
    assert tracker._client.get_run(outcome.sweep).info.status == "KILLED"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("away", [False, True])
def test_a_sweep_that_goes_on_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    """And what it was before, where it cannot."""
    spec, seen = spec_in(tmp_path), list[str]()

    def opened(tracker: Tracker) -> str:
        seen.append(read_status(store.folder).state)
        if away:
            raise UnreachableError("MLflow is away")
        return plain(tracker)

    plain = Tracker.open
    with Store(spec) as store:
        store.remember(state="paused", error="a word", points=3)
        monkeypatch.setattr(Tracker, "open", opened)
        session = _Session(spec, store, Tracker(spec), None)
        monkeypatch.setattr(session, "_run", lambda _: None)
        with pytest.raises(UnreachableError) if away else nullcontext():
            session.run("local")
        assert seen == ["running"]
        facts = store.recall()
    assert (facts["state"], facts["error"]) == (("paused", "a word") if away else ("short", None))


class Closed(io.StringIO):
    """A terminal that is gone."""

    def write(self, _: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_progress_is_shown_to_nobody() -> None:
    progress = Progress(4, None, Closed())
    progress.add(measure(Point(0.1)), trained=True)
    progress.say("no worker has reported")
    progress.stop()
    assert progress.note == "no worker has reported"
    assert sum(progress.counts().values()) == 1


def test_what_ray_starts_does_not_hear_of_the_terminal() -> None:
    """A process has the mask of the one that began it; the driver hears again afterwards."""
    ask = "import signal; print(signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with _deaf_to_hang_ups():
        heard = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    assert heard.stdout == "True\n"
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_lost_terminal_ends_a_sweep_in_good_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """As a scheduler does; where nobody listens any more nothing fails for that."""

    spec, before = spec_in(tmp_path), signal.getsignal(number)
    tracker = Tracker(spec)
    monkeypatch.setattr("sys.stderr", Closed())
    with Store(spec) as store:
        session = _Session(spec, store, tracker, Closed())
        monkeypatch.setattr(session.searcher, "_look_ahead", lambda *_: signal.raise_signal(number))
        monkeypatch.setattr(session, "_train", lambda _: pytest.fail("nothing is to be trained"))
        outcome = session.run("local")
    assert outcome.ending == read_status(outcome.folder).state == "interrupted"
    assert signal.getsignal(number) is before


def test_a_sweep_without_a_terminal_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After nohup the signal is ignored, by the sweep too."""
    spec = spec_in(tmp_path)
    with Store(spec) as store:
        session = _Session(spec, store, Tracker(spec), None)
        former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with session._interruptible():
                os.kill(os.getpid(), signal.SIGHUP)
                assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert session.ended is None
        finally:
            signal.signal(signal.SIGHUP, former)


def test_ctrl_c_ends_the_wait_for_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known is told; what MLflow has missed, the next call writes."""
    spec = spec_in(tmp_path)
    tracker = Tracker(spec)
    with Store(spec) as store:
        session = _Session(spec, store, tracker, None)
        session._open()
        close = tracker.close
        monkeypatch.setattr(tracker, "close", ctrl_c)
        assert not session._close("FINISHED", "complete")
    assert not session.mirror._records._thread.is_alive()
    close("KILLED", 60.0)


def test_a_lost_worker_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Tune would print its whole stack each time; a message without an error stays as it is."""
    stream, log = io.StringIO(), logging.getLogger("ray.tune.execution.tune_controller")
    spec = spec_in(tmp_path)
    with Store(spec) as store:
        session = _Session(spec, store, Tracker(spec), stream)
        with runner._one_line(session._lost):
            error = MemoryError("no room\nfor token=hunter22")
            log.error("Trial task failed", exc_info=error)
            log.error("Trial task failed", exc_info=RuntimeError("again"))
            log.error("something else")
    [said] = stream.getvalue().splitlines()
    assert said == "a worker was lost (MemoryError: no room); its pack is begun again"
    assert session.searcher.cause == "RuntimeError: again"
    assert caplog.messages == ["something else"]


def test_a_request_is_heard_where_the_state_cannot_be_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray may be away just when it is asked what it has."""
    monkeypatch.setattr(heartbeat, "LOOK_SECONDS", 0.01)
    heard = threading.Event()

    def facts() -> dict[str, Any]:
        raise RuntimeError("Ray is away")

    with Store(spec_in(tmp_path)) as store, Heartbeat(store, facts, lambda _: heard.set()):
        (store.folder / CONTROL).write_text("pause")
        assert heard.wait(10)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff"])
def test_damaged_facts_are_made_anew(tmp_path: Path, text: str) -> None:
    """As a crash of the machine may leave them: nothing in them is lost for good."""
    with Store(spec_in(tmp_path)) as store:
        store.remember(sweep="one")
        (store.folder / "sweep.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        assert facts_in(store.folder) == {}
        store.remember(sweep="two")
        assert json.loads((store.folder / "sweep.json").read_text()) == {"sweep": "two"}


def test_a_dead_database_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STABMAP_DATABASE", "postgresql://me:hunter22@127.0.0.1:9/x")
    with pytest.raises(UnreachableError, match="refused") as caught:
        execute(spec_in(tmp_path))
    assert "hunter22" not in str(caught.value)
    monkeypatch.setenv("STABMAP_DATABASE", f"sqlite:///{tmp_path}/missing/x.db")
    with pytest.raises(UnreachableError, match=r"^STABMAP_DATABASE = .*there is no folder"):
        execute(spec_in(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["nonsense", "mysql://me:hunter22@h/x", "sqlite://"])
def test_a_database_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("STABMAP_DATABASE", address)
    with pytest.raises(InputError, match=r"^STABMAP_DATABASE = .* is no address of") as caught:
        execute(spec_in(tmp_path))
    assert "hunter22" not in str(caught.value)
    monkeypatch.setenv("STABMAP_DATABASE", "")
    assert database_address(spec_in(tmp_path)) == f"sqlite:///{tmp_path}/stabmap.db"


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "there", ":1", "a:b"])
def test_a_malformed_address(tmp_path: Path, address: str) -> None:
    with pytest.raises(InputError, match="is no address of a Ray cluster"):
        check_surroundings(spec_in(tmp_path), address, insecure=True)


def test_whoever_only_looks_at_the_lock_keeps_nobody_off(tmp_path: Path) -> None:
    """`status` has it for a moment, just when a sweep may begin."""
    spec = spec_in(tmp_path)
    with Store(spec) as store:
        path = store.folder / "lock"
    with path.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        threading.Timer(0.05, fcntl.flock, [lock, fcntl.LOCK_UN]).start()
        Store(spec).close()
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(StabmapError, match="being run by another process"):
            Store(spec)

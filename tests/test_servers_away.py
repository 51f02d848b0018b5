"""PostgreSQL and the MLflow server go away in the middle of a sweep: nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from mlflow import MlflowClient
from recorded import POINTS, spec_in
from servers import PostgreSQL, Server, mlflow_server, postgresql
from synthetic import measure

from sweeps import backlog, fsck
from sweeps.database import Database
from sweeps.mirror import Mirror
from sweeps.rounds import Rounds
from sweeps.spec import SweepSpec
from sweeps.store import Entry, Store
from sweeps.tracking import Tracker
from trainables.domain import StabmapError, UnreachableError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    with postgresql(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory, database: PostgreSQL) -> Iterator[Server]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), database) as server:
        yield server


@pytest.fixture
def spec(
    tmp_path: Path, database: PostgreSQL, mlflow: Server, monkeypatch: pytest.MonkeyPatch
) -> SweepSpec:
    for name, value in {**database.environment, **mlflow.environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(backlog, "PAUSES", (0.2,))
    monkeypatch.setattr(backlog, "GATHER", 0.05)
    name = f"sweep_{abs(hash(tmp_path)) % 10**9}"
    monkeypatch.setenv("STABMAP_DATABASE", database.database(name))
    return spec_in(tmp_path, tracking={"address": mlflow.url, "experiment": name})


class Recording:
    """A sweep that records as fast as it can, and goes on where one before it stopped."""

    def __init__(self, spec: SweepSpec) -> None:
        self.spec, self.store = spec, Store(spec)
        self.mirror, self.rounds = Mirror(spec, self.store), Rounds(spec)
        known = self.store.recall().get("sweep")
        self.tracker = Tracker(spec, known)
        elsewhere = self.mirror.open(known is not None)
        self.tracker.known = known or elsewhere
        run = self.tracker.open()
        self.mirror.remember_run(run)
        self.store.remember(sweep=run, limit=POINTS)
        self.queue: list[Any] = []

    def train(self, points: int) -> None:
        for _ in range(points):
            self.queue = self.queue or list(self.rounds.propose() or ())
            number, point = self.queue.pop(0)
            entry = Entry(measure(point), self.rounds.repetition(number), 1000.0 + number)
            self.store.extend([entry])
            self.rounds.record(number, entry.result)
            self.mirror.add(number, entry)
            self.tracker.log_point(number, entry)

    def close(self, patience: float = 90.0) -> bool:
        self.store.remember(state="complete")
        recorded = self.tracker.close("FINISHED", patience)
        recorded = self.mirror.close(patience) and recorded
        self.store.close()
        return recorded

    def away(self, which: Any) -> None:
        """Until a loss is noticed."""
        deadline = time.monotonic() + 60
        while not which._records.away:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def children(spec: SweepSpec) -> list[Any]:
    client = MlflowClient(spec.tracking.address)
    experiment = client.get_experiment_by_name(spec.tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return [run for run in runs if "stabmap.point" in run.data.tags]


def agrees(spec: SweepSpec) -> bool:
    report = fsck.check(spec)
    assert [str(finding) for finding in report.findings] == []
    runs = children(spec)
    assert {run.info.status for run in runs} == {"FINISHED"}
    return report.points == len(runs) == POINTS


def test_undisturbed(spec: SweepSpec) -> None:
    sweep = Recording(spec)
    sweep.train(POINTS)
    assert sweep.close()
    assert agrees(spec)


def test_both_are_killed_in_the_middle(
    spec: SweepSpec, database: PostgreSQL, mlflow: Server
) -> None:
    """Training goes on at once; both get what they missed when they are back."""
    sweep = Recording(spec)
    sweep.train(4)
    mlflow.kill()
    database.kill()
    begin = time.monotonic()
    sweep.train(6)
    assert time.monotonic() - begin < 2.0
    sweep.away(sweep.mirror)
    sweep.away(sweep.tracker)
    database.start()
    mlflow.start()
    sweep.train(2)
    assert sweep.close()
    assert agrees(spec)


def test_a_sweep_that_ends_while_they_are_away_is_completed_by_the_next_call(
    spec: SweepSpec, database: PostgreSQL, mlflow: Server
) -> None:
    sweep = Recording(spec)
    sweep.train(5)
    mlflow.kill()
    database.kill()
    try:
        sweep.train(4)
        assert not sweep.close(patience=0.5)
        again = Recording(spec)  # with both still away
        assert again.tracker.away and len(again.store) == 9
        again.train(POINTS)
        assert len(again.store) == POINTS
    finally:
        database.start()
        mlflow.start()
    assert again.close()
    assert agrees(spec)


def test_a_server_that_answers_nothing(spec: SweepSpec, mlflow: Server) -> None:
    """Taken, and the answer lost: the same records come again and are not doubled."""
    sweep = Recording(spec)
    client, write = sweep.tracker._client, sweep.tracker._client.log_batch
    failures = iter([True, False, True, False, False, True])

    def lossy(*given: Any, **named: Any) -> None:
        write(*given, **named)
        if next(failures, False):
            raise ConnectionError("the answer is lost")

    client.log_batch = lossy
    sweep.train(POINTS)
    assert sweep.close()
    assert agrees(spec)


def test_one_machine_at_a_time(spec: SweepSpec, tmp_path: Path, mlflow: Server) -> None:
    """Another machine has another folder, and the same database."""
    sweep = Recording(spec)
    other = spec_in(tmp_path / "other", tracking=spec.tracking.model_dump())
    assert other.hash == spec.hash
    with Store(other) as store, pytest.raises(StabmapError, match="being run on another machine"):
        Mirror(other, store).open(begun=False)
    sweep.train(POINTS)
    assert sweep.close()
    again = Recording(other)
    assert len(again.store) == POINTS
    again.close()


def test_who_cannot_begin_holds_nothing(
    spec: SweepSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An error after the sweep was taken hold of leaves it to others."""
    with Store(spec) as store, monkeypatch.context() as broken:
        broken.setattr(Database, "keys", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Mirror(spec, store).open(begun=True)
    with Store(spec_in(tmp_path / "other", tracking=spec.tracking.model_dump())) as store:
        mirror = Mirror(spec, store)
        mirror.open(begun=False)
        assert mirror.close(5.0)


def test_a_new_sweep_needs_them(
    spec: SweepSpec, database: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the address and no password, and no folder."""
    monkeypatch.setenv("PGPASSWORD", "wrong-secret")
    with Store(spec) as store, pytest.raises(UnreachableError) as error:
        Mirror(spec, store).open(begun=False)
    said = str(error.value)
    assert said.startswith("database = 'postgresql+psycopg2://") and "authentication failed" in said
    assert "wrong-secret" not in said and "\n" not in said
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(database.url.replace("+psycopg2", ""))


def test_putting_never_waits(spec: SweepSpec, mlflow: Server) -> None:
    """Also where the server takes connections and then says nothing."""
    sweep = Recording(spec)
    os.killpg(mlflow.pid, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        sweep.train(POINTS)
        assert time.monotonic() - begin < 2.0
    finally:
        threading.Timer(0.5, os.killpg, [mlflow.pid, signal.SIGCONT]).start()
    assert sweep.close()
    assert agrees(spec)


def test_rows_are_those_of_the_store(spec: SweepSpec) -> None:
    sweep = Recording(spec)
    sweep.train(POINTS)
    entries = dict(sweep.store.entries)
    assert sweep.close()
    database = Database(spec)
    database.open()
    assert {entry.key: entry for entry in database.read(database.keys())} == entries
    database.close()

"""A sweep in PostgreSQL belongs to one machine, also after the server was killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sql
from servers import PostgreSQL, postgresql
from synthetic import DECAY, LR, measure, spec_of

from sweeps import database as databases
from sweeps.database import Database
from sweeps.mirror import Mirror
from sweeps.rounds import Rounds
from sweeps.spec import SweepSpec
from sweeps.store import Entry, Store
from trainables.domain import StabmapError, UnreachableError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    with postgresql(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture
def spec(server: PostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepSpec:
    monkeypatch.setenv("PGPASSWORD", server.password)
    axes = {"lr": LR, "weight_decay": DECAY}
    return spec_of(axes, search="sobol", folder=str(tmp_path), database=server.url)


def ask(server: PostgreSQL, question: str) -> list[Any]:
    address = server.url.replace("+psycopg2", "")
    connection = psycopg2.connect(address, password=server.password)
    with connection, connection.cursor() as cursor:
        cursor.execute(question)
        found: list[Any] = cursor.fetchall()
    connection.close()
    return found


def wait(what: Callable[[], bool], limit: float = 30.0) -> None:
    deadline = time.monotonic() + limit
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def entries(spec: SweepSpec, count: int) -> list[tuple[int, Entry]]:
    points = (Rounds(spec).propose() or [])[:count]
    return [(number, Entry(measure(point), 0, 1000.0 + number)) for number, point in points]


def refused(spec: SweepSpec) -> bool:
    other = Database(spec)
    try:
        other.open()
    except StabmapError as error:
        return "on another machine" in str(error)
    finally:
        other.close()
    return False


def test_sweep_is_held_again_after_the_server_was_killed(
    server: PostgreSQL, spec: SweepSpec
) -> None:
    (_, first), (_, second) = numbered = entries(spec, 2)
    with Store(spec) as store:
        mirror = Mirror(spec, store)
        mirror.open(begun=False)
        assert refused(spec)
        mirror.add(*numbered[0])
        wait(lambda: first.key in mirror._there)
        server.kill()
        server.start()
        mirror.add(*numbered[1])
        wait(lambda: second.key in mirror._there)
        assert refused(spec)
        assert mirror.close(10.0)
    assert not refused(spec)
    kept = [key for (key,) in ask(server, "select key from stabmap_results order by finished_at")]
    assert kept == [first.key, second.key]


def test_no_transaction_is_left_open(server: PostgreSQL, spec: SweepSpec) -> None:
    """It would keep the server from tidying up for as long as the sweep runs."""
    database = Database(spec)
    database.open()
    assert refused(spec)
    states = ask(server, "select state from pg_stat_activity where datname = 'postgres'")
    assert ("idle in transaction",) not in states
    database.close()


def test_server_notices_a_machine_that_is_cut_off(spec: SweepSpec) -> None:
    """Within a minute. By default it believes for two hours that the machine holds the sweep."""
    database = Database(spec)
    database.open()
    assert database._held is not None
    idle, interval, count = (
        int(str(database._held.scalar(sql.text(f"show tcp_keepalives_{name}"))))
        for name in ("idle", "interval", "count")
    )
    database.close()
    assert 0 < idle + interval * count <= 60


def test_nobody_waits_for_long_for_a_machine_that_makes_tables(
    spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "SILENT_SECONDS", 6)
    one, other = Database(spec), Database(spec)
    with one._alone():
        begin = time.monotonic()
        with pytest.raises(UnreachableError, match=r"cannot be used .*lock timeout"):
            other.open()
        assert 5.9 < time.monotonic() - begin < 40
    other.open()
    for database in (one, other):
        database.close()

"""Trials that are written together are those that Optuna would write one by one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import optuna
import pytest
import sqlalchemy as sql
from optuna.trial import FrozenTrial
from servers import PostgreSQL, postgresql
from synthetic import DECAY, LR, measure, spec_of

from sweeps import database as databases
from sweeps import trials
from sweeps.database import Database, _trial
from sweeps.rounds import Rounds
from sweeps.spec import SweepSpec
from sweeps.store import Entry
from trainables.domain import UnreachableError

TABLES = ("trials", "trial_params", "trial_values", "trial_user_attributes")
#: What a database counts up by itself.
COUNTED = ("study_id", "trial_id", "param_id", "trial_value_id", "trial_user_attribute_id")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    with postgresql(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def spec(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SweepSpec:
    changes = {"search": "sobol", "folder": str(tmp_path)}
    if request.param == "postgresql":
        server = request.getfixturevalue("server")
        monkeypatch.setenv("PGPASSWORD", server.password)
        # Each test has a sweep of its own.
        changes |= {"database": server.url, "name": request.node.originalname}
    return spec_of({"lr": LR, "weight_decay": DECAY}, **changes)  # with a switch, a category


def entries(spec: SweepSpec) -> list[tuple[int, Entry]]:
    points = Rounds(spec).propose() or []
    return [(n, Entry(measure(point), 0, 1.7e9 + 0.123456 * n)) for n, point in points]


def rows(database: Database, study: str) -> list[list[str]]:
    """All that is kept of a study's trials, without what the database counts up."""
    found, known = [], sql.MetaData()
    known.reflect(database._engine, only=["studies", *TABLES])
    trial, studies = known.tables["trials"], known.tables["studies"]
    with database._engine.connect() as connection:
        for name in TABLES:
            table = known.tables[name]
            whole = trial.join(studies)
            whole = whole if table is trial else table.join(whole)
            shown = [trial.c.number, *(c for c in table.c if c.name not in COUNTED)]
            asked = sql.select(*shown).select_from(whole).where(studies.c.study_name == study)
            found.append(sorted(map(repr, connection.execute(asked))))
    return found


def test_rows_are_those_that_optuna_writes(spec: SweepSpec) -> None:
    numbered, database = entries(spec), Database(spec)
    database.open()
    database.tell(numbered[:5])
    database.tell(numbered[5:])
    plain = optuna.create_study(study_name="plain", storage=database._storage())
    plain.add_trials([_trial(spec, entry) for _, entry in numbered])
    written = rows(database, database.study_name)
    assert [len(found) for found in written] == [8, 24, 8, 24]
    assert written == rows(database, "plain")
    ours = database.study().trials
    assert [
        (t.number, t.params, t.value, t.user_attrs, t.state, t.datetime_start) for t in ours
    ] == [
        (t.number, t.params, t.value, t.user_attrs, t.state, t.datetime_start) for t in plain.trials
    ]
    database.study().ask()  # and Optuna goes on from there
    assert database.study().trials[-1].number == 8
    database.close()


def test_sweeps_that_begin_together_make_the_tables_once(spec: SweepSpec) -> None:
    """Without a lock some of eight find a table that another one has just made."""
    changes = {"folder": spec.folder, "database": spec.database}
    if spec.database is not None:
        changes["database"] = new_database(spec.database)
    begin = Barrier(8)

    def start(steps: int) -> str:
        database = Database(spec_of({"lr": LR}, search="sobol", steps=steps, **changes))
        begin.wait()
        database.open()
        name = database.study().study_name
        database.close()
        return name

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(start, range(20, 28)))
    assert len(set(names)) == 8
    storage = Database(spec_of({"lr": LR}, search="sobol", steps=20, **changes))._storage()
    assert {study.study_name for study in storage.get_all_studies()} == set(names)


def test_a_file_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'missing' / 'one.db'}"
    database = Database(spec_of({"lr": LR}, folder=str(tmp_path), database=address))
    law = r"database = 'sqlite:///.*/one\.db': cannot be used \(.*No such file.*\); .*mend the addr"
    with pytest.raises(UnreachableError, match=law):
        database.open()
    assert not list(tmp_path.iterdir())


def new_database(address: str) -> str:
    """An empty database on the same server."""
    known = sql.make_url(address)
    engine = sql.create_engine(known, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sql.text("create database empty"))
    engine.dispose()
    return known.set(database="empty").render_as_string(hide_password=False)


def test_all_trials_or_none(spec: SweepSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    numbered, database = entries(spec), Database(spec)
    database.open()
    study = database.study()
    given = [_trial(spec, entry) for _, entry in numbered]
    given[-1].user_attrs["key"] = object()  # no JSON
    with pytest.raises(TypeError):
        trials.add_together(database._engine, study.study_name, given, 0)
    assert study.trials == []
    with pytest.raises(ValueError, match="0 trials, not 3"):
        trials.add_together(database._engine, study.study_name, given, 3)
    monkeypatch.setattr(trials, "LAYOUT", 11)
    with pytest.raises(NotImplementedError, match="layout 12"):
        trials.add_together(database._engine, study.study_name, given, 0)
    database.close()


@pytest.mark.parametrize("before", [True, False], ids=["refused", "answer lost"])
def test_optuna_adds_them_where_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """Each once, also where they were written and the answer was lost."""
    spec = spec_of({"lr": LR}, search="sobol", folder=str(tmp_path))
    together = trials.add_together

    def failing(engine: sql.Engine, name: str, given: list[FrozenTrial], number: int) -> None:
        if not before:
            together(engine, name, given, number)
        raise ConnectionError("lost")

    monkeypatch.setattr(databases, "add_together", failing)
    numbered, database = entries(spec), Database(spec)
    database.open()
    for some in (numbered[3:5], numbered[:3], numbered[5:]):
        database.tell(some)
    keys = [trial.user_attrs["key"] for trial in database.study().trials]
    assert keys == [entry.key for _, entry in numbered]
    database.close()

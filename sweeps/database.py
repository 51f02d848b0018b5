"""A sweep in a database that all machines share: its results, and its Optuna study.

A result is first in the log of the machine that runs the sweep (`store`), then here. Optuna's own
tables lie beside it in the same database (`optuna-dashboard ADDRESS` shows them); the study there
is written from the results and never read by the search.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite

from analysis.lock import alone
from sweeps.rounds import distance_to_boundary
from sweeps.search.space import distributions, to_params
from sweeps.spec import SweepSpec, database_mistakes
from sweeps.store import Entry
from sweeps.trials import add_together
from trainables.domain import InputError, PointResult, StabmapError, UnreachableError
from trainables.messages import first_line, redacted

#: Environment variable with the address, where the spec names none.
VARIABLE = "STABMAP_DATABASE"
FILE = "stabmap.db"
#: Seconds within which a server has to take a connection.
CONNECT_SECONDS = 5
#: Seconds after which a silent end of a connection is taken for lost, by us and by the server.
SILENT_SECONDS = 60
#: Number, to PostgreSQL, of the lock that whoever makes tables holds.
TABLES = zlib.crc32(b"stabmap: tables")
#: Keys that one question asks for.
MANY = 500

_tables = sql.MetaData()
_sweeps = sql.Table(
    "stabmap_sweeps",
    _tables,
    sql.Column("sweep", sql.String(16), primary_key=True),
    sql.Column("spec", sql.Text, nullable=False),
    sql.Column("mlflow_run", sql.String(64)),
)
_results = sql.Table(
    "stabmap_results",
    _tables,
    sql.Column("sweep", sql.String(16), primary_key=True),
    sql.Column("key", sql.String(255), primary_key=True),
    sql.Column("repetition", sql.Integer, nullable=False),
    sql.Column("finished_at", sql.Double, nullable=False),
    sql.Column("result", sql.Text, nullable=False),
)


def database_address(spec: SweepSpec) -> str:
    """The database of a sweep: the spec's, else STABMAP_DATABASE, else a file in the folder.

    Raises:
        InputError: STABMAP_DATABASE is no address of a database.
    """
    named = spec.database or os.environ.get(VARIABLE)
    if not named:
        return f"sqlite:///{Path(spec.folder).expanduser() / FILE}"
    # The schemes that everyone writes mean another driver to SQLAlchemy, or nothing.
    named = re.sub("^postgres(ql)?://", "postgresql+psycopg2://", named)
    if mistakes := list(database_mistakes(VARIABLE, named)):
        raise InputError(mistakes)
    return named


class Database:
    """The rows of one sweep.

    Args:
        spec: the sweep.

    Raises:
        UnreachableError: the database cannot be used.
    """

    def __init__(self, spec: SweepSpec) -> None:
        self.address = database_address(spec)
        self._spec = spec
        self._study: optuna.Study | None = None
        self._told = 0
        self._held: sql.Connection | None = None
        self._trials: dict[int, optuna.trial.FrozenTrial] = {}
        with self._clear_errors():
            self._engine = sql.create_engine(self.address, **_options(self.address))
            insert = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
            self._insert: Any = insert

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except (
            sql.exc.SQLAlchemyError,
            optuna.exceptions.OptunaError,
            ImportError,
            OSError,
        ) as error:
            cause = getattr(error, "orig", None) or error
            first = first_line(cause, 160)
            remedy = (
                "pip install 'stabmap[postgresql]'"
                if isinstance(error, ImportError)
                else "start it, mend the address, or leave both out to use a file in the folder"
            )
            raise UnreachableError(
                f"database = {redacted(self.address)!r}: cannot be used ({first}); {remedy}"
            ) from error

    def knock(self) -> None:
        """Raise UnreachableError unless a server takes a connection; leaves nothing behind."""
        if self._engine.dialect.name == "postgresql":
            with self._clear_errors():
                self._engine.connect().close()
        self.close()

    def open(self) -> str | None:
        """Make the tables where they are missing, and the sweep's row.

        Returns:
            The sweep's MLflow run, where another machine has begun one.

        Raises:
            UnreachableError: the database does not answer.
            StabmapError: another machine runs this sweep.
        """
        with self._clear_errors():
            with self._alone():
                _tables.create_all(self._engine)
            self.hold()
            with self._engine.begin() as connection:
                spec = json.dumps(self._spec.resolved(), sort_keys=True)
                row = {"sweep": self._spec.hash, "spec": spec}
                connection.execute(self._insert(_sweeps).values(row).on_conflict_do_nothing())
                mine = _sweeps.c.sweep == self._spec.hash
                run = connection.scalar(sql.select(_sweeps.c.mlflow_run).where(mine))
        return None if run is None else str(run)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time: two that begin together would both make the same tables."""
        if self._engine.dialect.name != "postgresql":
            with alone(self.address):
                yield
            return
        with self._engine.begin() as connection:
            _attentive(connection)
            connection.execute(sql.text(f"set local lock_timeout = '{SILENT_SECONDS}s'"))
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(TABLES)))
            yield

    def hold(self) -> None:
        """Keep other machines off the sweep while this process is connected; again if need be.

        Raises:
            StabmapError: another one holds it.
        """
        if self._engine.dialect.name != "postgresql" or self._holds():
            return  # a file: the store's lock does
        held = self._engine.connect()
        number = int(self._spec.hash, 16) - 2**63  # PostgreSQL counts locks in signed 64 bits
        got = held.scalar(sql.text("select pg_try_advisory_lock(:n)"), {"n": number})
        _attentive(held)
        held.commit()  # the lock stays; an open transaction would be in the way of a vacuum
        if not got:
            held.close()
            raise StabmapError(
                f"sweep {self._spec.hash} is being run on another machine; wait for it, or stop "
                "it there first"
            )
        self._held = held

    def _holds(self) -> bool:
        """Whether the lock is still ours: it goes with its connection."""
        if self._held is None:
            return False
        try:
            self._held.scalar(sql.select(1))
            self._held.commit()
        except sql.exc.SQLAlchemyError:
            self._held.invalidate()
            self._held.close()
            self._held = None
        return self._held is not None

    def remember_run(self, mlflow_run: str) -> None:
        """Keep the id of the sweep's MLflow run."""
        with self._engine.begin() as connection:
            mine = _sweeps.c.sweep == self._spec.hash
            connection.execute(sql.update(_sweeps).where(mine).values(mlflow_run=mlflow_run))

    def keys(self) -> set[str]:
        """The keys of all results that are here."""
        with self._engine.connect() as connection:
            mine = _results.c.sweep == self._spec.hash
            return set(connection.scalars(sql.select(_results.c.key).where(mine)))

    def read(self, keys: Iterable[str]) -> list[Entry]:
        """Results by their keys, in the order in which they came in."""
        wanted, found = sorted(keys), list[Entry]()
        with self._engine.connect() as connection:
            for begin in range(0, len(wanted), MANY):
                some = _results.c.key.in_(wanted[begin : begin + MANY])
                rows = connection.execute(
                    sql.select(_results).where(_results.c.sweep == self._spec.hash, some)
                )
                found += [
                    Entry(
                        PointResult.from_dict(json.loads(row.result)),
                        row.repetition,
                        row.finished_at,
                    )
                    for row in rows
                ]
        return sorted(found, key=lambda entry: (entry.finished_at, entry.key))

    def write(self, entries: Sequence[Entry]) -> None:
        """Keep results; those that are here already stay as they are."""
        rows = [
            {
                "sweep": self._spec.hash,
                "key": entry.key,
                "repetition": entry.repetition,
                "finished_at": entry.finished_at,
                "result": json.dumps(entry.result.to_dict(), allow_nan=False),
            }
            for entry in entries
        ]
        if rows:
            with self._engine.begin() as connection:
                connection.execute(self._insert(_results).on_conflict_do_nothing(), rows)

    def remove(self, keys: Iterable[str]) -> None:
        """Take results out."""
        with self._engine.begin() as connection:
            for key in keys:
                this = (_results.c.sweep == self._spec.hash, _results.c.key == key)
                connection.execute(sql.delete(_results).where(*this))

    def remove_study(self) -> None:
        """Take the Optuna study out, to write it anew."""
        optuna.delete_study(study_name=self.study_name, storage=self._storage())
        self._study = None

    @property
    def study_name(self) -> str:
        """Name of the Optuna study."""
        return f"{self._spec.title}-{self._spec.hash}"

    def _storage(self) -> optuna.storages.RDBStorage:
        with self._alone():
            return optuna.storages.RDBStorage(self.address, engine_kwargs=_options(self.address))

    def study(self) -> optuna.Study:
        """The sweep's study in Optuna's tables; begun where there is none."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._clear_errors():
            return optuna.create_study(
                study_name=self.study_name, storage=self._storage(), load_if_exists=True
            )

    def tell(self, results: Iterable[tuple[int, Entry]]) -> None:
        """Add numbered results to the study, as finished trials in the order of their numbers.

        What comes before its turn waits for those before it.
        """
        for number, entry in results:
            self._trials[number] = _trial(self._spec, entry)
        if self._study is None:  # the first time, and after an error
            self._study = self.study()
            self._told = len(self._study.get_trials(deepcopy=False))
        study, self._study = self._study, None
        if ready := self._due():
            try:
                add_together(self._engine, study.study_name, ready, self._told)
            except Exception:  # Optuna then says what is wrong, if it was not the answer alone
                self._told = len(study.get_trials(deepcopy=False))
                for trial in self._due():
                    study.add_trial(trial)
                    self._told += 1
            else:
                self._told += len(ready)
        self._study = study

    def _due(self) -> list[optuna.trial.FrozenTrial]:
        """The trials whose turn it is; what the study has is let go."""
        self._trials = {n: trial for n, trial in self._trials.items() if n >= self._told}
        due: list[optuna.trial.FrozenTrial] = []
        while (trial := self._trials.get(self._told + len(due))) is not None:
            due.append(trial)
        return due

    def close(self) -> None:
        """End all connections."""
        if self._held is not None:
            with suppress(sql.exc.SQLAlchemyError):
                self._held.close()
        self._engine.dispose()


def _attentive(connection: sql.Connection) -> None:
    """Have PostgreSQL notice the end of a connection, and let go of its locks.

    Else a machine that was cut off would keep them for hours.
    """
    connection.execute(sql.text(f"set tcp_keepalives_idle = {SILENT_SECONDS // 2}"))
    connection.execute(sql.text(f"set tcp_keepalives_interval = {SILENT_SECONDS // 6}"))
    connection.execute(sql.text("set tcp_keepalives_count = 3"))


def _options(address: str) -> dict[str, Any]:
    """How to connect: briefly to a server, and never with a connection that has died."""
    if address.startswith("sqlite"):
        return {"connect_args": {"timeout": 60}}
    arguments = {
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": SILENT_SECONDS // 2,
        "keepalives_interval": SILENT_SECONDS // 6,
        "keepalives_count": 3,
        "tcp_user_timeout": SILENT_SECONDS * 1000,  # what was sent and is never acknowledged
    }
    return {"connect_args": arguments, "pool_pre_ping": True}


def _trial(spec: SweepSpec, entry: Entry) -> optuna.trial.FrozenTrial:
    margins = entry.result.verdict.margins
    trial = optuna.trial.create_trial(
        params=to_params(spec.space, entry.result.point),
        distributions=distributions(spec.space),
        value=distance_to_boundary(margins),
        user_attrs={
            "margins": [margins.stable, margins.bounded],
            "regime": margins.regime.value,
            "key": entry.key,
        },
    )
    trial.datetime_start = trial.datetime_complete = datetime.fromtimestamp(entry.finished_at)
    return trial

"""Keeps a sweep's database up to date with its store, in the background."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sqlalchemy as sql

from sweeps.backlog import Backlog
from sweeps.database import Database
from sweeps.spec import SweepSpec
from sweeps.store import Entry, Store
from trainables.domain import UnreachableError

Record = tuple[int, Entry] | Callable[[], None]


class Mirror:
    """What the store has, in the database too, and the other way round at the start.

    Args:
        spec: the sweep.
        store: its results on this machine.
    """

    def __init__(self, spec: SweepSpec, store: Store) -> None:
        self._store = store
        self._database = Database(spec)
        self._records = Backlog[Record]("the database", self._write, _is_refusal)
        self._opened = False
        self._there: set[str] = set()

    def open(self, begun: bool) -> str | None:
        """Fetch what other machines have found, and begin to write.

        Args:
            begun: whether this machine has run the sweep before. Then it goes on even where the
                database is away.

        Returns:
            The sweep's MLflow run, where the database knows one.

        Raises:
            UnreachableError: the database cannot be used, and nothing is known here.
            StabmapError: another machine runs this sweep.
        """
        run = None
        try:
            run = self._open()
        except BaseException as error:
            if not begun or not isinstance(error, UnreachableError):
                self._database.close()  # others may hold the sweep now
                raise
        self._records.start()
        return run

    def _open(self) -> str | None:
        run = self._database.open()
        self._there = self._database.keys()
        new = self._there - self._store.entries.keys()
        self._store.extend(self._database.read(new))
        self._opened = True
        return run

    def add(self, number: int, entry: Entry) -> None:
        """Have a numbered result written."""
        self._records.put((number, entry))

    def remember_run(self, run: str) -> None:
        """Have the id of the sweep's MLflow run written."""
        self._records.put(lambda: self._database.remember_run(run))

    def _write(self, records: Sequence[Record]) -> None:
        if not self._opened:  # it was away when the sweep began
            self._database.open()
            self._there = self._database.keys()
            self._opened = True
        self._database.hold()
        numbered = [record for record in records if isinstance(record, tuple)]
        new = [entry for _, entry in numbered if entry.key not in self._there]
        self._database.write(new)
        self._there |= {entry.key for entry in new}
        self._database.tell(numbered)
        for record in records:
            if not isinstance(record, tuple):
                record()

    def close(self, patience: float) -> bool:
        """Write what waits.

        Args:
            patience: seconds to wait for a database that is away.

        Returns:
            Whether the database took everything.
        """
        left = self._records.close(patience)
        self._database.close()
        return left == 0


def _is_refusal(error: Exception) -> bool:
    """Whether a row is wrong, rather than the database away."""
    return isinstance(error, sql.exc.DataError)

"""The sweeps of one folder and their maps, read again only when their files have changed."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from analysis.load import ARTIFACT_FOLDER
from analysis.lock import is_held
from analysis.map import MAP_FILE, StabilityMap

T = TypeVar("T")

#: Facts about a sweep that are shown; the rest concerns only the machine that runs it.
FACTS = ("title", "state", "points", "limit", "counts", "left", "updated", "sweep")
HASH = re.compile("[0-9a-f]{16}")
#: Maps that are kept: a fitted one of 10,000 points takes about 100 MB.
KEPT = 16


class NoSweepError(LookupError):
    """No sweep has the name, several have it, or it has no map yet; `status` is that of HTTP."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Files(Generic[T]):
    """What was read from files, for as long as their times and sizes stay.

    Args:
        read: reads one.
        most: how many are kept; the one that was asked for longest ago goes first.
    """

    def __init__(self, read: Callable[[Path], T], most: int) -> None:
        self._read, self._most = read, most
        self._known: dict[Path, tuple[tuple[int, int], T]] = {}
        self._lock = threading.Lock()

    def get(self, path: Path) -> T:
        """What is in a file now.

        Raises:
            FileNotFoundError: there is none.
        """
        found = path.stat()
        version = (found.st_mtime_ns, found.st_size)
        with self._lock:
            known = self._known.pop(path, None)
            if known is None or known[0] != version:
                known = version, self._read(path)
            self._known[path] = known
            while len(self._known) > self._most:
                del self._known[next(iter(self._known))]
        return known[1]


class Library:
    """The sweeps of one folder, and their maps as they are now.

    Args:
        folder: as `folder` in a spec.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder / "sweeps"
        self._facts: Files[dict[str, Any]] = Files(_read_facts, 10_000)
        self._maps: Files[StabilityMap] = Files(StabilityMap.read_parquet, KEPT)

    def sweeps(self) -> list[dict[str, Any]]:
        """All sweeps, the latest first."""
        found = [self.facts(path.parent.name) for path in self._root.glob("*/sweep.json")]
        return sorted(found, key=_updated, reverse=True)

    def facts(self, name: str) -> dict[str, Any]:
        """What is known of the sweep with a hash."""
        facts: dict[str, Any] = {"state": "unknown"}
        with suppress(OSError):
            facts = self._facts.get(self.folder(name) / "sweep.json")
        shown = {"hash": name, **{fact: facts.get(fact) for fact in FACTS}}
        if shown["state"] == "running" and not is_held(self.folder(name)):
            shown["state"] = "died"
        return shown

    def folder(self, name: str) -> Path:
        """Where the sweep with a hash is kept."""
        return self._root / name

    def find(self, name: str) -> dict[str, Any]:
        """The sweep with a hash, an MLflow id or, where it is the only one, a title.

        Raises:
            NoSweepError: there is none, or there are several.
        """
        if HASH.fullmatch(name) and (self.folder(name) / "sweep.json").exists():
            return self.facts(name)  # without a look at all others
        found = [f for f in self.sweeps() if name in (f["hash"], f["sweep"], f["title"])]
        if not found:
            raise NoSweepError(404, f"no sweep {name!r}; GET /sweeps lists them")
        if len(found) > 1:
            hashes = ", ".join(facts["hash"] for facts in found)
            raise NoSweepError(409, f"several sweeps are called {name!r}: {hashes}")
        return found[0]

    def map(self, name: str) -> StabilityMap:
        """The map of a sweep, read again when it has changed.

        Raises:
            NoSweepError: there is no such sweep, or no result yet.
        """
        path = self.folder(self.find(name)["hash"]) / ARTIFACT_FOLDER / MAP_FILE
        try:
            return self._maps.get(path)
        except FileNotFoundError:
            raise NoSweepError(404, f"sweep {name!r} has no results yet") from None


def _read_facts(path: Path) -> dict[str, Any]:
    read: Any = None
    with suppress(OSError, ValueError):  # a crash may leave it damaged
        read = json.loads(path.read_text("utf-8"))
    return read if isinstance(read, dict) else {"state": "unknown"}


def _updated(facts: dict[str, Any]) -> float:
    updated = facts["updated"]
    return updated if isinstance(updated, (int, float)) else 0

"""Results by key, on disk: the one truth about what a sweep has done.

A sweep's folder is named after the hash of its spec and holds `results.jsonl`, one line a training
of a point in the order of completion, each flushed to disk before anything else hears of it.
Appending what is there already changes nothing, so resuming a sweep is running it again. The shared
database, the Optuna study in it and the MLflow runs are all written from here and can be remade.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import yaml

from sweeps.spec import SweepSpec
from trainables.domain import Point, PointResult, StabmapError, UnreachableError

#: The file in a sweep's folder by which another process asks for something, and what it may ask.
CONTROL = "control"
WORDS = ("pause", "stop")
#: How often a lock that is taken is tried, and seconds between two tries.
LOOKS, LOOK_SECONDS = 10, 0.02
#: Errors of a disk that is full: somebody can make space.
FULL = (errno.ENOSPC, errno.EDQUOT)


def unwritable(spec: SweepSpec, error: OSError) -> UnreachableError:
    """What to say of a folder that cannot be written."""
    return UnreachableError(
        f"folder = {spec.folder!r}: cannot be written ({error.strerror}); choose another with "
        "folder: PATH in the spec or the environment variable STABMAP_HOME"
    )


def key_of(point: Point, repetition: int) -> str:
    """What tells one training of a sweep from all others."""
    return f"{point.key} #{repetition}" if repetition else point.key


@dataclass(frozen=True)
class Entry:
    """A result as it is kept.

    Args:
        result: the result.
        repetition: how often its point had been trained before.
        finished_at: when it came in, seconds since the epoch.
    """

    result: PointResult
    repetition: int
    finished_at: float

    @property
    def key(self) -> str:
        """What tells it from all others of its sweep."""
        return key_of(self.result.point, self.repetition)

    def line(self) -> bytes:
        """The line of the log.

        Raises:
            ValueError: a number that JSON does not have.
        """
        content = {
            "finished_at": self.finished_at,
            "repetition": self.repetition,
            "result": self.result.to_dict(),
        }
        return json.dumps(content, allow_nan=False).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Entry:
        """Inverse of `line`."""
        content = json.loads(line)
        result = PointResult.from_dict(content["result"])
        return cls(result, content["repetition"], content["finished_at"])


def folder_of(spec: SweepSpec) -> Path:
    """Where a sweep is kept."""
    return Path(spec.folder).expanduser() / "sweeps" / spec.hash


def facts_in(folder: Path) -> dict[str, Any]:
    """Small facts about the sweep in a folder; none where there is no sweep, or they are damaged.

    They can be had again: the log has the results, the database the id of the MLflow run.
    """
    facts = None
    with suppress(FileNotFoundError, ValueError):  # bad JSON and bad characters are ValueErrors
        facts = json.loads((folder / "sweep.json").read_text("utf-8"))
    return facts if isinstance(facts, dict) else {}


class Store:
    """The folder of one sweep, held by one process at a time.

    Args:
        spec: the sweep.

    Raises:
        UnreachableError: the folder cannot be written.
        StabmapError: another process runs this sweep.
    """

    def __init__(self, spec: SweepSpec) -> None:
        self.folder = folder_of(spec)
        self._entries: dict[str, Entry] = {}
        self._facts = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise unwritable(spec, error) from error
        if not self._held():
            self._lock.close()
            raise StabmapError(
                f"sweep {spec.hash} is being run by another process; wait for it, or stop it first"
            )
        try:
            self._write("spec.yaml", yaml.safe_dump(spec.resolved(), sort_keys=False))
            if spec.source is not None:  # else nobody could train such a point again
                self._write("task.py", spec.source.text)
            self._log = self._read()
        except BaseException:
            self._lock.close()
            raise

    def _held(self) -> bool:
        """Take the lock; whoever only looks whether it is taken (`status`) has it for a moment."""
        for _ in range(LOOKS):
            with suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(LOOK_SECONDS)
        return False

    def _read(self) -> FileIO:
        """Read the log; open to be appended to."""
        path, good = self.folder / "results.jsonl", 0
        path.touch()
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break  # cut short by a crash: the point will be trained again
            try:
                entry = Entry.of(line)
            except (ValueError, KeyError, TypeError) as error:
                raise StabmapError(
                    f"line {number} of {path} is damaged "
                    f"({type(error).__name__}); delete that line: its point is trained again"
                ) from error
            self._entries.setdefault(entry.key, entry)
            good += len(line)
        # Without a buffer: what could not be written must not be written again behind our back.
        log = path.open("ab", buffering=0)
        log.truncate(good)
        return log

    def __len__(self) -> int:
        """Number of trainings that have a result."""
        return len(self._entries)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """All that is kept, by key, in the order of completion."""
        return MappingProxyType(self._entries)

    def extend(self, entries: Iterable[Entry]) -> tuple[bool, ...]:
        """Keep several results; all are on disk when this returns.

        Returns:
            Which were new.

        Raises:
            OSError: the disk is full or broken; nothing was kept.
            ValueError: a result holds a number that JSON does not have; nothing was kept.
        """
        new: dict[str, Entry] = {}
        fresh = []
        for entry in entries:
            fresh.append(entry.key not in self._entries and entry.key not in new)
            if fresh[-1]:
                new[entry.key] = entry
        if new:
            self._append(b"".join(entry.line() for entry in new.values()))
            self._entries |= new
        return tuple(fresh)

    def _append(self, lines: bytes) -> None:
        """All of it or nothing."""
        before = os.fstat(self._log.fileno()).st_size
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[self._log.write(rest) :]
            os.fsync(self._log.fileno())
        except OSError:
            self._log.truncate(before)
            raise

    def remember(self, **values: Any) -> None:
        """Keep small facts about the sweep, such as the id of its MLflow run."""
        with self._facts:
            self._write("sweep.json", json.dumps({**self.recall(), **values}, indent=1))

    def recall(self) -> dict[str, Any]:
        """What `remember` kept."""
        return facts_in(self.folder)

    def asked(self) -> str | None:
        """What another process asks of the one that runs the sweep: `pause` or `stop`."""
        with suppress(OSError):
            word = (self.folder / CONTROL).read_text("utf-8").strip()
            return word if word in WORDS else None
        return None

    def answer(self) -> None:
        """Take the question away: it was heard, or comes from before."""
        (self.folder / CONTROL).unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        partial = self.folder / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.folder / name)

    def close(self) -> None:
        """Let other processes have the sweep."""
        self._log.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

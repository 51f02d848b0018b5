"""Results by key, on disk: the one truth about what a sweep has done.

A sweep's folder is named after the hash of its spec and holds `results.jsonl`, one line a training
of a point in the order of completion, each flushed to disk before anything else hears of it.
Appending what is there already changes nothing, so resuming a sweep is running it again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import yaml

from sweeps.spec import SweepSpec
from trainables.domain import Point, PointResult, StabmapError, UnreachableError


def unwritable(spec: SweepSpec, error: OSError) -> UnreachableError:
    """What to say of a folder that cannot be written."""
    return UnreachableError(
        f"folder = {spec.folder!r}: cannot be written ({error.strerror}); choose another with "
        "folder: PATH in the spec or the environment variable STABMAP_HOME"
    )


def key_of(point: Point, repetition: int) -> str:
    """What tells one training of a sweep from all others."""
    return f"{point.key} #{repetition}" if repetition else point.key


class Store:
    """The folder of one sweep, held by one process at a time.

    Args:
        spec: the sweep.

    Raises:
        UnreachableError: the folder cannot be written.
        StabmapError: another process runs this sweep.
    """

    def __init__(self, spec: SweepSpec) -> None:
        self.folder = Path(spec.folder).expanduser() / "sweeps" / spec.hash
        self.finished_at: dict[str, float] = {}
        self._results: dict[str, PointResult] = {}
        self._file: IO[bytes] | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise unwritable(spec, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StabmapError(
                f"sweep {spec.hash} is being run by another process; wait for it, or stop it first"
            ) from error
        self._write("spec.yaml", yaml.safe_dump(spec.resolved(), sort_keys=False))
        self._open()

    def _open(self) -> None:
        path = self.folder / "results.jsonl"
        self._file = path.open("ab+")
        self._file.seek(0)
        good = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break  # cut short by a crash: the point will be trained again
            entry = json.loads(line)
            result = PointResult.from_dict(entry["result"])
            key = key_of(result.point, entry["repetition"])
            self._results.setdefault(key, result)
            self.finished_at.setdefault(key, entry["finished_at"])
            good += len(line)
        self._file.truncate(good)

    def __len__(self) -> int:
        """Number of trainings that have a result."""
        return len(self._results)

    def get(self, point: Point, repetition: int = 0) -> PointResult | None:
        """The result of a point's first or a further training, if there is one."""
        return self._results.get(key_of(point, repetition))

    def append(self, result: PointResult, finished_at: float, repetition: int = 0) -> bool:
        """Keep a result; it is on disk when this returns.

        Args:
            result: the result.
            finished_at: when it came in, seconds since the epoch.
            repetition: how often the point had been trained before.

        Returns:
            Whether it was new.
        """
        return self.extend([(result, repetition)], finished_at)[0]

    def extend(
        self, results: Iterable[tuple[PointResult, int]], finished_at: float
    ) -> tuple[bool, ...]:
        """Keep several results, each with its repetition; all are on disk when this returns.

        Returns:
            Which were new.
        """
        assert self._file is not None
        new: dict[str, PointResult] = {}
        fresh, lines = [], []
        for result, repetition in results:
            key = key_of(result.point, repetition)
            fresh.append(key not in self._results and key not in new)
            if fresh[-1]:
                new[key] = result
                entry = {
                    "finished_at": finished_at,
                    "repetition": repetition,
                    "result": result.to_dict(),
                }
                lines.append(json.dumps(entry, allow_nan=False).encode() + b"\n")
        if lines:
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._results |= new
            self.finished_at |= dict.fromkeys(new, finished_at)
        return tuple(fresh)

    def remember(self, **values: Any) -> None:
        """Keep small facts about the sweep, such as the id of its MLflow run."""
        self._write("sweep.json", json.dumps({**self.recall(), **values}, indent=1))

    def recall(self) -> dict[str, Any]:
        """What `remember` kept."""
        path = self.folder / "sweep.json"
        facts: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return facts

    def _write(self, name: str, text: str) -> None:
        partial = self.folder / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.folder / name)

    def close(self) -> None:
        """Let other processes have the sweep."""
        if self._file is not None:
            self._file.close()
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

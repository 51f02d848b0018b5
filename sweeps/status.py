"""How a sweep is doing, read from its folder, and how its driver is asked to end.

Nothing here takes part in the sweep: the driver holds the folder's lock and writes `sweep.json`;
others read, and ask by writing one word into the file `control`.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.lock import is_held
from sweeps.progress import clock
from trainables.domain import InputError, Mistake, Regime, StabmapError, UnreachableError

#: What the driver may write.
STATES = ("running", "paused", "stopped", "interrupted", "complete", "short", "failed")
#: The file that asks the driver, and the words that it knows, with the state they lead to.
CONTROL = "control"
REQUESTS: Mapping[str, str] = {"pause": "paused", "stop": "stopped"}
#: States without a driver in which a request only changes the word.
SETTLED: Mapping[str, tuple[str, ...]] = {
    "pause": ("died", "running", "unknown"),
    "stop": ("died", "running", "unknown", "paused", "interrupted"),
}
#: Seconds between two looks at a folder while something is waited for.
LOOK = 0.2


@dataclass(frozen=True)
class SweepStatus:
    """How a sweep is doing.

    Args:
        hash: hash of its spec, which names its folder.
        folder: where it lies; None for a sweep that is known from Ray's jobs alone.
        title: name of the sweep.
        state: one of `STATES`; `died` where it should run and no process does; `waiting` for a
            job that Ray has not started; `unknown` where nothing says.
        sweep: MLflow id of the sweep, where it is known.
        tracking: MLflow address, without secrets.
        points: points with a result.
        limit: points in the budget; None where only time ends the sweep.
        counts: points by regime.
        left: estimated seconds to the end.
        workers: packs that are being trained.
        updated: when this was written, seconds since the epoch.
        pid: process id of the driver.
        host: host of the driver.
        error: why it failed.
        note: what it waits for.
        job: id of its latest job on a Ray cluster.
    """

    hash: str
    folder: Path | None = None
    title: str = ""
    state: str = "unknown"
    sweep: str | None = None
    tracking: str | None = None
    points: int = 0
    limit: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    left: float | None = None
    workers: int | None = None
    updated: float | None = None
    pid: int | None = None
    host: str | None = None
    error: str | None = None
    note: str | None = None
    job: str | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs, or will as soon as Ray starts its job."""
        return self.state in ("running", "waiting")

    @property
    def done(self) -> str:
        """Points so far, of how many."""
        return f"{self.points}/{self.limit}" if self.limit else f"{self.points}"

    def line(self) -> str:
        """All that matters while it runs, in one line."""
        regimes = [f"{name} {self.counts.get(name, 0)}" for name in map(str, Regime)]
        parts = [self.state, f"points {self.done}", *regimes]
        if self.alive and self.left is not None:
            parts.append(f"about {clock(self.left)} left")
        parts += [text for text in (self.note if self.alive else None, self.error) if text]
        return "  ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"folder": None if self.folder is None else str(self.folder)}


# --------------------------------------------------------------------------- reading


def read_status(folder: str | Path) -> SweepStatus:
    """How the sweep in a folder is doing.

    Args:
        folder: a sweep's folder, named after its hash.

    Raises:
        InputError: no sweep was ever run in that folder.
    """
    place = Path(folder).expanduser()
    if not _is_sweep(place):
        law, remedy = "no sweep lies there", "stabmap status lists those there are"
        raise InputError([Mistake("sweep", str(folder), law, remedy)])
    facts, unread = _facts(place)
    found = SweepStatus(
        hash=place.resolve().name,
        folder=place,
        title=plain(_of(facts, "title", str) or ""),
        state=_state(facts, place),
        sweep=_of(facts, "sweep", str),
        tracking=_of(facts, "tracking", str),
        points=_of(facts, "points", int) or 0,
        limit=_of(facts, "limit", int),
        counts=_counts(facts),
        left=_number(facts, "left"),
        workers=_of(facts, "workers", int),
        updated=_number(facts, "updated"),
        pid=_of(facts, "pid", int),
        host=_of(facts, "host", str),
        error=plain(_of(facts, "error", str) or "") or unread,
        note=plain(_of(facts, "note", str) or "") or None,
    )
    if found.state != "died":
        return found
    where = f"process {found.pid} on {found.host}" if found.pid else "its process"
    return replace(found, error=f"{where} ended without a word; go on: stabmap resume {found.hash}")


def _is_sweep(folder: Path) -> bool:
    """Whether a folder is one that a sweep has made: a spec alone may be the user's."""
    named = re.fullmatch("[0-9a-f]{16}", folder.resolve().name)
    return named is not None and (folder / "spec.yaml").is_file()


def _facts(folder: Path) -> tuple[dict[str, Any], str | None]:
    """What the driver wrote, and what is wrong with it."""
    try:
        facts = json.loads((folder / "sweep.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError) as error:  # bad JSON and bad characters are ValueErrors
        return {}, f"sweep.json cannot be read ({type(error).__name__})"
    return (facts, None) if isinstance(facts, dict) else ({}, "sweep.json holds no mapping")


def _of(facts: Mapping[str, Any], key: str, kind: type) -> Any:
    """A fact, or None where it is missing or something else."""
    value = facts.get(key)
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


def _number(facts: Mapping[str, Any], key: str) -> float | None:
    value = facts.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    with suppress(OverflowError):
        return float(value) if math.isfinite(value) else None
    return None


def _counts(facts: Mapping[str, Any]) -> dict[str, int]:
    counts = _of(facts, "counts", dict) or {}
    return {name: _of(counts, name, int) or 0 for name in map(str, Regime) if name in counts}


def _state(facts: Mapping[str, Any], folder: Path) -> str:
    written = facts.get("state")
    if written == "running":
        return "running" if is_held(folder) else "died"
    if written in STATES:
        return str(written)
    return "running" if is_held(folder) else "unknown"  # its first second, or an old version


def plain(text: str) -> str:
    """A text in one line, without what would move a terminal's cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# --------------------------------------------------------------------------- finding


def find_sweeps(home: Path) -> tuple[SweepStatus, ...]:
    """All sweeps of a home, the one that was heard of last first."""
    found = [read_status(place) for place in (home / "sweeps").glob("*") if _is_sweep(place)]
    return tuple(sorted(found, key=lambda status: -(status.updated or 0.0)))


def find_sweep(text: str, home: Path) -> SweepStatus:
    """The sweep that a text names: its folder, hash, beginning of it, MLflow id or title.

    Raises:
        InputError: there is none, or more than one.
    """
    place = Path(text).expanduser()
    if _is_sweep(place):
        return read_status(place)
    return pick(text, find_sweeps(home), f"in {home}")


def pick(text: str, sweeps: tuple[SweepStatus, ...], where: str) -> SweepStatus:
    """The one of several sweeps that a text names.

    Args:
        text: hash, beginning of it, MLflow id, job id or title.
        sweeps: the sweeps.
        where: where they are, for the message.

    Raises:
        InputError: there is none, or more than one.
    """
    exact = [s for s in sweeps if text in (s.hash, s.sweep, s.job)]
    named = [s for s in sweeps if text and text == s.title] or [
        s for s in sweeps if re.fullmatch("[0-9a-f]+", text) and s.hash.startswith(text)
    ]
    found = exact or named
    if len(found) == 1:
        return found[0]
    if found:
        law = f"names {len(found)} sweeps {where}"
        remedy = f"use a hash: {', '.join(s.hash for s in found[:5])}"
    else:
        law, remedy = f"no such sweep {where}", "stabmap status lists those there are"
    raise InputError([Mistake("sweep", text, law, remedy)])


# --------------------------------------------------------------------------- asking


def ask(
    status: SweepStatus, request: str, timeout: float, sleep: Callable[[float], object] = time.sleep
) -> tuple[SweepStatus, str]:
    """Ask the driver of a sweep to end in good order, and wait for it.

    Args:
        status: the sweep, on this machine.
        request: `pause` or `stop`.
        timeout: seconds to wait.
        sleep: waits so many seconds.

    Returns:
        How the sweep is then, and what happened, in words.

    Raises:
        StabmapError: the sweep has ended already.
        UnreachableError: the driver did not answer in time.
    """
    folder, wanted = status.folder, REQUESTS[request]
    assert folder is not None
    if not is_held(folder):
        return _settle(status, request)
    until = time.monotonic() + timeout
    while is_held(folder):  # also while the driver writes its last records
        if not (folder / CONTROL).exists():  # a driver that begins forgets what it finds
            _write(folder / CONTROL, request)
        if time.monotonic() >= until:
            if read_status(folder).state == wanted:
                break
            where = f"process {status.pid} on {status.host}" if status.pid else "its process"
            raise UnreachableError(
                f"sweep {status.hash}: {where} holds it and did not answer in {timeout:g} s; the "
                f"request to {request} stays; wait with a longer --timeout, or end that process"
            )
        sleep(LOOK)
    (folder / CONTROL).unlink(missing_ok=True)  # it may have ended before it looked
    found = read_status(folder)
    if found.alive or found.state == "died":  # it died while it was asked
        return _settle(found, request)
    if found.state == wanted:
        return found, f"sweep {found.hash} is {wanted}: {found.points} points are kept"
    return found, f"sweep {found.hash} ended before it could {request}: it is {found.state}"


def _settle(status: SweepStatus, request: str) -> tuple[SweepStatus, str]:
    """Set the state of a sweep that no process runs."""
    folder, wanted = status.folder, REQUESTS[request]
    assert folder is not None
    if status.state == wanted:
        return status, f"sweep {status.hash} is {wanted} already"
    if status.state not in SETTLED[request]:
        raise StabmapError(
            f"sweep {status.hash} is {status.state}: there is nothing to {request}; to go on with "
            f"it: stabmap resume {status.hash}"
        )
    with (folder / "lock").open("a") as lock:
        try:  # a driver that begins just now must not lose what it writes
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StabmapError(f"sweep {status.hash} was just started; ask again") from error
        facts, _ = _facts(folder)
        facts |= {"state": wanted, "error": None, "updated": time.time()}
        _write(folder / "sweep.json", json.dumps(facts, indent=1))
        (folder / CONTROL).unlink(missing_ok=True)
    found = read_status(folder)
    why = "its driver is gone" if status.state in ("died", "running") else f"it was {status.state}"
    return found, f"sweep {found.hash} is now {wanted} ({why}): {found.points} points are kept"


def _write(path: Path, text: str) -> None:
    """All at once: whoever reads sees the old text or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)

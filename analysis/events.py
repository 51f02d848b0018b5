"""What happens in a sweep while it runs, as server-sent events.

The events come from the log of the sweep's store (`results.jsonl`), to which each finished training
is appended before anything else hears of it, and from its `sweep.json`. An event's id is the place
in the log behind it: whoever names the last id that came gets what came after it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi.sse import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from analysis.evidence import evidence_row
from analysis.library import Library
from trainables.domain import PointResult

#: The log of a sweep's store.
LOG = "results.jsonl"
#: Seconds between two looks, and bytes that one look takes in.
LOOK = 0.5
MOST = 1 << 20
#: Facts whose change is an event; the others change all the time.
TOLD = ("state", "points", "limit", "counts")


async def events(library: Library, name: str, after: int) -> AsyncIterator[ServerSentEvent]:
    """`point` for each training, `state` for each change of the facts, `end` behind the last one.

    Args:
        library: where the sweep is.
        name: its hash.
        after: id of the last event that came; 0 for all.
    """
    log = library.folder(name) / LOG
    place = await run_in_threadpool(_start, log, after)
    told = None
    while True:
        # The facts first: a sweep that has ended has written all its points before.
        facts = await run_in_threadpool(library.facts, name)
        before = place
        found, place = await run_in_threadpool(read_points, log, before)
        for number, row in found:
            yield ServerSentEvent(event="point", id=str(number), data=row)
        now = {fact: facts[fact] for fact in TOLD}
        if now != told:
            told = now
            yield ServerSentEvent(event="state", data=now)
        if place == before:
            if facts["state"] != "running":
                yield ServerSentEvent(event="end", data=now)
                return
            await asyncio.sleep(LOOK)


def _start(log: Path, after: int) -> int:
    """Where to begin: behind an event that came, or at the top if no line of the log ends there."""
    with suppress(OSError), log.open("rb") as file:
        if 0 < after <= os.fstat(file.fileno()).st_size:
            file.seek(after - 1)
            if file.read(1) == b"\n":
                return after
    return 0


def read_points(log: Path, place: int) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """Trainings that a log has behind a place.

    Returns:
        Of each, the place behind it and what is shown; and the place up to which all was read.
        A last line without its end is left for the next time, a damaged one is left out.
    """
    found = []
    with suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(place)
        lines = file.readlines(MOST)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            place += len(line)
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                found.append((place, _shown(json.loads(line))))
    return found, place


def _shown(entry: dict[str, Any]) -> dict[str, Any]:
    """A training as in the evidence of a map, without the number, which the log does not have."""
    row = evidence_row(0, PointResult.from_dict(entry["result"]))
    del row["number"], row["audit"]
    return row | {name: entry[name] for name in ("repetition", "finished_at")}

"""What a sweep leaves behind in store, database and MLflow, without Ray and without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synthetic import DECAY, LR, measure, spec_of

from sweeps.mirror import Mirror
from sweeps.rounds import Rounds
from sweeps.spec import SweepSpec
from sweeps.store import Entry, Store
from sweeps.tracking import Tracker

POINTS = 12


def spec_in(folder: Path, **changes: Any) -> SweepSpec:
    given: dict[str, Any] = {"search": "sobol", "budget": {"points": POINTS}, **changes}
    return spec_of({"lr": LR, "weight_decay": DECAY}, folder=str(folder), **given)


def sweep(
    spec: SweepSpec, points: int = POINTS, state: str = "complete", shown: bool = False
) -> str:
    """What a sweep leaves behind, without Ray: its first points, recorded everywhere.

    Args:
        spec: the sweep.
        points: how many.
        state: how it is said to have ended.
        shown: whether its map is drawn for MLflow too.

    Returns:
        Its run.
    """
    with Store(spec) as store:
        mirror, tracker, rounds = Mirror(spec, store), Tracker(spec), Rounds(spec)
        mirror.open(begun=False)
        run = tracker.open()
        mirror.remember_run(run)
        store.remember(sweep=run, state=state, limit=POINTS)
        while len(store) < points and (proposed := rounds.propose()):
            for number, point in proposed[: points - len(store)]:
                entry = Entry(measure(point), rounds.repetition(number), 1000.0 + number)
                store.extend([entry])
                rounds.record(number, entry.result)
                mirror.add(number, entry)
                tracker.log_point(number, entry)
        if shown:
            tracker.log_map(rounds.map(), last=True)
        assert tracker.close("FINISHED", 60.0) and mirror.close(60.0)
    return run

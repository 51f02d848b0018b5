"""What MLflow is told of a point: one run, however often the search trains the point."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

from analysis.map import EVIDENCE, evidence_row
from sweeps.runs import FinishedRun
from sweeps.spec import SweepSpec
from sweeps.store import Entry
from trainables.domain import AXIS_NAMES, Curve, Point, PointResult, Replicate

PARENT_TAG = "mlflow.parentRunId"
POINT_TAG = "stabmap.point"
#: Which trainings of its point a run has: 0 for the first, 1 for the next.
TRAININGS_TAG = "stabmap.trainings"
#: Length of a tag, at most.
MOST_TEXT = 8000
#: Points kept of a curve of any replicate but the first, of which all are.
OTHER_CURVES = 16
#: Name, value, time in milliseconds since the epoch, step.
Value = tuple[str, float | None, int, int]


@dataclass(frozen=True)
class Trained:
    """All trainings of a point that have a result so far.

    Args:
        trainings: number of the trial and result of each, in that order; at least one.
    """

    trainings: tuple[tuple[int, Entry], ...]

    def with_also(self, number: int, entry: Entry) -> Self:
        """The same and one more."""
        added = {**dict(self.trainings), number: entry}
        return replace(self, trainings=tuple(sorted(added.items(), key=lambda pair: pair[0])))

    @property
    def entries(self) -> list[Entry]:
        """The results, in order."""
        return [entry for _, entry in self.trainings]

    @property
    def point(self) -> Point:
        """What was trained."""
        return self.entries[0].result.point

    @property
    def number(self) -> int:
        """That of the first training, as in the map."""
        return self.trainings[0][0]

    @property
    def repetitions(self) -> frozenset[int]:
        """Which trainings there are."""
        return frozenset(entry.repetition for entry in self.entries)

    @property
    def result(self) -> PointResult:
        """All replicates as one result, as in the map."""
        return PointResult.merged([entry.result for entry in self.entries])


@dataclass(frozen=True)
class PointRun:
    """What MLflow has of a point.

    Args:
        run: id of the run.
        point: key of the point.
        number: that of its first training.
        repetitions: which trainings are in it.
        regime: the regime that it shows.
        finished: whether the run is over.
    """

    run: str
    point: str
    number: int
    repetitions: frozenset[int]
    regime: str
    finished: bool = True

    @classmethod
    def of(cls, run: Any) -> Self:
        """From MLflow's run."""
        tags, number = run.data.tags, run.data.params.get("number", "")
        return cls(
            run.info.run_id,
            tags.get(POINT_TAG, ""),
            int(number) if number.isdecimal() else -1,
            frozenset(map(int, tags.get(TRAININGS_TAG, "").split())),
            tags.get("regime", ""),
            run.info.status == "FINISHED",
        )

    @classmethod
    def written(cls, run: str, trained: Trained) -> Self:
        """That of a point which was just recorded."""
        regime = trained.result.verdict.regime.value
        return cls(run, trained.point.key, trained.number, trained.repetitions, regime)


def finished_run(spec: SweepSpec, sweep: str, trained: Trained) -> FinishedRun:
    """The run of a point that MLflow does not have yet.

    Args:
        spec: the sweep.
        sweep: id of its run.
        trained: the trainings of the point.
    """
    point = trained.point
    tags = {
        PARENT_TAG: sweep,
        POINT_TAG: point.key,
        "stabmap.kind": "point",
        "sweep": spec.title,
        "task": spec.task_name,
        "optimiser": spec.training.optimiser,
        "dtype": spec.training.dtype,
        "stabiliser": spec.training.stabiliser_name if point.alpha else "none",
    }
    params = {name: repr(getattr(point, name)) for name in AXIS_NAMES}
    params |= {"number": str(trained.number), "ks": " ".join(map(str, spec.ks))}
    name, time = f"{spec.title}-{trained.number}", _time(trained.entries[0])
    return FinishedRun(name, time, tags | tags_of(trained), params, metrics_of(trained))


def tags_of(trained: Trained) -> dict[str, str]:
    """What is said of a point in words; with each further training anew."""
    result = trained.result
    found = [replicate.verdict.regime.value for replicate in result.replicates]
    return {
        TRAININGS_TAG: " ".join(map(str, sorted(trained.repetitions))),
        "regime": result.verdict.regime.value,
        "reason": result.verdict.reason.value,
        "replicates": _words(found),
        "replicates_agree": "yes" if len(set(found)) == 1 else "no",
        "seeds": _words(str(replicate.seed) for replicate in result.replicates),
    }


def _words(words: Iterable[str]) -> str:
    """As many as MLflow takes: a longer text is refused by some of its databases."""
    text = " ".join(words)
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 3].rpartition(" ")[0] + " .."


def metrics_of(trained: Trained, known: frozenset[int] = frozenset()) -> list[Any]:
    """Everything finite about a point, as `mlflow.entities.Metric`.

    What sums up all trainings has their number less one as the step, so that the latest counts.

    Args:
        trained: the trainings.
        known: those that MLflow has.
    """
    from mlflow.entities import Metric

    return [
        Metric(name, float(value), time, step)
        for name, value, time, step in _values(trained, known)
        if value is not None and math.isfinite(value)
    ]


def _values(trained: Trained, known: frozenset[int]) -> Iterator[Value]:
    entries = trained.entries
    if not known:  # filters compare only metrics
        for name in AXIS_NAMES:
            yield name, getattr(trained.point, name), _time(entries[0]), 0
    yield from _summary(trained)
    several = sum(len(entry.result.replicates) for entry in entries) > 1
    single = sum(len(e.result.replicates) for e in entries if e.repetition in known) <= 1
    for entry in entries:
        for number, replicate in _numbered(entry):
            if entry.repetition not in known:
                yield from _curves(replicate, number, _time(entry))
            if several and (single or entry.repetition not in known):
                yield from _by_replicate(replicate, number, _time(entry))


def _summary(trained: Trained) -> Iterator[Value]:
    """What is said of all trainings: medians as in the map."""
    result, entries = trained.result, trained.entries
    row = evidence_row(0, result)
    values: dict[str, float | None] = {
        "trainings": len(entries),
        "margin_stable": row["margin_stable"],
        "margin_bounded": row["margin_bounded"],
        "decided_step": row["step"],
    }
    values |= {name: row[name] for name in EVIDENCE}
    latest = max(map(_time, entries))
    for name, value in values.items():
        yield name, value, latest, len(entries) - 1


def _time(entry: Entry) -> int:
    """Milliseconds since the epoch."""
    return int(entry.finished_at * 1000)


def _numbered(entry: Entry) -> Iterator[tuple[int, Replicate]]:
    """The replicates of a training with their numbers among all of the point, from 1."""
    replicates = entry.result.replicates
    yield from enumerate(replicates, 1 + entry.repetition * len(replicates))


def _curves(replicate: Replicate, number: int, time: int) -> Iterator[Value]:
    for name, curve in replicate.curves.items():
        key = f"curve/{name}" if number == 1 else f"curve/{name}/replicate {number}"
        for step, value in thinned(curve, number):
            yield key, value, time, step


def thinned(curve: Curve, number: int) -> Iterator[tuple[int, float]]:
    """All that is kept of the first replicate's curve; fewer of the others, which are many.

    Args:
        curve: the curve.
        number: of the replicate, from 1.
    """
    count = len(curve.steps)
    stride = 1 if number == 1 else max(1, math.ceil((count - 1) / (OTHER_CURVES - 1)))
    kept = sorted({*range(0, count, stride), count - 1} & set(range(count)))
    return ((curve.steps[i], curve.values[i]) for i in kept)


def _by_replicate(replicate: Replicate, number: int, time: int) -> Iterator[Value]:
    """Margins and metric of a replicate: a curve whose step is the replicate."""
    margins = replicate.verdict.margins
    yield "replicate/margin_stable", margins.stable, time, number
    yield "replicate/margin_bounded", margins.bounded, time, number
    yield "replicate/metric", replicate.evidence.get("metric"), time, number

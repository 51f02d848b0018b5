"""The sweeps of a study: run, counted, and read."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient

from analysis.map import StabilityMap
from stabmap import evaluate, get_task, load_map, load_spec, run_sweep
from sweeps.spec import SweepSpec
from sweeps.store import Entry, folder_of
from sweeps.tracking import BETWEEN, HARDWARE_TAG, tracking_uri
from trainables.domain import AXIS_NAMES, Point, PointResult, Regime, Training
from trainables.dynamics.ensembles.choose import CHUNK, LOOP
from trainables.tasks import Task
from trainables.trajectory import Bench, Trajectory

ROOT = Path(__file__).parent.parent
PRESETS = Path("sweeps/presets/studies")
#: How often `Ran.edges` halves what the search leaves open, unless told otherwise.
HALVINGS = 6


def printed(number: str) -> tuple[float, float]:
    """What a printed number stands for: itself, give or take half a unit of its last digit."""
    exact = Decimal(number)
    half = Decimal(1).scaleb(int(exact.as_tuple().exponent)) / 2
    return float(exact - half), float(exact + half)


@dataclass(frozen=True)
class Bracket:
    """Two trained values beside each other between which the label changes."""

    below: float
    above: float

    def holds(self, value: float) -> bool:
        """Whether a value lies between the two."""
        return self.below <= value <= self.above

    def meets(self, number: str) -> bool:
        """Whether some value between the two would be printed like this."""
        low, high = printed(number)
        return low <= self.above and self.below <= high

    def overlaps(self, other: Bracket) -> bool:
        """Whether some value lies in both."""
        return self.below <= other.above and other.below <= self.above

    @property
    def middle(self) -> float:
        """Geometric mean."""
        return math.sqrt(self.below * self.above)

    def __str__(self) -> str:
        return f"{self.below:.6g} to {self.above:.6g}"


def first_edge(trained: Iterable[tuple[float, bool]]) -> Bracket:
    """The largest value up to which all are inside, and the next; 0 or infinity where none is."""
    below = 0.0
    for value, inside in sorted(trained):
        if not inside:
            return Bracket(below, value)
        below = value
    return Bracket(below, math.inf)


def _middles(bracket: Bracket, halvings: int) -> list[float]:
    """The middles that so many halvings may need, whichever side each of them takes."""
    if not halvings:
        return []
    middle = bracket.middle
    parts = Bracket(bracket.below, middle), Bracket(middle, bracket.above)
    return [middle, *(m for part in parts for m in _middles(part, halvings - 1))]


def seeds_by_label(result: PointResult) -> str:
    """How many seeds are stable / restrained / divergent."""
    found = [one.verdict.regime for one in result.replicates]
    return " / ".join(str(found.count(regime)) for regime in Regime)


@dataclass(frozen=True)
class Ran:
    """A sweep that has run.

    Args:
        preset: name of its preset.
        changes: overrides of the preset, by dotted path.
        spec: the spec.
        run: id of its MLflow run.
        single: trainings of `train` and `edges`, which are no part of the sweep.
        known: the same by their steps and their point, so that none is done twice.
    """

    preset: str
    changes: Mapping[str, Any]
    spec: SweepSpec
    run: str
    single: list[PointResult] = field(default_factory=list)
    known: dict[tuple[int | None, Point], PointResult] = field(default_factory=dict)

    @cached_property
    def map(self) -> StabilityMap:
        """What it found."""
        return load_map(folder_of(self.spec))

    @cached_property
    def results(self) -> tuple[PointResult, ...]:
        """Every training of the map, in the order of its point: workers finish in any order.

        The folder may hold more, of an earlier call with a larger budget.
        """
        lines = (folder_of(self.spec) / "results.jsonl").read_bytes().splitlines(keepends=True)
        entries = [Entry.of(line) for line in lines]
        frame = self.map.to_frame()
        times = Counter(zip(*(frame[name] for name in AXIS_NAMES), strict=True))
        kept = [e for e in entries if e.repetition < times[astuple(e.result.point)]]
        kept.sort(key=lambda e: (e.result.point, e.repetition))
        return tuple(entry.result for entry in kept)

    def at(self, **values: float) -> PointResult:
        """The first training at these values."""
        return next(
            r for r in self.results if all(getattr(r.point, n) == v for n, v in values.items())
        )

    @property
    def gradients(self) -> int:
        """Gradient evaluations of all trainings, those of neighbours for exponents included.

        Products with the Hessian, for the sharpness, are not.
        """
        more = len(self.spec.ks) + self.spec.lyapunov - 1
        every = [one for r in (*self.results, *self.single) for one in r.replicates]
        # All but the base end with the label.
        return sum(one.steps_run + more * min(one.steps_run, one.verdict.step) for one in every)

    @property
    def hardware(self) -> set[str]:
        """What trained the sweep, as its run in MLflow names it."""
        tags = MlflowClient(tracking_uri(self.spec)).get_run(self.run).data.tags
        return set(filter(None, tags.get(HARDWARE_TAG, "").split(BETWEEN)))

    def edges(self, axis: str, regime: str, halvings: int = HALVINGS) -> list[Bracket]:
        """`brackets`, each halved again and again by one more training at its middle.

        Where many trajectories train as fast as one, what later halvings may need is trained too.
        """
        return [self.halved(b, axis, regime, halvings) for b in self.brackets(axis, regime)]

    def halved(self, bracket: Bracket, axis: str, regime: str, halvings: int = HALVINGS) -> Bracket:
        """One of `brackets`, narrowed like those of `edges`."""
        below_inside = self._regime_at(axis, bracket.below) == regime
        for done in range(halvings):
            if done % self._ahead == 0:
                middles = _middles(bracket, min(self._ahead, halvings - done))
                self._train_all(None, [self._point(**{axis: m}) for m in middles])
            result = self.train(None, **{axis: bracket.middle})
            inside = result.verdict.regime.value == regime
            side = "below" if inside == below_inside else "above"
            bracket = replace(bracket, **{side: getattr(result.point, axis)})
        return bracket

    def train(self, steps: int | None = None, **values: float) -> PointResult:
        """One more training as in the sweep, at these values, of another length where given."""
        point = self._point(**values)
        self._train_all(steps, [point])
        return self.known[steps, point]

    def _point(self, **values: float) -> Point:
        """The point with these values; the other axes have one value each."""
        held = {a.name: a.smallest for a in self.spec.space if not a.free}
        return Point(**held | values)

    @property
    def _ahead(self) -> int:
        """How many halvings are trained at once: in a small stack a trajectory costs no time."""
        if any(one.backend == LOOP for result in self.results for one in result.replicates):
            return 1
        training = self.spec.training
        rows = training.replicates * (len(training.ks) + training.lyapunov)
        return max(1, (CHUNK // rows + 1).bit_length() - 1)

    def _train_all(self, steps: int | None, points: Sequence[Point]) -> None:
        """Train the points that are not known yet, side by side."""
        training = self.spec.training
        settings = {f.name: getattr(training, f.name) for f in fields(training)}
        settings |= {} if steps is None else {"steps": steps}
        task = get_task(self.spec.task_name, **self.spec.task_options)
        new = [point for point in points if (steps, point) not in self.known]
        for result in evaluate(new, task, **settings) if new else ():
            self.known[steps, result.point] = result
            self.single.append(result)

    def _regime_at(self, axis: str, value: float) -> str:
        frame = self.map.to_frame()
        return str(frame.loc[frame[axis] == value, "regime"].iloc[0])

    def brackets(self, axis: str, regime: str) -> list[Bracket]:
        """Where along the only free axis training begins or ceases to be in a regime."""
        frame = self.map.to_frame().sort_values(axis)
        inside = (frame["regime"] == regime).to_numpy()
        values = frame[axis].to_numpy()
        return [
            Bracket(float(values[i]), float(values[i + 1]))
            for i in np.flatnonzero(inside[1:] != inside[:-1])
        ]


@dataclass
class Runs:
    """Runs sweeps for a study, and keeps them for the page.

    Args:
        overrides: what to change in every sweep, by dotted path.
        workers: of each sweep; None takes as many as fit. They change no result.
        done: the sweeps so far.
        walked: steps of `walk` so far.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    workers: int | None = None
    done: list[Ran] = field(default_factory=list)
    walked: int = 0

    @property
    def gradients(self) -> int:
        """Gradient evaluations of everything so far."""
        return self.walked + sum(ran.gradients for ran in self.done)

    @property
    def hardware(self) -> str:
        """What trained all sweeps."""
        names = set[str]().union(*(ran.hardware for ran in self.done))
        return BETWEEN.join(sorted(names)) or "hardware that was not recorded"

    def sweep(self, preset: str, **changes: Any) -> Ran:
        """Run a preset; dots in the path of a change are written as two underscores."""
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        changes |= self.overrides
        workers = {} if self.workers is None else {"resources.workers": self.workers}
        spec = load_spec(ROOT / PRESETS / f"{preset}.yaml", workers | changes)
        begin = time.monotonic()
        ran = Ran(preset, changes, spec, run_sweep(spec))
        self.done.append(ran)
        print(f"{preset} {spec.hash}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
        return ran

    def walk(
        self, task: Task, point: Point, training: Training, steps: int, seed: int
    ) -> Iterator[Trajectory]:
        """One training from one seed, before its first step and after each: for its states.

        It is one object, which changes: copy what is to be kept.
        """
        bench = Bench.of(task, training)
        self.walked += steps
        with bench.deterministic():
            trajectory = Trajectory(bench, point, training.ks[0], seed)
            yield trajectory
            for step in range(steps):
                trajectory.step(bench.batch(seed, step))
                yield trajectory

"""Do labels that are given early agree with those of the full length, and what do they save?

Run: .venv/bin/python benchmarks/early_verdicts.py
     .venv/bin/python benchmarks/early_verdicts.py --quick
     .venv/bin/python benchmarks/early_verdicts.py --seed 3 --families "MLP, squared"

Trains every point to its full length, then asks `trainables.early.settled` at each check step with
only what had been seen by then. Points are drawn uniformly over a box that holds all regimes; then
segments between uniform points of different labels are halved, as a search for a boundary does.
Traps lie where a run looks settled and is not. Printed by family: how many labels agree, every
disagreement, and the share of steps saved. A run that blew up saves what its early verdict saves,
not what its explosion does. Some five minutes on one core that has nothing else to do.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
from _families import FAMILIES as TOYS

from trainables import record
from trainables.domain import Point, Regime, Training, Verdict, replicate_seed
from trainables.dynamics.thresholds import preconditioner_scaling
from trainables.early import check_steps, settled, until
from trainables.record import Record
from trainables.replicate_run import ReplicateRun
from trainables.tasks.mnist_mlp import MnistMLP
from trainables.tasks.mnist_regression import MnistRegression
from trainables.tasks.one_layer_cnn import OneLayerCNN
from trainables.trajectory import Bench, deterministic
from trainables.verdict import Evidence, Observations, judge

#: Halvings of a segment between two labels.
HALVINGS = 4


@dataclass(frozen=True)
class Row:
    """One training: its verdict at full length, and the early one where there was one.

    Args:
        kind: `uniform`, `boundary` or `trap`.
        point: what was trained.
        full: verdict of the full length.
        length: updates until then.
        early: early verdict and its evidence.
        asked: how often the sharpness was measured.
    """

    kind: str
    point: Point
    full: Verdict
    length: int
    early: tuple[Verdict, Evidence] | None
    asked: int

    @property
    def right(self) -> bool:
        """Whether both labels are the same."""
        return self.early is None or self.early[0].regime is self.full.regime

    @property
    def needed(self) -> int:
        """Updates until the label was settled."""
        return self.length if self.early is None else self.early[0].step

    def __str__(self) -> str:
        assert self.early is not None
        verdict, evidence = self.early
        numbers = [f"{n} {v:.2g}" for n, v in evidence.items() if v is not None]
        return (
            f"{self.kind}; lr {self.point.lr:.6g}, wd {self.point.weight_decay:.4g}; "
            f"{self.full.regime.value} ({self.full.reason.value}, step {self.full.step}, margins "
            f"{self.full.margins.stable:.2g} {self.full.margins.bounded:.2g}) called "
            f"{verdict.regime.value} ({verdict.reason.value}, step {verdict.step}); "
            f"{', '.join(numbers)}"
        )


def cut(seen: Observations, steps: int, floor: float) -> Observations:
    """What had been seen after `steps` updates."""
    begun = until(seen, steps)
    return replace(begun, steps=seen.steps, floor=floor, ended=None, ended_by=None)


def train(bench: Bench, point: Point, kind: str) -> Row:
    """Train to the full length, then ask at every check step."""
    kept = Record(bench, point, replicate_seed(bench.training.seed, point, 0))
    run = ReplicateRun(kept)
    base = run.trajectories[0]
    checks = check_steps(bench.training.steps)
    floors: dict[int, float] = {}
    snapshots: dict[int, dict[str, Any]] = {}
    judged: list[Observations] = []

    def listen(seen: Observations) -> tuple[Verdict, Evidence]:
        judged.append(seen)
        return judge(seen)

    @cache
    def sharpness(step: int) -> float:
        return kept._sharpness_ratio(snapshots[step], record.EARLY_TOLERANCE)

    with deterministic("cpu"), patch.object(record, "judge", listen):
        while not run.done:
            run.advance()
            if kept.step in checks and kept.ended is None:
                floors[kept.step] = kept._loss_floor(base.parameters)
                scaling = preconditioner_scaling(base.optimiser, base.slots, base.age)
                snapshots[kept.step] = record._snapshot(
                    kept.step, base.parameters, scaling, base.buffers
                )
        result = run.result()
        early = None
        for step in floors:
            begun = cut(judged[0], step, floors[step])
            early = settled(begun, sharpness if kept._sharpness_steps else None)
            if early is not None:
                break
    return Row(kind, point, result.verdict, kept.step, early, sharpness.cache_info().currsize)


# --------------------------------------------------------------------------- families


@dataclass(frozen=True)
class Family:
    """A task, how it is trained, and the box that holds all its regimes.

    Args:
        task: what is trained.
        lr: smallest and largest learning rate.
        weight_decay: smallest and largest weight decay; a sixth of the uniform points has none.
        uniform: number of uniform points.
        segments: number of segments that are halved.
        traps: further points, drawn from a generator.
        settings: of the training.
    """

    task: Any
    lr: tuple[float, float]
    weight_decay: tuple[float, float]
    uniform: int
    segments: int
    traps: Callable[[np.random.Generator], list[Point]] = lambda random: []
    settings: dict[str, Any] = field(default_factory=dict)

    def rows(self, seed: int, share: float) -> Iterator[Row]:
        """Train all points, or that share of them."""
        random = np.random.default_rng([seed, self.uniform, self.segments])
        bench = Bench.of(
            self.task, Training(seed=seed, lyapunov=False, early=False, **self.settings)
        )
        some = []
        for _ in range(round(self.uniform * share)):
            lr, decay = (log_uniform(random, *ends) for ends in (self.lr, self.weight_decay))
            point = Point(lr, 0.0, decay if random.random() > 1 / 6 else 0.0)
            some.append(train(bench, point, "uniform"))
            yield some[-1]
        for number in range(round(self.segments * share)):
            yield from self._halve(
                bench, some, (Regime.STABLE, Regime.DIVERGENT)[number % 2], random
            )
        traps = self.traps(random)
        for point in traps[: round(len(traps) * share)]:
            yield train(bench, point, "trap")

    def _halve(
        self, bench: Bench, some: list[Row], label: Regime, random: np.random.Generator
    ) -> Iterator[Row]:
        """Halve a segment between a run with this label and one of the three nearest without."""

        def place(row: Row) -> Any:
            return np.log([row.point.lr, max(row.point.weight_decay, self.weight_decay[0])])

        within = [row for row in some if row.full.regime is label]
        without = [row for row in some if row.full.regime is not label]
        if not within or not without:
            return
        one = place(within[random.integers(len(within))])
        near = sorted((float(np.abs(place(row) - one).sum()), i) for i, row in enumerate(without))
        other = place(without[near[random.integers(min(3, len(near)))][1]])
        for _ in range(HALVINGS):
            middle = (one + other) / 2
            lr, decay = np.exp(middle).tolist()
            row = train(bench, Point(lr, 0.0, decay), "boundary")
            yield row
            one, other = (middle, other) if row.full.regime is label else (one, middle)


@dataclass(frozen=True)
class ToyFamily:
    """The cases of a family in `_families.py`, over learning rates only."""

    name: str
    uniform: int
    steps: int = 400

    def rows(self, seed: int, share: float) -> Iterator[Row]:
        """Uniform points of every case, then one of its label changes halved."""
        cases = TOYS[self.name]()
        for number, case in enumerate(cases[:: max(1, round(1 / share))]):
            bench = Bench.of(
                case.task, Training(lyapunov=False, early=False, steps=self.steps, **case.training)
            )
            random = np.random.default_rng([seed, number])
            some = [
                train(bench, Point(float(lr), 0.0, case.weight_decay), "uniform")
                for lr in case.sample(self.uniform, 1000 * seed + number)
            ]
            yield from some
            pairs = [
                pair for pair in pairwise(some) if pair[0].full.regime is not pair[1].full.regime
            ]
            if not pairs:
                continue
            one, other = pairs[random.integers(len(pairs))]
            low, high = np.log([one.point.lr, other.point.lr])
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                row = train(bench, Point(float(np.exp(middle)), 0.0, case.weight_decay), "boundary")
                yield row
                low, high = (middle, high) if row.full.regime is one.full.regime else (low, middle)


def log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def slow_blow_ups(random: np.random.Generator) -> list[Point]:
    """Weight decay alone multiplies by |1 - lr wd| each step: from 0.99 to 1.05."""
    lrs = [log_uniform(random, 0.05, 1.0) for _ in range(16)]
    return [Point(lr, 0.0, (2 + random.uniform(-0.01, 0.05)) / lr) for lr in lrs]


def sharpening(random: np.random.Generator) -> list[Point]:
    """Learning rates about 2 / sharpness, which the training raises until it gets there."""
    return [Point(log_uniform(random, 0.035, 0.13), 0.0, 0.0) for _ in range(16)]


def deaths(random: np.random.Generator) -> list[Point]:
    """Learning rates at which tanh units saturate in the first steps."""
    pairs = [(log_uniform(random, 4, 60), log_uniform(random, 1e-4, 0.03)) for _ in range(8)]
    return [Point(lr, 0.0, decay) for lr, decay in pairs]


CROSS, SQUARED = "cross-entropy", "squared-error"
SHORT = {"steps": 200}


def mlp(loss: str, batch: int | None = None) -> MnistMLP:
    """The MNIST network on few images."""
    return MnistMLP(samples=100 if batch is None else 400, batch_size=batch, loss_name=loss)


FAMILIES: dict[str, Family | ToyFamily] = {
    "one-layer CNN": Family(
        OneLayerCNN(64, 16), (0.005, 2), (0.5, 60), 48, 12, slow_blow_ups, {"steps": 400}
    ),
    "MLP, cross-entropy": Family(mlp(CROSS), (0.02, 60), (1e-3, 1), 24, 6, deaths, SHORT),
    "MLP, squared": Family(mlp(SQUARED), (0.01, 1), (1e-4, 0.5), 30, 8, sharpening, SHORT),
    "MLP, cross-entropy, batches": Family(
        mlp(CROSS, 50), (0.02, 60), (1e-3, 1), 24, 7, settings=SHORT
    ),
    "MLP, squared, batches": Family(mlp(SQUARED, 50), (0.005, 1), (1e-3, 1), 24, 7, settings=SHORT),
    "MLP, cross-entropy, heavy ball": Family(
        mlp(CROSS), (0.003, 10), (1e-3, 1), 16, 4, settings=SHORT | {"momentum": 0.9}
    ),
    "MLP, squared, heavy ball": Family(
        mlp(SQUARED), (0.003, 1), (1e-3, 1), 16, 4, settings=SHORT | {"momentum": 0.9}
    ),
    "MLP, cross-entropy, Adam": Family(
        mlp(CROSS), (1e-4, 1), (1e-5, 0.1), 12, 3, settings=SHORT | {"optimiser": "adam"}
    ),
    "MLP, squared, Adam, batches": Family(
        mlp(SQUARED, 50), (1e-4, 1), (1e-5, 0.1), 16, 5, settings=SHORT | {"optimiser": "adam"}
    ),
    "LeNet-5, batches": Family(
        MnistRegression(80, 16), (1e-3, 3), (1e-4, 3), 8, 2, settings={"steps": 100}
    ),
    "LeNet-5": Family(
        MnistRegression(20, None, "mean-squared-error"),
        (1e-3, 3),
        (1e-4, 3),
        8,
        2,
        settings={"steps": 100},
    ),
    "quadratic": ToyFamily("quadratic", 2),
    "deep linear": ToyFamily("deep-linear", 3),
    "two-layer ReLU": ToyFamily("two-layer-relu", 3),
}


# --------------------------------------------------------------------------- report


def saved(rows: Iterable[Row]) -> str:
    """Share of the steps, in per cent."""
    rows = list(rows)
    run = sum(row.length for row in rows)
    return f"{1 - sum(row.needed for row in rows) / run:.0%}" if run else "-"


def report(name: str, rows: list[Row]) -> None:
    """Print one family: a line for each kind of point, and every disagreement."""
    for kind in ("uniform", "boundary", "trap"):
        some = [row for row in rows if row.kind == kind]
        if not some:
            continue
        right = sum(row.right for row in some)
        parts = []
        for label in Regime:
            mine = [row for row in some if row.full.regime is label]
            parts.append(f"{label.value} {len(mine)}, saved {saved(mine)}")
        print(
            f"{name:32} {kind:9} {right:4} of {len(some):4} agree ({right / len(some):.1%}); "
            f"steps saved {saved(some):>4} ({'; '.join(parts)}); "
            f"sharpness asked {sum(row.asked for row in some) / len(some):.1f} times a run",
            flush=True,
        )
    for row in rows:
        if not row.right:
            print("    ", row)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Early labels against those of the full length.")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a fifth of the points")
    options = parser.parse_args()
    begin = time.perf_counter()
    rows: list[Row] = []
    for name in options.families:
        mine = list(FAMILIES[name].rows(options.seed, 0.2 if options.quick else 1.0))
        report(name, mine)
        rows += mine
    wrong = Counter(
        (row.full.regime.value, row.early[0].regime.value)
        for row in rows
        if row.early and not row.right
    )
    for (full, early), count in wrong.items():
        print(f"{full} called {early}: {count}")
    print(f"{len(rows) - wrong.total()} of {len(rows)} agree; {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()

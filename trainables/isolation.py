"""Does a result depend on what is trained beside it? Points alone, packed, with neighbours.

A result that depends on its neighbours can be neither resumed nor audited.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.synchronize import Event
from typing import Any

from trainables.domain import Point, PointResult, StabmapError, Training
from trainables.dynamics.ensembles.choose import choose
from trainables.pack import PackRun
from trainables.tasks import Task, get_task
from trainables.tasks.checks import check_parts
from trainables.tasks.from_files import Source, register, source_of
from trainables.trajectory import Bench

#: Seconds until a neighbour must have begun to train.
PATIENCE = 120.0


@dataclass(frozen=True)
class Isolation:
    """What was found.

    Args:
        backend: what trains the points without a stabiliser.
        struck: backends that are not used, and why.
        differences: for each way of training, the points whose results differ from those alone.
    """

    backend: str
    struck: dict[str, str] = field(default_factory=dict)
    differences: dict[str, list[Point]] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether nothing differs."""
        return not any(self.differences.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts, lists and dicts."""
        return asdict(self) | {"sound": self.sound}


def check_isolation(
    name: str, options: dict[str, Any], training: Training, points: Sequence[Point]
) -> Isolation:
    """Train points alone and in company, and compare everything that is reported, to the bit.

    Args:
        name: of the task.
        options: of the task.
        training: how it is trained.
        points: two or more.

    Raises:
        InputError: a setting or the task breaks a law.
        UnreachableError: the device does not exist.
        StabmapError: no second process could train beside the first.
    """
    task = get_task(name, **options)
    check_parts(task)

    def together(order: Sequence[Point], places: int | None = None) -> list[PointResult]:
        pack = PackRun(order, task, training, together=places)
        pack.advance()
        return pack.results

    bench = Bench.of(task, training)
    with bench.deterministic():
        backend, struck = choose(bench, training.backend)
    alone = {point: together([point])[0] for point in points}
    rows = len(training.ks) + training.lyapunov
    ways: dict[str, Callable[[], list[PointResult]]] = {
        "together": lambda: together(points),
        "together, the other way round": lambda: together(points[::-1]),
        "two at a time": lambda: together(points, 2 * rows),
        "stopped and restored": lambda: _restored(points, task, training),
        "beside another process": lambda: _beside(name, options, training, points, together),
    }
    differences = {
        way: [r.point for r in train() if r != alone[r.point]] for way, train in ways.items()
    }
    return Isolation("loop" if backend is None else backend.name, struck, differences)


def _restored(points: Sequence[Point], task: Task, training: Training) -> list[PointResult]:
    first, second = (PackRun(points, task, training) for _ in range(2))
    for _ in range(training.steps // 3):
        first.advance(0.0)
    second.load_state_dict(first.state_dict())
    second.advance()
    return second.results


def _beside(
    name: str,
    options: dict[str, Any],
    training: Training,
    points: Sequence[Point],
    together: Callable[[Sequence[Point]], list[PointResult]],
) -> list[PointResult]:
    with _neighbour(name, options, training, points):
        return together(points)


@contextmanager
def _neighbour(
    name: str, options: dict[str, Any], training: Training, points: Sequence[Point]
) -> Iterator[None]:
    """Another process that trains on the same device all the while."""
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    arguments = (name, source_of(name), options, training, list(points), begun)
    process = context.Process(target=_train_on, args=arguments, daemon=True)
    process.start()
    try:
        if not begun.wait(PATIENCE) or not process.is_alive():
            raise StabmapError(f"task {name}: no second process could train it beside the first")
        yield
        if not process.is_alive():
            raise StabmapError(f"task {name}: the process beside ended before its time")
    finally:
        process.terminate()
        process.join()


def _train_on(
    name: str,
    source: Source | None,
    options: dict[str, Any],
    training: Training,
    points: list[Point],
    begun: Event,
) -> None:
    if source is not None:
        register(source)
    parent = os.getppid()
    while os.getppid() == parent:
        pack = PackRun(points, get_task(name, **options), training)
        pack.advance(0.0)
        begun.set()
        pack.advance()

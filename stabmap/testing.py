"""For authors of tasks: is it deterministic, batchable, resumable, and how fast?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from trainables.domain import InputError, NotReproducibleError, Point, Training
from trainables.dynamics.ensembles.choose import choose
from trainables.evaluate import check_reproducible
from trainables.pack import PackRun
from trainables.sharing import other_random_numbers
from trainables.tasks import Task, get_task
from trainables.tasks.checks import check_parts
from trainables.trajectory import Bench, Trajectory

#: Learning rate that the checks train at, and for how many updates.
LR = 1e-3
STEPS = 20
#: Seconds that an update is timed for.
TIMED = 0.5


@dataclass(frozen=True)
class TaskReport:
    """What `check_task` found.

    Args:
        name: of the task.
        parameters: numbers that are trained.
        problems: what must be mended, each with the method that is to blame; none where all is
            well.
        backend: what trains many trajectories at once; `loop` where they go one after the other.
        struck: backends that cannot, and why.
        seconds: of one update of one trajectory, on one core, in float32.
    """

    name: str
    parameters: int
    problems: tuple[str, ...]
    backend: str | None = None
    struck: tuple[tuple[str, str], ...] = ()
    seconds: float | None = None

    @property
    def ok(self) -> bool:
        """Whether a sweep can rely on it."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts, lists and dicts."""
        return asdict(self) | {"ok": self.ok, "struck": dict(self.struck)}

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.parameters:,} parameters"]
        lines += [f"  to mend: {problem}" for problem in self.problems]
        if self.ok:
            lines += ["  deterministic: repeats itself to the bit, and k and 2 k agree to the bit"]
            lines += ["  resumable: stopped and restored, it ends at the same bits"]
        if self.backend == "loop":
            lines += ["  not batchable: its trajectories are trained one after the other"]
        elif self.backend is not None:
            lines += [f"  batchable: many trajectories are trained together ({self.backend})"]
        lines += [f"    not {name}: {why}" for name, why in self.struck]
        if self.seconds is not None:
            lines += [f"  an update takes {1000 * self.seconds:.3g} ms on one core"]
        return "\n".join(lines)


def check_task(task: Task | str, **options: Any) -> TaskReport:
    """Try a task as a sweep would use it, on the processor, in float32.

    Args:
        task: a task, or the name of one.
        **options: of a task that is named.

    Returns:
        What was found, in words when it is printed. A task that is wrong is a report with
        problems, not an error.

    Raises:
        InputError: there is no task of that name, or an option breaks a law.

    Example:
        >>> report = check_task("mnist-mlp", samples=20)
        >>> report.ok
        True
    """
    found = get_task(task, **options) if isinstance(task, str) else task
    try:
        check_parts(found)
    except InputError as error:
        return TaskReport(found.name, 0, tuple(f"{m.law}; {m.remedy}" for m in error.mistakes))
    count = sum(p.numel() for p in found.module(0).parameters())
    problems = tuple(_problems(found))
    if problems:
        return TaskReport(found.name, count, problems)
    bench = Bench.of(found, Training())
    with bench.deterministic():
        backend, struck = choose(bench)
        seconds = _pace(bench)
    name = "loop" if backend is None else backend.name
    return TaskReport(found.name, count, (), name, tuple(struck.items()), seconds)


def _problems(task: Task) -> Iterator[str]:
    """What else must be mended, the causes before what follows from them."""
    causes = [*_same_data(task), *_same_network(task)]
    yield from causes
    try:
        yield from _same_training(task)
    except NotReproducibleError as error:  # a pack refuses to train such a task
        if not causes:
            yield str(error)


def _same_data(task: Task) -> Iterator[str]:
    for method in ("train_data", "test_data"):
        pairs = [getattr(task, method)()]
        with other_random_numbers():  # whoever draws from a global generator shows it
            pairs.append(getattr(task, method)())
        for what, one, other in zip(("inputs", "targets"), *pairs, strict=True):
            if one.shape != other.shape or not torch.equal(one, other):
                yield f"{method}() gives other {what} at a second call; seed what is random in it"


def _same_network(task: Task) -> Iterator[str]:
    first = task.module(3)
    kept = [p.detach().clone() for p in first.parameters()]
    with other_random_numbers():
        second = task.module(3)
    again = [p.detach() for p in second.parameters()]
    if any(not torch.equal(a, b) for a, b in zip(kept, again, strict=True)):
        yield "module() gives other weights for the same seed; draw them from the seed alone"
    storages = {p.data_ptr() for p in first.parameters() if p.numel()}
    if any(p.data_ptr() in storages for p in second.parameters()):
        yield (
            "module() keeps global state: two networks share their weights; build a new one at "
            "each call"
        )


def _same_training(task: Task) -> Iterator[str]:
    point, training = Point(lr=LR), Training(steps=STEPS, sharpness=False, early=False)
    try:
        check_reproducible(point, task, training)
    except NotReproducibleError as error:
        yield f"{error}; or it keeps global state between updates"
        return
    points = [point, Point(lr=2 * LR)]
    whole = _trained(points, task, training, stops=False)
    if _trained(points, task, training, stops=False) != whole:
        yield "keeps global state: a second training of the same point ends elsewhere"
    elif _trained(points, task, training, stops=True) != whole:
        yield (
            "is not resumable: stopped and restored, it ends elsewhere; keep what changes along "
            "a training in the module's parameters and buffers"
        )


def _trained(points: list[Point], task: Task, training: Training, stops: bool) -> Any:
    pack = PackRun(points, task, training)
    if stops:
        for _ in range(STEPS // 3):
            pack.advance(0.0)
        state, pack = pack.state_dict(), PackRun(points, task, training)
        pack.load_state_dict(state)
    pack.advance()
    return pack.results


def _pace(bench: Bench) -> float:
    """Seconds of an update, the first one left out."""
    trajectory = Trajectory(bench, Point(lr=LR), 1, 0)
    trajectory.step(bench.batch(0, 0))
    begin, made = time.perf_counter(), 0
    while time.perf_counter() - begin < TIMED:
        trajectory.step(bench.batch(0, made))
        made += 1
    return (time.perf_counter() - begin) / made

"""What a sweep will cost, without running it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainables.domain import Training
from trainables.tasks import Task
from trainables.tasks.checks import check_parts

#: Floating-point operations a second that one CPU core is taken to sustain on small networks.
CORE_SPEED = 1e10

#: What a sweep of any size takes beside its trainings, most of it for Ray to start.
START = "plus about half a minute to start"


@dataclass(frozen=True)
class Cost:
    """An estimate, good to a factor of a few.

    Args:
        points: points in the budget; None where only time ends the sweep.
        steps: updates of all trajectories of one point.
        flops: floating-point operations of one point, diagnostics included.
        seconds: time of one point on one core, at an assumed 10 GFLOP/s, without the start.
        workers: points trained at the same time.
    """

    points: int | None
    steps: int
    flops: float
    seconds: float
    workers: int

    def to_dict(self) -> dict[str, float | int | None]:
        """The fields."""
        return asdict(self)

    def __str__(self) -> str:
        one = f"{self.steps:,} updates and {self.flops / 1e9:,.3g} GFLOP a point"
        if self.points is None:
            return f"{one}, about {self.seconds:.2g} s on one core, {START}"
        total = self.points * self.seconds
        return (
            f"{self.points} points, {one}: about {total / 60:.2g} core-minutes, "
            f"{total / self.workers / 60:.2g} minutes with {self.workers} workers "
            f"(assuming 10 GFLOP/s a core), {START}"
        )


def estimate(task: Task, training: Training, points: int | None, workers: int) -> Cost:
    """Count the operations of one step, on tensors without data where that can be, and multiply.

    Args:
        task: the task.
        training: how it is trained.
        points: points in the budget, or None.
        workers: points trained at the same time.

    Raises:
        InputError: the task cannot be trained.
    """
    forward, backward = _step_flops(task)
    trajectories = (len(training.ks) + training.lyapunov) * training.replicates
    updates = trajectories * training.steps
    per_point = updates * (forward + backward)
    per_point += training.replicates * training.steps * forward * (1 if task.batch is None else 2)
    if training.evaluate_every is not None:
        samples = len(task.test_data()[0]) / len(task.train_data()[0][: task.batch])
        times = training.replicates * training.steps / training.evaluate_every
        per_point += times * samples * forward
    if task.batch is None and training.sharpness:
        # Eight measurements of about sixteen Hessian-vector products, 1.4 gradients each.
        per_point += training.replicates * 8 * 16 * 1.4 * (forward + backward)
    return Cost(points, updates, float(per_point), per_point / CORE_SPEED, workers)


def _matrix_vector(matrix: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * matrix[0] * matrix[1]


#: What torch's counter leaves out, and what the one-layer CNN consists of.
_VECTOR_PRODUCTS = {torch.ops.aten.mv: _matrix_vector}


def _step_flops(task: Task) -> tuple[float, float]:
    """Operations of a pass forward, and of the one back."""
    try:
        return _counted(task, "meta")
    except Exception:  # the network asks for a number, or the task is wrong
        check_parts(task)
        return _counted(task, "cpu")


def _counted(task: Task, device: str) -> tuple[float, float]:
    inputs, targets = task.train_data()
    rows = slice(task.batch)
    module = task.module(0).to(device)
    counts = []
    with FlopCounterMode(display=False, custom_mapping=_VECTOR_PRODUCTS) as counter:
        loss = task.loss.value(module(inputs[rows].to(device)), targets[rows].to(device))
        counts.append(counter.get_total_flops())
        # Not grad(): the counter follows weights that are computed from others.
        loss.backward()  # type: ignore[no-untyped-call]
        counts.append(counter.get_total_flops() - counts[0])
    return float(counts[0]), float(counts[1])

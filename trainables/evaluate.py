"""Points to results, on one device: train all trajectories of each point and judge them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from trainables.domain import (
    InputError,
    Mistake,
    NotReproducibleError,
    Point,
    PointResult,
    Training,
    nearest,
    replicate_seed,
)
from trainables.dynamics.stabilisers import stabiliser_of, strength_mistakes
from trainables.dynamics.torch_optimiser import optimiser_mistakes
from trainables.pack import PackRun
from trainables.tasks import Task, get_task
from trainables.tasks.checks import check_parts
from trainables.trajectory import Bench, Trajectory, deterministic

#: Steps of the check that the same training gives the same bits.
CHECK_STEPS = 20


def evaluate(points: Sequence[Point], task: Task | str, **training: Any) -> list[PointResult]:
    """Train each point and say whether it is stable, restrained or divergent.

    Args:
        points: where to train.
        task: a task or the name of one.
        **training: the fields of `Training`: ks, seeds, seed, steps, steps_at_lr, schedule,
            dtype, device, optimiser, momentum, decay, beta2, eps, stabiliser, sharpness,
            lyapunov, evaluate_every, backend, early.

    Returns:
        One result a point, in order; `.verdict` has regime, margins, reason and step. A result
        does not depend on the other points.

    Raises:
        InputError: a setting or a point breaks a law.
        UnreachableError: the device does not exist.
        NotReproducibleError: the task's data or initial weights change from call to call.

    Example:
        >>> from trainables.domain import Point
        >>> [result] = evaluate([Point(lr=0.05, weight_decay=20.0)], "one-layer-cnn", steps=100)
        >>> result.verdict.regime.value
        'restrained'
    """
    settings = checked_training(training)
    found = get_task(task) if isinstance(task, str) else task
    _check_kinds(points, found)
    stabiliser_of(settings)  # a mistake in it is reported even where every alpha is 0
    mistakes = order_mistakes(found, settings)
    mistakes += [m for p in points for m in point_mistakes(p, found, settings)]
    if mistakes:
        raise InputError(mistakes)
    with deterministic(settings.device):  # asks for the device before any data is loaded
        check_parts(found)
        pack = PackRun(points, found, settings)
    pack.advance()
    return pack.results


def _check_kinds(points: Any, task: Any) -> None:
    """Raise `InputError` where something else than points and a task was given."""
    if not isinstance(task, Task) or isinstance(task, type):
        raise InputError(
            [
                Mistake(
                    "task", task, "neither a task nor the name of one", "see stabmap.task_names()"
                )
            ]
        )
    listed = isinstance(points, Sequence) and not isinstance(points, str)
    wrong = [p for p in points if not isinstance(p, Point)] if listed else [points]
    if wrong:
        raise InputError([Mistake("points", wrong[0], "a list of points", "write [Point(lr=0.1)]")])


def checked_training(settings: Mapping[str, Any]) -> Training:
    """A `Training` from keywords; unknown ones are an `InputError` that names the nearest."""
    known = [f.name for f in fields(Training)]
    unknown = [
        Mistake(
            name,
            value,
            "no such setting",
            f"did you mean {nearest(name, known)}?"
            if nearest(name, known)
            else f"known: {', '.join(known)}",
        )
        for name, value in settings.items()
        if name not in known
    ]
    if unknown:
        raise InputError(unknown)
    return Training(**settings)


def order_mistakes(task: Task, training: Training) -> list[Mistake]:
    """Several data orders of a task that sees all its data at each step are one training."""
    if training.orders == 1 or task.batch is not None:
        return []
    law = f"task {task.name} trains on the full batch, which has no order"
    return [Mistake("orders", training.orders, law, "leave it out, or give the task mini-batches")]


def point_mistakes(point: Point, task: Task, training: Training) -> list[Mistake]:
    """Laws that a point must obey for this task and training, beyond those of `Point`."""
    mistakes = list(training.steps_mistakes("lr", point.lr))
    if point.lr < training.smallest_lr:
        mistakes.append(
            Mistake(
                "lr",
                point.lr,
                f"lr / {max(training.ks)} underflows {training.dtype}",
                f"use lr >= {training.smallest_lr:.3g}, or dtype float64",
            )
        )
    mistakes += optimiser_mistakes(task, training, point)
    if point.alpha > 0:
        mistakes += strength_mistakes("alpha", point.alpha, task, training)
    return mistakes


def check_reproducible(point: Point, task: Task, training: Training) -> None:
    """Check that one training repeats itself to the bit, and that k and 2k agree to the bit.

    Without this nothing that compares two k can be believed. Runs `CHECK_STEPS` steps.

    Raises:
        NotReproducibleError: the bits differ.
    """
    k = training.ks[0]
    with deterministic(training.device, training.dtype == "tfloat32"):
        bench = Bench.of(task, training)
        seed = replicate_seed(training.seed, point, 0)
        runs = [Trajectory(bench, point, factor * k, seed) for factor in (1, 1, 2)]
        for step in range(CHECK_STEPS):
            rows = bench.batch(seed, step)
            for run in runs:
                run.step(rows)
            first, again, doubled = (_flat(run.module) for run in runs)
            for other, what in ((again, f"k={k} repeated"), (doubled, f"k={2 * k}")):
                # NaN equals nothing, but trainings that blew up the same way are the same.
                if not torch.equal(torch.nan_to_num(first), torch.nan_to_num(other)):
                    raise NotReproducibleError(
                        f"task {task.name} on {training.device}: k={k} and {what} differ after "
                        f"{step + 1} steps, so rounding errors cannot be told from chance; make "
                        "the task deterministic (seeded dropout and augmentation, deterministic "
                        "kernels)"
                    )
            if not torch.isfinite(first).all():
                return


def _flat(module: nn.Module) -> Tensor:
    values = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    return torch.cat([v.detach().reshape(-1) for v in values])

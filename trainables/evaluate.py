"""Points to results, on one device: train all trajectories of each point and judge them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import (
    Curve,
    InputError,
    Mistake,
    NotReproducibleError,
    Point,
    PointResult,
    Reason,
    Replicate,
    Training,
    nearest,
    replicate_seed,
)
from trainables.dynamics.curvature import sharpness
from trainables.dynamics.distance import rel_l1
from trainables.dynamics.lyapunov import Neighbour
from trainables.dynamics.stabilisers import stabiliser_of, strength_mistakes
from trainables.dynamics.thresholds import preconditioner_scaling, stability_ratio
from trainables.dynamics.torch_optimiser import optimiser_mistakes
from trainables.tasks import Task, get_task
from trainables.trajectory import Bench, Trajectory, deterministic
from trainables.verdict import EXPLOSION, Observations, judge

#: Points kept of a curve.
CURVE_POINTS = 64
#: Steps of the second half at which the sharpness is measured.
SHARPNESS_SAMPLES = 8
#: Rounding floor over the loss at the start, at most: a momentum near 1 must not swallow all moves.
LARGEST_FLOOR = 1e-6
#: Training samples that the loss of a mini-batch training is watched on, every tenth step.
PROBE_SAMPLES = 256
#: Steps of the check that the same training gives the same bits.
CHECK_STEPS = 20


class ReplicateRun:
    """All k of one point and one seed, side by side, a step at a time."""

    def __init__(self, bench: Bench, point: Point, seed: int) -> None:
        self.bench = bench
        self.point = point
        self.seed = seed
        training = bench.training
        self.trajectories = [Trajectory(bench, point, k, seed) for k in training.ks]
        self.loss = bench.loss(point.alpha)
        self._mirror = bench.network(seed, torch.float64)
        self._neighbour = Neighbour(self.trajectories[0]) if training.lyapunov else None
        self._stride = 1 if bench.full_batch else max(1, min(10, training.steps // 40))
        half = training.steps // 2
        self._sharpness_steps = frozenset(
            np.linspace(half, training.steps - 1, SHARPNESS_SAMPLES).astype(int).tolist()
            if bench.full_batch and training.sharpness and self._threshold_known()
            else ()
        )
        self.step = 0
        self.ended: int | None = None
        self.ended_by: Reason | None = None
        self._loss_steps: list[int] = []
        self._loss: list[float] = []
        self._change: list[float] = []
        self._separation: list[list[float]] = []
        self._ascent: list[bool] = []
        self._snapshots: list[dict[str, Any]] = []

    def _threshold_known(self) -> bool:
        """Whether the optimiser's threshold holds for what is trained."""
        kept = self.point.alpha == 0 or self.bench.stabiliser.keeps_threshold
        return self.trajectories[0].optimiser.splits and kept

    @property
    def done(self) -> bool:
        """Whether the verdict is settled: full length, or blown up."""
        return self.ended is not None or self.step >= self.bench.training.steps

    def advance(self) -> None:
        """One update of every trajectory."""
        base, *others = self.trajectories
        rows = self.bench.batch(self.seed, self.step)
        before = base.snapshot()
        losses = [float(base.step(rows))]
        losses += [float(other.step(rows)) for other in others]
        if self._neighbour is not None:
            self._neighbour.step(rows)
        after = [p.detach() for p in base.parameters]
        self._observe_loss(before, after, rows, losses[0])
        change = rel_l1(after, before)
        separation = [rel_l1(after, [p.detach() for p in o.parameters]) for o in others]
        self._look_for_blow_up(losses, [change, *separation])
        if self.ended is None:
            self._change.append(change)
            self._separation.append(separation)
            if self.step in self._sharpness_steps:
                self._snapshots.append(self._snapshot())
        self.step += 1
        if self.ended is not None:
            self.ended = self.step

    def _observe_loss(
        self, before: list[Tensor], after: list[Tensor], rows: Tensor | slice, loss: float
    ) -> None:
        """Record the objective before the update, in float64; for mini-batches on a probe set."""
        bench = self.bench
        if bench.full_batch:
            if bench.training.dtype == "float64":
                value = loss + self._decay_term(before)
            else:
                value = self._objective(before, bench.inputs64, bench.targets64)
            self._loss_steps.append(self.step)
            self._loss.append(value)
            return
        if self.step % self._stride == 0:
            self._loss_steps.append(self.step)
            self._loss.append(
                self._objective(
                    before, bench.inputs64[:PROBE_SAMPLES], bench.targets64[:PROBE_SAMPLES]
                )
            )
        inputs, targets = bench.inputs64[rows], bench.targets64[rows]
        old = self._objective(before, inputs, targets)
        new = self._objective(after, inputs, targets)
        noise = 8 * float(np.finfo(bench.training.dtype).eps) / 2 * abs(old)
        self._ascent.append(not new - old <= noise)

    @torch.no_grad()
    def _objective(self, parameters: list[Tensor], inputs: Tensor, targets: Tensor) -> float:
        for mirror, value in zip(self._mirror.parameters(), parameters, strict=True):
            mirror.copy_(value)
        loss = float(self.loss.value(self._mirror(inputs), targets))
        return loss + self._decay_term(parameters)

    def _decay_term(self, parameters: list[Tensor]) -> float:
        if not self.point.weight_decay:
            return 0.0
        squares = sum(float((p.detach().double() ** 2).sum()) for p in parameters)
        return 0.5 * self.point.weight_decay * squares

    def _look_for_blow_up(self, losses: list[float], distances: list[float]) -> None:
        objective = self._loss[-1]
        if not np.isfinite([*losses, objective, *distances]).all():
            self.ended, self.ended_by = self.step, Reason.NON_FINITE
        elif max(*losses, objective) > EXPLOSION * max(self._loss[0], 1.0):
            self.ended, self.ended_by = self.step, Reason.EXPLODED

    def _snapshot(self) -> dict[str, Any]:
        base = self.trajectories[0]
        scaling = preconditioner_scaling(base.optimiser, base.slots, base.age)
        # On the processor: eight copies of a network are too many for a shared GPU.
        parameters = [p.detach().to("cpu", copy=True) for p in base.parameters]
        held = None if scaling is None else scaling.cpu()
        return {"step": self.step, "parameters": parameters, "scaling": held}

    def _sharpness_ratios(self) -> list[float]:
        """Sharpness over threshold at the snapshots; measured after the run, on the base k."""
        ratios = []
        optimiser = self.trajectories[0].optimiser
        for snapshot in self._snapshots:
            with torch.no_grad():
                for mirror, value in zip(
                    self._mirror.parameters(), snapshot["parameters"], strict=True
                ):
                    mirror.copy_(value)
            scaling, decay = None, 0.0
            if snapshot["scaling"] is not None:
                scaling = snapshot["scaling"].numpy()
                decay = optimiser.weight_decay if optimiser.coupled else 0.0
            top = sharpness(
                self._mirror,
                self.loss.value,
                self.bench.inputs64,
                self.bench.targets64,
                scaling,
                decay,
            ).value
            ratios.append(stability_ratio(optimiser, top))
        return ratios

    def result(self) -> Replicate:
        """Judge what was seen. Call it when `done`."""
        training = self.bench.training
        full = self.ended is None
        ratios = self._sharpness_ratios() if full else []
        separation = np.array(self._separation, dtype=np.float64).reshape(
            len(self._separation), len(training.ks) - 1
        )
        seen = Observations(
            steps=training.steps,
            roundoff=float(np.finfo(training.dtype).eps) / 2,
            loss_steps=np.array(self._loss_steps, dtype=np.float64),
            loss=np.array(self._loss, dtype=np.float64),
            change=np.array(self._change, dtype=np.float64),
            separation=separation.T,
            ascent=None if self.bench.full_batch else np.array(self._ascent, dtype=np.float64),
            floor=self._loss_floor(),
            descends=training.optimiser in ("sgd", "torch.optim.SGD") and not training.momentum,
            momentum=training.momentum or 0.0,
            sharpness=np.array(ratios, dtype=np.float64),
            ended=self.ended,
            ended_by=self.ended_by,
        )
        verdict, evidence = judge(seen)
        evidence["metric"] = self._metric() if full else None
        if self._neighbour is not None:
            evidence["lyapunov_exponent"] = self._neighbour.exponent(training.steps // 2)
        curves = {"loss": _curve(self._loss_steps, self._loss)}
        for k, column in zip(training.ks[1:], separation.T, strict=True):
            curves[f"rel_l1_k{k}"] = _curve(range(1, len(column) + 1), column)
        if ratios:
            curves["sharpness_ratio"] = _curve([s["step"] for s in self._snapshots], ratios)
        return Replicate(self.seed, verdict, self.step, evidence, curves)

    def _loss_floor(self) -> float:
        """Size of loss moves that rounding the parameters causes in the sharpest stable bowl.

        The rounding error of a step is u ||theta||, a stable bowl has curvature at most of order
        1 / lr, and momentum adds up 1 / (1 - momentum) steps. Within 2 % of the edge errors add up
        over 25 steps more, which the loss feels squared. Without this a float32 training that has
        reached a loss of 0 would be called oscillating for its last digits.
        """
        training = self.bench.training
        momentum = training.momentum or 0.0
        squares = sum(
            float((p.detach().double() ** 2).sum()) for p in self.trajectories[0].parameters
        )
        roundoff = float(np.finfo(training.dtype).eps) / 2
        floor = 1000 * roundoff**2 * squares / (1 - momentum) ** 2 / self.point.lr
        return min(floor, LARGEST_FLOOR * abs(self._loss[0]))

    @torch.no_grad()
    def _metric(self) -> float | None:
        inputs, targets = (t.to(self.bench.training.device) for t in self.bench.task.test_data())
        for mirror, value in zip(
            self._mirror.parameters(), self.trajectories[0].parameters, strict=True
        ):
            mirror.copy_(value)
        figure = float(self.bench.task.metric(self._mirror(inputs), targets))
        return figure if np.isfinite(figure) else None

    def state_dict(self) -> dict[str, Any]:
        """Everything the rest of the run depends on."""
        return {
            "trajectories": [t.state_dict() for t in self.trajectories],
            "step": self.step,
            "ended": self.ended,
            "ended_by": self.ended_by.value if self.ended_by else None,
            "neighbour": self._neighbour.state_dict() if self._neighbour else None,
            "records": {name: list(getattr(self, name)) for name in _RECORDS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, to the bit."""
        for trajectory, saved in zip(self.trajectories, state["trajectories"], strict=True):
            trajectory.load_state_dict(saved)
        if self._neighbour is not None:
            self._neighbour.load_state_dict(state["neighbour"])
        self.step, self.ended = state["step"], state["ended"]
        self.ended_by = Reason(state["ended_by"]) if state["ended_by"] else None
        for name in _RECORDS:
            setattr(self, name, list(state["records"][name]))


_RECORDS = ("_loss_steps", "_loss", "_change", "_separation", "_ascent", "_snapshots")


def _curve(steps: Iterable[int], values: Iterable[float]) -> Curve:
    pairs = [(int(s), float(v)) for s, v in zip(steps, values, strict=True) if np.isfinite(v)]
    if len(pairs) > CURVE_POINTS:
        keep = np.unique(np.linspace(0, len(pairs) - 1, CURVE_POINTS).round().astype(int))
        pairs = [pairs[i] for i in keep]
    return Curve(tuple(s for s, _ in pairs), tuple(v for _, v in pairs))


class PackRun:
    """A pack of points, trained one after the other; may be stopped and continued to the bit.

    A point's result depends neither on the other points of the pack nor on where it was stopped.

    Args:
        points: the points, in order.
        task: the task.
        training: how each point is trained.
        first: number of the first replicate of each point, where earlier ones were trained before.
    """

    def __init__(
        self,
        points: Sequence[Point],
        task: Task,
        training: Training,
        first: Sequence[int] | None = None,
    ) -> None:
        self.points = tuple(points)
        self._first = tuple(first or [0] * len(self.points))
        self.results: list[PointResult] = []
        self._bench = Bench.of(task, training)
        self._replicates: list[Replicate] = []
        self._current: ReplicateRun | None = None

    @property
    def done(self) -> bool:
        """Whether every point has its result."""
        return len(self.results) == len(self.points)

    def advance(self, seconds: float | None = None) -> list[PointResult]:
        """Train until the pack is done or, at a step boundary, until `seconds` have passed.

        Returns:
            The results that were completed in this call, in the order of the points.
        """
        start = time.monotonic()
        known = len(self.results)
        with deterministic(self._bench.training.device):
            while not self.done:
                self._advance_one()
                if seconds is not None and time.monotonic() - start >= seconds:
                    break
        return self.results[known:]

    def _advance_one(self) -> None:
        if self._current is None:
            self._current = self._open()
        if not self._current.done:
            self._current.advance()
            return
        self._replicates.append(self._current.result())
        self._current = None
        if len(self._replicates) == self._bench.training.seeds:
            point = self.points[len(self.results)]
            self.results.append(PointResult(point, tuple(self._replicates)))
            self._replicates = []

    def _open(self) -> ReplicateRun:
        point = self.points[len(self.results)]
        number = self._first[len(self.results)] + len(self._replicates)
        seed = replicate_seed(self._bench.training.seed, point, number)
        return ReplicateRun(self._bench, point, seed)

    def state_dict(self) -> dict[str, Any]:
        """Everything the rest of the pack depends on: tensors, numbers, texts, lists, dicts."""
        done = [PointResult(self.points[0], (r,)).to_dict() for r in self._replicates]
        return {
            "results": [result.to_dict() for result in self.results],
            "replicates": done,
            "current": self._current.state_dict() if self._current else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, to the bit."""
        self.results = [PointResult.from_dict(d) for d in state["results"]]
        self._replicates = [PointResult.from_dict(d).replicates[0] for d in state["replicates"]]
        self._current = None
        if state["current"] is not None:
            self._current = self._open()
            self._current.load_state_dict(state["current"])


def evaluate(points: Sequence[Point], task: Task | str, **training: Any) -> list[PointResult]:
    """Train each point and say whether it is stable, restrained or divergent.

    Args:
        points: where to train.
        task: a task or the name of one.
        **training: the fields of `Training`: ks, seeds, seed, steps, dtype, device, optimiser,
            momentum, decay, beta2, eps, stabiliser, sharpness, lyapunov.

    Returns:
        One result a point, in order; `.verdict` has regime, margins, reason and step. A result
        does not depend on the other points.

    Raises:
        InputError: a setting or a point breaks a law.
        UnreachableError: the device does not exist.

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
    mistakes = [m for p in points for m in point_mistakes(p, found, settings)]
    if mistakes:
        raise InputError(mistakes)
    with deterministic(settings.device):  # asks for the device before any data is loaded
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


def point_mistakes(point: Point, task: Task, training: Training) -> list[Mistake]:
    """Laws that a point must obey for this task and training, beyond those of `Point`."""
    mistakes = []
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
    with deterministic(training.device):
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
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])

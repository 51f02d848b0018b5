"""What is seen along one replicate, all k of one point and one seed, and the verdict on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import (
    Curve,
    Point,
    Reason,
    Regime,
    Replicate,
    Verdict,
    metric_names,
    plain_verdict,
    verdict_of,
)
from trainables.dynamics.curvature import sharpness
from trainables.dynamics.lyapunov import mean_rate
from trainables.dynamics.optimisers import Optimiser
from trainables.dynamics.thresholds import largest_stable_eigenvalue, stability_ratio
from trainables.early import check_steps, look_steps, settled
from trainables.trajectory import Bench
from trainables.verdict import EXPLOSION, Evidence, Observations, judge

#: Points kept of a curve.
CURVE_POINTS = 64
#: Steps of the second half at which the sharpness is measured.
SHARPNESS_SAMPLES = 8
#: How far the sharpness may lie above what is found, of itself: at the end, and before, where it
#: has to be below 0.95 of its threshold and its rise is followed to the end.
TOLERANCE, EARLY_TOLERANCE = 1e-3, 0.05
#: Held-out samples that pass the network at once: more would leave a processor's cache, and fill a
#: GPU's memory.
MOST_HELD_OUT = {"cpu": 50, "cuda": 1000}
#: Rounding floor over the loss at the start, at most: a momentum near 1 must not swallow all moves.
LARGEST_FLOOR = 1e-6


class Record:
    """Observations of one replicate, a step at a time, whoever trains it.

    Args:
        bench: task, training and data.
        point: the point.
        seed: seed of initial weights.
        job: what its owner knows it by.
        order: seed of the data order; None for the same.
    """

    def __init__(
        self,
        bench: Bench,
        point: Point,
        seed: int,
        job: tuple[int, int] = (0, 0),
        order: int | None = None,
    ) -> None:
        self.bench, self.point, self.seed, self.job = bench, point, seed, job
        self.order = seed if order is None else order
        training = bench.training
        self.loss = bench.loss(point.alpha)
        #: Updates of a full training.
        self.steps = training.steps_of(point.lr)
        self._stride = 1 if bench.full_batch else max(1, min(10, self.steps // 40))
        half = self.steps // 2
        self._sharpness_steps = frozenset(
            np.linspace(half, self.steps - 1, SHARPNESS_SAMPLES).astype(int).tolist()
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
        #: By how much each update raised the loss of its own batch, beyond the noise of the loss.
        self._ascent: list[float] = []
        self._snapshots: list[dict[str, Any]] = []
        #: For early verdicts: parameters at the checks, and sharpness ratios asked for there.
        self._checks: list[dict[str, Any]] = []
        self._asked: list[tuple[int, float]] = []
        self._metrics: list[tuple[int, float]] = []
        self._settled: tuple[Verdict, Evidence] | None = None
        # A rate that still changes can change the label.
        asked = training.early and training.rates.constant
        self._check_steps = frozenset(check_steps(self.steps) if asked else ())
        self._look_steps = look_steps(self.steps)
        #: Whether a stable training lowers the loss of each batch, so that one that rises counts.
        self._descends = (
            not bench.alternates
            and training.optimiser in ("sgd", "torch.optim.SGD")
            and not training.momentum
        )
        # A verdict asks for nothing before the second half of what it is on.
        self._compared_from = min(self._check_steps, default=self.steps) // 2

    def rule(self, step: int | None = None) -> Optimiser:
        """The update rule of the base trajectory after `step` updates; None: after those made."""
        step = self.step if step is None else step
        return self.bench.rule(self.point, self.bench.training.ks[0], step)

    @cached_property
    def mirror(self) -> nn.Module:
        """The network in float64, for diagnostics; its values are those of the last question."""
        return self.bench.network(self.seed, torch.float64)

    def _threshold_known(self) -> bool:
        """Whether the optimiser's threshold holds for what is trained."""
        kept = self.point.alpha == 0 or self.bench.stabiliser.keeps_threshold
        return self.rule(0).splits and kept

    @property
    def done(self) -> bool:
        """Whether nothing is trained any more: full length, blown up, or the label is settled."""
        over = self.step >= self.steps or self.ended is not None
        return over or (self._settled is not None and not self.alone)

    @property
    def alone(self) -> bool:
        """Whether the label is settled and the base trajectory goes on without the others."""
        bounded = self._settled is not None and self._settled[0].regime is not Regime.DIVERGENT
        return bounded and self.bench.training.early == "base"

    # ------------------------------------------------------------- along the training

    @property
    def watches(self) -> bool:
        """Whether the objective is looked at before this step's update."""
        return self.step % self._stride == 0

    @property
    def compares(self) -> bool:
        """Whether the mini-batch's objective is looked at before and after this step's update."""
        return self._descends and not self.bench.full_batch and self.step >= self._compared_from

    @property
    def photographs(self) -> bool:
        """Whether the parameters are kept after this step's update, for the sharpness."""
        return self.step in self._sharpness_steps

    def watch(self, objective: float) -> None:
        """Take note of the objective before this step's update, in float64, decay included."""
        self._loss_steps.append(self.step)
        self._loss.append(objective)

    def compare(self, before: float, after: float) -> None:
        """Take note of the objective on this step's mini-batch before and after the update."""
        noise = 8 * self.bench.roundoff * abs(before)
        self._ascent.append(after - before - noise)

    def move(self, losses: Sequence[float], change: float, separation: Sequence[float]) -> None:
        """End this step.

        Args:
            losses: of the batch before the update, one a k.
            change: RelL1 between the base trajectory after and before the update.
            separation: RelL1 between the base trajectory and each other k after the update.
        """
        self._look_for_blow_up(losses, [change, *separation])
        if self.ended is None:
            self._change.append(change)
            self._separation.append(list(separation))
        self.step += 1
        if self.ended is not None:
            self.ended = self.step

    def go_on(self, objective: float) -> None:
        """End this step of a base trajectory that is `alone`.

        Args:
            objective: loss of the batch before the update, and the decay term after it. Where it
                blows up after all, the label is taken back.
        """
        self._loss_steps.append(self.step)
        self._loss.append(objective)
        self._look_for_blow_up([], [])
        self.step += 1
        if self.ended is None:
            self._loss_steps.pop()
            self._loss.pop()
        else:
            self.ended, self._settled = self.step, None

    def photograph(
        self, parameters: Iterable[Tensor], scaling: Tensor | None, buffers: Iterable[Tensor] = ()
    ) -> None:
        """Keep the parameters of the base trajectory after this step's update; before `move`."""
        self._snapshots.append(_snapshot(self.step, parameters, scaling, buffers))

    @property
    def asks(self) -> bool:
        """Whether it is time to ask if more steps can change the label; after `move`."""
        return self.ended is None and self.step in self._check_steps

    def ask(
        self, parameters: Sequence[Tensor], scaling: Tensor | None, buffers: Iterable[Tensor] = ()
    ) -> None:
        """Ask whether more steps can change the label (`trainables.early`).

        Args:
            parameters: of the base trajectory now.
            scaling: of its optimiser's preconditioner now.
            buffers: of its network now, where they change.
        """
        ratio = None
        if self._sharpness_steps:
            # The rule looks back to half of what was run.
            looks = [t for t in self._look_steps if t >= self.step / 2]
            kept = [c for c in self._checks if c["step"] in looks]
            self._checks = [*kept, _snapshot(self.step, parameters, scaling, buffers)]
            ratio = self._ratio_at
        self._settled = settled(self._observations(parameters, []), ratio)

    @property
    def measures(self) -> bool:
        """Whether it is time to measure the metric; after `move`."""
        every = self.bench.training.evaluate_every
        return every is not None and self.ended is None and self.step % every == 0

    def measure(self, parameters: Sequence[Tensor], buffers: Iterable[Tensor] = ()) -> None:
        """Take note of the metric on held-out data at these values of the base trajectory."""
        figure = self._metric(parameters, buffers)
        self._metrics.append((self.step, math.nan if figure is None else figure))

    def _ratio_at(self, step: int) -> float:
        """Sharpness over threshold at a check."""
        known = dict(self._asked)
        if step not in known:
            [check] = [c for c in self._checks if c["step"] == step]
            known[step] = self._sharpness_ratio(check, EARLY_TOLERANCE)
            self._asked.append((step, known[step]))
        return known[step]

    def _look_for_blow_up(self, losses: Sequence[float], distances: Sequence[float]) -> None:
        objective = self._loss[-1]
        if not np.isfinite([*losses, objective, *distances]).all():
            self.ended, self.ended_by = self.step, Reason.NON_FINITE
        elif max([*losses, objective]) > EXPLOSION * max(self._loss[0], 1.0):
            self.ended, self.ended_by = self.step, Reason.EXPLODED

    # ------------------------------------------------------------- the verdict

    @torch.no_grad()
    def network(self, parameters: Sequence[Tensor], buffers: Iterable[Tensor] = ()) -> nn.Module:
        """The mirror with these parameters and, where they change in training, these buffers."""
        for mirror, value in zip(self.mirror.parameters(), parameters, strict=True):
            mirror.copy_(value)
        for buffer, value in zip(self.mirror.buffers(), buffers, strict=False):
            buffer.copy_(value)
        return self.mirror

    def _sharpness_ratio(
        self, snapshot: Mapping[str, Any], rtol: float = TOLERANCE, side: bool = False
    ) -> float:
        """Sharpness of the base trajectory over its threshold.

        Args:
            snapshot: its parameters.
            rtol: how far the sharpness may lie above what is found, of itself.
            side: whether it will do, far below the threshold, to know that it is below.
        """
        scaling, decay, rule = None, 0.0, self.rule(snapshot["step"])
        if snapshot["scaling"] is not None:
            scaling = snapshot["scaling"].numpy()
            decay = rule.weight_decay if rule.coupled else 0.0
        top = sharpness(
            self.network(snapshot["parameters"], snapshot["buffers"]),
            self.loss.value,
            self.bench.inputs64,
            self.bench.targets64,
            scaling,
            decay,
            rtol=rtol,
            level=largest_stable_eigenvalue(rule) if side else None,
        ).value
        return stability_ratio(rule, top)

    def _observations(self, parameters: Sequence[Tensor], ratios: Sequence[float]) -> Observations:
        """All that was seen, up to these parameters of the base trajectory."""
        training = self.bench.training
        separation = np.array(self._separation, dtype=np.float64)
        floor = self._loss_floor(parameters)
        unseen = [-math.inf] * min(self._compared_from, self.step)
        rose = ~(np.array(unseen + self._ascent) <= floor)  # a loss that is not a number rose too
        return Observations(
            steps=self.steps,
            roundoff=self.bench.roundoff,
            loss_steps=np.array(self._loss_steps, dtype=np.float64),
            loss=np.array(self._loss, dtype=np.float64),
            change=np.array(self._change, dtype=np.float64),
            separation=separation.reshape(-1, len(training.ks) - 1).T,
            ascent=None if self.bench.full_batch else rose.astype(np.float64),
            floor=floor,
            descends=self._descends,
            momentum=training.momentum or 0.0,
            sharpness=np.array(ratios, dtype=np.float64),
            ended=self.ended,
            ended_by=self.ended_by,
        )

    def result(
        self,
        parameters: Sequence[Sequence[Tensor]],
        rates: Sequence[float],
        backend: str = "loop",
        buffers: Sequence[Sequence[Tensor]] = (),
    ) -> Replicate:
        """Judge what was seen. Call it when `done`.

        Args:
            parameters: of the trajectory of each k at the end; the first is the base, and counts
                alone where it was `alone`.
            rates: of the neighbour's growth at each step, where there is one.
            backend: what trained it.
            buffers: of the network of each k at the end, where they change.
        """
        pairs = self._sharpness_ratios(parameters[0])
        seen = self._observations(parameters[0], [ratio for _, ratio in pairs])
        verdict, evidence = self._settled or judge(seen)
        names = metric_names(self.bench.training.ks)
        evidence = {**evidence, **dict.fromkeys(names)}
        if self.ended is None:
            finals = list(zip_longest(parameters, buffers, fillvalue=()))
            for name, final in zip(names, finals[:1] if self.alone else finals, strict=False):
                evidence[name] = self._metric(*final)
        if self.bench.training.lyapunov:
            evidence["lyapunov_exponent"] = mean_rate(rates[self._half :])
        curves = {"loss": _curve(self._loss_steps, self._loss)}
        for k, column in zip(self.bench.training.ks[1:], seen.separation, strict=True):
            curves[f"rel_l1_k{k}"] = _curve(range(1, len(column) + 1), column)
        if self._metrics:
            curves["metric"] = _curve(*zip(*self._metrics, strict=True))
        if pairs:
            curves["sharpness_ratio"] = _curve(*zip(*sorted(pairs), strict=True))
        order = None if self.order == self.seed else self.order
        return Replicate(self.seed, verdict, self.step, evidence, curves, backend, order)

    def _sharpness_ratios(self, parameters: Sequence[Tensor]) -> list[tuple[int, float]]:
        """Steps, and the sharpness over its threshold after their updates, as the verdict sees it.

        A label that may be early is all that is asked for: where the training is restrained or
        divergent whatever its sharpness, that is not measured.
        """
        if self._settled is not None or self.ended is not None:
            return [(step - 1, ratio) for step, ratio in self._asked]
        early = bool(self._check_steps)
        if early and self._snapshots:
            calmest = self._observations(parameters, [0.0])
            if judge(calmest)[0].regime is not Regime.STABLE:
                return []
        return [(c["step"], self._sharpness_ratio(c, side=early)) for c in self._snapshots]

    @property
    def _half(self) -> int:
        """The step at which the second half begins of what was run on purpose."""
        steps = self.steps if self._settled is None else self._settled[0].step
        return steps // 2

    def _loss_floor(self, parameters: Sequence[Tensor]) -> float:
        """Size of loss moves that rounding the parameters causes in the sharpest stable bowl.

        The rounding error of a step is u ||theta||, a stable bowl has curvature at most of order
        1 / lr, and momentum adds up 1 / (1 - momentum) steps. Within 2 % of the edge errors add up
        over 25 steps more, which the loss feels squared. Without this a float32 training that has
        reached a loss of 0 would be called oscillating for its last digits.
        """
        momentum = self.bench.training.momentum or 0.0
        squares = sum(float((p.detach().double() ** 2).sum()) for p in parameters)
        floor = 1000 * self.bench.roundoff**2 * squares / (1 - momentum) ** 2 / self.rule().lr
        return min(floor, LARGEST_FLOOR * abs(self._loss[0]))

    @torch.no_grad()
    def _metric(self, parameters: Sequence[Tensor], buffers: Iterable[Tensor]) -> float | None:
        inputs, targets = self.bench.held_out
        network = self.network(parameters, buffers)
        with _evaluation_mode(network):
            most = MOST_HELD_OUT[inputs.device.type]
            parts = [network(part) for part in torch.split(inputs, most)]
        outputs = parts[0] if len(parts) == 1 else torch.cat(parts)
        figure = float(self.bench.task.metric(outputs, targets))
        return figure if np.isfinite(figure) else None

    # ------------------------------------------------------------- interruptions

    def state_dict(self) -> dict[str, Any]:
        """Everything the rest depends on; of a record that is not done, for others are judged."""
        verdict, evidence = self._settled or (None, {})
        return {
            "step": self.step,
            "settled": verdict and [plain_verdict(verdict), dict(evidence)],
            "records": {name: list(getattr(self, name)) for name in _RECORDS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, to the bit."""
        self.step = state["step"]
        if state["settled"] is not None:
            verdict, evidence = state["settled"]
            self._settled = verdict_of(verdict), evidence
        for name in _RECORDS:
            setattr(self, name, list(state["records"][name]))


_RECORDS = (
    "_loss_steps", "_loss", "_change", "_separation", "_ascent", "_snapshots", "_checks", "_asked",
    "_metrics",
)  # fmt: skip


def _snapshot(
    step: int, parameters: Iterable[Tensor], scaling: Tensor | None, buffers: Iterable[Tensor]
) -> dict[str, Any]:
    # On the processor: many copies of a network are too much for a shared GPU.
    kept, state = ([t.detach().to("cpu", copy=True) for t in ts] for ts in (parameters, buffers))
    scales = None if scaling is None else scaling.cpu()
    return {"step": step, "parameters": kept, "buffers": state, "scaling": scales}


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """As a network is used, not trained: running statistics, no dropout; then as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _curve(steps: Iterable[int], values: Iterable[float]) -> Curve:
    pairs = [(int(s), float(v)) for s, v in zip(steps, values, strict=True) if np.isfinite(v)]
    if len(pairs) > CURVE_POINTS:
        keep = np.unique(np.linspace(0, len(pairs) - 1, CURVE_POINTS).round().astype(int))
        pairs = [pairs[i] for i in keep]
    return Curve(tuple(s for s, _ in pairs), tuple(v for _, v in pairs))

"""From points to results: against trainings written by hand, in any order, with interruptions."""

from __future__ import annotations

import io
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from toys import Bowl, NoisyBowl, SpiedBowl

from analysis.theory import OneLayerCNN
from trainables import record
from trainables.domain import (
    Curve,
    InputError,
    NotReproducibleError,
    Point,
    PointResult,
    Reason,
    Regime,
    Replicate,
    Training,
    UnreachableError,
    replicate_seed,
)
from trainables.dynamics.curvature import Estimate, sharpness
from trainables.dynamics.optimisers import Optimiser
from trainables.early import check_steps
from trainables.evaluate import check_reproducible, checked_training, evaluate
from trainables.losses import MEAN_SQUARED_ERROR
from trainables.pack import PackRun
from trainables.tasks import Task, get_task
from trainables.tasks.from_functions import task_from
from trainables.trajectory import Bench, Trajectory, deterministic

CNN = get_task("one-layer-cnn", image=64)
TINY_CNN = get_task("one-layer-cnn", image=8, kernel=4)
TINY_MLP = get_task("mnist-mlp", samples=30, batch_size=10, width=4)
DTYPES = ["float32", "float64"]


# ------------------------------------------------------------------ known regimes


@pytest.mark.parametrize("backend", ["auto", "loop"])
@pytest.mark.parametrize("early", [True, False])
def test_what_no_verdict_looks_at_is_not_computed(
    early: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the losses of all mini-batches compared the results are the same, to the bit."""
    points = [Point(0.05), Point(2.0), Point(20.0), Point(3.0, 0.0, 1.0)]
    settings: dict[str, Any] = {"steps": 120, "early": early, "backend": backend}
    compared: list[int] = []
    plain = record.Record.compare

    def compare(self: record.Record, before: float, after: float) -> None:
        compared.append(self.step)
        plain(self, before, after)

    monkeypatch.setattr(record.Record, "compare", compare)
    some = evaluate(points, TINY_MLP, **settings)
    first, number = min(compared), len(compared)
    begin = record.Record.__init__

    def watchful(self: record.Record, *arguments: Any) -> None:
        begin(self, *arguments)
        self._compared_from = 0

    monkeypatch.setattr(record.Record, "__init__", watchful)
    assert evaluate(points, TINY_MLP, **settings) == some
    assert first == min(check_steps(120) if early else [120]) // 2
    assert len(compared) - number > number
    assert {r.verdict.regime for r in some} == set(Regime)


def regimes(lrs: list[float], weight_decay: float, dtype: str) -> str:
    """First letters of the regimes."""
    points = [Point(lr, 0.0, weight_decay) for lr in lrs]
    found = evaluate(points, CNN, steps=400, dtype=dtype)
    return "".join(result.verdict.regime[0] for result in found).upper()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ten_rates_of_the_one_layer_cnn(dtype: str) -> None:
    """Acceptance row 15; exact boundaries at 0.03226 and 0.1."""
    lrs = [0.01, 0.02, 0.029, 0.031, 0.05, 0.07, 0.09, 0.099, 0.101, 0.12]
    assert regimes(lrs, 20.0, dtype) == "SSSSRRRRDD"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_decay", [5.0, 10.0, 40.0, 100.0, 200.0])
def test_both_sides_of_the_exact_boundaries(weight_decay: float, dtype: str) -> None:
    """Acceptance row 14: verdicts four and two per cent off the boundaries of theory."""
    theory = OneLayerCNN(weight_decay)
    stable, bounded = theory.largest_stable_lr, theory.largest_bounded_lr
    if weight_decay == 200.0:  # no restrained band: the boundaries coincide
        assert regimes([0.97 * bounded, 1.02 * bounded], weight_decay, dtype) == "SD"
        return
    lrs = [0.96 * stable, 1.04 * stable, 0.98 * bounded, 1.02 * bounded]
    assert regimes(lrs, weight_decay, dtype) == "SRRD"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("settings", "edge"),
    [
        ({}, 2.0),
        ({"momentum": 0.9}, 3.8),
        ({"optimiser": "nesterov"}, 3.8 / 2.8),
        ({"optimiser": "nesterov", "momentum": 0.5}, 1.5),
    ],
    ids=["gradient descent", "heavy ball", "nesterov", "nesterov-0.5"],
)
def test_a_bowl_is_stable_up_to_the_exact_threshold(
    settings: dict[str, Any], edge: float, dtype: str
) -> None:
    """Largest curvature 1; momentum swings about a loss of 0, and that is no instability."""
    points = [Point(factor * edge) for factor in (0.01, 0.1, 0.5, 0.95, 1.05)]
    found = evaluate(points, Bowl((1.0, 0.5)), steps=400, dtype=dtype, **settings)
    assert [result.verdict.regime[0] for result in found] == ["s", "s", "s", "s", "d"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lr", [0.03, 0.3])
def test_adam_is_stable_on_a_bowl(lr: float, dtype: str) -> None:
    (result,) = evaluate([Point(lr)], Bowl(), steps=400, dtype=dtype, optimiser="adam")
    assert result.verdict.reason is Reason.SETTLED


@pytest.mark.parametrize(
    ("loss_name", "lr", "regime"),
    [
        ("cross-entropy", 0.1, "stable"),
        ("cross-entropy", 10.0, "restrained"),
        ("squared-error", 0.02, "stable"),
        ("squared-error", 0.4, "divergent"),
    ],
)
def test_mnist_mlp(loss_name: str, lr: float, regime: str) -> None:
    task = get_task("mnist-mlp", samples=100, loss_name=loss_name)
    (result,) = evaluate([Point(lr)], task, steps=100)
    assert result.verdict.regime == regime
    metric = result.replicates[0].evidence.get("metric")
    if regime == "stable":
        assert metric is not None
        assert metric > 0.5


@pytest.mark.parametrize(("lr", "regime"), [(0.03, "stable"), (10.0, "restrained")])
def test_mnist_mlp_in_mini_batches(lr: float, regime: str) -> None:
    task = get_task("mnist-mlp", samples=200, batch_size=50)
    (result,) = evaluate([Point(lr)], task, steps=120)
    assert result.verdict.regime == regime


@pytest.mark.parametrize(("lr", "low", "high"), [(0.029, 0.0, 1e-15), (0.07, 0.5, 2.0)])
def test_tail_distance_of_the_twins(lr: float, low: float, high: float) -> None:
    """Acceptance row 17: RelL1 of k = 1 and 3 over the last 100 of 1000 steps, seed 7."""
    bench = Bench.of(CNN, Training(dtype="float64"))
    twins = [Trajectory(bench, Point(lr, 0.0, 20.0), k, seed=7) for k in (1, 3)]
    tail = []
    for step in range(1000):
        for twin in twins:
            twin.step(slice(None))
        if step >= 900:
            x, y = (t.parameters[0].detach().numpy() for t in twins)
            tail.append(2 * np.mean(np.abs(x - y) / (np.abs(x) + np.abs(y))))
    assert low <= np.mean(tail) <= high


# ------------------------------------------------------------------ a training by hand


def by_hand(task: Task, point: Point, training: Training, k: int, seed: int) -> list[list[Tensor]]:
    """Parameters before the first and after each update, with autograd and the bare formulas."""
    dtype = getattr(torch, training.dtype)
    module = task.module(seed).to(dtype)
    inputs, targets = task.train_data()
    inputs = inputs.to(dtype)
    if targets.is_floating_point():
        targets = targets.to(dtype)
    parameters = list(module.parameters())
    buffers = [torch.zeros_like(p) for p in parameters]
    path = [[p.detach().clone() for p in parameters]]
    size = task.batch or len(inputs)
    momentum = training.momentum or 0.0
    for step in range(training.steps):
        epoch, position = divmod(step, len(inputs) // size)
        order = np.arange(size)
        if task.batch is not None:
            shuffled = np.random.RandomState([seed, epoch]).permutation(len(inputs))
            order = shuffled[position * size : (position + 1) * size]
        loss = task.loss.value(module(inputs[order]), targets[order])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g, b in zip(parameters, gradients, buffers, strict=True):
                decayed = g + point.weight_decay * p if point.weight_decay else g
                b.copy_(momentum * b + decayed)
                p.sub_((point.lr / k) * (k * b))
        path.append([p.detach().clone() for p in parameters])
    return path


def flat(tensors: list[Tensor]) -> NDArray[np.float64]:
    return torch.cat([t.reshape(-1) for t in tensors]).double().numpy()


@pytest.mark.parametrize("stabiliser", ["stability", "stability-reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "task",
    [
        TINY_CNN,
        TINY_MLP,
        get_task("mnist-mlp", samples=20, width=4),
        get_task("mnist-regression", samples=12, batch_size=6),
    ],
    ids=lambda t: f"{t.name}-{t.batch}",
)
def test_without_strength_nothing_of_a_stabiliser_is_left(
    task: Task, dtype: str, stabiliser: str
) -> None:
    """Acceptance row 4: alpha = 0 repeats the bare training to the bit."""
    training = checked_training(
        {"steps": 20, "dtype": dtype, "momentum": 0.5, "stabiliser": stabiliser}
    )
    point = Point(0.02, 0.0, 0.01)
    bench = Bench.of(task, training)
    for k in (1, 3):
        trajectory = Trajectory(bench, point, k, seed=4)
        for step, expected in enumerate(by_hand(task, point, training, k, 4)[1:]):
            trajectory.step(bench.batch(4, step))
            pairs = zip(trajectory.parameters, expected, strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def objective(task: Task, point: Point, parameters: list[Tensor], rows: Any) -> float:
    """Loss and decay term in float64."""
    module = task.module(0)
    with torch.no_grad():
        for mirror, value in zip(module.parameters(), parameters, strict=True):
            mirror.copy_(value)
        inputs, targets = task.train_data()
        loss = float(task.loss.value(module(inputs[rows]), targets[rows]))
    return loss + 0.5 * point.weight_decay * float((flat(parameters) ** 2).sum())


def rel_l1(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    scale = np.abs(x) + np.abs(y)
    terms = np.divide(np.abs(x - y), scale, out=np.zeros_like(x), where=scale > 0)
    return float(2 * terms.mean())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_size", [None, 10])
def test_every_observation_by_hand(batch_size: int | None, dtype: str) -> None:
    """Loss, distance of the twins, ascent and metric of one replicate."""
    task = get_task("mnist-mlp", samples=30, batch_size=batch_size, width=4)
    point = Point(5.3, 0.0, 0.003)
    settings = {"steps": 40, "dtype": dtype, "ks": (1, 3, 5), "seed": 11, "sharpness": False}
    settings |= {"backend": "loop", "early": False}  # chaos: others round otherwise
    training = checked_training(settings)
    (result,) = evaluate([point], task, **settings)
    (found,) = result.replicates
    seed = replicate_seed(11, point, 0)
    assert found.seed == seed
    assert found.steps_run == 40
    paths = {k: by_hand(task, point, training, k, seed) for k in (1, 3, 5)}
    base = paths[1]
    every = slice(None)
    losses = [objective(task, point, p, every) for p in base[:-1]]
    assert found.curves["loss"].steps == tuple(range(40))
    np.testing.assert_allclose(found.curves["loss"].values, losses, rtol=1e-12)
    for k in (3, 5):
        curve = found.curves[f"rel_l1_k{k}"]
        expected = [rel_l1(flat(p), flat(q)) for p, q in zip(base[1:], paths[k][1:], strict=True)]
        assert curve.steps == tuple(range(1, 41))
        np.testing.assert_allclose(curve.values, expected, rtol=1e-12)
        assert curve.values[-1] > 0
    tails = [np.median(found.curves[f"rel_l1_k{k}"].values[36:]) for k in (3, 5)]
    assert found.evidence["separation"] == pytest.approx(max(tails))
    change = [rel_l1(flat(p), flat(q)) for p, q in zip(base[1:], base[:-1], strict=True)]
    linear = float(np.finfo(dtype).eps) * sum(1 + 3 * r for r in change)
    amplification = math.log(max(tails) / linear) / math.log(2 / linear)
    assert found.evidence["amplification"] == pytest.approx(amplification, rel=1e-6)
    if batch_size is not None:
        ups = []
        for step in range(20, 40):
            epoch, position = divmod(step, 3)
            order = np.random.RandomState([seed, epoch]).permutation(30)
            rows = order[position * 10 : (position + 1) * 10]
            before, after = (objective(task, point, base[step + i], rows) for i in (0, 1))
            ups.append(after > before)
        assert 0 < sum(ups) < 20
        assert found.evidence["ascent_share"] == pytest.approx(np.mean(ups))
    module = task.module(0)
    with torch.no_grad():
        for mirror, value in zip(module.parameters(), base[-1], strict=True):
            mirror.copy_(value)
        images, digits = task.test_data()
        right = float((module(images).argmax(1) == digits).double().mean())
    assert found.evidence["metric"] == pytest.approx(right)


def test_loss_of_mini_batches_is_watched_on_a_probe_set() -> None:
    """The first 256 samples; at 80 steps every second loss is taken, at 400 every tenth."""
    task = get_task("mnist-mlp", samples=600, batch_size=300, width=4)
    (result,) = evaluate([Point(0.1)], task, steps=80, early=False)
    (found,) = result.replicates
    assert found.curves["loss"].steps == tuple(range(0, 80, 2))
    start = [p.detach() for p in task.module(found.seed).parameters()]
    expected = objective(task, Point(0.1), start, slice(256))
    assert found.curves["loss"].values[0] == pytest.approx(expected, rel=1e-6)


def _line(seed: int) -> torch.nn.Module:
    layer = torch.nn.Linear(4, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.fill_(1.0 + seed % 5)
    return layer


def _exact_fit() -> Any:
    inputs = torch.from_numpy(np.random.RandomState(7).randn(64, 4))
    return (inputs, inputs.sum(1, keepdim=True)), (inputs, inputs.sum(1, keepdim=True))


ExactFit = task_from("exact-fit", _line, _exact_fit, MEAN_SQUARED_ERROR, lambda outputs, _: 0.0)


@pytest.mark.parametrize("batch", [8, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_last_digits_of_a_loss_of_0_are_no_oscillation(dtype: str, batch: int) -> None:
    """Least squares without a residual: once it has converged, updates move by rounding alone."""
    rows = _exact_fit()[0][0].numpy()
    steepest = 2 * max(
        np.linalg.norm(rows[i : i + batch], 2) ** 2 / batch for i in range(0, 64, batch)
    )
    point = Point(0.9 / float(steepest))
    (result,) = evaluate(
        [point], ExactFit(batch_size=batch), steps=2000, dtype=dtype, early=False, lyapunov=False
    )
    evidence = result.replicates[0].evidence
    assert evidence["final_loss"] is not None and evidence["final_loss"] < 1e-10
    assert evidence["ascent_share"] == 0.0
    assert result.verdict.regime == "stable"


@pytest.mark.parametrize("settings", [{"momentum": 0.9}, {"optimiser": "adam"}])
def test_steps_with_momentum_may_climb_their_own_batch(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of climbs decides for plain SGD alone, and is looked at for it alone."""
    task = get_task("mnist-mlp", samples=30, batch_size=10, width=4)
    with monkeypatch.context() as changed:
        changed.delattr(record.Record, "compare")  # which would cost two passes of the batch a step
        (result,) = evaluate([Point(1.0)], task, steps=40, **settings)
    assert result.replicates[0].evidence["ascent_share"] is None
    assert result.verdict.reason is not Reason.OSCILLATING
    (plain,) = evaluate([Point(4.0)], task, steps=40)
    share = plain.replicates[0].evidence["ascent_share"]
    assert share is not None
    assert share > 0.1


def test_curves_are_thinned() -> None:
    (result,) = evaluate([Point(0.01, 0.0, 1.0)], TINY_CNN, steps=200, early=False)
    curve = result.replicates[0].curves["loss"]
    assert len(curve.steps) == len(curve.values) == 64
    assert (curve.steps[0], curve.steps[-1]) == (0, 199)
    assert record._curve([1, 2, 3], [0.5, math.nan, math.inf]) == Curve((1,), (0.5,))


@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
def test_sharpness_ratios_of_a_bowl(decay: str) -> None:
    """lr (h + lambda) / 2 at eight steps of the second half."""
    task = Bowl((1.5, 0.5, 0.2))
    point = Point(0.8, 0.0, 0.1)
    (result,) = evaluate([point], task, steps=60, decay=decay, early=False)
    curve = result.replicates[0].curves["sharpness_ratio"]
    assert curve.steps == (30, 34, 38, 42, 46, 50, 54, 59)
    np.testing.assert_allclose(curve.values, 0.8 * 1.6 / 2, rtol=1e-3)
    off = evaluate([point], task, steps=60, sharpness=False)[0].replicates[0]
    assert "sharpness_ratio" not in off.curves
    assert off.evidence["sharpness_ratio"] is None


def test_sharpness_ratios_of_adam() -> None:
    """The preconditioner of the step at which the snapshot was taken."""
    h = np.array([1.5, 0.5, 0.2])
    point = Point(0.01, 0.0, 0.1)
    task = Bowl(tuple(h.tolist()))
    settings = {"steps": 40, "optimiser": "adam", "dtype": "float64", "early": False}
    (result,) = evaluate([point], task, **settings)
    (found,) = result.replicates
    w = task.module(found.seed).weight.detach().numpy()[0].copy()  # type: ignore[operator]
    m, v, expected = np.zeros(3), np.zeros(3), {}
    for step in range(40):
        g = h * (w - 1) + 0.1 * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        root = np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8
        w = w - 0.01 * m / (1 - 0.9 ** (step + 1)) / root
        expected[step] = 0.01 * 0.1 / 3.8 * np.max((h + 0.1) / root)
    curve = found.curves["sharpness_ratio"]
    np.testing.assert_allclose(curve.values, [expected[s] for s in curve.steps], rtol=1e-3)


# ------------------------------------------------------------------ early verdicts


def never_settled(*_: Any) -> None:
    return None


@pytest.mark.parametrize("point", [Point(0.04, 0.0, 20.0), Point(0.06, 0.0, 20.0)])
def test_the_sharpness_of_a_training_that_is_not_stable_in_any_case_is_left_out(
    point: Point, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it ran to its end."""
    task = get_task("one-layer-cnn")
    full = evaluate([point], task, steps=60, early=False)[0]
    assert full.replicates[0].evidence["sharpness_ratio"] is not None
    monkeypatch.setattr(record, "settled", never_settled)
    monkeypatch.setattr(record, "sharpness", None)
    found = evaluate([point], task, steps=60)[0]
    assert found.verdict.regime is full.verdict.regime is not Regime.STABLE
    assert found.replicates[0].steps_run == 60
    assert found.replicates[0].evidence["sharpness_ratio"] is None
    assert "sharpness_ratio" not in found.replicates[0].curves


@pytest.mark.parametrize("lr", [0.01, 0.2])
def test_a_ringing_that_only_the_sharpness_excuses_has_it_measured(
    lr: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Momentum 0.99 rings through 100 steps, which looks like oscillation to all but this."""
    monkeypatch.setattr(record, "settled", never_settled)
    (result,) = evaluate([Point(lr)], Bowl(), steps=100, momentum=0.99)
    assert result.verdict.regime is Regime.STABLE
    assert result.replicates[0].evidence["sharpness_ratio"] is not None


@pytest.mark.parametrize("settings", [{"steps": 60, "schedule": "cosine"}, {"steps": 32}])
def test_a_label_that_cannot_be_early_has_its_sharpness_measured(settings: dict[str, Any]) -> None:
    """A schedule lets none be early, and so few steps show no trend."""
    point, task = Point(0.06, 0.0, 20.0), get_task("one-layer-cnn")
    (found,) = evaluate([point], task, **settings)[0].replicates
    (full,) = evaluate([point], task, early=False, **settings)[0].replicates
    assert found.verdict.regime is not Regime.STABLE
    assert found.evidence["sharpness_ratio"] == full.evidence["sharpness_ratio"] is not None


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("ratio", [0.1, 0.6, 0.98, 1.02])
def test_the_sharpness_that_decides_is_measured_as_well_as_that_needs(
    ratio: float, momentum: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bowl with a thousand directions, so that few products do not find its sharpest one.

    A momentum of 0.9 rings through 60 steps, which without the sharpness would be oscillation.
    """
    task = Bowl(tuple(np.linspace(0.01, 1, 1000)))
    lr = (2 + 2 * (momentum or 0)) * ratio
    spent: list[int] = []

    def counting(*given: Any, **named: Any) -> Estimate:
        found = sharpness(*given, **named)
        spent.append(found.gradients)
        return found

    monkeypatch.setattr(record, "settled", never_settled)
    monkeypatch.setattr(record, "sharpness", counting)
    full, found = (
        evaluate([Point(lr)], task, steps=60, momentum=momentum, early=early)[0]
        for early in (False, True)
    )
    assert found.verdict.regime is full.verdict.regime
    assert (found.verdict.regime is Regime.STABLE) is (ratio < 1)
    exact, rough = (r.replicates[0].evidence.get("sharpness_ratio") for r in (full, found))
    if ratio > 1:
        assert rough is None
        assert len(spent) == 8
    else:
        assert rough is not None
        assert exact is not None
        assert rough <= exact <= rough + (1 - rough) / 2
        assert sum(spent[8:]) < sum(spent[:8])


class Sharpening(nn.Module):
    """A bowl with many directions, one of which gets sharper by a tenth a step of `y`."""

    def __init__(self, curvatures: Tensor, one: int) -> None:
        super().__init__()
        start = torch.full((len(curvatures),), 1.5, dtype=torch.float64)
        start[one] = 0
        self.one = one
        self.curvatures: Tensor
        self.register_buffer("curvatures", curvatures)
        self.weight = nn.Parameter(start)
        self.y = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        rest = torch.ones_like(self.weight)
        rest[self.one] = 0
        bowl = self.curvatures.to(self.weight.dtype).sqrt() * (self.weight - 1) * rest
        growing = (0.0595 * torch.exp(0.1 * self.y)).sqrt() * self.weight[self.one]
        drift = 0.01 * self.y - 10
        outputs = torch.cat([bowl, growing, drift]) * math.sqrt((len(self.weight) + 2) / 2)
        return outputs[None] + 0 * inputs.sum()


@dataclass(frozen=True)
class SharpeningBowl(Bowl):
    """The direction that gets sharper is one that Lanczos's start has next to nothing of."""

    name: ClassVar[str] = "sharpening"

    def module(self, seed: int) -> nn.Module:
        random = torch.Generator().manual_seed(0)
        curvatures = 0.046 * torch.rand(2000, generator=random, dtype=torch.float64) ** 4
        start = np.random.default_rng(0).standard_normal(2001)[:2000]
        return Sharpening(curvatures, int(np.argsort(np.abs(start))[5]))

    def train_data(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 2002, dtype=torch.float64)


@pytest.mark.parametrize("settles", [True, False])
def test_a_sharpness_that_hides_from_lanczos_while_it_grows(
    settles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a fifth of its threshold halfway, and above it at the end, where all else is calm."""
    if not settles:
        monkeypatch.setattr(record, "settled", never_settled)
    settings = {"steps": 400, "lyapunov": False, "backend": "loop", "dtype": "float64"}
    (result,) = evaluate([Point(1.0)], SharpeningBowl(), **settings)
    (found,) = result.replicates
    assert (found.verdict.reason, found.steps_run) == (Reason.SHARP, 400)
    assert found.evidence["sharpness_ratio"] == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize("backend", ["loop", "exact"])
def test_a_settled_training_ends_early(backend: str) -> None:
    """Both sides of both boundaries of the one-layer CNN; labels are those of full length."""
    points = [Point(lr, 0.0, 20.0) for lr in (0.01, 0.031, 0.034, 0.05, 0.099, 0.103)]
    short, full = (
        evaluate(points, CNN, steps=400, dtype="float64", backend=backend, early=early)
        for early in (True, False)
    )
    assert [r.verdict.regime for r in short] == [r.verdict.regime for r in full]
    for result in short:
        (found,) = result.replicates
        assert result.verdict.step == found.steps_run
        steps = found.curves["rel_l1_k3"].steps
        assert steps[-1] <= found.steps_run
        assert found.evidence["metric"] is not None or result.verdict.regime is Regime.DIVERGENT
    run = [sum(r.replicates[0].steps_run for r in results) for results in (short, full)]
    assert run[0] < 0.75 * run[1]


def test_an_early_verdict_survives_an_interruption() -> None:
    """At every step of a training whose sharpness is asked for at several checks."""
    points, training = [Point(0.02, 0.0, 20.0), Point(0.05, 0.0, 20.0)], Training(steps=96)
    expected = evaluate(points, TINY_CNN, steps=96)
    assert {r.replicates[0].steps_run < 96 for r in expected} == {True}
    pack = PackRun(points, TINY_CNN, training)
    while not pack.done:
        pack.advance(0.0)
        file = io.BytesIO()
        torch.save(pack.state_dict(), file)
        file.seek(0)
        pack = PackRun(points, TINY_CNN, training)
        pack.load_state_dict(torch.load(file, weights_only=True))
    assert pack.results == expected


# ------------------------------------------------------------------ independence


@pytest.mark.parametrize("task", [TINY_CNN, TINY_MLP], ids=lambda t: t.name)
def test_a_result_depends_on_its_own_point_alone(task: Task) -> None:
    a, b, c = Point(0.02, 0.0, 1.0), Point(1e9), Point(0.05, 0.3)
    settings: dict[str, Any] = {"steps": 20, "seeds": 2}
    together = evaluate([a, b, c], task, **settings)
    assert [result.point for result in together] == [a, b, c]
    assert evaluate([c, a], task, **settings) == [together[2], together[0]]
    torch.manual_seed(12)
    assert evaluate([b, b], task, **settings) == [together[1]] * 2
    assert evaluate([a], task, **settings, seed=1, sharpness=False) != [together[0]]
    one, other = together[0].replicates
    assert [one.seed, other.seed] == [replicate_seed(0, a, i) for i in (0, 1)]
    assert one.evidence["initial_loss"] != other.evidence["initial_loss"]


def test_replicates_do_not_depend_on_their_number() -> None:
    (few,) = evaluate([Point(0.02)], TINY_CNN, steps=20, sharpness=False, seeds=1)
    (many,) = evaluate([Point(0.02)], TINY_CNN, steps=20, sharpness=False, seeds=3)
    assert many.replicates[0] == few.replicates[0]


def test_a_task_by_name_and_no_points() -> None:
    assert evaluate([], "one-layer-cnn") == []
    (result,) = evaluate([Point(0.05, 0.0, 20.0)], "one-layer-cnn", steps=100)
    assert result.verdict.regime is Regime.RESTRAINED


# ------------------------------------------------------------------ batches


def test_batches_are_a_permutation_of_the_data_in_each_epoch() -> None:
    bench = Bench.of(get_task("mnist-mlp", samples=32, batch_size=10, width=4), Training())
    assert bench.steps_per_epoch == 3

    def epoch(seed: int, number: int) -> list[int]:
        rows = [bench.batch(seed, 3 * number + i) for i in range(3)]
        assert all(isinstance(r, Tensor) and len(r) == 10 for r in rows)
        return torch.cat(rows).tolist()  # type: ignore[arg-type]

    assert len(set(epoch(5, 0))) == 30
    assert epoch(5, 0) == epoch(5, 0)
    assert epoch(5, 0) != epoch(5, 1)
    assert epoch(5, 0) != epoch(6, 0)
    dropped = {row for number in range(30) for row in set(range(32)) - set(epoch(5, number))}
    assert len(dropped) > 10  # the incomplete batch is not always the same
    full = Bench.of(get_task("mnist-mlp", samples=32, width=4), Training())
    assert full.batch(5, 0) == slice(None)
    assert full.steps_per_epoch == 1


def test_twins_see_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[list[int]]] = {}
    step = Trajectory.step

    def spy(self: Trajectory, rows: Tensor | slice) -> Tensor:
        assert isinstance(rows, Tensor)
        seen.setdefault(self.optimiser.k, []).append(rows.tolist())
        return step(self, rows)

    monkeypatch.setattr(Trajectory, "step", spy)
    evaluate([Point(0.05)], TINY_MLP, steps=20, ks=(3, 1, 5), lyapunov=False, backend="loop")
    assert seen[1] == seen[3] == seen[5]
    assert len(seen[1]) == 20
    assert len({tuple(rows) for rows in seen[1]}) == 20


# ------------------------------------------------------------------ ends


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """k of every step of every trajectory."""
    counted: list[int] = []
    step = Trajectory.step

    def count(self: Trajectory, rows: Tensor | slice) -> Tensor:
        counted.append(self.optimiser.k)
        return step(self, rows)

    monkeypatch.setattr(Trajectory, "step", count)
    return counted


def test_a_divergent_training_ends_early_and_costs_nothing_more(
    steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither steps nor sharpness nor metric after the blow-up."""
    measured: list[int] = []

    def metric(*_args: object) -> float:
        measured.append(len(steps))
        return 0.0

    def never(*_args: object) -> float:
        raise AssertionError("measured after a blow-up")

    monkeypatch.setattr(record, "sharpness", never)
    monkeypatch.setattr(type(CNN), "metric", metric)
    (result,) = evaluate(
        [Point(0.12, 0.0, 20.0)], CNN, steps=400, dtype="float64", backend="loop", early=False
    )
    (found,) = result.replicates
    assert result.verdict.regime is Regime.DIVERGENT
    assert result.verdict.reason is Reason.EXPLODED
    # |K| grows by 1.4 a step, so the loss by 1.96, from 9498 to 1e12 times that.
    assert found.steps_run == result.verdict.step
    assert found.steps_run == pytest.approx(math.log(1e12) / math.log(1.96), abs=3)
    assert len(steps) == 3 * found.steps_run  # two k and the neighbour
    assert result.verdict.margins.stable == -1.0
    expected = 1 - 0.45 * 400 * 2 * math.log(1.4) / math.log(10)
    assert result.verdict.margins.bounded == pytest.approx(expected, rel=0.15)
    assert found.evidence["metric"] is None
    assert measured == [0]  # once, to see that the task has one


def test_a_blow_up_in_the_second_half_wants_no_sharpness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps at which it would have been measured have passed already."""

    def never(*_args: object) -> float:
        raise AssertionError("measured after a blow-up")

    monkeypatch.setattr(record, "sharpness", never)
    (result,) = evaluate([Point(2.5)], Bowl(), steps=40, early=False)
    assert 25 < result.replicates[0].steps_run < 40
    assert result.verdict.reason is Reason.EXPLODED


@pytest.mark.parametrize(
    ("lr", "dtype", "reason"),
    [
        (50.0, "float32", Reason.EXPLODED),
        (50.0, "float64", Reason.EXPLODED),
        (1e30, "float32", Reason.NON_FINITE),
        (1e300, "float64", Reason.NON_FINITE),
        (1e39, "float32", Reason.NON_FINITE),
    ],
)
def test_reasons_of_a_blow_up(lr: float, dtype: str, reason: Reason) -> None:
    (result,) = evaluate([Point(lr)], Bowl(), steps=50, dtype=dtype)
    assert result.verdict.reason is reason
    assert result.verdict.step < 10
    assert result.verdict.margins.bounded < 0
    assert PointResult.from_dict(result.to_dict()) == result


def test_a_blow_up_of_a_twin_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """k = 3 alone leaves the floating-point range."""
    of = Optimiser.of.__func__  # type: ignore[attr-defined]

    def wild(cls: type[Optimiser], t: Training, lr: float, wd: float, k: int) -> Optimiser:
        rule: Optimiser = of(cls, t, 1e300 if k == 3 else lr, wd, k)
        return rule

    monkeypatch.setattr(Optimiser, "of", classmethod(wild))
    (result,) = evaluate([Point(0.1)], Bowl(), steps=50)
    assert result.verdict.regime is Regime.DIVERGENT
    assert result.verdict.reason is Reason.NON_FINITE
    assert result.replicates[0].steps_run < 5


def test_slow_growth_is_divergent_too(steps: list[int]) -> None:
    """Growth of a tenth a step for 40 steps: no explosion, but more than tenfold."""
    (result,) = evaluate([Point(2.05)], Bowl((1.0,)), steps=60, backend="loop")
    assert result.verdict.reason is Reason.GROWING
    assert result.verdict.step == 60
    assert len(steps) == 180
    expected = 1 - 24 * 2 * math.log10(1.05)
    assert result.verdict.margins.bounded == pytest.approx(expected, rel=1e-3)


def test_a_flat_loss_has_no_sharpness_to_speak_of() -> None:
    """Inputs of zero: nothing moves, the Hessian is zero, and that is a verdict all the same."""
    (result,) = evaluate([Point(0.1)], Bowl((0.0, 0.0, 0.0)), steps=20)
    assert result.verdict.regime is Regime.STABLE
    assert result.replicates[0].evidence["sharpness_ratio"] == 0.0


# ------------------------------------------------------------------ interruptions


def with_interruptions(
    points: list[Point], task: Task, training: Training, seed: int
) -> tuple[list[PointResult], int]:
    """The pack, saved, read back and continued in a new object at random steps."""
    chance = random.Random(seed)
    pack, interruptions = PackRun(points, task, training), 0
    while not pack.done:
        pack.advance(0.0)
        if chance.random() < 0.15:
            file = io.BytesIO()
            torch.save(pack.state_dict(), file)
            for _ in range(chance.randrange(3)):  # what the old object does later is no matter
                if not pack.done:
                    pack.advance(0.0)
            file.seek(0)
            pack = PackRun(points, task, training)
            pack.load_state_dict(torch.load(file, weights_only=True))
            interruptions += 1
    return pack.results, interruptions


MLP = {"samples": 24, "width": 4}
PACKS: list[tuple[str, dict[str, Any], float, dict[str, Any]]] = [
    ("one-layer-cnn", {"image": 8, "kernel": 4}, 0.0, {"momentum": 0.9}),
    ("one-layer-cnn", {"image": 8, "kernel": 4}, 0.5, {"optimiser": "adam"}),
    ("mnist-mlp", MLP, 0.3, {"optimiser": "adam", "dtype": "float64"}),
    (
        "mnist-mlp",
        {**MLP, "batch_size": 8},
        0.3,
        {"momentum": 0.9, "stabiliser": {"name": "stability", "anchor": "epoch"}},
    ),
    (
        "mnist-mlp",
        {**MLP, "loss_name": "squared-error", "batch_size": 8},
        2.0,
        {"stabiliser": "stability-reference", "optimiser": "nesterov", "seeds": 2},
    ),
    (
        "mnist-mlp",
        {**MLP, "loss_name": "squared-error"},
        2.0,
        {"optimiser": "adam", "lyapunov": False},
    ),
    (
        "mnist-regression",
        {"samples": 12, "batch_size": 4},
        2.0,
        {"stabiliser": "stability-reference", "momentum": 0.9},
    ),
    (
        "mnist-regression",
        {"samples": 12, "batch_size": 4, "loss_name": "mean-squared-error"},
        0.6,
        {"optimiser": "adamw", "stabiliser": {"name": "stable-spam", "reset_every": 7}},
    ),
    ("mnist-mlp", MLP, 0.5, {"optimiser": "rmsprop", "stabiliser": "stablemax"}),
    ("mnist-mlp", MLP, 0.5, {"optimiser": "adadelta", "stabiliser": "spectra"}),
]


@pytest.mark.parametrize(("name", "options", "alpha", "settings"), PACKS)
def test_an_interrupted_pack_ends_with_the_same_bits(
    name: str, options: dict[str, Any], alpha: float, settings: dict[str, Any]
) -> None:
    task = get_task(name, **options)
    training = checked_training({"steps": 20, **settings})
    points = [Point(0.01, alpha, 0.01), Point(1e12, alpha, 1.0), Point(0.003, alpha)]
    straight = PackRun(points, task, training)
    assert straight.advance() == straight.results
    results, interruptions = with_interruptions(points, task, training, seed=1)
    assert interruptions >= 4
    assert results == straight.results
    assert repr(results) == repr(straight.results)
    assert results == evaluate(points, task, **{"steps": 20, **settings})
    assert results[1].replicates[0].steps_run < 20 or settings.get("optimiser") == "adam"


def test_a_state_may_be_read_at_every_moment() -> None:
    """Between replicates, between points, after a blow-up, before the first and after the last."""
    points = [Point(0.01), Point(1e12, 0.5, 1.0)]
    training = Training(steps=20, seeds=2, sharpness=False)
    pack = PackRun(points, TINY_CNN, training)
    expected = evaluate(points, TINY_CNN, steps=20, seeds=2, sharpness=False)
    moments = 0
    while True:
        file = io.BytesIO()
        torch.save(pack.state_dict(), file)
        file.seek(0)
        copy = PackRun(points, TINY_CNN, training)
        copy.load_state_dict(torch.load(file, weights_only=True))
        assert copy.done == pack.done
        if pack.done or moments % 7 == 0:
            copy.advance()
            assert copy.results == expected
        if pack.done:
            break
        pack.advance(0.0)
        moments += 1
    assert moments == 20


def test_advance_hands_out_each_result_once(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [Point(0.01), Point(0.02), Point(0.03)]
    training = Training(steps=20, sharpness=False)
    pack = PackRun(points, TINY_CNN, training)
    handed: list[PointResult] = []
    calls = 0
    while not pack.done:
        handed += pack.advance(0.0)
        calls += 1
    assert calls == 20
    assert handed == pack.results == evaluate(points, TINY_CNN, steps=20, sharpness=False)
    assert pack.advance() == []
    clock = iter(range(10**6))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    limited = PackRun(points, TINY_CNN, training)
    limited.advance(5)  # the clock ticks once a step
    records = [r for part in limited._parts for r in part.run.records]
    assert [r.step for r in records] == [5, 5, 5]


# ------------------------------------------------------------------ reproducibility


@pytest.mark.parametrize(
    "task",
    [TINY_CNN, TINY_MLP, get_task("mnist-regression", samples=12, batch_size=6), Bowl()],
    ids=lambda t: t.name,
)
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_tasks_are_reproducible(task: Task, optimiser: str) -> None:
    training = checked_training({"optimiser": optimiser, "ks": (3, 1)})
    check_reproducible(Point(0.01, 0.0, 0.1), task, training)
    check_reproducible(Point(1e30), task, training)  # a blow-up says nothing against it


def test_unseeded_noise_is_found() -> None:
    message = (
        r"task noisy-bowl on cpu: k=1 and k=(1 repeated|2) differ after \d+ steps.*"
        r"make the task deterministic \(seeded dropout"
    )
    with pytest.raises(NotReproducibleError, match=message):
        check_reproducible(Point(0.01), NoisyBowl(), Training())
    check_reproducible(Point(0.01), NoisyBowl(rate=0.0), Training())


def test_a_rule_that_is_not_exact_for_2k_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    of = Optimiser.of.__func__  # type: ignore[attr-defined]

    def fused(cls: type[Optimiser], t: Training, lr: float, wd: float, k: int) -> Optimiser:
        rule: Optimiser = of(cls, t, lr * (1 + 1e-5 * (k == 6)), wd, k)
        return rule

    monkeypatch.setattr(Optimiser, "of", classmethod(fused))
    with pytest.raises(NotReproducibleError, match="k=3 and k=6 differ"):
        check_reproducible(Point(0.01), Bowl(), Training(ks=(3, 1)))


# ------------------------------------------------------------------ settings of torch

Settings = tuple[object, ...]


def settings_of_torch() -> Settings:
    cudnn = torch.backends.cudnn
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_float32_matmul_precision(),
        cudnn.deterministic,
        cudnn.benchmark,
        cudnn.allow_tf32,
    )


@pytest.fixture(params=["loose", "strict", "warn-only"])
def surroundings(request: pytest.FixtureRequest) -> Iterator[Settings]:
    """Settings that a user may have made before the call."""
    kept = settings_of_torch()
    cudnn = torch.backends.cudnn
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(
        request.param != "loose", warn_only=request.param == "warn-only"
    )
    torch.set_float32_matmul_precision("high" if request.param == "loose" else "medium")
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = False, True, True
    yield settings_of_torch()
    torch.set_num_threads(kept[0])  # type: ignore[arg-type]
    torch.use_deterministic_algorithms(kept[1], warn_only=kept[2])  # type: ignore[arg-type]
    torch.set_float32_matmul_precision(kept[3])  # type: ignore[arg-type]
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = kept[4:]  # type: ignore[assignment]


def test_settings_of_torch_come_back(surroundings: Settings) -> None:
    inside: list[Settings] = []
    task = SpiedBowl(spy=lambda: inside.append(settings_of_torch()))
    evaluate([Point(0.1)], task, steps=20)
    assert set(inside) == {(1, True, False, "highest", True, False, False)}
    assert settings_of_torch() == surroundings


def test_settings_of_torch_come_back_after_an_error(surroundings: Settings) -> None:
    def fail() -> None:
        raise RuntimeError("no such weights")

    with pytest.raises(InputError, match=r"module\(\) fails: no such weights"):
        evaluate([Point(0.1)], SpiedBowl(spy=fail), steps=20)
    assert settings_of_torch() == surroundings
    with pytest.raises(RuntimeError, match="no such weights"):
        check_reproducible(Point(0.1), SpiedBowl(spy=fail), Training())
    assert settings_of_torch() == surroundings


def test_the_global_generators_are_left_alone() -> None:
    """Also by a task that lets PyTorch initialise its layers first, as `Bowl` does."""
    for task in (TINY_MLP, TINY_CNN, Bowl()):
        torch.manual_seed(3)
        np.random.seed(3)
        evaluate([Point(0.01)], task, steps=20)
        after = torch.rand(3), np.random.rand(3)
        torch.manual_seed(3)
        np.random.seed(3)
        assert torch.equal(after[0], torch.rand(3))
        assert np.array_equal(after[1], np.random.rand(3))


# ------------------------------------------------------------------ messages

ANALYTIC = {"name": "stability", "mode": "analytic"}
MESSAGES: list[tuple[Callable[[], object], tuple[str, str, str, str]]] = [
    (
        lambda: evaluate([], TINY_CNN, stepz=5),
        ("stepz", "5", "no such setting", "did you mean steps?"),
    ),
    (
        lambda: evaluate([], TINY_CNN, qqq=5),
        ("qqq", "5", "no such setting", "known: ks, seeds, seed, orders, steps, steps_at_lr"),
    ),
    (
        lambda: evaluate([Point(1e-38)], TINY_CNN, ks=(1, 3)),
        ("lr", "1e-38", "lr / 3 underflows float32", "use lr >= 3.53e-38, or dtype float64"),
    ),
    (
        lambda: evaluate([Point(0.1, 1.0)], TINY_CNN, stabiliser=ANALYTIC),
        (
            "stabiliser.mode",
            "'analytic'",
            "the loss binary-cross-entropy has no closed-form output gradient",
            "use mode: generic, or a task with an absolute or squared error",
        ),
    ),
    (
        lambda: evaluate([Point(0.1)], TINY_CNN, stabiliser="stabilty"),
        ("stabiliser", "'stabilty'", "no such stabiliser", "did you mean stability?"),
    ),
    (
        lambda: evaluate([Point(0.1, 1.5)], TINY_CNN, stabiliser="orthogonal-gradient"),
        ("alpha", "1.5", "alpha <= 1 for the stabiliser orthogonal-gradient", "lower it"),
    ),
    (
        lambda: evaluate([Point(0.1)], TINY_CNN, steps=3),
        ("steps", "3", "steps >= 20", "use a few hundred"),
    ),
    (
        lambda: evaluate([Point(0.1)], "one-layer"),
        ("task", "'one-layer'", "no such task", "did you mean one-layer-cnn?"),
    ),
]


@pytest.mark.parametrize(
    ("call", "parts"), MESSAGES, ids=[f"{parts[0]} {parts[2]}" for _, parts in MESSAGES]
)
def test_messages_name_field_value_law_and_remedy(
    call: Callable[[], object], parts: tuple[str, str, str, str]
) -> None:
    field, value, law, remedy = map(re.escape, parts)
    with pytest.raises(InputError, match=rf"^{field} = {value}: {law}.*; .*{remedy}"):
        call()


def test_mistakes_of_all_points_are_listed_and_nothing_is_trained(steps: list[int]) -> None:
    points = [Point(0.1), Point(1e-40), Point(1e-39, 1.0)]
    with pytest.raises(InputError) as caught:
        evaluate(points, TINY_CNN, stabiliser=ANALYTIC)
    assert [m.field for m in caught.value.mistakes] == ["lr", "lr", "stabiliser.mode"]
    assert steps == []
    assert len(evaluate([Point(1e-38)], TINY_CNN, steps=20, dtype="float64")) == 1
    assert len(evaluate([Point(0.1)], TINY_CNN, steps=20, stabiliser=ANALYTIC)) == 1


def test_a_gpu_that_is_not_there() -> None:
    message = r"device = 'cuda:99': this machine has \d+ CUDA GPUs; use device: cpu, or run on"
    with pytest.raises(UnreachableError, match=message):
        evaluate([Point(0.1)], TINY_CNN, device="cuda:99")
    with pytest.raises(UnreachableError, match=message), deterministic("cuda:99"):
        pass


def test_a_replicate_names_its_evidence() -> None:
    (result,) = evaluate([Point(0.01, 0.0, 1.0)], TINY_CNN, steps=20)
    (found,) = result.replicates
    assert isinstance(found, Replicate)
    assert set(found.evidence) == {
        "initial_loss",
        "final_loss",
        "growth",
        "separation",
        "amplification",
        "upward",
        "upward_share",
        "sharpness_ratio",
        "rise",
        "metric",
        "metric_k3",
        "lyapunov_exponent",
    }
    assert set(found.curves) == {"loss", "rel_l1_k3", "sharpness_ratio"}
    assert isinstance(TINY_CNN.module(0), nn.Module)


@pytest.mark.parametrize(
    ("momentum", "steps", "lr"),
    [
        (0.95, 100, 2.25e-3),
        (0.9, 40, 0.011),
        (0.98, 200, 4.8e-4),
        (0.99, 400, 1e-4),
        (0.98, 200, 3.7e-4),
        (0.995, 400, 7.9e-5),
    ],
)
def test_slow_ringing_of_momentum_is_stable(momentum: float, steps: int, lr: float) -> None:
    """Far inside the exact boundary, in a training too short for its momentum to ring down.

    The loss swings through its minimum in one tenth and is at its peak in another.
    """
    assert lr < 2 + 2 * momentum
    (result,) = evaluate([Point(lr)], Bowl((1.0,)), steps=steps, momentum=momentum)
    assert result.verdict.regime is Regime.STABLE


@pytest.mark.parametrize(
    ("points", "task", "message"),
    [
        ([(0.1, 0, 0)], TINY_CNN, "points = (0.1, 0, 0): a list of points; write [Point(lr=0.1)]"),
        (Point(0.1), TINY_CNN, "points = Point(lr=0.1"),
        ([Point(0.1)], None, "task = None: neither a task nor the name of one"),
        ([Point(0.1)], type(TINY_CNN), "task = <class"),
    ],
)
def test_other_things_than_points_and_tasks(points: Any, task: Any, message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        evaluate(points, task)

"""What every task that comes along has to do, each at its smallest size.

A new task needs an entry in `SMALLEST` and nothing else here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_evaluate import with_interruptions

from stabmap.testing import check_task
from trainables.domain import InputError, Point, Regime, Training
from trainables.evaluate import evaluate
from trainables.pack import PackRun
from trainables.tasks import BUILT_IN, Described, Task, get_task

TINY_GAME: dict[str, Any] = {
    "samples": 4, "batch_size": 2, "width": 1, "generator_width": 1, "generated": 2,
}  # fmt: skip
#: Options of the smallest size, and a learning rate at which it trains.
SMALLEST: dict[str, tuple[dict[str, Any], float]] = {
    "biggan": (TINY_GAME, 0.01),
    "sngan": (TINY_GAME, 0.01),
    "beltrami": ({"points": 5}, 0.004),
    "crowd-csrnet": (
        {"samples": 2, "held_out": 2, "size": 16, "batch_size": 2, "width": 0.03},
        0.001,
    ),
    "crowd-mcnn": ({"samples": 2, "held_out": 2, "size": 16, "batch_size": 2, "width": 0.1}, 0.001),
    "cifar-regression": ({"samples": 8, "batch_size": 4}, 0.001),
    "cifar-tanh": ({"samples": 8, "width": 3}, 0.01),
    "deep-linear": ({"depth": 2, "eigenvalues": [2, 1], "start": "random"}, 0.1),
    "heat": ({"points": 4}, 0.3),
    "linear-one-layer-cnn": ({"image": 4, "kernel": 2, "error": 0.5}, 0.001),
    "mnist-cnn": ({"samples": 8, "layers": 2}, 0.1),
    "mnist-convex-pairs": ({"samples": 8, "batch_size": 4, "filters": 1, "depth": 1}, 0.001),
    "mnist-mlp": ({"samples": 8, "width": 3}, 0.1),
    "mnist-regression": ({"samples": 4, "batch_size": 2}, 0.001),
    "modular-addition": ({"modulus": 5, "width": 3}, 0.1),
    "one-layer-cnn": ({"image": 4, "kernel": 2}, 0.1),
    "quadratic-attractors": ({"samples": 4}, 0.1),
    "resnet": ({"depth": 8, "width": 2, "samples": 8, "batch_size": 4}, 0.001),
    "scalar-example": ({"number": 2}, 0.05),
    "two-layer-relu": ({"points": 4, "units": 3}, 0.05),
    "vgg16-bn": ({"width": 1, "samples": 8, "batch_size": 4}, 0.001),
}

#: Those that start from what the paper says, whatever the seed.
FIXED_START = {"beltrami", "heat"}

each = pytest.mark.parametrize("name", sorted(BUILT_IN))


def smallest(name: str) -> tuple[Task, Point]:
    options, lr = SMALLEST[name]
    return get_task(name, **options), Point(lr)


def test_every_task_is_here() -> None:
    assert set(SMALLEST) == set(BUILT_IN)


@each
def test_it_says_what_it_is(name: str) -> None:
    task, _ = smallest(name)
    assert isinstance(task, Task)
    assert isinstance(task, Described)
    assert task.name == name
    assert any(year in task.source for year in ("20", "own"))
    assert task.needs is None or task.needs
    assert task.metric_name
    assert hash(task) == hash(smallest(name)[0])
    assert task == smallest(name)[0]


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_trains_and_gets_a_verdict(name: str, dtype: str) -> None:
    task, point = smallest(name)
    calm, wild = evaluate([point, Point(1e12, 0.0, 1.0)], task, steps=20, dtype=dtype)
    assert calm.verdict.regime != Regime.DIVERGENT
    assert wild.verdict.regime == Regime.DIVERGENT
    evidence = calm.replicates[0].evidence
    first, last = evidence["initial_loss"], evidence["final_loss"]
    assert first is not None
    assert last is not None
    assert last < first or task.batch is not None
    assert isinstance(evidence["metric"], float)


@each
def test_its_check_passes(name: str) -> None:
    task, _ = smallest(name)
    report = check_task(task)
    assert report.ok, str(report)


@each
def test_a_checkpoint_goes_on_to_the_bit(name: str) -> None:
    """Saved, read back and continued in a new object at many steps."""
    task, point = smallest(name)
    training = Training(steps=20, momentum=0.5)
    points = [point, Point(point.lr / 2, 0.0, 0.01)]
    straight = PackRun(points, task, training)
    straight.advance()
    results, interruptions = with_interruptions(points, task, training, seed=1)
    assert interruptions >= 4
    assert repr(results) == repr(straight.results)


@each
def test_the_start_depends_on_the_seed_alone(name: str) -> None:
    task, _ = smallest(name)
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    first = list(task.module(5).parameters())
    task.train_data()
    task.test_data()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    torch.manual_seed(2)
    again, other = (list(task.module(seed).parameters()) for seed in (5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(p.dtype == torch.float64 for p in first)
    differ = any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert differ == (name not in FIXED_START)


@each
def test_its_data_fit_its_network(name: str) -> None:
    task, _ = smallest(name)
    inputs, targets = task.train_data()
    outputs = task.module(0)(inputs).detach()
    assert outputs.dtype == torch.float64
    assert task.loss.value(outputs, targets).shape == ()
    inputs, targets = task.test_data()
    assert np.isfinite(task.metric(task.module(0).eval()(inputs).detach(), targets))


@each
def test_it_is_regularised_or_says_why_not(name: str) -> None:
    task, point = smallest(name)
    layer = task.regularised_layer
    points = [Point(point.lr, 0.01)]
    if layer is None:
        with pytest.raises(InputError, match=rf"^stabiliser\.layers = None: {name} has no layer"):
            evaluate(points, task, steps=20)
        return
    task.module(0).get_submodule(layer)
    (result,) = evaluate(points, task, steps=20)
    assert result.verdict.regime in set(Regime)

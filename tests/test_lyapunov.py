"""Lyapunov exponents against the logarithms of known multipliers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from toys import Bowl

from trainables.domain import Point, Training
from trainables.dynamics.lyapunov import lyapunov_exponent
from trainables.tasks import Task, get_task


def exponent(task: Task, lr: float, weight_decay: float, **settings: Any) -> float:
    return lyapunov_exponent(task, Point(lr, 0.0, weight_decay), Training(**settings), seed=7)


@pytest.mark.parametrize(
    ("lr", "dtype", "steps", "expected"),
    [
        (0.01, "float64", 200, math.log(0.8)),
        (0.02, "float64", 200, math.log(0.6)),
        (0.101, "float64", 400, math.log(1.02)),
        (0.12, "float64", 400, math.log(1.4)),
        (0.01, "float32", 200, math.log(0.8)),
        (0.02, "float32", 200, math.log(0.6)),
        (0.101, "float32", 400, math.log(1.02)),
        (0.12, "float32", 80, math.log(1.4)),
    ],
)
def test_one_layer_cnn(lr: float, dtype: str, steps: int, expected: float) -> None:
    """Acceptance row 16; above 0.1 the multiplier is that of weight decay alone."""
    task = get_task("one-layer-cnn", image=64)
    assert exponent(task, lr, 20.0, dtype=dtype, steps=steps) == pytest.approx(expected, abs=1e-3)


def test_chaos_and_a_periodic_window() -> None:
    """Positive where the training is chaotic, negative on the cycle of period two."""
    task = get_task("one-layer-cnn", image=64)
    chaotic = exponent(task, 0.05, 20.0, dtype="float64")
    assert chaotic == pytest.approx(0.37, abs=0.06)
    assert exponent(task, 0.04, 20.0, dtype="float64") < -0.5


def test_near_the_boundary() -> None:
    """The slowest multiplier, 1 - 0.031 x sharpness, with the curvature of a 64 x 64 image."""
    task = get_task("one-layer-cnn", image=64)
    expected = [math.log(abs(1 - 0.031 * h)) for h in (61.9712, 62.0245)]
    found = exponent(task, 0.031, 20.0, dtype="float64")
    assert min(expected) - 2e-3 < found < max(expected) + 2e-3


@pytest.mark.parametrize(("lr", "h"), [(0.3, 0.5), (1.7, 1.0), (2.5, 1.0)])
def test_bowl(lr: float, h: float) -> None:
    """ln of the largest |1 - lr h_i|; decoupled and coupled decay act as they should."""
    task = Bowl((1.0, 0.5))
    found = exponent(task, lr, 0.0, dtype="float64", steps=300)
    assert found == pytest.approx(math.log(abs(1 - lr * h)), abs=1e-3)
    with_decay = exponent(task, 0.1, 2.0, dtype="float64", steps=300)
    assert with_decay == pytest.approx(math.log(1 - 0.1 * 2.5), abs=1e-3)


@pytest.mark.parametrize(
    ("lr", "momentum", "steps"), [(0.02, 0.5, 2000), (0.4, 0.9, 2000), (3.9, 0.9, 200)]
)
def test_bowl_with_momentum(lr: float, momentum: float, steps: int) -> None:
    """The perturbation lives in the momentum too, and is pulled back there by the same factor."""
    matrix = np.array([[1 - lr, -lr * momentum], [1.0, momentum]])
    rate = math.log(np.abs(np.linalg.eigvals(matrix)).max())
    found = exponent(Bowl((1.0,)), lr, 0.0, dtype="float64", steps=steps, momentum=momentum)
    assert found == pytest.approx(rate, abs=5e-3)


def test_depends_on_the_seed_alone() -> None:
    task = get_task("mnist-mlp", samples=20, batch_size=5, width=4)
    torch.manual_seed(1)
    one = exponent(task, 0.1, 0.0, steps=20)
    torch.manual_seed(2)
    assert exponent(task, 0.1, 0.0, steps=20) == one
    other = lyapunov_exponent(task, Point(0.1), Training(steps=20), seed=8)
    assert other != one


def test_a_training_that_overflows_has_none() -> None:
    task = get_task("one-layer-cnn", image=64)
    assert math.isnan(exponent(task, 10.0, 20.0, steps=60))

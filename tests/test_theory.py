"""Exact phases of the one-layer CNN: tables, brute simulation and the network itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.theory import OneLayerCNN, overlays
from trainables.dynamics.curvature import sharpness
from trainables.tasks import get_task

#: weight decay, kappa*, curvature along c, largest stable and largest bounded rate.
TABLE = [
    (5.0, 5.7451, 19.647, 0.101796, 0.4),
    (10.0, 4.7670, 35.130, 0.056932, 0.2),
    (20.0, 3.86524, 61.998, 0.032259, 0.1),
    (40.0, 3.03096, 103.644, 0.019297, 0.05),
    (100.0, 1.95346, 158.450, 0.012622, 0.02),
    (200.0, 0.93903, 94.748, 0.01, 0.01),
]


def objective(kappa: Tensor, weight_decay: float, width: int, share: float) -> Tensor:
    """w^2 (loss + decay term) along the pattern, whose derivative moves kappa."""

    def swish(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    logit = share * swish(kappa) + (1 - share) * swish(-kappa)
    return width**2 * torch.nn.functional.softplus(-logit) + 0.5 * weight_decay * kappa**2


def derivatives(kappa: float, theory: OneLayerCNN) -> tuple[float, float]:
    x = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    value = objective(x, theory.weight_decay, theory.width, theory.share)
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    return float(first.detach()), float(second)


def iterate(theory: OneLayerCNN, lr: float, steps: int, start: float) -> list[float]:
    """The scalar recursion, written out in plain Python."""
    x, path = start, [start]
    p = theory.share
    for _ in range(steps):
        s = 1 / (1 + math.exp(-x))
        value = p * x * s - (1 - p) * x * (1 - s)
        up, down = s + x * s * (1 - s), (1 - s) - x * s * (1 - s)
        slope = p * up - (1 - p) * down
        pull = -(theory.width**2) * slope / (1 + math.exp(value))
        x -= lr * (pull + theory.weight_decay * x)
        path.append(x)
    return path


@pytest.mark.parametrize(("weight_decay", "kappa", "curvature", "stable", "bounded"), TABLE)
def test_table_of_phases(
    weight_decay: float, kappa: float, curvature: float, stable: float, bounded: float
) -> None:
    """Acceptance row 14: both boundaries as functions of the weight decay."""
    theory = OneLayerCNN(weight_decay)
    assert theory.equilibrium == pytest.approx(kappa, abs=1e-4)
    assert theory.curvature(theory.equilibrium) == pytest.approx(curvature, abs=2e-3)
    assert theory.largest_stable_lr == pytest.approx(stable, abs=1e-6)
    assert theory.largest_bounded_lr == pytest.approx(bounded, rel=1e-12)


def test_the_papers_setting() -> None:
    """Acceptance row 13: equilibrium, sharpness and boundary at weight decay 20."""
    theory = OneLayerCNN(20.0)
    assert theory.equilibrium == pytest.approx(3.86524, abs=6e-6)
    assert theory.sharpness == pytest.approx(61.9979, abs=6e-5)
    assert theory.largest_stable_lr == pytest.approx(0.0322592, abs=6e-8)


@pytest.mark.parametrize(
    ("share", "kappa", "sharp"),
    [(25313 / 50625, 3.865217, 61.998), (545 / 1089, 3.864350, 62.0245)],
    ids=["256", "64"],
)
def test_images_of_finite_size(share: float, kappa: float, sharp: float) -> None:
    theory = OneLayerCNN(20.0, share=share)
    assert theory.equilibrium == pytest.approx(kappa, abs=2e-6)
    assert theory.sharpness == pytest.approx(sharp, abs=6e-4)


@pytest.mark.parametrize("weight_decay", [256.0, 300.0, 1000.0])
def test_strong_decay_leaves_only_zero(weight_decay: float) -> None:
    theory = OneLayerCNN(weight_decay)
    assert theory.equilibrium == pytest.approx(0.0, abs=2e-6)
    assert theory.curvature(0.0) == pytest.approx(weight_decay - 256)
    assert theory.largest_bounded_lr == 2 / weight_decay
    assert theory.largest_stable_lr == pytest.approx(2 / weight_decay, rel=1e-9)


@pytest.mark.parametrize("theory", [OneLayerCNN(20.0), OneLayerCNN(3.0, 8, 0.6)], ids=str)
@pytest.mark.parametrize("kappa", [-30.0, -2.5, 0.0, 0.3, 4.0, 30.0])
def test_gradient_and_curvature_against_autograd(kappa: float, theory: OneLayerCNN) -> None:
    first, second = derivatives(kappa, theory)
    assert theory.gradient(kappa) == pytest.approx(first, rel=1e-10, abs=1e-10)
    assert theory.curvature(kappa) == pytest.approx(second, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("weight_decay", [row[0] for row in TABLE])
def test_the_recursion_settles_below_the_boundary_and_not_above(weight_decay: float) -> None:
    theory = OneLayerCNN(weight_decay)
    edge = theory.largest_stable_lr
    below = iterate(theory, 0.99 * edge, 3000, theory.equilibrium + 0.01)
    assert below[-1] == pytest.approx(theory.equilibrium, abs=1e-9)
    above = iterate(theory, 1.01 * edge, 3000, theory.equilibrium + 0.01)
    if theory.sharpness > weight_decay:  # at 200 the boundary lies in the other directions
        assert max(abs(x - theory.equilibrium) for x in above[-10:]) > 0.05
        assert max(map(abs, above)) < 1e3


@pytest.mark.parametrize("weight_decay", [5.0, 20.0])
def test_the_recursion_is_bounded_below_two_over_decay_and_not_above(weight_decay: float) -> None:
    theory = OneLayerCNN(weight_decay)
    edge = theory.largest_bounded_lr
    assert max(map(abs, iterate(theory, 0.98 * edge, 3000, 1.0))) < 1e3
    factor = abs(1 - 1.02 * edge * weight_decay)
    assert factor**2000 > 1e15  # all that decay alone multiplies
    assert factor == pytest.approx(1.04)


@pytest.mark.parametrize("side", [9, 12])
def test_sharpness_of_the_network_at_its_minimum(side: int) -> None:
    """The Hessian of the real network, found by Lanczos, is the one that theory writes down."""
    task = get_task("one-layer-cnn", image=side, kernel=4, distinct=False)
    patches = (side - 3) ** 2
    share = ((patches + 1) // 2) / patches
    theory = OneLayerCNN(0.05, width=4, share=share)
    rows, columns = np.indices((4, 4))
    pattern = np.where((rows + columns) % 2 == 0, -1.0, 1.0)
    module = task.module(0)
    (kernel,) = module.parameters()
    with torch.no_grad():
        kernel.copy_(torch.from_numpy(theory.equilibrium * pattern.reshape(1, -1) / 16))
    inputs, targets = task.train_data()
    loss = task.loss.value(module(inputs), targets) + 0.025 * (kernel**2).sum()
    (gradient,) = torch.autograd.grad(loss, kernel)
    assert float(gradient.abs().max()) < 1e-12
    top = sharpness(module, task.loss.value, inputs, targets)
    assert top + 0.05 == pytest.approx(theory.sharpness, rel=2e-4)


def test_overlays() -> None:
    decays = np.array([0.0, 20.0, 300.0])
    exact, bound = overlays("one-layer-cnn", {"kernel": 32}, "sgd", 0.0, "coupled")
    assert exact.exact
    assert not bound.exact
    np.testing.assert_allclose(exact.lr(decays)[1:], [0.0322592, 2 / 300], rtol=1e-5)
    assert math.isfinite(exact.lr(decays)[0])
    np.testing.assert_allclose(bound.lr(decays), [math.inf, 0.1, 2 / 300])
    assert "2 / weight decay" in bound.label
    small, _ = overlays("one-layer-cnn", {"kernel": 8}, "sgd", 0.0, "coupled")
    assert small.lr(decays)[1] == OneLayerCNN(20.0, 8).largest_stable_lr


@pytest.mark.parametrize(
    ("task", "optimiser", "momentum", "decay", "labels"),
    [
        ("one-layer-cnn", "sgd", 0.9, "coupled", ["theory: 3.8 / weight decay"]),
        ("one-layer-cnn", "sgd", 0.0, "decoupled", ["theory: 2 / weight decay"]),
        ("mnist-mlp", "nesterov", 0.9, "coupled", ["theory: 1.36 / weight decay"]),
        ("mnist-mlp", "adam", 0.9, "coupled", []),
        ("mnist-mlp", "adam", 0.9, "decoupled", ["theory: 2 / weight decay"]),
    ],
)
def test_overlays_promise_nothing_that_does_not_hold(
    task: str, optimiser: str, momentum: float, decay: str, labels: list[str]
) -> None:
    found = overlays(task, {}, optimiser, momentum, decay)
    assert [overlay.label for overlay in found] == labels
    assert not any(overlay.exact for overlay in found)

"""Verdicts of three families with exact regimes, and those exact regimes against brute force.

The full comparison is `benchmarks/verdict_validation.py`; here are clear cases and the reductions.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are scripts, not a package

from benchmarks._families import (
    UNKNOWN,
    Case,
    DeepLinear,
    Quadratic,
    TwoLayerReLU,
    deep_linear_map,
    deep_linear_nets,
    iterate,
    matrix_map,
    quadratics,
    relu_map,
    two_layer_relu_nets,
    update_radius,
)
from trainables.domain import Point
from trainables.evaluate import evaluate

POSITIVE = (0.2, 0.5, 1.0, 1.9)
BOTH = (-1.5, -0.3, 0.4, 1.7)


def descend(task: Any, lr: float, decay: float, steps: int) -> list[list[Any]]:
    """Weights of the full network at every step of gradient descent with autograd, float64."""
    module = task.module(0)
    inputs, targets = task.train_data()
    path = []
    for _ in range(steps):
        path.append([p.detach().numpy().copy() for p in module.parameters()])
        loss = task.loss.value(module(inputs), targets)
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for p, g in zip(module.parameters(), gradients, strict=True):
                p.sub_(lr * (g + decay * p))
    return path


# ------------------------------------------------------------------ truths


@pytest.mark.parametrize("rest", [0.0, 1.5])
@pytest.mark.parametrize("rotated", [True, False])
def test_a_quadratic_has_the_curvatures_and_the_rest_loss_that_it_names(
    rotated: bool, rest: float
) -> None:
    task = Quadratic((3.0, 1.0, 0.2), rest, rotated, draw=4)
    x, y = task.train_data()
    hessian = x.T @ x / len(x)
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian.numpy()), [0.2, 1.0, 3.0])
    best = torch.linalg.lstsq(x, y).solution
    assert float(task.loss.value(x @ best, y)) == pytest.approx(rest, abs=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(("optimiser", "beta"), [("sgd", 0.0), ("sgd", 0.9), ("nesterov", 0.7)])
def test_the_radius_is_the_pace_of_torchs_own_optimiser(
    optimiser: str, beta: float, decoupled: bool
) -> None:
    """Growth of one parameter under `torch.optim.SGD`, the decoupled decay applied by hand."""
    for lr in (0.3, 4.5):
        w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        coupled = 0.0 if decoupled else 0.3
        rule = torch.optim.SGD(
            [w], lr, momentum=beta, weight_decay=coupled, nesterov=optimiser == "nesterov"
        )
        sizes = []
        for _ in range(130):
            w.grad = 1.5 * w.detach().clone()
            if decoupled:
                with torch.no_grad():
                    w.mul_(1 - lr * 0.3)
            rule.step()
            sizes.append(abs(float(w.detach())))
        # The envelope, since complex eigenvalues swing.
        pace = np.log(max(sizes[100:]) / max(sizes[20:50])) / 80
        radius = update_radius(lr, 1.5, optimiser, beta, 0.3, decoupled)
        assert pace == pytest.approx(np.log(radius), abs=0.02)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (0.5, 1.2)])
def test_layers_follow_their_eigenvalues(scales: tuple[float, ...], decay: float) -> None:
    task = DeepLinear((2.0, 0.7, 0.2), scales, draw=1)
    x, y = task.train_data()
    values, basis = np.linalg.eigh((y.T @ torch.linalg.inv(x.T)).numpy())
    np.testing.assert_allclose(values, [0.2, 0.7, 2.0])
    rule = deep_linear_map(task, decay)
    state, matrices = rule.start[None], matrix_map(task, decay).start[None]
    lr = np.array([0.11])
    for weights in descend(task, 0.11, decay, 12):
        for i, weight in enumerate(weights):
            inside = basis.T @ weight @ basis
            np.testing.assert_allclose(inside, np.diag(state[0, ::-1, i]), atol=1e-12)
            np.testing.assert_allclose(inside[::-1, ::-1], matrices[0, i], atol=1e-12)
        state, matrices = rule.step(state, lr), matrix_map(task, decay).step(matrices, lr)


@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("inputs", [POSITIVE, BOTH])
def test_relu_nets_follow_the_map(inputs: tuple[float, ...], decay: float) -> None:
    """Also through steps at which units change sides."""
    targets = tuple(1.3 * x + 0.2 * (-1) ** i for i, x in enumerate(inputs))
    task = TwoLayerReLU((0.5, 0.9, -0.4, -0.7), (0.6, -0.8, 0.3, 0.9), inputs, targets)
    rule = relu_map(task, decay)
    for lr in (0.1, 1.1):
        state = rule.start[None]
        path = descend(task, lr, decay, 12)
        for inward, outward in path:
            np.testing.assert_allclose(state[0], [inward[:, 0], outward[0]], rtol=1e-9)
            module = task.module(0)
            with torch.no_grad():
                for p, value in zip(module.parameters(), (inward, outward), strict=True):
                    p.copy_(torch.from_numpy(value))
            x, y = task.train_data()
            squares = (inward**2).sum() + (outward**2).sum()
            loss = float(task.loss.value(module(x), y).detach()) + 0.5 * decay * squares
            assert rule.objective(state)[0] == pytest.approx(loss)
            state = rule.step(state, np.array([lr]))
    assert (path[0][0] * path[-1][0] < 0).any()


@pytest.mark.parametrize(("depth", "target"), [(2, 4.0), (3, 4.0), (5, 2.0), (3, 0.6)])
def test_the_first_edge_of_a_deep_linear_net_is_the_bound_of_nar_and_sastry(
    depth: int, target: float
) -> None:
    """2 / (L rho^(2 (L - 1) / L)), acceptance row 21."""
    rule = deep_linear_map(DeepLinear((target,), (1.0,) * depth), 0.0)
    edge = 2 / (depth * target ** (2 * (depth - 1) / depth))
    fates = iterate(rule, rule.start, edge * np.array([0.5, 0.99, 1.01]))
    assert fates.names.tolist() == ["stable", "stable", "restrained"]


def test_the_edge_with_weight_decay_is_the_curvature_at_the_minimum() -> None:
    """w^(L-2) (w^L - rho) = -decay there, and the sharpness is L w^(2L-2) - (L - 2) decay."""
    task, decay = DeepLinear((2.0,), (1.0,) * 3), 0.1
    w = max(np.roots([1.0, 0, 0, -2.0, decay]).real)
    edge = 2 / (3 * w**4 - decay)
    rule = deep_linear_map(task, decay)
    fates = iterate(rule, rule.start, edge * np.array([0.99, 1.01]))
    assert fates.names.tolist() == ["stable", "restrained"]


def test_the_edge_of_a_relu_net_whose_units_are_even() -> None:
    """out = in: the only minimum in reach has sharpness 2 S b, so the edge is 1 / (S b)."""
    task = TwoLayerReLU((0.3, 0.4), (0.3, 0.4), POSITIVE, tuple(0.8 * x for x in POSITIVE))
    edge = 1 / (0.8 * np.mean(np.square(POSITIVE)))
    rule = relu_map(task, 0.0)
    fates = iterate(rule, rule.start, edge * np.array([0.5, 0.98, 1.02]))
    assert fates.names.tolist() == ["stable", "stable", "restrained"]


def test_fates_of_known_orbits() -> None:
    """Rest, a cycle, escape, and a plateau below and a death above ten times the first loss."""
    rule = relu_map(TwoLayerReLU((0.5,), (0.5,), POSITIVE, POSITIVE), 0.0)
    fates = iterate(rule, rule.start, np.array([0.1, 0.9, 8.0]) / np.mean(np.square(POSITIVE)))
    assert fates.names.tolist() == ["stable", "stable", "flat"]
    near = relu_map(TwoLayerReLU((0.9,), (1.0,), POSITIVE, POSITIVE), 0.0)
    assert iterate(near, near.start, np.array([30.0])).names.tolist() == ["dead"]
    linear = deep_linear_map(DeepLinear((3.0,), (1.0, 1.0)), 0.0)
    fates = iterate(linear, linear.start, np.array([0.3, 0.4, 0.8]))
    assert fates.names.tolist() == ["stable", "restrained", "divergent"]
    # An odd depth overshoots to w < 0, from where 0 is neared as 1 / t: nobody's regime.
    odd = deep_linear_map(DeepLinear((0.1,), (1.0,) * 3), 0.0)
    assert iterate(odd, odd.start, np.array([1.2])).names.tolist() == [UNKNOWN]


# ------------------------------------------------------------------ verdicts


def _clear(cases: list[Case], names: dict[str, tuple[tuple[float, str], ...]]) -> list[Any]:
    found = {case.name: case for case in cases}
    return [pytest.param(found[name], rates, id=name) for name, rates in names.items()]


CLEAR = [
    *_clear(
        deep_linear_nets(),
        {
            "two layers": ((0.15, "stable"), (0.23, "stable"), (0.28, "restrained")),
            "five layers": ((0.04, "stable"), (0.06, "restrained"), (0.25, "divergent")),
            "three layers, decay": ((0.2, "stable"), (0.32, "restrained"), (0.8, "divergent")),
        },
    ),
    *_clear(
        two_layer_relu_nets(),
        {
            "one even unit": ((0.5, "stable"), (0.9, "restrained"), (2.0, "stable")),
            "six units, two signs": ((0.5, "stable"), (1.0, "divergent")),
            "three units and two that never act": ((0.6, "stable"), (0.85, "restrained")),
        },
    ),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("case", "rates"), CLEAR)
def test_clear_cases_get_their_exact_regime(
    case: Case, rates: tuple[tuple[float, str], ...], dtype: Any
) -> None:
    lrs = np.array([lr for lr, _ in rates])
    expected = [regime for _, regime in rates]
    exact = case.sketch(lrs).tolist()
    assert [{"flat": "stable"}.get(fate, fate) for fate in exact] == expected
    points = [Point(lr, 0.0, case.weight_decay) for lr in lrs.tolist()]
    found = evaluate(points, case.task, steps=400, dtype=dtype, **case.training)
    assert [result.verdict.regime.value for result in found] == expected


@pytest.mark.parametrize("number", [2, 5, 8, 16])
def test_quadratics_change_regime_at_the_radius_of_one(number: int) -> None:
    """Three per cent off, rotated and not, every rule and kind of decay, momentum up to 0.9."""
    case = quadratics()[number]
    edge = case.high / 5
    lrs = edge * np.array([0.5, 0.97, 1.03])
    assert case.truth(lrs).tolist() == ["stable", "stable", "divergent"]
    points = [Point(lr, 0.0, case.weight_decay) for lr in lrs.tolist()]
    found = evaluate(points, case.task, steps=400, dtype="float64", **case.training)
    assert [result.verdict.regime.value for result in found] == case.truth(lrs).tolist()

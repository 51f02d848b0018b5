"""Verdicts of three families with exact regimes, and those exact regimes against brute force.

The full comparison is `benchmarks/verdict_validation.py`; here are clear cases and the reductions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
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
from trainables.domain import Point, Reason
from trainables.evaluate import evaluate

POSITIVE = (0.2, 0.5, 1.0, 1.9)
BOTH = (-1.5, -0.3, 0.4, 1.7)
#: Steps in which a map that starts one per cent off its edge has settled.
SHORT = 4000


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
    fates = iterate(rule, rule.start, edge * np.array([0.5, 0.99, 1.01]), SHORT)
    assert fates.names.tolist() == ["stable", "stable", "restrained"]


def test_the_edge_with_weight_decay_is_the_curvature_at_the_minimum() -> None:
    """w^(L-2) (w^L - rho) = -decay there, and the sharpness is L w^(2L-2) - (L - 2) decay."""
    task, decay = DeepLinear((2.0,), (1.0,) * 3), 0.1
    w = max(np.roots([1.0, 0, 0, -2.0, decay]).real)
    edge = 2 / (3 * w**4 - decay)
    rule = deep_linear_map(task, decay)
    fates = iterate(rule, rule.start, edge * np.array([0.99, 1.01]), SHORT)
    assert fates.names.tolist() == ["stable", "restrained"]


def test_the_edge_of_a_relu_net_whose_units_are_even() -> None:
    """out = in: the only minimum in reach has sharpness 2 S b, so the edge is 1 / (S b)."""
    task = TwoLayerReLU((0.3, 0.4), (0.3, 0.4), POSITIVE, tuple(0.8 * x for x in POSITIVE))
    edge = 1 / (0.8 * np.mean(np.square(POSITIVE)))
    rule = relu_map(task, 0.0)
    fates = iterate(rule, rule.start, edge * np.array([0.5, 0.98, 1.02]), SHORT)
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


FAMILY = {
    "quadratic": quadratics,
    "deep linear": deep_linear_nets,
    "two-layer ReLU": two_layer_relu_nets,
}


@cache
def build(family: Callable[[], list[Case]], name: str) -> Case:
    """The case of that name."""
    return next(case for case in family() if case.name == name)


def regimes(case: Case, lrs: list[float], dtype: Any, steps: int = 400, **more: Any) -> list[str]:
    """What the verdict calls a case at some learning rates."""
    points = [Point(lr, 0.0, case.weight_decay) for lr in lrs]
    settings = {"lyapunov": False, **case.training, **more}
    found = evaluate(points, case.task, steps=steps, dtype=dtype, **settings)
    return [result.verdict.regime.value for result in found]


def exact(case: Case, lrs: list[float]) -> list[str]:
    """Regimes by the case's own map or matrix."""
    return list(_exact(case.family, case.name, tuple(lrs)))


@cache
def _exact(family: str, name: str, lrs: tuple[float, ...]) -> tuple[str, ...]:
    calm = {"flat": "stable", "dead": "restrained"}
    fates = build(FAMILY[family], name).sketch(np.array(lrs))
    return tuple(calm.get(fate, fate) for fate in fates.tolist())


CLEAR: dict[Callable[[], list[Case]], dict[str, dict[float, str]]] = {
    deep_linear_nets: {
        "two layers": {0.15: "stable", 0.23: "stable", 0.28: "restrained"},
        "five layers": {0.04: "stable", 0.06: "restrained", 0.25: "divergent"},
        "three layers, decay": {0.2: "stable", 0.32: "restrained", 0.8: "divergent"},
    },
    two_layer_relu_nets: {
        "one even unit": {0.5: "stable", 0.9: "restrained", 2.0: "stable"},
        "six units, two signs": {0.5: "stable", 1.0: "divergent"},
        # The last one is at rest far above its start.
        "three units and two that never act": {
            0.6: "stable",
            0.85: "restrained",
            1.29: "restrained",
        },
    },
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family in CLEAR for name in CLEAR[family]]
)
def test_clear_cases_get_their_exact_regime(
    family: Callable[[], list[Case]], name: str, dtype: Any
) -> None:
    case = build(family, name)
    lrs, expected = list(CLEAR[family][name]), list(CLEAR[family][name].values())
    assert exact(case, lrs) == expected
    assert regimes(case, lrs, dtype) == expected


@pytest.mark.parametrize(
    "name",
    [
        "plain 0, decay 0.1 decoupled",
        "sgd 0.5, decay 0.1 decoupled",
        "sgd 0.99, decay 0.1 decoupled",
        "nesterov 0.9, decay 0.1 coupled",
    ],
)
def test_quadratics_change_regime_at_the_radius_of_one(name: str) -> None:
    """Three per cent off, rotated and not, both rules and both kinds of decay."""
    case = build(quadratics, name)
    lrs = [case.ends[1] / 5 * factor for factor in (0.5, 0.97, 1.03)]
    assert exact(case, lrs) == ["stable", "stable", "divergent"]
    assert regimes(case, lrs, "float64") == ["stable", "stable", "divergent"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("decay", ["0", "0.1"])
def test_momentum_that_rings_through_the_whole_training_is_stable(decay: str, dtype: Any) -> None:
    """0.99^200 is 0.13: with that momentum nothing falls tenfold in half of 400 steps."""
    case = build(quadratics, f"sgd 0.99, decay {decay} coupled")
    lrs = [case.ends[1] / 5 * factor for factor in (0.3, 0.8, 0.97, 1.03)]
    expected = ["stable", "stable", "stable", "divergent"]
    assert exact(case, lrs) == expected
    assert regimes(case, lrs, dtype, sharpness=False) == expected


@pytest.mark.parametrize("factor", [0.96, 0.97])
def test_last_digits_that_dance_in_float32_near_the_edge_are_no_oscillation(factor: float) -> None:
    """Plain descent to a loss of 0 ends in a cycle of two steps in the last digits."""
    case = build(quadratics, "plain 0, decay 0 coupled")
    lrs = [case.ends[1] / 5 * factor]
    assert exact(case, lrs) == regimes(case, lrs, "float32") == ["stable"]


@pytest.mark.parametrize("lr", [2.44339, 3.81934])
def test_weights_that_decay_to_nothing_in_float32_do_not_separate(lr: float) -> None:
    """Units of a net that has died, under weight decay: down to numbers that lose their digits."""
    case = build(two_layer_relu_nets, "four units, decay")
    assert exact(case, [lr]) == regimes(case, [lr], "float32") == ["stable"]


@pytest.mark.parametrize("factor", [1.003, 1.005])
def test_a_divergence_that_is_slow_is_seen(factor: float) -> None:
    """(1 + 2 (factor - 1))^(2 * 0.45 * 400): 9 and 37 times the loss; ten is the boundary."""
    case = build(quadratics, "plain 0, decay 0 coupled")
    lrs = [2 * factor]
    assert exact(case, lrs) == ["divergent"]
    expected = "divergent" if factor == 1.005 else "restrained"
    assert regimes(case, lrs, "float64", sharpness=False) == [expected]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_sharpness_sees_the_edge_before_the_loss_does(dtype: Any) -> None:
    """Two in a thousand above it the cycle has not opened by step 400."""
    case = build(deep_linear_nets, "three layers, decay")
    lrs = [0.283555]
    assert exact(case, [0.999 / 1.002 * lrs[0], *lrs]) == ["stable", "restrained"]
    assert regimes(case, lrs, dtype) == ["restrained"]
    # The loss alone, twice as far above.
    assert regimes(case, [0.284121], dtype, sharpness=False) == ["restrained"]


@pytest.mark.parametrize(
    ("family", "name", "lr"),
    [
        (two_layer_relu_nets, "one even unit", 0.763217),
        (deep_linear_nets, "two layers", 0.250497),
        (deep_linear_nets, "five layers", 0.0436175),
    ],
)
def test_a_cycle_of_two_steps_shows_in_the_loss_alone(
    family: Callable[[], list[Case]], name: str, lr: float
) -> None:
    """Four in a thousand above the edge, without the sharpness; such a cycle damps twins."""
    case = build(family, name)
    assert exact(case, [lr / 1.008, lr]) == ["stable", "restrained"]
    assert regimes(case, [lr], "float32", sharpness=False) == ["restrained"]


def test_twins_part_in_chaos_and_not_in_a_cycle() -> None:
    case = build(deep_linear_nets, "two layers, one eigenvalue")
    chaos, cycle, rest = (Point(lr) for lr in (0.62045, 0.35, 0.2))
    assert exact(case, [chaos.lr, cycle.lr, rest.lr]) == ["restrained", "restrained", "stable"]
    found = evaluate([chaos, cycle, rest], case.task, steps=400, dtype="float64")
    evidence = [result.replicates[0].evidence["amplification"] for result in found]
    assert evidence[0] == pytest.approx(1, abs=0.15)
    assert all(a is not None and a < 0 for a in evidence[1:])
    assert found[0].verdict.reason is Reason.AMPLIFIED

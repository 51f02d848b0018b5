"""Thresholds of linear stability against companion matrices and published numbers."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.theory import decay_bound, quadratic_threshold
from trainables.dynamics.optimisers import Optimiser
from trainables.dynamics.thresholds import (
    largest_stable_eigenvalue,
    preconditioner_scaling,
    stability_ratio,
)

Name = Literal["sgd", "nesterov", "adam"]
Decay = Literal["coupled", "decoupled"]


def test_adam_scaling() -> None:
    """P = diag(sqrt(v_hat) + eps), with v_hat corrected for its start at 0."""
    rule = Optimiser("adam", 0.1, momentum=0.9)
    gradient = torch.tensor([0.5, -2.0, 0.0])
    _, slots = rule.step(gradient, gradient, rule.init(gradient), 0)
    first = preconditioner_scaling(rule, [slots], 1)
    assert first is not None
    np.testing.assert_allclose(first, [0.5**-0.5, 2.0**-0.5, 1e4], rtol=1e-5)
    v = torch.tensor([0.04], dtype=torch.float64)
    expected = (math.sqrt(0.04 / (1 - 0.999**7)) + 1e-8) ** -0.5
    later = preconditioner_scaling(rule, [(v, v)], 7)
    assert later is not None
    np.testing.assert_allclose(later, [expected], rtol=1e-13)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "adadelta"])
def test_scaling_is_the_slope_of_the_step(name: Name) -> None:
    """With the second moments held, the update is -lr P^(-1) g: the steps of torch.optim."""
    slots = torch.tensor([0.3, 2.0], dtype=torch.float64), torch.tensor([0.5, 0.01]).double()
    rule = Optimiser(name, 0.1, momentum=0.0)
    parameter = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    kinds = {
        "adam": torch.optim.Adam([parameter], lr=0.1, betas=(0.0, 0.999)),
        "rmsprop": torch.optim.RMSprop([parameter], lr=0.1),
        "adadelta": torch.optim.Adadelta([parameter], lr=0.1),
    }
    names = {
        "adam": ("exp_avg", "exp_avg_sq"),
        "rmsprop": ("square_avg",),
        "adadelta": ("square_avg", "acc_delta"),
    }
    optimiser = kinds[name]
    state = dict(zip(names[name], (s.clone() for s in slots), strict=False))
    optimiser.state[parameter] = {"step": torch.tensor(1e6), **state}
    tiny = torch.full((2,), 1e-9, dtype=torch.float64)  # too small to move the second moments
    parameter.grad = tiny.clone()
    optimiser.step()
    slope = -parameter.detach() / (0.1 * tiny)
    decayed = {"adam": 0.999, "rmsprop": 0.99, "adadelta": 0.9}[name]
    held = tuple(s * (decayed if i == (name == "adam") else 1) for i, s in enumerate(slots))
    scaling = preconditioner_scaling(rule, [held], 10**6)
    assert scaling is not None
    np.testing.assert_allclose(scaling**2, slope, rtol=1e-6)


def test_no_preconditioner_no_scaling() -> None:
    assert preconditioner_scaling(Optimiser("sgd", 0.1), [()], 3) is None


# ------------------------------------------------------------------ thresholds


def radius(rule: Optimiser, h: float) -> float:
    """Spectral radius of one step on 1/2 h p^2: a matrix on (p, buffer).

    For Adam the preconditioner is frozen at 1 and the first moment is bias-free.
    """
    lr, lam, b = rule.lr, rule.weight_decay, rule.momentum
    coupled = rule.decay == "coupled"
    shrink = 1.0 if coupled else 1 - lr * lam
    c = h + lam if coupled else h  # gradient c p
    gain = 1 - b if rule.name == "adam" else 1.0
    if rule.name == "nesterov":  # p' = s p - lr (g + b (b m + g))
        matrix = [[shrink - lr * (1 + b) * c, -lr * b * b], [c, b]]
    else:  # m' = b m + gain g; p' = s p - lr m'
        matrix = [[shrink - lr * gain * c, -lr * b], [gain * c, b]]
    return float(np.abs(np.linalg.eigvals(np.array(matrix))).max())


rules = st.builds(
    Optimiser,
    name=st.sampled_from(["sgd", "nesterov", "adam"]),
    lr=st.floats(1e-3, 1.0),
    weight_decay=st.sampled_from([0.0, 0.01, 0.5, 1.5]),
    k=st.just(1),
    momentum=st.sampled_from([0.0, 0.3, 0.9, 0.99]),
    decay=st.sampled_from(["coupled", "decoupled"]),
)


@given(rules)
def test_the_threshold_is_where_the_step_stops_to_contract(rule: Optimiser) -> None:
    """Companion matrix, theory and ratio agree: the ratio is 1 where the radius crosses 1."""
    h = quadratic_threshold(rule.lr, rule.name, rule.momentum, rule.weight_decay, rule.decay)
    assert h > 0
    step = 1e-4 * (h + rule.weight_decay)
    assert radius(rule, h - step) < 1 < radius(rule, h + step)
    # Adam's ratio wants the eigenvalue with coupled decay, since both are preconditioned.
    shift = rule.weight_decay if rule.name == "adam" and rule.decay == "coupled" else 0.0
    assert stability_ratio(rule, h + shift) == pytest.approx(1.0, rel=1e-12)
    assert stability_ratio(rule, h + step + shift) > 1 > stability_ratio(rule, h - step + shift)
    assert largest_stable_eigenvalue(rule) == pytest.approx(h + shift, rel=1e-9)


@given(
    name=st.sampled_from(["sgd", "nesterov", "adam", "rmsprop", "adadelta"]),
    lr=st.floats(-300, 30).map(lambda x: 10**x),
    weight_decay=st.floats(-30, 30).map(lambda x: 10**x),
    decay=st.sampled_from(["coupled", "decoupled"]),
)
def test_the_largest_stable_eigenvalue_next_to_any_decay(
    name: Name, lr: float, weight_decay: float, decay: Decay
) -> None:
    rule = Optimiser(name, lr, weight_decay=weight_decay, momentum=0.5, decay=decay)
    found = largest_stable_eigenvalue(rule)
    terms = max(stability_ratio(rule, max(weight_decay, 1.0)), 1.0)
    assert stability_ratio(rule, found) == pytest.approx(1.0, abs=1e-9 * terms)


def test_next_to_a_learning_rate_of_0_everything_is_stable() -> None:
    assert largest_stable_eigenvalue(Optimiser("sgd", 5e-324)) == math.inf


@pytest.mark.parametrize(
    ("name", "momentum", "weight_decay", "decay", "expected"),
    [
        ("sgd", 0.0, 0.0, "coupled", 20.0),
        ("sgd", 0.9, 0.0, "coupled", 38.0),
        ("nesterov", 0.9, 0.0, "coupled", 13.5714),
        ("adam", 0.9, 0.0, "coupled", 380.0),
        ("sgd", 0.9, 3.0, "coupled", 35.0),
        ("sgd", 0.9, 3.0, "decoupled", 32.3),
        ("nesterov", 0.9, 3.0, "decoupled", 11.5357),
        ("adam", 0.9, 3.0, "decoupled", 323.0),
    ],
)
def test_thresholds_at_rate_one_tenth(
    name: Name, momentum: float, weight_decay: float, decay: Decay, expected: float
) -> None:
    threshold = quadratic_threshold(0.1, name, momentum, weight_decay, decay)
    assert threshold == pytest.approx(expected, rel=4e-6)


@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam"])
def test_decay_bound(name: Name, momentum: float, decay: Decay) -> None:
    """Where a parameter without curvature starts to grow."""
    bounds = decay_bound(np.array([0.0, 0.5, 20.0]), name, momentum, decay)
    assert bounds[0] == math.inf
    for lam, bound in zip((0.5, 20.0), bounds[1:], strict=True):
        if name == "adam" and decay == "coupled":
            assert bound == math.inf
            continue
        inside, outside = (
            radius(Optimiser(name, f * bound, lam, 1, momentum, decay), 0.0) for f in (0.999, 1.001)
        )
        assert inside <= 1 < outside
        assert quadratic_threshold(bound, name, momentum, lam, decay) == pytest.approx(
            0.0, abs=1e-9
        )

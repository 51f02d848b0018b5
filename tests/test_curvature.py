"""Sharpness against dense Hessians, thresholds against spectral radii of the step's matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from analysis.theory import decay_bound, quadratic_threshold
from trainables.domain import StabmapError
from trainables.dynamics.curvature import adam_scaling, sharpness, stability_ratio
from trainables.dynamics.optimisers import Optimiser

Name = Literal["sgd", "nesterov", "adam"]
Decay = Literal["coupled", "decoupled"]
Array = NDArray[np.float64]


# ------------------------------------------------------------------ sharpness


class Diagonal(nn.Module):
    """A row of parameters that passes through, so that the loss alone sets the Hessian."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.ones(1, size, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.row


def quadratic(matrix: Array) -> Callable[[Tensor, Tensor], Tensor]:
    """1/2 o^T H o, whatever the targets."""
    hessian = torch.from_numpy(matrix)
    return lambda outputs, targets: 0.5 * (outputs @ hessian @ outputs.T).sum()


def of_quadratic(
    matrix: Array, scaling: Array | None = None, decay: float = 0.0, start: float = 1.0
) -> float:
    size = len(matrix)
    module = Diagonal(size)
    with torch.no_grad():
        module.row.fill_(start)
    one = torch.ones(1, size, dtype=torch.float64)
    return sharpness(module, quadratic(matrix), one, one, scaling, decay)


def dense_hessian(module: nn.Module, loss: Callable[[Tensor], Tensor], inputs: Tensor) -> Array:
    """By torch.autograd.functional, over all parameters in one row."""
    names = [name for name, _ in module.named_parameters()]
    values = [p.detach() for p in module.parameters()]

    def objective(row: Tensor) -> Tensor:
        parts = torch.split(row, [v.numel() for v in values])
        filled = {
            name: part.view(v.shape) for name, part, v in zip(names, parts, values, strict=True)
        }
        return loss(functional_call(module, filled, (inputs,)))

    flat = torch.cat([v.reshape(-1) for v in values])
    hessian = torch.autograd.functional.hessian(objective, flat)  # type: ignore[no-untyped-call]
    return np.asarray(hessian.numpy(), dtype=np.float64)


def tiny_net() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    return net, inputs, torch.arange(7) % 2


@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize("scaled", [False, True])
def test_sharpness_of_a_network(scaled: bool, decay: float) -> None:
    """D (H + decay) D, from products alone, to the four digits that are promised."""
    net, inputs, targets = tiny_net()
    hessian = dense_hessian(net, lambda o: nn.functional.cross_entropy(o, targets), inputs)
    scaling = np.random.RandomState(0).uniform(0.5, 3, len(hessian)) if scaled else None
    d = np.diag(np.ones(len(hessian)) if scaling is None else scaling)
    expected = np.linalg.eigvalsh(d @ (hessian + decay * np.eye(len(d))) @ d)[-1]
    found = sharpness(net, nn.functional.cross_entropy, inputs, targets, scaling, decay)
    assert found == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 30])
def test_sharpness_is_the_most_positive_eigenvalue(size: int) -> None:
    """Not the largest in size, for which a negative one would do."""
    random = np.random.RandomState(size)
    basis = np.linalg.qr(random.randn(size, size))[0]
    values = np.linspace(-10, 3, size) if size > 1 else np.array([3.0])
    assert of_quadratic(basis @ np.diag(values) @ basis.T) == pytest.approx(3.0, rel=2e-4)
    assert of_quadratic(-np.diag(np.arange(1.0, size + 1))) == pytest.approx(-1.0, rel=2e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
def test_sharpness_of_a_flat_loss_is_0(size: int) -> None:
    """A saturated or dead network has a Hessian of exact zeros."""
    assert of_quadratic(np.zeros((size, size))) == 0.0


@pytest.mark.parametrize("size", [2, 3, 10, 100])
@pytest.mark.parametrize("curvature", [-1.0, 1.0])
def test_sharpness_where_all_directions_are_alike(curvature: float, size: int) -> None:
    """Every vector is an eigenvector: Lanczos ends after one product."""
    assert of_quadratic(curvature * np.eye(size)) == pytest.approx(curvature, rel=1e-9)


@pytest.mark.parametrize("size", [3, 1000])
def test_sharpness_of_a_hessian_of_rank_one(size: int) -> None:
    """Lanczos ends after two products here: the one-layer CNN has such a Hessian."""
    c = np.where(np.arange(size) % 2 == 0, -1.0, 1.0)
    assert of_quadratic(np.outer(c, c) * 5 / size) == pytest.approx(5.0, rel=2e-4)


@pytest.mark.parametrize("size", [1, 2, 10])
def test_sharpness_where_the_hessian_is_not_finite(size: int) -> None:
    assert math.isnan(of_quadratic(np.full((size, size), math.nan)))


@pytest.mark.parametrize("curvature", [5.0, -5.0])
def test_sharpness_repeats_itself(curvature: float) -> None:
    """Also where Lanczos runs out of directions and goes on with a random one."""
    net, inputs, targets = tiny_net()
    found = {sharpness(net, nn.functional.cross_entropy, inputs, targets) for _ in range(3)}
    assert len(found) == 1
    c = np.where(np.arange(16) % 2 == 0, -1.0, 1.0)
    for matrix in (np.outer(c, c), np.eye(4), np.eye(30), np.eye(100)):
        assert len({of_quadratic(curvature * matrix) for _ in range(6)}) == 1


def test_sharpness_without_curvlinops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "curvlinops", None)
    with pytest.raises(StabmapError, match=r"curvlinops-for-pytorch.*install it.*sharpness: false"):
        of_quadratic(np.eye(3))


def test_adam_scaling() -> None:
    """P = diag(sqrt(v_hat) + eps), with v_hat corrected for its start at 0."""
    rule = Optimiser("adam", 0.1, momentum=0.9)
    gradient = torch.tensor([0.5, -2.0, 0.0])
    _, slots = rule.step(gradient, gradient, rule.init(gradient), 0)
    first = adam_scaling(rule, slots[1], 1)
    np.testing.assert_allclose(first, [0.5**-0.5, 2.0**-0.5, 1e4], rtol=1e-5)
    v = torch.tensor([0.04], dtype=torch.float64)
    expected = (math.sqrt(0.04 / (1 - 0.999**7)) + 1e-8) ** -0.5
    np.testing.assert_allclose(adam_scaling(rule, v, 7), [expected], rtol=1e-13)


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

"""Update rules against torch.optim, and the laws of the perturbation integer k."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainables.domain import Training
from trainables.dynamics.optimisers import Optimiser

Name = Literal["sgd", "nesterov", "adam", "rmsprop", "adadelta"]
Decay = Literal["coupled", "decoupled"]

#: name and momentum of each rule.
RULES: tuple[tuple[Name, float], ...] = (
    ("sgd", 0.0),
    ("sgd", 0.9),
    ("nesterov", 0.9),
    ("adam", 0.9),
    ("rmsprop", 0.0),
    ("rmsprop", 0.6),
    ("adadelta", 0.0),
)
DECAYS: tuple[Decay, ...] = ("coupled", "decoupled")
SIZE = 50


def bowl(seed: int, dtype: torch.dtype) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A start and the gradient of a convex function that is no quadratic."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64) / SIZE**0.5
    hessian, start = (root @ root.T).to(dtype), start.to(dtype)
    return start, lambda p: hessian @ p + torch.sin(p)


def run(
    rule: Optimiser, start: Tensor, gradient: Callable[[Tensor], Tensor], steps: int
) -> list[Tensor]:
    """Parameters after each step."""
    parameter, slots, path = start, rule.init(start), []
    for count in range(steps):
        parameter, slots = rule.step(parameter, gradient(parameter), slots, count)
        path.append(parameter)
    return path


def torch_run(
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    start: Tensor,
    gradient: Callable[[Tensor], Tensor],
    steps: int,
    shrink: float = 1.0,
) -> list[Tensor]:
    """The same with an optimiser of torch; `shrink` scales the parameters before each step."""
    parameter = start.clone().requires_grad_()
    optimiser = make([parameter])
    path = []
    for _ in range(steps):
        parameter.grad = gradient(parameter.detach())
        with torch.no_grad():
            parameter.mul_(shrink)
        optimiser.step()
        path.append(parameter.detach().clone())
    return path


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("name", "momentum"), RULES)
def test_agrees_with_torch(name: Name, momentum: float, decay: Decay, weight_decay: float) -> None:
    """Decoupled decay is in torch's Adam only: elsewhere the parameters are scaled by hand."""
    lr = 0.05
    coupled = decay == "coupled"

    def make(parameters: list[Tensor]) -> torch.optim.Optimizer:
        if name == "adam":
            kind = torch.optim.Adam if coupled else torch.optim.AdamW
            return kind(parameters, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)
        lam = weight_decay if coupled else 0.0
        if name == "rmsprop":
            return torch.optim.RMSprop(parameters, lr=lr, momentum=momentum, weight_decay=lam)
        if name == "adadelta":
            return torch.optim.Adadelta(parameters, lr=lr, weight_decay=lam)
        return torch.optim.SGD(
            parameters,
            lr=lr,
            momentum=momentum,
            nesterov=name == "nesterov",
            weight_decay=lam,
        )

    start, gradient = bowl(1, torch.float64)
    shrink = 1.0 if coupled or name == "adam" else 1 - lr * weight_decay
    expected = torch_run(make, start, gradient, 100, shrink)
    for k in (1, 3):
        rule = Optimiser(name, lr, weight_decay, k, momentum, decay)
        for ours, theirs in zip(run(rule, start, gradient, 100), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@given(
    rule=st.sampled_from(RULES),
    decay=st.sampled_from(DECAYS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    k=st.sampled_from([1, 3, 5, 7]),
    power=st.sampled_from([1, 2, 3, 10]),
    lr=st.floats(1e-4, 0.5),
    weight_decay=st.sampled_from([0.0, 5e-4, 0.7]),
    seed=st.integers(0, 2**31),
)
def test_powers_of_two_change_no_bit(
    rule: tuple[Name, float],
    decay: Decay,
    dtype: torch.dtype,
    k: int,
    power: int,
    lr: float,
    weight_decay: float,
    seed: int,
) -> None:
    """Acceptance row 5, as a property."""
    name, momentum = rule
    start, gradient = bowl(seed, dtype)
    one, other = (
        run(Optimiser(name, lr, weight_decay, i, momentum, decay), start, gradient, 40)
        for i in (k, 2**power * k)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "momentum"), RULES)
def test_k_1_2_4_8_1024_and_3_6(name: Name, momentum: float, dtype: torch.dtype) -> None:
    """Acceptance row 5: the listed integers, and an odd k is felt at the size of a rounding."""
    start, gradient = bowl(0, dtype)

    def end(k: int) -> Tensor:
        lr = 1.0 if name == "adadelta" else 0.05  # its own steps are a thousand times smaller
        return run(Optimiser(name, lr, 5e-4, k, momentum), start, gradient, 200)[-1]

    for k in (2, 4, 8, 1024):
        assert torch.equal(end(1), end(k))
    assert torch.equal(end(3), end(6))
    for k in (3, 5, 7):
        gap = float((end(k) - end(1)).abs().max())
        # RMSprop steps by signs near a minimum, which turns roundings into whole steps.
        assert 0 < gap < (1000 if name == "rmsprop" else 100) * torch.finfo(dtype).eps


@pytest.mark.parametrize("k", [1, 3, 7, 12])
@pytest.mark.parametrize("decay", DECAYS)
def test_each_product_is_rounded_on_its_own(decay: Decay, k: int) -> None:
    """p - (lr / k) (k g) in float32, against numpy, to the bit; decoupled decay knows no k."""
    f = np.float32
    random = np.random.RandomState(k)
    p, g = random.randn(2, 1000).astype(f)
    lr, lam = 0.037, 0.3
    ours, _ = Optimiser("sgd", lr, lam, k, decay=decay).step(
        torch.from_numpy(p), torch.from_numpy(g), (), 0
    )
    if decay == "coupled":
        expected = p - f(lr / k) * (f(k) * (g + f(lam) * p))
    else:
        expected = p * f(1 - lr * lam) - f(lr / k) * (f(k) * g)
    assert np.array_equal(ours.numpy(), expected)


@pytest.mark.parametrize(("name", "momentum"), RULES)
def test_the_state_never_sees_k(name: Name, momentum: float) -> None:
    start, gradient = bowl(3, torch.float32)
    states = []
    for k in (1, 3):
        rule = Optimiser(name, 0.1, 0.2, k, momentum)
        slots = rule.init(start)
        for count in range(3):  # always at the same place
            _, slots = rule.step(start, gradient(start), slots, count)
        states.append(slots)
    expected = {"adam": 2, "adadelta": 2, "rmsprop": 2 if momentum else 1}
    assert len(states[0]) == expected.get(name, 1 if momentum else 0)
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize(("name", "momentum"), RULES)
@pytest.mark.parametrize("decay", DECAYS)
def test_arguments_are_left_alone(name: Name, momentum: float, decay: Decay) -> None:
    start, gradient = bowl(4, torch.float64)
    rule = Optimiser(name, 0.1, 0.2, 3, momentum, decay)
    g = gradient(start)
    slots = rule.step(start, g, rule.init(start), 0)[1]
    kept = [t.clone() for t in (start, g, *slots)]
    new, _ = rule.step(start, g, slots, 1)
    assert all(torch.equal(a, b) for a, b in zip(kept, (start, g, *slots), strict=True))
    assert not torch.equal(new, start)


def test_rule_of_a_training() -> None:
    training = Training(optimiser="nesterov", momentum=0.5, decay="decoupled")
    rule = Optimiser.of(training, 0.1, 0.2, 3)
    assert (rule.name, rule.lr, rule.weight_decay, rule.k) == ("nesterov", 0.1, 0.2, 3)
    assert (rule.momentum, rule.decay) == (0.5, "decoupled")
    assert Optimiser.of(Training(optimiser="adam"), 0.1, 0.0, 1).momentum == 0.9
    assert Optimiser.of(Training(), 0.1, 0.0, 1).momentum == 0.0
    rule = Optimiser.of(Training(optimiser="adamw", beta2=0.99, eps=1e-6), 0.1, 0.2, 1)
    assert (rule.name, rule.decay, rule.beta2, rule.eps) == ("adam", "decoupled", 0.99, 1e-6)


@pytest.mark.parametrize(
    ("name", "beta2", "eps"),
    [("adam", 0.95, 1e-4), ("rmsprop", 0.9, 1e-3), ("adadelta", 0.5, 1e-2)],
)
def test_second_moment_settings_are_those_of_torch(name: Name, beta2: float, eps: float) -> None:
    """beta2 is Adam's second beta, RMSprop's alpha and AdaDelta's rho."""

    def make(parameters: list[Tensor]) -> torch.optim.Optimizer:
        if name == "adam":
            return torch.optim.Adam(parameters, lr=0.05, betas=(0.9, beta2), eps=eps)
        if name == "rmsprop":
            return torch.optim.RMSprop(parameters, lr=0.05, alpha=beta2, eps=eps)
        return torch.optim.Adadelta(parameters, lr=0.05, rho=beta2, eps=eps)

    start, gradient = bowl(2, torch.float64)
    momentum = 0.9 if name == "adam" else 0.0
    rule = Optimiser(name, 0.05, momentum=momentum, beta2=beta2, eps=eps)
    expected = torch_run(make, start, gradient, 50)
    for ours, theirs in zip(run(rule, start, gradient, 50), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "adadelta"])
def test_a_gradient_of_zero_leaves_a_finite_derivative(name: Name) -> None:
    """The stability regulariser differentiates a step by the gradient, also where that is 0."""
    zero = torch.zeros(3, dtype=torch.float64)
    rule = Optimiser(name, 0.1)
    gradient = zero.clone().requires_grad_()
    new, _ = rule.step(zero, gradient, rule.init(zero), 0)
    (slope,) = torch.autograd.grad(new.sum(), gradient)
    assert bool(torch.isfinite(slope).all())


def test_subnormal_numbers_are_the_limit_of_the_law() -> None:
    """Where k g or lr / k leaves the normal range, bits are lost: 2^n is no longer harmless."""
    lr = 1.2345e-37  # lr / 1024 is subnormal in float32
    zero, gradient = torch.zeros(1), torch.tensor([1.2345])
    near, far = (Optimiser("sgd", lr, k=k).step(zero, gradient, (), 0)[0] for k in (1, 1024))
    assert not torch.equal(near, far)
    assert float(far) == pytest.approx(float(near), rel=1e-3)

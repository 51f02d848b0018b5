"""Sharpness, trace and directional curvature against dense Hessians."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from trainables.domain import InputError, StabmapError
from trainables.dynamics.curvature import (
    Estimate,
    directional_sharpness,
    hessian_trace,
    sharpness,
)
from trainables.dynamics.hessian_products import PRICE, Products
from trainables.dynamics.lanczos import Lanczos

Array = NDArray[np.float64]
Problem = tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]
BOTH: list[Products] = ["exact", "difference"]


# ------------------------------------------------------------------ problems


class Diagonal(nn.Module):
    """A row of parameters that passes through, so that the loss alone sets the Hessian."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.ones(1, size, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.row


def quadratic(matrix: Array, at: Array | None = None) -> Problem:
    """A loss 1/2 o^T H o, whatever the targets, at the parameters in question."""
    hessian = torch.from_numpy(matrix)
    module = Diagonal(len(matrix))
    if at is not None:
        module.row = nn.Parameter(torch.from_numpy(at)[None])
    one = torch.ones(1, len(matrix), dtype=torch.float64)
    return module, lambda outputs, _: 0.5 * (outputs @ hessian @ outputs.T).sum(), one, one


def of_quadratic(matrix: Array, **options: Any) -> Estimate:
    return sharpness(*quadratic(matrix), **options)


def rotated(values: Array, seed: int = 0) -> Array:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    basis = np.linalg.qr(np.random.RandomState(seed).randn(len(values), len(values)))[0]
    return np.asarray(basis @ np.diag(values) @ basis.T)


def tiny_net(activation: type[nn.Module] = nn.Tanh) -> Problem:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    return net, nn.functional.cross_entropy, inputs, torch.arange(7) % 2


def wide_net(size: int = 40) -> Problem:
    """Enough parameters that Lanczos ends long before it has seen all directions."""
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(10, size), nn.Tanh(), nn.Linear(size, 3)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    inputs = torch.randn(20, 10, generator=generator, dtype=torch.float64)
    return net, nn.functional.cross_entropy, inputs, torch.arange(20) % 3


def dense_hessian(problem: Problem) -> Array:
    """By torch.autograd.functional, over all parameters in one row."""
    module, loss, inputs, targets = problem
    names = [name for name, _ in module.named_parameters()]
    values = [p.detach() for p in module.parameters()]

    def objective(row: Tensor) -> Tensor:
        parts = torch.split(row, [v.numel() for v in values])
        filled = {
            name: part.view(v.shape) for name, part, v in zip(names, parts, values, strict=True)
        }
        return loss(functional_call(module, filled, (inputs,)), targets)

    flat = torch.cat([v.reshape(-1) for v in values])
    hessian = torch.autograd.functional.hessian(objective, flat)  # type: ignore[no-untyped-call]
    return np.asarray(hessian.numpy(), dtype=np.float64)


def gradient_of(problem: Problem) -> Array:
    module, loss, inputs, targets = problem
    parts = torch.autograd.grad(loss(module(inputs), targets), list(module.parameters()))
    return np.asarray(torch.cat([part.reshape(-1) for part in parts]).numpy())


# ------------------------------------------------------------------ sharpness


def spectra(smallest: int, largest: int) -> st.SearchStrategy[list[float]]:
    number = st.floats(-100, 100).map(lambda x: round(x, 2))
    return st.lists(number, min_size=smallest, max_size=largest)


@pytest.mark.parametrize("products", BOTH)
@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize("scaled", [False, True])
def test_sharpness_of_a_network(scaled: bool, decay: float, products: Products) -> None:
    """D (H + decay) D, from products alone, within the error that is named."""
    problem = tiny_net()
    hessian = dense_hessian(problem)
    scaling = np.random.RandomState(0).uniform(0.5, 3, len(hessian)) if scaled else None
    d = np.diag(np.ones(len(hessian)) if scaling is None else scaling)
    values, vectors = np.linalg.eigh(d @ (hessian + decay * np.eye(len(d))) @ d)
    found = sharpness(*problem, scaling, decay, products=products)
    assert -1e-6 * values[-1] <= values[-1] - found.value <= found.error <= 1e-3 * found.value
    assert found.value == pytest.approx(values[-1], rel=1e-4)
    assert found.vector is not None
    assert np.linalg.norm(found.vector) == pytest.approx(1)
    assert abs(found.vector @ vectors[:, -1]) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("products", BOTH)
@pytest.mark.parametrize("start", ["random", "gradient"])
@pytest.mark.parametrize("confidence", [None, 0.999])
def test_sharpness_of_a_wider_network(
    confidence: float | None, start: Any, products: Products
) -> None:
    problem = wide_net()
    truth = np.linalg.eigvalsh(dense_hessian(problem))[-1]
    found = sharpness(*problem, confidence=confidence, start=start, products=products)
    assert -1e-6 * truth <= truth - found.value <= found.error <= 1e-3 * found.value
    assert found.gradients < 1 + 30 * PRICE[products]


def test_a_tighter_tolerance_costs_more_and_gives_more() -> None:
    problem = wide_net()
    truth = np.linalg.eigvalsh(dense_hessian(problem))[-1]
    found = [sharpness(*problem, rtol=rtol) for rtol in (0.3, 1e-2, 1e-6)]
    assert found[0].gradients < found[1].gradients < found[2].gradients
    assert found[0].error > found[1].error > found[2].error
    assert found[2].value == pytest.approx(truth, rel=1e-9)


def test_far_below_a_level_few_products_say_so() -> None:
    problem = wide_net()
    truth = np.linalg.eigvalsh(dense_hessian(problem))[-1]
    whole = sharpness(*problem, rtol=1e-6)
    far, near = (sharpness(*problem, rtol=1e-6, level=c * truth) for c in (2.0, 1.05))
    assert far.gradients < near.gradients < whole.gradients
    for found, level in ((far, 2 * truth), (near, 1.05 * truth)):
        assert truth - found.value <= found.error <= (level - found.value) / 2
    for level in (-math.inf, -1.0, 0.5 * truth, truth):
        assert sharpness(*problem, rtol=1e-6, level=level) == whole  # also to the bit
    assert sharpness(*problem, level=math.inf).gradients == 1 + PRICE["exact"]
    # Without a confidence the residual would do, which bounds nothing.
    assert sharpness(*problem, level=2 * truth, confidence=None) == far


@settings(max_examples=50)
@given(
    values=spectra(1, 25),
    level=st.floats(-150, 150),
    seed=st.integers(0, 99),
    rtol=st.sampled_from([0.1, 1e-3]),
)
def test_the_truth_lies_on_the_side_of_the_level_that_is_found(
    values: list[float], level: float, seed: int, rtol: float
) -> None:
    truth = max(values)
    rounding = 1e-12 * max(map(abs, values)) + 1e-300
    assume(abs(level - truth) > 2 * rtol * abs(truth) + 100 * rounding)
    found = of_quadratic(rotated(np.array(values), seed), rtol=rtol, level=level, seed=seed)
    assert -rounding <= truth - found.value <= found.error + rounding
    assert (found.value < level) is (truth < level)
    allowed = max(rtol * abs(found.value), (level - found.value) / 2, 100 * rounding)
    assert found.error <= allowed


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 30])
def test_sharpness_is_the_most_positive_eigenvalue(size: int) -> None:
    """Not the largest in size, for which a negative one would do."""
    values = np.linspace(-10, 3, size) if size > 1 else np.array([3.0])
    assert of_quadratic(rotated(values, size)).value == pytest.approx(3.0, rel=1e-3)
    below_zero = -np.diag(np.arange(1.0, size + 1))
    assert of_quadratic(below_zero).value == pytest.approx(-1.0, rel=1e-3)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
def test_sharpness_of_a_flat_loss_is_0(size: int) -> None:
    """A saturated or dead network has a Hessian of exact zeros."""
    found = of_quadratic(np.zeros((size, size)))
    assert (found.value, found.error, found.gradients) == (0.0, 0.0, 3)


def test_sharpness_of_a_loss_without_curvature() -> None:
    """A gradient that does not depend on the parameters has no graph to go back through."""
    one = torch.ones(1, 4, dtype=torch.float64)
    problem: Problem = (Diagonal(4), lambda outputs, _: outputs.sum(), one, one)
    assert sharpness(*problem).value == 0.0
    assert hessian_trace(*problem).value == 0.0
    assert directional_sharpness(*problem, np.ones(4)).value == 0.0


def test_parameters_that_the_loss_does_not_see() -> None:
    """Frozen ones are left out, unused ones have no curvature."""
    module, _, inputs, targets = tiny_net()
    module.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    module[0].weight.requires_grad_(False)  # type: ignore[index]

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, labels)

    found = sharpness(module, loss, inputs, targets)
    assert found.vector is not None
    assert len(found.vector) == 4 + 10 + 2
    bare, _, _, _ = tiny_net()
    hessian = dense_hessian((bare, loss, inputs, targets))[12:, 12:]
    assert found.value == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-3)


@pytest.mark.parametrize("size", [2, 3, 10, 100])
@pytest.mark.parametrize("curvature", [-1.0, 1.0])
def test_sharpness_where_all_directions_are_alike(curvature: float, size: int) -> None:
    """Every vector is an eigenvector: Lanczos ends after one product, or for rounding two."""
    found = of_quadratic(curvature * np.eye(size))
    assert found.value == pytest.approx(curvature, rel=1e-9)
    assert found.error < 1e-9
    assert found.gradients <= 5


@pytest.mark.parametrize("size", [3, 1000])
def test_sharpness_of_a_hessian_of_rank_one(size: int) -> None:
    """Lanczos ends after two products here: the one-layer CNN has such a Hessian."""
    c = np.where(np.arange(size) % 2 == 0, -1.0, 1.0)
    found = of_quadratic(np.outer(c, c) * 5 / size)
    assert found.value == pytest.approx(5.0, rel=1e-9)
    assert found.error < 1e-6
    assert found.gradients <= 7


@pytest.mark.parametrize("products", BOTH)
@pytest.mark.parametrize("number", [math.nan, math.inf, 1e300])
@pytest.mark.parametrize("size", [1, 2, 10])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_curvature_where_the_hessian_is_not_finite(
    size: int, number: float, products: Products
) -> None:
    """Or so large that its square is not."""
    problem = quadratic(np.full((size, size), number))
    found = sharpness(*problem, start="gradient", products=products)
    assert math.isnan(found.value)
    assert math.isnan(found.error)
    if number != 1e300:
        for budget in (30, 9):
            trace = hessian_trace(*problem, products=products, budget=budget)
            assert math.isnan(trace.value)
            assert math.isnan(trace.error)
        assert math.isnan(directional_sharpness(*problem, np.ones(size), products=products).value)


@pytest.mark.parametrize("curvature", [5.0, -5.0])
def test_sharpness_repeats_itself(curvature: float) -> None:
    """Also where Lanczos runs out of directions and goes on with rounding errors."""
    problem = tiny_net()
    assert len({sharpness(*problem).value for _ in range(3)}) == 1
    assert len({sharpness(*problem, seed=seed).value for seed in range(3)}) > 1
    c = np.where(np.arange(16) % 2 == 0, -1.0, 1.0)
    for matrix in (np.outer(c, c), np.eye(4), np.eye(30), np.eye(100)):
        assert len({of_quadratic(curvature * matrix) for _ in range(6)}) == 1


def test_sharpness_does_not_touch_what_it_measures() -> None:
    """Neither parameters nor their .grad nor PyTorch's random numbers."""
    problem = tiny_net()
    before = [p.detach().clone() for p in problem[0].parameters()]
    state = torch.random.get_rng_state()
    for products in BOTH:
        sharpness(*problem, products=products)
        hessian_trace(*problem, products=products)
    for parameter, old in zip(problem[0].parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)


# ------------------------------------------------------------------ errors


@settings(max_examples=50)
@given(
    values=spectra(1, 25),
    seed=st.integers(0, 99),
    rtol=st.sampled_from([0.5, 0.1, 1e-3]),
    budget=st.sampled_from([3, 5, 9, 128]),
)
def test_the_error_covers_the_truth(
    values: list[float], seed: int, rtol: float, budget: int
) -> None:
    """Any spectrum, any tolerance, any budget: truth in [value, value + error]."""
    truth = max(values)
    found = of_quadratic(rotated(np.array(values), seed), rtol=rtol, budget=budget, seed=seed)
    rounding = 1e-12 * max(map(abs, values)) + 1e-300
    assert -rounding <= truth - found.value <= found.error + rounding
    assert found.gradients <= budget
    if found.gradients + 2 <= budget:
        assert found.error <= max(rtol * abs(found.value), 100 * rounding)


@settings(max_examples=30)
@given(values=spectra(2, 25), seed=st.integers(0, 99))
def test_the_residual_covers_an_eigenvalue(values: list[float], seed: int) -> None:
    matrix = rotated(np.array(values), seed)
    found = of_quadratic(matrix, confidence=None, rtol=0.05, seed=seed)
    rounding = 1e-12 * max(map(abs, values)) + 1e-300
    assert min(abs(np.array(values) - found.value)) <= found.error + rounding
    assert found.vector is not None
    residual = np.linalg.norm(matrix @ found.vector - found.value * found.vector)
    assert residual <= found.error + rounding


def test_the_bound_fails_as_often_as_it_says() -> None:
    """Top eigenvalue 2 above a dense band: with a confidence of 0.5 the start often misses it.

    Half of the misses at most, and not none: a bound that never fails would be too wide.
    """
    values = np.append(np.linspace(-1, 1, 300), 2.0)
    problem = quadratic(np.diag(values))
    missed = 0
    for seed in range(100):
        found = sharpness(*problem, confidence=0.5, rtol=1e-12, budget=11, seed=seed)
        missed += found.value + found.error < 2
        sure = sharpness(*problem, confidence=0.999, rtol=1e-12, budget=11, seed=seed)
        assert sure.value + sure.error >= 2
    assert 5 <= missed <= 60


def test_the_bound_is_what_the_polynomials_say() -> None:
    """By hand for two products: p_0 = 1, p_1 = (x - a0) / b0, p_2 = ((x - a1) p_1 - b0) / b1."""
    matrix = np.diag([1.0, 2.0, 3.0, 7.0])
    lanczos = Lanczos(np.array([1.0, -1.0, 2.0, 0.3]))
    for _ in range(2):
        lanczos.extend(matrix @ lanczos.basis[-1])
    (a0, a1), (b0, b1) = lanczos.diagonal, lanczos.beside
    x = lanczos.bound(0.01)
    p1 = (x - a0) / b0
    p2 = ((x - a1) * p1 - b0) / b1
    assert 1 + p1**2 + p2**2 == pytest.approx(1 / 0.01**2, rel=1e-9)
    assert x > lanczos.top()[0]
    assert lanczos.bound(0.9) == lanczos.top()[0]  # cannot be missed: the top is the bound


def test_lanczos_keeps_its_basis_orthogonal() -> None:
    """60 steps on a spectrum whose top is found after a few: plain Lanczos would find it again."""
    values = np.append(np.linspace(0, 1, 199), 100.0)
    lanczos = Lanczos(np.random.RandomState(0).randn(200))
    for _ in range(60):
        lanczos.extend(values * lanczos.basis[-1])
    basis = np.array(lanczos.basis)
    assert np.abs(basis @ basis.T - np.eye(61)).max() < 1e-12


def test_a_spent_budget_shows_in_the_error() -> None:
    """Whatever the rule, an early end leaves an error above the tolerance, and one that covers."""
    problem = wide_net()
    truth = np.linalg.eigvalsh(dense_hessian(problem))[-1]
    for confidence in (None, 0.999):
        for budget in (3, 5, 7):
            found = sharpness(*problem, confidence=confidence, budget=budget)
            assert found.gradients == budget
            assert found.error > 1e-3 * found.value
            assert 0 < truth - found.value <= found.error


# ------------------------------------------------------------------ cost


@pytest.mark.parametrize("budget", [3, 4, 5, 8, 13, 14])
def test_an_exact_product_is_one_backward_pass_through_one_graph(
    budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is evaluated once; every other call is a product, and is counted as two."""
    module, loss, inputs, targets = wide_net()
    forward, backward, autograd = [], [], torch.autograd.grad

    def counted_loss(outputs: Tensor, labels: Tensor) -> Tensor:
        forward.append(1)
        return loss(outputs, labels)

    def counted_grad(*args: Any, **options: Any) -> Any:
        backward.append(1)
        return autograd(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted_grad)
    found = sharpness(module, counted_loss, inputs, targets, rtol=1e-12, budget=budget)
    assert len(forward) == 1
    assert found.gradients == 1 + 2 * (len(backward) - 1)
    assert budget - 2 < found.gradients <= budget


@pytest.mark.parametrize("budget", [6, 9, 14])
def test_a_difference_is_one_gradient(budget: int) -> None:
    module, loss, inputs, targets = wide_net()
    calls = []

    def counted(outputs: Tensor, labels: Tensor) -> Tensor:
        calls.append(1)
        return loss(outputs, labels)

    problem = (module, counted, inputs, targets)
    found = sharpness(*problem, rtol=1e-12, budget=budget, products="difference")
    assert found.gradients == len(calls) == budget
    calls.clear()
    found = hessian_trace(*problem, budget=budget, products="difference")
    assert found.gradients == len(calls) == budget
    calls.clear()
    found = directional_sharpness(*problem, gradient_of(problem), products="difference")
    assert found.gradients == len(calls) - 1 == 2  # one call for the direction


# ------------------------------------------------------------------ start


def test_a_start_near_the_eigenvector_saves_products() -> None:
    problem = wide_net()
    first = sharpness(*problem)
    assert first.vector is not None
    cold = sharpness(*problem, confidence=None, rtol=1e-2)
    warm = sharpness(*problem, confidence=None, rtol=1e-2, start=first.vector)
    assert warm.value == pytest.approx(first.value, rel=1e-2)
    assert warm.gradients <= 7 < cold.gradients


@pytest.mark.parametrize("length", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("products", BOTH)
def test_a_start_without_the_top_eigenvector_does_not_hide_it(
    length: float, products: Products
) -> None:
    """Exactly the eigenvector of a smaller eigenvalue: only the random part sees the other."""
    values = np.append(np.linspace(-1, 1, 50), [2.0, 3.0])
    start = np.zeros(52)
    start[50] = length
    problem = quadratic(np.diag(values))
    found = sharpness(*problem, start=start, products=products)
    assert found.value == pytest.approx(3.0, rel=1e-3)
    assert found.error <= 3e-3 + 1e-6


def test_the_gradient_is_a_start() -> None:
    """At a point along the top eigenvector the gradient is that eigenvector."""
    values = np.append(np.linspace(-1, 1, 400), 3.0)
    at = np.zeros(401)
    at[400] = -0.01
    problem = quadratic(np.diag(values), at)
    cold = sharpness(*problem, confidence=None, rtol=0.01)
    gradient = sharpness(*problem, confidence=None, rtol=0.01, start="gradient")
    assert gradient.gradients < cold.gradients
    assert gradient.value == pytest.approx(3.0, rel=0.01)
    flat = quadratic(np.diag(values), np.zeros(401))
    assert sharpness(*flat, start="gradient") == sharpness(*flat)  # no gradient, nothing known


# ------------------------------------------------------------------ differences


def test_kinks_spoil_differences_and_not_exact_products() -> None:
    """An input at the kink of a ReLU: the difference sees its jump as curvature."""
    module, loss, _, _ = tiny_net(nn.ReLU)
    with torch.no_grad():
        module[0].bias.zero_()  # type: ignore[index]
    inputs = torch.tensor([[1e-12, 0.0, 0.0], [0.0, 1e-12, 0.0]], dtype=torch.float64)
    problem = (module, loss, inputs, torch.tensor([0, 1]))
    truth = np.linalg.eigvalsh(dense_hessian(problem))[-1]
    assert sharpness(*problem).value == pytest.approx(truth, rel=1e-3)
    assert sharpness(*problem, products="difference").value > 10 * truth


def test_the_error_of_differences_counts_in() -> None:
    """All directions seen: Lanczos' own error is nothing, that of the products remains."""
    for problem in (tiny_net(), wide_net(3)):
        truth = np.linalg.eigvalsh(dense_hessian(problem))[-1]
        found = sharpness(*problem, products="difference", rtol=1e-13)
        assert 1e-12 * truth < abs(found.value - truth) <= found.error <= 1e-5 * truth
        exact = sharpness(*problem, rtol=1e-13)
        assert abs(exact.value - truth) <= exact.error + 1e-14 * truth <= 1e-12 * truth


# ------------------------------------------------------------------ trace


@pytest.mark.parametrize("products", BOTH)
def test_trace_with_a_product_for_each_parameter(products: Products) -> None:
    problem = tiny_net()
    truth = np.trace(dense_hessian(problem))
    found = hessian_trace(*problem, products=products)
    assert found.value == pytest.approx(truth, rel=1e-6)
    assert found.error == 0
    assert found.gradients == 1 + 26 * PRICE[products]


@settings(max_examples=25)
@given(values=spectra(0, 5), seed=st.integers(0, 99))
def test_trace_of_a_low_rank_is_exact(values: list[float], seed: int) -> None:
    """Rank at most a third of the products: nothing is left to the random signs."""
    matrix = rotated(np.append(values, np.zeros(60 - len(values))), seed)
    found = hessian_trace(*quadratic(matrix), budget=31, seed=seed)
    scale = sum(map(abs, values))
    assert abs(found.value - sum(values)) <= 1e-9 * scale
    assert found.error <= 1e-9 * scale
    assert found.gradients == 31


def test_trace_is_unbiased_and_its_error_is_its_spread() -> None:
    """Over 150 seeds: each within 4.5 of its errors (8 signs each), the mean within 4 of its."""
    matrix = rotated(np.concatenate([[40.0, -20.0], np.linspace(-2, 3, 60)]))
    problem = quadratic(matrix)
    truth = np.trace(matrix)
    found = [hessian_trace(*problem, budget=49, seed=seed) for seed in range(150)]
    values = np.array([f.value for f in found])
    errors = np.array([f.error for f in found])
    assert abs(values.mean() - truth) <= 4 * values.std() / math.sqrt(150)
    assert math.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.2)
    assert (abs(values - truth) <= 4.5 * errors).mean() >= 0.99
    assert all(f.gradients == 49 for f in found)
    assert found[3] == hessian_trace(*problem, budget=49, seed=3)


def test_trace_beats_random_signs_alone() -> None:
    """A spectrum that falls off: the sketch takes most of it out of the random part."""
    matrix = rotated(100.0 / np.arange(1, 101) ** 2)
    hutchinson = math.sqrt(2 * (np.linalg.norm(matrix) ** 2 - np.sum(np.diag(matrix) ** 2)) / 30)
    errors = [hessian_trace(*quadratic(matrix), seed=seed).error for seed in range(10)]
    assert np.mean(errors) < 0.1 * hutchinson


@pytest.mark.parametrize("budget", [9, 10, 12, 31, 32])
def test_trace_keeps_its_budget(budget: int) -> None:
    found = hessian_trace(*wide_net(), budget=budget)
    assert found.gradients == budget - (budget - 1) % 2
    assert 0 < found.error < math.inf


# ------------------------------------------------------------------ along a direction


@pytest.mark.parametrize("products", BOTH)
@pytest.mark.parametrize("length", [1e-200, 1.0, 1e200])
def test_directional_sharpness(length: float, products: Products) -> None:
    problem = tiny_net()
    hessian = dense_hessian(problem)
    direction = np.random.RandomState(1).randn(len(hessian))
    truth = direction @ hessian @ direction / (direction @ direction)
    found = directional_sharpness(*problem, length * direction, products=products)
    assert found.value == pytest.approx(truth, rel=1e-6)
    assert found.gradients == 1 + PRICE[products]
    if products == "exact":
        assert abs(found.value - truth) <= found.error <= 1e-12


def test_directional_sharpness_foretells_the_descent() -> None:
    """(L - L') / (lr ||g||^2) = 1 - lr s / 2 + O(lr^2), along the gradient."""
    problem = tiny_net()
    module, loss, inputs, targets = problem
    gradient = gradient_of(problem)
    curvature = directional_sharpness(*problem, gradient).value
    before = float(loss(module(inputs), targets).detach())
    start = [p.detach().clone() for p in module.parameters()]
    missing = []
    for lr in (1e-2, 5e-3):
        with torch.no_grad():
            parts = torch.split(torch.from_numpy(gradient), [p.numel() for p in start])
            for p, old, part in zip(module.parameters(), start, parts, strict=True):
                p.copy_(old - lr * part.view_as(old))
            after = float(loss(module(inputs), targets))
        descent = (before - after) / (lr * float(gradient @ gradient))
        missing.append(descent - (1 - lr * curvature / 2))
    assert abs(missing[0]) < 1e-2 * 5e-3 * abs(curvature)
    assert missing[0] / missing[1] == pytest.approx(4, rel=0.1)


# ------------------------------------------------------------------ float64, on copies


def estimates(problem: Problem, **options: Any) -> list[Estimate]:
    """All three, with both kinds of products."""
    size = sum(p.numel() for p in problem[0].parameters() if p.requires_grad)
    direction = np.random.RandomState(0).randn(size)
    found = []
    for products in BOTH:
        found.append(sharpness(*problem, products=products, **options))
        found.append(hessian_trace(*problem, products=products, budget=13, **options))
        found.append(directional_sharpness(*problem, direction, products=products, **options))
    return found


def same(some: list[Estimate], others: list[Estimate]) -> bool:
    keys = [[(e.value, e.error, e.gradients) for e in part] for part in (some, others)]
    return keys[0] == keys[1]


class Noisy(nn.Module):
    """Everything that a call changes or draws: normalisation, dropout, a counter in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)
        self.calls = nn.Buffer(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls.add_(1)
        hidden = nn.functional.dropout(self.norm(self.first(inputs)).tanh(), 0.5, self.training)
        return self.last(hidden) * self.calls  # type: ignore[no-any-return]


def noisy(seed: int = 0) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inputs, targets = torch.randn(9, 3), torch.randn(9, 1)
        return Noisy(), nn.functional.mse_loss, inputs, targets


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_is(training: bool) -> None:
    """Buffers, parameters, gradients, mode, dtype and torch's random numbers."""
    problem = noisy()
    module = problem[0].train(training)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    estimates(problem)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert module.training is training
    for name, value in module.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in module.parameters())


def test_dropout_has_one_mask_for_each_seed() -> None:
    """Whatever torch's own random numbers; all products of one call see one function."""
    problem = noisy()
    found = estimates(problem, seed=5)
    torch.rand(7)
    assert same(estimates(problem, seed=5), found)
    assert found[0].value == pytest.approx(found[3].value, rel=1e-3)  # exact and difference
    assert found[2].value == pytest.approx(found[5].value, rel=1e-6)
    along = {round(estimates(problem, seed=seed)[2].value, 9) for seed in range(4)}
    assert len(along) == 4
    problem[0].eval()
    still = {round(estimates(problem, seed=seed)[2].value, 9) for seed in range(4)}
    assert len(still) == 1


def test_the_mask_is_the_one_that_torch_draws_from_the_seed() -> None:
    """In training mode, against a dense Hessian under that seed."""
    module, loss, inputs, targets = noisy()
    double = Noisy().double()
    double.load_state_dict(module.state_dict())

    def seeded(outputs: Tensor, labels: Tensor) -> Tensor:
        return loss(outputs, labels)

    class Seeded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = double

        def forward(self, x: Tensor) -> Tensor:
            self.inner.calls.zero_()
            with torch.random.fork_rng():
                torch.manual_seed(3)
                return self.inner(x)  # type: ignore[no-any-return]

    hessian = dense_hessian((Seeded(), seeded, inputs.double(), targets.double()))
    found = sharpness(module, loss, inputs, targets, seed=3)
    assert found.value == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_dropout_on_a_gpu_leaves_its_random_numbers() -> None:
    module, loss, inputs, targets = noisy()
    problem = (module.cuda(), loss, inputs.cuda(), targets.cuda())
    state = torch.cuda.get_rng_state()
    found = estimates(problem, seed=5)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    torch.rand(7, device="cuda")
    assert estimates(problem, seed=5)[2].value == pytest.approx(found[2].value, rel=1e-9)
    assert found[2].value == pytest.approx(found[5].value, rel=1e-6)


def test_a_network_in_float32_is_measured_in_float64() -> None:
    """The same bits as for its copy in float64, whatever the dtype of the data."""
    module, loss, inputs, targets = tiny_net()
    module.float()
    given = [(module, loss, x, targets) for x in (inputs.float(), inputs.float().double())]
    found = [estimates(problem) for problem in given]
    assert next(module.parameters()).dtype == torch.float32
    double = estimates((module.double(), loss, inputs.float(), targets))
    assert same(found[0], found[1])
    assert same(found[0], double)
    assert found[0][0].error <= 1e-3 * found[0][0].value  # not a spent budget


def test_curvature_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        found = estimates(tiny_net())
    assert same(found, estimates(tiny_net()))


def test_vectors_in_any_form() -> None:
    """An array, a tensor that requires a gradient, a list of tensors shaped like the parameters."""
    problem = tiny_net()
    parameters = list(problem[0].parameters())
    array = np.concatenate([p.detach().numpy().reshape(-1) for p in parameters])
    tensor = torch.cat([p.reshape(-1) for p in parameters])
    assert tensor.requires_grad
    forms: list[Any] = [array, tensor, parameters, tuple(parameters), array.tolist()]
    assert len({directional_sharpness(*problem, form) for form in forms}) == 1
    assert len({sharpness(*problem, start=form) for form in forms}) == 1
    assert len({sharpness(*problem, form) for form in forms}) == 1


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": np.ones(3)}, r"scaling = \(3,\): one number for each of the 26"),
        ({"scaling": np.ones((26, 1))}, r"scaling = \(26, 1\).*shape \(26,\)"),
        ({"start": np.ones(25)}, r"start = \(25,\): one number"),
        ({"start": np.zeros(26)}, r"start = '0': a direction must be finite and not 0"),
        ({"start": np.full(26, math.nan)}, "start = 'not finite'"),
        ({"start": "eigenvector"}, "start = 'eigenvector': must be random, gradient or an array"),
        ({"products": "approximate"}, "products = 'approximate': must be one of exact, difference"),
        ({"rtol": 0.0}, "rtol = 0.0: must be > 0"),
        ({"rtol": math.nan}, "rtol = nan"),
        ({"confidence": 1.0}, r"confidence = 1.0: a probability, 0 < confidence < 1, or None"),
        ({"confidence": 0.0}, "confidence = 0.0"),
        ({"confidence": "high"}, "confidence = 'high': a probability"),
        ({"rtol": None}, "rtol = None: must be > 0"),
        ({"level": math.nan}, "level = nan: must be a number, or None; leave it out"),
        ({"level": "2"}, "level = '2': must be a number"),
        ({"decay": math.nan}, "decay = nan: must be a finite number; give 0 for none"),
        ({"decay": None}, "decay = None: must be a finite number"),
        ({"budget": "all"}, "budget = 'all': the gradient and one product cost 3"),
        ({"budget": 2}, "budget = 2: the gradient and one product cost 3 gradient evaluations"),
        ({"budget": 1, "products": "difference"}, "one product cost 2 gradient"),
    ],
)
def test_sharpness_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sharpness(*tiny_net(), **options)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        sharpness(*tiny_net(), np.ones(3), budget=0, rtol=-1, confidence=2)
    assert {m.field for m in caught.value.mistakes} == {"scaling", "budget", "rtol", "confidence"}


def test_trace_refuses() -> None:
    with pytest.raises(InputError, match="budget = 8: the gradient and 4 products cost 9"):
        hessian_trace(*tiny_net(), budget=8)
    with pytest.raises(InputError, match="products"):
        hessian_trace(*tiny_net(), products="guess")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        (np.zeros(26), "direction = '0': a direction must be finite and not 0; give another"),
        (np.full(26, math.inf), "direction = 'not finite'"),
        (np.ones(25), r"direction = \(25,\)"),
        ("gradient", "direction = 'gradient': must be an array"),
        (None, "direction = None: must be an array"),
        ([1.0, None], "direction = 'list': must be real numbers; give an array, or a list of ten"),
        (np.ones(26) * 1j, "direction = 'ndarray': must be real numbers"),
        (torch.ones(26) * 1j, "direction = 'Tensor': must be real numbers"),
        (torch.ones(25), r"direction = \(25,\): one number for each of the 26"),
        (
            [torch.ones(4, 3)],
            r"direction = \[\(4, 3\)\]: a list must have the shapes of the trained",
        ),
        (
            [torch.ones(4, 3), None],
            r"direction = \[\(4, 3\), 'NoneType'\]: a list must have the sh",
        ),
    ],
)
def test_directional_sharpness_refuses(direction: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        directional_sharpness(*tiny_net(), direction)


def regression(**changes: Any) -> list[Any]:
    """A network in float32 with one output; each argument may be replaced."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        usual = {
            "module": nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)),
            "loss": nn.functional.mse_loss,
            "inputs": torch.randn(8, 3),
            "targets": torch.randn(8, 1),
        }
    return list((usual | changes).values())


ONES = torch.ones(8)


@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
@pytest.mark.parametrize("estimate", [sharpness, hessian_trace, directional_sharpness])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module": len}, "^module = 'builtin_function_or_method': must be a torch.nn.Module;"),
        (
            {"module": nn.Linear(3, 1).requires_grad_(False)},
            "^module = 'Linear': has no parameter that is trained; set requires_grad",
        ),
        (
            {"module": nn.ParameterList([torch.ones(2) * 1j])},
            "^module = 'ParameterList': has complex",
        ),
        ({"loss": 3.0}, "^loss = 'float': must be a function of .outputs, targets.; give one such"),
        ({"loss": lambda o, y: o - y}, r"^loss = \(8, 1\): must return one number; .*\.mean\(\)"),
        (
            {"loss": lambda o, y: float((o - y).mean().detach())},
            "^loss = 'float': must return a tensor; ",
        ),
        ({"loss": lambda o, y: (o - y).mean().float()}, "^loss = 'torch.float32': must stay in fl"),
        ({"loss": lambda o, y: o.detach().mean()}, "^loss = 'no gradient': must depend on the tr"),
        ({"inputs": np.ones((8, 3))}, "^inputs = 'ndarray': must be a torch.Tensor; convert them"),
        ({"targets": None}, "^targets = 'NoneType': must be a torch.Tensor; convert them"),
        (
            {"inputs": torch.ones(8, 3, dtype=torch.int64)},
            r"^inputs = \(8, 3\): the module cannot take these torch.int64 numbers .*Long.*; give",
        ),
        ({"inputs": torch.ones(8, 2)}, r"^inputs = \(8, 2\): the module cannot .*8x2 and 3x4"),
        ({"targets": torch.ones(5, 1)}, r"^targets = \(5, 1\): the loss cannot .*outputs \(8, 1\)"),
        (
            {"targets": torch.ones(1, 1)},
            r"^targets = \(1, 1\): compared with outputs \(8, 1\) they",
        ),
        ({"targets": ONES}, r"^targets = \(8,\): compared with outputs \(8, 1\) they would be rep"),
        (
            {"targets": ONES, "loss": lambda o, y: ((o - y) ** 2).mean()},
            r"^targets = \(8,\): compared with outputs \(8, 1\) they would be repeated; reshape",
        ),
        (
            {"targets": ONES, "loss": lambda o, y: nn.L1Loss()(input=o, target=y)},
            r"^targets = \(8,\): compared with outputs \(8, 1\) they would be repeated; reshape",
        ),
        (
            {"targets": torch.ones(5).long(), "loss": nn.functional.cross_entropy},
            r"^targets = \(5,\): the loss cannot compare these torch.int64 .*batch_size \(8\)",
        ),
    ],
)
def test_what_does_not_fit_together(
    changes: dict[str, Any], message: str, estimate: Callable[..., Estimate]
) -> None:
    """One line that names the argument, whichever measure is asked for."""
    rest = [np.ones(21)] if estimate is directional_sharpness else []
    with pytest.raises(InputError, match=message) as caught:
        estimate(*regression(**changes), *rest)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": ONES, "loss": lambda o, y: ((o.squeeze(1) - y) ** 2).mean()},
        {"targets": ONES, "loss": lambda o, y: y @ o.square().squeeze(1)},
        {"targets": torch.tensor(1.0), "loss": lambda o, y: ((o - y) ** 2).mean()},
        {"loss": lambda o, y: ((o - o.T) ** 2).mean() + (y * o.expand(8, 5)).square().mean()},
        {"targets": torch.zeros(8).long(), "loss": nn.functional.cross_entropy},
    ],
)
def test_what_fits_is_not_refused(changes: dict[str, Any]) -> None:
    """Losses that shape their arguments themselves, or that broadcast on purpose."""
    assert math.isfinite(sharpness(*regression(**changes)).value)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, None, True])
def test_seeds_that_there_are_not(seed: Any) -> None:
    for estimate in (sharpness, hessian_trace):
        with pytest.raises(InputError, match=f"seed = {seed}: must be a whole number from 0"):
            estimate(*tiny_net(), seed=seed)
    with pytest.raises(InputError, match=f"seed = {seed}: must be a whole number from 0"):
        directional_sharpness(*tiny_net(), np.ones(26), seed=seed)


def test_errors_of_the_machine_stay_what_they_are() -> None:
    """Memory that runs out is no mistake of the caller."""

    def full(outputs: Tensor, labels: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        sharpness(*regression(loss=full))


def test_sharpness_without_curvlinops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "curvlinops", None)
    with pytest.raises(StabmapError, match=r"curvlinops-for-pytorch.*install it.*sharpness: false"):
        of_quadratic(np.eye(3))
    assert of_quadratic(np.eye(3), products="difference").value == pytest.approx(1, rel=1e-6)

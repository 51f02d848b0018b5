"""Step-size theory of Nar and Sastry: closed forms against simulations and Hessians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from analysis.theory.deep_linear import (
    balanced_layers,
    deep_linear_descent,
    deep_linear_lr_bound,
    identity_layers,
    identity_start_lr_bound,
    largest_singular_value_bound,
    nearest_psd,
    network_product,
    solution_lr_bound,
    solution_sharpness,
)
from analysis.theory.residual import (
    common_eigenvalues,
    double_path,
    identity_limit,
    identity_lr_bound,
    identity_path,
    identity_rate,
    product_path,
    residual_lr_bound,
    scalar_solution_lr_bound,
)
from analysis.theory.scalar_examples import (
    TWO_MINIMA_BARRIER,
    even_power_radius,
    even_power_step,
    three_halves_cycle,
    three_halves_starts,
    three_halves_step,
    two_minima_curvature,
    two_minima_gradient,
    two_minima_limit,
    two_minima_loss,
    two_minima_thresholds,
)
from analysis.theory.two_layer_relu import (
    relu_descent,
    relu_lr_bound,
    relu_output_bound,
    relu_outputs,
)
from trainables.domain import InputError

Array = NDArray[np.float64]

#: The target of the acceptance rows on theorems 1 and 2: largest eigenvalue 4, three layers.
EIGENVALUES = np.array([4.0, 2.0, 1.0, 0.5, 0.1])
#: The target of theorem 3.
INDEFINITE = np.array([3.0, 1.0, 0.5, -0.7, -2.0])

learning_rates = st.floats(0.01, 2.0)


def rotated(eigenvalues: Array, seed: int = 0) -> Array:
    basis, _ = np.linalg.qr(
        np.random.default_rng(seed).normal(size=(len(eigenvalues), len(eigenvalues)))
    )
    return np.asarray((basis * eigenvalues) @ basis.T)


def top_hessian_eigenvalue(loss: Callable[[Tensor], Tensor], at: Array) -> float:
    """Brute force: the whole Hessian by automatic differentiation."""
    hessian = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
        loss, torch.tensor(at)
    )
    return float(torch.linalg.eigvalsh(hessian)[-1])


def deep_linear_hessian(weights: Sequence[Array]) -> float:
    """Largest Hessian eigenvalue of ||product - R||^2 / 2 where the product is R."""
    target = torch.tensor(np.linalg.multi_dot(weights[::-1]) if len(weights) > 1 else weights[0])
    shapes = [w.shape for w in weights]

    def loss(flat: Tensor) -> Tensor:
        product = torch.eye(shapes[0][1], dtype=torch.float64)
        for part, shape in zip(
            torch.split(flat, [rows * columns for rows, columns in shapes]), shapes, strict=True
        ):
            product = part.reshape(shape) @ product
        return ((product - target) ** 2).sum() / 2

    return top_hessian_eigenvalue(loss, np.concatenate([w.ravel() for w in weights]))


def random_network(sizes: Sequence[int], seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(out, into)) for into, out in pairwise(sizes)]


def stacked(networks: Sequence[Sequence[Array]]) -> list[Array]:
    """Networks side by side along a first axis."""
    return [np.stack(layer) for layer in zip(*networks, strict=True)]


# --------------------------------------------------------------------------- example 1


def test_three_halves_alternates_between_a_quarter_of_lr_squared() -> None:
    """Acceptance row 18: 10,000 starts, four learning rates."""
    lr = np.array([0.1, 0.5, 1.0, 2.0])[:, None]
    x = np.random.default_rng(0).uniform(-3, 3, 10_000) * lr**2
    for _ in range(60):
        x = three_halves_step(x, lr)
    after = three_halves_step(x, lr)
    np.testing.assert_allclose(np.abs(x), np.broadcast_to(lr**2 / 4, x.shape), rtol=1e-14)
    np.testing.assert_array_equal(np.sign(after), -np.sign(x))
    np.testing.assert_array_equal(three_halves_cycle(lr), lr**2 / 4)
    assert three_halves_cycle(1.0) == 0.25


def test_three_halves_step_is_gradient_descent() -> None:
    """Acceptance row 18: the map is that of (2/3) |x|^(3/2)."""
    x = torch.linspace(-2, 2, 40, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((2 / 3 * x.abs() ** 1.5).sum(), x)
    plain = x.detach().numpy()
    np.testing.assert_allclose(three_halves_step(plain, 0.3), plain - 0.3 * slope.numpy())


def test_three_halves_reaches_its_minimum_from_the_listed_starts() -> None:
    """Acceptance row 18: 0, 1 and (3 + sqrt 5)/2 reach exactly 0 at lr 1; neighbours do not."""
    starts = three_halves_starts(1.0, 3)
    np.testing.assert_allclose(starts, [0, 1, (3 + 5**0.5) / 2], rtol=1e-15)
    for sign in (1, -1):
        assert (three_halves_step(three_halves_step(sign * starts, 1.0), 1.0) == 0).all()
    missed = starts[1:] * (1 + 1e-6)
    for _ in range(60):
        missed = three_halves_step(missed, 1.0)
    np.testing.assert_allclose(np.abs(missed), 0.25, rtol=1e-12)


@given(lr=learning_rates)
def test_each_listed_start_is_one_step_from_the_one_before(lr: float) -> None:
    starts = three_halves_starts([lr, 2 * lr], 8)
    assert starts.shape == (2, 8)
    assert (np.diff(starts) > 0).all()
    stepped = three_halves_step(starts[:, 1:], np.array([[lr], [2 * lr]]))
    np.testing.assert_allclose(stepped, starts[:, :-1], rtol=1e-12, atol=1e-14 * lr**2)


# --------------------------------------------------------------------------- example 2


def test_two_minima_thresholds_are_a_half_and_a_fifth() -> None:
    """Acceptance row 19: from the second derivatives 4 and 10."""
    np.testing.assert_allclose(two_minima_curvature([1, 2]), [4, 10], rtol=1e-15)
    assert two_minima_thresholds() == pytest.approx((0.5, 0.2), rel=1e-15)


def test_two_minima_derivatives_against_autograd() -> None:
    x = torch.linspace(-1, 3, 50, dtype=torch.float64, requires_grad=True)
    value = ((x**2 + 1) * (x - 1) ** 2 * (x - 2) ** 2).sum()
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    at = x.detach().numpy()
    assert two_minima_loss(at).sum() == pytest.approx(float(value.detach()))
    np.testing.assert_allclose(two_minima_gradient(at), first.detach().numpy(), atol=1e-11)
    np.testing.assert_allclose(two_minima_curvature(at), second.numpy(), atol=1e-11)


def test_the_barrier_is_the_maximum_between_the_minima() -> None:
    assert pytest.approx(1.556134, abs=1e-6) == TWO_MINIMA_BARRIER
    assert two_minima_gradient(TWO_MINIMA_BARRIER) == pytest.approx(0, abs=1e-14)
    assert two_minima_curvature(TWO_MINIMA_BARRIER) < 0


@pytest.mark.parametrize(
    ("lr", "first", "second", "diverged", "moving"),
    [
        (0.19, 0.613, 0.387, 0, 0),
        (0.21, 0.622, 0, 0, 0.378),
        (0.3, 0.643, 0, 0, 0.357),
        (0.4, 1, 0, 0, 0),
        (0.49, 0.770, 0, 0.230, 0),
        (0.51, 0, 0, 0.262, 0.738),
    ],
)
def test_the_learning_rate_chooses_the_minimum(
    lr: float, first: float, second: float, diverged: float, moving: float
) -> None:
    """Acceptance row 19: fractions of 20,000 uniform starts in [0.6, 2.2]."""
    limit = two_minima_limit(np.random.default_rng(1).uniform(0.6, 2.2, 20_000), lr)
    found = [(limit == 1).mean(), (limit == 2).mean(), np.isinf(limit).mean()]
    np.testing.assert_allclose(found, [first, second, diverged], atol=0.01)
    assert np.isnan(limit).mean() == pytest.approx(moving, abs=0.01)
    for fraction, seen in zip([first, second, diverged, moving], [*found, np.nan], strict=True):
        assert fraction != 0 or not seen > 0, "what cannot happen never does"


# --------------------------------------------------------------------------- example 3


def test_even_power_radius_of_the_paper() -> None:
    """Acceptance row 20."""
    assert even_power_radius(0.1, 4) == pytest.approx(2.2360680, abs=1e-7)
    assert even_power_radius(0.1, 4) == pytest.approx(5**0.5, rel=1e-15)


def test_even_powers_converge_inside_the_radius_and_diverge_outside() -> None:
    """Acceptance row 20: 0.999 and 1.001 of the radius, three powers, two learning rates."""
    power, lr = np.array([4.0, 6.0, 8.0])[:, None], np.array([0.1, 0.01])
    radius = even_power_radius(lr, power)
    assert radius.shape == (3, 2)
    inside, outside = 0.999 * radius, 1.001 * radius
    for _ in range(3000):
        inside = even_power_step(inside, lr, power)
        outside = np.where(
            np.abs(outside) < 1e6,
            even_power_step(np.clip(outside, -1e6, 1e6), lr, power),
            outside,
        )
    # The iterate falls like (lr power (power - 2) k)^(-1 / (power - 2)).
    slow = (lr * power * (power - 2) * 3000) ** (-1 / (power - 2))
    assert (np.abs(inside) < 1.1 * slow).all()
    assert (np.abs(inside) < 0.5 * radius).all()
    assert (np.abs(outside) > 1e6).all()


@given(lr=learning_rates, half=st.integers(2, 8), sign=st.sampled_from([-1, 1]))
def test_the_radius_itself_is_a_cycle_of_two(lr: float, half: int, sign: int) -> None:
    start = sign * even_power_radius(lr, 2 * half)
    assert even_power_step(start, lr, 2 * half) == pytest.approx(-start, rel=1e-12)


# --------------------------------------------------------------------------- theorem 1


@pytest.mark.parametrize(
    ("scales", "sharpness"),
    [((1, 1, 1), 19.04881), ((2, 1, 0.5), 33.3354), ((10, 1, 0.1), 641.374)],
)
@pytest.mark.parametrize("diagonal", [True, False])
def test_rescaled_layers_need_smaller_learning_rates(
    scales: tuple[float, ...], sharpness: float, diagonal: bool
) -> None:
    """Section 5, theorem 1: the bound is exact for multiples of one symmetric matrix."""
    target = np.diag(EIGENVALUES) if diagonal else rotated(EIGENVALUES)
    weights = [c * w for c, w in zip(scales, balanced_layers(target, 3), strict=True)]
    np.testing.assert_allclose(network_product(weights), target, atol=1e-13)
    assert 2 / solution_lr_bound(weights) == pytest.approx(sharpness, rel=2e-6)
    assert solution_sharpness(weights) == pytest.approx(sharpness, rel=2e-6)
    assert deep_linear_hessian(weights) == pytest.approx(sharpness, rel=2e-6)


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5), seed=st.integers(0, 2**31 - 1))
def test_theorem_1_holds_against_the_whole_hessian(sizes: list[int], seed: int) -> None:
    weights = random_network(sizes, seed)
    true = deep_linear_hessian(weights)
    assert solution_sharpness(weights) == pytest.approx(true, rel=1e-9)
    assert 2 / solution_lr_bound(weights) <= true * (1 + 1e-9)
    rho = np.linalg.norm(network_product(weights), 2)
    depth = len(weights)
    assert solution_lr_bound(weights) <= deep_linear_lr_bound(rho, depth) * (1 + 1e-9)


def test_theorem_1_leaves_a_gap_on_random_layers() -> None:
    """Section 5 measured 247.60 against 273.58 on one network: here the gap on a hundred."""
    networks = stacked([random_network([5] * 4, seed) for seed in range(100)])
    ratio = (2 / solution_lr_bound(networks)) / solution_sharpness(networks)
    assert ratio.shape == (100,)
    assert (ratio < 1).all()
    assert np.median(ratio) == pytest.approx(0.8, abs=0.05)


def test_theorem_1_takes_each_network_of_a_batch_by_itself() -> None:
    networks = [random_network([3, 2, 4], seed) for seed in range(6)]
    batch = [layer.reshape(2, 3, *layer.shape[1:]) for layer in stacked(networks)]
    for measure in (solution_lr_bound, solution_sharpness):
        one_by_one = np.array([measure(network) for network in networks]).reshape(2, 3)
        np.testing.assert_allclose(measure(batch), one_by_one, rtol=1e-12)


def test_theorem_1_at_the_origin_bounds_nothing() -> None:
    assert solution_lr_bound([np.zeros((2, 2)), np.zeros((2, 2))]) == np.inf
    assert solution_lr_bound([np.diag([3.0, 1.0])]) == pytest.approx(2)


def test_gradient_descent_stays_below_the_exact_boundary_and_leaves_above_it() -> None:
    weights = random_network([3, 4, 2, 3], 5)
    target = network_product(weights)
    edge = 2 / solution_sharpness(weights)
    assert edge < solution_lr_bound(weights)
    rng = np.random.default_rng(6)
    start = [w + 1e-7 * rng.normal(size=w.shape) for w in weights]
    lr = np.array([0.98, 1.02]) * edge
    end = deep_linear_descent(start, target, lr, 900)
    moved = np.max([np.abs(a - b).max(axis=(-2, -1)) for a, b in zip(end, weights, strict=True)], 0)
    assert moved[0] < 1e-6
    assert moved[1] > 1e-3, "pushed along the solutions to one that it can hold"
    np.testing.assert_allclose(network_product(end), np.stack([target] * 2), atol=1e-8)
    assert solution_sharpness([w[1] for w in end]) < 2 / lr[1]


# --------------------------------------------------------------------------- corollaries


@given(rho=st.floats(0.01, 100), depth=st.integers(2, 40))
def test_corollary_2_inverts_corollary_1(rho: float, depth: int) -> None:
    lr = deep_linear_lr_bound(rho, depth)
    assert lr == pytest.approx(2 / (depth * rho ** (2 - 2 / depth)), rel=1e-12)
    assert largest_singular_value_bound(lr, depth) == pytest.approx(rho, rel=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_the_balanced_solution_attains_corollary_1(depth: int) -> None:
    weights = balanced_layers(rotated(EIGENVALUES), depth)
    bound = deep_linear_lr_bound(4.0, depth)
    assert 2 / solution_sharpness(weights) == pytest.approx(bound, rel=1e-10)
    assert solution_lr_bound(weights) == pytest.approx(bound, rel=1e-10)


def test_corollary_2_bounds_whatever_has_converged() -> None:
    """Twenty random targets and starts, twelve learning rates each."""
    depth, lr = 2, np.geomspace(0.02, 0.8, 12)
    target = np.random.default_rng(0).normal(size=(20, 1, 3, 3))
    start = [w[:, None] for w in stacked([random_network([3, 3, 3], s + 1) for s in range(20)])]
    weights = deep_linear_descent(start, target, lr, 3000)
    later = deep_linear_descent(start, target, lr, 3001)
    step = np.max(
        [np.abs(a - b).max(axis=(-2, -1)) for a, b in zip(weights, later, strict=True)], 0
    )
    settled = step < 1e-12  # a comparison with NaN is False
    product = network_product([np.where(settled[..., None, None], w, 0.0) for w in weights])
    share = np.linalg.norm(product, 2, axis=(-2, -1)) / largest_singular_value_bound(lr, depth)
    assert share.shape == (20, 12)
    assert settled.mean() > 0.3
    assert 0.7 < share.max() <= 1 + 1e-6


# --------------------------------------------------------------------------- theorem 2


def test_theorem_2_from_the_identity() -> None:
    """Acceptance row 21: lr 0.0524967 takes every layer to R^(1/3)."""
    lr = identity_start_lr_bound(4.0, 3)
    assert lr == pytest.approx(0.0524967, abs=5e-8)
    target = rotated(EIGENVALUES)
    weights = deep_linear_descent(identity_layers(5, 3), target, lr, 5000)
    for layer, root in zip(weights, balanced_layers(target, 3), strict=True):
        np.testing.assert_allclose(layer, root, atol=1e-13)


@pytest.mark.parametrize("diagonal", [True, False])
def test_the_sharp_factor_of_theorem_2_is_two(diagonal: bool) -> None:
    """Acceptance row 21: converges at 1.99, oscillates at 2.01."""
    target = np.diag(EIGENVALUES) if diagonal else rotated(EIGENVALUES)
    lr = np.array([1.99, 2.01]) / 2 * deep_linear_lr_bound(4.0, 3)
    np.testing.assert_allclose(lr, np.array([1.99, 2.01]) / (3 * 4 ** (4 / 3)), rtol=1e-12)
    product = network_product(deep_linear_descent(identity_layers(5, 3), target, lr, 10_000))
    below, above = np.linalg.norm(product - target, axis=(-2, -1))
    assert below < 1e-12
    assert 0.1 < above < 0.5


def test_the_sharp_factor_holds_at_every_depth_for_rho_of_one_and_more() -> None:
    depth = np.array([1, 2, 3, 5, 10, 30])[:, None, None]
    rho = np.array([1.0, 1.1, 1.5, 2, 4, 10, 100, 1000])[:, None]
    eigenvalue = rho * np.array([1.0, 0.9, 0.3, 0.1])  # all that one matrix may hold at once
    below = identity_path(eigenvalue, 0.995 * deep_linear_lr_bound(rho, depth), depth, 4000)
    np.testing.assert_allclose(below[-1], eigenvalue ** (1 / depth), atol=1e-5)
    top = eigenvalue[1:, :1]
    above = identity_path(top, 1.005 * deep_linear_lr_bound(rho[1:], depth), depth, 4000)
    assert (np.abs(above[-1] - top ** (1 / depth)) > 1e-3).all()


def test_below_rho_of_one_the_sharp_bound_is_only_local() -> None:
    lr = 0.9 * deep_linear_lr_bound(0.1, 3)
    far = identity_path(0.1, lr, 3, 3000)[-1]
    assert not abs(far - 0.1 ** (1 / 3)) < 1e-3
    near = product_path(np.full(3, 0.1 ** (1 / 3) + 0.01), 0.1, lr, 3000)[-1]
    np.testing.assert_allclose(near, 0.1 ** (1 / 3), rtol=1e-12)
    assert identity_start_lr_bound(0.1, 3) == pytest.approx(1 / 3)


def test_theorem_2_is_not_linear_where_the_target_is_singular() -> None:
    """The paper says "positive semidefinite ... with a linear rate": false at eigenvalue 0."""
    steps = 4000
    lr = identity_start_lr_bound(2.0, 2)
    target = np.diag([2.0, 0.0])
    (first, _) = deep_linear_descent(identity_layers(2, 2), target, lr, steps)
    assert first[0, 0] == pytest.approx(2**0.5, abs=1e-13)
    # w <- w (1 - lr w^2) falls like (2 lr k)^(-1/2).
    assert first[1, 1] == pytest.approx((2 * lr * steps) ** -0.5, rel=0.01)
    assert identity_rate(0.0, lr, 2) == 1


def test_the_guarantee_is_half_of_the_sharp_bound_or_one_over_depth() -> None:
    rho, depth = np.array([0.0, 0.2, 1.0, 3.0])[:, None], np.array([1, 2, 7])
    bound = identity_start_lr_bound(rho, depth)
    np.testing.assert_allclose(bound[:2], np.broadcast_to(1 / depth, (2, 3)))
    np.testing.assert_allclose(bound[2:], deep_linear_lr_bound(rho[2:], depth) / 2)


# --------------------------------------------------------------------------- theorem 3


def theorem_3_distances(target: Array, depth: int, steps: int) -> tuple[float, float]:
    """Distances of the estimate from the closest PSD matrix and from the target itself."""
    values = np.linalg.eigvalsh(target)
    lr = identity_start_lr_bound(np.abs(values).max(), depth)
    product = network_product(deep_linear_descent(identity_layers(5, depth), target, lr, steps))
    psd = np.linalg.norm(product - nearest_psd(target))
    return float(psd), float(np.linalg.norm(product - target))


@given(rho=st.floats(0.01, 50), share=st.floats(0, 1), depth=st.integers(2, 20))
def test_the_third_term_of_theorem_3_is_never_the_least(
    rho: float, share: float, depth: int
) -> None:
    lowest = -share * rho
    three = [1 / (1 - lowest), 1 / depth, 1 / (depth * rho ** (2 * (depth - 1) / depth))]
    assert identity_start_lr_bound(rho, depth) == pytest.approx(min(three), rel=1e-12)


@pytest.mark.parametrize(("depth", "distance"), [(2, 1e-15), (3, 2e-9)])
def test_theorem_3_on_a_diagonal_target(depth: int, distance: float) -> None:
    """Acceptance row 22: 20,000 steps end at the closest positive semidefinite matrix."""
    psd, _ = theorem_3_distances(np.diag(INDEFINITE), depth, 20_000)
    assert psd < distance


def test_theorem_3_in_a_rotated_basis_holds_for_a_hundred_steps_only() -> None:
    """Acceptance row 22: rounding takes the iterate from the saddle to R itself."""
    target = rotated(INDEFINITE)
    psd, _ = theorem_3_distances(target, 2, 100)
    assert psd < 1e-6
    psd, _ = theorem_3_distances(target, 2, 300)
    assert psd > 0.5
    psd, full = theorem_3_distances(target, 2, 1000)
    assert full < 1e-13
    assert psd > 2


def test_two_layers_drift_apart_by_the_factor_named() -> None:
    """Beside the saddle the difference of two layers grows by 1 + lr |eigenvalue| a step."""
    lr, eigenvalue = 1 / 6, -2.0
    path = product_path([1e-9, -1e-9], eigenvalue, lr, 40)
    grown = (path[40, 0] - path[40, 1]) / (path[0, 0] - path[0, 1])
    assert grown == pytest.approx((1 + lr * 2) ** 40, rel=1e-6)


def test_one_layer_reaches_negative_eigenvalues() -> None:
    """Theorem 3 as stated would deny it; it needs two layers."""
    (layer,) = deep_linear_descent(identity_layers(5, 1), np.diag(INDEFINITE), 0.3, 200)
    np.testing.assert_allclose(layer, np.diag(INDEFINITE), atol=1e-12)
    assert identity_limit(-2.0, 1) == -2


@given(seed=st.integers(0, 2**31 - 1))
def test_nearest_psd_beats_every_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = rotated(rng.normal(size=4), seed)
    nearest = nearest_psd(target)
    assert np.linalg.eigvalsh(nearest).min() > -1e-12
    other = nearest + 0.1 * rng.normal(size=(4, 4))
    root = other @ other.T / np.linalg.norm(other)
    for candidate in (root, 0.9 * nearest + 0.1 * root, 1.01 * nearest):
        assert np.linalg.norm(target - nearest) <= np.linalg.norm(target - candidate) + 1e-12


# --------------------------------------------------------------------------- residual paper


@settings(max_examples=40)
@given(factors=st.lists(st.floats(0.3, 2.0), min_size=1, max_size=5), sign=st.sampled_from([-1, 1]))
def test_proposition_1_separates_stable_from_unstable(factors: list[float], sign: int) -> None:
    w = np.array(factors)
    w[0] *= sign
    bound = scalar_solution_lr_bound(w)
    eigenvalue = w.prod()
    assert bound == pytest.approx(2 / ((eigenvalue / w) ** 2).sum(), rel=1e-12)
    start = w * (1 + 1e-6)
    below, above = np.moveaxis(
        product_path(start, eigenvalue, bound * np.array([0.9, 1.1]), 60), 1, 0
    )
    error = np.abs(start.prod() - eigenvalue)
    assert abs(below[-1].prod() - eigenvalue) < 0.1 * error + 1e-15
    assert np.abs(below[-1] - w).max() < 1e-4
    assert not abs(above[-1].prod() - eigenvalue) < 10 * error


def test_proposition_1_is_the_scalar_case_of_theorem_1() -> None:
    w = np.array([[2.0, -0.3, 1.1], [0.5, 0.5, 4.0]])
    as_layers = [w[:, j, None, None] for j in range(3)]
    np.testing.assert_allclose(scalar_solution_lr_bound(w), solution_lr_bound(as_layers))


def test_equal_layers_are_stable_up_to_the_largest_learning_rate() -> None:
    equal = np.full((2, 3), 4 ** (1 / 3)) * np.array([[1, 1, 1], [1, 2, 0.5]])
    best, other = scalar_solution_lr_bound(equal)
    assert best == pytest.approx(deep_linear_lr_bound(4.0, 3), rel=1e-12)
    assert other < best
    assert scalar_solution_lr_bound([0.0, 0.0, 5.0]) == np.inf
    assert scalar_solution_lr_bound([0.0, 2.0, 5.0]) == pytest.approx(0.02)


def test_a_solution_is_not_asymptotically_stable_in_its_weights() -> None:
    """Proposition 1 says so; two layers rest wherever their product is right."""
    along = np.array([1.25, 0.8])
    path = product_path(along, 1.0, 0.5 * scalar_solution_lr_bound([1.0, 1.0]), 500)
    np.testing.assert_allclose(path[-1], along, rtol=1e-12)


@pytest.mark.parametrize(
    ("depth", "eigenvalue", "lr", "beta"),
    [(3, 4.0, 0.0524967, 0.731887), (3, 0.3, 0.472239, 0.715481), (5, 2.0, 0.0659754, 0.556314)],
)
def test_proposition_2_numbers(depth: int, eigenvalue: float, lr: float, beta: float) -> None:
    """Section 5, proposition 2: largest learning rate and rate at it."""
    bound = identity_lr_bound(eigenvalue, depth)
    assert bound == pytest.approx(lr, rel=2e-6)
    assert identity_rate(eigenvalue, bound, depth) == pytest.approx(beta, abs=1e-6)


@given(
    eigenvalue=st.one_of(
        st.floats(1e-3, 1), st.floats(1, 1e3), st.floats(-10, 0), st.floats(0.999, 1.001)
    ),
    depth=st.integers(1, 12),
    share=st.floats(0.05, 1),
)
def test_proposition_2_bounds_every_step(eigenvalue: float, depth: int, share: float) -> None:
    lr = share * identity_lr_bound(eigenvalue, depth)
    beta = identity_rate(eigenvalue, lr, depth)
    limit = identity_limit(eigenvalue, depth)
    path = identity_path(eigenvalue, lr, depth, 300)
    gap = (path - limit) * np.sign(1 - limit)  # positive: no overshoot
    allowed = beta ** np.arange(301) * abs(1 - limit)
    rounding = 1e-13 * max(1.0, abs(float(limit)))
    assert (gap >= -rounding).all()
    assert (gap <= allowed * (1 + 1e-10) + rounding).all()
    assert 0 <= beta <= 1


@given(eigenvalue=st.floats(0.001, 0.999), depth=st.integers(2, 12))
def test_proposition_2_is_sharp_for_the_first_step_below_one(eigenvalue: float, depth: int) -> None:
    """At the largest learning rate the first step lands on the limit; beyond it, past it."""
    bound = identity_lr_bound(eigenvalue, depth)
    limit = eigenvalue ** (1 / depth)
    assert bound == pytest.approx((1 - limit) / (1 - eigenvalue), rel=1e-9)
    assert identity_path(eigenvalue, bound, depth, 1)[1] == pytest.approx(limit, rel=1e-9)
    assert identity_path(eigenvalue, 1.1 * bound, depth, 1)[1] < limit


def test_proposition_2_rate_is_the_least_that_serves_all_steps() -> None:
    """Above 1 the first step, below 1 the last ones shrink by exactly beta."""
    for eigenvalue, steps in ((4.0, 0), (0.3, 90)):
        lr = 0.5 * identity_lr_bound(eigenvalue, 3)
        path = identity_path(eigenvalue, lr, 3, 91) - identity_limit(eigenvalue, 3)
        beta = identity_rate(eigenvalue, lr, 3)
        assert path[steps + 1] / path[steps] == pytest.approx(beta, rel=1e-6)


def test_proposition_2_broadcasts() -> None:
    eigenvalue, depth = np.array([-1.0, 0.0, 0.3, 1.0, 4.0])[:, None], np.array([1, 2, 5])
    bound = identity_lr_bound(eigenvalue, depth)
    rate = identity_rate(eigenvalue, bound, depth)
    path = identity_path(eigenvalue, bound, depth, 3)
    assert bound.shape == rate.shape == path.shape[1:] == (5, 3)
    for i in range(5):
        for j in range(3):
            lam, layer_count = eigenvalue[i, 0], depth[j]
            assert bound[i, j] == identity_lr_bound(lam, layer_count)
            assert rate[i, j] == identity_rate(lam, bound[i, j], layer_count)
            np.testing.assert_array_equal(
                path[:, i, j], identity_path(lam, bound[i, j], layer_count, 3)
            )


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_negative_eigenvalues_end_at_zero(depth: int) -> None:
    """Residual paper, identity start: the factor stays in [0, 1] and falls to 0."""
    eigenvalue = np.array([-5.0, -1.0, -0.1])
    lr = identity_lr_bound(eigenvalue, depth)
    np.testing.assert_allclose(lr, 1 / (1 - eigenvalue))
    path = identity_path(eigenvalue, 0.9 * lr, depth, 20_000)
    assert (path >= 0).all()
    assert (np.diff(path, axis=0) <= 0).all()
    assert (path[-1] < (0.1 if depth == 5 else 0.01)).all()
    over = identity_path(eigenvalue, 1.1 * lr, depth, 1)[1]
    assert (over < 0).all(), "beyond the bound the first step already passes 0"


def test_common_eigenbasis_turns_matrices_into_scalar_problems() -> None:
    rng = np.random.default_rng(3)
    basis, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    # The first layer is the identity, which alone would separate nothing.
    spectra = np.vstack([np.ones(4), rng.uniform(0.5, 1.5, (2, 4)), [2.0, 0.4, 0.4, -0.6]])
    matrices = np.stack([(basis * row) @ basis.T for row in spectra])
    modes = common_eigenvalues(matrices)
    found = modes[np.argsort(modes[:, 1])]
    np.testing.assert_allclose(found, spectra.T[np.argsort(spectra[1])], atol=1e-12)
    paths = product_path(modes[:, :3], modes[:, 3], 0.05, 40)
    weights = deep_linear_descent(list(matrices[:3]), matrices[3], 0.05, 40)
    after = common_eigenvalues(np.stack([*weights, matrices[3]]))
    np.testing.assert_allclose(
        after[np.argsort(after[:, 0]), :3],
        paths[-1][np.argsort(paths[-1][:, 0])],
        atol=1e-12,
    )


def test_residual_lr_bound_is_at_least_that_of_theorem_2() -> None:
    target = np.stack([rotated(EIGENVALUES), rotated(EIGENVALUES / 8), rotated(INDEFINITE)])
    bound = residual_lr_bound(target, [[2], [3]])
    theorem = identity_start_lr_bound([4.0, 0.5, 3.0], [[2], [3]])
    assert bound.shape == (2, 3)
    np.testing.assert_allclose(bound[:, [0, 2]], theorem[:, [0, 2]], rtol=1e-10)
    assert (bound[:, 1] > theorem[:, 1]).all()
    for i, depth in enumerate((2, 3)):
        product = network_product(
            deep_linear_descent(identity_layers(5, depth), target[1], bound[i, 1], 8000)
        )
        np.testing.assert_allclose(product, target[1], atol=1e-12)


def test_the_spectral_radius_fails_for_matrices_that_are_not_symmetric() -> None:
    """The residual paper's matrix theorem asks for a common basis only, which is too little."""
    target = np.array([[1.0, 3.0], [0.0, 0.5]])
    assert np.abs(np.linalg.eigvals(target)).max() == pytest.approx(1)
    claimed = identity_lr_bound(1.0, 2)
    allowed = deep_linear_lr_bound(np.linalg.norm(target, 2), 2)
    assert claimed == 0.5
    assert allowed < 0.314
    lr = np.array([0.9 * allowed, 1.02 * allowed, claimed])
    product = network_product(deep_linear_descent(identity_layers(2, 2), target, lr, 3000))
    error = np.abs(product - target).max(axis=(-2, -1))
    assert error[0] < 1e-12
    assert not error[1] < 0.01
    assert not error[2] < 0.1
    with pytest.raises(InputError, match="transpose"):
        residual_lr_bound(target, 2)


def test_a_difference_of_products_reaches_either_sign() -> None:
    """Residual paper, linear pair: what a single product from the identity cannot do."""
    eigenvalue, depth = np.array([-4.0, -0.7, 0.1, 2.0]), np.array([[2], [3], [5]])
    lr = 0.05 / (depth * np.maximum(1, np.abs(eigenvalue)) ** (2 - 2 / depth))
    path = double_path(eigenvalue, lr, depth, 3000)
    w, z = path[..., 0], path[..., 1]
    np.testing.assert_allclose(
        (w**depth - z**depth)[-1], np.broadcast_to(eigenvalue, (3, 4)), atol=1e-8
    )
    np.testing.assert_array_equal(path[0], 1)
    single = identity_path(eigenvalue, lr, depth, 100)[-1] ** depth
    pair = (w**depth - z**depth)[100]
    assert (np.abs(pair - eigenvalue) < np.abs(single - eigenvalue)).all()
    assert (depth * (w ** (2 * depth - 2) + z ** (2 * depth - 2)))[-1, :, 3] == pytest.approx(
        [5.63989, 11.30347, 24.21907], rel=1e-5
    )


# --------------------------------------------------------------------------- theorem 4


def relu_hessian(x: Array, w: Array, v: Array, b: Array, factor: float) -> float:
    """Largest Hessian eigenvalue where the targets are the network's own outputs."""
    points, thresholds = torch.tensor(x), torch.tensor(b)
    targets = torch.tensor(relu_outputs(x, w, v, b))

    def loss(flat: Tensor) -> Tensor:
        outer, inner = torch.split(flat, [w.size, v.size])
        hidden = (points @ inner.reshape(v.shape).T - thresholds).relu()
        return ((hidden @ outer.reshape(w.shape).T - targets) ** 2).sum() * factor

    return top_hessian_eigenvalue(loss, np.concatenate([w.ravel(), v.ravel()]))


def test_theorem_4_with_and_without_the_half() -> None:
    lr = np.array([1e-4, 3e-4])
    np.testing.assert_allclose(relu_output_bound(lr), 1 / lr)
    np.testing.assert_allclose(relu_output_bound(lr, factor=1), 1 / (2 * lr))
    assert relu_output_bound(3e-4, factor=1) == pytest.approx(1667, abs=1)


@settings(max_examples=30)
@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 4),
    seed=st.integers(0, 2**31 - 1),
    factor=st.floats(0.1, 2),
)
def test_theorem_4_holds_against_the_whole_hessian(
    sizes: tuple[int, int, int, int], seed: int, factor: float
) -> None:
    points, into, units, out = sizes
    rng = np.random.default_rng(seed)
    x, b = rng.normal(size=(points, into)), rng.normal(size=units)
    w, v = rng.normal(size=(out, units)), rng.normal(size=(units, into))
    bound = relu_lr_bound(x, relu_outputs(x, w, v, b), factor)
    sharpness = relu_hessian(x, w, v, b, factor)
    if np.isfinite(bound):
        assert sharpness * bound >= 2 * (1 - 1e-9)
        sizes_now = np.linalg.norm(x, axis=1) * np.linalg.norm(relu_outputs(x, w, v, b), axis=1)
        assert relu_output_bound(bound, factor) == pytest.approx(sizes_now.max(), rel=1e-12)


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_theorem_4_is_attained_by_one_point_and_one_unit(factor: float) -> None:
    x, b = np.array([[1.5]]), np.array([0.4])
    v = np.array([[2.0]])
    g = 2.0 * 1.5 - 0.4
    w = np.array([[g / 1.5]])
    bound = relu_lr_bound(x, relu_outputs(x, w, v, b), factor)
    assert 2 / relu_hessian(x, w, v, b, factor) == pytest.approx(bound, rel=1e-12)
    target = relu_outputs(x, w, v, b)
    lr = bound * np.array([0.97, 1.03])
    trained, inner = relu_descent(x, target, w + 1e-6, v, b, lr, 600, factor)
    below, above = np.abs(relu_outputs(x, trained, inner, b) - target)[:, 0, 0]
    assert below < 1e-12
    assert above > 1e-2


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_relu_descent_is_gradient_descent(factor: float) -> None:
    rng = np.random.default_rng(8)
    x, targets, b = rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), rng.normal(size=5)
    w, v = rng.normal(size=(2, 5)), rng.normal(size=(5, 3))
    outer = torch.tensor(w, requires_grad=True)
    inner = torch.tensor(v, requires_grad=True)
    optimiser = torch.optim.SGD([outer, inner], lr=0.01)
    for _ in range(7):
        optimiser.zero_grad()
        hidden = (torch.tensor(x) @ inner.T - torch.tensor(b)).relu()
        loss = factor * ((hidden @ outer.T - torch.tensor(targets)) ** 2).sum()
        torch.autograd.backward(loss)
        optimiser.step()
    trained = relu_descent(x, targets, w, v, b, 0.01, 7, factor)
    np.testing.assert_allclose(trained[0], outer.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(trained[1], inner.detach().numpy(), rtol=1e-12)


def test_the_papers_experiment_over_a_distribution_of_seeds() -> None:
    """Section 5: 20 units; small rates settle, some seeds alternate at larger ones.

    100 points instead of 1000 and ten times the learning rate: the same steps, one tenth the work.
    """
    seeds, rates = 8, np.array([1e-3, 2e-3, 3e-3, 5e-3])
    x = (np.arange(1, 101) / 100)[:, None]
    draws = [np.random.default_rng(seed) for seed in range(seeds)]
    b, w, v, teacher_w, teacher_v = (
        np.stack([rng.normal(size=shape) for rng in draws])[:, None]
        for shape in ((20,), (1, 20), (20, 1), (1, 20), (20, 1))
    )
    targets = relu_outputs(x, teacher_w, teacher_v, b)
    states = [relu_descent(x, targets, w, v, b, rates, 5000, factor=1)]
    for _ in range(2):
        states.append(relu_descent(x, targets, *states[-1], b, rates, 1, factor=1))
    even, odd, again = (relu_outputs(x, *state, b) for state in states)
    gap = np.abs(even - odd).max(axis=(-2, -1))
    double = np.abs(even - again).max(axis=(-2, -1))
    assert gap.shape == (seeds, 4)
    assert (gap[:, 0] < 1e-3).mean() >= 0.75, "most seeds settle at the smallest rate"
    assert ((gap > 0.05) & (double < 0.01 * gap)).any(), "some alternate between two networks"
    assert (gap[:, 1:] > 0.05).any(axis=0).sum() >= 2
    settled = gap < 1e-3
    left = (np.abs(x) * np.abs(even)).max(axis=(-2, -1))
    limit = np.broadcast_to(relu_output_bound(rates, factor=1), settled.shape)
    assert (left[settled] < 0.1 * limit[settled]).all(), "the theorem holds and is far from tight"


# --------------------------------------------------------------------------- bad input

SQUARE = np.eye(2)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: three_halves_step(np.nan, 1.0), "x"),
        (lambda: three_halves_step(1.0, 0.0), "lr"),
        (lambda: three_halves_step([1, 2], [1, 2, 3]), "x, lr"),
        (lambda: three_halves_cycle(-1.0), "lr"),
        (lambda: three_halves_cycle("fast"), "lr"),
        (lambda: three_halves_cycle(1j), "lr"),
        (lambda: three_halves_starts(1.0, 0), "count"),
        (lambda: two_minima_limit(np.inf, 0.1), "x"),
        (lambda: two_minima_limit(1.0, 0.1, 2.5), "steps"),  # type: ignore[arg-type]
        (lambda: even_power_step(1.0, 0.1, 5), "power"),
        (lambda: even_power_radius(0.1, 2), "power"),
        (lambda: even_power_radius(0.1, [4, 5]), "power"),
        (lambda: solution_lr_bound([]), "weights"),
        (lambda: solution_lr_bound([np.ones(3)]), "weights[0].shape"),
        (lambda: solution_lr_bound([np.ones((2, 3)), np.ones((2, 3))]), "weights[1].shape"),
        (lambda: solution_sharpness([np.full((2, 2), np.nan)]), "weights[0]"),
        (
            lambda: solution_sharpness([np.ones((2, 2, 2)), np.ones((3, 2, 2))]),
            "weights[0], weights[1]",
        ),
        (lambda: deep_linear_lr_bound(-1.0, 2), "rho"),
        (lambda: deep_linear_lr_bound(1.0, 2.5), "depth"),
        (lambda: deep_linear_lr_bound([1, 2], [1, 2, 3]), "rho, depth"),
        (lambda: largest_singular_value_bound(0.1, 1), "depth"),
        (lambda: identity_start_lr_bound(1.0, 0), "depth"),
        (lambda: identity_start_lr_bound(-1.0, 2), "rho"),
        (lambda: nearest_psd(np.ones((2, 3))), "target.shape"),
        (lambda: nearest_psd([[1, 2], [0, 1]]), "target - target^T"),
        (lambda: balanced_layers(-SQUARE, 2), "target"),
        (lambda: balanced_layers(SQUARE, 0), "depth"),
        (lambda: identity_layers(0, 2), "size"),
        (lambda: deep_linear_descent([SQUARE], np.ones((2, 3)), 0.1, 1), "target.shape"),
        (lambda: deep_linear_descent([SQUARE], SQUARE, -0.1, 1), "lr"),
        (lambda: deep_linear_descent([SQUARE], SQUARE, 0.1, -1), "steps"),
        (
            lambda: deep_linear_descent([np.ones((2, 1, 1))], [[1.0]], [1, 2, 3], 1),
            "weights, target, lr",
        ),
        (lambda: scalar_solution_lr_bound(1.0), "weights.shape"),
        (lambda: identity_limit(np.nan, 2), "eigenvalue"),
        (lambda: identity_lr_bound(1.0, 0), "depth"),
        (lambda: identity_rate(4.0, 0.06, 3), "lr"),
        (lambda: identity_rate([1, 2], [0.1, 0.1, 0.1], 3), "eigenvalue, lr, depth"),
        (lambda: identity_path(1.0, 0.1, 2, True), "steps"),
        (lambda: product_path([1.0, 1.0], 1.0, 0.0, 1), "lr"),
        (lambda: double_path(1.0, 0.1, 1.5, 1), "depth"),
        (lambda: common_eigenvalues(SQUARE), "matrices.shape"),
        (
            lambda: common_eigenvalues([[[1, 0], [0, 2]], [[0, 1], [1, 0]]]),
            "matrices",
        ),
        (lambda: residual_lr_bound([[1, 2], [0, 1]], 2), "target - target^T"),
        (lambda: relu_output_bound(0.1, 0.0), "factor"),
        (lambda: relu_lr_bound(np.ones(3), np.ones((3, 1))), "x.shape"),
        (lambda: relu_lr_bound(np.ones((3, 1)), np.ones((2, 1))), "outputs.shape"),
        (
            lambda: relu_outputs(np.ones((3, 1)), np.ones((1, 2)), np.ones((2, 2)), [0, 0]),
            "x, w, v, b",
        ),
        (
            lambda: relu_outputs(
                np.ones((3, 1)), np.ones((2, 1, 2)), np.ones((3, 2, 1)), np.zeros(2)
            ),
            "w, v, b",
        ),
        (
            lambda: relu_descent(np.ones((3, 1)), np.ones((3, 2)), [[1.0]], [[1.0]], [0.0], 0.1, 1),
            "targets.shape",
        ),
    ],
)
def test_bad_input_gets_one_clear_message(call: Callable[[], Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    (mistake,) = caught.value.mistakes
    assert mistake.field == field
    assert mistake.law and mistake.remedy

"""The benchmark of boundary search: its problems, rivals and scores against independent answers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are scripts, not a package

from benchmarks._boundary_problems import (
    PROBLEMS,
    SUBSAMPLE,
    Array,
    Labels,
    Problem,
    deep_linear,
    heavy_ball,
    labels,
    one_layer_cnn,
    one_layer_cnn_regimes,
    tanh_data,
    tanh_losses,
)
from benchmarks._boundary_rivals import BATCH, grid, optuna_search, quadtree, sobol
from benchmarks._boundary_scores import (
    Curve,
    calibration_error,
    error_at,
    middle,
    nearest_curve,
    nearest_labels,
    reliability,
    runs_to,
)

STABLE, RESTRAINED, DIVERGENT = range(3)
AMPLIFIER = PROBLEMS["amplifier"]

# ------------------------------------------------------------------ problems


def test_labels_go_by_the_bounded_margin_first() -> None:
    margins = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [0.0, 0.0]])
    assert labels(margins).tolist() == [STABLE, RESTRAINED, DIVERGENT, DIVERGENT, STABLE]


def test_unit_coordinates_are_logarithmic() -> None:
    corners = AMPLIFIER.values(np.array([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]))
    np.testing.assert_allclose(corners, [[1e-3, 1e-3], [0.1, math.sqrt(0.1)], [10.0, 100.0]])


def test_edges_of_the_amplifier_by_formula() -> None:
    """Slowest mode: curvature 4. First anti-diffusive one: 38 of 63 steps up to pi."""
    lr, decay = AMPLIFIER.values(AMPLIFIER.truth[0]).T
    lowest = -4 / (1 + 4 * (38 * math.pi / 63) ** 2)
    calm = (decay > -lowest) & (lr * (decay + 4) < 2)
    # A saturated step multiplies by 1 - lr (decay + 0.32): 1000-fold growth in 200 steps.
    blown = lr * (decay + 0.32) - 1 > 1000 ** (1 / 200)
    expected = np.where(blown, DIVERGENT, np.where(calm, STABLE, RESTRAINED))
    assert np.array_equal(AMPLIFIER.truth[1], expected)
    assert set(expected) == {STABLE, RESTRAINED, DIVERGENT}


@given(st.floats(1e-3, 10), st.floats(1e-3, 100))
def test_stable_margin_of_the_amplifier_mode_by_mode(lr: float, decay: float) -> None:
    modes = [k * math.pi / 63 for k in range(64)]
    pulls = [(4 if k < 38 else -4) / (1 + 4 * modes[k] ** 2) for k in range(64)]
    largest = max(abs(1 - lr * (decay + pull)) for pull in pulls)
    found = AMPLIFIER.respond(np.array([[lr, decay]]))[0, 0]
    assert found == pytest.approx(-math.log(largest + 1e-12) / min(1, lr), rel=1e-9, abs=1e-9)


def settled_sharpness(target: float) -> float:
    """Sharpness of the minimum to which a small lr leads: it keeps all w_i^2 - w_j^2."""
    starts = [share**2 * target ** (2 / 3) for share in (0.55, 0.65, 0.75)]
    low, high = 0.0, 4 * target ** (2 / 3)
    for _ in range(200):
        shift = (low + high) / 2
        reached = math.prod(start + shift for start in starts) > target**2
        low, high = (low, shift) if reached else (shift, high)
    return float(sum(target**2 / (start + low) for start in starts))


@pytest.mark.parametrize("target", [0.1, 1.0, 30.0])
def test_linear_threshold_of_the_deep_linear_net(target: float) -> None:
    """Calm below 2 / sharpness; not calm above 2 over the least sharpness of any minimum."""
    edge, least = 2 / settled_sharpness(target), 3 * target ** (4 / 3)
    below, above = [0.8 * edge, 0.95 * edge], [1.02 * 2 / least, 1.2 * 2 / least]
    found = labels(deep_linear(np.array([[lr, target] for lr in below + above])))
    assert found.tolist() == [STABLE, STABLE, RESTRAINED, RESTRAINED]
    assert labels(deep_linear(np.array([[10 * edge, target]]))).tolist() == [DIVERGENT]


@pytest.mark.parametrize("rate", [0.6, 0.7, 0.75, 1.6, 4.0])
def test_margins_of_the_deep_linear_net_step_by_step(rate: float) -> None:
    """At rest, in a cycle of two, and blown up; target 1."""
    w = [0.55, 0.65, 0.75]
    residuals: list[float] = []
    while len(residuals) < 400 and not (residuals and abs(residuals[-1] / residuals[0]) >= 1e3):
        product = math.prod(w)
        residuals.append(product - 1)
        w = [a - rate * (product - 1) * product / a for a in w]
    stable, bounded = deep_linear(np.array([[rate, 1.0]]))[0]
    sizes = [abs(r / residuals[0]) for r in residuals]
    if sizes[-1] < 1e3:
        moves = [(b - a) / residuals[0] for a, b in pairwise(residuals[-51:])]
        ripple = math.sqrt(sum(move**2 for move in moves) / 50)
        assert stable == pytest.approx(-2 - math.log10(ripple + 1e-6), abs=1e-6)
        assert bounded == pytest.approx(1 - math.log10(max(sizes)) / 3)
    else:
        assert bounded == pytest.approx(-math.log10(400 / (len(residuals) - 1)) - 0.05)
        assert stable == pytest.approx(bounded - 3)


@given(st.floats(0.05, 3), st.floats(0.1, 100))
def test_the_deep_linear_net_knows_one_number(rate: float, target: float) -> None:
    """Margins depend on lr target^(4/3) alone; where paths are chaotic, only roughly."""
    one, other = deep_linear(np.array([[rate, 1.0], [rate / target ** (4 / 3), target]]))
    if one[1] < 0:  # ended, after the same number of steps
        assert other == pytest.approx(one, abs=1e-9)
    elif one[0] > 0.5:
        assert other == pytest.approx(one, abs=1e-3)
    else:
        assert other[1] > 0


def test_edges_of_the_heavy_ball_by_linear_theory() -> None:
    """At rest the largest curvature is 6 + decay, far away it is decay: lr h < 2 (1 + 0.8).

    Where decay does not dominate, a cycle coexists with the rest from some 0.75 of the edge on.
    """
    calm = [(0.7, 0.01), (0.7, 1.0), (0.985, 20.0), (0.985, 90.0)]
    wild = [(1.015, decay) for decay in (0.01, 1.0, 20.0, 90.0)]
    blown = [(1.015, decay) for decay in (1.0, 5.0, 20.0, 90.0)]
    values = [(share * 3.6 / (6 + decay), 1e-3, decay) for share, decay in calm + wild]
    values += [(share * 3.6 / decay, 1e-3, decay) for share, decay in blown]
    found = labels(heavy_ball(np.array(values)))
    assert found.tolist() == 4 * [STABLE] + 4 * [RESTRAINED] + 4 * [DIVERGENT]


@pytest.mark.parametrize("rates", [(1.0, 5.0), (3.0, 20.0), (60.0, 6.0)])
def test_losses_of_the_tanh_network_by_autograd(rates: tuple[float, float]) -> None:
    first, second, x, y = (torch.from_numpy(array) for array in tanh_data())
    assert len(x) == len(y) == first.numel() + second.numel()
    first.requires_grad_()
    second.requires_grad_()
    losses = []
    for _ in range(12):
        output = torch.tanh(2**0.5 * (x @ first) / 2) @ second / 4
        loss = torch.nn.functional.mse_loss(output, y)
        losses.append(loss.item())
        slopes = torch.autograd.grad(loss, [first, second])
        for layer, rate, slope in zip((first, second), rates, slopes, strict=True):
            layer.data -= rate * slope
    found = tanh_losses(np.array([rates]), 12)[:, 0]
    np.testing.assert_allclose(found, losses, rtol=1e-9)


def test_three_regimes_of_the_tanh_network() -> None:
    """The margins from the paths of the loss: at rest, never at rest, blown up."""
    problem = PROBLEMS["tanh-network"]
    values = problem.values(np.array([[0.02, 0.02], [0.5, 0.3], [0.9, 0.95]]))
    loss = tanh_losses(values, 200)
    margins = problem.respond(values)
    ripple = np.sqrt((np.diff(loss[-40:], axis=0) ** 2).mean(0)) / loss[-40:].mean(0)
    assert labels(margins).tolist() == [STABLE, RESTRAINED, DIVERGENT]
    assert ripple[0] < 0.01 < ripple[1]
    np.testing.assert_allclose(margins[:2, 0], -np.log10(ripple[:2] * 100), atol=0.01)
    assert loss[:, :2].max() < 1e4 * loss[0, 0]
    early = np.flatnonzero(loss[:, 2] > 1e4 * loss[0, 2])[0]
    assert margins[2, 1] == pytest.approx(-math.log10(200 / early) - 0.05)


def test_trainings_of_the_one_layer_cnn_agree_with_its_theory() -> None:
    """At decay 20 the edges are 0.032259 and 0.1 (Sun et al.)."""
    values = np.array([[lr, 20.0] for lr in (0.0316, 0.0329, 0.098, 0.102)])
    exact = [STABLE, RESTRAINED, RESTRAINED, DIVERGENT]
    assert one_layer_cnn_regimes(values).tolist() == exact
    assert labels(one_layer_cnn(values)).tolist() == exact
    problem = PROBLEMS["one-layer-cnn"]
    unit = np.array([[math.log(0.05 / 0.003) / math.log(0.5 / 0.003), math.log(5) / math.log(64)]])
    np.testing.assert_allclose(problem.values(unit), [[0.05, 20.0]])
    assert problem.truth[1].shape == (256**2,)


def test_noise_is_seeded_and_of_the_stated_size() -> None:
    unit = np.random.default_rng(1).random((4000, 2))
    exact = AMPLIFIER.margins(unit)
    seen = [AMPLIFIER.observe(unit, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])
    np.testing.assert_allclose((seen[0] - exact).std(axis=0), 0.03, rtol=0.05)
    quiet = replace(AMPLIFIER, noise=0.0)
    assert np.array_equal(quiet.observe(unit, np.random.default_rng(3)), exact)


def disc(unit: Array) -> Array:
    """Stable inside a disc, divergent beyond a line; linear margins."""
    x, y = unit.T[:2]
    return np.stack([0.3 - np.hypot(x - 0.4, y - 0.45), 0.9 - x], axis=1)


DISC = Problem(
    "disc", ("a", "b"), (0.0, 0.0), (1.0, 1.0), 128, lambda values: disc(np.log10(values))
)


def test_truth_is_a_grid_of_centres_and_the_subsample_stays() -> None:
    at, exact = DISC.truth
    assert at.shape == (128**2, 2)
    np.testing.assert_allclose(
        [at[0], at[1], at[-1]], [[1 / 256] * 2, [1 / 256, 3 / 256], [255 / 256] * 2]
    )
    assert (exact == STABLE).mean() == pytest.approx(math.pi * 0.09, abs=2e-3)
    assert (exact == DIVERGENT).mean() == pytest.approx(0.1, abs=5e-3)
    places, known = DISC.sample
    assert len({tuple(place) for place in places}) == SUBSAMPLE
    assert np.array_equal(known, labels(disc(places)))
    assert np.array_equal(places, replace(DISC).sample[0])


# ------------------------------------------------------------------ rivals


def counted(
    respond: Callable[[Array], Array],
) -> tuple[Callable[[Array], tuple[Array, Labels]], list[tuple[float, ...]]]:
    """A measure without noise, and the list of all points that it was asked for."""
    asked: list[tuple[float, ...]] = []

    def measure(unit: Array) -> tuple[Array, Labels]:
        asked.extend(map(tuple, unit.tolist()))
        margins = respond(unit)
        return margins, labels(margins)

    return measure, asked


@pytest.mark.parametrize("dimension", [2, 3])
def test_quadtree_never_asks_twice_and_reports_what_it_asked(dimension: int) -> None:
    measure, asked = counted(disc)
    for x, found in quadtree(measure, dimension, 300, seed=0):
        assert sorted(map(tuple, x.tolist())) == sorted(asked)
        assert np.array_equal(found, labels(disc(x)))
    assert len(set(asked)) == len(asked)
    assert 300 <= len(asked) < 300 + 3**dimension
    assert min(map(min, asked)) == 0
    assert max(map(max, asked)) == 1


def test_quadtree_closes_in_on_a_disc() -> None:
    measure, _ = counted(disc)
    curve = nearest_curve(quadtree(measure, 2, 900, seed=1), *DISC.sample)
    errors = [error_at(curve, runs) for runs in (50, 200, 800)]
    assert errors[0] is not None and errors[1] is not None and errors[2] is not None
    # The error is the width of the smallest cells, and each halving doubles their number.
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.4 * errors[1]
    [(runs, even)] = nearest_curve(grid(measure, 2, [28]), *DISC.sample)
    assert runs == 784
    assert errors[2] < 0.5 * even


def test_quadtree_splits_cells_with_unlike_corners_only() -> None:
    measure, asked = counted(lambda unit: np.stack([1 - unit[:, 0], 1 + unit[:, 0]], axis=1))
    assert [len(x) for x, _ in quadtree(measure, 2, 1000, seed=0)] == [16]
    corners = {(i / 3, j / 3) for i in range(4) for j in range(4)}
    assert {tuple(round(3 * c) / 3 for c in place) for place in asked} == corners
    # A line at 0.5: of the three columns of cells only the middle one is split, then halves of it.
    measure, asked = counted(lambda unit: np.stack([0.501 - unit[:, 0]] * 2, axis=1))
    list(quadtree(measure, 2, 200, seed=0))
    outside = [x for x, _ in asked if not 1 / 3 <= x <= 2 / 3]
    assert {round(3 * x) for x in outside} == {0, 3}
    assert len(outside) == 8


def test_grids_have_the_centres_of_their_cells() -> None:
    measure, _ = counted(disc)
    sizes = [x for x, _ in grid(measure, 2, [2, 3])]
    assert sorted(map(tuple, sizes[0].tolist())) == [
        (a, b) for a in (0.25, 0.75) for b in (0.25, 0.75)
    ]
    assert [x.shape for x in sizes] == [(4, 2), (9, 2)]
    np.testing.assert_allclose(np.unique(sizes[1]), [1 / 6, 1 / 2, 5 / 6])


def test_sobol_grows_by_batches_and_depends_on_the_seed() -> None:
    measure, asked = counted(disc)
    seen = list(sobol(measure, 2, 64, seed=5))
    assert [len(x) for x, _ in seen] == list(range(BATCH, 65, BATCH))
    assert [tuple(place) for place in seen[-1][0].tolist()] == asked
    assert np.array_equal(seen[-1][1], labels(disc(seen[-1][0])))
    # Each of 64 points of a scrambled sequence has a 64th of either axis to itself.
    for column in seen[-1][0].T:
        assert sorted(np.floor(64 * column)) == list(range(64))
    assert not np.array_equal(next(sobol(measure, 2, 64, seed=6))[0], seen[0][0])


class Watched(optuna.samplers.RandomSampler):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.told: list[tuple[float, float, float]] = []

    def after_trial(
        self, study: Any, trial: Any, state: Any, values: Sequence[float] | None
    ) -> None:
        assert values is not None
        self.told.append((trial.params["x0"], trial.params["x1"], values[0]))


def test_optuna_is_told_the_smaller_distance_after_each_run() -> None:
    sampler = Watched()
    measure, asked = counted(disc)
    seen = list(optuna_search(sampler, measure, 2, 20))
    assert [len(x) for x, _ in seen] == [8, 16]
    assert [(a, b) for a, b, _ in sampler.told] == asked
    for a, b, value in sampler.told:
        assert value == pytest.approx(min(abs(0.3 - math.hypot(a - 0.4, b - 0.45)), abs(0.9 - a)))


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([0.5, 0.02, 0.02], 16),
        ([0.5, 0.021, 0.02, 0.02], 24),
        ([0.5, 0.019, 0.0251, 0.018, 0.0249, 0.5], 32),  # 0.0251 is above 1.25 x 0.02
        ([0.5, 0.019, 0.025], 16),
        ([0.5, 0.4, 0.01], None),  # nothing follows
        ([0.5, 0.4, 0.3], None),
        ([], None),
    ],
)
def test_runs_to_a_target(errors: list[float], expected: int | None) -> None:
    curve = [(8 * i + 8, error) for i, error in enumerate(errors)]
    assert runs_to(curve, 0.02) == expected


@given(st.lists(st.floats(0, 0.1), max_size=12), st.floats(0.005, 0.05))
def test_runs_to_is_the_first_check_that_holds(errors: list[float], target: float) -> None:
    curve: Curve = [(i, error) for i, error in enumerate(errors)]
    holding = [i for i, (a, b) in enumerate(pairwise(errors)) if a <= target and b <= 1.25 * target]
    assert runs_to(curve, target) == (holding[0] if holding else None)


def test_error_after_so_many_runs() -> None:
    curve = [(16, 0.3), (30, 0.2), (44, 0.1)]
    assert [error_at(curve, n) for n in (10, 16, 43, 44, 45)] == [None, 0.3, 0.2, 0.1, None]


def test_median_counts_what_was_not_reached_as_late() -> None:
    assert middle([8, None, 16]) == 16
    assert middle([None, 8, None]) is None
    assert middle([24, 8, 16, None, 8]) == 16
    assert middle([8, 16]) == 16


def test_nearest_labels_by_brute_force() -> None:
    random = np.random.default_rng(0)
    x, at, found = random.random((40, 3)), random.random((200, 3)), random.integers(0, 3, 40)
    distances = np.linalg.norm(at[:, None] - x[None], axis=-1)
    assert np.array_equal(nearest_labels(x, found, at), found[distances.argmin(axis=1)])


def test_calibration_error_by_hand() -> None:
    """0.9 right in 2 of 4, 0.62 right in 1 of 1: 0.8 x 0.4 + 0.2 x 0.38."""
    probabilities = np.array([[0.9, 0.1, 0.0]] * 4 + [[0.2, 0.18, 0.62]])
    truth = np.array([0, 0, 1, 2, 2])
    assert calibration_error(probabilities, truth) == pytest.approx(0.8 * 0.4 + 0.2 * 0.38)
    share, confidence, accuracy = reliability(probabilities, truth)
    assert np.flatnonzero(share).tolist() == [12, 18]
    assert (confidence[18], accuracy[18]) == pytest.approx((0.9, 0.5))
    assert np.isnan(accuracy[0])


def test_certainty_falls_into_the_last_bin() -> None:
    sure = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert calibration_error(sure, np.array([0, 1])) == 0
    assert calibration_error(sure, np.array([0, 2])) == 0.5
    assert [len(part) for part in reliability(sure, np.array([0, 1]))] == [20, 20, 20]


def test_labels_drawn_from_the_probabilities_are_calibrated() -> None:
    random = np.random.default_rng(2)
    probabilities = random.dirichlet([1, 1, 1], 40_000)
    truth = (random.random(40_000)[:, None] > probabilities.cumsum(axis=1)).sum(axis=1)
    assert calibration_error(probabilities, truth) < 0.01
    sharpened = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    assert calibration_error(sharpened, truth) > 0.1

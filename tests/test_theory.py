"""Exact phases of the one-layer CNN: tables, brute simulation and the network itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import correlate2d, fftconvolve
from scipy.special import expit
from torch import Tensor

from analysis.theory import OneLayerCNN, overlays
from analysis.theory import one_layer_cnn as theory_of
from analysis.theory.images import checkerboard
from trainables.domain import InputError, Regime
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
    assert theory.sharpness == max(theory.curvature(theory.equilibrium), weight_decay)
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
    """The Hessian of the real network has the largest eigenvalue that theory writes down."""
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
    (gradient,) = torch.autograd.grad(loss, kernel, create_graph=True)
    assert float(gradient.detach().abs().max()) < 1e-12
    second = [torch.autograd.grad(entry, kernel, retain_graph=True)[0] for entry in gradient[0]]
    top = torch.linalg.eigvalsh(torch.cat(second))[-1]
    assert float(top) == pytest.approx(theory.sharpness, rel=1e-10)


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


# --------------------------------------------------------------------------- arrays and phases


def test_regimes_of_the_papers_rates() -> None:
    """Acceptance row 15, by theory: the labels that a measured map has to show."""
    rates = [0.01, 0.02, 0.029, 0.031, 0.05, 0.07, 0.09, 0.099, 0.101, 0.12]
    phases = theory_of.one_layer_cnn_phases(rates, 20.0)
    assert "".join(label[0].upper() for label in phases.regime) == "SSSSRRRRDD"
    assert {Regime(label) for label in phases.regime} == set(Regime)


def test_arrays_of_decays_give_the_table() -> None:
    """Acceptance row 14, all decays at once."""
    decay, kappa, _, stable, bounded = np.array(TABLE).T
    phases = theory_of.one_layer_cnn_phases(np.full((3, 1), 0.01), decay)
    assert phases.regime.shape == (3, len(decay))
    np.testing.assert_allclose(phases.equilibrium, kappa, atol=1e-4)
    np.testing.assert_allclose(phases.largest_stable_lr, stable, atol=1e-6)
    np.testing.assert_allclose(phases.largest_bounded_lr, bounded, rtol=1e-14)
    for index, value in enumerate(decay):
        one = OneLayerCNN(float(value))
        assert one.equilibrium == phases.equilibrium[index]
        assert one.sharpness == phases.sharpness[index]
        assert one.largest_stable_lr == phases.largest_stable_lr[index]


def test_regimes_at_the_boundaries_themselves() -> None:
    """At 2 / decay the rest of the kernel keeps its size: bounded, but nothing dies out."""
    for decay in (20.0, 200.0):
        theory = OneLayerCNN(decay)
        edges = np.array([theory.largest_stable_lr, theory.largest_bounded_lr])
        for factor, expected in ((0.999, "SR"), (1.0, "RR"), (1.001, "RD")):
            found = theory_of.one_layer_cnn_phases(factor * edges, decay).regime
            letters = "".join(label[0].upper() for label in found)
            if decay == 200:  # one boundary only
                expected = {0.999: "SS", 1.0: "RR", 1.001: "DD"}[factor]
            assert letters == expected


def test_without_decay_every_rate_is_stable() -> None:
    phases = theory_of.one_layer_cnn_phases([1e-3, 1.0, 1e6], 0.0)
    assert set(phases.regime) == {"stable"}
    theory = OneLayerCNN(0.0)
    assert theory.equilibrium == theory.largest_stable_lr == theory.largest_bounded_lr == math.inf
    assert theory.sharpness == 0.0
    path = theory_of.one_layer_cnn_path([0.3, 0.3], [0.01, 50.0], 0.0, 3000)
    assert (np.diff(path, axis=0) >= 0).all()
    assert np.ptp(np.diff(path[-100:], axis=0), axis=0).max() < 1e-3
    small = theory_of.one_layer_cnn_phases(1.0, [1e-9, 1e-3])
    assert np.isfinite(small.equilibrium).all()
    np.testing.assert_allclose([OneLayerCNN(1e-9).gradient(small.equilibrium[0])], 0, atol=1e-20)


@pytest.mark.parametrize("width", [1, 2, 8, 32])
def test_the_pull_of_the_data_ends_at_a_quarter_of_the_pixels(width: int) -> None:
    edge = width**2 / 4
    below, at, above = theory_of.one_layer_cnn_phases(
        1.0, edge * np.array([0.999, 1, 1.001]), width
    ).equilibrium
    assert below > 0.01
    assert at == above == 0.0


@given(st.floats(1e-4, 4.0), st.integers(1, 40), st.one_of(st.just(0.5), st.floats(0.0, 1.0)))
def test_equilibrium_is_a_minimum_and_none_lies_beyond(
    strength: float, width: int, share: float
) -> None:
    theory = OneLayerCNN(strength * width**2 / 4, width, share)
    at = theory.equilibrium
    force = theory.weight_decay * max(abs(at), 1.0) + width**2
    assert abs(theory.gradient(at)) < 1e-13 * force
    assert theory.curvature(at) > -1e-9 * width**2
    beyond = max(at, 0.0) + np.geomspace(1e-3, 1e3, 200)
    assert all(theory.gradient(x) > 0 for x in beyond)
    if at < 0:  # the only one, then: no minimum above 0
        assert share < 0.5
        assert all(theory.gradient(x) > 0 for x in np.geomspace(1e-6, 1e3, 200))


@given(st.floats(-40, 40), st.floats(0, 50), st.integers(1, 40), st.floats(0, 1))
def test_derivatives_of_the_loss_and_its_mirror_image(
    kappa: float, decay: float, width: int, share: float
) -> None:
    loss = theory_of.one_layer_cnn_loss(kappa, decay, width, share)
    mirrored = theory_of.one_layer_cnn_loss(-kappa, decay, width, 1 - share)
    assert float(loss) == pytest.approx(float(mirrored), rel=1e-9, abs=1e-300)
    x = torch.tensor(kappa, dtype=torch.float64)
    expected = float(objective(x, decay, width, share)) / width**2
    assert float(loss) == pytest.approx(expected, rel=1e-11, abs=1e-14)


def test_losses_of_the_paper() -> None:
    """Acceptance row 12: the initial loss, by theory and by convolving the image."""
    kernel = np.random.RandomState(7).randn(32, 32)
    pattern = checkerboard(32)
    kappa = float((kernel * pattern).sum())
    assert kappa == pytest.approx(-0.0360371765, abs=5e-11)
    norm = float((kernel**2).sum())
    assert norm == pytest.approx(949.7490816, abs=5e-8)
    rest = norm - (kappa / 32) ** 2
    for size in (64, 256):
        share = float(theory_of.checkerboard_share(size, 32))
        loss = float(theory_of.one_layer_cnn_loss(kappa, 20.0, 32, share, rest))
        assert loss == pytest.approx(9498.18380, abs=1e-5)
        response = fftconvolve(checkerboard(size), kernel[::-1, ::-1], mode="valid")
        logit = (response * expit(response)).mean()
        assert loss == pytest.approx(np.log1p(np.exp(-logit)) + 10 * norm, rel=1e-12)
    for size, side, least in ((256, 1, 0.29149), (64, 1, 0.29125), (64, -1, 0.29173)):
        share = float(theory_of.checkerboard_share(size, 32))
        at = side * OneLayerCNN(20.0, share=share if side > 0 else 1 - share).equilibrium
        found = float(theory_of.one_layer_cnn_loss(at, 20.0, 32, share))
        assert found == pytest.approx(least, abs=2e-5)


@given(st.integers(1, 12), st.data())
def test_share_counts_the_patches(size: int, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, size))
    windows = np.lib.stride_tricks.sliding_window_view(checkerboard(size), (width, width))
    equal = (windows == checkerboard(width)).all(axis=(2, 3))
    assert float(theory_of.checkerboard_share(size, width)) == equal.mean()


def test_shares_of_the_paper() -> None:
    shares = theory_of.checkerboard_share([256, 64], 32)
    np.testing.assert_array_equal(shares, [25313 / 50625, 545 / 1089])


def convolved_path(
    size: int, width: int, lr: float, decay: float, steps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """kappa and the norm of the rest, from gradient descent on the network with every patch."""
    image, pattern = checkerboard(size), checkerboard(width)
    kernel = np.random.RandomState(1).randn(width, width)
    kappas, rests = [], []
    for _ in range(steps + 1):
        kappas.append((kernel * pattern).sum())
        rests.append(np.linalg.norm(kernel - kappas[-1] * pattern / width**2))
        x = correlate2d(image, kernel, mode="valid")
        slope = expit(x) * (1 + x * expit(-x)) / x.size
        doubt = expit((x * expit(x)).mean()) - 1
        gradient = doubt * correlate2d(image, slope, mode="valid") + decay * kernel
        kernel = kernel - lr * gradient
    return np.array(kappas), np.array(rests)


@pytest.mark.parametrize("lr", [0.2, 0.7, 1.3, 1.9, 2.1])
def test_the_reduction_is_the_network(lr: float) -> None:
    """Gradient descent on all patches follows the scalar recursion, in every regime."""
    kappas, rests = convolved_path(9, 4, lr, 1.0, 15)  # few steps: chaos magnifies rounding
    share = float(theory_of.checkerboard_share(9, 4))
    path = theory_of.one_layer_cnn_path(kappas[0], lr, 1.0, 15, 4, share)
    np.testing.assert_allclose(path, kappas, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(rests, rests[0] * np.abs(1 - lr) ** np.arange(16), rtol=1e-6)


def test_the_path_is_the_plain_recursion() -> None:
    starts, rates = np.array([-3.0, 0.1, 5.0]), np.array([0.01, 0.035, 0.04])
    path = theory_of.one_layer_cnn_path(starts, rates, 20.0, 300)
    for column in range(3):
        expected = iterate(OneLayerCNN(20.0), rates[column], 300, starts[column])
        np.testing.assert_allclose(path[:, column], expected, rtol=1e-7)


@pytest.mark.parametrize("width", [3, 32, 100])
def test_below_the_boundary_every_start_settles(width: int) -> None:
    """No cycle lives beside the minimum, so the boundary holds for all starts, not just near it."""
    decay = np.geomspace(2e-3, 0.99, 40) * width**2 / 4
    phases = theory_of.one_layer_cnn_phases(1.0, decay, width)
    starts = np.random.default_rng(0).uniform(-30, 30, (30, 1))
    path = theory_of.one_layer_cnn_path(starts, 0.97 * phases.largest_stable_lr, decay, 3000, width)
    np.testing.assert_allclose(
        np.abs(path[-1]), np.broadcast_to(phases.equilibrium, path[-1].shape), atol=1e-6
    )


def test_divergence_starts_when_it_was_measured() -> None:
    """|kappa| passes 1e12 after 137 steps at .11 and after 74 at .12."""
    path = np.abs(theory_of.one_layer_cnn_path(-0.0360371765, [0.0999, 0.11, 0.12], 20.0, 5000))
    assert path[:, 0].max() < 1e6
    first = (path > 1e12).argmax(axis=0)
    np.testing.assert_allclose(first[1:], [137, 74], atol=2)
    assert np.isfinite(path).all()


# --------------------------------------------------------------------------- Lyapunov exponents

START = -0.0360371765


def test_exponents_known_in_closed_form() -> None:
    """Acceptance row 16: the rest of the kernel decides, with ln |1 - lr weight_decay|."""
    rates = np.array([0.01, 0.02, 0.101, 0.12])
    found = theory_of.one_layer_cnn_exponent(START, rates, 20.0)
    np.testing.assert_allclose(found, np.log([0.8, 0.6, 1.02, 1.4]), atol=1e-12)
    near = float(theory_of.one_layer_cnn_exponent(START, 0.031, 20.0, 2000))
    assert near == pytest.approx(math.log(0.031 * OneLayerCNN(20.0).sharpness - 1), abs=1e-6)


def test_periodic_windows_and_chaos() -> None:
    """Science of the restrained band: period 2 up to .045 and a window at .06, chaos elsewhere."""
    periodic = np.array([0.035, 0.04, 0.045, 0.06])
    found = theory_of.one_layer_cnn_exponent(START, periodic, 20.0, 4000)
    np.testing.assert_allclose(found, [-0.42, -1.37, -1.97, -0.097], atol=0.005)
    chaotic = np.array([0.05, 0.055, 0.065, 0.07, 0.08, 0.09, 0.095])
    found = theory_of.one_layer_cnn_exponent(START, chaotic, 20.0, 20_000)
    expected = [0.384, 0.511, 0.559, 0.790, 0.756, 0.650, 0.480]
    np.testing.assert_allclose(found, expected, atol=0.05)
    rates = np.linspace(0.033, 0.045, 25)
    path = theory_of.one_layer_cnn_path(START, rates, 20.0, 4000)[-6:]
    np.testing.assert_allclose(path[2:], path[:-2], atol=1e-7)
    assert (np.abs(path[1:] - path[:-1]) > 0.1).all()
    assert (theory_of.one_layer_cnn_exponent(START, rates, 20.0, 4000) < 0).all()
    assert set(theory_of.one_layer_cnn_phases(rates, 20.0).regime) == {"restrained"}


@given(st.floats(0.2, 5.0), st.floats(0.005, 0.099), st.integers(4, 10))
@settings(max_examples=30)
def test_exponent_is_the_growth_of_a_small_change(start: float, lr: float, steps: int) -> None:
    """Against a second path 1e-7 beside the first, over the second half of a few steps."""
    half = steps // 2
    path = theory_of.one_layer_cnn_path(start, lr, 20.0, steps)
    twin = theory_of.one_layer_cnn_path(
        path[half] + np.array([-1e-7, 1e-7]), lr, 20.0, steps - half
    )
    growth = abs(float(np.diff(twin[-1])[0])) / 2e-7
    along = math.log(growth) / (steps - half) if growth > 1e-4 else -math.inf
    expected = max(along, math.log(abs(1 - 20 * lr)) if lr != 0.05 else -math.inf)
    found = float(theory_of.one_layer_cnn_exponent(start, lr, 20.0, steps))
    if growth > 1e-4:
        assert found == pytest.approx(expected, abs=1e-3)
    else:
        assert found <= max(expected, math.log(2e-4) / (steps - half))


def test_exponent_of_a_single_pixel_has_no_other_direction() -> None:
    decay, lr = 0.2, 8.0
    alone = float(theory_of.one_layer_cnn_exponent(1.0, lr, decay, 2000, width=1))
    kappa = OneLayerCNN(decay, 1).equilibrium
    assert alone == pytest.approx(math.log(abs(1 - lr * OneLayerCNN(decay, 1).curvature(kappa))))
    assert alone != pytest.approx(math.log(abs(1 - lr * decay)))
    assert isinstance(theory_of.one_layer_cnn_exponent(1.0, 1 / 20, 20.0, 2), float)


def test_the_rest_is_forgotten_in_one_step() -> None:
    """At lr = 1 / weight_decay the other components vanish at once."""
    rests = convolved_path(9, 4, 0.25, 4.0, 2)[1]
    assert rests[0] > 1
    assert rests[1] < 1e-14


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: OneLayerCNN(-1.0), "weight_decay"),
    (lambda: OneLayerCNN(math.nan), "weight_decay"),
    (lambda: OneLayerCNN(1.0, 0), "width"),
    (lambda: OneLayerCNN(1.0, 3, 1.5), "share"),
    (lambda: OneLayerCNN(1.0).gradient(math.nan), "kappa"),
    (lambda: OneLayerCNN(1.0).curvature(math.inf), "kappa"),
    (lambda: theory_of.one_layer_cnn_phases(0.0, 1.0), "lr"),
    (lambda: theory_of.one_layer_cnn_phases(0.1, -1.0), "weight_decay"),
    (lambda: theory_of.one_layer_cnn_phases([0.1, 0.2], [1.0, 2.0, 3.0]), "broadcast"),
    (lambda: theory_of.one_layer_cnn_phases(0.1, 1.0, 2.5), "width"),  # type: ignore[arg-type]
    (lambda: theory_of.one_layer_cnn_phases(0.1, 1.0, 2, -0.1), "share"),
    (lambda: theory_of.checkerboard_share(4, 5), "width"),
    (lambda: theory_of.checkerboard_share(4.5, 2), "image"),
    (lambda: theory_of.one_layer_cnn_path(math.nan, 0.1, 1.0, 3), "kappa"),
    (lambda: theory_of.one_layer_cnn_path(1.0, 0.1, 1.0, -1), "steps"),
    (lambda: theory_of.one_layer_cnn_path([1.0, 2.0], 0.1, [1.0, 2.0, 3.0], 1), "broadcast"),
    (lambda: theory_of.one_layer_cnn_exponent(0.0, 0.1, 1.0), "kappa"),
    (lambda: theory_of.one_layer_cnn_exponent(1.0, 0.1, 1.0, 1), "steps"),
    (lambda: theory_of.one_layer_cnn_loss(1.0, 1.0, rest=-1.0), "rest"),
]


@pytest.mark.parametrize(("call", "word"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_wrong_input_is_refused_by_name(call: Callable[[], object], word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        call()
    assert len(caught.value.mistakes) == 1

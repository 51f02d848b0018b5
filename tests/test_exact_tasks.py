"""The tasks whose answers are known: their schemes against `analysis.theory`, their rows of the
acceptance table through `evaluate`, their messages."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from analysis.theory import (
    beltrami_cfl_bound,
    beltrami_divergence_bound,
    beltrami_reach,
    beltrami_signal,
    beltrami_simulate,
    deep_linear_descent,
    deep_linear_lr_bound,
    even_power_radius,
    even_power_step,
    heat_dirichlet_bound,
    heat_growth,
    heat_simulate,
    heat_start,
    linear_cnn_amplifier,
    nearest_psd,
    nesterov_amplifier,
    nesterov_lr,
    overlays,
    patch_gram,
    relu_descent,
    relu_output_bound,
    three_halves_step,
    two_minima_gradient,
)
from sweeps.spec import load_spec
from trainables.domain import InputError, Point, PointResult, Training
from trainables.dynamics.curvature import sharpness
from trainables.evaluate import evaluate
from trainables.tasks import get_task
from trainables.trajectory import Bench, Trajectory

Array = NDArray[np.float64]

#: What is known is known in real numbers; a training that ends early has another metric.
EXACT: dict[str, Any] = {"dtype": "float64", "early": False}


def labels(results: list[PointResult]) -> str:
    """First letters of the regimes."""
    return "".join(result.verdict.regime[0] for result in results).upper()


def seen(result: PointResult, what: str) -> float:
    """A number among the evidence of the first replicate."""
    value = result.replicates[0].evidence[what]
    assert value is not None
    return value


def path(
    name: str, lr: float, steps: int, weight_decay: float = 0.0, seed: int = 0, **options: Any
) -> list[list[Array]]:
    """Parameters before each step and after the last of the training that `evaluate` makes."""
    return walk(name, Point(lr, 0.0, weight_decay), Training(dtype="float64"), steps, seed, options)


def walk(
    name: str, point: Point, training: Training, steps: int, seed: int, options: dict[str, Any]
) -> list[list[Array]]:
    """`path` at any point, with any training."""
    bench = Bench.of(get_task(name, **options), training)
    trajectory = Trajectory(bench, point, 1, seed)
    states = [trajectory.snapshot()]
    for step in range(steps):
        trajectory.step(bench.batch(seed, step))
        states.append(trajectory.snapshot())
    return [[p.numpy() for p in state] for state in states]


def trained(name: str, lr: float, steps: int, *args: Any, **options: Any) -> list[Array]:
    """The last of `path`."""
    return path(name, lr, steps, *args, **options)[-1]


# ------------------------------------------------------------------ the schemes of the papers


def test_heat_is_explicit_euler() -> None:
    """Acceptance row 7: the middle of the line at t = 4 in steps of 0.4, too."""
    for points in (3, 4, 31):
        (inner,) = trained("heat", 0.4, 10, points=points)
        expected = heat_simulate(heat_start(points), 0.4, 10)
        np.testing.assert_allclose(inner[0], expected[1:-1], rtol=1e-13, atol=1e-15)
    assert inner[0, 14] == pytest.approx(1.2749940224, rel=0, abs=5e-11)


def test_beltrami_is_explicit_euler() -> None:
    (u,) = trained("beltrami", 0.3, 25, fidelity=0.7, delta=0.05, noise_seed=3, points=50)
    signal = beltrami_signal(50, 3)
    expected = beltrami_simulate(signal, signal, 0.3, 25, 0.05, 0.7).u
    np.testing.assert_allclose(u[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("error", [-0.5, 0.25])
@pytest.mark.parametrize("periodic", [False, True])
def test_linear_cnn_is_its_iteration(periodic: bool, error: float) -> None:
    """K - lr [a beta / 2 X^T X K + wd K], X the patches of the image one by one."""
    image, width, lr, decay = 8, 3, 1e-3, 5.0
    options = {"image": image, "kernel": width, "error": error, "steepness": 2.0}
    (found,) = trained("linear-one-layer-cnn", lr, 5, decay, seed=4, periodic=periodic, **options)
    board = np.where(np.add.outer(np.arange(image), np.arange(image)) % 2, 1.0, -1.0)
    places = range(image if periodic else image - width + 1)
    wide = np.tile(board, (2, 2))
    rows = np.array([wide[i : i + width, j : j + width].ravel() for i in places for j in places])
    if not periodic:
        np.testing.assert_allclose(rows.T @ rows, patch_gram(board, width))
    kernel = np.random.RandomState(4).randn(width, width).ravel()
    for _ in range(5):
        kernel = kernel - lr * (error * 2.0 / 2 * rows.T @ (rows @ kernel) + decay * kernel)
    np.testing.assert_allclose(found[0], kernel, rtol=1e-12)


def test_value_and_curvature_of_the_linear_cnn() -> None:
    """The value is positive and grows with the kernel, though the curvature is negative."""
    task = get_task("linear-one-layer-cnn", image=8, kernel=3)
    module, (inputs, targets) = task.module(0), task.train_data()
    kernel = next(module.parameters()).detach().numpy()[0]
    pattern = inputs[0, 0].numpy()
    loss = task.loss.value(module(inputs), targets)
    assert float(loss.detach()) == pytest.approx(36 * (pattern @ kernel) ** 2 / 8)
    flat = get_task("linear-one-layer-cnn", image=8, kernel=3, error=0.5)
    top = sharpness(flat.module(0), flat.loss.value, inputs, targets).value
    assert top == pytest.approx(36 * 9 / 4, rel=1e-3)


def test_attractors_take_turns() -> None:
    """x moves towards one noisy place a step; together they surround the origin."""
    task = get_task("quadratic-attractors", samples=40)
    places = task.train_data()[1].numpy()
    np.testing.assert_allclose(places.mean(0), 0, atol=1e-15)
    corners, counts = np.unique(np.sign(places), axis=0, return_counts=True)
    assert corners.tolist() == [[-1, -1], [-1, 1], [1, -1], [1, 1]]
    assert counts.tolist() == [10] * 4
    assert (places - np.sign(places)).std() == pytest.approx(0.1, rel=0.2)
    (before,), (after,) = path("quadratic-attractors", 0.1, 1, samples=40)
    attractor = before[:, 0] + (after - before)[:, 0] / 0.1
    assert np.abs(places - attractor).sum(1).min() < 1e-12


@pytest.mark.parametrize("number", [1, 2, 3])
def test_scalar_examples_are_gradient_descent(number: int) -> None:
    x, lr = np.array(1.3), 0.05
    options = {"number": number, "low": 1.3, "high": 1.3, "power": 6}
    (found,) = trained("scalar-example", lr, 7, **options)
    for _ in range(7):
        if number == 1:
            x = three_halves_step(x, lr)
        else:
            x = x - lr * two_minima_gradient(x) if number == 2 else even_power_step(x, lr, 6)
    assert found.item() == pytest.approx(float(x), rel=1e-12)


@pytest.mark.parametrize("start", ["identity", "random"])
def test_deep_linear_is_the_papers_descent(start: str) -> None:
    options: dict[str, Any] = {"eigenvalues": [2, 1, -0.5], "start": start, "basis_seed": 2}
    task = get_task("deep-linear", **options)
    target = task.train_data()[1][0].numpy()
    np.testing.assert_allclose(np.linalg.eigvalsh(target), [-0.5, 1, 2], atol=1e-12)
    states = path("deep-linear", 0.1, 9, seed=5, **options)
    expected = deep_linear_descent(states[0], target, 0.1, 9)
    for found, layer in zip(states[-1], expected, strict=True):
        np.testing.assert_allclose(found, layer, rtol=0, atol=1e-12)
    (result,) = evaluate([Point(0.1)], task, steps=20, seeds=1, sharpness=False, **EXACT)
    assert task.metric(torch.zeros(1, 3, 3), torch.from_numpy(target)[None]) == pytest.approx(
        math.sqrt(5.25)
    )
    assert seen(result, "metric") == pytest.approx(
        math.sqrt(2 * seen(result, "final_loss")), rel=0.5
    )


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_relu_fit_is_the_papers_descent(factor: float) -> None:
    options = {"points": 30, "units": 5, "factor": factor, "teacher_seed": 1}
    task = get_task("two-layer-relu", **options)
    x, targets = (t[0].numpy() for t in task.train_data())
    np.testing.assert_allclose(x[:, 0], np.arange(30) / 30)
    b = dict(task.module(0).named_buffers())["thresholds"].numpy()
    states = path("two-layer-relu", 0.01, 8, seed=2, **options)
    (v, w), (found_v, found_w) = states[0], states[-1]
    expected_w, expected_v = relu_descent(x, targets, w, v, b, 0.01, 8, factor)
    np.testing.assert_allclose(found_w, expected_w, rtol=1e-11)
    np.testing.assert_allclose(found_v, expected_v, rtol=1e-11)
    outputs = torch.full((1, 30, 1), -2.0).double()
    assert task.metric(outputs, torch.from_numpy(targets)[None]) == pytest.approx(2 * 29 / 30)


# ------------------------------------------------------------------ acceptance rows


def test_heat_threshold_and_growth() -> None:
    """Acceptance row 6: the limit from verdicts and from the exponent; the growth at 0.8."""
    bound = float(heat_dirichlet_bound(31))
    points, beyond = [Point(0.99 * bound), Point(1.01 * bound)], 0.505
    assert labels(evaluate(points, "heat", steps=300, lyapunov=False, **EXACT)) == "SD"
    (result,) = evaluate([Point(beyond)], "heat", steps=800, sharpness=False, **EXACT)
    growth = math.exp(seen(result, "lyapunov_exponent"))
    assert 2 * beyond / (growth + 1) == pytest.approx(0.501373, rel=0, abs=1e-6)
    before, after = (np.abs(state[0]).max() for state in path("heat", 0.8, 401)[-2:])
    assert after / before == pytest.approx(2.1912, rel=0, abs=5e-5)
    assert heat_growth(0.8) == pytest.approx(after / before, rel=1e-6)


def test_heat_at_later_times() -> None:
    """Acceptance row 7: the middle of the line is the metric; t = 40 and t = 200."""
    for steps, expected in ((100, 0.78690), (500, 0.13538)):
        settings = {**EXACT, "lyapunov": False, "sharpness": False}
        (result,) = evaluate([Point(0.4)], "heat", steps=steps, **settings)
        assert seen(result, "metric") == pytest.approx(expected, rel=0, abs=5e-6)


def test_beltrami_at_multiples_of_the_bound() -> None:
    """Acceptance row 8: calm, restrained twice, divergent; above 1e30 at iteration 49 +- 2."""
    bound = float(beltrami_cfl_bound())
    assert bound == pytest.approx(0.00498753, rel=1e-6)
    rates = [factor * bound for factor in (0.99, 10, 100, 1000)]
    points = [Point(lr) for lr in rates]
    found = evaluate(points, "beltrami", steps=1000, lyapunov=False, **EXACT)
    assert labels(found) == "SRRD"
    assert seen(found[0], "final_loss") == pytest.approx(4.68804, rel=0, abs=5e-5)
    for result, lr in list(zip(found, rates, strict=True))[:3]:
        assert seen(result, "metric") <= beltrami_reach(lr)
    sizes = [np.abs(state[0]).max() for state in path("beltrami", rates[3], 60)]
    assert 47 <= int(np.argmax(np.array(sizes) > 1e30)) <= 51
    edges = [Point(factor * float(beltrami_divergence_bound())) for factor in (0.99, 1.05)]
    assert labels(evaluate(edges, "beltrami", steps=200, lyapunov=False, **EXACT)) == "RD"
    assert beltrami_divergence_bound() / bound == pytest.approx(401, rel=1e-9)


def smallest_decay(weight_decay: float, lr: float, **options: Any) -> float:
    """Where the linear CNN stops to diverge, by the exponent at half of that weight decay."""
    task = get_task("linear-one-layer-cnn", **options)
    (result,) = evaluate([Point(lr, 0.0, weight_decay)], task, steps=400, sharpness=False, **EXACT)
    return weight_decay + math.expm1(seen(result, "lyapunov_exponent")) / lr


@pytest.mark.parametrize(
    ("kernel", "expected"), [(16, 3_717_184), (32, 12_960_000), (64, 38_142_976)]
)
def test_smallest_decay_of_the_linear_cnn(kernel: int, expected: float) -> None:
    """Acceptance row 9: by the exponent, and by verdicts at the paper's learning rate."""
    found = smallest_decay(expected / 2, 0.06 / expected, kernel=kernel)
    assert found == pytest.approx(expected, rel=1e-5)
    points = [Point(1e-8, 0.0, factor * expected) for factor in (0.9, 1.1)]
    task = get_task("linear-one-layer-cnn", kernel=kernel)
    steps = int(4e9 / expected)  # a tenth of the decay off, the pattern grows by exp(0.1 x 40)
    assert labels(evaluate(points, task, steps=steps, lyapunov=False, **EXACT)) == "DS"


def test_decays_of_the_linear_cnn_without_edges() -> None:
    """Acceptance row 10: the smallest without edges, the largest with."""
    endless = {"kernel": 256, "periodic": True}
    found = smallest_decay(2**29, 0.06 / 2**30, **endless)
    assert found == pytest.approx(1_073_741_824, rel=1e-4)
    points = [Point(1e-8, 0.0, decay) for decay in (1.96e8, 2.04e8)]
    found_rates = evaluate(points, "linear-one-layer-cnn", steps=200, **EXACT)
    assert labels(found_rates) == "SD"
    rate = linear_cnn_amplifier(1e-8, 2.04e8, -0.5, 0.0)
    assert seen(found_rates[1], "lyapunov_exponent") == pytest.approx(math.log(-rate), abs=1e-6)


def test_largest_decay_under_nesterov() -> None:
    """Acceptance row 11: both sides of 1.428571e8 at momentum 0.9, dt 1e-4."""
    lr = float(nesterov_lr(1e-4, 0.9))
    points = [Point(lr, 0.0, factor * 1.428571e8) for factor in (0.99, 1.01)]
    settings = {"optimiser": "nesterov", "momentum": 0.9, "steps": 300, **EXACT}
    found = evaluate(points, "linear-one-layer-cnn", **settings)
    assert labels(found) == "SD"
    for point, result in zip(points, found, strict=True):
        expected = nesterov_amplifier(1e-4, 0.9, point.weight_decay, -0.5, 0.0)
        assert seen(result, "lyapunov_exponent") == pytest.approx(math.log(expected), abs=1e-4)


def test_example_1_alternates() -> None:
    """Acceptance row 18: |x| = 0.25 at lr 1, with one sign after even steps, one after odd."""
    task = get_task("scalar-example", number=1, low=-3, high=3)
    ends = [evaluate([Point(1.0)], task, steps=steps, seeds=10, **EXACT)[0] for steps in (100, 101)]
    even, odd = (
        np.array([replicate.evidence["metric"] for replicate in end.replicates]) for end in ends
    )
    np.testing.assert_allclose(np.abs(even), 0.25, rtol=0, atol=1e-12)
    np.testing.assert_allclose(even, -odd, rtol=0, atol=1e-12)
    assert set(np.sign(even)) == {-1, 1}


def test_example_2_chooses_a_minimum() -> None:
    """Acceptance row 19: at lr 0.3 no start ends at 2 and about 64 % end at 1."""
    settings = {"steps": 60, "seeds": 200, "sharpness": False, "lyapunov": False, **EXACT}
    (result,) = evaluate([Point(0.3)], "scalar-example", **settings)
    ends = np.array([replicate.evidence["metric"] for replicate in result.replicates], float)
    assert not (np.abs(ends - 2) < 1e-3).any()
    assert (np.abs(ends - 1) < 1e-6).mean() == pytest.approx(0.645, abs=0.1)  # 3 sigma


def test_example_3_has_a_radius() -> None:
    """Acceptance row 20: 2.2360680 at power 4 and lr 0.1, to a millionth on both sides."""
    radius = float(even_power_radius(0.1, 4))
    assert radius == pytest.approx(2.2360680, abs=5e-8)
    found = []
    for factor in (1 - 1e-6, 1 + 1e-6):
        start = factor * radius
        task = get_task("scalar-example", number=3, low=start, high=start)
        found += evaluate([Point(0.1)], task, steps=100, **EXACT)
    assert labels(found)[1] == "D"
    assert abs(seen(found[0], "metric")) < 0.5


def test_theorem_2_has_the_factor_two() -> None:
    """Acceptance row 21: 1.99 over L rho^(2 (L - 1) / L) converges, 2.01 does not."""
    limit = float(deep_linear_lr_bound(4.0, 3))
    points = [Point(factor / 2 * limit) for factor in (1.0, 1.99, 2.01)]
    settings = {"steps": 1000, "lyapunov": False, **EXACT}
    first, below, above = evaluate(points, "deep-linear", **settings)
    assert labels([first, below, above]) == "SSR"
    assert seen(below, "metric") < 1e-4
    assert seen(above, "metric") == pytest.approx(0.229, abs=0.03)


def test_theorem_3_and_its_saddle() -> None:
    """Acceptance row 22: a diagonal target gives the closest semidefinite matrix, 2 and 3 layers;
    a rotated one is near it at step 100 and becomes the target itself by step 1000."""
    eigenvalues = (3.0, 1.0, 0.5, -0.7, -2.0)
    target = np.diag(eigenvalues)
    distance = float(np.linalg.norm(target - nearest_psd(target)))
    settings = {"sharpness": False, "lyapunov": False, **EXACT}

    def metric(lr: float, steps: int, **options: Any) -> float:
        task = get_task("deep-linear", eigenvalues=eigenvalues, **options)
        (result,) = evaluate([Point(lr)], task, steps=steps, **settings)
        return seen(result, "metric")

    assert metric(1 / 6, 200, depth=2) == pytest.approx(distance, rel=0, abs=1e-14)
    assert metric(0.05, 600, depth=3) == pytest.approx(distance, rel=0, abs=1e-4)
    assert metric(1 / 6, 100, depth=2, basis_seed=0) == pytest.approx(distance, rel=0, abs=1e-5)
    assert metric(1 / 6, 1000, depth=2, basis_seed=0) < 1e-12


def test_relu_fits_obey_theorem_4() -> None:
    """Small rates settle below the bound and far from it; at ten times those some draws do not."""
    task = get_task("two-layer-relu", points=20)
    rates = (0.005, 0.05)
    settings = {"steps": 300, "seeds": 3, "lyapunov": False, **EXACT}
    calm, wild = evaluate([Point(lr) for lr in rates], task, **settings)
    assert {r.verdict.regime for r in calm.replicates} == {"stable"}
    assert any(r.verdict.regime == "restrained" for r in wild.replicates)
    for replicate in calm.replicates:
        largest = replicate.evidence["metric"]
        assert largest is not None
        assert 0.1 < largest < 0.1 * relu_output_bound(rates[0], factor=1)


def test_the_regulariser_damps_the_attractors() -> None:
    """Fang's Fig. 1: less oscillation; a fixed anchor holds the state off, a moving one less.

    In the generic mode. The analytic one sees the layer in the predicted step alone, which shrinks
    as the state goes on, and so it pushes on: more oscillation.
    """

    def spread_and_centre(
        alpha: float, anchor: str | int, mode: str = "generic"
    ) -> tuple[float, float]:
        stabiliser = {"name": "stability", "mode": mode, "anchor": anchor}
        training = Training(dtype="float64", stabiliser=stabiliser)
        spreads, centres = [], []
        for seed in range(3):
            point, options = Point(0.3, alpha), {"samples": 40}
            states = walk("quadratic-attractors", point, training, 160, seed, options)
            late = np.array([state[0].ravel() for state in states[80:]])
            spreads.append(np.sqrt(((late - late.mean(0)) ** 2).sum(1).mean()))
            centres.append(np.linalg.norm(late.mean(0)))
        return float(np.mean(spreads)), float(np.mean(centres))

    plain, _ = spread_and_centre(0.0, "never")
    assert plain == pytest.approx(math.sqrt(2 * 0.3 / 1.7), rel=0.1)  # random picks, closed form
    fixed, fixed_centre = spread_and_centre(1.0, "never")
    moving, moving_centre = spread_and_centre(1.0, 4)
    assert max(fixed, moving) < 0.8 * plain
    assert moving_centre < 0.3 * fixed_centre
    pushed, _ = spread_and_centre(1.0, 4, "analytic")
    assert pushed > 1.05 * plain


# ------------------------------------------------------------------ the regulariser


@pytest.mark.parametrize("name", ["heat", "beltrami"])
def test_a_field_has_no_layer_to_regularise(name: str) -> None:
    message = (
        rf"^stabiliser.layers = None: {name} has no layer for a regulariser to act on; "
        r"hold alpha at 0, or use a stabiliser that acts on gradients, such as clip-norm$"
    )
    for stabiliser in ("stability", "stability-reference"):
        with pytest.raises(InputError, match=message):
            evaluate([Point(0.1, 1.0)], name, stabiliser=stabiliser)
    (clipped,) = evaluate([Point(0.001, 1.0)], name, stabiliser="clip-norm", steps=20)
    assert clipped.verdict.regime == "stable"


def test_a_spec_refuses_the_regulariser_too() -> None:
    spec = {"task": "heat", "axes": {"lr": 0.1, "alpha": {"scale": "log", "low": 0.1, "high": 1}}}
    spec |= {"budget": {"points": 4}}
    with pytest.raises(InputError, match=r"stabiliser\.layers = None: heat has no layer") as caught:
        load_spec(spec)
    assert len(caught.value.mistakes) == 1
    load_spec({**spec, "stabiliser": "clip-norm"})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deep-linear", {"start": "random"}),
        ("quadratic-attractors", {"samples": 8}),
    ],
)
def test_the_analytic_mode_sees_the_layers_own_gradient(name: str, options: dict[str, Any]) -> None:
    """The closed-form gradient of the regularised layer is autograd's, positions and all."""
    task = get_task(name, **options)
    training = Training(dtype="float64", stabiliser={"name": "stability", "mode": "analytic"})
    (result,) = evaluate(
        [Point(0.01, 0.5)], task, steps=20, stabiliser=training.stabiliser, **EXACT
    )
    assert result.verdict.regime in ("stable", "restrained")
    module, (inputs, targets) = task.module(1), task.train_data()
    outputs = module(inputs)
    assert task.loss.output_gradient is not None
    delta = task.loss.output_gradient(outputs, targets)
    (expected,) = torch.autograd.grad(task.loss.value(outputs, targets), outputs)
    torch.testing.assert_close(delta, expected)


# ------------------------------------------------------------------ overlays


def test_overlays_of_the_exact_tasks() -> None:
    decays = np.array([0.0, 1.0])
    bound = float(heat_dirichlet_bound(31))
    drawn = overlays("heat", {"points": 31}, "sgd", 0.0, "coupled")[0]
    assert drawn.exact
    assert drawn.label == "theory: 2 / (sharpness + weight decay)"
    np.testing.assert_allclose(drawn.lr(decays), [bound, 2 / (2 / bound + 1)])
    (beltrami, _) = overlays("beltrami", {"fidelity": 0.5}, "sgd", 0.0, "coupled")
    np.testing.assert_allclose(beltrami.lr(decays), [4, 2 / 1.5])
    assert len(overlays("linear-one-layer-cnn", {}, "sgd", 0.0, "coupled")) == 1
    for periodic, top in ((False, 16**2 * 241**2), (True, 16**2 * 256**2)):
        options: dict[str, object] = {"error": 0.5, "steepness": 2.0, "periodic": periodic}
        (linear, _) = overlays("linear-one-layer-cnn", options, "sgd", 0.0, "coupled")
        np.testing.assert_allclose(linear.lr(decays), 2 / (0.5 * top + decays))
    assert len(overlays("heat", {}, "sgd", 0.0, "decoupled")) == 1
    assert len(overlays("heat", {}, "adam", 0.0, "coupled")) == 0


@pytest.mark.parametrize("optimiser", ["sgd", "nesterov"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("heat", {"points": 9}), ("beltrami", {"points": 20}), ("linear-one-layer-cnn", {"error": 1})],
)
def test_trainings_on_both_sides_of_an_overlay(
    name: str, options: dict[str, Any], optimiser: str
) -> None:
    decay, momentum = 0.5, 0.6
    line = overlays(name, options, optimiser, momentum, "coupled")[0]
    points = [Point(factor * float(line.lr(decay)), 0.0, decay) for factor in (0.97, 1.03)]
    task = get_task(name, **options)
    settings = {"optimiser": optimiser, "momentum": momentum, "steps": 600, **EXACT}
    below, above = evaluate(points, task, lyapunov=False, **settings)
    assert below.verdict.regime != "divergent"
    assert above.verdict.regime == "divergent"


# ------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("heat", {"points": 2}, "task.points = 2: an integer from 3 to 65536"),
        ("beltrami", {"points": 2}, "task.points = 2: an integer from 3 to 65536"),
        ("beltrami", {"delta": 0}, "task.delta = 0: a number from 1e-12 to 1e+12"),
        ("beltrami", {"fidelity": -1}, "task.fidelity = -1: a number from 0 to 1e+12"),
        ("beltrami", {"fidelity": True}, "task.fidelity = True: a number from 0 to 1e+12"),
        ("beltrami", {"delta": float("nan")}, "task.delta = nan: a number from 1e-12 to 1e+12"),
        ("beltrami", {"delta": 10**400}, "task.delta = 1"),
        ("beltrami", {"noise_seed": -1}, "task.noise_seed = -1: an integer from 0"),
        ("linear-one-layer-cnn", {"image": 255}, "task.image = 255: even, so that"),
        ("linear-one-layer-cnn", {"kernel": 256}, "task.kernel = 256: an integer from 1 to 255"),
        ("linear-one-layer-cnn", {"error": 2}, "task.error = 2: a number from -1 to 1"),
        ("linear-one-layer-cnn", {"steepness": 0}, "task.steepness = 0: a number from 1e-06"),
        ("linear-one-layer-cnn", {"periodic": 1}, "task.periodic = 1: true or false"),
        ("quadratic-attractors", {"samples": 6}, "task.samples = 6: a multiple of 4"),
        ("quadratic-attractors", {"noise": -1}, "task.noise = -1: a number from 0 to 1e+06"),
        ("scalar-example", {"number": 4}, "task.number = 4: an integer from 1 to 3"),
        ("scalar-example", {"low": 3}, "task.low = 3: at most task.high, 2.2"),
        ("scalar-example", {"high": "2"}, "task.high = '2': a number from -1e+06 to 1e+06"),
        ("scalar-example", {"number": 3, "power": 5}, "task.power = 5: even"),
        ("deep-linear", {"depth": 0}, "task.depth = 0: an integer from 1 to 64"),
        ("deep-linear", {"eigenvalues": []}, "task.eigenvalues = (): 1 to 256 finite numbers"),
        ("deep-linear", {"eigenvalues": 3}, "task.eigenvalues = 3: 1 to 256 finite numbers"),
        ("deep-linear", {"eigenvalues": ["a"]}, "task.eigenvalues = ['a']: 1 to 256 finite"),
        ("deep-linear", {"eigenvalues": [10**400]}, "task.eigenvalues = [1"),
        ("deep-linear", {"eigenvalues": [float("inf")]}, "task.eigenvalues = (inf,): 1 to 256"),
        ("deep-linear", {"start": "zero"}, "task.start = 'zero': unknown choice"),
        ("deep-linear", {"basis_seed": -1}, "task.basis_seed = -1: an integer from 0"),
        ("two-layer-relu", {"points": 0}, "task.points = 0: an integer from 1 to 1000000"),
        ("two-layer-relu", {"units": 0}, "task.units = 0: an integer from 1 to 4096"),
        ("two-layer-relu", {"factor": 0}, "task.factor = 0: a number from 1e-09 to 1e+09"),
        ("two-layer-relu", {"teacher_seed": 0.5}, "task.teacher_seed = 0.5: an integer from 0"),
    ],
)
def test_bad_options_get_one_clear_message(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)) as caught:
        get_task(name, **options)
    assert len(caught.value.mistakes) == 1
    assert caught.value.mistakes[0].remedy

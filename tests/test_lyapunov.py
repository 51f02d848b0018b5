"""Lyapunov exponents against the logarithms of known multipliers."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toys import Bowl

from trainables.domain import DtypeName, Point, Training
from trainables.dynamics.lyapunov import Neighbour, lyapunov_exponent, mean_rate
from trainables.tasks import Task, get_task
from trainables.trajectory import Bench, Trajectory

#: Options that leave a state.
TRACKED = {"name": "stability", "track_decay": True, "anchor": 5}
SPAM = {"name": "stable-spam", "reset_every": 5}
MLP = get_task("mnist-mlp", samples=20, batch_size=5, width=4)


def exponent(task: Task, lr: float, weight_decay: float, **settings: Any) -> float:
    return lyapunov_exponent(task, Point(lr, 0.0, weight_decay), Training(**settings), seed=7)


@pytest.mark.parametrize(
    ("lr", "dtype", "steps", "expected"),
    [
        (0.01, "float64", 200, math.log(0.8)),
        (0.02, "float64", 200, math.log(0.6)),
        (0.101, "float64", 400, math.log(1.02)),
        (0.12, "float64", 400, math.log(1.4)),
        (0.01, "float32", 200, math.log(0.8)),
        (0.02, "float32", 200, math.log(0.6)),
        (0.101, "float32", 400, math.log(1.02)),
        (0.12, "float32", 80, math.log(1.4)),
    ],
)
def test_one_layer_cnn(lr: float, dtype: str, steps: int, expected: float) -> None:
    """Acceptance row 16; above 0.1 the multiplier is that of weight decay alone."""
    task = get_task("one-layer-cnn", image=64)
    assert exponent(task, lr, 20.0, dtype=dtype, steps=steps) == pytest.approx(expected, abs=1e-3)


def test_chaos_and_a_periodic_window() -> None:
    """Positive where the training is chaotic, negative on the cycle of period two."""
    task = get_task("one-layer-cnn", image=64)
    chaotic = exponent(task, 0.05, 20.0, dtype="float64")
    assert chaotic == pytest.approx(0.37, abs=0.06)
    assert exponent(task, 0.04, 20.0, dtype="float64") < -0.5


def test_near_the_boundary() -> None:
    """The slowest multiplier, 1 - 0.031 x sharpness, with the curvature of a 64 x 64 image."""
    task = get_task("one-layer-cnn", image=64)
    expected = [math.log(abs(1 - 0.031 * h)) for h in (61.9712, 62.0245)]
    found = exponent(task, 0.031, 20.0, dtype="float64")
    assert min(expected) - 2e-3 < found < max(expected) + 2e-3


@pytest.mark.parametrize(("lr", "h"), [(0.3, 0.5), (1.7, 1.0), (2.5, 1.0)])
def test_bowl(lr: float, h: float) -> None:
    """ln of the largest |1 - lr h_i|; decoupled and coupled decay act as they should."""
    task = Bowl((1.0, 0.5))
    found = exponent(task, lr, 0.0, dtype="float64", steps=300)
    assert found == pytest.approx(math.log(abs(1 - lr * h)), abs=1e-3)
    with_decay = exponent(task, 0.1, 2.0, dtype="float64", steps=300)
    assert with_decay == pytest.approx(math.log(1 - 0.1 * 2.5), abs=1e-3)


@pytest.mark.parametrize(
    ("lr", "momentum", "steps"), [(0.02, 0.5, 2000), (0.4, 0.9, 2000), (3.9, 0.9, 200)]
)
def test_bowl_with_momentum(lr: float, momentum: float, steps: int) -> None:
    """The perturbation lives in the momentum too, and is pulled back there by the same factor."""
    matrix = np.array([[1 - lr, -lr * momentum], [1.0, momentum]])
    rate = math.log(np.abs(np.linalg.eigvals(matrix)).max())
    found = exponent(Bowl((1.0,)), lr, 0.0, dtype="float64", steps=steps, momentum=momentum)
    assert found == pytest.approx(rate, abs=5e-3)


def test_depends_on_the_seed_alone() -> None:
    task = get_task("mnist-mlp", samples=20, batch_size=5, width=4)
    torch.manual_seed(1)
    one = exponent(task, 0.1, 0.0, steps=20)
    torch.manual_seed(2)
    assert exponent(task, 0.1, 0.0, steps=20) == one
    other = lyapunov_exponent(task, Point(0.1), Training(steps=20), seed=8)
    assert other != one


def test_a_training_that_overflows_has_none() -> None:
    task = get_task("one-layer-cnn", image=64)
    assert math.isnan(exponent(task, 10.0, 20.0, steps=60))


def pulled_bowl(
    lr: float, alpha: float, d: float, start: float
) -> tuple[float, NDArray[np.float64]]:
    """The regularised training of 1/2 (w - 1)^2 as a map of (w, S), both one number.

    w <- d w - lr [g + alpha f(d S - lr g)] and S gets the same without the d on w, where g = w - 1
    and f is the slope of sigma_1 with the sign of its argument.

    Returns:
        The predicted displacement at the resting point, and the map's derivative there.
    """
    a, w, s = 1.0, start, 0.0

    def slope(x: float) -> float:
        narrow = math.copysign(1.0, x) if a == 1 else x / math.hypot(1 - a, x)
        return 0.5 * (x / math.hypot(1 + a, x) + narrow)

    ahead = 0.0
    for _ in range(5000):
        g = w - 1
        a *= d
        ahead = d * s - lr * g
        step = -lr * (g + alpha * slope(ahead))
        w, s = d * w + step, d * s + step
    assert abs((1 - d) * w - step) < 1e-12, "at rest"
    # The derivative of the slope, at a = 1 or at a = 0, which d < 1 leads to.
    bend: float = 2 / (4 + ahead**2) ** 1.5 if d == 1 else (1 + ahead**2) ** -1.5
    by_w = -lr * (1 - alpha * bend * lr)
    by_s = -lr * alpha * bend * d
    return ahead, np.array([[d + by_w, by_s], [by_w, d + by_s]])


@pytest.mark.parametrize(
    ("lr", "alpha", "d"), [(0.3, 0.5, 1.0), (1.4, 0.2, 0.5), (1.2, 0.6, 0.4), (0.5, 2.0, 0.9)]
)
def test_bowl_with_a_stabiliser(lr: float, alpha: float, d: float) -> None:
    """The product of updates is pulled back with the parameters: both are what the map acts on.

    For d = 1 the anchor is a neutral direction and the exponent is 0, whatever the parameters
    alone would say; for d < 1 the product forgets, and the slower of two multipliers remains.
    """
    wd = (1 - d) / lr
    stabiliser = {"name": "stability", "mode": "generic", "track_decay": d < 1}
    training = Training(dtype="float64", steps=400, decay="decoupled", stabiliser=stabiliser)
    task = Bowl((1.0,))
    ahead, matrix = pulled_bowl(lr, alpha, d, 2.0)
    assert abs(ahead) > 0.1
    expected = math.log(np.abs(np.linalg.eigvals(matrix)).max())
    assert abs(expected - math.log(abs(matrix[0, 0]))) > 0.02
    found = lyapunov_exponent(task, Point(lr, alpha, wd), training, seed=7)
    assert found == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("task", "point", "settings"),
    [
        (MLP, Point(0.05, 0.0, 0.01), {"momentum": 0.9}),
        (MLP, Point(0.05, 1.0, 2.0), {"decay": "decoupled", "stabiliser": TRACKED}),
        (MLP, Point(0.01, 0.7), {"optimiser": "adamw", "stabiliser": SPAM}),
        # Lands on the minimum in one step, so that the neighbour has to begin anew.
        (Bowl((1.0, 1.0), 2.0), Point(1.0), {}),
    ],
    ids=["momentum", "stability", "stable-spam", "squeezed"],
)
def test_goes_on_from_a_file_to_the_bit(
    task: Task, point: Point, settings: dict[str, Any], dtype: DtypeName
) -> None:
    """Saved after 7 of 20 steps; nothing but tensors and numbers is in the file."""
    bench = Bench.of(task, Training(dtype=dtype, **settings))

    def pair() -> tuple[Trajectory, Neighbour]:
        base = Trajectory(bench, point, 1, 3)
        return base, Neighbour(base)

    def advance(base: Trajectory, neighbour: Neighbour, steps: int) -> None:
        for _ in range(steps):
            rows = bench.batch(3, base.count)
            base.step(rows)
            neighbour.step(rows)

    base, neighbour = pair()
    advance(base, neighbour, 7)
    file = io.BytesIO()
    torch.save((base.state_dict(), neighbour.state_dict()), file)
    advance(base, neighbour, 13)
    file.seek(0)
    again, beside = pair()
    saved, saved_beside = torch.load(file, weights_only=True)
    again.load_state_dict(saved)
    beside.load_state_dict(saved_beside)
    advance(again, beside, 13)
    for one, other in ((base, again), (neighbour.other, beside.other)):
        for ours, theirs in zip(one.parameters, other.parameters, strict=True):
            assert torch.equal(ours, theirs)
    end, expected = beside.state_dict(), neighbour.state_dict()
    for name in ("rates", "distance", "restarts"):
        assert end[name] == expected[name]
    assert len(end["rates"]) == 20
    assert (end["restarts"] > 1) == (task.name == "bowl")
    assert mean_rate(neighbour.rates[5:]) == mean_rate(beside.rates[5:])


def test_second_moments_stay_positive_when_they_are_pulled_back() -> None:
    """AdaDelta's parameters contract faster than its moments, whose roots are taken."""
    found = exponent(Bowl(), 1.0, 0.0, optimiser="adadelta", steps=1200)
    assert math.isfinite(found)
    assert found < 1e-3

"""The estimate of what a sweep costs, against operations counted on paper."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from toys import Bowl

from trainables.cost import CORE_SPEED, Cost, estimate
from trainables.domain import Training
from trainables.tasks import get_task

SAMPLES, WIDTH, STEPS = 40, 16, 50

#: One pass through 784 - 16 - 10: two operations for each weight and image.
FORWARD = 2 * SAMPLES * (784 * WIDTH + WIDTH * 10)
#: The gradients of both weights, and the one of the hidden layer that leads to the first of them.
BACKWARD = FORWARD + 2 * SAMPLES * WIDTH * 10


#: A training without the two measurements that decide nothing or cost by themselves.
BARE: dict[str, Any] = {"sharpness": False, "lyapunov": False}


def of(training: Training, points: int | None = 10, workers: int = 1, **options: Any) -> Cost:
    task = get_task("mnist-mlp", samples=SAMPLES, width=WIDTH, **options)
    return estimate(task, training, points, workers)


def test_one_step() -> None:
    """Two trajectories, and one look at the loss a step that comes on top of their passes."""
    found = of(Training(steps=STEPS, **BARE))
    assert found.steps == 2 * STEPS
    assert found.flops == 2 * STEPS * (FORWARD + BACKWARD) + STEPS * FORWARD
    assert found.seconds == found.flops / CORE_SPEED
    assert (found.points, found.workers) == (10, 1)


@dataclass(frozen=True)
class Looking(Bowl):
    """A network that asks for a number on its way."""

    def module(self, seed: int) -> nn.Module:
        network = super().module(seed)
        network.register_forward_hook(
            lambda _, __, outputs: outputs + min(0.0, float(outputs.detach().std()))
        )
        return network


def test_a_network_that_looks_at_its_numbers_is_counted_on_them() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        Looking().module(0).to("meta")(torch.ones(2, 2, device="meta").double())
    looking, plain = (estimate(task, Training(**BARE), 1, 1) for task in (Looking(), Bowl()))
    assert looking == plain
    assert looking.flops > 0


def test_trajectories_multiply() -> None:
    one = of(Training(steps=STEPS, **BARE))
    assert of(Training(steps=STEPS, **BARE, seeds=3)).flops == 3 * one.flops
    assert of(Training(steps=4 * STEPS, **BARE)).flops == 4 * one.flops
    three = of(Training(steps=STEPS, **BARE, ks=(1, 3, 5)))
    assert three.steps == 3 * STEPS
    assert three.flops - one.flops == STEPS * (FORWARD + BACKWARD)


def test_the_lyapunov_exponent_costs_one_more_trajectory() -> None:
    one = of(Training(steps=STEPS, **BARE))
    more = of(Training(steps=STEPS, sharpness=False))
    assert more.steps - one.steps == STEPS
    assert more.flops - one.flops == STEPS * (FORWARD + BACKWARD)


def test_sharpness_costs_more_steps() -> None:
    """Only for full batches, where it is measured, and whatever the number of steps."""
    extra = [
        of(Training(steps=steps, lyapunov=False)).flops - of(Training(steps=steps, **BARE)).flops
        for steps in (STEPS, 4 * STEPS)
    ]
    assert extra[0] == extra[1] > 20 * (FORWARD + BACKWARD)
    batched = (
        of(Training(steps=STEPS, sharpness=on, lyapunov=False), batch_size=10).flops
        for on in (True, False)
    )
    assert len(set(batched)) == 1


def test_a_mini_batch_costs_its_share() -> None:
    full = of(Training(steps=STEPS, **BARE))
    quarter = of(Training(steps=STEPS, **BARE), batch_size=SAMPLES // 4)
    passes = 2 * STEPS * (FORWARD + BACKWARD) / 4
    assert passes < quarter.flops < passes + full.flops / 4
    assert quarter.steps == full.steps


def test_a_large_network_is_counted_without_being_trained() -> None:
    """It grows with the width; the count needs no memory for activations."""
    task = get_task("mnist-mlp", samples=4000, width=8192)
    found = estimate(task, Training(steps=1000, **BARE), 1, 1)
    forward = 2 * 4000 * 8192 * (784 + 10)
    assert found.flops == pytest.approx(1000 * (2 * 2 + 1) * forward, rel=0.01)


@pytest.mark.parametrize("name", ["one-layer-cnn", "mnist-regression"])
def test_other_tasks(name: str) -> None:
    found = estimate(get_task(name), Training(), 5, 2)
    assert math.isfinite(found.flops)
    assert found.flops > 0


def test_in_words() -> None:
    cost = Cost(points=60, steps=800, flops=5e9, seconds=2.0, workers=4)
    assert str(cost) == (
        "60 points, 800 updates and 5 GFLOP a point: about 2 core-minutes, "
        "0.5 minutes with 4 workers (assuming 10 GFLOP/s a core), "
        "plus about half a minute to start"
    )
    assert str(Cost(None, 1600, 5e9, 2.0, 4)) == (
        "1,600 updates and 5 GFLOP a point, about 2 s on one core, "
        "plus about half a minute to start"
    )


def test_as_plain_values() -> None:
    found = of(Training(steps=STEPS), points=None, workers=3).to_dict()
    assert set(found) == {"points", "steps", "flops", "seconds", "workers"}
    assert found["points"] is None
    assert found["workers"] == 3

"""Learning rates that change along a training, and trainings of equal lr x updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sweeps.spec import load_spec
from trainables.domain import InputError, Point, Training
from trainables.dynamics.optimisers import Optimiser
from trainables.evaluate import evaluate
from trainables.options import plain_options
from trainables.pack import PackRun
from trainables.schedule import Cosine, Schedule, StepDecay, schedule_of
from trainables.tasks import get_task
from trainables.trajectory import Bench, Trajectory

MLP: dict[str, Any] = {"name": "mnist-mlp", "samples": 40}
QUICK: dict[str, Any] = {"steps": 40, "sharpness": False}
SCHEDULES = [
    {"name": "step-decay"},
    {"name": "step-decay", "every": 0.3, "gamma": 0.5, "warmup": 0.1},
    {"name": "cosine"},
    {"name": "constant", "warmup": 0.25},
]


def task() -> Any:
    return get_task(**MLP)


@pytest.mark.parametrize("steps", [20, 200, 78_000])
def test_step_decay_is_pytorchs(steps: int) -> None:
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.StepLR(optimiser, steps // 5, 0.1)
    for step in range(steps):
        if step % (steps // 20) == 0 or (step + 1) % (steps // 5) < 2:
            assert StepDecay().factor(step, steps) == pytest.approx(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()


def test_cosine_is_pytorchs() -> None:
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 50)
    for step in range(50):
        assert Cosine().factor(step, 50) == pytest.approx(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()


@given(st.sampled_from(SCHEDULES), st.integers(20, 10_000), st.data())
def test_factors_lie_in_0_to_1_and_above_the_smallest(
    named: dict[str, Any], steps: int, data: Any
) -> None:
    schedule = schedule_of(named)
    factor = schedule.factor(data.draw(st.integers(0, steps - 1)), steps)
    assert 0 < schedule.smallest(steps) <= factor <= 1


def test_warmup_rises_linearly() -> None:
    schedule = Schedule(warmup=0.1)
    assert [schedule.factor(i, 40) for i in range(5)] == [0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize("named", ["cosine", *SCHEDULES])
def test_options_come_back(named: Any) -> None:
    schedule = schedule_of(named)
    assert schedule_of(plain_options(schedule)) == schedule
    assert Training(schedule=named) == Training(schedule=plain_options(schedule))


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "torch.optim.SGD"])
@pytest.mark.parametrize("named", SCHEDULES)
def test_each_update_has_the_rate_of_its_step(named: dict[str, Any], optimiser: str) -> None:
    training = Training(**QUICK, optimiser=optimiser, schedule=named)
    bench, point = Bench.of(task(), training), Point(lr=0.1, weight_decay=0.01)
    trajectory = Trajectory(bench, point, 1, 0)
    schedule = schedule_of(named)
    for step in range(training.steps):
        trajectory.step(slice(None))
        assert trajectory.optimiser.lr == 0.1 * schedule.factor(step, training.steps)


def test_a_training_equals_one_by_hand() -> None:
    training = Training(**QUICK, schedule="step-decay", dtype="float64")
    bench, point = Bench.of(task(), training), Point(lr=0.3)
    trajectory = Trajectory(bench, point, 1, 5)
    module = bench.network(5, torch.float64)
    for step in range(40):
        trajectory.step(slice(None))
        loss = bench.task.loss.value(module(bench.inputs), bench.targets)
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for p, g in zip(module.parameters(), gradients, strict=True):
                p.data -= 0.3 * 0.1 ** (step // 8) * g
    for ours, theirs in zip(trajectory.parameters, module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("named", SCHEDULES[:2])
def test_packed_equals_alone(named: dict[str, Any], alpha: float) -> None:
    points = [Point(lr=lr, alpha=alpha, weight_decay=1e-3) for lr in (0.05, 0.4, 30.0)]
    settings = {**QUICK, "schedule": named, "stabiliser": {"name": "stability", "mode": "generic"}}
    together = evaluate(points, task(), **settings)
    for point, result in zip(points, together, strict=True):
        assert evaluate([point], task(), **settings) == [result]
        looped = evaluate([point], task(), **settings, backend="loop")[0]
        assert looped.verdict.regime == result.verdict.regime


def test_goes_on_to_the_bit() -> None:
    points = [Point(lr=0.1), Point(lr=0.2)]
    training = Training(**QUICK, schedule="cosine", steps_at_lr=0.1)
    whole = PackRun(points, task(), training)
    whole.advance()
    first, second = (PackRun(points, task(), training) for _ in range(2))
    first.advance(0)
    second.load_state_dict(first.state_dict())
    second.advance()
    assert second.results == whole.results


def test_the_regulariser_sees_the_rate_of_the_step() -> None:
    """Its penalty holds what the rule would add, and that shrinks with the rate."""
    training = Training(
        **QUICK, schedule="step-decay", stabiliser={"name": "stability", "track_decay": True}
    )
    bench = Bench.of(get_task("mnist-regression", samples=20, batch_size=None), training)
    trajectory = Trajectory(bench, Point(lr=1e-3, alpha=1.0, weight_decay=0.1), 1, 0)
    for step in range(40):
        trajectory.step(slice(None))
        action: Any = trajectory.action
        assert isinstance(action.optimiser, Optimiser)
        assert action.optimiser.lr == trajectory.optimiser.lr
        assert action.products[0].decay == 1 - 0.1 * 1e-3 * 0.1 ** (step // 8)


def test_a_rate_that_decays_is_not_settled_early() -> None:
    """A constant rate of 0.01 is settled before the end; one that will decay is not."""
    settings = {"steps": 200, "sharpness": False, "seed": 3}
    [result] = evaluate([Point(lr=0.01)], task(), **settings, schedule="cosine")
    assert result.replicates[0].steps_run == 200
    [plain] = evaluate([Point(lr=0.01)], task(), **settings)
    assert plain.replicates[0].steps_run < 200


def test_the_same_time_everywhere() -> None:
    points = [Point(lr=lr) for lr in (0.05, 0.1, 0.2)]
    results = evaluate(points, task(), **QUICK, early=False, steps_at_lr=0.1)
    assert [r.replicates[0].steps_run for r in results] == [80, 40, 20]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"schedule": "cosin"}, "did you mean cosine"),
        ({"schedule": 3}, "a mapping"),
        ({"schedule": {"name": "cosine", "every": 0.2}}, "cosine has no such option"),
        ({"schedule": {"name": "step-decay", "every": 1.5}}, "schedule.every"),
        ({"schedule": {"name": "step-decay", "gamma": 0}}, "schedule.gamma"),
        ({"schedule": {"name": "constant", "warmup": 1}}, "schedule.warmup"),
        ({"steps_at_lr": 0}, "steps_at_lr"),
        ({"steps_at_lr": 1e-9}, "lr"),
        ({"steps_at_lr": 1e12}, "lr"),
    ],
)
def test_bad_settings_are_named(setting: dict[str, Any], words: str) -> None:
    axes = {"lr": {"scale": "log", "low": 0.01, "high": 10}}
    with pytest.raises(InputError, match=words):
        load_spec({"task": "mnist-mlp", "axes": axes, **setting})
    with pytest.raises(InputError, match=words.replace("a mapping", "schedule")):
        evaluate([Point(lr=0.1)], task(), **setting)

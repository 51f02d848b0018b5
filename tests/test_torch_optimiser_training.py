"""Trainings with optimisers of `torch.optim`, against the built-in rules and bare loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toys import Bowl

from trainables.domain import InputError, Point, Regime, Training
from trainables.dynamics.optimisers import Optimiser
from trainables.dynamics.torch_optimiser import TorchOptimiser, optimiser_of
from trainables.evaluate import evaluate
from trainables.tasks import get_task
from trainables.trajectory import Bench, Trajectory

MLP = get_task("mnist-mlp", samples=20, width=4)


def end(optimiser: str, point: Point, steps: int = 30, **settings: Any) -> torch.Tensor:
    training = Training(optimiser=optimiser, dtype="float64", **settings)
    run = Trajectory(Bench.of(MLP, training), point, 1, 3)
    for _ in range(steps):
        run.step(slice(None))
    return torch.cat([p.detach().reshape(-1) for p in run.parameters])


@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("SGD", "sgd"), ("Adam", "adam"), ("AdamW", "adamw"), ("RMSprop", "rmsprop")],
)
def test_the_same_training_as_with_the_built_in_rule(theirs: str, ours: str, alpha: float) -> None:
    """Also with the generic stability regulariser, whose dry run is made on copies."""
    point = Point(0.01, alpha, 0.1)
    generic = {"name": "stability", "mode": "generic"}
    one = end(f"torch.optim.{theirs}", point, stabiliser=generic)
    other = end(ours, point, stabiliser=generic)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(one, end(ours, Point(0.01, alpha + 1.0, 0.1), stabiliser=generic))


def test_against_a_bare_loop_of_torch() -> None:
    module = MLP.module(3)
    optimiser = torch.optim.NAdam(module.parameters(), lr=0.01, weight_decay=0.1)
    inputs, targets = MLP.train_data()
    for _ in range(30):
        optimiser.zero_grad()
        MLP.loss.value(module(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    expected = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    found = end("torch.optim.NAdam", Point(0.01, 0.0, 0.1))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_verdicts_come_without_the_sharpness_criterion() -> None:
    """Gradient descent on a bowl of curvature 1, with torch's own SGD: 2 is the largest rate."""
    points = [Point(0.5), Point(2.3)]
    calm, wild = evaluate(points, Bowl((1.0, 0.5)), optimiser="torch.optim.SGD", steps=60)
    assert calm.verdict.regime is Regime.STABLE
    assert calm.replicates[0].evidence["sharpness_ratio"] is None
    assert wild.verdict.regime is Regime.DIVERGENT


def test_momentum_goes_to_the_constructor() -> None:
    rule = optimiser_of(Training(optimiser="torch.optim.SGD", momentum=0.5), 0.1, 0.2, 3)
    assert isinstance(rule, TorchOptimiser)
    assert rule.rule.options == {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.2}
    assert rule.rule.k == 3
    assert type(optimiser_of(Training(), 0.1, 0.2, 3)) is Optimiser


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"optimiser": "torch.optim.NAdam", "momentum": 0.5},
            "momentum = 0.5: torch.optim.NAdam takes no argument momentum; leave it out$",
        ),
        (
            {"optimiser": "torch.optim.NAdam", "weight_decay": 0.1, "momentum": 0.5},
            "momentum = 0.5: torch.optim.NAdam takes no argument momentum; leave it out$",
        ),
        (
            {"optimiser": "torch.optim.Rprop", "weight_decay": 0.1},
            "weight_decay = 0.1: torch.optim.Rprop takes no argument weight_decay; set it to 0$",
        ),
        (
            {"optimiser": "torch.optim.lr_scheduler"},
            "optimiser = 'torch.optim.lr_scheduler': no such optimiser in torch.optim",
        ),
        (
            {"optimiser": "torch.optim.swa_utils", "momentum": 0.5},
            "optimiser = 'torch.optim.swa_utils': no such optimiser in torch.optim",
        ),
        (
            {"optimiser": "torch.optim.SGD", "momentum": 3.0},
            "momentum = 3.0: ",
        ),
        ({"optimiser": "torch.optim.LBFGS"}, "optimiser = 'torch.optim.LBFGS': it needs a closure"),
        (
            {"optimiser": "torch.optim.NAdam", "beta2": 0.9},
            "beta2 = 0.9: torch.optim.NAdam keeps its own beta2; leave it out",
        ),
        (
            {"optimiser": "torch.optim.SGD", "stabiliser": "spectra"},
            "stabiliser = 'spectra': clips the direction of an update, which torch.optim.SGD",
        ),
        (
            {
                "optimiser": "torch.optim.SGD",
                "stabiliser": {"name": "stability", "mode": "analytic"},
            },
            "stabiliser.mode = 'analytic': torch.optim.SGD cannot be differentiated",
        ),
    ],
)
def test_messages(settings: dict[str, Any], message: str) -> None:
    settings = dict(settings)
    task = get_task("mnist-mlp", samples=20, width=4, loss_name="squared-error")
    point = Point(0.1, 1.0, settings.pop("weight_decay", 0.0))
    with pytest.raises(InputError, match=f"^{message.replace('.', '[.]').replace('[.]*', '.*')}"):
        evaluate([point], task, steps=20, **settings)


def test_no_decay_is_no_decay() -> None:
    """AdamW's own default is 0.01: a weight without gradient must stay where it is."""
    weight, zero = torch.ones(2), torch.zeros(2)
    for decay, expected in ((0.0, 1.0), (0.5, 1 - 0.01 * 0.5)):
        rule = optimiser_of(Training(optimiser="torch.optim.AdamW"), 0.01, decay, 1)
        after, _ = rule.step(weight, zero, rule.init(weight), 0)
        assert after.tolist() == pytest.approx([expected] * 2, rel=1e-6)


def test_torch_s_own_descent_is_judged_like_the_built_in_one() -> None:
    """The ascent of mini-batches decides for both, and the trajectories are the same."""
    task = get_task("mnist-mlp", samples=100, batch_size=20, width=8)
    one, other = (
        evaluate([Point(1.8)], task, optimiser=name, steps=40, dtype="float64", backend="loop")[
            0
        ].replicates[0]
        for name in ("sgd", "torch.optim.SGD")
    )
    assert one.verdict == other.verdict
    assert one.evidence["ascent_share"] == other.evidence["ascent_share"]
